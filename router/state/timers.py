"""When each node must be looked at again, because time alone changes what is true of it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator


class Timers:
    """
    One due time for each node; the earliest that was set counts.

    A heap with lazy deletion: an entry that an earlier one has replaced is passed over when it
    comes up.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self.earliest = math.inf
        """No node is due before this time."""

    def set_due(self, node: str, due: float) -> None:
        """Make *node* due at *due*, unless it is due earlier already.  Infinity sets nothing."""
        if due < self._due.get(node, math.inf):
            self._due[node] = due
            heapq.heappush(self._heap, (due, node))
            self.earliest = self._heap[0][0]

    def pop_due(self, now: float) -> Iterator[str]:
        """Yield each node that is due, and forget its due time."""
        while self._heap and self._heap[0][0] <= now:
            due, node = heapq.heappop(self._heap)
            self.earliest = self._heap[0][0] if self._heap else math.inf
            if self._due.get(node) == due:
                del self._due[node]
                yield node
