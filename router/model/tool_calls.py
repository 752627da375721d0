"""
How well nodes call tools, next to each other (after OpenRouter's Auto Exacto).

A call is good if a tool that was offered can take it (`router.model.wishes`).  How often a model's
calls are good is its own affair.  So a node is compared with what is usual among the nodes for the same
work, and only a sure difference counts.  What is usual is the median over operators: many nodes give an
operator one voice.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from router.model.standing import wilson

ENOUGH_CALLS: Final = 10.0
"""Answers with calls; with fewer, neither a node nor an operator is judged."""
_LEAST: Final = 0.05
_MOST: Final = 4.0
"""Bounds of how far calls alone can move a node."""
_REFRESHED_AFTER: Final = 8
"""What is usual is found anew once one in so many operators may have changed."""


def compare_calls(calls: float, bad_calls: float, usual: float | None) -> float:
    """
    A node's share of good calls as a multiple of what is usual; 1 if it may be the usual share.

    Args:
        calls: Answers of the node that called tools, or had to.
        bad_calls: Those whose calls no tool could take.
        usual: The usual share of good ones; `None` if nobody knows.
    """
    if usual is None or calls < ENOUGH_CALLS:
        return 1.0
    low, high = wilson(calls - bad_calls, calls)
    nearest = min(max(usual, low), high)
    return min(max(nearest, _LEAST) / max(usual, _LEAST), _MOST)


class CallShares:
    """The good calls of each operator's nodes, and what is usual."""

    __slots__ = ("_by_operator", "_changes", "_usual")

    def __init__(self) -> None:
        self._by_operator: dict[str, tuple[float, float]] = {}
        self._changes = 0
        self._usual: float | None = None

    def add(self, operator: str, calls: float, bad_calls: float) -> None:
        """Add what changed at one of an operator's nodes; both may be negative."""
        before = self._by_operator.get(operator, (0.0, 0.0))
        after = before[0] + calls, before[1] + bad_calls
        if after[0] < ENOUGH_CALLS / 1000:
            self._by_operator.pop(operator, None)
        else:
            self._by_operator[operator] = after
        self._changes += 1

    @property
    def usual(self) -> float | None:
        """The usual share of good calls; `None` if no operator has enough calls."""
        if self._changes * _REFRESHED_AFTER > len(self._by_operator):
            self._changes = 0
            shares = [
                1 - min(max(bad / calls, 0.0), 1.0)
                for calls, bad in self._by_operator.values()
                if calls >= ENOUGH_CALLS
            ]
            self._usual = median(shares) if shares else None
        return self._usual
