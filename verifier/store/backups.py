"""
Backups: a SQLite file with the tables of the schema, whichever database it was made from.

Its manifest says what it is, when it was made, and has a digest of each table.  The service refuses to work on it:
a backup used as a database would pose used challenges again (`verifier.store.restoring`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from verifier.errors import StoreError
from verifier.store.files import new_file
from verifier.store.sqlite import BACKUP_ID
from verifier.store.whole import Table, TableDigest, Use, Whole, copy_all, verify_all
from verifier.store.whole_sqlite import SqliteWhole, new_sqlite, open_sqlite

_FORMAT: Final = 1
_MAKE_MANIFEST: Final = "CREATE TABLE touchstone_backup (manifest TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT"


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup says of itself."""

    format: int
    package: str
    """Whose tables it holds: ``verifier.store`` or ``router.store``."""
    schema: int
    made_ms: int
    """When its state was taken, milliseconds since 1970: everything later is missing."""
    source: str
    """``sqlite`` or ``postgresql``."""
    tables: dict[str, TableDigest]
    counters: dict[str, int]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(table.rows for table in self.tables.values())


@dataclass(frozen=True)
class Backup:
    """An open backup."""

    manifest: Manifest
    whole: SqliteWhole


async def write_backup(
    source: Whole, path: Path, package: str, now_ms: int, *, force: bool = False
) -> Manifest:
    """
    Copy a database to a new file that only its owner can read, and read the file again to verify it.

    The file has its name only when it is complete and durable.

    Args:
        now_ms: When *source* was opened: its state is of that moment.
        force: Whether a file of that name is replaced.

    Raises:
        StoreError: The file exists already or cannot be written, or the source cannot be read.
    """
    with new_file(path, force=force) as temporary:
        return await _fill(source, temporary, package, now_ms)


async def _fill(source: Whole, path: Path, package: str, now_ms: int) -> Manifest:
    async with new_sqlite(path, package) as target:
        # The schema's scripts may have put rows in.
        await target.clear()
        digests = await copy_all(source, target)
        manifest = Manifest(
            format=_FORMAT,
            package=package,
            schema=source.version,
            made_ms=now_ms,
            source=source.kind,
            tables=digests,
            counters=await source.counters(),
        )
        text = msgspec.json.encode(manifest).decode()
        await target.tx.execute(_MAKE_MANIFEST)
        await target.tx.execute("INSERT INTO touchstone_backup VALUES (?, ?)", text, _sha256(text))
        await target.tx.execute(f"PRAGMA application_id = {BACKUP_ID}")
        await target.commit()
    async with open_backup(path, package) as written:
        await verify_all(written.whole, digests)
    return manifest


@asynccontextmanager
async def open_backup(path: Path, package: str) -> AsyncIterator[Backup]:
    """
    Open a backup of the tables of *package*, and check its manifest.  Its rows are not read yet.

    Raises:
        StoreError: It is no backup, or one of another service or format, or damaged.
    """
    async with open_sqlite(path, Use.READ) as whole:
        row = await whole.tx.one("PRAGMA application_id")
        if row is None or row["application_id"] != BACKUP_ID:
            raise StoreError(f"{path} is not a backup")
        manifest: Manifest | None = None
        with suppress(StoreError, msgspec.DecodeError):
            stored = await whole.tx.one("SELECT manifest, sha256 FROM touchstone_backup")
            if stored is not None and _sha256(stored["manifest"]) == stored["sha256"]:
                manifest = msgspec.json.decode(stored["manifest"], type=Manifest)
        if manifest is None or manifest.format != _FORMAT:
            raise StoreError(f"{path} is damaged, or another version made it")
        if manifest.package != package:
            raise StoreError(
                f"{path} is a backup of the {manifest.package.partition('.')[0]}, not of the {package.partition('.')[0]}"
            )
        yield Backup(manifest, whole)


async def copy_backup(backup: Backup, target: Whole) -> None:
    """
    Replace all rows of a database by those of a backup, and verify both.  Nothing is committed.

    Raises:
        StoreError: The backup is damaged, its schema is another one, or the target refuses a row.
    """
    await target.clear()
    digests = await copy_all(backup.whole, target)
    if damaged := sorted(
        name
        for name in digests.keys() | backup.manifest.tables.keys()
        if digests.get(name) != backup.manifest.tables.get(name)
    ):
        raise StoreError(f"{backup.whole.name} is damaged in {', '.join(damaged)}. Nothing was changed")
    for name, table in target.tables.items():
        if table.counter is not None:
            await target.set_counter(table, backup.manifest.counters.get(name, 0))
    await verify_all(target, digests)


async def is_like_new(whole: Whole, package: str) -> bool:
    """Whether a database holds nothing but what its schema puts in."""
    async with new_sqlite(Path(":memory:"), package) as fresh:
        for name, table in whole.tables.items():
            if await _first_page(whole, table) != await _first_page(fresh, fresh.tables[name]):
                return False
    return True


async def _first_page(whole: Whole, table: Table) -> bytes:
    async with aclosing(whole.pages(table)) as pages:
        async for page in pages:
            return page.encoded
    return b""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
