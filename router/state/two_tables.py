"""The part of the fleet that knows which table is in force, and which one decides beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from router.choose.gates import GateVerdict
from router.model.clock import Clock
from router.model.workload import Table, Workload
from router.state.placement import NodeEntry, Placement
from router.state.suspected import SuspectedNodes

_AT_ONCE: Final = 40
"""Judgements of a node for a workload before other work has its turn."""


class TwoTables(SuspectedNodes):
    """The nodes as the table in force places them, and as a candidate does."""

    def __init__(
        self,
        table: Table,
        entries: dict[str, NodeEntry],
        placement: Placement,
        clock: Clock,
        probe_every_s: float,
    ) -> None:
        super().__init__(entries, placement, clock, probe_every_s)
        self.table = table
        """In force."""
        self.candidate: Table | None = None
        """Decides beside it, once every node is placed by it."""
        self._placed: Table | None = None
        """The table by which nodes are being placed."""

    def use_table(self, table: Table) -> None:
        """Go by another table of workloads from now on."""
        self.table = table
        self._placement.use_table(table)
        for entry in self._entries.values():
            self._placement.count_in_flight(entry.key[0], entry.in_flight, pools=self._placement.pools)
            self._placement.check_gates(entry)

    async def use_candidate(self, table: Table) -> None:
        """Have a table decide beside the one in force; nodes are placed by it in steps, between which work goes on."""
        self.drop_candidate()
        self._placed = table
        self._placement.use_candidate(table, self._entries)
        nodes = list(self._entries)
        step = max(1, _AT_ONCE // (len(self.table.workloads) + len(table.workloads)))
        for first in range(0, len(nodes), step):
            for node in nodes[first : first + step]:
                self._placement.check_gates(self._entries[node])
            await asyncio.sleep(0)
            if self._placed is not table:
                return
        self.candidate = table

    def drop_candidate(self) -> None:
        """Have the table in force decide alone, at once."""
        self.candidate = self._placed = None
        if self._placement.candidate:
            self._placement.use_candidate(None, self._entries)

    def tables(self) -> tuple[str, ...]:
        """The digests of the tables that decide."""
        return (self.table.digest,) if self.candidate is None else (self.table.digest, self.candidate.digest)

    def excluded(self, workload: Workload, version: int | None = None) -> dict[str, GateVerdict]:
        """
        Every node that may not do the work, with the first gate that is closed to it.

        With *version*, as of that version; nodes whose history does not reach back to it are left out.
        """
        pool = self._placement.pool_of(workload)
        return {} if pool is None else pool.excluded(version)

    def shortfalls(self, workload: Workload) -> Counter[str]:
        """What nodes' results lack for the work now, and how many nodes lack it."""
        return self._placement.shortfalls(workload)

    def candidate_nodes(self) -> dict[str, int]:
        """How many nodes may do the work by the candidate, by workload."""
        return {name: pool.open for name, pool in self._placement.candidate.items()}

    def nodes_of_revision(self, revision: str, model: str) -> list[str]:
        """The nodes whose live result names a revision of a model."""
        return [node for node, entry in self._entries.items() if entry.view.revision(model) == revision]

    def promote_candidate(self) -> None:
        """Put the candidate in force, at once: its nodes are placed already."""
        assert self.candidate is not None
        self.table, self.candidate, self._placed = self.candidate, None, None
        self._placement.promote_candidate()
