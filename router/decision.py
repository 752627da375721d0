"""
Decisions: the ranked answer with every verdict and score term, as data.

`decide` is pure: the same snapshot, workload and seed give the same decision, today or in
an audit next year.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from router import gates, ranking
from router.gates import Verdict
from router.ranking import Ranked
from router.snapshot import NodeView, Snapshot
from router.workload import Workload


@dataclass(frozen=True)
class Decision:
    """Who may do this work, in which order, and why the others may not."""

    workload: Workload
    seed: int
    snapshot_version: int
    at_ms: int
    ranked: tuple[Ranked, ...]
    excluded: Mapping[str, Verdict]
    """The first gate that closed, for each node that may not."""
    opened: tuple[str, ...] = ()
    """Gates that failed open for want of anyone else, and let these nodes in."""

    @property
    def chosen(self) -> Ranked | None:
        """The first of the ranked."""
        return self.ranked[0] if self.ranked else None

    @property
    def gap(self) -> float | None:
        """How many expected seconds the runner-up is behind; negative where chance chose."""
        if len(self.ranked) < 2:
            return None
        return self.ranked[1].score - self.ranked[0].score

    def counts(self) -> dict[str, int]:
        """How many nodes each code excluded."""
        return dict(Counter(verdict.code for verdict in self.excluded.values()))

    def to_wire(self, *, full: bool = True) -> dict[str, Any]:
        """As JSON-compatible data; without *full*, the excluded are only counted."""
        wire: dict[str, Any] = {
            "workload": msgspec.to_builtins(self.workload),
            "seed": self.seed,
            "snapshot": self.snapshot_version,
            "at_ms": self.at_ms,
            "chosen": None if self.chosen is None else self.chosen.node,
            "runner_up_gap_s": self.gap,
            "ranked": msgspec.to_builtins(self.ranked),
            "excluded_counts": self.counts(),
            "failed_open": list(self.opened),
        }
        if full:
            wire["excluded"] = {node: msgspec.to_builtins(v) for node, v in self.excluded.items()}
        return wire


def decide(snapshot: Snapshot, workload: Workload, seed: int) -> Decision:
    """Gate, then rank.  An empty pool is an answer."""
    eligible: list[NodeView] = []
    broken: list[NodeView] = []
    excluded: dict[str, Verdict] = {}
    for node in snapshot.nodes.values():
        verdict = gates.check(node, workload, snapshot)
        if verdict is not None:
            excluded[node.node] = verdict
        elif (busy := gates.capacity(node, workload, snapshot)) is not None:
            excluded[node.node] = busy
            if busy.code == gates.BREAKER:
                broken.append(node)
        else:
            eligible.append(node)
    opened: tuple[str, ...] = ()
    if not eligible and broken:
        # Everybody who may be trusted seems broken: better to try than to refuse.
        eligible = broken
        opened = (gates.BREAKER,)
        for node in broken:
            del excluded[node.node]
    return Decision(
        workload=workload,
        seed=seed,
        snapshot_version=snapshot.version,
        at_ms=snapshot.now_ms,
        ranked=ranking.rank(eligible, workload, snapshot, seed),
        excluded=dict(sorted(excluded.items())),
        opened=opened,
    )
