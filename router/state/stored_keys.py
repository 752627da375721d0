"""The API keys in the store, as this router knows them: what is made or revoked counts here within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, Protocol

import structlog

from router.config import ApiKey
from router.model.clock import Clock
from router.store import keys
from router.store.keys import StoredKey
from verifier.errors import StoreError
from verifier.store.database import Database

_LOOK_EVERY_S: Final = 1.0

_log = structlog.get_logger("router")


class Keys(Protocol):
    """What decides whose a request is."""

    def set_stored(self, active: Sequence[ApiKey], revoked: Collection[str]) -> None:
        """Set which keys the store has, and the digests of those that are revoked."""


class StoredKeys:
    """Follows the keys in the store."""

    def __init__(self, db: Database, clock: Clock, keyring: Keys) -> None:
        self._db = db
        self._clock = clock
        self._keyring = keyring
        self._revision = 0
        self._stored: list[StoredKey] = []
        self._active: list[ApiKey] = []

    async def sync(self) -> None:
        """
        Take up what was made, revoked or has expired.

        Raises:
            StoreError: the store cannot be read; the keys stay as they were.
        """
        async with self._db.read() as tx:
            revision = await keys.revision(tx)
            is_same = revision == self._revision
            if not is_same:
                self._stored = await keys.list_all(tx)
                self._revision = revision
        now_ms = self._clock.now_ms()
        active = [stored.key for stored in self._stored if stored.state(now_ms) == "live"]
        if is_same and active == self._active:
            return
        self._active = active
        self._keyring.set_stored(active, {s.key.sha256 for s in self._stored if s.state(now_ms) != "live"})

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self.sync()
            except StoreError as error:
                _log.error("API keys could not be read; those that are known count", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, a revoked key would open everything for ever.
                _log.exception("the API keys failed")
