"""
Cached answers for clients that try again: ``Idempotency-Key``.

By draft-ietf-httpapi-idempotency-key-header-07 the key is a string of RFC 8941, in quotes; most
clients send it bare.  Both forms are read, and are the same key.

 1. The first request with a key is served; until it ends, another one is refused (409).
 2. After it, its answer is given again for some time, without the work.
 3. If the answer was too large for the cache, it is not given again and the work is not repeated (409).
 4. A key that was used for one request is refused for another (422).
 5. A request that failed or was abandoned may be tried again.

Memory is bounded, so 2 to 4 hold while there is room: of the caller that has most, the finished requests
that were asked for least recently are forgotten first.  A running request is never forgotten.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from router.model.errors import RouterError
from router.model.shares import Shares

_MAX_KEY: Final = 255
_QUOTED: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED: Final = re.compile(r"\\(.)")
_RETRY_AFTER_S: Final = 1
# At most so many at a time, so that no request waits until thousands are freed.
_SWEEP: Final = 32

_Id = tuple[str, str]


class IdempotencyError(RouterError):
    """A request with a key is refused; `status` is HTTP's, `retry_after` is in seconds or `None`."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """A whole answer; for a stream, all its bytes."""

    status: int
    content_type: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return (
            len(self.body)
            + len(self.content_type)
            + sum(len(name) + len(value) for name, value in self.headers)
        )


@dataclass(frozen=True, slots=True)
class _Finished:
    fingerprint: bytes
    answer: CachedResponse | None
    size: int


class IdempotencyCache:
    """
    Requests with a key, running and finished, in bounded memory.

    Where there is no more room, the owner that has most loses what it has not asked for the longest time.

    Args:
        monotonic: A monotonic clock in seconds.
        ttl_s: For how long a finished request is remembered, in seconds.
        max_entries: How many requests are remembered, running ones included.
        max_bytes: How many bytes of answers are cached in all.
        max_answer: How many bytes an answer may have to be cached.
    """

    def __init__(
        self,
        *,
        monotonic: Callable[[], float],
        ttl_s: float = 600.0,
        max_entries: int = 10_000,
        max_bytes: int = 64 << 20,
        max_answer: int = 1 << 20,
    ) -> None:
        self._monotonic = monotonic
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_answer = min(max_answer, max_bytes)
        self._running: dict[_Id, bytes] = {}
        self._finished: dict[_Id, _Finished] = {}
        # Their ids twice: by when they were last asked for, for each owner, and by when they expire.
        self._by_use: dict[str, OrderedDict[_Id, None]] = {}
        self._by_end: OrderedDict[_Id, float] = OrderedDict()
        self._shares = Shares()
        self._bytes = 0
        self._bytes_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._running) + len(self._finished)

    @property
    def size(self) -> int:
        """Bytes of cached answers."""
        return self._bytes

    def begin(self, owner: str, key: str, fingerprint: bytes) -> CachedResponse | None:
        """
        The answer to give again; `None` for the first request, which is running from now on.

        A caller that gets `None` must end the request by `keep` or `forget`.

        Args:
            owner: The caller; keys of different callers are different.
            key: The header as it was sent.
            fingerprint: A digest of the request: resource and body.

        Raises:
            IdempotencyError: 400 if it is not a key; 422 if it is another request's; 409 if that
                request is running, or its answer could not be cached; 503 if there is no room.
        """
        entry = (owner, _unquoted(key))
        self._expire(entry)
        running, finished = self._running.get(entry), self._finished.get(entry)
        known = finished.fingerprint if finished is not None else running
        if known is None:
            if len(self) >= self._max_entries:
                self._make_room()
            self._running[entry] = fingerprint
            return None
        if known != fingerprint:
            raise IdempotencyError(
                422, "idempotency_key_reused", "the Idempotency-Key was used for another request"
            )
        if finished is None:
            message = "a request with this Idempotency-Key is running"
            raise IdempotencyError(409, "idempotency_in_progress", message, _RETRY_AFTER_S)
        self._by_use[owner].move_to_end(entry)
        if finished.answer is None:
            message = (
                "the request with this Idempotency-Key was completed, and its answer could not be cached"
            )
            raise IdempotencyError(409, "idempotency_answer_not_kept", message)
        return finished.answer

    def keep(self, owner: str, key: str, answer: CachedResponse | None) -> None:
        """
        Note that a request completed, and cache its answer.

        Without an answer, or if it is too large, only the completion is remembered.  Nothing
        happens if the request is not running.
        """
        entry = (owner, _unquoted(key))
        fingerprint = self._running.pop(entry, None)
        if fingerprint is None:
            return
        size = 0 if answer is None else answer.size
        if size > self._max_answer:
            answer, size = None, 0
        while self._bytes + size > self._max_bytes:
            # Whose answers are largest loses one, so that nobody's are pushed out by one who has more.
            self._drop_oldest(
                max(self._bytes_of, key=lambda each: self._bytes_of[each] + (size if each == owner else 0))
            )
        self._finished[entry] = _Finished(fingerprint, answer, size)
        self._by_use.setdefault(owner, OrderedDict())[entry] = None
        self._by_end[entry] = self._monotonic() + self._ttl_s
        self._shares.add(owner)
        self._bytes += size
        self._bytes_of[owner] = self._bytes_of.get(owner, 0) + size

    def forget(self, owner: str, key: str) -> None:
        """Note that a request failed or was abandoned: it may be tried again.  Nothing happens if it is not running."""
        self._running.pop((owner, _unquoted(key)), None)

    def _make_room(self) -> None:
        if not self._finished:
            message = "too many requests with an Idempotency-Key are running"
            raise IdempotencyError(503, "idempotency_full", message, _RETRY_AFTER_S)
        self._drop_oldest(self._shares.largest())

    def _drop_oldest(self, owner: str) -> None:
        self._drop(next(iter(self._by_use[owner])))

    def _expire(self, wanted: _Id) -> None:
        now = self._monotonic()
        if self._by_end.get(wanted, now + 1) <= now:
            self._drop(wanted)
        for _ in range(min(_SWEEP, len(self._by_end))):
            oldest = next(iter(self._by_end))
            if self._by_end[oldest] > now:
                break
            self._drop(oldest)

    def _drop(self, entry: _Id) -> None:
        owner, size = entry[0], self._finished.pop(entry).size
        del self._by_end[entry], self._by_use[owner][entry]
        self._shares.remove(owner)
        self._bytes -= size
        self._bytes_of[owner] -= size
        if not self._by_use[owner]:
            del self._by_use[owner], self._bytes_of[owner]


def _unquoted(header: str) -> str:
    """The key that a header carries, in quotes or bare; raises `IdempotencyError`."""
    key = header
    if header.startswith('"'):
        # A longer header than a key of escapes only is not searched.
        match = _QUOTED.fullmatch(header) if len(header) <= 2 * _MAX_KEY + 2 else None
        key = _ESCAPED.sub(r"\1", match[1]) if match is not None else ""
    if not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        message = f"an Idempotency-Key must have 1 to {_MAX_KEY} printable ASCII characters"
        raise IdempotencyError(400, "idempotency_key_invalid", message)
    return key
