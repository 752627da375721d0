"""
What a witness is asked, and when it may sign (c2sp.org/tlog-witness).  Pure.

A witness signs a tree only if it begins with the tree that it signed last for the same origin.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from verifier.errors import LogError, LogFormatError, LogProofError, LogSignatureError
from verifier.log.checkpoints import Checkpoint, open_checkpoint
from verifier.log.notes import MAX_NOTE, Note, VerifierKey, decode_base64, decode_number
from verifier.log.tree import EMPTY_ROOT, HASH_SIZE, MAX_PATH, MAX_SIZE, verify_consistency

MAX_REQUEST: Final = MAX_NOTE + 4096
"""Bytes: a note, 63 hashes of 45, and a size."""


class Refusal(StrEnum):
    """Why a witness does not sign."""

    MALFORMED = "malformed"
    """The request is none, or its old size is larger than the checkpoint's."""
    UNKNOWN = "unknown"
    """The witness does not follow this origin."""
    UNSIGNED = "unsigned"
    """No key that is trusted for the origin has signed, or a signature does not verify."""
    STALE = "stale"
    """The old size is not the size that the witness signed last."""
    FORKED = "forked"
    """The size is the one that the witness signed last, and the root is another."""
    INCONSISTENT = "inconsistent"
    """The proof does not show that the tree begins with the one that the witness signed last."""


class RefusalError(LogError):
    """A witness does not sign."""

    def __init__(self, refusal: Refusal, message: str, *, size: int = 0) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.size = size
        """What the witness signed last."""


@dataclass(frozen=True)
class AddCheckpoint:
    """The body of ``add-checkpoint``: a checkpoint, and the proof that it continues what the witness has signed."""

    old: int
    """The size that the witness signed last; 0 if it never signed for this origin."""
    path: tuple[bytes, ...]
    note: Note

    @classmethod
    def parse(cls, data: bytes) -> AddCheckpoint:
        """Read a body.  Raises `LogFormatError`."""
        if len(data) > MAX_REQUEST:
            raise LogFormatError(f"the request has more than {MAX_REQUEST} bytes")
        head, blank, note = data.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise LogFormatError("the request is not a size, a proof and a checkpoint") from None
        if not blank or not first.startswith("old "):
            raise LogFormatError("the request is not a size, a proof and a checkpoint")
        if len(lines) > MAX_PATH:
            raise LogFormatError(f"the proof has more than {MAX_PATH} hashes")
        path = tuple(decode_base64(line) for line in lines)
        if any(len(each) != HASH_SIZE for each in path):
            raise LogFormatError(f"a hash of the proof does not have {HASH_SIZE} bytes")
        return cls(decode_number(first.removeprefix("old "), MAX_SIZE), path, Note.parse(note))

    def __str__(self) -> str:
        path = "".join(f"{b64encode(each).decode()}\n" for each in self.path)
        return f"old {self.old}\n{path}\n{self.note}"


@dataclass(frozen=True)
class Seen:
    """The tree that a witness signed last for an origin."""

    size: int = 0
    root: bytes = EMPTY_ROOT


def origin_of(data: bytes) -> AddCheckpoint:
    """Read a request whose origin is looked up next.  Raises `RefusalError`."""
    try:
        request = AddCheckpoint.parse(data)
        Checkpoint.parse(request.note.text)
    except LogFormatError as error:
        raise RefusalError(Refusal.MALFORMED, str(error)) from None
    return request


def check_signature(request: AddCheckpoint, keys: Collection[VerifierKey]) -> Checkpoint:
    """
    Verify that the log has signed the checkpoint.

    Args:
        keys: The keys that are trusted for any origin; the name of each is its origin.

    Raises:
        RefusalError: the origin is unknown, or none of its keys has signed.
    """
    checkpoint = Checkpoint.parse(request.note.text)
    trusted = [key for key in keys if key.name == checkpoint.origin]
    if not trusted:
        raise RefusalError(Refusal.UNKNOWN, f"this witness does not follow {checkpoint.origin}")
    try:
        return open_checkpoint(request.note, trusted).checkpoint
    except LogSignatureError as error:
        raise RefusalError(Refusal.UNSIGNED, str(error)) from None


def check_growth(request: AddCheckpoint, checkpoint: Checkpoint, seen: Seen) -> Seen:
    """
    Decide whether a witness may sign a checkpoint that its log has signed.

    Returns:
        What the witness will have seen.

    Raises:
        RefusalError: it may not.
    """
    if request.old > checkpoint.size:
        raise RefusalError(Refusal.MALFORMED, "the old size is larger than the checkpoint's")
    if request.old != seen.size:
        raise RefusalError(
            Refusal.STALE, f"this witness signed size {seen.size} last, not {request.old}", size=seen.size
        )
    try:
        verify_consistency(seen.size, checkpoint.size, seen.root, checkpoint.root, request.path)
    except LogProofError as error:
        if checkpoint.size == seen.size and not request.path:
            message = f"this witness signed another root for size {seen.size}: the log is forked"
            raise RefusalError(Refusal.FORKED, message, size=seen.size) from None
        raise RefusalError(Refusal.INCONSISTENT, str(error), size=seen.size) from None
    return Seen(checkpoint.size, checkpoint.root)
