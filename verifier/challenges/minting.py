"""
A run of minting: what it set out to make, what is left of it, and making it.

Entries are kept group by group, so that an interrupted run loses one group at most, and
the run can be taken up again: what it set out to make stands with its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from verifier.challenges.derivation import GROUP, WIDE_ROWS, Minter, ReadParameters, WalkParameters
from verifier.errors import ReferenceValueError
from verifier.store import pool
from verifier.store.database import ConflictError, Database, Tx
from verifier.store.pool import Entry

_READS_AT_ONCE: Final = 64


class Goal(Struct, frozen=True, forbid_unknown_fields=True):
    """How many challenges of each kind, and how large."""

    reads: int = 0
    walks: int = 0
    wides: int = 0
    read: ReadParameters = ReadParameters()
    walk: WalkParameters = WalkParameters()
    wide: WalkParameters = WalkParameters(WIDE_ROWS)

    @property
    def count(self) -> int:
        """Challenges in all."""
        return self.reads + self.walks + self.wides

    def work(self, tensor_bytes: int) -> int:
        """Bytes of weights that pass while it is made."""
        groups = -(-self.walks // GROUP) * self.walk.passes + -(-self.wides // GROUP) * self.wide.passes
        return groups * tensor_bytes


async def take_up(tx: Tx, model: str, digest: str, goal: Goal | None, now_ms: int) -> tuple[int, Goal]:
    """
    A new batch with *goal*, or the last one with its own.

    Raises:
        ReferenceValueError: there is none to take up, or it is of another reference value.
    """
    if goal is not None:
        return await pool.open_batch(tx, model, digest, now_ms, msgspec.json.encode(goal).decode()), goal
    last = await pool.last_batch(tx, model)
    if last is None:
        raise ReferenceValueError(f"nothing was minted for {model} yet, so there is nothing to resume")
    if last["reference"] != digest:
        raise ReferenceValueError(f"the last run for {model} was for another reference value")
    return int(last["id"]), msgspec.json.decode(last["goal"], type=Goal)


async def goal_left(tx: Tx, batch: int, goal: Goal) -> Goal:
    """What of *goal* is not made yet."""
    made = await pool.minted(tx, batch)
    return msgspec.structs.replace(
        goal,
        reads=max(goal.reads - made.get("read", 0), 0),
        walks=max(goal.walks - made.get("walk", 0), 0),
        wides=max(goal.wides - made.get("wide", 0), 0),
    )


async def fill(
    db: Database, minter: Minter, goal: Goal, progress: Callable[[int], None] | None = None
) -> None:
    """
    Mint *goal* into the pool.

    Raises:
        ReferenceValueError: a spot check disagrees, the reference value is no longer the
            active one, or another run is minting; what was kept before stays.
        WeightsError: the files changed or cannot be read.
    """
    async with db.read() as tx:
        first = {kind: await pool.next_index(tx, minter.model, kind) for kind in ("read", "walk", "wide")}
    for done in range(0, goal.reads, _READS_AT_ONCE):
        count = min(_READS_AT_ONCE, goal.reads - done)
        entries = list(minter.reads(first["read"] + done, count, goal.read))
        await _keep(db, minter, entries)
    for kind, count, parameters in (("walk", goal.walks, goal.walk), ("wide", goal.wides, goal.wide)):
        for group in minter.walks(first[kind], count, parameters, progress, kind=kind):
            await _keep(db, minter, group)


async def _keep(db: Database, minter: Minter, entries: Sequence[Entry]) -> None:
    try:
        async with db.write() as tx:
            if not await pool.is_live(tx, minter.batch):
                raise ReferenceValueError(
                    f"{minter.model} was given another reference value meanwhile; what was minted is of no use"
                )
            await pool.add(tx, entries)
    except ConflictError:
        raise ReferenceValueError(
            f"another run mints for {minter.model}: wait for it to end, then go on with --resume"
        ) from None
