"""
The guard of a log: what its key signed last, in a file beside the key.

A database that was edited, cut, forked or restored may agree with itself.  It does not agree with this file.  So the
file is never restored from a copy, as the high-water marks are not (`verifier.store.marks`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from verifier.errors import LogProofError, StoreError
from verifier.log.tree import CompactRange
from verifier.store.database import UnavailableError
from verifier.store.files import replace_file

_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 10
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Number = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Signed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last checkpoint that was signed with the key beside it."""

    format: int = _FORMAT
    number: Annotated[int, Meta(ge=1, lt=1 << 31)]
    """Of the log (`verifier.store.log_tree.Log`)."""
    origin: Annotated[str, Meta(min_length=1, max_length=512)]
    size: _Number
    peaks: Annotated[tuple[_Hash, ...], Meta(max_length=63)]
    """The roots of the perfect subtrees, the largest first: they say where another tree differs."""

    def tree(self) -> CompactRange:
        """The tree.  Raises `LogProofError` if the peaks are not those of its size."""
        return CompactRange(self.size, [bytes.fromhex(each) for each in self.peaks])

    def is_before(self, other: Signed) -> bool:
        """Whether *other* was signed later."""
        return (self.number, self.size) < (other.number, other.size)


def signed_of(number: int, origin: str, tree: CompactRange) -> Signed:
    """What is kept of a tree that was signed."""
    return Signed(
        number=number, origin=origin, size=tree.size, peaks=tuple(each.hex() for each in tree.hashes)
    )


def read_guard(path: Path) -> Signed | None:
    """
    Read a guard; `None` if there is no such file.

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
        found = msgspec.json.decode(data, type=Signed)
        found.tree()
    except (UnicodeDecodeError, msgspec.DecodeError, LogProofError):
        found = None
    if found is None or found.format != _FORMAT:
        raise StoreError(
            f"{path} is damaged, or another version wrote it. It says what the log's key signed last. Begin a"
            " new log: touchstone log begin"
        )
    return found


def write_guard(path: Path, signed: Signed) -> None:
    """
    Write a guard durably, unless the file has a later one.

    Raises:
        StoreError: The file has another format.
        UnavailableError: It cannot be written.
    """
    known = read_guard(path)
    if known is not None and not known.is_before(signed):
        return
    replace_guard(path, signed)


def replace_guard(path: Path, signed: Signed) -> None:
    """Write a guard durably, whatever the file has.  Raises `UnavailableError`."""
    try:
        replace_file(path, msgspec.json.encode(signed))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from None
