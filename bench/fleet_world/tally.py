"""What is counted while the world runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from router.choose.candidates import Lane

BIN_S: Final = 4 * 3600.0


@dataclass
class Clients:
    """What those who ask see."""

    requests: int = 0
    completed: int = 0
    wrong: int = 0
    """Completed, and not by the weights that were asked for."""
    seconds: float = 0.0
    """In completed requests, with failed attempts before them."""

    @property
    def completion(self) -> float:
        """Share of requests completed."""
        return self.completed / max(self.requests, 1)

    @property
    def failing(self) -> float:
        """Share of requests lost."""
        return 1 - self.completion

    @property
    def mean_s(self) -> float:
        """Seconds of a completed request."""
        return self.seconds / max(self.completed, 1)

    @property
    def wrong_share(self) -> float:
        """Share of answers that are wrong."""
        return self.wrong / max(self.completed, 1)


@dataclass
class Recovery:
    """An honest node that lost its standing, and when it had it again."""

    why: str
    since: float
    held_s: float = 0.0
    back: float | None = None


@dataclass
class Tally:
    """Counts over the whole run."""

    ours: Clients = field(default_factory=Clients)
    uniform: Clients = field(default_factory=Clients)
    robin: Clients = field(default_factory=Clients)
    sent: Counter[str] = field(default_factory=Counter)
    """Attempts, by kind."""
    bins: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Attempts by kind, and by how long after its turning, in bins."""
    by_lane: Counter[tuple[str, Lane]] = field(default_factory=Counter)
    """Attempts by kind and by the lane in which the decision found the node."""
    in_bad_hours: Counter[str] = field(default_factory=Counter)
    to_silent: Counter[str] = field(default_factory=Counter)
    """Attempts at machines that were away."""
    away_s: Counter[str] = field(default_factory=Counter)
    """How long machines were away, by kind."""
    after_told: int = 0
    """Attempts at a node of which the router had been told that it was caught: none may be."""
    after_caught: int = 0
    """Attempts between the catch and the router's hearing of it, within a second."""
    holds_ours: int = 0
    """Settlement mismatches that were taken for a fault of our own count."""
    holds: int = 0
    waited_s: Counter[str] = field(default_factory=Counter)
    """How long enrolled nodes waited for the review of another of their operator's, by kind."""
    waited: Counter[str] = field(default_factory=Counter)
    recoveries: list[Recovery] = field(default_factory=list)
    wash: Counter[str] = field(default_factory=Counter)
    """Requests that the colluding operator paid for, by where they went."""
    empty: int = 0
    """Decisions with nobody in them."""
