"""The router's own holds, with the steps that people took."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from router.model.errors import HoldError
from verifier.store.database import Row, Tx
from verifier.triage import Fault

_MOST_DECIDED: Final = 10_000


class Hold(Struct, frozen=True, kw_only=True):
    """What a router keeps a node from work for, or wants people to look at."""

    id: str
    node: str | None
    operator: str
    kind: str
    code: str
    detail: str
    evidence: dict[str, Any]
    holding: bool
    """Whether the node gets no work meanwhile."""
    opened_ms: int
    due_ms: int
    """Until when a person should have looked at it."""
    state: str = "open"
    """``open`` or ``released``."""
    incident: str | None = None
    """The verifier's incident, once the hold is reported."""


async def add(tx: Tx, hold: Hold) -> bool:
    """Write a new hold; returns `False` if there is an open one for that node and kind."""
    added = await tx.execute(
        "INSERT INTO holds (id, node, operator, kind, code, detail, evidence, holding, state, opened_ms, due_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        hold.id, hold.node, hold.operator, hold.kind, hold.code, hold.detail,
        msgspec.json.encode(hold.evidence), int(hold.holding), hold.state, hold.opened_ms, hold.due_ms,
    )  # fmt: skip
    return added > 0


async def list_open(tx: Tx) -> list[Hold]:
    """The holds that nobody has decided about, the oldest first."""
    rows = await tx.all("SELECT * FROM holds WHERE state = 'open' ORDER BY opened_ms, id")
    return [_hold(row) for row in rows]


async def get(tx: Tx, hold_id: str) -> Hold:
    """
    One hold.

    Raises:
        HoldError: there is none with that id.
    """
    row = await tx.one("SELECT * FROM holds WHERE id = ?", hold_id)
    if row is None:
        raise HoldError("this router has no such incident")
    return _hold(row)


async def set_incident(tx: Tx, hold_id: str, incident: str | None) -> None:
    """Note the verifier's incident that a hold was reported as; `None` if it is to be reported again."""
    await tx.execute("UPDATE holds SET incident = ? WHERE id = ?", incident, hold_id)


async def release(tx: Tx, hold_id: str) -> None:
    """End an open hold."""
    await tx.execute("UPDATE holds SET state = 'released' WHERE id = ? AND state = 'open'", hold_id)


async def add_step(
    tx: Tx, hold_id: str, *, step: str, actor: str, reason: str, now_ms: int, fault: Fault | None = None
) -> None:
    """Write who did what, and why; and whose fault it was, if a person has said so."""
    await tx.execute(
        "INSERT INTO hold_steps (hold, number, step, actor, reason, at_ms, fault)"
        " SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ?, ?, ? FROM hold_steps WHERE hold = ?",
        hold_id, step, actor, reason, now_ms, fault, hold_id,
    )  # fmt: skip


async def decided(tx: Tx, since_ms: int) -> list[Row]:
    """What people and the verifier have decided since *since_ms*: kind, operator, when it began and ended, the fault."""
    return await tx.all(
        "SELECT h.kind, h.operator, h.opened_ms, s.at_ms, s.fault FROM hold_steps s JOIN holds h ON h.id = s.hold"
        " WHERE s.step = 'release' AND s.at_ms > ? ORDER BY s.at_ms DESC LIMIT ?",
        since_ms,
        _MOST_DECIDED,
    )


async def steps(tx: Tx, hold_id: str) -> list[Row]:
    """The steps that were taken, in order."""
    return await tx.all(
        "SELECT step, actor, reason, at_ms, fault FROM hold_steps WHERE hold = ? ORDER BY number", hold_id
    )


def _hold(row: Row) -> Hold:
    try:
        evidence = msgspec.json.decode(row["evidence"], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        # Another router wrote it, perhaps of another version: the hold counts all the same.
        evidence = {"unreadable": True}
    return Hold(**{**row, "evidence": evidence, "holding": bool(row["holding"])})
