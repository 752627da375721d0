"""Reads what the rules of incidents need to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from verifier.errors import RequestError
from verifier.incident_transitions import Cause, Incident, IncidentNode, Proposal, Reporter
from verifier.incidents import (
    HOLDING,
    NOTE_TOGETHER_MS,
    REFERENCE_SUSPECT,
    REPORTED_NODES,
    REPORTER_SUSPECT,
    REPORTS_WINDOW_MS,
    Severity,
    State,
)
from verifier.store.database import Row, Tx
from verifier.store.ids import in_pieces

HOLDING_SQL: Final = ", ".join(f"'{state}'" for state in HOLDING)
"""The states that hold a node, for ``IN (…)``."""
SELECT_INCIDENT: Final = (
    "SELECT i.*, p.actor AS proposed_by FROM incidents i"
    " LEFT JOIN proposals p ON p.incident_id = i.id AND p.cause = ''"
)
"""Rows of incidents, with the person who has proposed the release of each."""
_RESTING: Final = "SELECT i.* FROM incidents i JOIN incident_causes c ON c.incident_id = i.id WHERE c.cause = ? AND c.void = 0"


async def read_incident(tx: Tx, incident_id: str) -> Incident:
    """
    Read an incident by its id.

    Raises:
        RequestError: There is none.
    """
    (found,) = await _read_incidents(tx, [await read_row(tx, incident_id)])
    return found


async def read_row(tx: Tx, incident_id: str) -> Row:
    """
    Read the row of an incident, with `proposed_by`: the person who has proposed its release.

    Raises:
        RequestError: There is none.
    """
    found = await tx.one(f"{SELECT_INCIDENT} WHERE i.id = ?", incident_id)
    if found is None:
        raise RequestError(f"there is no incident {incident_id[:40]!r}", code="request.not-found")
    return found


async def _read_incidents(tx: Tx, rows: Iterable[Row]) -> tuple[Incident, ...]:
    """Give the incidents of *rows* with their causes and proposals, by id."""
    ordered = sorted(rows, key=lambda found: found["id"])
    causes: dict[str, list[str]] = defaultdict(list)
    proposals: dict[str, list[Proposal]] = defaultdict(list)
    for marks, some in in_pieces([found["id"] for found in ordered]):
        for each in await tx.all(
            f"SELECT incident_id, cause FROM incident_causes WHERE incident_id IN ({marks}) AND void = 0"
            " ORDER BY incident_id, cause",
            *some,
        ):
            causes[each["incident_id"]].append(each["cause"])
        for each in await tx.all(
            f"SELECT incident_id, cause, actor FROM proposals WHERE incident_id IN ({marks})"
            " ORDER BY incident_id, cause",
            *some,
        ):
            proposals[each["incident_id"]].append(Proposal(each["cause"], each["actor"]))
    return tuple(_incident(found, causes[found["id"]], proposals[found["id"]]) for found in ordered)


def _incident(found: Row, causes: Sequence[str], proposals: Sequence[Proposal]) -> Incident:
    return Incident(
        id=found["id"],
        kind=found["kind"],
        severity=Severity(found["severity"]),
        state=State(found["state"]),
        node_id=found["node_id"],
        operator=found["operator"],
        code=found["code"],
        detail=found["detail"],
        count=found["count"],
        opened_ms=found["opened_ms"],
        causes=tuple(causes),
        proposals=tuple(proposals),
    )


async def read_node(tx: Tx, node_id: str, now_ms: int) -> IncidentNode:
    """Read a node that exists, with its incidents that a rule may have to look at."""
    found = await tx.one("SELECT operator, state FROM nodes WHERE id = ?", node_id)
    assert found is not None
    rows = await tx.all(
        f"SELECT * FROM incidents WHERE node_id = ? AND (state IN ({HOLDING_SQL}, 'suspected')"
        " OR (state IN ('noted', 'flagged') AND opened_ms > ?) OR id IN (SELECT incident_id FROM proposals))",
        node_id,
        now_ms - NOTE_TOGETHER_MS,
    )
    return IncidentNode(node_id, found["operator"], found["state"], await _read_incidents(tx, rows))


async def read_cause(tx: Tx, name: str, now_ms: int) -> Cause:
    """Read what is known of a cause."""
    tallies = await tx.all("SELECT operator, passed FROM tallies WHERE cause = ?", name)
    suspected = await tx.all(f"{_RESTING} AND i.state = 'suspected' AND i.kind != ?", name, REFERENCE_SUSPECT)
    reviews = await tx.all(
        f"SELECT * FROM incidents WHERE cause = ? AND kind = ? AND state IN ({HOLDING_SQL})",
        name,
        REFERENCE_SUSPECT,
    )
    review = await _read_incidents(tx, reviews)
    return Cause(
        name=name,
        failed=frozenset(each["operator"] for each in tallies if not each["passed"]),
        passed=frozenset(each["operator"] for each in tallies if each["passed"]),
        since_ms=await _since_ms(tx, name, now_ms),
        suspected=await _read_incidents(tx, suspected),
        review=review[0] if review else None,
    )


async def read_reporter(tx: Tx, cause: str, now_ms: int) -> Reporter:
    """Read what the router whose word is *cause* has reported of late."""
    reviews = await tx.all(
        f"SELECT * FROM incidents WHERE cause = ? AND kind = ? AND state IN ({HOLDING_SQL})",
        cause,
        REPORTER_SUSPECT,
    )
    review = await _read_incidents(tx, reviews)
    reported = await tx.all(
        "SELECT DISTINCT i.node_id, i.operator FROM incidents i JOIN incident_causes c ON c.incident_id = i.id"
        " WHERE c.cause = ? AND c.void = 0 AND i.node_id IS NOT NULL AND (i.state = 'suspected' OR i.opened_ms > ?)"
        " LIMIT ?",
        cause,
        now_ms - REPORTS_WINDOW_MS,
        REPORTED_NODES,
    )
    return Reporter(
        cause=cause,
        operators=frozenset(each["operator"] for each in reported),
        nodes=frozenset(each["node_id"] for each in reported),
        review=review[0] if review else None,
    )


async def _since_ms(tx: Tx, cause_name: str, now_ms: int) -> int:
    """When a batch was first used, or when a reference value came into force; 0 if that is not known."""
    _, _, thing = cause_name.partition("@")
    kind, _, identity = thing.partition(":")
    if kind == "batch":
        found = await tx.one(
            "SELECT coalesce(first_used_ms, ?) AS since FROM batches WHERE id = ?", now_ms, int(identity)
        )
    else:
        # With one engine version, its name follows.
        digest = identity.partition("@")[0]
        found = await tx.one("SELECT added_ms AS since FROM reference_values WHERE digest = ?", digest)
    return 0 if found is None else int(found["since"])


async def read_suspected(tx: Tx, causes: Sequence[str]) -> tuple[Incident, ...]:
    """Read the suspected incidents that rest on one of *causes*."""
    # Most often there are none at all: the condition on the time lets the index of the suspected answer.
    if (
        await tx.one("SELECT 1 AS one FROM incidents WHERE state = 'suspected' AND opened_ms > 0 LIMIT 1")
        is None
    ):
        return ()
    found = {}
    for name in causes:
        for each in await tx.all(f"{_RESTING} AND i.state = 'suspected'", name):
            found[each["id"]] = each
    return await _read_incidents(tx, found.values())


async def read_overdue(tx: Tx, before_ms: int) -> list[str]:
    """
    Read the ids of the incidents that are suspected since *before_ms* or longer.

    Those that rest on the reports of a router that is reviewed wait for its review.
    """
    rows = await tx.all(
        "SELECT id FROM incidents i WHERE state = 'suspected' AND opened_ms <= ? AND NOT EXISTS ("
        "  SELECT 1 FROM incident_causes c JOIN incidents r ON r.cause = c.cause AND r.kind = ?"
        f"    AND r.state IN ({HOLDING_SQL}) WHERE c.incident_id = i.id AND c.void = 0)"
        " ORDER BY opened_ms, id",
        before_ms,
        REPORTER_SUSPECT,
    )
    return [each["id"] for each in rows]


async def read_releasable(tx: Tx, name: str) -> tuple[Incident, ...]:
    """Read the incidents that are suspected or hold a node and rest on a cause."""
    rows = await tx.all(
        f"{_RESTING} AND i.state IN ({HOLDING_SQL}, 'suspected') AND i.kind NOT IN (?, ?)",
        name,
        REFERENCE_SUSPECT,
        REPORTER_SUSPECT,
    )
    return await _read_incidents(tx, rows)
