"""
Which chat templates and sampling defaults a node had, as its results named them when its answers were checked.

A node that has had two of the same revision has changed one without a new revision: that is to be seen.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from verifier.store.database import Row, Tx

MAX_KEPT: Final = 8
"""Of a node and model; the oldest goes, because an engine's own template is the node's word."""
_MOST: Final = 5000


class _Said(Struct, frozen=True):
    prompting: dict[str, str] = {}


class _Submod(Struct, frozen=True):
    ear_verifier_claims: _Said = _Said()


class _Result(Struct, frozen=True):
    submods: dict[str, _Submod]


_RESULT: Final = msgspec.json.Decoder(_Result)


def prompting_in(claims: str, submod: str) -> tuple[str, str]:
    """Give template and sampling defaults that a result names for a submodule; empty where it names none."""
    found = _RESULT.decode(claims).submods.get(submod, _Submod()).ear_verifier_claims.prompting
    return found.get("template", ""), found.get("sampling", "")


async def note(tx: Tx, node_id: str, model: str, reference: str, used: tuple[str, str], now_ms: int) -> None:
    """Note template and sampling defaults of a node; an empty one is not known."""
    await tx.execute(
        "INSERT INTO node_prompting (node_id, model, reference, template, sampling, first_ms, last_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (node_id, model, reference, template, sampling) DO UPDATE SET last_ms = excluded.last_ms",
        node_id, model, reference, *used, now_ms, now_ms,
    )  # fmt: skip
    oldest = await tx.one(
        "SELECT last_ms FROM node_prompting WHERE node_id = ? AND model = ? ORDER BY last_ms DESC LIMIT 1 OFFSET ?",
        node_id,
        model,
        MAX_KEPT,
    )
    if oldest is not None:
        await tx.execute(
            "DELETE FROM node_prompting WHERE node_id = ? AND model = ? AND last_ms <= ?",
            node_id,
            model,
            oldest["last_ms"],
        )


async def of_model(tx: Tx, model: str) -> list[Row]:
    """Give what nodes of a model had, by revision, the newest last."""
    return await tx.all(
        "SELECT p.*, n.operator FROM node_prompting p JOIN nodes n ON n.id = p.node_id"
        " WHERE p.model = ? ORDER BY p.reference, p.node_id, p.first_ms, p.template, p.sampling LIMIT ?",
        model,
        _MOST,
    )


async def of_node(tx: Tx, node_id: str) -> list[Row]:
    """Give what a node had, by model and revision, the newest last."""
    return await tx.all(
        "SELECT * FROM node_prompting WHERE node_id = ?"
        " ORDER BY model, reference, first_ms, template, sampling",
        node_id,
    )


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest that no check has seen since *before_ms*."""
    rows = await tx.all(
        "SELECT node_id, model, reference, template, sampling FROM node_prompting WHERE last_ms < ?"
        " ORDER BY last_ms LIMIT ?",
        before_ms,
        limit,
    )
    for row in rows:
        await tx.execute(
            "DELETE FROM node_prompting WHERE node_id = ? AND model = ? AND reference = ? AND template = ?"
            " AND sampling = ?",
            row["node_id"],
            row["model"],
            row["reference"],
            row["template"],
            row["sampling"],
        )
    return len(rows)
