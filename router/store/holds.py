"""Holds of the router's own, with the steps that people took."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from router.model.errors import HoldError
from verifier.store.database import ConflictError, Row, Tx


class Hold(Struct, frozen=True):
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
    """When a person is to have looked."""
    state: str = "open"
    """Open, or released."""
    incident: str | None = None
    """The verifier's incident, once it was told."""


async def add(tx: Tx, hold: Hold) -> bool:
    """Write a new hold; gives whether there was no open one for that node and kind."""
    try:
        await tx.execute(
            "INSERT INTO holds (id, node, operator, kind, code, detail, evidence, holding, state, opened_ms, due_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            hold.id, hold.node, hold.operator, hold.kind, hold.code, hold.detail,
            msgspec.json.encode(hold.evidence), int(hold.holding), hold.state, hold.opened_ms, hold.due_ms,
        )  # fmt: skip
    except ConflictError:
        return False
    return True


async def open_ones(tx: Tx) -> list[Hold]:
    """All that nobody has decided yet, the oldest first."""
    rows = await tx.all("SELECT * FROM holds WHERE state = 'open' ORDER BY opened_ms, id")
    return [_hold(row) for row in rows]


async def get(tx: Tx, hold_id: str) -> Hold:
    """
    One hold.

    Raises:
        HoldError: there is none of that id.
    """
    row = await tx.one("SELECT * FROM holds WHERE id = ?", hold_id)
    if row is None:
        raise HoldError("no such incident of this router's")
    return _hold(row)


async def told(tx: Tx, hold_id: str, incident: str) -> None:
    """The verifier knows of it, and calls it *incident*."""
    await tx.execute("UPDATE holds SET incident = ? WHERE id = ?", incident, hold_id)


async def release(tx: Tx, hold_id: str) -> None:
    """It is over."""
    await tx.execute("UPDATE holds SET state = 'released' WHERE id = ? AND state = 'open'", hold_id)


async def add_step(tx: Tx, hold_id: str, step: str, actor: str, reason: str, now_ms: int) -> None:
    """Write down who did what, and why."""
    await tx.execute(
        "INSERT INTO hold_steps (hold, number, step, actor, reason, at_ms)"
        " SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ?, ? FROM hold_steps WHERE hold = ?",
        hold_id, step, actor, reason, now_ms, hold_id,
    )  # fmt: skip


async def steps(tx: Tx, hold_id: str) -> list[Row]:
    """What people did about it, in order."""
    return await tx.all(
        "SELECT step, actor, reason, at_ms FROM hold_steps WHERE hold = ? ORDER BY number", hold_id
    )


def _hold(row: Row) -> Hold:
    try:
        evidence = msgspec.json.decode(row["evidence"], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        # Another router wrote it, perhaps of another version: what it holds is held.
        evidence = {"unreadable": True}
    return Hold(**{**row, "evidence": evidence, "holding": bool(row["holding"])})
