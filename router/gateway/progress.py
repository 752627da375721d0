"""
How far a node has come with one request, and until when something must come of it.

All times are the event loop's, in seconds, and given: nothing here asks for the time.  The bounds are of
`router.model.allowance`; what follows when a bound is reached is here, too.
"""

from __future__ import annotations

from typing import Final

from router.model.allowance import Allowance
from router.model.errors import AttemptError
from router.model.outcomes import Outcome

_EARLY_S: Final = 0.002
"""A limit comes up so much too early at most."""


class Progress:
    """
    The progress of one attempt.

    Args:
        allowed: What the node is allowed for the request.
        began: When the attempt did.
        left_s: Seconds until the caller's time runs out.
        first_left_s: Seconds until the router's own patience does, without a text or a whole answer.
    """

    __slots__ = (
        "_life_at",
        "_text_at",
        "_text_due",
        "allowed",
        "began",
        "deadline",
        "first_token_s",
        "tokens",
        "waited_s",
        "was_gone",
    )

    def __init__(self, allowed: Allowance, *, began: float, left_s: float, first_left_s: float) -> None:
        self.allowed = allowed
        self.began = began
        self.deadline = began + left_s
        self._text_due = began + min(left_s, first_left_s, allowed.first_s)
        self._text_at = self._life_at = began
        """When the last text came, and the last sign of life."""
        self.first_token_s: float | None = None
        """Seconds until the first text."""
        self.tokens = 0
        """At least about so many have come."""
        self.waited_s = 0.0
        """Seconds that the client took to read."""
        self.was_gone = False
        """Whether the node was found to be gone."""

    @property
    def first_due(self) -> float:
        """When the first text, or a whole answer, must be there, if there is no sign of life meanwhile."""
        return self._text_due

    @property
    def allowance_s(self) -> float:
        """The same as seconds from the beginning."""
        return self._text_due - self.began

    def note_first_text(self, now: float) -> None:
        """Note that text came; only the first counts."""
        if self.first_token_s is None:
            self.first_token_s = now - self.began

    def note_text(self, now: float, tokens: int) -> float:
        """Note that text went on, so many tokens altogether; returns when something must come next."""
        self._text_at = now
        self.tokens = tokens
        return min(self.deadline, now + self.allowed.stall_s, self._behind_at())

    def note_life(self, now: float, due: float) -> float:
        """
        Note that something came that is no text: the node lives, and has more time, but not for ever.

        Returns:
            When something must come next, which was *due* until now.
        """
        self._life_at = now
        if self.first_token_s is None:
            bound = self.began + self.allowed.quiet_s
        else:
            bound = min(self._text_at + self.allowed.pause_s, self._behind_at())
        return max(due, min(now + self.allowed.stall_s, bound, self.deadline))

    def is_quiet(self, now: float) -> bool:
        """Whether there was no sign of life for as long as a node may take that is asked for nothing large."""
        return self.first_token_s is None and now - self._life_at >= self.allowed.base_s

    def lent_s(self, now: float) -> float:
        """Seconds beyond the time of any request that the node has used, by right."""
        bound = self.allowed.first_s if self._life_at == self.began else self.allowed.quiet_s
        return max(0.0, min(now - self.began, bound) - self.allowed.base_s)

    def error_without_text(self, now: float, what: str) -> AttemptError:
        """
        The error of an attempt whose time is over and that has no text; *what* is missing.

        What the caller's own time cuts is nobody's fault.  Otherwise the node is slow if it had at least half of
        the time that it is allowed: the attempts before it may have used up the rest.
        """
        if self.was_gone:
            return AttemptError(Outcome.STALLED, f"{what}, and the node answers no probes")
        waited_s = now - self.began
        is_slow = not self._is_callers(now) and waited_s * 2 >= self.allowed.first_s
        outcome = Outcome.STALLED if is_slow else Outcome.TIMED_OUT
        return AttemptError(outcome, f"{what} within {waited_s:.1f} s")

    def error_within_stream(self, now: float) -> AttemptError:
        """The error of a stream that has begun and whose time is over."""
        if self._is_callers(now):
            # Also if the node is slow: how much time there is was not its choice.
            return AttemptError(Outcome.TIMED_OUT, "the stream did not end before the time limit")
        if now >= self._behind_at() - _EARLY_S:
            since_s = now - self.began - (self.first_token_s or 0.0)
            return AttemptError(Outcome.STALLED, f"{self.tokens} tokens in {since_s:.1f} s")
        return AttemptError(
            Outcome.STALLED, f"nothing more for {now - max(self._text_at, self._life_at):.1f} s"
        )

    def _is_callers(self, now: float) -> bool:
        return now >= self.deadline - _EARLY_S

    def _behind_at(self) -> float:
        """When the stream is too slow, if no more text comes."""
        first = self.began + (self.first_token_s or 0.0) + self.waited_s
        return first + self.allowed.until_behind_s(self.tokens)
