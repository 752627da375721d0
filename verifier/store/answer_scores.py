"""
The score of each node by the sequential test (`verifier.answers.sequence`), and of each operator's nodes together.

A node's newest row carries its score on: another engine or revision, which a node chooses itself, starts a row with the
score of the row before.  Only a person's word, or answers that agree, bring a score down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.answers import sequence
from verifier.answers.checks import Kind
from verifier.answers.tables import Rates
from verifier.store.database import Tx

_MAX_ROWS: Final = 8
"""Rows kept for a node and model.  The oldest goes: a node names its engine itself."""
LEAST_VERDICTS: Final = 20
"""After so many verdicts a node that is not suspected shows that true weights can pass."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a node serves: the key of a row."""

    node_id: str
    operator: str
    model: str
    reference: str
    engine: str
    """``NAME@VERSION``."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A verdict, as it is counted."""

    kind: Kind
    rates: Rates | None
    """`None`: it does not move the score."""
    highest: float
    """The score stays below this."""
    prompt_differs: bool = False
    is_too_fast: bool = False


@dataclass(frozen=True)
class Score:
    """A score before and after a verdict."""

    before: float
    after: float


async def count(tx: Tx, served: Served, counted: Counted, now_ms: int) -> Score:
    """Count a verdict on an answer of a node; returns its score."""
    row = await tx.one(
        "SELECT * FROM answer_scores WHERE node_id = ? AND model = ? ORDER BY last_ms DESC, first_ms DESC LIMIT 1",
        served.node_id,
        served.model,
    )
    before = 0.0 if row is None else float(row["score"])
    after = _moved(before, counted)
    rose_ms = None if after <= 0 else (now_ms if row is None or row["rose_ms"] is None else row["rose_ms"])
    is_new = row is None or (row["reference"], row["engine"]) != (served.reference, served.engine)
    await tx.execute(
        "INSERT INTO answer_scores (node_id, model, reference, engine, operator, score, agrees, differs, censored,"
        " prompts, fast, first_ms, last_ms, rose_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (node_id, model, reference, engine) DO UPDATE SET score = excluded.score,"
        " operator = excluded.operator, agrees = answer_scores.agrees + excluded.agrees,"
        " differs = answer_scores.differs + excluded.differs,"
        " censored = answer_scores.censored + excluded.censored,"
        " prompts = answer_scores.prompts + excluded.prompts, fast = answer_scores.fast + excluded.fast,"
        " last_ms = excluded.last_ms, rose_ms = excluded.rose_ms",
        served.node_id, served.model, served.reference, served.engine, served.operator, after,
        *(int(counted.kind == kind) for kind in ("agrees", "differs", "censored")),
        int(counted.prompt_differs), int(counted.is_too_fast), now_ms, now_ms, rose_ms,
    )  # fmt: skip
    if is_new:
        await _delete_old(tx, served)
    return Score(before, after)


def _moved(score: float, counted: Counted) -> float:
    if counted.rates is None or counted.kind not in ("agrees", "differs"):
        return score
    steps = sequence.increments(counted.rates)
    if counted.kind == "agrees":
        return sequence.advance(score, steps.agrees, max(score, counted.highest))
    return max(score, sequence.advance(score, steps.differs, counted.highest))


async def _delete_old(tx: Tx, served: Served) -> None:
    rows = await tx.all(
        "SELECT reference, engine FROM answer_scores WHERE node_id = ? AND model = ?"
        " ORDER BY last_ms DESC, first_ms DESC LIMIT 64",
        served.node_id,
        served.model,
    )
    for row in rows[_MAX_ROWS:]:
        await tx.execute(
            "DELETE FROM answer_scores WHERE node_id = ? AND model = ? AND reference = ? AND engine = ?",
            served.node_id,
            served.model,
            row["reference"],
            row["engine"],
        )


async def count_pooled(tx: Tx, served: Served, counted: Counted) -> Score:
    """Count a verdict into the score of all nodes of the operator with the model."""
    row = await tx.one(
        "SELECT score FROM operator_scores WHERE operator = ? AND model = ?", served.operator, served.model
    )
    before = 0.0 if row is None else float(row["score"])
    after = _moved(before, counted)
    await tx.execute(
        "INSERT INTO operator_scores (operator, model, score, agrees, differs) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (operator, model) DO UPDATE SET score = excluded.score,"
        " agrees = operator_scores.agrees + excluded.agrees, differs = operator_scores.differs + excluded.differs",
        served.operator,
        served.model,
        after,
        int(counted.kind == "agrees"),
        int(counted.kind == "differs"),
    )
    return Score(before, after)


@dataclass(frozen=True)
class Peers:
    """The operators whose nodes serve the same revision by the same engine."""

    failing: frozenset[str]
    passing: frozenset[str]
    first_ms: int
    """When the first answer of any of these nodes was judged."""


async def peers(tx: Tx, served: Served, suspected: float) -> Peers:
    """Give whose nodes fail and whose pass with the same revision and engine; *suspected* is the boundary."""
    rows = await tx.all(
        "SELECT s.node_id, s.operator, s.score, s.agrees + s.differs AS verdicts, s.first_ms FROM answer_scores s"
        " JOIN nodes n ON n.id = s.node_id"
        " WHERE s.model = ? AND s.reference = ? AND s.engine = ? AND n.state != 'retired'",
        served.model,
        served.reference,
        served.engine,
    )
    return Peers(
        frozenset(row["operator"] for row in rows if row["score"] >= suspected),
        frozenset(
            row["operator"]
            for row in rows
            if row["score"] < suspected
            and row["verdicts"] >= LEAST_VERDICTS
            and row["node_id"] != served.node_id
        ),
        min((row["first_ms"] for row in rows), default=0),
    )


async def reset(tx: Tx, node_id: str, model: str) -> None:
    """Let a node's score begin at 0 again, and that of its operator's nodes together, which it is part of."""
    await tx.execute(
        "UPDATE answer_scores SET score = 0, rose_ms = NULL WHERE node_id = ? AND model = ?", node_id, model
    )
    await tx.execute(
        "UPDATE operator_scores SET score = 0, suspected_ms = NULL"
        " WHERE operator = (SELECT operator FROM nodes WHERE id = ?) AND model = ?",
        node_id,
        model,
    )


async def reset_reference(tx: Tx, reference: str, engine: str) -> list[tuple[str, str]]:
    """
    Let all scores of a reference value begin at 0 again; gives the nodes and models.

    Args:
        engine: Only those of nodes that had this version of an engine; all if empty.
    """
    rows = await tx.all(
        "SELECT DISTINCT node_id, model FROM answer_scores WHERE reference = ? AND (? = '' OR engine = ?)",
        reference,
        engine,
        engine,
    )
    for row in rows:
        await reset(tx, row["node_id"], row["model"])
    return [(row["node_id"], row["model"]) for row in rows]


async def of_node(tx: Tx, node_id: str) -> list[dict[str, Any]]:
    """Give the rows of a node, the newest first of each model."""
    rows = await tx.all("SELECT * FROM answer_scores WHERE node_id = ? ORDER BY model, last_ms DESC", node_id)
    return [dict(row) for row in rows]


async def operators(tx: Tx, least: float) -> list[dict[str, Any]]:
    """Give the operators whose score is *least* or more, the highest first."""
    rows = await tx.all("SELECT * FROM operator_scores WHERE score >= ? ORDER BY score DESC, operator", least)
    return [dict(row) for row in rows]
