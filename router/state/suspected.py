"""The part of the fleet that knows whose answers the verifier suspects, by model (docs/adr/0057)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.choose.candidates import Lane
from router.model.clock import Clock
from router.model.workload import Workload
from router.state.counted import CountedNodes
from router.state.placement import NodeEntry, Placement

_NONE: Final[frozenset[str]] = frozenset()


class SuspectedNodes(CountedNodes):
    """Nodes whose answers differ: their work for those models comes after everybody else's."""

    def __init__(
        self, entries: dict[str, NodeEntry], placement: Placement, clock: Clock, probe_every_s: float
    ) -> None:
        super().__init__(entries, placement, clock, probe_every_s)
        self._suspicions: dict[str, frozenset[str]] = {}
        """By node, also of those that have no result yet."""

    def set_suspected(self, node: str, model: str, *, is_suspected: bool) -> None:
        """Note that the verifier suspects a node's answers for a model, or no longer does."""
        before = self.suspected(node)
        models = before | {model} if is_suspected else before - {model}
        if models == before:
            return
        if models:
            self._suspicions[node] = models
        else:
            del self._suspicions[node]
        entry = self._entries.get(node)
        if entry is not None:
            entry.suspected = models
            self._placement.place_everywhere(entry)

    def use_suspicions(self, suspicions: Mapping[str, frozenset[str]]) -> None:
        """Take in all that the verifier suspects now: by node, the models."""
        for node in {*self._suspicions, *suspicions}:
            now = suspicions.get(node, _NONE)
            for model in self.suspected(node) ^ now:
                self.set_suspected(node, model, is_suspected=model in now)

    def suspected(self, node: str) -> frozenset[str]:
        """The models for which a node is suspected."""
        return self._suspicions.get(node, _NONE)

    def earned_lane(self, node: str, workload: Workload) -> Lane | None:
        """
        The lane in which a node would stand if it were suspected of nothing.

        That is what its operator is told: who hears at once that an answer was found wrong knows which was a check.
        """
        entry = self._entries.get(node)
        if entry is None or workload.model not in entry.suspected:
            pool = self._placement.pools.get(workload.name)
            return None if pool is None else pool.lane(node)
        return self._placement.earned_lane(entry, workload)
