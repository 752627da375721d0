"""
Decisions: the ranked answer with every verdict and every term of the scores, as data.

`decide` is pure: the same fleet, workload and seed give the same decision.  A decision records
what it looked at, which is little.  So it can be made again from its record alone, today or in
an audit next year (`replay`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from router.choose import first_rule
from router.choose.affinity import Affinity
from router.choose.candidates import LANES, CandidateIndex, LaneRecord, RecordingIndex, ReplayIndex
from router.choose.choice import Choice
from router.choose.gates import FAIL_OPEN_CODES, FEED_SILENT, FEED_SILENT_S, GateVerdict
from router.choose.ranking import CandidateFacts, Pool, Ranked, Ranking, rank
from router.choose.trials import STAGES, Stage
from router.model.errors import ReplayError
from router.model.requirements import CallerRequirements
from router.model.workload import Workload


class FleetView(Struct, frozen=True, gc=False):
    """Everything that a decision rests on, at one moment."""

    version: int
    """Of the fleet: it counts changes of who may do what."""
    now_ms: int
    pool: Pool
    closed: Mapping[str, int]
    """How many nodes each code excludes."""
    silent_s: float = 0.0
    """Seconds since the verifier was last heard."""
    required: CallerRequirements | None = None
    """What the caller itself requires: the pool and the counts are of nodes that meet it."""
    met: int | None = None
    """How many nodes meet that, with room or without, of those that the workload's own gates let in."""
    table: str = ""
    """The digest of the table that the workload is of; empty if nobody has written it."""
    arm: str = ""
    """Which of two tables that is, an `Arm`, while another is tried beside the one in force."""


class Decision(Struct, frozen=True, gc=False):
    """Which nodes may do this work, in which order, and why the others may not."""

    workload: Workload
    seed: int
    snapshot: int
    at_ms: int
    silent_s: float
    ranked: tuple[Ranked, ...]
    opened: tuple[str, ...]
    """Gates that failed open because no other node was left."""
    over: tuple[str, ...]
    """Operators that were passed over, because they have their share of the work in flight."""
    lanes: dict[str, int]
    """How many nodes were in each lane."""
    closed: dict[str, int]
    """How many nodes each code excluded."""
    seen: dict[str, LaneRecord]
    """What was asked of each lane, and its answers."""
    facts: dict[str, CandidateFacts]
    """What was known of each node that was drawn."""
    shares: dict[str, bool]
    """For each operator that was drawn, whether it had its share."""
    has_tools: bool = False
    """Whether the work may call tools: then it counts how well nodes do."""
    usual_calls: float | None = None
    """The share of good calls that was usual."""
    required: CallerRequirements | None = None
    """What the caller itself required."""
    met: int | None = None
    """See `FleetView`."""
    choice: Choice | None = None
    """Where the seed comes from; `None`: this router drew it alone."""
    stages: dict[str, LaneRecord] = {}
    """What was asked of those on probation, by how far they have come, and the answers; empty by the first rule."""
    table: str = ""
    """The digest of the table of workloads that decided."""
    arm: str = ""
    """``active`` or ``candidate`` while another table is tried; otherwise empty."""
    rule: int = 1
    """By which rule it was made: `RULE` of that time.  Records that do not say are of the first."""
    affinity: Affinity | None = None
    """What the key of affinity of the request was worth; `None`: it had none."""

    @property
    def chosen(self) -> Ranked | None:
        """The first of the ranked."""
        return self.ranked[0] if self.ranked else None

    @property
    def is_unmet(self) -> bool:
        """Whether nodes might do the work, and none of them meets what the caller itself requires."""
        if self.ranked or self.met != 0 or FEED_SILENT in self.closed:
            return False
        return any(code.startswith("requirements.") for code in self.closed)

    @property
    def gap(self) -> float | None:
        """How many expected seconds the second is behind; negative if its lane or a random draw decided."""
        if len(self.ranked) < 2:
            return None
        return self.ranked[1].score - self.ranked[0].score

    def to_wire(self) -> dict[str, Any]:
        """As JSON-compatible data: `from_wire` reads it."""
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return wire | self.derived()

    def derived(self) -> dict[str, Any]:
        """What follows from the rest, for people who read the record."""
        return {"chosen": None if self.chosen is None else self.chosen.node, "runner_up_gap_s": self.gap}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Decision:
        """
        Read what `to_wire` wrote.

        Raises:
            ReplayError: it is not a decision.
        """
        try:
            decision = msgspec.convert(wire, cls, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise ReplayError(f"not a decision: {error}") from None
        for name, value in decision.derived().items():
            if wire.get(name) != value:
                raise ReplayError(f"not a decision: its {name} does not follow from its ranked")
        return decision


RULE: Final = 2
"""Counts the rules by which decisions were made, so that a record is made again by its own."""
_NAMES: Final = tuple((lane, lane.value) for lane in LANES)
_EMPTY_RANKING: Final = Ranking(())


def decide(
    view: FleetView,
    workload: Workload,
    seed: int,
    *,
    has_tools: bool = False,
    choice: Choice | None = None,
    rule: int = RULE,
    affinity: str | None = None,
) -> Decision:
    """
    Rank the nodes that may do the work.  An empty ranking is an answer.

    Args:
        view: What is known.
        workload: What the work requires.
        seed: For all that is drawn.
        has_tools: Whether the work may call tools.
        choice: Where the seed comes from, if the caller had a part in it.
        rule: By which rule: an old one only to make an old decision again.
        affinity: The key by which requests that begin alike find the same node.
    """
    pool = _RecordingPool(view.pool)
    sizes = {name: pool.sizes[lane] for lane, name in _NAMES}
    closed = dict(view.closed)
    if view.silent_s > FEED_SILENT_S:
        # Any result may have been revoked meanwhile: no node may do the work, with room or without.
        closed = {code: count for code, count in closed.items() if code not in FAIL_OPEN_CODES}
        closed[FEED_SILENT] = sum(sizes.values())
        ranking = _EMPTY_RANKING
    else:
        by_rule = rank if rule == RULE else first_rule.rank
        ranking = by_rule(pool, workload, seed, has_tools=has_tools, affinity=affinity)
    return Decision(
        workload=workload,
        seed=seed,
        snapshot=view.version,
        at_ms=view.now_ms,
        silent_s=view.silent_s,
        ranked=ranking.ranked,
        opened=ranking.opened,
        over=ranking.over,
        lanes=sizes,
        closed=closed,
        seen=pool.records(),
        facts=pool.known,
        shares=pool.shares,
        has_tools=has_tools,
        usual_calls=pool.usual_calls if has_tools else None,
        required=view.required,
        met=view.met,
        choice=choice,
        table=view.table,
        arm=view.arm,
        stages={} if rule < RULE else pool.stage_records(),
        rule=rule,
        affinity=ranking.affinity,
    )


def replay(decision: Decision) -> Decision:
    """
    Make a decision again from its record alone.

    Raises:
        ReplayError: another decision comes out, it asks something that the record does not have, a ranked node is
            none that the caller allowed, or the seed does not follow from the commitment and the caller's nonce.
    """
    if decision.choice is not None:
        decision.choice.check(decision.seed)
    _check_required(decision)
    if not 1 <= decision.rule <= RULE:
        raise ReplayError(f"the decision was made by rule {decision.rule}, and this version has 1 to {RULE}")
    closed = {code: n for code, n in decision.closed.items() if code != FEED_SILENT}
    try:
        pool = _ReplayPool(decision)
        view = FleetView(
            version=decision.snapshot,
            now_ms=decision.at_ms,
            pool=pool,
            closed=closed,
            silent_s=decision.silent_s,
            required=decision.required,
            met=decision.met,
            table=decision.table,
            arm=decision.arm,
        )
        again = decide(
            view,
            decision.workload,
            decision.seed,
            has_tools=decision.has_tools,
            choice=decision.choice,
            rule=decision.rule,
            affinity=None if decision.affinity is None else decision.affinity.key,
        )
    except (LookupError, ValueError, ArithmeticError):
        raise ReplayError("made again, the decision asks something that the record does not have") from None
    if decision.rule < RULE:
        # Records of the first rule do not say the prices that they went by.
        plain = tuple(structs.replace(ranked, price=None) for ranked in again.ranked)
        again = structs.replace(again, ranked=plain)
    for name in ("ranked", "opened", "over", "lanes", "closed", "affinity"):
        if getattr(again, name) != getattr(decision, name):
            raise ReplayError(f"made again, the decision's {name} differ")
    return again


def _check_required(decision: Decision) -> None:
    """Compare the ranked nodes with what the caller required, as far as the record shows it.  Raises `ReplayError`."""
    required = decision.required
    if required is None:
        return
    for ranked in decision.ranked:
        facts = decision.facts.get(ranked.node)
        revision = "" if facts is None else facts.revision
        for what, value, allowed, excluded in (
            ("node", ranked.node, required.nodes, required.not_nodes),
            ("operator", ranked.operator, required.operators, required.not_operators),
            ("reference value", revision, required.reference, ()),
        ):
            if (allowed and value not in allowed) or value in excluded:
                raise ReplayError(f"the caller's requirements exclude the {what} {value!r} of a ranked node")


class _RecordingPool:
    """A pool that records what it is asked."""

    __slots__ = ("_asked", "_pool", "known", "lanes", "shares", "sizes", "stages", "usual_calls")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.usual_calls = pool.usual_calls
        self.sizes = dict(pool.sizes)
        self.lanes = {lane: RecordingIndex(pool.lanes[lane]) for lane, size in self.sizes.items() if size}
        self.stages: Mapping[Stage, CandidateIndex] = pool.stages
        self._asked: dict[Stage, RecordingIndex] = {}
        for stage in STAGES:
            if len(index := pool.stages[stage]):
                self._asked[stage] = RecordingIndex(index)
        if self._asked:
            self.stages = {**pool.stages, **self._asked}
        self.known: dict[str, CandidateFacts] = {}
        self.shares: dict[str, bool] = {}

    def facts(self, node: str) -> CandidateFacts:
        facts = self.known[node] = self._pool.facts(node)
        return facts

    def has_full_share(self, operator: str) -> bool:
        full = self.shares[operator] = self._pool.has_full_share(operator)
        return full

    def stage_records(self) -> dict[str, LaneRecord]:
        return {stage.value: recording.record() for stage, recording in self._asked.items()}

    def records(self) -> dict[str, LaneRecord]:
        return {lane.value: recording.record() for lane, recording in self.lanes.items()}


class _ReplayPool:
    """A pool as a record has it."""

    def __init__(self, decision: Decision) -> None:
        empty = LaneRecord(size=0, operators=0, at={}, nodes_of={}, node_of={})
        self.lanes = {lane: ReplayIndex(decision.seen.get(lane.value, empty)) for lane in LANES}
        self.sizes = {lane: len(index) for lane, index in self.lanes.items()}
        self.stages = {stage: ReplayIndex(decision.stages.get(stage.value, empty)) for stage in STAGES}
        self.usual_calls = decision.usual_calls
        self._decision = decision

    def facts(self, node: str) -> CandidateFacts:
        return self._decision.facts[node]

    def has_full_share(self, operator: str) -> bool:
        return self._decision.shares[operator]


def explain_closed(verdicts: Mapping[str, GateVerdict]) -> dict[str, Any]:
    """Verdicts by node, as data."""
    return {node: msgspec.to_builtins(verdict) for node, verdict in sorted(verdicts.items())}
