"""Whether the clock is right, after it was set: nodes that sign their time can tell."""

from __future__ import annotations

from typing import Final

_REMEMBERED: Final = 10_000
"""Nodes that are remembered until the doubt ends."""


class ClockDoubt:
    """
    What is not known after a step: whether the clock was right before it, or is right now.

    Until it is known, a node that we do not understand is not to blame.  The doubt ends if the clock is set to where it
    was, or if more of the nodes that were heard sign the time as it is now than as it was.

    Args:
        skew_ms: By how much the clock of a node may differ.
    """

    def __init__(self, skew_ms: int) -> None:
        self._skew_ms = skew_ms
        self._now: dict[bytes, None] = {}
        self._before: dict[bytes, None] = {}
        self.off_ms = 0
        """By how much the clock was set since it was last known to be right; 0 if there is no doubt."""

    def __bool__(self) -> bool:
        return self.off_ms != 0

    def take_step(self, step_ms: int) -> None:
        """Take in that the clock was set."""
        off_ms = self.off_ms + step_ms
        self._end()
        # Within what nodes are allowed, both are right enough.
        if abs(off_ms) > self._skew_ms:
            self.off_ms = off_ms

    def hear(self, kid: bytes, time_ms: int, now_ms: int) -> None:
        """Take in the time that a node has signed with its key."""
        if not self:
            return
        for heard, right_ms in ((self._now, now_ms), (self._before, now_ms - self.off_ms)):
            heard.pop(kid, None)
            if abs(time_ms - right_ms) <= self._skew_ms and len(heard) < _REMEMBERED:
                heard[kid] = None
        if len(self._now) > len(self._before):
            self._end()

    def _end(self) -> None:
        self.off_ms = 0
        self._now.clear()
        self._before.clear()
