"""
The candidate index: the nodes that may do a workload's work, in lanes by how far they are proven.

A lane is sorted by (operator, node) and nothing else, so that a position in it means the same
in whatever order events came.  A decision asks a lane for a few positions, and never walks
through it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

from router.choose.affinity import Key, Ring

__all__ = [
    "FAIL_OPEN_LANES",
    "LANES",
    "CandidateIndex",
    "Key",
    "Lane",
    "LaneRecord",
    "RecordingIndex",
    "ReplayIndex",
    "SortedCandidates",
]


class Lane(StrEnum):
    """In the order of preference: a lane counts only if those before it cannot fill the ranking."""

    ESTABLISHED = "established"
    PROBATION = "probation"
    DEGRADED = "degraded"
    WARMING = "warming"
    """On probation, with as much in flight as the node's evidence allows."""
    BROKEN = "broken"
    """The node's breaker is open, or the node is silent: if all are, trying is better than refusing."""


LANES: Final = tuple(Lane)
FAIL_OPEN_LANES: Final = frozenset({Lane.WARMING, Lane.BROKEN})
"""A node from these lanes passes a gate that is closed to it, and the decision says so."""


class CandidateIndex(Protocol):
    """What a decision can ask of a lane."""

    def __len__(self) -> int:
        """How many nodes are in it."""

    def at(self, position: int) -> Key:
        """The node at a position."""

    @property
    def operators(self) -> int:
        """How many operators have nodes in it."""

    def nodes_of(self, number: int) -> int:
        """How many nodes an operator has in it; *number* is the operator's place in their order."""

    def node_of(self, number: int, position: int) -> Key:
        """The node at a position among an operator's nodes."""

    def count_of(self, operator: str) -> int:
        """How many nodes an operator has in it, by its name."""

    def near(self, key: str) -> tuple[Key, ...]:
        """The nodes near a key of affinity, the nearest first; none if the lane has no circle."""


class SortedCandidates:
    """
    A lane that events keep up to date.

    Args:
        ring: The circle of its nodes, if requests may have an affinity; empty.
    """

    __slots__ = ("_keys", "_nodes", "_operators", "_ring")

    def __init__(self, ring: Ring | None = None) -> None:
        self._ring = ring
        self._keys: list[Key] = []
        self._operators: list[str] = []
        self._nodes: dict[str, list[str]] = {}

    def __len__(self) -> int:
        """See `CandidateIndex`."""
        return len(self._keys)

    def at(self, position: int) -> Key:
        """See `CandidateIndex`."""
        return self._keys[position]

    @property
    def operators(self) -> int:
        """See `CandidateIndex`."""
        return len(self._operators)

    def nodes_of(self, number: int) -> int:
        """See `CandidateIndex`."""
        return len(self._nodes[self._operators[number]])

    def node_of(self, number: int, position: int) -> Key:
        """See `CandidateIndex`."""
        operator = self._operators[number]
        return operator, self._nodes[operator][position]

    def count_of(self, operator: str) -> int:
        """See `CandidateIndex`."""
        return len(self._nodes.get(operator, ()))

    def near(self, key: str) -> tuple[Key, ...]:
        """See `CandidateIndex`."""
        return () if self._ring is None else self._ring.near(key)

    def nodes(self) -> list[str]:
        """The nodes of the lane, in its order."""
        return [node for _, node in self._keys]

    def add(self, key: Key) -> None:
        """Put a node into the lane."""
        insort(self._keys, key)
        if self._ring is not None:
            self._ring.add(key)
        operator, node = key
        nodes = self._nodes.get(operator)
        if nodes is None:
            insort(self._operators, operator)
            self._nodes[operator] = [node]
        else:
            insort(nodes, node)

    def remove(self, key: Key) -> None:
        """Take a node out of the lane."""
        del self._keys[bisect_left(self._keys, key)]
        if self._ring is not None:
            self._ring.remove(key)
        operator, node = key
        nodes = self._nodes[operator]
        del nodes[bisect_left(nodes, node)]
        if not nodes:
            del self._nodes[operator]
            del self._operators[bisect_left(self._operators, operator)]


class QueuedCandidates(SortedCandidates):
    """Nodes in the order in which they came: who waits longest is at position 0."""

    __slots__ = ("_came", "_queue")

    def __init__(self) -> None:
        super().__init__()
        self._queue: list[tuple[float, Key]] = []
        self._came: dict[Key, float] = {}

    def at(self, position: int) -> Key:
        """See `CandidateIndex`."""
        return self._queue[position][1]

    def enqueue(self, key: Key, came: float) -> None:
        """Put in a node that came at *came*, in any unit of time; nodes that came at one time stand in their order."""
        self.add(key)
        self._came[key] = came
        insort(self._queue, (came, key))

    def count_before(self, key: Key, came: float) -> int:
        """How many came before a node that came at *came*."""
        return bisect_left(self._queue, (came, key))

    def remove(self, key: Key) -> None:
        """Take a node out."""
        super().remove(key)
        del self._queue[bisect_left(self._queue, (self._came.pop(key), key))]


class LaneRecord(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a decision saw of a lane: enough to replay it."""

    size: int
    operators: int
    at: dict[int, Key]
    nodes_of: dict[int, int]
    node_of: dict[str, Key]
    """By number of the operator and position, ``NUMBER/POSITION``."""
    count_of: dict[str, int] = {}
    """By name of the operator."""
    near: dict[str, tuple[Key, ...]] = {}
    """By key of affinity."""


class ReplayIndex:
    """A lane as a record has it.  Raises `KeyError` if something is asked that the decision did not ask."""

    def __init__(self, seen: LaneRecord) -> None:
        self._seen = seen
        self.operators = seen.operators

    def __len__(self) -> int:
        """See `CandidateIndex`."""
        return self._seen.size

    def at(self, position: int) -> Key:
        """See `CandidateIndex`."""
        return self._seen.at[position]

    def nodes_of(self, number: int) -> int:
        """See `CandidateIndex`."""
        return self._seen.nodes_of[number]

    def node_of(self, number: int, position: int) -> Key:
        """See `CandidateIndex`."""
        return self._seen.node_of[f"{number}/{position}"]

    def count_of(self, operator: str) -> int:
        """See `CandidateIndex`."""
        return self._seen.count_of[operator]

    def near(self, key: str) -> tuple[Key, ...]:
        """See `CandidateIndex`."""
        return self._seen.near[key]


class RecordingIndex:
    """A lane that records what it is asked."""

    __slots__ = ("_at", "_count_of", "_lane", "_near", "_node_of", "_nodes_of", "_size", "operators")

    def __init__(self, lane: CandidateIndex) -> None:
        self._lane = lane
        self._size = len(lane)
        self.operators = lane.operators
        self._at: dict[int, Key] = {}
        self._nodes_of: dict[int, int] = {}
        self._node_of: dict[tuple[int, int], Key] = {}
        self._count_of: dict[str, int] = {}
        self._near: dict[str, tuple[Key, ...]] = {}

    def __len__(self) -> int:
        """See `CandidateIndex`."""
        return self._size

    def at(self, position: int) -> Key:
        """See `CandidateIndex`."""
        key = self._at[position] = self._lane.at(position)
        return key

    def nodes_of(self, number: int) -> int:
        """See `CandidateIndex`."""
        count = self._nodes_of.get(number)
        if count is None:
            count = self._nodes_of[number] = self._lane.nodes_of(number)
        return count

    def node_of(self, number: int, position: int) -> Key:
        """See `CandidateIndex`."""
        key = self._node_of.get((number, position))
        if key is None:
            key = self._node_of[number, position] = self._lane.node_of(number, position)
        return key

    def count_of(self, operator: str) -> int:
        """See `CandidateIndex`."""
        count = self._count_of[operator] = self._lane.count_of(operator)
        return count

    def near(self, key: str) -> tuple[Key, ...]:
        """See `CandidateIndex`."""
        found = self._near[key] = self._lane.near(key)
        return found

    def record(self) -> LaneRecord:
        """What was asked, and the answers."""
        return LaneRecord(
            size=self._size,
            operators=self.operators,
            at=self._at,
            nodes_of=self._nodes_of,
            node_of={f"{number}/{position}": key for (number, position), key in self._node_of.items()},
            count_of=self._count_of,
            near=self._near,
        )
