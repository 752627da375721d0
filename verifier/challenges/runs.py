"""
A run of minting: its goal, what is left of it, and filling the pool.

Entries are stored group by group, so that an interrupted run loses one group at most.  The
goal is stored with the run's batch, so that the run can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from verifier.challenges.minting import WALKS_PER_GROUP, Minter
from verifier.challenges.pool_key import WIDE_ROWS, ReadParameters, WalkParameters
from verifier.errors import ReferenceValueError
from verifier.store import pool
from verifier.store.database import ConflictError, Database, Tx
from verifier.store.pool import Entry

READS_PER_GROUP: Final = 64


class Goal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of challenges of each kind to mint, and their sizes."""

    reads: int = 0
    walks: int = 0
    wides: int = 0
    read: ReadParameters = ReadParameters()
    walk: WalkParameters = WalkParameters()
    wide: WalkParameters = WalkParameters(WIDE_ROWS)

    @property
    def count(self) -> int:
        """The number of challenges of all kinds."""
        return self.reads + self.walks + self.wides

    def work(self, tensor_bytes: int) -> int:
        """The number of bytes of weights that are read to mint it."""
        walk_groups = -(-self.walks // WALKS_PER_GROUP)
        wide_groups = -(-self.wides // WALKS_PER_GROUP)
        return (walk_groups * self.walk.passes + wide_groups * self.wide.passes) * tensor_bytes


async def start_or_resume(
    tx: Tx, model: str, digest: str, goal: Goal | None, now_ms: int
) -> tuple[int, Goal]:
    """
    Start a batch with *goal*, or resume the model's last batch if *goal* is `None`.

    Args:
        digest: The reference value whose weights are at hand.

    Returns:
        The number of the batch, and its goal.

    Raises:
        ReferenceValueError: there is no batch to resume, or it is of another reference value.
    """
    if goal is not None:
        return await pool.open_batch(tx, model, digest, now_ms, msgspec.json.encode(goal).decode()), goal
    last = await pool.last_batch(tx, model)
    if last is None:
        raise ReferenceValueError(f"no challenges were minted for {model} yet, so there is nothing to resume")
    if last["reference"] != digest:
        raise ReferenceValueError(
            f"the last run for {model} was for another reference value. Start a new run without --resume"
        )
    return int(last["id"]), msgspec.json.decode(last["goal"], type=Goal)


async def remaining_goal(tx: Tx, batch: int, goal: Goal) -> Goal:
    """The part of *goal* that is not in the pool yet."""
    minted = await pool.minted(tx, batch)
    return msgspec.structs.replace(
        goal,
        reads=max(goal.reads - minted.get("read", 0), 0),
        walks=max(goal.walks - minted.get("walk", 0), 0),
        wides=max(goal.wides - minted.get("wide", 0), 0),
    )


async def fill_pool(
    db: Database,
    minter: Minter,
    goal: Goal,
    progress: Callable[[int], None] | None = None,
    *,
    groups_before: int = 0,
) -> None:
    """
    Mint *goal* and store it in the pool.

    Args:
        groups_before: How many groups of walks were minted before, by this process: see `Minter.walks`.

    Raises:
        ReferenceValueError: a spot check disagrees, the reference value is no longer live,
            or another run mints for the model; the groups stored so far stay.
        WeightsError: the files changed or cannot be read.
    """
    async with db.read() as tx:
        first = {kind: await pool.next_index(tx, minter.model, kind) for kind in ("read", "walk", "wide")}
    for done in range(0, goal.reads, READS_PER_GROUP):
        count = min(READS_PER_GROUP, goal.reads - done)
        await _store(db, minter, list(minter.reads(first["read"] + done, count, goal.read)))
    for kind, count, parameters in (("walk", goal.walks, goal.walk), ("wide", goal.wides, goal.wide)):
        for group in minter.walks(
            first[kind], count, parameters, progress, kind=kind, groups_before=groups_before
        ):
            await _store(db, minter, group)


async def _store(db: Database, minter: Minter, entries: Sequence[Entry]) -> None:
    async def add(tx: Tx) -> None:
        if not await pool.is_live(tx, minter.batch):
            raise ReferenceValueError(
                f"the reference value of {minter.model} was replaced during this run, "
                "so its challenges are of no use. Mint challenges for the new value"
            )
        await pool.add(tx, entries)

    try:
        await db.write(add, of=f"minting {minter.model}")
    except ConflictError:
        raise ReferenceValueError(
            f"another run is minting for {minter.model}. Wait until it ends, and resume this one with --resume"
        ) from None
