"""
What a witness has signed: the size and the root by origin, in a database that survives being killed.

A signature leaves only after its tree was written here.  So a witness that is started again never signs a tree that
contradicts what it has signed.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Final

from attester.errors import ConfigError
from verifier.log.witnessing import Seen

MAX_EVIDENCE: Final = 16
"""Contradicting checkpoints that are kept for each origin."""
_BUSY_S: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS evidence (
    origin TEXT NOT NULL, at_s INTEGER NOT NULL, why TEXT NOT NULL, note TEXT NOT NULL, UNIQUE (origin, note)
) STRICT;
"""


class SeenTrees:
    """The trees that a witness has signed.  It may be used by several threads and several processes."""

    def __init__(self, path: Path) -> None:
        """Open the database.  Raises `ConfigError`."""
        self._lock = Lock()
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            path.chmod(0o600)
            # A commit is on the disk before it returns.
            for pragma in ("journal_mode = WAL", "synchronous = FULL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{path} cannot be used: {error}") from None

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._db.close()

    def last(self, origin: str) -> Seen:
        """What was signed last for an origin."""
        with self._lock:
            return self._last(origin)

    def _last(self, origin: str) -> Seen:
        row = self._db.execute("SELECT size, root FROM seen WHERE origin = ?", (origin,)).fetchone()
        return Seen() if row is None else Seen(row[0], row[1])

    def advance(self, origin: str, before: Seen, after: Seen, note: str) -> bool:
        """
        Write that *after* is signed, durably, if *before* is still what was signed last.

        Args:
            note: The checkpoint with the cosignature, for those who ask for it later.

        Returns:
            Whether it was.
        """
        with self._lock, closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                is_last = self._last(origin) == before
                if is_last:
                    cursor.execute(
                        "INSERT OR REPLACE INTO seen (origin, size, root, note) VALUES (?, ?, ?, ?)",
                        (origin, after.size, after.root, note),
                    )
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            return is_last

    def cosigned(self, origin: str) -> str | None:
        """The newest checkpoint of an origin with the cosignature; None if there is none."""
        with self._lock:
            row = self._db.execute("SELECT note FROM seen WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else str(row[0])

    def keep_evidence(self, origin: str, why: str, note: str, at_s: int) -> None:
        """Keep a checkpoint that its log has signed and that contradicts what was signed before."""
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO evidence (origin, at_s, why, note) "
                "SELECT ?, ?, ?, ? WHERE (SELECT count(*) FROM evidence WHERE origin = ?) < ?",
                (origin, at_s, why, note, origin, MAX_EVIDENCE),
            )

    def evidence(self, origin: str) -> list[tuple[int, str, str]]:
        """The kept contradictions: when in seconds since 1970, why, and the checkpoint."""
        with self._lock:
            query = "SELECT at_s, why, note FROM evidence WHERE origin = ? ORDER BY at_s"
            return self._db.execute(query, (origin,)).fetchall()
