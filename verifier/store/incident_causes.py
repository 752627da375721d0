"""
Open incidents by what they rest on: a reference value, a batch of challenges, the word of a router.

A cause is written ``CODE@THING``, and a thing ``reference:DIGEST``, ``batch:NUMBER`` or ``reporter:NAME``.  A bad
reference value fails nodes in several ways, so people review the thing with all causes on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.errors import RequestError
from verifier.incidents import REFERENCE_SUSPECT, REPORTER_SUSPECT
from verifier.results import ReasonEntry
from verifier.schemes.findings import to_printable
from verifier.store import incidents, references
from verifier.store.database import Row, Tx
from verifier.store.incident_facts import HOLDING_SQL
from verifier.triage import Fault

MAX_SHOWN: Final = 500
"""So many incidents of one thing are shown side by side.  A release ends all of them."""
_MIN_PREFIX: Final = 6
_OPEN: Final = (
    f"i.state IN ({HOLDING_SQL}, 'suspected') AND i.kind NOT IN ('{REFERENCE_SUSPECT}', '{REPORTER_SUSPECT}')"
)
_SIDES: Final = (
    "SELECT DISTINCT i.*, a.id AS result, a.claims, r.appraisal_id AS recording FROM incidents i"
    " JOIN incident_causes c ON c.incident_id = i.id"
    " LEFT JOIN appraisals a ON a.session_id = i.session_id AND a.id = a.origin"
    " LEFT JOIN recordings r ON r.appraisal_id = a.id"
)


@dataclass(frozen=True)
class OpenThing:
    """What open incidents rest on, and how many nodes of how many operators they are about."""

    thing: str
    about: str
    """What the thing is, for people: a reference value's model, state and source, or a batch's."""
    causes: tuple[str, ...]
    incidents: int
    nodes: int
    operators: int
    passed: int
    """So many operators have passed at one of the causes: they speak against a fault of the verifier's."""
    opened_ms: int
    last_ms: int
    due_ms: int


class _Appraised(msgspec.Struct, frozen=True):
    reasons: tuple[ReasonEntry, ...] = ()


class _Submod(msgspec.Struct, frozen=True):
    ear_verifier_claims: _Appraised = _Appraised()


class _Claims(msgspec.Struct, frozen=True):
    submods: dict[str, _Submod]


async def every(tx: Tx, operator: str | None = None) -> list[OpenThing]:
    """Give the things that open incidents rest on, those of most nodes first; of one *operator*'s incidents or of all."""
    only, values = ("", ()) if operator is None else (" AND i.operator = ?", (operator,))
    rows = await tx.all(
        "SELECT c.cause, i.id, i.node_id, i.operator, i.opened_ms, i.last_ms, i.due_ms FROM incidents i"
        f" JOIN incident_causes c ON c.incident_id = i.id WHERE c.void = 0 AND {_OPEN}{only}",
        *values,
    )
    by_thing: dict[str, list[Row]] = {}
    for row in rows:
        by_thing.setdefault(thing_of(row["cause"]), []).append(row)
    found = [await _describe(tx, thing, those) for thing, those in by_thing.items()]
    return sorted(found, key=lambda each: (-each.nodes, -each.incidents, each.thing))


async def without(tx: Tx, operator: str | None = None) -> int:
    """Count the open incidents that rest on nothing of ours: each is of one node, and reviewed alone."""
    only, values = ("", ()) if operator is None else (" AND i.operator = ?", (operator,))
    row = await tx.one(
        f"SELECT count(*) AS n FROM incidents i WHERE {_OPEN}{only} AND NOT EXISTS"
        " (SELECT 1 FROM incident_causes c WHERE c.incident_id = i.id AND c.void = 0)",
        *values,
    )
    return 0 if row is None else int(row["n"])


async def find(tx: Tx, name: str, operator: str | None = None) -> OpenThing:
    """
    Give the thing that *name* means: a cause, a thing, or the beginning of a thing's digest.

    Raises:
        RequestError: No open incident rests on it, or the name means several things.
    """
    things = await every(tx, operator)
    exact = [each for each in things if name in (each.thing, *each.causes)]
    found = exact or [each for each in things if _begins(each.thing, name)]
    if len(found) != 1:
        known = ", ".join(each.thing for each in things[:5])
        why = "several things begin with" if found else "no open incident rests on"
        hint = f". They rest on {known}" if known else ". None is open that rests on anything"
        raise RequestError(f"{why} {name[:160]!r}{hint}", code="request.not-found")
    return found[0]


def _begins(thing: str, name: str) -> bool:
    kind, _, identity = thing.partition(":")
    wanted = name.removeprefix(f"{kind}:")
    return kind == "reference" and len(wanted) >= _MIN_PREFIX and identity.startswith(wanted)


def thing_of(cause: str) -> str:
    """Give the thing of a cause."""
    return cause.partition("@")[2]


async def side_by_side(tx: Tx, found: OpenThing, operator: str | None = None) -> list[dict[str, Any]]:
    """Give the open incidents of a thing, oldest first, each with what was expected and what its evidence had."""
    marks = ", ".join("?" for _ in found.causes)
    only, values = ("", ()) if operator is None else (" AND i.operator = ?", (operator,))
    rows = await tx.all(
        f"{_SIDES} WHERE c.cause IN ({marks}) AND c.void = 0 AND {_OPEN}{only} ORDER BY i.opened_ms, i.id LIMIT ?",
        *found.causes,
        *values,
        MAX_SHOWN,
    )
    return [_side(row) for row in rows]


async def release(
    tx: Tx,
    name: str,
    actor: str,
    reason: str,
    now_ms: int,
    *,
    two_person: bool,
    fault: Fault | None = None,
) -> tuple[OpenThing, int, int]:
    """
    Release everything that rests on the thing or the cause that *name* means.

    Returns:
        What it means, how many incidents were released, and for how many a second person is needed.

    Raises:
        RequestError: Nothing rests on it, or the actor or the reason is blank.
    """
    found = await find(tx, name)
    causes = (name,) if name in found.causes else found.causes
    released = waiting = 0
    for cause in causes:
        ended, proposed = await incidents.release_cause(
            tx, cause, actor, reason, now_ms, two_person=two_person, fault=fault
        )
        released, waiting = released + ended, waiting + proposed
    return found, released, waiting


async def _describe(tx: Tx, thing: str, rows: list[Row]) -> OpenThing:
    causes = tuple(sorted({row["cause"] for row in rows}))
    marks = ", ".join("?" for _ in causes)
    passed = await tx.one(
        f"SELECT count(DISTINCT operator) AS n FROM tallies WHERE passed = 1 AND cause IN ({marks})", *causes
    )
    return OpenThing(
        thing=thing,
        about=await _about(tx, thing),
        causes=causes,
        incidents=len({row["id"] for row in rows}),
        nodes=len({row["node_id"] for row in rows}),
        operators=len({row["operator"] for row in rows}),
        passed=0 if passed is None else int(passed["n"]),
        opened_ms=min(row["opened_ms"] for row in rows),
        last_ms=max(row["last_ms"] for row in rows),
        due_ms=min(row["due_ms"] for row in rows),
    )


async def _about(tx: Tx, thing: str) -> str:
    kind, _, identity = thing.partition(":")
    if kind == "batch":
        row = await tx.one("SELECT model, reference FROM batches WHERE id = ?", int(identity))
        return "" if row is None else f"challenges of {row['model']}, minted from {row['reference'][:12]}"
    if kind == "reference":
        row = await references.by_digest(tx, identity)
        if row is not None:
            signer = f", signed by {row['signer']}" if row["signer"] else ""
            return f"{row['model']}, {row['state']}, {row['source']}{signer}"
    return ""


def _side(row: Row) -> dict[str, Any]:
    entry = None
    if row["claims"]:
        submods = msgspec.json.decode(row["claims"], type=_Claims).submods.values()
        reasons = [reason for submod in submods for reason in submod.ear_verifier_claims.reasons]
        entry = next((reason for reason in reasons if reason.code == row["code"]), None)
    return {
        "id": row["id"],
        "node": row["node_id"],
        "operator": row["operator"],
        "state": row["state"],
        "code": row["code"],
        "found": to_printable(row["detail"] if entry is None else entry.detail),
        "expected": None if entry is None else entry.expected,
        "actual": None if entry is None else entry.actual,
        "count": row["count"],
        "opened": row["opened_ms"] // 1000,
        "last": row["last_ms"] // 1000,
        "result": row["result"],
        "session": row["session_id"],
        "evidence": row["recording"] is not None,
    }


def to_wire(each: OpenThing, now_ms: int) -> dict[str, Any]:
    """A thing that open incidents rest on, as JSON."""
    return {
        "thing": each.thing,
        "about": each.about,
        "causes": list(each.causes),
        "incidents": each.incidents,
        "nodes": each.nodes,
        "operators": each.operators,
        "passed_operators": each.passed,
        "opened": each.opened_ms // 1000,
        "last": each.last_ms // 1000,
        "review_due_in_s": (each.due_ms - now_ms) // 1000,
    }
