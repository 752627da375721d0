"""Whether nodes that fail together fail for our sake, or for the network's."""

from __future__ import annotations

from collections import Counter
from typing import Final

LEAST_NODES: Final = 3
"""Fewer nodes say nothing."""
_LEAST_OPERATORS: Final = 3


def is_widespread(failing: Counter[str], others: Counter[str]) -> bool:
    """
    Whether so many nodes fail at once that the cause is not theirs: a proxy, a network, or the verifier itself.

    It is if they are more than half of all, and of several operators: an operator must not be able to make the
    calls to its own nodes void by dropping them together.  If there are fewer operators, it takes all of them.

    Args:
        failing: By operator, how many nodes fail.
        others: By operator, how many nodes do not.
    """
    count = failing.total()
    operators = len(failing.keys() | others.keys())
    return (
        count >= LEAST_NODES and count > others.total() and len(failing) >= min(_LEAST_OPERATORS, operators)
    )
