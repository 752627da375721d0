"""
What nodes claim to have used, against what the router has counted.

The router counts with the model's own tokeniser, so an honest engine claims the same but for
special tokens and its chat template.  Within the tolerance nothing happens.  Beyond it an
answer is unclean.  A node that claims half as much again over many answers is a large
mismatch.  It is held only if the mismatch stands without the answers to any two of the clients:
what one client's requests can cause must hold no node.  Else a person is asked, and nobody is
held.  If nodes of several operators claim too much, and at least as many as do not, the
router's tokeniser is wrong, and nobody is held either.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

Part: TypeAlias = Literal["completion", "prompt"]
PARTS: Final[Mapping[Part, str]] = {"completion": "answers", "prompt": "prompts"}
"""Which tokens, and what people call them."""
ANSWERS: Final = 20
"""A node with fewer answers is not judged."""
WINDOW_S: Final = 86400.0
OPERATORS: Final = 3
"""From so many operators with a mismatch on, the router's own count may be what is wrong."""
CLIENTS: Final = 3
"""A hold rests on the answers to so many clients at least: it stands without any ``CLIENTS - 1`` of them."""
LEFT: Final = 5
"""So many answers at least must be left without those clients."""
_MAX_CLIENTS: Final = 64
"""Of each node.  What is claimed towards further clients within a window is not summed."""


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one answer."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.completion

    def to_wire(self) -> dict[str, int]:
        """As OpenAI's clients read it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.total,
        }


_NOTHING: Final = Usage(0, 0)
_Percent = Annotated[int, Meta(ge=0, le=10_000)]
_Tokens = Annotated[int, Meta(ge=0, le=10_000)]


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    ``[settlement.tolerance]``: how far a node's claims may be from what was counted.

    One rule for one answer, for the answers of a day, and for the claims of a period.
    """

    percent: _Percent = 25
    """Beyond this and the tokens below, claims are too high."""
    large_percent: _Percent = 50
    """Beyond this, on top of the tokens below, the mismatch is large: if it is confirmed, the node is held."""
    answer_tokens: _Tokens = 8
    """For each answer: special tokens, and text that an engine counts and then strips."""
    prompt_tokens: _Tokens = 64
    """For each prompt: the node adds a chat template to it."""

    def __post_init__(self) -> None:
        if self.large_percent < self.percent:
            raise ValueError("large_percent must be at least percent")

    def with_slack(self, counted: Usage, answers: int) -> Usage:
        """What was counted for so many answers, with the tokens that each may have on top."""
        return Usage(
            counted.prompt + self.prompt_tokens * answers, counted.completion + self.answer_tokens * answers
        )

    def excess(self, claimed: Usage, counted: Usage, answers: int = 1) -> tuple[Part, int] | None:
        """What is claimed too high, and by how many hundredths of a token; `None` if all is within the tolerance."""
        slack = self.with_slack(_NOTHING, answers)
        return _beyond(claimed, counted, slack, 100 + self.percent, 100)

    def large_excess(self, claimed: Usage, counted: Usage, answers: int = 1) -> tuple[Part, int] | None:
        """As `excess`, for a large mismatch."""
        slack = self.with_slack(_NOTHING, answers)
        return _beyond(claimed, counted, slack, 100 + self.large_percent, 100 + self.large_percent)


def _beyond(
    claimed: Usage, counted: Usage, slack: Usage, share: int, slack_share: int
) -> tuple[Part, int] | None:
    for part in PARTS:
        excess = 100 * of(claimed, part) - share * of(counted, part) - slack_share * of(slack, part)
        if excess > 0:
            return part, excess
    return None


USUAL: Final = Tolerance()


def is_true(claimed: Usage, counted: Usage, tolerance: Tolerance = USUAL) -> bool:
    """Whether what a node claims for one answer is what was counted, within the tolerance."""
    return tolerance.excess(claimed, counted) is None


@dataclass(frozen=True, kw_only=True)
class UsageMismatch:
    """A node claimed far more than it delivered."""

    answers: int
    what: str
    """What the tokens are of: ``answers`` or ``prompts``."""
    claimed: int
    allowed: int
    """Tokens that were counted, with the tolerance of each answer."""
    is_confirmed: bool
    """Whether the mismatch stands without any two of the clients."""
    router_is_wrong: bool
    """Whether nodes of several operators mismatch, so that the router's own count must be wrong."""


@dataclass
class _Sum:
    tolerance: Tolerance
    answers: int = 0
    claimed: Usage = _NOTHING
    counted: Usage = _NOTHING

    def add(self, claimed: Usage, counted: Usage) -> None:
        self.answers += 1
        self.claimed = plus(self.claimed, claimed)
        self.counted = plus(self.counted, counted)

    def excess(self, part: Part) -> int:
        """How far the claims are beyond a large mismatch, in hundredths of a token; negative if they are within."""
        allowed = self.tolerance.with_slack(self.counted, self.answers)
        return 100 * of(self.claimed, part) - (100 + self.tolerance.large_percent) * of(allowed, part)

    def large(self) -> Part | None:
        """What is claimed half as much again."""
        found = self.tolerance.large_excess(self.claimed, self.counted, self.answers)
        return None if found is None else found[0]


@dataclass
class _NodeSums:
    """What a node claimed in a window: all of it, and by client."""

    since: float
    tolerance: Tolerance
    total: _Sum = field(init=False)
    clients: dict[str, _Sum] = field(default_factory=dict)
    is_told: bool = False
    """Whether a mismatch that is not confirmed was told within this window."""

    def __post_init__(self) -> None:
        self.total = _Sum(self.tolerance)

    def add(self, client: str, claimed: Usage, counted: Usage) -> None:
        found = self.clients.get(client)
        if found is None:
            if len(self.clients) >= _MAX_CLIENTS:
                return
            found = self.clients[client] = _Sum(self.tolerance)
        found.add(claimed, counted)
        self.total.add(claimed, counted)

    def is_confirmed(self, part: Part) -> bool:
        """Whether it is so much also without the clients towards which most is claimed too much."""
        left = sorted(self.clients.values(), key=lambda each: each.excess(part))[: 1 - CLIENTS]
        return sum(each.answers for each in left) >= LEFT and sum(each.excess(part) for each in left) > 0


class UsageMeter:
    """What each node claimed, and what was counted, over a day or so.  Times are monotonic seconds."""

    def __init__(self, tolerance: Tolerance = USUAL) -> None:
        self._tolerance = tolerance
        self._sums: dict[str, _NodeSums] = {}
        self._mismatched: dict[str, float] = {}
        """By operator, when one of its nodes last had a confirmed mismatch."""
        self._matched: dict[str, float] = {}
        """By operator, when one of its nodes last had none, over enough answers."""

    def add(
        self, node: str, operator: str, client: str, claimed: Usage, counted: Usage, now: float
    ) -> UsageMismatch | None:
        """
        Count an answer.

        Args:
            client: Who asked: callers that may act together are one client.

        Returns:
            The mismatch if this answer makes it large, or confirms it.
        """
        found = self._sums.get(node)
        if found is None or now - found.since > WINDOW_S:
            found = self._sums[node] = _NodeSums(now, self._tolerance)
        found.add(client, claimed, counted)
        if found.total.answers < ANSWERS:
            return None
        part = found.total.large()
        if part is None:
            self._matched[operator] = now
            return None
        is_confirmed = found.is_confirmed(part)
        if is_confirmed:
            del self._sums[node]
            self._mismatched[operator] = now
        elif found.is_told:
            return None
        found.is_told = True
        return UsageMismatch(
            answers=found.total.answers,
            what=PARTS[part],
            claimed=of(found.total.claimed, part),
            allowed=of(self._tolerance.with_slack(found.total.counted, found.total.answers), part),
            is_confirmed=is_confirmed,
            router_is_wrong=is_confirmed and self._is_router_wrong(now),
        )

    def _is_router_wrong(self, now: float) -> bool:
        mismatched = {o for o, at in self._mismatched.items() if now - at <= WINDOW_S}
        matched = {o for o, at in self._matched.items() if now - at <= WINDOW_S} - mismatched
        return is_router_suspect(mismatched, matched)


def is_router_suspect(mismatched: AbstractSet[str], matched: AbstractSet[str]) -> bool:
    """Whether so many operators claim too much, next to those that do not, that our own count must be what is wrong."""
    return len(mismatched) >= OPERATORS and len(mismatched) >= len(matched)


def plus(*usages: Usage) -> Usage:
    """All together."""
    return Usage(sum(u.prompt for u in usages), sum(u.completion for u in usages))


def of(usage: Usage, part: Part) -> int:
    """One part of it."""
    return usage.completion if part == "completion" else usage.prompt
