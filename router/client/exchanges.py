"""What a client has sent and got: the digests that a receipt must have, made as the bytes go by.  Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

_MAX_MODEL = 128


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

    is_repeatable: bool = False
    """Whether the request has an ``Idempotency-Key``: then its answer may be one that was given before, receipt and all."""

    def began_ms(self, ended_ms: int) -> int:
        """When it began by another clock, by which it ended at *ended_ms*."""
        return ended_ms - max(0, self.ended_ms - self.sent_ms)


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


def document_of(body: bytes) -> dict[str, Any]:
    """A body's JSON object; an empty one if it is none."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}


def model_of(body: bytes) -> str:
    """The model that a request's body names; empty if it names none."""
    model = document_of(body).get("model")
    return model[:_MAX_MODEL] if isinstance(model, str) else ""
