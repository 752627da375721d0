"""
The signed index of an export: what it is about, and the digest of each file.  Pure.

It is a note (c2sp.org/signed-note) by the key of the log under another name, and its second line is no number: so it
can never be taken for a checkpoint, nor a checkpoint for it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from verifier import canonical
from verifier.errors import AuditError, CanonicalError, LogError
from verifier.log.notes import Note, Signer, VerifierKey, sign_note, verified

TYPE: Final = "touchstone-audit@v1"
MAX_INDEX: Final = 64 << 10
_SUFFIX: Final = "/audit"
_SHA256: Final = r"^[0-9a-f]{64}\Z"
_Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of an export."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9./-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=_SHA256)]
    size: _Count

    @classmethod
    def of(cls, name: str, data: bytes) -> File:
        """The entry of the index for these bytes."""
        return cls(name, hashlib.sha256(data).hexdigest(), len(data))


class LogPart(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a log that is in an export."""

    number: _Count
    vkey: Annotated[str, Meta(max_length=512)]
    size: _Count
    """Of the checkpoint."""
    first: _Count
    last: _Count
    """The place after the last entry."""


class Index(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an export is."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    made_ms: _Count
    from_ms: _Count
    to_ms: _Count
    """Entries are of this time, the end excluded."""
    logs: tuple[LogPart, ...]
    without_token: _Count
    """Results of that time whose tokens the verifier has no more."""
    files: tuple[File, ...]


def sign_index(index: Index, origin: str, key: Ed25519PrivateKey) -> bytes:
    """Sign an index with the key of a log."""
    signer = Signer(origin + _SUFFIX, key)
    text = f"{signer.key.name}\n{TYPE}\n{canonical.encode(index).decode()}\n"
    return str(sign_note(text, [signer])).encode()


def open_index(data: bytes, keys: list[VerifierKey]) -> Index:
    """
    Read an index that one of the logs' *keys* has signed.

    Raises:
        AuditError: it is malformed, or not signed by one of them.
    """
    known = {VerifierKey(key.name + _SUFFIX, key.public): key for key in keys}
    try:
        note = Note.parse(data)
        signed = verified(note, known)
        name, kind, body = note.text.removesuffix("\n").split("\n")
        index = canonical.decode(body.encode(), Index, max_size=MAX_INDEX)
    except (LogError, CanonicalError, ValueError) as error:
        raise AuditError(f"index: {error}") from None
    if kind != TYPE or name not in {key.name for key in signed}:
        raise AuditError("index: no key that was given has signed it")
    return index
