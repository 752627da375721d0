"""The checkpoints that somebody who verifies logs keeps, so that a log cannot go back on what it has shown."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attester.errors import ConfigError
from verifier.errors import LogError
from verifier.log.checkpoints import SignedCheckpoint, open_checkpoint
from verifier.log.notes import MAX_NOTE, VerifierKey
from verifier.store.files import new_file

_LOCK: Final = ".lock"


def default_folder() -> Path:
    """The folder in the user's own state (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "touchstone" / "logs"


class KeptCheckpoints:
    """A folder with the newest checkpoint that was accepted of each log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, origin: str) -> Path:
        """The file of a log."""
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.checkpoint"

    def find(self, key: VerifierKey) -> SignedCheckpoint | None:
        """
        The checkpoint that was kept of a log.

        Raises:
            ConfigError: the file cannot be read, or is not a checkpoint that the log's key has signed.
        """
        path = self.path(key.name)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_NOTE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        try:
            return open_checkpoint(data, [key])
        except LogError as error:
            raise ConfigError(
                f"{path} is not a checkpoint of this key: {error}. If the log has a new key, remove the file"
            ) from None

    def keep(self, signed: SignedCheckpoint) -> None:
        """
        Keep a checkpoint that was accepted, unless a larger one is kept already.

        Raises:
            ConfigError: it cannot be written.
        """
        with self._locked():
            kept = self.find(signed.key)
            if kept is None or kept.checkpoint.size <= signed.checkpoint.size:
                self._write(self.path(signed.key.name), signed)

    def keep_evidence(self, signed: SignedCheckpoint) -> Path:
        """Keep a signed checkpoint that contradicts the kept one: together they show what the log did."""
        path = self.path(signed.key.name)
        path = path.with_suffix(f".contradicts-{signed.checkpoint.root.hex()[:16]}")
        with self._locked():
            self._write(path, signed)
        return path

    def _write(self, path: Path, signed: SignedCheckpoint) -> None:
        with new_file(path, force=True) as temporary:
            temporary.write_text(str(signed.note), encoding="utf-8")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._folder / _LOCK, "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be written: {error.strerror}") from None
