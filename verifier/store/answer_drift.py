"""
The scores by which shifts are found (`verifier.answers.drift`): of each node, and of each operator on an engine version.

A node's row goes with the node: another engine or revision, which it chooses itself, carries its scores on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.answers import drift
from verifier.answers.drift import Accepted, OperatorScores, Scores, Seen, Usual
from verifier.answers.tables import Rates
from verifier.store.answer_scores import Served
from verifier.store.database import Row, Tx

_SHOWN: Final = 500
ACCEPTED_OVER_DAYS: Final = 28


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A check, as it is counted."""

    seen: Seen
    usual: Usual
    differing: Rates | None
    """The rates of answers that differ; `None`: that says nothing."""


async def accepted(tx: Tx, served: Served) -> Accepted | None:
    """Give what a person has accepted as usual for the family of the node's engine; `None`: the table counts."""
    row = await tx.one(
        "SELECT parts, far FROM usual_answers WHERE model = ? AND reference = ? AND family = ?",
        served.model,
        served.reference,
        family(served.engine),
    )
    return None if row is None else Accepted(row["parts"], row["far"])


def family(engine: str) -> str:
    """The name of an engine without its version."""
    return engine.partition("@")[0]


def is_known(engine: str) -> bool:
    """Whether an engine and its version are known: what is not known is no version that nodes have in common."""
    name, _, version = engine.partition("@")
    return bool(name and version)


async def count_node(tx: Tx, served: Served, looked: Looked, now_ms: int) -> Scores:
    """Count a check into the scores of its node; gives them."""
    row = await tx.one(
        "SELECT parts, far FROM node_drift WHERE node_id = ? AND model = ?", served.node_id, served.model
    )
    before = Scores() if row is None else Scores(parts=float(row["parts"]), far=float(row["far"]))
    after = drift.advance_scores(before, looked.seen, looked.usual, None)
    await tx.execute(
        "INSERT INTO node_drift (node_id, model, reference, engine, operator, parts, far, checks, last_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?) ON CONFLICT (node_id, model) DO UPDATE SET"
        " reference = excluded.reference, engine = excluded.engine, operator = excluded.operator,"
        " parts = excluded.parts, far = excluded.far, checks = node_drift.checks + 1, last_ms = excluded.last_ms",
        served.node_id, served.model, served.reference, served.engine, served.operator, after.parts, after.far,
        now_ms,
    )  # fmt: skip
    return after


async def count_version(tx: Tx, served: Served, looked: Looked, now_ms: int) -> Scores:
    """Count a check into the scores of its operator on the engine version; gives them."""
    row = await tx.one(
        "SELECT differs, parts, far FROM version_drift"
        " WHERE model = ? AND reference = ? AND engine = ? AND operator = ?",
        served.model,
        served.reference,
        served.engine,
        served.operator,
    )
    before = Scores() if row is None else _scores(row)
    after = drift.advance_scores(before, looked.seen, looked.usual, looked.differing)
    await tx.execute(
        "INSERT INTO version_drift (model, reference, engine, operator, differs, parts, far, checks, last_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?) ON CONFLICT (model, reference, engine, operator) DO UPDATE SET"
        " differs = excluded.differs, parts = excluded.parts, far = excluded.far,"
        " checks = version_drift.checks + 1, last_ms = excluded.last_ms",
        served.model, served.reference, served.engine, served.operator, *after, now_ms,
    )  # fmt: skip
    return after


def _scores(row: Row) -> Scores:
    return Scores(float(row["differs"]), float(row["parts"]), float(row["far"]))


async def of_version(tx: Tx, model: str, reference: str, engine: str, now_ms: int) -> list[OperatorScores]:
    """Give the scores of the operators whose nodes serve by an engine version, and were checked of late."""
    since_ms = now_ms - drift.RECENT_MS
    rows = await tx.all(
        "SELECT operator, differs, parts, far, checks FROM version_drift"
        " WHERE model = ? AND reference = ? AND engine = ? AND last_ms > ? ORDER BY operator",
        model, reference, engine, since_ms,
    )  # fmt: skip
    nodes = await tx.all(
        "SELECT d.operator, count(*) AS n FROM node_drift d JOIN nodes n ON n.id = d.node_id"
        " WHERE d.model = ? AND d.reference = ? AND d.engine = ? AND d.last_ms > ? AND n.state != 'retired'"
        " GROUP BY d.operator",
        model, reference, engine, since_ms,
    )  # fmt: skip
    serving = {row["operator"]: int(row["n"]) for row in nodes}
    # Who has no node left there says nothing about what runs now.
    return [
        OperatorScores(
            operator=row["operator"],
            scores=_scores(row),
            checks=int(row["checks"]),
            nodes=serving[row["operator"]],
        )
        for row in rows
        if row["operator"] in serving
    ]


async def nodes_of(tx: Tx, model: str, reference: str, engine: str) -> list[str]:
    """Give the nodes that were checked last with a revision and an engine version."""
    rows = await tx.all(
        "SELECT node_id FROM node_drift WHERE model = ? AND reference = ? AND engine = ? ORDER BY node_id",
        model,
        reference,
        engine,
    )
    return [row["node_id"] for row in rows]


async def set_review(tx: Tx, node_id: str, model: str, now_ms: int) -> bool:
    """Have a person look at a node; whether nobody was to look at it before."""
    changed = await tx.execute(
        "UPDATE node_drift SET review_ms = ? WHERE node_id = ? AND model = ? AND review_ms IS NULL",
        now_ms,
        node_id,
        model,
    )
    return changed > 0


async def waits(tx: Tx, node_id: str, model: str) -> bool:
    """Whether a person is to look at a node because its answers have moved."""
    found = await tx.one(
        "SELECT 1 AS one FROM node_drift WHERE node_id = ? AND model = ? AND review_ms IS NOT NULL",
        node_id,
        model,
    )
    return found is not None


async def reset_node(tx: Tx, node_id: str, model: str) -> bool:
    """Let a node's scores begin at 0 again, and close its review.  Returns whether there is anything of it."""
    changed = await tx.execute(
        "UPDATE node_drift SET parts = 0, far = 0, checks = 0, review_ms = NULL WHERE node_id = ? AND model = ?",
        node_id,
        model,
    )
    return changed > 0


async def reset_version(tx: Tx, model: str, reference: str, engine: str) -> list[str]:
    """Let all scores of an engine version begin at 0 again; gives its nodes."""
    await tx.execute(
        "DELETE FROM version_drift WHERE model = ? AND reference = ? AND engine = ?", model, reference, engine
    )
    found = await nodes_of(tx, model, reference, engine)
    for node_id in found:
        await reset_node(tx, node_id, model)
    return found


async def set_usual(
    tx: Tx, key: tuple[str, str, str], rates: Accepted, actor: str, reason: str, now_ms: int
) -> None:
    """Keep what a person has accepted as usual for a model, a reference value and an engine family."""
    await tx.execute(
        "INSERT INTO usual_answers (model, reference, family, parts, far, at_ms, actor, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, reference, family) DO UPDATE SET"
        " parts = excluded.parts, far = excluded.far, at_ms = excluded.at_ms, actor = excluded.actor,"
        " reason = excluded.reason",
        *key, *rates, now_ms, actor, reason,
    )  # fmt: skip


async def all_usual(tx: Tx, model: str) -> list[dict[str, Any]]:
    """Give what people have accepted for a model."""
    rows = await tx.all("SELECT * FROM usual_answers WHERE model = ? ORDER BY reference, family", model)
    return [dict(row) for row in rows]


async def reviews(tx: Tx, limit: int = _SHOWN) -> list[dict[str, Any]]:
    """Give the nodes that a person should look at; the longest waiting first."""
    rows = await tx.all(
        "SELECT * FROM node_drift WHERE review_ms IS NOT NULL ORDER BY review_ms, node_id, model LIMIT ?",
        limit,
    )
    return [dict(row) for row in rows]


async def of_node(tx: Tx, node_id: str) -> list[dict[str, Any]]:
    """Give the scores of a node, by model."""
    rows = await tx.all("SELECT * FROM node_drift WHERE node_id = ? ORDER BY model", node_id)
    return [dict(row) for row in rows]


async def versions(tx: Tx, model: str) -> list[tuple[str, str]]:
    """Give the revisions and engine versions that have scores."""
    rows = await tx.all(
        "SELECT DISTINCT reference, engine FROM version_drift WHERE model = ? ORDER BY reference, engine LIMIT ?",
        model,
        _SHOWN,
    )
    return [(row["reference"], row["engine"]) for row in rows]


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest scores of versions that nobody was checked with since *before_ms*."""
    rows = await tx.all(
        "SELECT model, reference, engine, operator FROM version_drift WHERE last_ms < ? ORDER BY last_ms LIMIT ?",
        before_ms,
        limit,
    )
    for row in rows:
        await tx.execute(
            "DELETE FROM version_drift WHERE model = ? AND reference = ? AND engine = ? AND operator = ?",
            row["model"],
            row["reference"],
            row["engine"],
            row["operator"],
        )
    return len(rows)
