"""
How long a node may take, by what it was asked for and by how fast it was seen to be.  Pure.

    first text of a stream   a base, and time for each token of the prompt
    a whole answer           the same, and time for each token that it may have
    the next text            a base; longer while the node shows that it lives, but not for ever
    the whole stream         as long as it goes on at a pace, however slow

Before a node was seen, a default goes for it.  What was seen moves that default tenfold at most, either
way: an hour's good pace must not make a busy node look dead, nor an hour's bad one hide a dead node
(docs/adr/0039).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

SLACK: Final = 4.0
"""A node may be so much slower than the slowest of what was seen of it: busy engines share their pace."""
ASSUMED_TOKENS: Final = 1024
"""Of a whole answer, if the request does not say how many there may be."""
LEAST_PACE: Final = 1.0
"""Tokens per second: a stream that is faster is never ended for being slow."""
SEEN_SHARE: Final = 0.99
"""What was seen of a node is this quantile of the last hour: nearly the slowest."""
LEAST_PROMPT: Final = 256
"""Tokens: the first text after a shorter prompt shows how long a node waits, and not how fast it reads."""
LEAST_ANSWER: Final = 16
"""Tokens: a shorter whole answer shows no pace."""
_BOUND: Final = 10.0


class Limits(Struct, frozen=True, kw_only=True, gc=False):
    """What the router allows every node.  Seconds."""

    first_s: float
    """For the first text of a stream, or for a whole answer, without what its size takes."""
    stall_s: float
    """Without a sign of life."""
    quiet_s: float
    """Without text, whatever signs of life there are."""
    token_s: float
    """For a token of an answer, of a node that was not seen yet."""
    prompt_token_s: float
    """The same for a token of a prompt."""


class Seen(Struct, frozen=True, gc=False):
    """How slow a node was seen to be for a tier in the last hour, in seconds; `None` if too little was seen."""

    token_s: float | None = None
    """For a token of an answer."""
    prompt_token_s: float | None = None
    """For a token of a prompt."""


class Size(Struct, frozen=True, kw_only=True, gc=False):
    """How much work a request is, in tokens."""

    prompt: int
    answer: int | None
    """At most, all answers together; `None` if the request does not say."""
    answers: int = 1
    """How many answers there are to be."""


class Allowance(Struct, frozen=True, kw_only=True, gc=False):
    """What one node is allowed for one request.  Seconds."""

    first_s: float
    """Until the first text of a stream, or a whole answer."""
    base_s: float
    """How much of it any request has."""
    extra_s: float
    """How much of it is for the size of this one."""
    stall_s: float
    quiet_s: float
    """Until the first text in spite of signs of life: it is not less than *first_s*."""
    pause_s: float
    """The same between one text and the next."""
    slowest_s: float
    """For each token of a stream."""

    def until_behind_s(self, tokens: float) -> float:
        """Seconds after the first text at which a stream with so many tokens is too slow."""
        return self.pause_s + tokens * self.slowest_s


def allow(limits: Limits, seen: Seen, size: Size, *, is_streamed: bool) -> Allowance:
    """What a node is allowed for a request of this size."""
    extra_s = size.prompt * _paced(limits.prompt_token_s, seen.prompt_token_s)
    if not is_streamed:
        extra_s += _whole_s(limits, seen, size)
    first_s = limits.first_s + extra_s
    return Allowance(
        first_s=first_s,
        base_s=limits.first_s,
        extra_s=extra_s,
        stall_s=limits.stall_s,
        quiet_s=max(first_s, limits.quiet_s + extra_s),
        pause_s=max(limits.stall_s, limits.quiet_s),
        slowest_s=max(1 / LEAST_PACE, SLACK * (seen.token_s or 0.0)),
    )


def _whole_s(limits: Limits, seen: Seen, size: Size) -> float:
    token_s = _paced(limits.token_s, seen.token_s)
    if size.answer is None:
        # It may be much longer than is assumed, so that a good pace takes nothing from it.
        return ASSUMED_TOKENS * size.answers * max(token_s, limits.token_s)
    return size.answer * token_s


def _paced(default_s: float, seen_s: float | None) -> float:
    if seen_s is None:
        return default_s
    return min(max(SLACK * seen_s, default_s / _BOUND), default_s * _BOUND)
