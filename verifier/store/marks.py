"""
High-water marks outside the database: what was certainly never given out, even if the database is an old one.

A database that is restored from a backup has forgotten which of its challenges were used since, and which numbers
events had.  The marks have not: a mark is raised, durably, before anything at or above it is given out.  They are
raised in blocks, so that a file is written once for hundreds of challenges.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec
import structlog
from msgspec import Meta, Struct

from verifier.errors import StoreError
from verifier.store.database import UnavailableError
from verifier.store.files import replace_file

_FORMAT: Final = 1
_CHALLENGES: Final = 256
_EVENTS: Final = 4096
_MAX_BYTES: Final = 16 << 20

_Number = Annotated[int, Meta(ge=0, lt=1 << 62)]
_log = structlog.get_logger("verifier")


class Numbered(Protocol):
    """What is given out once, by its number: a challenge, or a minted answer."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def index(self) -> int: ...  # noqa: D102


class Marks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The marks of one home."""

    format: int = _FORMAT
    since_ms: _Number
    """Since when they are kept, milliseconds since 1970: they say nothing about backups from before."""
    pool: dict[str, dict[str, _Number]] = {}
    """By model and kind of challenge: no challenge of this index or a higher one was ever taken."""
    events: _Number = 0
    """No event of a higher number was ever shown."""

    def merge(self, other: Marks) -> Marks:
        """Give the marks that hold for what both have given out."""
        pool = {model: dict(kinds) for model, kinds in self.pool.items()}
        for model, kinds in other.pool.items():
            for kind, mark in kinds.items():
                known = pool.setdefault(model, {})
                known[kind] = max(known.get(kind, 0), mark)
        return Marks(
            since_ms=max(self.since_ms, other.since_ms), pool=pool, events=max(self.events, other.events)
        )


def read_marks(path: Path) -> Marks | None:
    """
    Read marks; `None` if there is no such file.

    Raises:
        StoreError: The file cannot be read, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    try:
        marks = msgspec.json.decode(data, type=Marks)
    except (UnicodeDecodeError, msgspec.DecodeError):
        marks = None
    if marks is None or marks.format != _FORMAT:
        raise StoreError(
            f"{path} is damaged, or another version wrote it. Without it, used challenges cannot be told from"
            " free ones after a restore: keep it aside, and make a backup as soon as the service runs again"
        )
    return marks


def raise_marks(path: Path, marks: Marks) -> Marks:
    """
    Raise the marks in a file, durably, to at least *marks*.  No other process lowers them.

    Returns:
        The marks in the file.

    Raises:
        StoreError: It cannot be written, or is damaged.
    """
    try:
        with _locked(path):
            known = read_marks(path)
            # The file alone says since when.
            merged = (
                marks
                if known is None
                else msgspec.structs.replace(known.merge(marks), since_ms=known.since_ms)
            )
            if merged != known:
                replace_file(path, msgspec.json.encode(merged))
            return merged
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes with the same home from the file."""
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class HighWater:
    """
    Keeps a home's marks above what its service gives out.

    Args:
        path: The file; it is made if it is missing.
        now_ms: Milliseconds since 1970.

    Raises:
        StoreError: The file cannot be written, or is damaged.
    """

    def __init__(self, path: Path, now_ms: int) -> None:
        self._path = path
        self._marks = raise_marks(path, Marks(since_ms=now_ms))
        self._lock = threading.Lock()
        self._refilling = False

    @property
    def marks(self) -> Marks:
        """The marks as they are in the file, or lower."""
        return self._marks

    def cover(self, entries: Iterable[Numbered]) -> None:
        """
        Raise the marks above challenges, before they are taken for good: call it in their transaction.

        Raises:
            UnavailableError: The file cannot be written.  The challenges must not be taken.
        """
        wanted: dict[str, dict[str, int]] = {}
        missing = False
        for entry in entries:
            room = self._marks.pool.get(entry.model, {}).get(entry.kind, 0) - entry.index
            if room <= _CHALLENGES // 2:
                kinds = wanted.setdefault(entry.model, {})
                kinds[entry.kind] = max(kinds.get(entry.kind, 0), entry.index + 1 + _CHALLENGES)
                missing = missing or room <= 0
        if wanted:
            self._reach(Marks(since_ms=0, pool=wanted), later=not missing)

    def cover_event(self, number: int) -> None:
        """
        Raise the mark above the number of an event, before it is shown.

        Raises:
            UnavailableError: The file cannot be written.  The event must not be shown.
        """
        room = self._marks.events - number
        if room <= _EVENTS // 2:
            self._reach(Marks(since_ms=0, events=number + _EVENTS), later=room >= 0)

    def _reach(self, wanted: Marks, *, later: bool) -> None:
        """Raise the marks: now, or beside other work while there is room left."""
        if not later:
            self._raise(wanted)
            return
        if self._refilling:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._refilling = True
        loop.run_in_executor(None, self._refill, wanted)

    def _refill(self, wanted: Marks) -> None:
        try:
            self._raise(wanted)
        except StoreError as error:
            # Whoever needs more than there is meets it too.
            _log.error("the high-water marks could not be raised", error=str(error))
        finally:
            self._refilling = False

    def _raise(self, wanted: Marks) -> None:
        with self._lock:
            self._marks = self._marks.merge(raise_marks(self._path, self._marks.merge(wanted)))
