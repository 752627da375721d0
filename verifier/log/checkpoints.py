"""Checkpoints: the size and the root of a log, signed by it (c2sp.org/tlog-checkpoint).  Pure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from verifier.errors import LogFormatError, LogSignatureError
from verifier.log.notes import (
    ED25519,
    Note,
    Signer,
    VerifierKey,
    check_text,
    decode_base64,
    decode_number,
    sign_note,
    verified,
)
from verifier.log.tree import EMPTY_ROOT, HASH_SIZE, MAX_SIZE


@dataclass(frozen=True)
class Checkpoint:
    """What a log says of itself: that the tree of so many leaves has this root."""

    origin: str
    """The name of the log."""
    size: int
    root: bytes
    extension: tuple[str, ...] = ()
    """Further lines.  Witnesses sign them, and nobody checks them."""

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read the text of a checkpoint's note.  Raises `LogFormatError`."""
        check_text(text)
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 3 or not all(lines):
            raise LogFormatError("a checkpoint has at least three lines, and none is empty")
        origin, size, root, *extension = lines
        made = cls(origin, decode_number(size, MAX_SIZE), decode_base64(root), tuple(extension))
        if len(made.root) != HASH_SIZE:
            raise LogFormatError(f"the root of a checkpoint does not have {HASH_SIZE} bytes")
        if made.size == 0 and made.root != EMPTY_ROOT:
            raise LogFormatError("the root of a checkpoint of size 0 is not that of the empty tree")
        return made

    def __str__(self) -> str:
        lines = (self.origin, str(self.size), b64encode(self.root).decode(), *self.extension)
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class SignedCheckpoint:
    """A checkpoint whose log's signature has been verified."""

    checkpoint: Checkpoint
    note: Note
    key: VerifierKey
    """The key of the log that has signed it."""


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> Note:
    """Sign a checkpoint as its log.  Raises `LogFormatError`: its origin or a line of it is malformed."""
    text = str(checkpoint)
    if Checkpoint.parse(text) != checkpoint:
        raise LogFormatError("a line of the checkpoint has a newline")
    return sign_note(text, [signer])


def open_checkpoint(data: bytes | Note, keys: Collection[VerifierKey]) -> SignedCheckpoint:
    """
    Read a signed checkpoint.

    Args:
        keys: The keys of logs that are trusted.  Each has the origin of its log as its name.

    Raises:
        LogFormatError: it is malformed.
        LogSignatureError: none of *keys* has signed it for its own origin, or a signature does not verify.
    """
    note = data if isinstance(data, Note) else Note.parse(data)
    checkpoint = Checkpoint.parse(note.text)
    logs = [key for key in keys if key.kind == ED25519]
    signed = [key for key in verified(note, logs) if key.name == checkpoint.origin]
    if not signed:
        names = ", ".join(sorted({key.name for key in logs})) or "nobody"
        raise LogSignatureError(
            f"no key that is trusted for {checkpoint.origin} has signed the checkpoint; trusted is {names}"
        )
    return SignedCheckpoint(checkpoint, note, signed[0])


def read_signed(data: bytes, keys: Sequence[str]) -> SignedCheckpoint:
    """`open_checkpoint` with vkeys."""
    return open_checkpoint(data, [VerifierKey.parse(each) for each in keys])
