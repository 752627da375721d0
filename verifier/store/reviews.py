"""What waits for people, what people have found before, and how long both took (`verifier.triage`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from verifier.incidents import ANSWER_MISMATCH, REVIEW_TARGET_MS, State
from verifier.store.database import Row, Tx
from verifier.store.ids import in_pieces
from verifier.store.incident_facts import HOLDING_SQL
from verifier.triage import FOUND_MS, TIMED_MS, Fault, Waiting

ANSWERS: Final = ("answers-suspected", "answers-moved", "answers-scored")
"""The kinds of what waits about the answers of a node with a model, and their codes: see `_ANSWERS`."""
WAITING_SQL: Final = f"state IN ({HOLDING_SQL}, 'suspected', 'flagged')"
MOST: Final = 2000
"""So many entries of the queue are rated: those that have waited longest."""
_DAY_MS: Final = 24 * 3600 * 1000
KEPT_MS: Final = 400 * _DAY_MS
_MOST_TIMED: Final = 10_000

_ANSWERS: Final = (
    "SELECT w.kind, w.node_id, w.model, w.since_ms, n.operator FROM ("
    f"SELECT '{ANSWERS[0]}' AS kind, node_id, model, since_ms FROM suspicions WHERE level = 'suspected'"
    f" UNION ALL SELECT '{ANSWERS[1]}', node_id, model, review_ms FROM node_drift WHERE review_ms IS NOT NULL"
    f" UNION ALL SELECT '{ANSWERS[2]}', node_id, model, min(review_ms) FROM peer_scores"
    " WHERE review_ms IS NOT NULL GROUP BY node_id, model) w JOIN nodes n ON n.id = w.node_id"
)
"""Nodes that are suspected, nodes whose answers have moved, and those whose answers other nodes would not have given."""
_UNDECIDED: Final = (
    f"{_ANSWERS} WHERE NOT EXISTS (SELECT 1 FROM incidents i WHERE i.node_id = w.node_id AND i.kind = ?"
    f" AND i.state IN ({HOLDING_SQL})) ORDER BY w.node_id, w.model, w.kind LIMIT ?"
)
"""What made an incident waits as that incident."""

_GROUPS: Final = (
    "SELECT min(i.id) AS entry, kind, code, cause, count(*) AS entries, count(DISTINCT node_id) AS nodes,"
    f" min(opened_ms) AS since_ms, min(due_ms) AS due_ms, max(CASE WHEN state IN ({HOLDING_SQL}) THEN 1 ELSE 0 END)"
    f" AS held FROM incidents i WHERE {WAITING_SQL}"
    f" GROUP BY kind, code, cause, CASE WHEN cause IS NULL THEN i.id ELSE '' END, state IN ({HOLDING_SQL})"
    " ORDER BY min(opened_ms), min(i.id) LIMIT ?"
)
"""What rests on the same thing of ours is one entry: people release it together."""


@dataclass(frozen=True)
class Queue:
    """What waits."""

    entries: tuple[Waiting, ...]
    incidents: dict[str, int]
    """By entry, how many incidents it stands for."""
    causes: dict[str, str]
    """By entry, what of ours it rests on."""


@dataclass(frozen=True)
class Figures:
    """How much waits, and how long people took, by kind."""

    waiting: Counter[str]
    overdue: Counter[str]
    oldest_ms: dict[str, int]
    """When the oldest began to wait."""
    looked_ms: dict[str, list[int]]
    """How long each decision of late had waited until somebody looked; sorted."""
    decided_ms: dict[str, list[int]]
    """How long each had waited until it was decided; sorted."""


async def read_queue(tx: Tx, now_ms: int) -> Queue:
    """Read what waits for people, with what is known of each."""
    rows = await tx.all(_GROUPS, MOST)
    causes = sorted({row["cause"] for row in rows if row["cause"] is not None})
    failed, passed, resting = await _tallies(tx, causes)
    found = await _found(tx, now_ms)
    entries = [_incident(row, failed, passed, resting, found) for row in rows]
    entries += [_of_answers(row, found) for row in await _undecided(tx)]
    return Queue(
        entries=tuple(entries),
        incidents={row["entry"]: int(row["entries"]) for row in rows},
        causes={row["entry"]: row["cause"] for row in rows if row["cause"] is not None},
    )


def _incident(
    row: Row,
    failed: Counter[str],
    passed: Counter[str],
    resting: Counter[str],
    found: Counter[tuple[str, str]],
) -> Waiting:
    cause = row["cause"]
    nodes = int(row["nodes"])
    # A review of a thing of ours names no node: it is about all that fail at it, and their results fail meanwhile.
    is_ours = nodes == 0
    return Waiting(
        id=row["entry"],
        kind=row["kind"],
        code=row["code"],
        since_ms=row["since_ms"],
        due_ms=row["due_ms"],
        nodes=max(resting[cause], 1) if is_ours else nodes,
        held=bool(row["held"]),
        at_fault=found[row["code"], Fault.NODE],
        not_at_fault=found[row["code"], Fault.OURS],
        others_failed=max(failed[cause] - 1, 0),
        passed=passed[cause],
    )


def _of_answers(row: Row, found: Counter[tuple[str, str]]) -> Waiting:
    kind = row["kind"]
    return Waiting(
        id=_id_of(row),
        kind=kind,
        code=kind,
        since_ms=row["since_ms"],
        due_ms=row["since_ms"] + REVIEW_TARGET_MS,
        at_fault=found[kind, Fault.NODE],
        not_at_fault=found[kind, Fault.OURS],
    )


def _id_of(row: Row) -> str:
    return f"{row['kind']}/{row['node_id']}/{row['model']}"


async def _undecided(tx: Tx) -> list[Row]:
    return await tx.all(_UNDECIDED, ANSWER_MISMATCH, MOST)


async def _tallies(tx: Tx, causes: Sequence[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By cause: operators that failed, operators that passed, and nodes whose incidents rest on it."""
    failed: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    resting: Counter[str] = Counter()
    for marks, some in in_pieces(causes):
        for row in await tx.all(
            f"SELECT cause, passed, count(*) AS n FROM tallies WHERE cause IN ({marks}) GROUP BY cause, passed",
            *some,
        ):
            (passed if row["passed"] else failed)[row["cause"]] = int(row["n"])
        for row in await tx.all(
            "SELECT c.cause, count(DISTINCT i.node_id) AS n FROM incident_causes c"
            f" JOIN incidents i ON i.id = c.incident_id WHERE c.cause IN ({marks}) AND c.void = 0"
            f" AND (i.state = 'folded' OR i.{WAITING_SQL}) GROUP BY c.cause",
            *some,
        ):
            resting[row["cause"]] = int(row["n"])
    return failed, passed, resting


async def _found(tx: Tx, now_ms: int) -> Counter[tuple[str, str]]:
    """By code and fault, of how many operators people have found it of late."""
    rows = await tx.all(
        "SELECT code, fault, count(DISTINCT operator) AS n FROM review_decisions WHERE decided_ms > ?"
        " GROUP BY code, fault",
        now_ms - FOUND_MS,
    )
    return Counter({(row["code"], row["fault"]): int(row["n"]) for row in rows})


async def note_incidents(tx: Tx, ids: Sequence[str], fault: Fault, now_ms: int) -> None:
    """Note that people have decided about incidents."""
    for marks, some in in_pieces(ids):
        await tx.execute(
            "INSERT INTO review_decisions (id, kind, code, operator, fault, opened_ms, looked_ms, decided_ms)"
            " SELECT i.id, i.kind, i.code, coalesce(i.operator, ''), ?, i.opened_ms, coalesce((SELECT min(s.at_ms)"
            " FROM incident_steps s WHERE s.incident_id = i.id AND s.step IS NOT NULL), ?), ?"
            f" FROM incidents i WHERE i.id IN ({marks}) ON CONFLICT DO NOTHING",
            fault,
            now_ms,
            now_ms,
            *some,
        )


async def note_answers(tx: Tx, node_id: str, model: str, fault: Fault, now_ms: int) -> None:
    """Note that a person has decided about the answers of a node, if something waits about them."""
    for row in await tx.all(f"{_ANSWERS} WHERE w.node_id = ? AND w.model = ?", node_id, model):
        await tx.execute(
            "INSERT INTO review_decisions (id, kind, code, operator, fault, opened_ms, looked_ms, decided_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            _id_of(row),
            row["kind"],
            row["kind"],
            row["operator"],
            fault,
            row["since_ms"],
            now_ms,
            now_ms,
        )


async def figures(tx: Tx, now_ms: int) -> Figures:
    """Count what waits, and read how long people took of late."""
    rows = await tx.all(
        "SELECT kind, count(*) AS n, min(opened_ms) AS oldest, sum(CASE WHEN due_ms < ? THEN 1 ELSE 0 END) AS late"
        f" FROM incidents WHERE {WAITING_SQL} GROUP BY kind",
        now_ms,
    )
    waiting = Counter({row["kind"]: int(row["n"]) for row in rows})
    overdue = Counter({row["kind"]: int(row["late"]) for row in rows})
    oldest = {row["kind"]: int(row["oldest"]) for row in rows}
    for row in await _undecided(tx):
        kind, since_ms = row["kind"], int(row["since_ms"])
        waiting[kind] += 1
        overdue[kind] += since_ms + REVIEW_TARGET_MS < now_ms
        oldest[kind] = min(oldest.get(kind, since_ms), since_ms)
    timed = await tx.all(
        "SELECT kind, opened_ms, looked_ms, decided_ms FROM review_decisions WHERE decided_ms > ?"
        " ORDER BY decided_ms DESC LIMIT ?",
        now_ms - TIMED_MS,
        _MOST_TIMED,
    )
    looked: dict[str, list[int]] = {}
    decided: dict[str, list[int]] = {}
    for row in timed:
        looked.setdefault(row["kind"], []).append(row["looked_ms"] - row["opened_ms"])
        decided.setdefault(row["kind"], []).append(row["decided_ms"] - row["opened_ms"])
    for times in (*looked.values(), *decided.values()):
        times.sort()
    return Figures(waiting=waiting, overdue=overdue, oldest_ms=oldest, looked_ms=looked, decided_ms=decided)


async def prune(tx: Tx, now_ms: int, limit: int) -> int:
    """Delete up to *limit* decisions that are older than `KEPT_MS`; returns how many."""
    return await tx.execute(
        "DELETE FROM review_decisions WHERE (decided_ms, id) IN (SELECT decided_ms, id FROM review_decisions"
        " WHERE decided_ms < ? ORDER BY decided_ms LIMIT ?)",
        now_ms - KEPT_MS,
        limit,
    )


def default_fault(state: State) -> Fault:
    """What a person's decision says of the node if the person does not say more."""
    return Fault.NODE if state is State.RETIRED else Fault.UNCLEAR
