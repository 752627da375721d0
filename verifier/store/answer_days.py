"""
What checks of answers said, by day: of each node, model, revision and engine version.

A row is some 220 bytes, and a node has one for each day, model and version; of versions a day at most `MAX_VERSIONS`,
because a node names its engine itself.
"""

from __future__ import annotations

from typing import Any, Final

from verifier.answers import days
from verifier.answers.days import Counts
from verifier.store.answer_scores import Served
from verifier.store.database import Row, Tx

MAX_VERSIONS: Final = 4
"""Rows of a node, model and day.  What comes after them is counted as `OTHERS`."""
OTHERS: Final = "(others)"
_MOST_ROWS: Final = 50_000
_MOST_SUMS: Final = 64
"""Versions in metrics: a node names its engine itself."""


async def count(tx: Tx, served: Served, counts: Counts, now_ms: int) -> None:
    """Count a check into the row of its day."""
    day = now_ms // days.DAY_MS
    rows = await tx.all(
        "SELECT * FROM answer_days WHERE node_id = ? AND model = ? AND day = ?",
        served.node_id,
        served.model,
        day,
    )
    place = (served.reference, served.engine)
    known = {(row["reference"], row["engine"]): row for row in rows}
    if place not in known and len(known) >= MAX_VERSIONS:
        place = (served.reference, OTHERS)
    if place not in known and len(known) > MAX_VERSIONS:
        place = ("", OTHERS)
    before = known.get(place)
    found = counts if before is None else days.merge([of_row(before), counts])
    await tx.execute(
        "INSERT INTO answer_days (node_id, model, day, reference, engine, operator, agrees, differs, censored, prompts,"
        " parts, parts_of, far, far_of, distances) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (node_id, model, day, reference, engine) DO UPDATE SET operator = excluded.operator,"
        " agrees = excluded.agrees, differs = excluded.differs, censored = excluded.censored,"
        " prompts = excluded.prompts, parts = excluded.parts, parts_of = excluded.parts_of, far = excluded.far,"
        " far_of = excluded.far_of, distances = excluded.distances",
        served.node_id, served.model, day, *place, served.operator,
        *(getattr(found, name) for name in days.NAMES), days.encode(found.distances),
    )  # fmt: skip


def of_row(row: Row | dict[str, Any]) -> Counts:
    """The counts of a row."""
    return Counts(**{name: int(row[name]) for name in days.NAMES}, distances=days.decode(row["distances"]))


async def of_model(tx: Tx, model: str, since_day: int) -> list[Row]:
    """Give the rows of a model from a day on, by day; the newest if there are too many."""
    return await tx.all(
        "SELECT * FROM answer_days WHERE model = ? AND day >= ? ORDER BY day DESC, node_id, reference, engine LIMIT ?",
        model,
        since_day,
        _MOST_ROWS,
    )


async def of_node(tx: Tx, node_id: str, since_day: int, until_day: int) -> list[Row]:
    """Give the rows of a node from a day on, of the models with which it was ever checked."""
    models_of = await tx.all("SELECT model FROM node_drift WHERE node_id = ? ORDER BY model", node_id)
    # One place for each day, of a year at most: a row begins with it.
    wanted = range(since_day, until_day + 1)
    marks = ", ".join("?" for _ in wanted)
    found: list[Row] = []
    for row in models_of:
        found += await tx.all(
            f"SELECT * FROM answer_days WHERE day IN ({marks}) AND model = ? AND node_id = ?"
            " ORDER BY day, reference, engine",
            *wanted,
            row["model"],
            node_id,
        )
    return found


async def models(tx: Tx, since_day: int) -> list[str]:
    """Give the models of which answers were checked since a day."""
    rows = await tx.all("SELECT DISTINCT model FROM answer_days WHERE day >= ? ORDER BY model", since_day)
    return [row["model"] for row in rows]


async def sums(tx: Tx, day: int) -> list[Row]:
    """Give the counts of all nodes together on a day and the one before, by engine version, those with most first."""
    return await tx.all(
        "SELECT model, engine, sum(agrees) AS agrees, sum(differs) AS differs, sum(censored) AS censored,"
        " sum(parts) AS parts, sum(parts_of) AS parts_of, sum(far) AS far, sum(far_of) AS far_of FROM answer_days"
        " WHERE day IN (?, ?) GROUP BY model, engine"
        " ORDER BY sum(agrees) + sum(differs) + sum(censored) DESC, model, engine LIMIT ?",
        day - 1,
        day,
        _MOST_SUMS,
    )


async def prune(tx: Tx, before_day: int, limit: int) -> int:
    """Delete up to *limit* of the oldest rows from before a day."""
    rows = await tx.all(
        "SELECT node_id, model, day, reference, engine FROM answer_days WHERE day < ? ORDER BY day LIMIT ?",
        before_day,
        limit,
    )
    for row in rows:
        await tx.execute(
            "DELETE FROM answer_days WHERE node_id = ? AND model = ? AND day = ? AND reference = ? AND engine = ?",
            row["node_id"],
            row["model"],
            row["day"],
            row["reference"],
            row["engine"],
        )
    return len(rows)
