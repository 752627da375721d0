"""
A snapshot that is being taken: what its pages have told so far, and as of which event.

It outlives a broken connection: taking it goes on with the page at which it broke.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from router.state.feed_source import Incident
from verifier.incidents import HOLDING


class Snapshot:
    """
    What is known of a snapshot.

    Args:
        number: Of the newest event when its first page was read.  Events are followed from there.
        incidents: Those that were open after that.
        ended: Those that ended while nobody listened, of the ones whose end this router waits for.
    """

    def __init__(self, number: int, incidents: Sequence[Incident], ended: AbstractSet[str]) -> None:
        self.number = number
        self.after = ""
        """Nodes with ids up to this one have been told of."""
        self.accepted: set[str] = set()
        """Nodes with a result that was accepted."""
        self.ended = ended
        self.held: dict[str, frozenset[str]] = {}
        """By node, the incidents that hold it."""
        self.operators: dict[str, tuple[str, float]] = {}
        """By holding incident, the operator of its node, and when it was opened."""
        self._refused: set[str] = set()
        self._ends: list[str] = []
        self._numbers: list[int] = []
        for incident in incidents:
            if incident.node is not None and incident.state in HOLDING:
                self.held[incident.node] = self.held.get(incident.node, frozenset()) | {incident.id}
                if incident.operator is not None and incident.opened is not None:
                    self.operators[incident.id] = incident.operator, incident.opened

    def end_page(self, number: int, after: str | None) -> None:
        """Note that a page was taken in, as of event *number*, and the next begins after *after*; `None`: it was the last."""
        self._numbers.append(number)
        if after is not None and after > self.after:
            self._ends.append(after)
            self.after = after

    def refuse(self, node: str) -> None:
        """Note that a page's result could not be accepted."""
        self._refused.add(node)

    def covers(self, node: str, number: int) -> bool:
        """
        Whether the page that told of a node was read after an event, so that its result is newer than that.

        The event of a result that was refused may bring it in a better moment, once its key is known.
        """
        page = min(bisect_left(self._ends, node), len(self._numbers) - 1)
        return page >= 0 and number <= self._numbers[page] and node not in self._refused

    @property
    def newest(self) -> int:
        """The greatest number that a page was read after."""
        return max(self._numbers, default=self.number)
