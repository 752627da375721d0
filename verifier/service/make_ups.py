"""Calls that make up for others: for one that a node has missed, and for one that failed for our sake."""

from __future__ import annotations

import random
from collections.abc import Set as AbstractSet
from typing import Final

from verifier.service.call_plan import CallPlan

SOON_S: Final = 10.0
"""So soon a call is made up for at the latest, if it is the first in a row."""
_LEAST_S: Final = 1.0
_WATCHED_CALLS: Final = 20
"""As many right ones as make up for one missed call in the share that policies ask for (950 of 1,000)."""


class MakeUps:
    """
    Which nodes are to be called again soon, with a walk.

    The moment is secret, but soon: an honest hiccup costs seconds.  While a node goes on missing calls, the wait
    doubles.  A make-up call is never missed for want of a channel: then it waits until the node is back, and the
    node's ordinary call comes when it would have come.

    After a missed call, every one of the next twenty calls has a walk: a node that can walk only now and then must not
    live on the calls in between.

    Args:
        plan: Of the moments.
        rng: It must be unpredictable: a cheating node must not know the moments.
        longest_s: The longest wait.
    """

    def __init__(self, plan: CallPlan, rng: random.Random, longest_s: float) -> None:
        self._plan = plan
        self._rng = rng
        self._longest_s = longest_s
        self._ordinary: dict[str, float] = {}
        """By node whose make-up call is planned, the moment of its ordinary call."""
        self._missed: dict[str, tuple[float, float]] = {}
        """By node, when it last missed a call, and the wait of that time."""
        self._absent: set[str] = set()
        self._watched: dict[str, int] = {}
        """By node, how many of its next calls must have a walk."""

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._ordinary

    @property
    def absent(self) -> AbstractSet[str]:
        """The nodes whose make-up call waits until they are back."""
        return self._absent

    def owe(self, node_id: str, now: float, *, is_void: bool) -> None:
        """
        Plan a make-up call.

        Args:
            now: By a monotonic clock, in seconds.
            is_void: Whether the call failed for our sake.
        """
        self._absent.discard(node_id)
        if node_id not in self._plan:
            return
        self._plan.needs_walk.add(node_id)
        if not is_void:
            self._watched[node_id] = _WATCHED_CALLS
        wait_s = SOON_S if is_void else self._next_wait_s(node_id, now)
        moment = now + self._rng.uniform(_LEAST_S, max(wait_s, _LEAST_S))
        ordinary = self._ordinary.get(node_id, self._plan.moment(node_id))
        if moment < ordinary:
            self._ordinary[node_id] = ordinary
            self._plan.set(node_id, moment)

    def _next_wait_s(self, node_id: str, now: float) -> float:
        missed_at, wait_s = self._missed.pop(node_id, (now, 0.0))
        in_a_row = now - missed_at < 4 * self._longest_s
        wait_s = min(2 * wait_s, self._longest_s) if wait_s and in_a_row else min(SOON_S, self._longest_s)
        self._missed[node_id] = now, wait_s
        while len(self._missed) > len(self._plan):
            del self._missed[next(iter(self._missed))]
        return wait_s

    def wait_for(self, node_id: str, *, is_void: bool) -> None:
        """Have the make-up call of a node wait until the node is back."""
        if (ordinary := self._ordinary.pop(node_id, None)) is not None:
            self._plan.set(node_id, ordinary)
        if node_id in self._plan:
            self._absent.add(node_id)
            if not is_void:
                self._watched[node_id] = _WATCHED_CALLS

    def watches(self, node_id: str) -> bool:
        """Whether the next call to a node must have a walk because it has missed one."""
        return node_id in self._watched

    def begin(self, node_id: str) -> bool:
        """Note that a node is called now, whatever for; gives whether the call must have a walk."""
        self._ordinary.pop(node_id, None)
        self._absent.discard(node_id)
        left = self._watched.pop(node_id, 0)
        if left > 1:
            self._watched[node_id] = left - 1
        return left > 0

    def forget(self, node_id: str) -> None:
        """Forget a node that is planned no longer."""
        self.begin(node_id)
        self._watched.pop(node_id, None)
        self._missed.pop(node_id, None)
