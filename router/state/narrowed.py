"""The nodes for one workload that also meet what one caller requires, in the lanes of the workload's own pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

from router.choose.candidates import LANES, Key, Lane, QueuedCandidates, SortedCandidates
from router.choose.gates import GateContext, GateVerdict
from router.choose.ranking import CandidateFacts
from router.choose.requirements import changes_in, find_unmet
from router.choose.trials import Stage
from router.model.node import NodeView
from router.model.requirements import CallerRequirements
from router.state.pool import WorkloadPool, make_lanes
from router.state.timers import Timers

_MOST_ASKED: Final = 1000


class NarrowedPool:
    """
    A `router.choose.ranking.Pool` of a workload's nodes that meet a caller's requirements.

    It only ever leaves out nodes that the workload's own pool has in its lanes.  It is told of every node that is
    judged or placed anew, as long as it is kept.

    Args:
        base: The workload's own pool.
        required: What the nodes must meet.
    """

    def __init__(self, base: WorkloadPool, required: CallerRequirements) -> None:
        self.base = base
        self.required = required
        self.lanes = make_lanes(base.workload)
        self.sizes = dict.fromkeys(LANES, 0)
        self._new, self._begun = QueuedCandidates(), SortedCandidates()
        self.stages: dict[Stage, SortedCandidates] = {Stage.NEW: self._new, Stage.BEGUN: self._begun}
        """See `Pool`."""
        self._stage_of: dict[str, Stage] = {}
        self.unmet: dict[str, int] = {}
        """How many nodes each code of the requirements keeps out, of those that nothing else may keep out."""
        self.met = 0
        """How many nodes meet the requirements, with room or without, of those that the workload's own gates let in."""
        self._short: dict[str, str] = {}
        """By node that was judged, the code of what it lacks; empty if it meets all."""
        self._stands: dict[str, tuple[Lane | None, str]] = {}
        """By node that meets them, its lane and the code of capacity that keeps it out."""
        self._full: dict[str, int] = {}
        self._timers = Timers(spread=0.0)

    def __len__(self) -> int:
        """How many nodes it keeps in mind."""
        return len(self._short)

    def __contains__(self, node: str) -> bool:
        """Whether a node was judged."""
        return node in self._short

    @property
    def is_listed(self) -> bool:
        """Whether the requirements name the nodes or operators that may meet them, so that no others are kept in mind."""
        return bool(self.required.nodes or self.required.operators)

    @property
    def usual_calls(self) -> float | None:
        """See `Pool`: of all nodes, because what is usual goes by many."""
        return self.base.usual_calls

    def facts(self, node: str) -> CandidateFacts:
        """See `Pool`."""
        return self.base.facts(node)

    def has_full_share(self, operator: str) -> bool:
        """See `Pool`."""
        return self.base.has_full_share(operator)

    @property
    def closed(self) -> dict[str, int]:
        """How many nodes each code keeps out, by the first that does."""
        found = {code: n for code, n in self.base.closed.items() if not code.startswith("capacity.")}
        for code, count in (*self.count_unmet().items(), *self._full.items()):
            found[code] = found.get(code, 0) + count
        return found

    def count_unmet(self) -> dict[str, int]:
        """How many nodes only the requirements keep out, by code."""
        unlisted = self.base.open - len(self._short)
        if not self.is_listed or unlisted <= 0:
            return dict(self.unmet)
        code = "requirements.node" if self.required.nodes else "requirements.operator"
        return {**self.unmet, code: self.unmet.get(code, 0) + unlisted}

    def may_list(self, view: NodeView) -> bool:
        """Whether a node is one of those that are kept in mind."""
        required = self.required
        return (not required.nodes or view.node in required.nodes) and (
            not required.operators or view.operator in required.operators
        )

    def judge(self, key: Key, view: NodeView, context: GateContext) -> None:
        """Take in that a node's own gates were asked anew, or that time has changed what it meets."""
        node = key[1]
        if self.base.closed_by.get(node, _UNKNOWN) is not None or not self.may_list(view):
            self.remove(key)
            return
        verdict = find_unmet(view, self.required, self.base.workload.model, context)
        code = "" if verdict is None else verdict.code
        self._note(node, code)
        if code:
            self._leave(key)
        else:
            self.follow(key, *self.base.stand(node))
        due = changes_in(view, self.required, self.base.workload.model, context)
        self._timers.set_due(node, context.monotonic + due)

    def follow(self, key: Key, lane: Lane | None, code: str) -> None:
        """Take in that the workload's pool has placed a node anew."""
        node = key[1]
        if self._short.get(node, "unknown"):
            return
        self._leave(key)
        self._stands[node] = lane, code
        if lane is not None:
            self.lanes[lane].add(key)
            self.sizes[lane] += 1
        stage = self.base.stage(node)
        if stage is Stage.NEW:
            self._new.enqueue(key, self.base.enrolled(node))
        elif stage is Stage.BEGUN:
            self._begun.add(key)
        if stage is not None:
            self._stage_of[node] = stage
        if code:
            self._full[code] = self._full.get(code, 0) + 1

    def remove(self, key: Key) -> None:
        """Forget a node."""
        self._leave(key)
        code = self._short.pop(key[1], None)
        if code is not None:
            self._count(code, -1)
            self._timers.set_due(key[1], float("inf"))

    def pop_due(self, now: float) -> Iterable[str]:
        """The nodes that must be judged anew by *now*, on the monotonic clock, because time alone changes what they meet."""
        return self._timers.pop_due(now) if now >= self._timers.earliest else ()

    def shortfalls(self, view_of: Callable[[str], NodeView], context: GateContext) -> Counter[str]:
        """What nodes lack that the caller requires, and how many lack it.  At most a thousand nodes are looked at."""
        found: Counter[str] = Counter()
        for node, code in islice(self._short.items(), _MOST_ASKED):
            if code:
                verdict = find_unmet(view_of(node), self.required, self.base.workload.model, context)
                found.update([verdict.detail] if verdict is not None else [])
        return found

    def verdicts(self, views: Mapping[str, NodeView], context: GateContext) -> dict[str, GateVerdict]:
        """Each node that the workload's gates let in and that does not meet the requirements, with what it lacks."""
        model = self.base.workload.model
        found = {
            node: find_unmet(view, self.required, model, context)
            for node, view in views.items()
            if self.base.closed_by.get(node, _UNKNOWN) is None
        }
        return {node: verdict for node, verdict in found.items() if verdict is not None}

    def _note(self, node: str, code: str) -> None:
        before = self._short.get(node)
        if before != code:
            if before is not None:
                self._count(before, -1)
            self._count(code, 1)
            self._short[node] = code

    def _count(self, code: str, change: int) -> None:
        if not code:
            self.met += change
            return
        count = self.unmet.get(code, 0) + change
        if count:
            self.unmet[code] = count
        else:
            del self.unmet[code]

    def _leave(self, key: Key) -> None:
        lane, code = self._stands.pop(key[1], (None, ""))
        if lane is not None:
            self.lanes[lane].remove(key)
            self.sizes[lane] -= 1
        if (stage := self._stage_of.pop(key[1], None)) is not None:
            self.stages[stage].remove(key)
        if code:
            count = self._full[code] - 1
            if count:
                self._full[code] = count
            else:
                del self._full[code]


_UNKNOWN: Final = GateVerdict("identity", "identity.unknown", "nothing is known of the node")
