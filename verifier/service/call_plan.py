"""When each node is called next: a heap of moments, and who is called together."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedNode:
    """What the plan knows of a node."""

    operator: str
    models: tuple[str, ...]


class CallPlan:
    """
    The moments of the next calls, by a monotonic clock in seconds.

    Args:
        rng: It must be unpredictable: a cheating node must not know the moments.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._nodes: dict[str, PlannedNode] = {}
        self._moments: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Every moment that was ever set, until it comes; one that differs from `_moments` counts no more."""
        self._by_operator: dict[str, set[str]] = {}
        self._group_sizes: Counter[tuple[str, str | None]] = Counter()
        """By operator and model, how many nodes there are."""
        self.needs_walk: set[str] = set()
        """Nodes whose next call must have a walk."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def moment(self, node_id: str) -> float:
        """The moment of a node's next call.  Raises `KeyError` if the node is not planned."""
        return self._moments[node_id]

    def moments(self) -> Mapping[str, float]:
        """The moments of all nodes."""
        return self._moments

    def replace_all(
        self, nodes: Mapping[str, PlannedNode], now: float, within_s: Mapping[str, float]
    ) -> None:
        """
        Plan these nodes and no others.  Those that are planned already keep their moments.

        Args:
            within_s: By node, within how many seconds it is called.
        """
        for node_id in self._nodes.keys() - nodes.keys():
            self.remove(node_id)
        for node_id, node in nodes.items():
            self.add(node_id, node, now, within_s[node_id])

    def add(self, node_id: str, node: PlannedNode, now: float, within_s: float) -> None:
        """Plan a node: at a moment within the next *within_s* seconds, unless it is planned already."""
        if self._nodes.get(node_id) == node:
            return
        self._leave(node_id)
        self._nodes[node_id] = node
        self._by_operator.setdefault(node.operator, set()).add(node_id)
        self._group_sizes.update((node.operator, model) for model in node.models)
        if node_id not in self._moments:
            self.set(node_id, now + self._rng.uniform(0, within_s))
            self.needs_walk.add(node_id)

    def remove(self, node_id: str) -> None:
        """Plan a node no longer."""
        self._leave(node_id)
        self._moments.pop(node_id, None)
        self.needs_walk.discard(node_id)

    def _leave(self, node_id: str) -> None:
        """Take a node out of its groups."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        members = self._by_operator[node.operator]
        members.discard(node_id)
        if not members:
            del self._by_operator[node.operator]
        for model in node.models:
            group = (node.operator, model)
            self._group_sizes[group] -= 1
            if not self._group_sizes[group]:
                del self._group_sizes[group]

    def set(self, node_id: str, moment: float) -> None:
        """Set the moment of a node's next call."""
        self._moments[node_id] = moment
        heapq.heappush(self._heap, (moment, node_id))
        if len(self._heap) > 4 * len(self._moments) + 64:
            self._heap = [(when, each) for each, when in self._moments.items()]
            heapq.heapify(self._heap)

    def due(self, now: float) -> list[str]:
        """Take the nodes whose moment has come.  Each needs a new moment."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            moment, node_id = heapq.heappop(self._heap)
            if self._moments.get(node_id) == moment:
                found.append(node_id)
        return found

    def models(self, node_id: str) -> tuple[str, ...]:
        """The models of a node; empty if it is not planned."""
        node = self._nodes.get(node_id)
        return () if node is None else node.models

    def operator(self, node_id: str) -> str | None:
        """The operator of a node; `None` if it is not planned."""
        node = self._nodes.get(node_id)
        return None if node is None else node.operator

    def group_size(self, node_id: str, model: str | None) -> int:
        """How many nodes of the node's operator have *model*, this one included."""
        node = self._nodes.get(node_id)
        return 1 if node is None else max(self._group_sizes.get((node.operator, model), 1), 1)

    def group(self, node_id: str, model: str | None) -> list[str]:
        """Give the nodes of the node's operator that have *model*, this one included."""
        node = self._nodes.get(node_id)
        members = () if node is None else self._by_operator[node.operator]
        return sorted(other for other in members if model in self._nodes[other].models) or [node_id]
