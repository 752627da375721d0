"""
The keys that sign results, as a running verifier has them.

When each signs and leaves is in the database, so that all replicas agree; the private parts are in the home.  Both are
looked at all the time, so that a rotation needs no restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog

from attester.errors import ConfigError
from verifier.config import Home
from verifier.errors import StoreError
from verifier.result_keys import ResultKey, VerifyingKey
from verifier.store import signing_keys
from verifier.store.database import Database
from verifier.store.signing_keys import StoredKey

_POLL_S: Final = 1.0

_log = structlog.get_logger("verifier")


class KeyRing:
    """Who signs now, and which keys the JWKS lists."""

    def __init__(self, home: Home, db: Database) -> None:
        self._home = home
        self._db = db
        self._private: dict[str, ResultKey] = {}
        self._stored: list[StoredKey] = []
        self._withdrawn: frozenset[str] = frozenset()
        self._missing: str | None = None
        """The key that should sign and whose file is not here."""

    async def open(self, now_ms: int) -> None:
        """
        Read the keys, and take in those of a home that the database does not know.

        Args:
            now_ms: Milliseconds since 1970, by the clock that all replicas share.

        Raises:
            ConfigError: A key cannot be read, or there is none.
        """
        keys = self._home.result_keys()
        self._private = {key.kid: key for key in keys}
        await self._db.write(lambda tx: signing_keys.note(tx, [key.verifying for key in keys], now_ms))
        async with self._db.read() as tx:
            self._stored = await signing_keys.all_keys(tx)
        self._withdrawn = self._home.withdrawn_keys()
        self.signer(0)

    def signer(self, now_ms: int) -> ResultKey:
        """
        The key that signs: of those that have begun and whose file is here, the last.

        If all of them have left, the last to leave goes on: what it signs is better than nothing.

        Raises:
            ConfigError: All keys are withdrawn.
        """
        here = [each for each in self._stored if each.kid in self._private and not self._is_withdrawn(each)]
        begun = [each for each in here if each.signs_ms <= now_ms] or here[:1]
        if not begun:
            raise ConfigError("every key that could sign results is withdrawn")
        return self._private[max(begun, key=lambda each: each.signs_ms).kid]

    def listed(self, now_ms: int) -> Mapping[str, VerifyingKey]:
        """The keys that can have signed a live result, or will sign soon, by kid: the newest first."""
        signer = self.signer(now_ms)
        found = {
            each.kid: each.key
            for each in reversed(self._stored)
            if each.kid == signer.kid or (each.is_listed(now_ms) and not self._is_withdrawn(each))
        }
        return dict(sorted(found.items(), key=lambda item: item[0] != signer.kid))

    def _is_withdrawn(self, key: StoredKey) -> bool:
        return key.withdrawn_ms is not None or key.kid in self._withdrawn

    async def run(self, now_ms: Callable[[], int]) -> None:
        """Follow the table and the files until cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self.look(now_ms())
            except (StoreError, ConfigError) as error:
                _log.error("the keys that sign results cannot be read", error=str(error))

    async def look(self, now_ms: int) -> None:
        """
        Take in what has changed.

        Raises:
            ConfigError: A key cannot be read.
            StoreError: The database cannot be used.
        """
        async with self._db.read() as tx:
            stored = await signing_keys.all_keys(tx)
        if stored != self._stored:
            await self._take(stored, now_ms)
        self._note_missing(now_ms)

    async def _take(self, stored: list[StoredKey], now_ms: int) -> None:
        before = {each.kid for each in self._stored if self._is_withdrawn(each)}
        self._private = {key.kid: key for key in self._home.result_keys()}
        self._withdrawn = self._home.withdrawn_keys()
        self._stored = stored
        signer = self.signer(now_ms)
        _log.info(
            "the keys that sign results have changed", signs=signer.kid, listed=list(self.listed(now_ms))
        )
        for each in stored:
            if self._is_withdrawn(each) and each.kid not in before:
                # By now it signs nothing more here, and what it has signed in between is revoked too.
                await self._db.write(partial(signing_keys.revoke_signed, kid=each.kid, now_ms=now_ms))

    def _note_missing(self, now_ms: int) -> None:
        """Say once that the key that should sign is not here, as its file is on another replica alone."""
        due = [each for each in self._stored if each.signs_ms <= now_ms and not self._is_withdrawn(each)]
        newest = max(due, key=lambda each: each.signs_ms, default=None)
        if newest is not None and newest.kid not in self._private:
            # The file may come at any time, and nothing in the table changes then.
            self._private = {key.kid: key for key in self._home.result_keys()}
        if newest is None or newest.kid in self._private:
            self._missing = None
        elif self._missing != newest.kid:
            self._missing = newest.kid
            _log.error(
                "the key that should sign results is not in this home; copy its file from the home where it was made",
                kid=newest.kid,
                keys=str(self._home.path / "keys"),
            )
