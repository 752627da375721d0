"""
Lanes: the nodes that may do a workload's work, by how much is known to speak for them.

A lane is kept in the order of (operator, node) and nothing else, so that a place in it means
the same whatever order events came in.  A decision asks a lane for a few places and never walks through it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

Key = tuple[str, str]
"""Operator and node."""


class Lane(StrEnum):
    """In the order in which they are turned to: each only where those before it are empty."""

    ESTABLISHED = "established"
    PROBATION = "probation"
    DEGRADED = "degraded"
    WARMING = "warming"
    """On probation, with as much under way as its evidence allows."""
    BROKEN = "broken"
    """Its breaker is open, or it has gone silent: better to try than to refuse, where all are."""


LANES: Final = tuple(Lane)
FAIL_OPEN_LANES: Final = frozenset({Lane.WARMING, Lane.BROKEN})
"""Whoever is taken from these passes a gate that is closed, and the decision says so."""


class CandidateIndex(Protocol):
    """What a decision asks of a lane."""

    def __len__(self) -> int:
        """How many nodes stand in it."""

    def at(self, place: int) -> Key:
        """Who stands at a place."""

    @property
    def operators(self) -> int:
        """How many operators have nodes in it."""

    def nodes_of(self, number: int) -> int:
        """How many nodes an operator has in it, by its number in their order."""

    def node_of(self, number: int, place: int) -> Key:
        """Who stands at a place among the nodes of an operator."""


class SortedCandidates:
    """A lane that events keep."""

    __slots__ = ("_keys", "_nodes", "_operators")

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._operators: list[str] = []
        self._nodes: dict[str, list[str]] = {}

    def __len__(self) -> int:
        """As `CandidateIndex`."""
        return len(self._keys)

    def at(self, place: int) -> Key:
        """As `CandidateIndex`."""
        return self._keys[place]

    @property
    def operators(self) -> int:
        """As `CandidateIndex`."""
        return len(self._operators)

    def nodes_of(self, number: int) -> int:
        """As `CandidateIndex`."""
        return len(self._nodes[self._operators[number]])

    def node_of(self, number: int, place: int) -> Key:
        """As `CandidateIndex`."""
        operator = self._operators[number]
        return operator, self._nodes[operator][place]

    def add(self, key: Key) -> None:
        """A node comes to stand here."""
        insort(self._keys, key)
        operator, node = key
        nodes = self._nodes.get(operator)
        if nodes is None:
            insort(self._operators, operator)
            self._nodes[operator] = [node]
        else:
            insort(nodes, node)

    def remove(self, key: Key) -> None:
        """A node stands here no more."""
        del self._keys[bisect_left(self._keys, key)]
        operator, node = key
        nodes = self._nodes[operator]
        del nodes[bisect_left(nodes, node)]
        if not nodes:
            del self._nodes[operator]
            del self._operators[bisect_left(self._operators, operator)]


class LaneRecord(Struct, frozen=True, gc=False):
    """What a decision saw of a lane: enough to make it again."""

    size: int
    operators: int
    at: dict[int, Key]
    nodes_of: dict[int, int]
    node_of: dict[str, Key]
    """By number of the operator and place, ``NUMBER/PLACE``."""


class ReplayIndex:
    """A lane as a record remembers it; raises `KeyError` where something else is asked than was then."""

    def __init__(self, seen: LaneRecord) -> None:
        self._seen = seen
        self.operators = seen.operators

    def __len__(self) -> int:
        """As `CandidateIndex`."""
        return self._seen.size

    def at(self, place: int) -> Key:
        """As `CandidateIndex`."""
        return self._seen.at[place]

    def nodes_of(self, number: int) -> int:
        """As `CandidateIndex`."""
        return self._seen.nodes_of[number]

    def node_of(self, number: int, place: int) -> Key:
        """As `CandidateIndex`."""
        return self._seen.node_of[f"{number}/{place}"]


class RecordingIndex:
    """A lane that remembers what it was asked."""

    __slots__ = ("_at", "_lane", "_node_of", "_nodes_of", "_size", "operators")

    def __init__(self, lane: CandidateIndex) -> None:
        self._lane = lane
        self._size = len(lane)
        self.operators = lane.operators
        self._at: dict[int, Key] = {}
        self._nodes_of: dict[int, int] = {}
        self._node_of: dict[str, Key] = {}

    def __len__(self) -> int:
        """As `CandidateIndex`."""
        return self._size

    def at(self, place: int) -> Key:
        """As `CandidateIndex`."""
        key = self._at[place] = self._lane.at(place)
        return key

    def nodes_of(self, number: int) -> int:
        """As `CandidateIndex`."""
        count = self._nodes_of[number] = self._lane.nodes_of(number)
        return count

    def node_of(self, number: int, place: int) -> Key:
        """As `CandidateIndex`."""
        key = self._node_of[f"{number}/{place}"] = self._lane.node_of(number, place)
        return key

    def seen(self) -> LaneRecord:
        """What was asked, and what it answered."""
        return LaneRecord(self._size, self.operators, self._at, self._nodes_of, self._node_of)
