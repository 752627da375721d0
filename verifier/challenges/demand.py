"""
How many challenges a fleet uses, and how long those that are left will last.  Pure.

Calls come at random moments, so a pool is sized for what is expected and a margin above it: three standard
deviations, with the variance of independent calls.  Nodes that are called together use challenges together, and
that widens the margin.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

KINDS: Final = ("read", "walk", "wide")
ANSWERS: Final = "answ"
"""Minted answers: routers use them, and not calls."""
_MARGIN: Final = 3.0
"""Standard deviations above what is expected: it is too little less than once in 700 times."""
_HOUR_S: Final = 3600.0


class CallSettings(Protocol):
    """The part of ``[calls]`` on which the demand depends (`verifier.config.CallsConfig`)."""

    @property
    def min_interval_s(self) -> float: ...  # noqa: D102
    @property
    def max_interval_s(self) -> float: ...  # noqa: D102
    @property
    def walk_share(self) -> float: ...  # noqa: D102
    @property
    def together_share(self) -> float: ...  # noqa: D102
    @property
    def wide_share(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class AlikeNodes:
    """Enrolled nodes that are alike in what decides how they are called."""

    operator: str
    models: tuple[str, ...]
    hardware_class: str
    count: int


@dataclass(frozen=True)
class Rate:
    """Challenges an hour: the mean, and the variance of one hour."""

    mean: float = 0.0
    variance: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.mean + other.mean, self.variance + other.variance)

    def within(self, hours: float) -> int:
        """How many challenges *hours* need, with the margin."""
        return math.ceil(self.mean * hours + _MARGIN * math.sqrt(self.variance * hours))

    def hours_of(self, free: int) -> float:
        """For how many hours *free* challenges last, with the margin; infinite if none are used."""
        if self.mean <= 0:
            return math.inf
        # The h for which `within(h)` is `free`.
        spread = _MARGIN * math.sqrt(self.variance)
        root = (math.sqrt(spread * spread + 4 * self.mean * free) - spread) / (2 * self.mean)
        return root * root


@dataclass(frozen=True)
class ModelDemand:
    """What the calls for one model use by kind, and how many sessions its nodes may announce."""

    rates: Mapping[str, Rate] = field(default_factory=dict)
    announced: float = 0.0
    """Announced sessions an hour at most; each uses a read and a walk.  The reserve is not for them."""
    operators: int = 0
    """How many operators have nodes with the model."""

    def rate(self, kind: str, *, has_wides: bool = True) -> Rate:
        """
        The rate of one kind.

        Args:
            has_wides: Whether there are wide walks; if not, ordinary walks are taken instead.
        """
        own = self.rates.get(kind, Rate())
        if has_wides or kind in ("read", ANSWERS):
            return own
        return Rate() if kind == "wide" else own + self.rates.get("wide", Rate())


Demand: TypeAlias = Mapping[str, ModelDemand]
"""By model."""


class _Tally:
    """Adds up rates by model and kind."""

    def __init__(self) -> None:
        self.rates: defaultdict[tuple[str, str], Rate] = defaultdict(Rate)

    def add(self, model: str, kind: str, events: float, each: float = 1.0) -> None:
        """Add *events* an hour, each of which uses *each* challenges at once."""
        self.rates[model, kind] += Rate(events * each, events * each * each)


def demand_of(
    calls: CallSettings,
    fleet: Sequence[AlikeNodes],
    wide_classes: Collection[str],
    *,
    announced_per_node: int = 0,
    announced_per_operator: int = 0,
    answers_per_node: float = 0.0,
    answers_taken: Mapping[str, float] | None = None,
) -> Demand:
    """
    What a fleet uses an hour, by model.

    Args:
        wide_classes: The hardware classes that can be asked wide walks; others get ordinary walks instead.
        announced_per_node: Sessions with challenges that a node may open itself, an hour.
        announced_per_operator: The same for all nodes of an operator.
        answers_per_node: Checks of answers that routers are expected to take of a node and model, an hour.
        answers_taken: Of a model, how many they took an hour of late: it counts if it is more.
    """
    sizes = _group_sizes(fleet)
    per_hour = 2 * _HOUR_S / (calls.min_interval_s + calls.max_interval_s)
    tally, together = _Tally(), defaultdict[tuple[str, str], float](float)
    for nodes in fleet:
        for chosen in nodes.models:
            due = per_hour * nodes.count / len(nodes.models)
            size = sizes[nodes.operator, chosen]
            share = calls.together_share / size if size > 1 else 0.0
            together[nodes.operator, chosen] += due * share
            _add_alone(
                tally, calls, nodes, chosen, due * (1 - share), can_wide=nodes.hardware_class in wide_classes
            )
    by_operator: defaultdict[str, list[AlikeNodes]] = defaultdict(list)
    for nodes in fleet:
        by_operator[nodes.operator].append(nodes)
    for (operator, chosen), events in together.items():
        _add_together(tally, by_operator[operator], chosen, events, wide_classes)
    for model, count in _counts(sizes).items():
        each = max(answers_per_node * count, (answers_taken or {}).get(model, 0.0))
        if each:
            tally.add(model, ANSWERS, each)
    return {
        model: ModelDemand(
            {kind: tally.rates[model, kind] for kind in (*KINDS, ANSWERS) if (model, kind) in tally.rates},
            _announced(sizes, model, announced_per_node, announced_per_operator),
            sum(1 for _, other in sizes if other == model),
        )
        for model in sorted({model for _, model in sizes})
    }


def _group_sizes(fleet: Iterable[AlikeNodes]) -> Mapping[tuple[str, str], int]:
    """By operator and model, how many nodes there are."""
    sizes: defaultdict[tuple[str, str], int] = defaultdict(int)
    for nodes in fleet:
        for model in nodes.models:
            sizes[nodes.operator, model] += nodes.count
    return sizes


def _counts(sizes: Mapping[tuple[str, str], int]) -> Mapping[str, int]:
    """By model, how many nodes there are of all operators."""
    counts: defaultdict[str, int] = defaultdict(int)
    for (_, model), size in sizes.items():
        counts[model] += size
    return counts


def _add_alone(
    tally: _Tally, calls: CallSettings, nodes: AlikeNodes, chosen: str, events: float, *, can_wide: bool
) -> None:
    """Add the calls to one node at a time (`verifier.service.calls`)."""
    walks = (1 - calls.wide_share) * calls.walk_share
    if can_wide:
        tally.add(chosen, "wide", events * calls.wide_share)
    else:
        walks += calls.wide_share
    for model in nodes.models:
        tally.add(model, "read", events)
        tally.add(model, "walk", events * walks)


def _add_together(
    tally: _Tally, members: Iterable[AlikeNodes], chosen: str, events: float, wide_classes: Collection[str]
) -> None:
    """Add the calls to all nodes of an operator that have the model *chosen*, at one moment."""
    used: defaultdict[tuple[str, str], int] = defaultdict(int)
    for nodes in members:
        if chosen not in nodes.models:
            continue
        is_wide = nodes.hardware_class in wide_classes
        if is_wide:
            used[chosen, "wide"] += nodes.count
        for model in nodes.models:
            used[model, "read"] += nodes.count
            used[model, "walk"] += 0 if is_wide else nodes.count
    for (model, kind), count in used.items():
        tally.add(model, kind, events, count)


def _announced(sizes: Mapping[tuple[str, str], int], model: str, per_node: int, per_operator: int) -> float:
    return float(
        sum(min(count * per_node, per_operator) for (_, other), count in sizes.items() if other == model)
    )


@dataclass(frozen=True, kw_only=True)
class Level:
    """How many challenges of one model and kind are left, and for how long."""

    model: str
    kind: str
    minted: int = 0
    """Ever, with those that are used."""
    free: int = 0
    """Of reference values in force, and of those that may come into force."""
    in_force: int = 0
    """Of the reference value in force."""
    hours: float = math.inf
    """For how many hours of calls to the enrolled fleet those in force last, with the margin."""


def levels_of(counts: Iterable[Level], demand: Demand) -> tuple[Level, ...]:
    """
    The levels with their hours, and those of models that have nodes and no challenges at all.

    Args:
        counts: What was counted, without hours.
    """
    found = {(level.model, level.kind): level for level in counts}
    for model, wanted in demand.items():
        for kind in KINDS:
            # Without wide walks, ordinary ones are taken: it is no lack if there are none.
            if kind != "wide" and wanted.rate(kind).mean > 0:
                found.setdefault((model, kind), Level(model=model, kind=kind))
    return tuple(
        Level(
            model=level.model,
            kind=level.kind,
            minted=level.minted,
            free=level.free,
            in_force=level.in_force,
            hours=_hours(level, found.get((level.model, "wide")), demand.get(level.model, ModelDemand())),
        )
        for _, level in sorted(found.items())
    )


def _hours(level: Level, wides: Level | None, wanted: ModelDemand) -> float:
    if level.kind == "wide" and not level.in_force:
        return math.inf
    has_wides = wides is not None and wides.in_force > 0
    return wanted.rate(level.kind, has_wides=has_wides).hours_of(level.in_force)
