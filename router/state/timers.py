"""When each node must be looked at again, because time alone changes what is true of it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator


class Timers:
    """
    One due time for each node.

    A heap in which each node that is due some time has a place.  If a node becomes due later than its
    place says, it is moved when that comes up: nearly all nodes are renewed before they are due,
    and most never come up at all.  A place that an earlier one has replaced is passed over.

    Args:
        spread: Places are up to this long before the due time.  Results run out on whole seconds, and
            thousands of nodes would come up together.
    """

    def __init__(self, spread: float) -> None:
        self._spread = spread
        self._share = 0.0
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._places: dict[str, float] = {}
        """By node, its place in the heap: not later than it is due."""
        self.earliest = math.inf
        """No node is due before this time."""

    def set_due(self, node: str, due: float) -> None:
        """Make *node* due at *due* and at no other time; infinity: never."""
        if due == math.inf:
            self._due.pop(node, None)
            return
        self._due[node] = due
        if due < self._places.get(node, math.inf):
            place = self._places[node] = self._before(due)
            heapq.heappush(self._heap, (place, node))
            self.earliest = self._heap[0][0]

    def _before(self, due: float) -> float:
        # Multiples of the golden ratio are spread evenly, however many there are.
        self._share = (self._share + 0.6180339887) % 1.0
        return due - self._share * self._spread

    def pop_due(self, now: float) -> Iterator[str]:
        """Yield each node that is due, and forget its due time."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            place, node = heap[0]
            due = self._due.get(node, math.inf) if self._places.get(node) == place else None
            if due is not None and now < due < math.inf:
                place = self._places[node] = due if due - now <= self._spread else self._before(due)
                heapq.heapreplace(heap, (place, node))
                self.earliest = heap[0][0]
                continue
            heapq.heappop(heap)
            self.earliest = heap[0][0] if heap else math.inf
            if due is not None:
                del self._places[node]
            if due is not None and due <= now:
                del self._due[node]
                yield node
