"""
The order in which people should look at what waits for them: the most doubtful and the most costly first.

Whatever waits is in some state meanwhile, and that state may be wrong: an honest node without work, or a node at fault
that goes on.  What an hour of waiting is expected to cost is the probability that the state is wrong, times what an hour
of it costs, times the number of nodes.  What has waited longer has cost more, so nothing waits for ever.

The probability that a node is at fault begins with a prior for each kind.  It moves with what people have found before
about the same code (a Beta distribution; an operator counts once), and with the operators that pass and fail at the same
thing of ours.  This module is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

PRIORS: Final[Mapping[str, float]] = {
    "model-integrity": 0.95,
    "identity-spoofing": 0.95,
    "evidence-forgery": 0.95,
    "answer-mismatch": 0.9,
    "settlement-mismatch": 0.8,
    "answers-suspected": 0.8,
    "answers-moved": 0.4,
    "answers-scored": 0.4,
    "settlement-minor": 0.6,
    "settlement-unconfirmed": 0.4,
    "dispatch-failures": 0.3,
    "reporter-suspect": 0.3,
    "reference-suspect": 0.2,
    "token-count-suspect": 0.05,
    "change-stopped": 0.05,
}
"""By kind, how probable it is at first that a node is at fault.  `UNKNOWN` for kinds that are not named."""
UNKNOWN: Final = 0.5
PRIOR_WEIGHT: Final = 8.0
"""The prior counts as much as so many operators of whom people have found something."""
FOUND_MS: Final = 90 * 24 * 3_600_000
"""What people have found within this time counts."""
TIMED_MS: Final = 30 * 24 * 3_600_000
"""The times of decisions are those of this time."""
QUANTILES: Final = (0.5, 0.9)
"""Of these times."""
_HOUR_MS: Final = 3_600_000


class Fault(StrEnum):
    """Whose fault it was, as a person found: the node's, or ours."""

    NODE = "node"
    OURS = "ours"
    UNCLEAR = "unclear"


class Costs(Struct, frozen=True):
    """What an hour of a wrong state costs for one node, in a unit of your own: only their ratio matters."""

    held: float
    """An honest node gets no work."""
    trusted: float
    """A node at fault gets work."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Something that waits for a person."""

    id: str
    kind: str
    code: str
    since_ms: int
    due_ms: int
    nodes: int = 1
    """How many nodes it is about."""
    held: bool = False
    """Whether they get no work meanwhile."""
    at_fault: int = 0
    """Operators whose nodes people have found at fault by the same code of late."""
    not_at_fault: int = 0
    """Operators whose nodes they have not: it was our fault."""
    others_failed: int = 0
    """Other operators that fail at the same thing of ours."""
    passed: int = 0
    """Operators that pass at it."""


@dataclass(frozen=True, kw_only=True)
class Priority:
    """Where in the queue something belongs, with every term."""

    confidence: float
    """How probable it is that the nodes are at fault."""
    cost_per_hour: float
    """What an hour of waiting is expected to cost."""
    cost: float
    """What waiting has cost so far, and what the next hour will."""

    def to_wire(self) -> dict[str, float]:
        """As JSON."""
        return {
            "confidence": round(self.confidence, 3),
            "cost_per_hour": round(self.cost_per_hour, 3),
            "cost": round(self.cost, 2),
        }


def quantile(times: Sequence[int], share: float) -> int:
    """Of sorted times, the one that the share *share* of them is below."""
    return times[min(int(share * len(times)), len(times) - 1)]


def rate(waiting: Waiting, costs: Costs, now_ms: int) -> Priority:
    """What leaving something as it is is expected to cost."""
    prior = PRIORS.get(waiting.kind, UNKNOWN)
    found = waiting.at_fault + waiting.not_at_fault
    confidence = (PRIOR_WEIGHT * prior + waiting.at_fault) / (PRIOR_WEIGHT + found)
    # Where others fail too, the thing of ours is in doubt, and where others pass it is not.
    confidence *= (waiting.passed + 1) / (waiting.passed + waiting.others_failed + 1)
    wrong = (1 - confidence) * costs.held if waiting.held else confidence * costs.trusted
    per_hour = wrong * waiting.nodes
    hours = max(now_ms - waiting.since_ms, 0) / _HOUR_MS
    return Priority(confidence=confidence, cost_per_hour=per_hour, cost=per_hour * (hours + 1))


def in_order(queue: Iterable[Waiting], costs: Costs, now_ms: int) -> list[tuple[Waiting, Priority]]:
    """The queue with what to look at first in front."""
    rated = [(each, rate(each, costs, now_ms)) for each in queue]
    return sorted(rated, key=lambda pair: (-pair[1].cost, pair[0].since_ms, pair[0].id))


def to_wire(waiting: Waiting, priority: Priority, now_ms: int) -> dict[str, Any]:
    """An entry of a queue as JSON: the inputs stand beside what follows from them, so that anyone can compute it again."""
    return {
        "id": waiting.id,
        "kind": waiting.kind,
        "code": waiting.code,
        "nodes": waiting.nodes,
        "held": waiting.held,
        "waiting_s": max(now_ms - waiting.since_ms, 0) // 1000,
        "review_due_in_s": (waiting.due_ms - now_ms) // 1000,
        **priority.to_wire(),
        "found_before": {"at_fault": waiting.at_fault, "not_at_fault": waiting.not_at_fault},
        "operators": {"others_failed": waiting.others_failed, "passed": waiting.passed},
    }
