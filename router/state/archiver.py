"""
Moves decisions and receipts that are too old, or too many, into files that the verifier's log proves.

Of the routers that share a store, one does it at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
import yarl

from attester.authorities import why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.config import RouterConfig, StoreSection
from router.model.clock import Clock
from router.store import old_rows
from verifier.archive import parquet
from verifier.archive.files import KIND, ArchiveEntry
from verifier.archive.moving import Archive, Step
from verifier.archive.rows import DECISIONS, RECEIPTS, Table
from verifier.errors import AuditError, LogError, StoreError
from verifier.log.checkpoints import Checkpoint
from verifier.log.proofs import MAX_PROOF, LogProof
from verifier.log.tree import leaf_hash, verify_inclusion
from verifier.store import leases
from verifier.store.database import Database

_EVERY_S: Final = 60.0
_LEASE: Final = "archive"
_LEASE_MS: Final = 55_000
_DAY_MS: Final = 24 * 3600 * 1000
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=5)
_FAILURES: Final = (AuditError, ConfigError, LogError, StoreError)

_log = structlog.get_logger("router")


class Archiver:
    """
    One router's part in moving old rows.

    Args:
        db: The store, which routers may share.
        config: What is kept in it.
        folder: Where the files are; each router may have its own.
        log: Has the verifier's log take the files.
        clock: The router's.
        holder: Who holds the lease: the router's name.
    """

    def __init__(
        self, db: Database, config: StoreSection, folder: Path, log: VerifierLog, *, clock: Clock, holder: str
    ) -> None:
        self._db = db
        self._clock = clock
        self._holder = holder
        self._archives = [
            Archive(folder / table.name, table, _Rows(db, table, config, clock), log, config.archive_rows)
            for table in (DECISIONS, RECEIPTS)
        ]

    async def run(self) -> None:
        """Move what there is, again and again, until cancelled."""
        while True:
            try:
                await self.move()
            except _FAILURES as error:
                _log.warning("old rows could not be archived, and stay in the store", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, the store would grow unnoticed.
                _log.exception("archiving failed")
            await asyncio.sleep(_EVERY_S)

    async def move(self) -> None:
        """
        Move all that is too old, unless another router does it.

        Raises:
            AuditError, ConfigError, LogError, StoreError: it could not be moved, and is where it was.
        """
        for archive in self._archives:
            while await self._has_lease() and await archive.step() is Step.MOVED:
                pass

    async def _has_lease(self) -> bool:
        now_ms = self._clock.now_ms() + await self._db.ahead_ms(self._clock.now_ms)
        take = partial(
            leases.take, name=_LEASE, holder=self._holder, now_ms=now_ms, until_ms=now_ms + _LEASE_MS
        )
        return await self._db.write(take)


class _Rows:
    """The rows of one table that are older than they are kept, or too many."""

    def __init__(self, db: Database, table: Table, config: StoreSection, clock: Clock) -> None:
        self._db = db
        self._table = table
        self._config = config
        self._clock = clock

    async def oldest(self, limit: int) -> list[dict[str, Any]]:
        config = self._config
        before_ms = self._clock.now_ms() - config.keep_days * _DAY_MS
        async with self._db.scan() as tx:
            surplus_ms = await old_rows.surplus_before(tx, self._table, config.keep_decisions)
            return await old_rows.oldest(tx, self._table, max(before_ms, surplus_ms), limit)

    async def remove(self, rows: Sequence[dict[str, Any]]) -> None:
        await self._db.write(lambda tx: old_rows.remove(tx, self._table, rows))


class VerifierLog:
    """
    The verifier's log, by its API.

    Args:
        http: A client that trusts the verifier's certificate.
        issuer: The verifier's URL.
        router: The router's own name.
        token: Reads the router's credential; raises `ConfigError`.
    """

    def __init__(
        self, http: aiohttp.ClientSession, issuer: str, router: str, token: Callable[[], str | None]
    ) -> None:
        self._http = http
        self._issuer = issuer
        self._router = router
        self._token = token

    async def submit(self, entry: ArchiveEntry) -> None:
        """Have a file logged.  Raises `AuditError`: the verifier does not take it now."""
        body = msgspec.json.encode({**entry.members(), "router": self._router})
        status, data = await self._ask("POST", "/api/v1/log/archives", body)
        if status not in (200, 201):
            raise AuditError(
                f"the verifier does not log the file: {status} {data[:200].decode(errors='replace')}"
            )

    async def prove(self, digest: str) -> LogProof | None:
        """The proof of a file's entry, checked; None until there is one.  Raises `AuditError`, `LogError`."""
        status, data = await self._ask(
            "GET", f"/api/v1/log/proof?kind={KIND}&id={quote(digest, safe='')}", None
        )
        if status in (404, 425):
            return None
        if status != 200:
            raise AuditError(f"the verifier gives no proof: {status}")
        proof = LogProof.parse(data)
        checkpoint = Checkpoint.parse(proof.checkpoint.text)
        if proof.extra is None or digest.encode() not in proof.extra:
            raise AuditError("the verifier gave the proof of another entry")
        verify_inclusion(leaf_hash(proof.extra), proof.index, checkpoint.size, proof.path, checkpoint.root)
        return proof

    async def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._token() or ''}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            url = yarl.URL(self._issuer + path, encoded=True)
            async with self._http.request(
                method, url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                return response.status, await read_all(response.content, MAX_PROOF) or b""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AuditError(f"the verifier does not answer: {why_unreached(error)}") from None


def archiving(
    config: RouterConfig,
    folder: Path,
    clock: Clock,
    db: Database,
    *,
    to_verifier: aiohttp.ClientSession,
    token: Callable[[], str | None],
) -> dict[str, Coroutine[Any, Any, None]]:
    """
    The loop that moves old rows, by its name; empty if there is no archive.

    Args:
        config: The router's.
        folder: Of the configuration.
        clock: The router's.
        db: The store.
        to_verifier: A client that trusts the verifier's certificate.
        token: Reads the router's credential of the verifier.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    if config.store.archive is None:
        return {}
    parquet.check_installed()
    log = VerifierLog(to_verifier, config.verifier.url, config.name, token)
    place = folder / config.store.archive
    return {"archive": Archiver(db, config.store, place, log, clock=clock, holder=config.name).run()}
