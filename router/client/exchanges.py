"""What a client has sent and got: the digests that a receipt must have, made as the bytes go by.  Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec
from msgspec import Struct

_MAX_MODEL = 128


class _Asked(Struct, frozen=True):
    model: str = ""


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, as the client saw them."""

    method: str
    path: str
    """Without what follows a question mark."""
    status: int
    request_sha256: str
    request_bytes: int
    response_sha256: str
    response_bytes: int
    is_salted: bool
    sent_ms: int
    """By the client's clock, milliseconds since 1970."""
    ended_ms: int
    model: str = ""
    """What the request's body names; empty if it names none."""


class Digest:
    """SHA-256 of a salt and of bytes that come in pieces."""

    def __init__(self, salt: bytes) -> None:
        self._sha256 = hashlib.sha256(salt)
        self.size = 0
        """Bytes, without the salt."""

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._sha256.update(data)
        self.size += len(data)

    def hex(self) -> str:
        """Of all pieces until now."""
        return self._sha256.hexdigest()


def model_of(body: bytes) -> str:
    """The model that a request's body names; empty if it is no JSON or names none."""
    try:
        return msgspec.json.decode(body, type=_Asked).model[:_MAX_MODEL]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
