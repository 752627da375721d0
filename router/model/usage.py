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
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from msgspec import Struct

ANSWERS: Final = 20
"""A node with fewer answers is not judged."""
WINDOW_S: Final = 86400.0
_SLACK: Final = 1.25
_SLACK_TOKENS: Final = 8
"""For each answer: special tokens, and text that an engine counts and then strips."""
_TEMPLATE_TOKENS: Final = 64
"""For each prompt: the node adds a chat template to it."""
_LARGE_RATIO: Final = 1.5
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


def is_true(claimed: Usage, counted: Usage) -> bool:
    """Whether what a node claims for one answer is what was counted, within the tolerance."""
    return (
        claimed.completion <= counted.completion * _SLACK + _SLACK_TOKENS
        and claimed.prompt <= counted.prompt * _SLACK + _TEMPLATE_TOKENS
    )


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


_Part: TypeAlias = Literal["completion", "prompt"]
_WHAT: Final[Mapping[_Part, str]] = {"completion": "answers", "prompt": "prompts"}


@dataclass
class _Sum:
    answers: int = 0
    claimed: Usage = _NOTHING
    allowed: Usage = _NOTHING
    """What was counted, with the tolerance of each answer."""

    def add(self, claimed: Usage, counted: Usage) -> None:
        self.answers += 1
        self.claimed = _plus(self.claimed, claimed)
        self.allowed = _plus(self.allowed, counted, Usage(_TEMPLATE_TOKENS, _SLACK_TOKENS))

    def excess(self, part: _Part) -> float:
        """How far the claims are beyond half as much again; negative if they are within."""
        return _of(self.claimed, part) - _LARGE_RATIO * _of(self.allowed, part)

    def large(self) -> _Part | None:
        """What is claimed half as much again."""
        return next((part for part in _WHAT if self.excess(part) > 0), None)


@dataclass
class _NodeSums:
    """What a node claimed in a window: all of it, and by client."""

    since: float
    total: _Sum = field(default_factory=_Sum)
    clients: dict[str, _Sum] = field(default_factory=dict)
    is_told: bool = False
    """Whether a mismatch that is not confirmed was told within this window."""

    def add(self, client: str, claimed: Usage, counted: Usage) -> None:
        found = self.clients.get(client)
        if found is None:
            if len(self.clients) >= _MAX_CLIENTS:
                return
            found = self.clients[client] = _Sum()
        found.add(claimed, counted)
        self.total.add(claimed, counted)

    def is_confirmed(self, part: _Part) -> bool:
        """Whether it is so much also without the clients towards which most is claimed too much."""
        left = sorted(self.clients.values(), key=lambda each: each.excess(part))[: 1 - CLIENTS]
        return sum(each.answers for each in left) >= LEFT and sum(each.excess(part) for each in left) > 0


class UsageMeter:
    """What each node claimed, and what was counted, over a day or so.  Times are monotonic seconds."""

    def __init__(self) -> None:
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
            found = self._sums[node] = _NodeSums(now)
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
            what=_WHAT[part],
            claimed=_of(found.total.claimed, part),
            allowed=_of(found.total.allowed, part),
            is_confirmed=is_confirmed,
            router_is_wrong=is_confirmed and self._is_router_wrong(now),
        )

    def _is_router_wrong(self, now: float) -> bool:
        mismatched = {o for o, at in self._mismatched.items() if now - at <= WINDOW_S}
        matched = {o for o, at in self._matched.items() if now - at <= WINDOW_S} - mismatched
        return len(mismatched) >= OPERATORS and len(mismatched) >= len(matched)


def _plus(*usages: Usage) -> Usage:
    return Usage(sum(u.prompt for u in usages), sum(u.completion for u in usages))


def _of(usage: Usage, part: _Part) -> int:
    return usage.completion if part == "completion" else usage.prompt
