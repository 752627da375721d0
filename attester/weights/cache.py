"""
A cache of file digests, found by what shows that a file is unchanged.

A file counts as unchanged if its device, inode, size, mtime and ctime are the same.  Root can
forge all five.  So the evidence declares which digests are cached, old entries are computed
again, and `read` challenges always read the bytes themselves.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attester.errors import WeightsError
from attester.weights.folder import ModelFile
from attester.weights.hashing import Digests

_SETTLED_NS: Final = 2_000_000_000
"""A digest is stored only if the file's last change is at least this old: a second write within one
tick of the file system's clock would not show."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,
    algorithm TEXT, digest BLOB NOT NULL, read_at INTEGER NOT NULL,
    PRIMARY KEY (device, inode, algorithm)
) STRICT, WITHOUT ROWID
"""

_Key = tuple[int, int, str]


class DigestCache:
    """
    A cache of digests in one SQLite file, which survives a crash.

    Args:
        path: The file; `None` for a cache in memory.
        now: Seconds since 1970.

    Raises:
        WeightsError: the file cannot be opened, or is not a cache.
    """

    def __init__(self, path: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.recent: dict[tuple[str, ...], Any] = {}
        """Measurements of whole folders, by path and algorithms, in which all digests came from the cache."""
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(_SCHEMA)
            rows = self._db.execute(
                "SELECT device, inode, algorithm, size, mtime_ns, ctime_ns, digest, read_at FROM digests"
            ).fetchall()
        except sqlite3.Error as error:
            raise WeightsError(f"{path} is not a usable cache ({error}). Remove it") from None
        self._known: dict[_Key, tuple[int, int, int, bytes, int]] = {
            (device, inode, algorithm): rest for device, inode, algorithm, *rest in rows
        }

    def find(
        self, file: ModelFile, algorithms: Sequence[str], max_age_s: int | None = None
    ) -> tuple[Digests, int] | None:
        """
        The digests of an unchanged file, and when the oldest of them was computed (seconds since 1970).

        `None` if a digest is missing or older than *max_age_s*.
        """
        device, inode, mtime_ns, ctime_ns = _signed(file.stamp)
        found: Digests = {}
        oldest = None
        for algorithm in algorithms:
            row = self._known.get((device, inode, algorithm))
            if row is None or tuple(row[:3]) != (file.size, mtime_ns, ctime_ns):
                return None
            found[algorithm] = row[3]
            oldest = row[4] if oldest is None else min(oldest, row[4])
        # If the clock was set back, ages mean nothing.
        if oldest is None or oldest > self._now():
            return None
        if max_age_s is not None and self._now() - oldest > max_age_s:
            return None
        return found, oldest

    @property
    def now(self) -> float:
        """Seconds since 1970, by the cache's clock."""
        return self._now()

    def store(self, file: ModelFile, digests: Digests, began: float | None = None) -> None:
        """
        Store new digests, unless the file was written to shortly before it was read.

        Args:
            file: As listed.
            digests: Computed after the file was listed.
            began: When the reading began, in seconds since 1970; the current time if `None`.
        """
        device, inode, mtime_ns, ctime_ns = _signed(file.stamp)
        now = self._now()
        if max(mtime_ns, ctime_ns) > (now if began is None else began) * 1e9 - _SETTLED_NS:
            return
        with self._lock:
            for algorithm, digest in digests.items():
                row = (file.size, mtime_ns, ctime_ns, digest, int(now))
                # If the disk is full, only the next process must read the file again.
                with suppress(sqlite3.Error):
                    self._db.execute(
                        "INSERT OR REPLACE INTO digests"
                        " (device, inode, algorithm, size, mtime_ns, ctime_ns, digest, read_at)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (device, inode, algorithm, *row),
                    )
                self._known[device, inode, algorithm] = row

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _signed(stamp: tuple[int, int, int, int]) -> tuple[int, ...]:
    """As signed 64-bit integers, for SQLite: devices and inodes may use all 64 bits."""
    return tuple(value - (1 << 64) if value >= 1 << 63 else value for value in stamp)
