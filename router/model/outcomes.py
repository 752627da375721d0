"""
How one execution ended and who is to blame, decided by the router at its end.

Classified by where it failed, never by text that a node supplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Blame(StrEnum):
    """Whose fault an outcome is.  Only the node's moves its standing."""

    NOBODY = "nobody"
    NODE = "node"
    CLIENT = "client"
    NETWORK = "network"
    ROUTER = "router"


class Outcome(StrEnum):
    """How an execution ended."""

    COMPLETED = "completed"
    CRASHED = "crashed"
    STALLED = "stalled"
    TRUNCATED = "truncated"
    CORRUPTED = "corrupted"
    IMPOSTOR = "impostor"
    REFUSED = "refused"
    BUSY = "busy"
    UNSUPPORTED = "unserved"
    EMPTY = "hollow"
    TIMED_OUT = "timed-out"
    ABANDONED = "abandoned"

    @property
    def blame(self) -> Blame:
        """Who is to blame."""
        return OUTCOMES[self][0]

    @property
    def may_move_on(self) -> bool:
        """Whether another node may be tried."""
        return self not in (Outcome.COMPLETED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.ABANDONED)


OUTCOMES: Final[Mapping[Outcome, tuple[Blame, str]]] = {
    Outcome.COMPLETED: (Blame.NOBODY, "A whole answer, to its end."),
    Outcome.CRASHED: (
        Blame.NODE,
        "No connection, a broken one, a redirect, a demand for credentials, or 5xx.",
    ),
    Outcome.STALLED: (Blame.NODE, "No answer, or no further text, in time."),
    Outcome.TRUNCATED: (Blame.NODE, "The answer ended, and its text had not."),
    Outcome.CORRUPTED: (
        Blame.NODE,
        "200 with what is no such answer, is too large, or goes on beyond what was asked for.",
    ),
    Outcome.IMPOSTOR: (
        Blame.NETWORK,
        "Another key answers at the node's address: whoever it is, it is not the node.",
    ),
    # A client must not be able to have a node ejected.
    Outcome.REFUSED: (Blame.CLIENT, "The node refused the request as such (400, 413, 415, 422)."),
    Outcome.BUSY: (Blame.NOBODY, "The node has no room (429, 503)."),
    Outcome.UNSUPPORTED: (
        Blame.NOBODY,
        "It does not have this operation or model (404, 405); perhaps nobody has.",
    ),
    Outcome.EMPTY: (Blame.NOBODY, "A whole answer with nothing in it: perhaps the request wants just that."),
    Outcome.TIMED_OUT: (Blame.ROUTER, "The caller's time was over, and the node was not slow."),
    Outcome.ABANDONED: (Blame.CLIENT, "The client went away, or did not read."),
}
"""Who is to blame for each, and what it is."""


_REFUSALS = frozenset({400, 413, 415, 422})
_BUSY = frozenset({429, 503})


def of_status(status: int) -> Outcome:
    """The outcome of a whole answer with this HTTP status."""
    if status == 200:
        return Outcome.COMPLETED
    if status in _BUSY:
        return Outcome.BUSY
    if status in _REFUSALS:
        return Outcome.REFUSED
    if status in (404, 405):
        return Outcome.UNSUPPORTED
    # Also redirects, and demands for credentials: nodes have no business with either.
    return Outcome.CRASHED
