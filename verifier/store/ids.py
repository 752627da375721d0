"""Ids and nonces that begin with the time: rows that are made together lie together in every index."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Final

_TIME_BYTES: Final = 6
NONCE_BYTES: Final = 32
_MAX_IDS: Final = 500
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


def in_pieces(ids: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Give the marks for ``IN (…)`` and the ids, some hundred at a time: a statement has a limited number of parameters."""
    for start in range(0, len(ids), _MAX_IDS):
        some = ids[start : start + _MAX_IDS]
        yield ", ".join("?" for _ in some), some
