"""Ids and nonces that begin with the time: rows that are made together lie together in every index."""

from __future__ import annotations

import secrets
from typing import Final

_TIME_BYTES: Final = 6
NONCE_BYTES: Final = 32
_SHORTEST_WITH_TIME: Final = 24
"""A shorter nonce is random from end to end, so that nobody can guess it."""


def new_id(now_ms: int) -> str:
    """Give a new id: 32 hexadecimal digits, of which 80 bits are random."""
    return f"{now_ms:012x}{secrets.token_hex(10)}"


def new_nonce(now_ms: int, size: int = NONCE_BYTES) -> bytes:
    """Give a new nonce of *size* bytes, of which at least 18 or all are random."""
    if size < _SHORTEST_WITH_TIME:
        return secrets.token_bytes(size)
    return now_ms.to_bytes(_TIME_BYTES, "big") + secrets.token_bytes(size - _TIME_BYTES)
