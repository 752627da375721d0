"""The part of the fleet that counts its nodes, by workload."""

from __future__ import annotations

from router.state.probed import ProbedNodes


class CountedNodes(ProbedNodes):
    """How many nodes stand where, for people who ask."""

    def census(self) -> dict[str, dict[str, int]]:
        """How many nodes stand in each lane, by workload."""
        return {
            name: {str(lane): count for lane, count in pool.sizes.items()}
            for name, pool in self._placement.pools.items()
        }

    def closed(self, workload: str) -> dict[str, int]:
        """How many nodes each code keeps out of a workload."""
        return dict(self._placement.pools[workload].closed)

    def revisions(self, workload: str) -> dict[str, tuple[int, int]]:
        """See `WorkloadPool.count_revisions`."""
        return self._placement.pools[workload].count_revisions()

    def in_flight(self, node: str) -> int:
        """Requests that this router has in flight at a node."""
        entry = self._entries.get(node)
        return 0 if entry is None else sum(each.load.in_flight for each in entry.statistics.values())
