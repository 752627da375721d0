"""
What is kept for many callers in bounded memory: the newest at hand, and what waits to be written.

Where there is no more room, the caller that has most loses first: who makes many loses its own, and never what a
caller has that has fewer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from router.model.shares import Shares

T = TypeVar("T")


class Newest(Generic[T]):
    """
    The newest things by their ids.

    Args:
        limit: How many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._things: dict[str, T] = {}
        self._order: dict[str, OrderedDict[str, None]] = {}
        """The ids of each caller's, the oldest first."""
        self._shares = Shares()

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, thing_id: str) -> bool:
        return thing_id in self._things

    def ids(self) -> list[str]:
        """The ids of all that are kept, the oldest first."""
        return list(self._things)

    def get(self, thing_id: str) -> T | None:
        """One of them."""
        return self._things.get(thing_id)

    def add(self, thing_id: str, caller: str, thing: T) -> None:
        """Keep one more."""
        self._things[thing_id] = thing
        self._order.setdefault(caller, OrderedDict())[thing_id] = None
        self._shares.add(caller)
        if len(self._things) > self._limit:
            largest = self._shares.largest()
            oldest, _ = self._order[largest].popitem(last=False)
            if not self._order[largest]:
                del self._order[largest]
            self._shares.remove(largest)
            del self._things[oldest]

    def replace(self, thing_id: str, thing: T) -> None:
        """Put another thing in the place of one, if that is still kept."""
        if thing_id in self._things:
            self._things[thing_id] = thing


class Waiting(Generic[T]):
    """
    What waits to be written, by ids.  If it is too much, the caller that has most loses its newest.

    Args:
        limit: How many may wait.
        lost: Called for each one that is lost.
    """

    def __init__(self, limit: int, lost: Callable[[], None]) -> None:
        self._limit = limit
        self._lost = lost
        self._of: dict[str, dict[str, T]] = {}
        self._shares = Shares()
        self._count = 0

    def add(self, thing_id: str, caller: str, thing: T) -> None:
        """Have one more wait."""
        self._of.setdefault(caller, {})[thing_id] = thing
        self._shares.add(caller)
        self._count += 1
        if self._count > self._limit:
            largest = self._shares.largest()
            self._of[largest].popitem()
            if not self._of[largest]:
                del self._of[largest]
            self._shares.remove(largest)
            self._count -= 1
            self._lost()

    def get(self, thing_id: str) -> T | None:
        """One of them."""
        return next((things[thing_id] for things in self._of.values() if thing_id in things), None)

    def drain(self) -> list[T]:
        """Take all, one of each caller in turn: nobody's wait for all of another's."""
        queues = [list(things.values()) for things in self._of.values()]
        self._of, self._shares, self._count = {}, Shares(), 0
        return queues[0] if len(queues) == 1 else list(_in_turn([iter(queue) for queue in queues]))


def _in_turn(queues: list[Iterator[T]]) -> Iterator[T]:
    while queues:
        left = []
        for queue in queues:
            for thing in queue:
                yield thing
                left.append(queue)
                break
        queues = left
