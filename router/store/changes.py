"""
Changes of the table of workloads, with their steps and what each router has seen of them.

Routers that share the store share them.  One is live at a time: the database sees to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from router.model.change import LIVE, Settings, Stage
from router.model.errors import ChangeError, UnknownChangeError
from verifier.store.database import Row, Tx


class Change(Struct, frozen=True, kw_only=True):
    """One change."""

    id: str
    number: int
    stage: Stage
    share: int
    """Per cent of the traffic that the candidate decides about."""
    base: str
    """The digest of the table that was in force when it was proposed."""
    digest: str
    document: bytes
    """The candidate, as a person has written it."""
    settings: Settings
    secret: bytes
    shared_ms: int | None = None
    """Since when the candidate has had a share."""
    revision: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the candidate decides beside the table in force, or for a share."""
        return self.stage in LIVE


class Step(Struct, frozen=True, kw_only=True):
    """What was done about a change: by whom, why and when."""

    step: str
    actor: str
    reason: str
    at_ms: int
    evidence: dict[str, object] | None = None


async def revision(tx: Tx) -> int:
    """A number that grows with each step."""
    row = await tx.one("SELECT coalesce(max(revision), 0) AS revision FROM changes")
    return 0 if row is None else int(row["revision"])


async def add(tx: Tx, change: Change) -> Change:
    """
    Write a new change, which is live; gives it with its number.

    Raises:
        ChangeError: another one is live.
    """
    if (live := await find_live(tx)) is not None:
        raise ChangeError(f"{live.id} is under way. Promote or abort it first")
    row = await tx.one("SELECT coalesce(max(number), 0) + 1 AS number FROM changes")
    assert row is not None
    change = msgspec.structs.replace(change, number=row["number"], revision=await revision(tx) + 1)
    await tx.execute(
        "INSERT INTO changes (id, number, live, stage, share, base, digest, document, settings, secret, revision)"
        " VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
        change.id, change.number, change.stage, change.share, change.base, change.digest, change.document,
        msgspec.json.encode(change.settings), change.secret, change.revision,
    )  # fmt: skip
    return change


async def update(tx: Tx, change: Change) -> Change:
    """Write the stage and the share of a change."""
    change = msgspec.structs.replace(change, revision=await revision(tx) + 1)
    await tx.execute(
        "UPDATE changes SET live = ?, stage = ?, share = ?, shared_ms = ?, revision = ? WHERE id = ?",
        1 if change.is_live else None, change.stage, change.share, change.shared_ms, change.revision, change.id,
    )  # fmt: skip
    return change


async def find_live(tx: Tx) -> Change | None:
    """The one that is live."""
    row = await tx.one("SELECT * FROM changes WHERE live = 1")
    return None if row is None else _change(row)


async def end_live(tx: Tx, now_ms: int) -> None:
    """End what is live in a store that was restored: nobody knows what became of it since."""
    live = await find_live(tx)
    if live is not None:
        await update(tx, msgspec.structs.replace(live, stage=Stage.ABORTED, share=0))
        step = Step(step="abort", actor="restore", reason="the store was restored", at_ms=now_ms)
        await add_step(tx, live.id, step)


async def get(tx: Tx, change_id: str) -> Change:
    """
    One change.

    Raises:
        UnknownChangeError: there is none with that id.
    """
    row = await tx.one("SELECT * FROM changes WHERE id = ?", change_id)
    if row is None:
        raise UnknownChangeError("there is no such change")
    return _change(row)


async def newest(tx: Tx, limit: int) -> list[Change]:
    """The newest first."""
    return [_change(row) for row in await tx.all("SELECT * FROM changes ORDER BY number DESC LIMIT ?", limit)]


async def promoted(tx: Tx) -> list[Change]:
    """Those that are in force, the oldest first."""
    rows = await tx.all("SELECT * FROM changes WHERE stage = 'promoted' ORDER BY number")
    return [_change(row) for row in rows]


async def add_step(tx: Tx, change_id: str, step: Step) -> None:
    """Write who did what, and why."""
    await tx.execute(
        "INSERT INTO change_steps (change_id, number, step, actor, reason, at_ms, evidence)"
        " SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ?, ?, ? FROM change_steps WHERE change_id = ?",
        change_id, step.step, step.actor, step.reason, step.at_ms,
        None if step.evidence is None else msgspec.json.encode(step.evidence), change_id,
    )  # fmt: skip


async def steps(tx: Tx, change_id: str) -> list[Step]:
    """The steps that were taken, in order."""
    rows = await tx.all(
        "SELECT step, actor, reason, at_ms, evidence FROM change_steps WHERE change_id = ? ORDER BY number",
        change_id,
    )
    return [
        Step(**{**row, "evidence": None if row["evidence"] is None else msgspec.json.decode(row["evidence"])})
        for row in rows
    ]


async def save_sight(tx: Tx, change_id: str, router: str, seen: bytes, now_ms: int) -> None:
    """Write what a router has seen of a change."""
    await tx.execute(
        "INSERT INTO change_sights (change_id, router, at_ms, seen) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (change_id, router) DO UPDATE SET at_ms = excluded.at_ms, seen = excluded.seen",
        change_id, router, now_ms, seen,
    )  # fmt: skip


async def sights(tx: Tx, change_id: str) -> Sequence[tuple[str, bytes]]:
    """What each router has seen of a change."""
    rows = await tx.all(
        "SELECT router, seen FROM change_sights WHERE change_id = ? ORDER BY router", change_id
    )
    return [(row["router"], bytes(row["seen"])) for row in rows]


def _change(row: Row) -> Change:
    try:
        settings = msgspec.json.decode(row["settings"], type=Settings)
        stage = Stage(row["stage"])
    except (msgspec.DecodeError, UnicodeError, ValueError):
        # Another router wrote it, perhaps of a later version: what cannot be read decides nothing here.
        settings, stage = Settings(), Stage.ABORTED
    return Change(
        id=row["id"],
        number=row["number"],
        stage=stage,
        share=row["share"],
        base=row["base"],
        digest=row["digest"],
        document=bytes(row["document"]),
        settings=settings,
        secret=bytes(row["secret"]),
        shared_ms=row["shared_ms"],
        revision=row["revision"],
    )
