"""
What nodes claim to have used, against what the router has counted.

The router counts with the model's own tokeniser, so an honest engine claims the same but for
special tokens and its chat template.  Within the tolerance nothing happens; beyond it an
answer is unclean; and who claims half as much again over many answers is held: a large
settlement mismatch is a gate.  Where nodes of several operators come to be so, and no fewer
than are not, it is our tokeniser that is wrong, and nobody is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ANSWERS: Final = 20
"""Fewer say nothing of a node."""
WINDOW_S: Final = 86400.0
_SLACK: Final = 1.25
_SLACK_TOKENS: Final = 8
"""For one answer: special tokens, and an engine that counts what it stripped."""
_TEMPLATE_TOKENS: Final = 64
"""A prompt's chat template is the node's to add."""
_MAJOR: Final = 1.5
OPERATORS: Final = 3
"""So many with a mismatch within the window, and no fewer than are without, and it is ours."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt: int
    completion: int

    def to_wire(self) -> dict[str, int]:
        """As OpenAI's clients read it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


def is_true(claimed: Usage, counted: Usage) -> bool:
    """Whether what a node claims for one answer is what was counted, within the tolerance."""
    return (
        claimed.completion <= counted.completion * _SLACK + _SLACK_TOKENS
        and claimed.prompt <= counted.prompt * _SLACK + _TEMPLATE_TOKENS
    )


@dataclass
class _Sum:
    since: float
    answers: int = 0
    claimed: Usage = Usage(0, 0)
    allowed: Usage = Usage(0, 0)
    """What was counted, with what each answer may have beyond it."""

    def large(self) -> tuple[str, int, int] | None:
        """What is claimed half as much again, answers or prompts, each by itself: claimed and allowed for."""
        if self.claimed.completion > _MAJOR * self.allowed.completion:
            return "answers", self.claimed.completion, self.allowed.completion
        if self.claimed.prompt > _MAJOR * self.allowed.prompt:
            return "prompts", self.claimed.prompt, self.allowed.prompt
        return None


class UsageMeter:
    """What each node claimed and was counted for, over a day or so.  Monotonic seconds."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._beyond: dict[str, float] = {}
        """When an operator's nodes were last found beyond the threshold."""
        self._within: dict[str, float] = {}
        """Likewise within it, over enough answers."""

    def add(
        self, node: str, operator: str, claimed: Usage, counted: Usage, now: float
    ) -> UsageMismatch | None:
        """Count an answer; gives the mismatch, where this one makes it large."""
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
            self._within[operator] = now
            return None
        del self._sums[node]
        self._beyond[operator] = now
        beyond = {o for o, at in self._beyond.items() if now - at <= WINDOW_S}
        within = {o for o, at in self._within.items() if now - at <= WINDOW_S} - beyond
        ours = len(beyond) >= OPERATORS and len(beyond) >= len(within)
        return UsageMismatch(found.answers, *large, ours=ours)


def _plus(*usages: Usage) -> Usage:
    return Usage(sum(u.prompt for u in usages), sum(u.completion for u in usages))


@dataclass(frozen=True)
class UsageMismatch:
    """Far more was claimed than was delivered."""

    answers: int
    what: str
    """Of what: answers, or prompts."""
    claimed: int
    allowed: int
    """Tokens that were counted, with the tolerance of each answer."""
    ours: bool
    """Nodes of several operators are so: our count is what is wrong."""
