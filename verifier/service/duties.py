"""
What only one replica does at a time: calling nodes, the sweep, and judging anew.

The replica with the lease does it.  A replica that dies loses the lease when it ends; one that cannot reach the
database stops when its own clock says that the lease is over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from verifier.errors import StoreError
from verifier.schemes.context import WalkRecord
from verifier.service.clock import STEP_MS, Clock, StepWatch, describe_step
from verifier.service.clock_doubt import ClockDoubt
from verifier.store import channels, early, leases, sessions
from verifier.store.database import Database, Tx
from verifier.store.sessions import EndedCall

LEASE_S: Final = 10.0
_RENEW_EVERY_S: Final = 2.0
_MARGIN_S: Final = 2.0
"""So much earlier the holder itself takes its lease for over: its clock may be slow, and its transaction may wait."""
_AHEAD_EVERY_S: Final = 10.0
_LEASE: Final = "duties"
_SLOW_S: Final = 3.0
"""A round that takes longer was an outage: nodes may have met it too."""

_log = structlog.get_logger("verifier")


class Duties:
    """
    Keeps the lease, and knows since when nothing of ours has failed, and whether our clock was set.

    Args:
        skew_s: By how much the clock of a node may differ.
    """

    def __init__(self, db: Database, clock: Clock, skew_s: int) -> None:
        self._db = db
        self._clock = clock
        self.watch = StepWatch(clock)
        self.doubt = ClockDoubt(skew_s * 1000)
        self.steps = 0
        """How often the clock that all replicas share was set."""
        self.last_step_ms = 0
        """By how much it was set last; negative if it was set back."""
        self._stepped_at = clock.monotonic()
        self.replica = secrets.token_hex(8)
        """The name of this replica, new with each start."""
        self.ahead_ms = 0
        """By how much the clock that all replicas share is ahead of ours."""
        self._ahead_at = float("-inf")
        self._has_measured = False
        """Whether the database's clock was looked at."""
        self._lease_ends = float("-inf")
        self._outage_since: float | None = None
        self._is_untold = False
        """Whether the other replicas have yet to hear that something of ours has failed."""
        self._healthy_since_ms = 0
        self._healthy_since = float("-inf")
        self._ended: list[EndedCall] = []

    @property
    def held(self) -> bool:
        """Whether this replica has the lease.  A process that works alone always has it."""
        return not self._db.shared or self._clock.monotonic() < self._lease_ends

    @property
    def healthy_since_ms(self) -> int:
        """
        Since when nothing of ours has failed: what began earlier and is missing is held against no node.

        By the clock that all replicas share.  While it is not known whether the clock is right, that is now.
        """
        return self.shared_ms() if self.doubt else self._healthy_since_ms

    @property
    def healthy_for_s(self) -> float:
        """For how long nothing of ours has failed."""
        return 0.0 if self.doubt else self._clock.monotonic() - self._healthy_since

    def has_failed_since(self, since_ms: int) -> bool:
        """Whether something of ours has failed since a moment, or fails now."""
        return self._outage_since is not None or since_ms < self._healthy_since_ms

    def shared_ms(self) -> int:
        """Milliseconds since 1970, by the clock that all replicas share."""
        wall_ms, step_ms = self.watch.look()
        if step_ms and self._db.shared:
            # The clock that counts is the database's.  Whether it was set too, the next look at it shows.
            self.ahead_ms -= step_ms
            self._ahead_at = float("-inf")
            _log.warning(f"the clock of this machine was {describe_step(step_ms)}")
        elif step_ms:
            self._take_step(step_ms)
        return wall_ms + self.ahead_ms

    def _take_step(self, step_ms: int) -> None:
        """Take in that the clock that all replicas share was set: what began before is held against no node."""
        self.steps += 1
        self.last_step_ms = step_ms
        self._stepped_at = self._clock.monotonic()
        self.doubt.take_step(step_ms)
        self._healthy_since_ms = self._clock.wall_ms() + self.ahead_ms
        self._healthy_since = self._clock.monotonic()
        _log.warning(
            f"the verifier's clock was {describe_step(step_ms)}; no missed call from before is held against nodes",
            in_doubt=bool(self.doubt),
        )

    def redate(self, walks: Sequence[WalkRecord]) -> tuple[WalkRecord, ...]:
        """Give walks with their times as the clock would tell them now, if they are from before it was set back."""
        now_ms, step_ms = self.shared_ms(), self.last_step_ms
        if step_ms >= 0:
            return tuple(walks)
        return tuple(
            replace(walk, at_ms=min(walk.at_ms + step_ms, now_ms)) if walk.at_ms > now_ms else walk
            for walk in walks
        )

    @property
    def steady_s(self) -> float:
        """For how long the clock that all replicas share has not been set: since the start, or since the last step."""
        return self._clock.monotonic() - self._stepped_at

    def clock_to_wire(self) -> dict[str, float | bool | None]:
        """What is known of the clock, as JSON-compatible data, for a status."""
        return {
            "stepped_s": self.last_step_ms / 1000 if self.last_step_ms else None,
            "steady_s": round(self.steady_s, 1),
            "in_doubt": bool(self.doubt),
        }

    def call_soon(self, nodes: Iterable[str]) -> None:
        """Have nodes called soon, for our sake."""
        self.note_ended([EndedCall(node_id, is_void=True) for node_id in nodes])

    def note_ended(self, calls: Sequence[EndedCall]) -> None:
        """Note calls whose time was over.  Their nodes are to be called again soon."""
        self._ended += calls

    def take_ended(self) -> list[EndedCall]:
        """Take the calls whose time was over."""
        found, self._ended = self._ended, []
        return found

    async def begin(self) -> None:
        """Begin: what expired while the verifier was down is held against nobody."""
        if self._db.shared:
            await self.renew()
        else:
            await self._take_over()

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                if self._db.shared:
                    await self.renew()
            except StoreError as error:
                self.note_failure()
                _log.error("the lease could not be renewed", error=str(error))

    async def renew(self) -> None:
        """
        Renew what is held, or take what nobody holds.

        Raises:
            StoreError: The database cannot be used.
        """
        held, start = self.held, self._clock.monotonic()
        # If this clock was set, the database's is looked at now: both may be of one machine.
        self.shared_ms()
        if start - self._ahead_at > _AHEAD_EVERY_S:
            await self._measure_ahead(start)
        now_ms, is_untold = self.shared_ms(), self._is_untold
        self._is_untold = False

        async def take(tx: Tx) -> tuple[bool, int]:
            until_ms = now_ms + int(LEASE_S * 1000)
            await leases.take(tx, channels.REPLICA_LEASE + self.replica, self.replica, now_ms, until_ms)
            if is_untold:
                await leases.note_outage(tx, now_ms)
            return await leases.take(tx, _LEASE, self.replica, now_ms, until_ms), await leases.last_outage_ms(
                tx
            )

        try:
            leads, outage_ms = await self._db.write(take, of="leases")
        except StoreError:
            self._is_untold = True
            raise
        self.note_success(start)
        self._be_healthy_since(outage_ms)
        if not leads:
            self._lease_ends = float("-inf")
            return
        if not held:
            _log.info("this replica calls nodes, sweeps and judges anew", replica=self.replica)
            # Before anything is done by virtue of the lease: what nobody watched is held against nobody.
            await self._take_over()
        self._lease_ends = start + LEASE_S - _MARGIN_S
        orphans = await self._db.write(lambda tx: channels.end_calls_of_the_dead(tx, now_ms))
        self.note_ended([EndedCall(node_id, is_void=True) for node_id in orphans])

    async def _measure_ahead(self, now: float) -> None:
        """Compare our clock with the database's, which all replicas share."""
        ahead_ms = await self._db.ahead_ms(self._clock.wall_ms)
        step_ms = ahead_ms - self.ahead_ms
        is_first = self._ahead_at == float("-inf") and not self._has_measured
        self.ahead_ms, self._ahead_at = ahead_ms, now
        if not is_first and abs(step_ms) > STEP_MS:
            self._take_step(step_ms)
            # Those of the dead would look alive until the clock has come to where it was.
            now_ms = self.shared_ms()
            await self._db.write(lambda tx: leases.drop_early(tx, now_ms), of="leases")
        self._has_measured = True

    async def give_back(self) -> None:
        """Give back every lease, so that another replica need not wait for its end."""
        if not self._db.shared:
            return
        self._lease_ends = float("-inf")
        try:
            await self._db.write(lambda tx: leases.give_back(tx, self.replica), of="leases")
        except StoreError as error:
            _log.warning("the leases could not be given back", error=str(error))

    def note_failure(self) -> None:
        """Note that the database could not be used."""
        self._is_untold = True
        if self._outage_since is None:
            self._outage_since = self._clock.monotonic()

    def note_success(self, began: float) -> None:
        """Note a transaction that succeeded.  If it took too long, or others had failed before, an outage is over."""
        now = self._clock.monotonic()
        if self._outage_since is not None or now - began > _SLOW_S:
            _log.warning(
                "the database was not usable for a while; nothing of that time is held against nodes"
            )
            self._outage_since, self._is_untold = None, True
            self._be_healthy_since(self.shared_ms())

    def note_widespread(self) -> None:
        """Note that most nodes fail at this moment: the cause is not theirs."""
        _log.warning("most nodes cannot be reached; nothing of this time is held against nodes")
        self._is_untold = True
        self._be_healthy_since(self.shared_ms())

    def _be_healthy_since(self, since_ms: int) -> None:
        """Take in until when something of ours has failed."""
        if since_ms > self._healthy_since_ms:
            self._healthy_since_ms = since_ms
            self._healthy_since = self._clock.monotonic() - (self.shared_ms() - since_ms) / 1000

    async def _take_over(self) -> None:
        now_ms = self.shared_ms()
        self._be_healthy_since(now_ms)

        async def end(tx: Tx) -> list[EndedCall]:
            await early.end_sessions(tx, now_ms)
            return await sessions.expire(tx, now_ms, healthy_since_ms=now_ms)

        self.note_ended(await self._db.write(end))
