"""
Move old rows into files, so that a kill at any moment loses none.

1. The oldest rows are written into a file, which has its name only when it is on the disk.
2. The file is read again from there, and its digest and the root of its rows are logged.
3. When the log has signed that entry, its proof is written beside the file.
4. The rows of the file are deleted, in small steps, each only if it equals the file's.

What there is in the folder says where to go on: a file without a proof is at step 2, and the newest file with one at
step 4.  The next file is begun when that is done.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from attester.errors import ConfigError
from verifier.archive import files, parquet
from verifier.archive.files import ArchiveEntry, proof_of
from verifier.archive.rows import Table
from verifier.log.proofs import LogProof
from verifier.store.files import new_file

_DIGITS: Final = 9
_NAME: Final = re.compile(r"[0-9]{9}-[0-9-]{10}\.parquet")
"""Of a file: its number, and the day of its first row."""
_AT_ONCE: Final = 200
"""Rows that are deleted in one transaction."""

_log = structlog.get_logger("archive")


class HotStore(Protocol):
    """Where rows are moved from."""

    async def oldest(self, limit: int) -> list[dict[str, Any]]:
        """The oldest rows that the retention rule moves, in their order; at most *limit*."""

    async def remove(self, rows: Sequence[dict[str, Any]]) -> None:
        """Delete rows, in one transaction, of those that are `unchanged`."""


class ArchiveLog(Protocol):
    """The log that proves the files."""

    async def submit(self, entry: ArchiveEntry) -> None:
        """Log a file.  It is durable when this returns; the same again changes nothing."""

    async def prove(self, digest: str) -> LogProof | None:
        """The proof of a file's entry; None until the log has signed it."""


class Step(Enum):
    """What came of a step."""

    MOVED = auto()
    """A file was finished, or begun: there may be more to do."""
    WAITS = auto()
    """A file waits for the log."""
    IDLE = auto()
    """Nothing is old enough."""


class Archive:
    """
    Moves the rows of one table.

    Args:
        folder: Where its files are; one process at a time may work on it.
        rows_per_file: The most rows of a file.
    """

    def __init__(
        self, folder: Path, table: Table, store: HotStore, log: ArchiveLog, rows_per_file: int
    ) -> None:
        self._folder = folder
        self._table = table
        self._store = store
        self._log = log
        self._rows_per_file = rows_per_file
        self._emptied: Path | None = None
        """The newest file, if its rows are known to be deleted."""

    async def step(self) -> Step:
        """
        Do what comes next.

        Raises:
            AuditError: a file is not what was logged, or cannot be written: nothing is deleted.
            ConfigError: the folder cannot be used.
        """
        newest = await asyncio.to_thread(self._newest)
        if newest is not None and newest != self._emptied:
            if not proof_of(newest).exists():
                return await self._prove(newest)
            await self._empty(newest)
            self._emptied = newest
            return Step.MOVED
        rows = await self._store.oldest(self._rows_per_file)
        if not rows:
            return Step.IDLE
        await asyncio.to_thread(self._write, rows)
        return Step.MOVED

    def _newest(self) -> Path | None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in self._folder.glob(".*.parquet.*"):
                # It was being written when the process ended.
                left.unlink()
            return max((path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), default=None)
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be used: {error.strerror}") from None

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        newest = self._newest()
        number = 1 if newest is None else int(newest.name[:_DIGITS]) + 1
        day = datetime.fromtimestamp(rows[0][self._table.at] / 1000, UTC).date().isoformat()
        path = self._folder / f"{number:0{_DIGITS}d}-{day}.parquet"
        with new_file(path) as temporary:
            parquet.write(temporary, self._table, rows)
        _log.info("rows were written into a file", table=self._table.name, file=path.name, rows=len(rows))

    async def _prove(self, path: Path) -> Step:
        entry, _ = await asyncio.to_thread(files.describe, path)
        await self._log.submit(entry)
        proof = await self._log.prove(entry.digest)
        if proof is None:
            return Step.WAITS
        await asyncio.to_thread(_write_proof, path, proof)
        return Step.MOVED

    async def _empty(self, path: Path) -> None:
        proven = await asyncio.to_thread(files.check, path, None)
        for start in range(0, len(proven.rows), _AT_ONCE):
            await self._store.remove(proven.rows[start : start + _AT_ONCE])
        _log.info("the rows of a file are deleted", table=self._table.name, file=path.name)


def _write_proof(path: Path, proof: LogProof) -> None:
    with new_file(proof_of(path), force=True) as temporary:
        temporary.write_text(str(proof), encoding="utf-8")


def unchanged(
    table: Table, kept: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    Of the rows that a file has, those that the store still has unchanged: only they may be deleted.

    One that was changed after it was archived stays, and is archived again as it is now.
    """
    by_key = {row[table.key]: row for row in there}
    found = []
    for row in kept:
        other = by_key.get(row[table.key])
        if other is None:
            continue
        if files.same(table, row, other):
            found.append(row)
        else:
            _log.warning("a row was changed after it was archived", table=table.name, key=row[table.key])
    return found
