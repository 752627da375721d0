"""
What nodes claim to have used, against what the router has counted.

The router counts with the model's own tokeniser, so an honest engine claims the same but for
special tokens and its chat template.  Within the tolerance nothing happens.  Beyond it an
answer is unclean.  A node that claims half as much again over many answers is held: a large
settlement mismatch is a gate.  But if nodes of several operators claim too much, and at
least as many as do not, the router's tokeniser is wrong, and nobody is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
    router_is_wrong: bool
    """Whether nodes of several operators mismatch, so that the router's own count must be wrong."""


@dataclass
class _Sum:
    since: float
    answers: int = 0
    claimed: Usage = _NOTHING
    allowed: Usage = _NOTHING
    """What was counted, with the tolerance of each answer."""

    def large(self) -> tuple[str, int, int] | None:
        """What is claimed half as much again: ``answers`` or ``prompts``, claimed and allowed tokens."""
        if self.claimed.completion > _LARGE_RATIO * self.allowed.completion:
            return "answers", self.claimed.completion, self.allowed.completion
        if self.claimed.prompt > _LARGE_RATIO * self.allowed.prompt:
            return "prompts", self.claimed.prompt, self.allowed.prompt
        return None


class UsageMeter:
    """What each node claimed, and what was counted, over a day or so.  Times are monotonic seconds."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._mismatched: dict[str, float] = {}
        """By operator, when one of its nodes last had a large mismatch."""
        self._matched: dict[str, float] = {}
        """By operator, when one of its nodes last had none, over enough answers."""

    def add(
        self, node: str, operator: str, claimed: Usage, counted: Usage, now: float
    ) -> UsageMismatch | None:
        """Count an answer; returns the mismatch if this answer makes it large."""
        found = self._sums.get(node)
        if found is None or now - found.since > WINDOW_S:
            found = self._sums[node] = _Sum(now)
        found.answers += 1
        found.claimed = _plus(found.claimed, claimed)
        found.allowed = _plus(found.allowed, counted, Usage(_TEMPLATE_TOKENS, _SLACK_TOKENS))
        if found.answers < ANSWERS:
            return None
        large = found.large()
        if large is None:
            self._matched[operator] = now
            return None
        del self._sums[node]
        self._mismatched[operator] = now
        mismatched = {o for o, at in self._mismatched.items() if now - at <= WINDOW_S}
        matched = {o for o, at in self._matched.items() if now - at <= WINDOW_S} - mismatched
        what, claimed_tokens, allowed_tokens = large
        return UsageMismatch(
            answers=found.answers,
            what=what,
            claimed=claimed_tokens,
            allowed=allowed_tokens,
            router_is_wrong=len(mismatched) >= OPERATORS and len(mismatched) >= len(matched),
        )


def _plus(*usages: Usage) -> Usage:
    return Usage(sum(u.prompt for u in usages), sum(u.completion for u in usages))
