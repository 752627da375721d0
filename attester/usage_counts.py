"""
What the front has passed on, by day, in the home: ``usage/2026-11-30.log``.

The front appends a line for each answer, in one write, so what was counted survives `kill -9` of the front; what the
system has not written to the disk is lost with the machine's power.  A line that is torn is passed over.  The attester
reads the files of days that are over, and signs what they say; the claims are beside them.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from attester.errors import ConfigError

FOLDER: Final = "usage"
KEPT_DAYS: Final = 62
"""Days whose files are kept."""
MAX_LOG: Final = 4 << 20
"""Bytes, after which a file is written anew with its sums."""
_ENDING: Final = ".log"
_CLAIM: Final = ".claim"
_MAX_READ: Final = 64 << 20
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_line: Final = msgspec.json.Decoder(tuple[str, str, _Count, _Count, _Count])

Sums = dict[tuple[str, str], tuple[int, int, int]]
"""By router and model: exchanges, tokens of prompts, tokens of answers."""

_log = structlog.get_logger("front")


class UsageCounter:
    """
    Counts what was passed on.

    Args:
        folder: ``usage`` of the home; it is made.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error.strerror}") from None
        self._folder = folder
        self._day = ""
        self._file = -1
        self._size = 0
        self._failed = False

    def add(self, day: str, router: str, model: str, prompt: int, completion: int) -> None:
        """Count an answer.  If it cannot be written, that is logged once, and the node claims less."""
        line = msgspec.json.encode((router[:128], model[:128], 1, prompt, completion)) + b"\n"
        try:
            if day != self._day or self._file < 0:
                self._open(day)
            # One write with O_APPEND: a kill leaves all of it or nothing.
            os.write(self._file, line)
            self._size += len(line)
            if self._size > MAX_LOG:
                self._rewrite()
        except OSError as error:
            if not self._failed:
                _log.error("what was served cannot be counted, and will not be claimed", why=error.strerror)
            self._failed = True
            self.close()
        else:
            self._failed = False

    def _open(self, day: str) -> None:
        self.close()
        path = self._folder / f"{day}{_ENDING}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._day, self._size = day, os.fstat(self._file).st_size
        if self._size:
            # After a torn line, the next one must not be torn with it.
            os.write(self._file, b"\n")

    def _rewrite(self) -> None:
        """Put sums in the place of lines, in one step."""
        path = self._folder / f"{self._day}{_ENDING}"
        sums = read_counts(path)
        temporary = path.with_suffix(".new")
        lines = [msgspec.json.encode((*key, *counts)) + b"\n" for key, counts in sorted(sums.items())]
        with open(temporary, "wb") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._open(self._day)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_counts(path: Path) -> Sums:
    """
    The sums of a file.

    Raises:
        OSError: it cannot be read.
    """
    sums: defaultdict[tuple[str, str], tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    with open(path, "rb") as file:
        for line in file.read(_MAX_READ).split(b"\n"):
            try:
                router, model, exchanges, prompt, completion = _line.decode(line)
            except (msgspec.DecodeError, UnicodeError):
                continue
            before = sums[router, model]
            sums[router, model] = (before[0] + exchanges, before[1] + prompt, before[2] + completion)
    return dict(sums)


def days_counted(folder: Path) -> list[str]:
    """The days that something was counted of, in their order."""
    return sorted(path.name.removesuffix(_ENDING) for path in folder.glob(f"????-??-??{_ENDING}"))


def log_of(folder: Path, day: str) -> Path:
    """The file of a day."""
    return folder / f"{day}{_ENDING}"


def claim_of(folder: Path, day: str, router: str) -> Path:
    """The file of the signed claim towards a router for a day."""
    return folder / f"{day}.{_tag(router)}{_CLAIM}"


def days_claimed(folder: Path, router: str) -> list[str]:
    """The days for which there is a signed claim towards a router, in their order."""
    ending = f".{_tag(router)}{_CLAIM}"
    return sorted(path.name.removesuffix(ending) for path in folder.glob(f"????-??-??{ending}"))


def _tag(router: str) -> str:
    return hashlib.sha256(router.encode()).hexdigest()[:32]
