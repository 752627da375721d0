"""How often: token buckets by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from verifier.errors import RequestError


class Rates:
    """
    Token buckets by key.  If there are too many keys, the least recently used are forgotten.

    Args:
        now: A monotonic clock in seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float], *, keys: int = 10_000) -> None:
        self._rate = per_minute / 60
        self._burst = max(per_minute / 6, 3.0)
        self._now = now
        self._keys = keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, key: str) -> None:
        """
        Count a request of *key*.

        Raises:
            RequestError: there were too many; it says after how many seconds to try again.
        """
        now = self._now()
        level, since = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        if level < 1:
            self._buckets[key] = (level, now)
            wait = int((1 - level) / self._rate) + 1
            raise RequestError("too many requests", code="request.too-often", retry_after=wait)
        self._put(key, level - 1, now)

    def charge(self, key: str, cost: float) -> None:
        """Take *cost* more requests from *key*'s bucket, for one that was dear; what is not there it owes."""
        now = self._now()
        level, since = self._buckets.pop(key, (self._burst, now))
        self._put(key, min(self._burst, level + (now - since) * self._rate) - cost, now)

    def _put(self, key: str, level: float, now: float) -> None:
        self._buckets[key] = (level, now)
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
