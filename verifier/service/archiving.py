"""The verifier's archive: results that are too old are moved into files that its own log proves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from verifier.archive.files import KIND, ArchiveEntry
from verifier.archive.moving import Archive, Step
from verifier.archive.rows import RESULTS
from verifier.log.proofs import LogProof
from verifier.service.state import Service
from verifier.store import archive_entries, log_proofs, log_tree, old_results
from verifier.store.database import Database

_DAY_MS: Final = 24 * 3600 * 1000


def open_archive(service: Service) -> Archive | None:
    """Open the archive of results; None if there is none."""
    if service.archive_folder is None:
        return None
    folder = service.archive_folder / RESULTS.name
    log = OwnLog(service.db, service.now_ms)
    return Archive(folder, RESULTS, _Results(service), log, service.config.archive.rows_per_file)


async def move_old(archive: Archive) -> None:
    """Move all that is too old, until there is no more or a file waits for the log."""
    while await archive.step() is Step.MOVED:
        pass


class _Results:
    """The results of the verifier that are older than they are kept."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def oldest(self, limit: int) -> list[dict[str, Any]]:
        before_ms = self._service.now_ms() - self._service.config.results.keep_days * _DAY_MS
        async with self._service.db.read() as tx:
            return await old_results.oldest(tx, before_ms, limit)

    async def remove(self, rows: Sequence[dict[str, Any]]) -> None:
        await self._service.db.write(lambda tx: old_results.remove(tx, rows), of="sweep")


class OwnLog:
    """The log of this verifier."""

    def __init__(self, db: Database, now_ms: Callable[[], int]) -> None:
        self._db = db
        self._now_ms = now_ms

    async def submit(self, entry: ArchiveEntry) -> None:
        """Log a file, if it is not logged."""
        now_ms = self._now_ms()
        await self._db.write(lambda tx: archive_entries.take(tx, entry.members(), now_ms), of="sweep")

    async def prove(self, digest: str) -> LogProof | None:
        """The proof of a file's entry."""
        async with self._db.read() as tx:
            placed = await log_tree.find(tx, KIND, digest)
            return None if placed is None else await log_proofs.prove(tx, placed)
