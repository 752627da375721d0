"""
Digests that were taken before, by what tells that a file is still the same.

A file is taken for unchanged if device, inode, size, mtime and ctime are as they were.
Root can forge all five, so what comes from here is declared as cached in the evidence,
is taken anew when it grows old, and `read` challenges go to the bytes themselves.
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
"""A file written to within so short a time may be written to again within its clock's tick."""
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
    A cache of digests, kept in one SQLite file; what was kept survives a crash.

    Args:
        path: Where it is kept; `None` keeps it in memory.
        now: Seconds since 1970.

    Raises:
        WeightsError: the file cannot be opened, or is no cache.
    """

    def __init__(self, path: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.recent: dict[tuple[str, ...], Any] = {}
        """Whole folders by place and algorithms: `manifest.measure` keeps there what came from here alone."""
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(_SCHEMA)
            rows = self._db.execute(
                "SELECT device, inode, algorithm, size, mtime_ns, ctime_ns, digest, read_at FROM digests"
            ).fetchall()
        except sqlite3.Error as error:
            raise WeightsError(f"{path}: not a usable cache ({error}); remove it") from None
        self._known: dict[_Key, tuple[int, int, int, bytes, int]] = {
            (device, inode, algorithm): rest for device, inode, algorithm, *rest in rows
        }

    def find(
        self, file: ModelFile, algorithms: Sequence[str], max_age_s: int | None = None
    ) -> tuple[Digests, int] | None:
        """
        The digests of an unchanged file, and when the oldest of them was taken, seconds since 1970.

        `None` where one is missing, or older than *max_age_s*.
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
        # A clock that was set back makes ages that mean nothing.
        if oldest is None or oldest > self._now():
            return None
        if max_age_s is not None and self._now() - oldest > max_age_s:
            return None
        return found, oldest

    @property
    def now(self) -> float:
        """Seconds since 1970, by the cache's clock."""
        return self._now()

    def keep(self, file: ModelFile, digests: Digests, began: float | None = None) -> None:
        """
        Keep digests just taken, unless the file was written to a moment before.

        Args:
            file: As it was listed.
            digests: Taken since.
            began: When the reading began, seconds since 1970 by `now`; now if not given.
        """
        device, inode, mtime_ns, ctime_ns = _signed(file.stamp)
        now = self._now()
        if max(mtime_ns, ctime_ns) > (now if began is None else began) * 1e9 - _SETTLED_NS:
            return
        with self._lock:
            for algorithm, digest in digests.items():
                row = (file.size, mtime_ns, ctime_ns, digest, int(now))
                # A full disk costs the next process a reading, and this one nothing.
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
    """As SQLite holds integers: devices and inodes may use all 64 bits."""
    return tuple(value - (1 << 64) if value >= 1 << 63 else value for value in stamp)
