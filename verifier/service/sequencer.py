"""
The sequencer of the log: it gives what waits its places, signs the tree that follows, and looks whether all is there.

The replica with the lease does it (`verifier.service.duties`).  If what is stored is not what was signed, it signs
nothing more and says which place differs.  Attestation goes on, and what it writes waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import Counter, Gauge

from verifier.errors import LogDivergedError, LogError, StoreError
from verifier.log.notes import Signer, VerifierKey
from verifier.log.tiles import Tile, tile_at
from verifier.service.duties import Duties
from verifier.store import log, log_audit, log_tree
from verifier.store.database import Database, Tx
from verifier.store.log_guard import Signed, read_guard, signed_of, write_guard
from verifier.store.log_sequence import Extended, check_begun, extend
from verifier.store.log_tree import Log

PERIOD_S: Final = 0.5
_STOPPED_S: Final = 5.0
_LOOK_EVERY_ROUNDS: Final = 20
_TILE_EVERY_ROUNDS: Final = 4
"""An old tile is read again every two seconds."""
BATCH: Final = 256
"""Entries that get their places in one transaction: others wait for it some milliseconds at most."""

_log = structlog.get_logger("verifier")
_size = Gauge("touchstone_log_size", "Entries of the log that have their places.")
_stopped = Gauge(
    "touchstone_log_stopped", "1 if nothing is signed any more, because the log was edited, cut or forked."
)
_placed = Counter("touchstone_log_entries_total", "Entries that this process has given their places.")


class Sequencer:
    """
    Keeps the log of one database.

    Args:
        origin: The name of the first log, if there is none yet.
        key: The key that signs it; `None` if the home has none.
        guard: The file that says what that key signed last.
    """

    def __init__(
        self, db: Database, duties: Duties, origin: str, key: Ed25519PrivateKey | None, guard: Path
    ) -> None:
        self._db = db
        self._duties = duties
        self._origin = origin
        self._key = key
        self._guard = guard
        self._known: Signed | None = None
        self._has_read = False
        """Whether the guard was read."""
        self._lock = asyncio.Lock()
        self._rounds = 0
        self._tiles: Iterator[Tile] = iter(())
        self.stopped: str | None = None
        """Why nothing is signed any more; `None` while all is well."""

    async def run(self) -> None:
        """Do it until cancelled."""
        while True:
            try:
                if self._duties.held:
                    await self.round()
                elif self._rounds % _LOOK_EVERY_ROUNDS == 0:
                    await self.look()
                self._go_on()
            except LogError as error:
                await self._stop(error)
            except StoreError as error:
                _log.error("the log could not be kept", error=str(error))
            self._rounds += 1
            await asyncio.sleep(_STOPPED_S if self.stopped else PERIOD_S)

    async def round(self) -> None:
        """
        Look at a part of what is there, give all that waits its places, and sign.

        Raises:
            LogError: What is stored is not what was signed, or this home does not have the key.
            StoreError: The database cannot be used.
        """
        async with self._lock:
            await self._round()

    async def _round(self) -> None:
        await self._read_guard()
        if self._rounds % _LOOK_EVERY_ROUNDS == 0 or await self._is_begun_anew():
            await self._look()
        if self._rounds % _TILE_EVERY_ROUNDS == 0:
            await self._look_at_next()
        async with self._db.read() as tx:
            is_waiting = self._known is None or await log.is_waiting(tx)
        done = await self._place() if is_waiting else None
        while done is not None and done.count >= BATCH:
            # Others have their turn between two batches.
            await asyncio.sleep(0)
            done = await self._place()

    async def _place(self) -> Extended:
        now_ms = self._duties.shared_ms()
        done = await self._db.write(lambda tx: self._extend(tx, now_ms), of="log")
        self._known = done.signed
        _size.set(done.signed.size)
        _placed.inc(done.count)
        if done.is_new:
            await asyncio.to_thread(write_guard, self._guard, done.signed)
        return done

    async def _extend(self, tx: Tx, now_ms: int) -> Extended:
        current = await log_tree.newest(tx)
        is_new = current is None
        if current is None:
            self._check_first()
            current = Log(1, self._origin, self._vkey(self._origin))
            await log_tree.begin(tx, current, now_ms, {})
        signer = self._signer(current)
        return await extend(tx, current, self._known_of(current), signer, now_ms, BATCH, is_new=is_new)

    def _check_first(self) -> None:
        if self._known is not None:
            size = max(self._known.size, 1)
            raise LogDivergedError((0, size), f"the database has no log, and {self._known.origin} was signed")

    def _signer(self, current: Log) -> Signer:
        """Whoever signs a log.  Raises `LogDivergedError` if it has ended, or the key here is not its."""
        if current.is_ended:
            raise LogDivergedError(
                None,
                f"{current.origin} ended when the database was restored. Begin a new log: touchstone log begin",
            )
        if self._key is None or self._vkey(current.origin) != current.vkey:
            raise LogDivergedError(
                None,
                f"the key that signs {current.origin} is not in this home."
                " Copy log-key.pem from the home where it was made",
            )
        return Signer(current.origin, self._key)

    def _vkey(self, origin: str) -> str:
        if self._key is None:
            return ""
        return str(VerifierKey(origin, self._key.public_key().public_bytes_raw()))

    def _known_of(self, current: Log) -> Signed | None:
        """What is known of a log; `None` if it was begun after all that is known: then its signature alone counts."""
        known = self._known
        return None if known is not None and current.number > known.number else known

    async def _read_guard(self) -> None:
        """Read what was signed last.  Raises `LogDivergedError` if that is not known: then anything could be signed."""
        if not self._has_read:
            try:
                self._known = await asyncio.to_thread(read_guard, self._guard)
            except StoreError as error:
                raise LogDivergedError(None, str(error)) from None
            self._has_read = True

    async def look(self) -> None:
        """
        Look whether the newest checkpoint is ours and continues what is known, and know it from now on.

        So a replica that does not sign knows all the same what was signed.

        Raises:
            LogDivergedError: It is not.
            StoreError: The database cannot be used.
        """
        async with self._lock:
            await self._look()

    async def _look(self) -> None:
        await self._read_guard()
        async with self._db.scan() as tx:
            current = await log_tree.newest(tx)
            if current is None:
                self._check_first()
                return
            self._signer(current)
            await check_begun(tx, current)
            tree = await log_audit.check_head(tx, current, self._known_of(current), is_alone=False)
        found = signed_of(current.number, current.origin, tree)
        _size.set(found.size)
        if self._known is None or self._known.is_before(found):
            self._known = found
            await asyncio.to_thread(write_guard, self._guard, found)

    async def _is_begun_anew(self) -> bool:
        """Whether a log was begun after all that is known."""
        async with self._db.read() as tx:
            current = await log_tree.newest(tx)
        return current is not None and self._known is not None and current.number > self._known.number

    async def _look_at_next(self) -> None:
        """Look at one tile and its entries, so that the whole log is read again and again."""
        known = self._known
        if known is None or not known.size:
            return
        tile = next(self._tiles, None)
        if tile is None:
            self._tiles = log_audit.tiles_to_check(known.size)
            tile = next(self._tiles)
        async with self._db.scan() as tx:
            # It may have grown since.
            await log_audit.check_tile(
                tx, known.number, known.size, tile_at(tile.level, tile.index, known.size)
            )

    async def _stop(self, error: LogError) -> None:
        """Sign nothing more, and say once why and where."""
        if self.stopped is not None:
            return
        self.stopped = str(await self._locate(error))
        _stopped.set(1)
        _log.error("the log is signed no more (docs/running-a-verifier.md)", why=self.stopped)

    def _go_on(self) -> None:
        if self.stopped is not None:
            self.stopped = None
            _stopped.set(0)
            _log.warning("the log is signed again")

    async def _locate(self, error: LogError) -> LogError:
        """Give the error that says most closely where the log differs: all tiles are looked at."""
        known = self._known
        places = error.places if isinstance(error, LogDivergedError) else None
        if known is None or places is None or places[1] - places[0] == 1:
            return error
        try:
            async with self._db.scan() as tx:
                head = await log_tree.head(tx, known.number)
                size = 0 if head is None else min(head.size, known.size)
                for tile in log_audit.tiles_to_check(size):
                    await log_audit.check_tile(tx, known.number, size, tile)
        except LogDivergedError as found:
            closer = found.places
            return found if closer is not None and closer[1] - closer[0] < places[1] - places[0] else error
        except StoreError:
            pass
        return error
