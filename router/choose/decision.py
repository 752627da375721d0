"""
Decisions: the ranked answer with every verdict and score term, as data.

`decide` is pure: the same snapshot, workload and seed give the same decision.  A decision
remembers what it looked at, which is little, so that it can be made again from its record
alone, today or in an audit next year (`replay`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.choose.candidates import LANES, CandidateIndex, Lane, LaneRecord, RecordingIndex, ReplayIndex
from router.choose.gates import FAIL_OPEN_CODES, FEED_SILENT, FEED_SILENT_S, GateVerdict
from router.choose.ranking import CandidateFacts, Pool, Ranked, rank
from router.model.errors import ReplayError
from router.model.workload import Workload


class FleetView(Struct, frozen=True, gc=False):
    """Everything a decision rests on, at one moment."""

    version: int
    """Of who may do what."""
    now_ms: int
    pool: Pool
    closed: Mapping[str, int]
    """How many nodes each code excludes."""
    silent_s: float = 0.0
    """How long nothing was heard from the verifier."""


class Decision(Struct, frozen=True, gc=False):
    """Who may do this work, in which order, and why the others may not."""

    workload: Workload
    seed: int
    snapshot: int
    at_ms: int
    silent_s: float
    ranked: tuple[Ranked, ...]
    opened: tuple[str, ...]
    """Gates that failed open for want of anyone else, and let these nodes in."""
    over: tuple[str, ...]
    """Operators passed over, for they have their share of the work under way."""
    lanes: dict[str, int]
    """How many nodes stood in each."""
    closed: dict[str, int]
    """How many nodes each code excluded."""
    seen: dict[str, LaneRecord]
    """What was asked of each lane, and answered."""
    facts: dict[str, CandidateFacts]
    """Of each node that was drawn."""
    shares: dict[str, bool]
    """Of each operator that was drawn, whether it had its share."""

    @property
    def chosen(self) -> Ranked | None:
        """The first of the ranked."""
        return self.ranked[0] if self.ranked else None

    @property
    def gap(self) -> float | None:
        """How many expected seconds the runner-up is behind; negative where its lane or chance decided."""
        if len(self.ranked) < 2:
            return None
        return self.ranked[1].score - self.ranked[0].score

    def to_wire(self) -> dict[str, Any]:
        """As JSON-compatible data: `from_wire` reads it."""
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return wire | self.derived()

    def derived(self) -> dict[str, Any]:
        """What follows from the rest, for who reads the record."""
        return {"chosen": None if self.chosen is None else self.chosen.node, "runner_up_gap_s": self.gap}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Decision:
        """
        Read what `to_wire` wrote.

        Raises:
            ReplayError: it is no such thing.
        """
        try:
            decision = msgspec.convert(wire, cls, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise ReplayError(f"not a decision: {error}") from None
        for name, value in decision.derived().items():
            if wire.get(name) != value:
                raise ReplayError(f"not a decision: its {name} does not follow from its ranked")
        return decision


_NAMES: Final = tuple((lane, lane.value) for lane in LANES)


def decide(snapshot: FleetView, workload: Workload, seed: int) -> Decision:
    """Rank those who may.  An empty pool is an answer."""
    watched = _RecordingPool(snapshot.pool)
    sizes = {name: watched.sizes[lane] for lane, name in _NAMES}
    closed = dict(snapshot.closed)
    if snapshot.silent_s > FEED_SILENT_S:
        # Whatever was known may have been revoked meanwhile: nobody may, whoever has room or has not.
        closed = {code: count for code, count in closed.items() if code not in FAIL_OPEN_CODES}
        closed[FEED_SILENT] = sum(sizes.values())
        ranking = None
    else:
        ranking = rank(watched, workload, seed)
    return Decision(
        workload,
        seed,
        snapshot.version,
        snapshot.now_ms,
        snapshot.silent_s,
        () if ranking is None else ranking.ranked,
        () if ranking is None else ranking.opened,
        () if ranking is None else ranking.over,
        sizes,
        closed,
        watched.seen(),
        watched.known,
        watched.shares,
    )


def replay(decision: Decision) -> Decision:
    """
    Make a decision again from its record alone.

    Raises:
        ReplayError: another one comes out, or it would have looked at something else.
    """
    closed = {code: n for code, n in decision.closed.items() if code != FEED_SILENT}
    try:
        pool = _ReplayPool(decision)
        snapshot = FleetView(decision.snapshot, decision.at_ms, pool, closed, decision.silent_s)
        again = decide(snapshot, decision.workload, decision.seed)
    except (LookupError, ValueError, ArithmeticError):
        raise ReplayError("made again, it looks at something that the record does not have") from None
    for name in ("ranked", "opened", "over", "lanes", "closed"):
        if getattr(again, name) != getattr(decision, name):
            raise ReplayError(f"made again, its {name} differ")
    return again


class _RecordingPool:
    """A pool that remembers what it was asked."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # The empty ones have nothing to say.
        self.sizes = dict(pool.sizes)
        self._watched = {lane: RecordingIndex(pool.lanes[lane]) for lane, size in self.sizes.items() if size}
        self.lanes: dict[Lane, CandidateIndex] = {**pool.lanes, **self._watched}
        self.known: dict[str, CandidateFacts] = {}
        self.shares: dict[str, bool] = {}

    def facts(self, node: str) -> CandidateFacts:
        facts = self.known[node] = self._pool.facts(node)
        return facts

    def is_over(self, operator: str) -> bool:
        over = self.shares[operator] = self._pool.is_over(operator)
        return over

    def seen(self) -> dict[str, LaneRecord]:
        return {str(lane): watched.seen() for lane, watched in self._watched.items()}


class _ReplayPool:
    """A pool as a record remembers it."""

    def __init__(self, decision: Decision) -> None:
        nothing = LaneRecord(0, 0, {}, {}, {})
        self.lanes: dict[Lane, CandidateIndex] = {
            lane: ReplayIndex(decision.seen.get(lane.value, nothing)) for lane in LANES
        }
        self.sizes = {lane: len(places) for lane, places in self.lanes.items()}
        self._decision = decision

    def facts(self, node: str) -> CandidateFacts:
        return self._decision.facts[node]

    def is_over(self, operator: str) -> bool:
        return self._decision.shares[operator]


def explain_closed(verdicts: Mapping[str, GateVerdict]) -> dict[str, Any]:
    """Verdicts by node, as data."""
    return {node: msgspec.to_builtins(verdict) for node, verdict in sorted(verdicts.items())}
