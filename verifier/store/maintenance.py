"""Back up, check, restore and migrate a database, of the verifier or of routers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verifier.errors import StoreError
from verifier.store import backups
from verifier.store.backups import Manifest
from verifier.store.checking import Check, Fault, Progress, find_faults
from verifier.store.database import UnavailableError
from verifier.store.files import new_file
from verifier.store.opening import open_database, open_whole
from verifier.store.scripts import read_scripts
from verifier.store.whole import (
    NoDatabaseError,
    TableDigest,
    Use,
    Whole,
    check_same_form,
    copy_all,
    verify_all,
)
from verifier.store.whole_sqlite import new_sqlite, open_sqlite

_FOLDERS: Final = ("migrations", "postgres")


@dataclass(frozen=True)
class Place:
    """Where the database of a service is."""

    url: str
    """Of a PostgreSQL database; empty if it is a file."""
    file: Path
    package: str
    """Whose tables it has: ``verifier.store`` or ``router.store``."""

    @property
    def schema(self) -> int:
        """The schema of this version."""
        return read_scripts(self.package, _FOLDERS[bool(self.url)])[-1].number


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def back_up(place: Place, path: Path, *, force: bool = False) -> Manifest:
    """
    Write a backup, while services run.

    Raises:
        StoreError: The database cannot be read or has another schema, or the file exists or cannot be written.
    """
    began = time.monotonic()
    async with open_whole(place.url, place.file, Use.READ, schema=place.package) as source:
        # Not later than the state, by the clock by which marks are dated.
        made_ms = await source.now_ms() - int((time.monotonic() - began) * 1000) - 1
        return await backups.write_backup(source, path, place.package, made_ms, force=force)


async def check(place: Place, checks: Sequence[Check], progress: Progress) -> list[Fault]:
    """
    Check a database, while services run.  Nothing is changed.

    Raises:
        StoreError: The database cannot be read.
    """
    try:
        async with open_whole(place.url, place.file, Use.READ, schema=place.package) as whole:
            progress(f"the schema is that of this version, {place.schema}")
            if whole.version != place.schema:
                # The other checks are about the tables of this version.
                return [Fault("the schema", f"{whole.name} has schema {whole.version}, not {place.schema}")]
            return await _check(whole, place, checks, progress)
    except (NoDatabaseError, UnavailableError):
        raise
    except StoreError as error:
        # A damaged file cannot answer every question.
        return [Fault("the database is whole", str(error))]


async def _check(whole: Whole, place: Place, checks: Sequence[Check], progress: Progress) -> list[Fault]:
    async with new_sqlite(Path(":memory:"), place.package) as fresh:
        schema = fresh.tables
    try:
        return await find_faults(whole, schema, checks, progress)
    except UnavailableError:
        raise
    except StoreError as error:
        return [Fault("the database is whole", found) for found in (*await whole.integrity(), str(error))]


class Restoration:
    """What a service does to its database when it is restored."""

    def accept(self, manifest: Manifest) -> None:
        """Raise `StoreError` if this backup must not be restored as it was asked."""

    async def look(self, whole: Whole) -> None:
        """Look at what is about to be replaced."""

    async def finish(self, whole: Whole, _manifest: Manifest) -> None:
        """End what must not come back.  Nobody has seen it yet."""
        await whole.tx.execute("DELETE FROM leases")


async def restore(place: Place, path: Path, restoration: Restoration, *, replace: bool) -> Manifest:
    """
    Replace what a database holds by a backup, in one transaction.

    Args:
        replace: Whether a database that holds something may be replaced.

    Raises:
        StoreError: A service runs, the database is not empty, or the backup is damaged.  Nothing was changed.
    """
    async with backups.open_backup(path, place.package) as backup:
        restoration.accept(backup.manifest)
        await _prepare(place)
        async with open_whole(place.url, place.file, Use.WRITE, schema=place.package) as target:
            # Again, because now nobody can begin.
            await refuse_running(target)
            check_same_form(backup.whole, target)
            if not replace and not await backups.is_like_new(target, place.package):
                raise StoreError(f"{target.name} is not empty. Its rows would be lost: --replace")
            await restoration.look(target)
            await backups.copy_backup(backup, target)
            await restoration.finish(target, backup.manifest)
            await target.commit()
    return backup.manifest


async def migrate(place: Place, to: Place) -> dict[str, TableDigest]:
    """
    Copy a database to another one that is empty, and prove that they are equal.  The source is not changed.

    Raises:
        StoreError: A service runs, the target is not empty, or the copy is not equal.
    """
    if (place.url, place.file) == (to.url, to.file) or (place.url and place.url == to.url):
        raise StoreError("the database is there already")
    async with open_whole(place.url, place.file, Use.FREEZE, schema=place.package) as source:
        await refuse_running(source)
        if not to.url:
            return await _migrate_to_file(source, to)
        await _prepare(to)
        async with open_whole(to.url, to.file, Use.WRITE, schema=to.package) as target:
            check_same_form(source, target)
            if not await backups.is_like_new(target, to.package):
                raise StoreError(f"{target.name} is not empty. Migrate to an empty database")
            await target.clear()
            digests = await copy_all(source, target)
            await verify_all(target, digests)
            await target.commit()
        return digests


async def _migrate_to_file(source: Whole, to: Place) -> dict[str, TableDigest]:
    with new_file(to.file) as temporary:
        async with new_sqlite(temporary, to.package) as target:
            await target.clear()
            digests = await copy_all(source, target)
            await target.commit()
        async with open_sqlite(temporary, Use.READ) as written:
            await verify_all(written, digests)
    return digests


async def _prepare(place: Place) -> None:
    """
    Make the tables of a database, if it has none.

    Raises:
        StoreError: A service runs on it.
    """
    try:
        async with open_whole(place.url, place.file, Use.READ, schema=place.package) as whole:
            # Before its tables may be changed.
            await refuse_running(whole)
            if whole.version == place.schema:
                return
    except NoDatabaseError:
        pass
    async with open_database(place.url, place.file, schema=place.package):
        pass


async def refuse_running(whole: Whole) -> None:
    """
    Make sure that no service works on a database.

    Raises:
        StoreError: One has a lease, or may have one.
    """
    if "leases" not in whole.tables:
        return
    now = await whole.now_ms()
    held = await whole.tx.all(
        # What nobody holds only notes something.
        "SELECT name, until_ms FROM leases WHERE until_ms > ? AND holder <> '' ORDER BY name",
        now,
    )
    if held:
        seconds = (max(row["until_ms"] for row in held) - now) // 1000 + 1
        raise StoreError(
            f"a service works on {whole.name} ({', '.join(row['name'] for row in held)}). Stop it first."
            f" If it was killed, wait {seconds} s"
        )
