"""
How one execution ended and who is to blame, decided by the router at its end.

Classified by where it failed, never by text that a node supplies.
"""

from __future__ import annotations

from enum import StrEnum


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
    TIMED_OUT = "timed-out"
    ABANDONED = "abandoned"

    @property
    def blame(self) -> Blame:
        """Who is to blame."""
        return _BLAME[self]

    @property
    def may_move_on(self) -> bool:
        """Whether another node may be tried."""
        return self not in (Outcome.COMPLETED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.ABANDONED)


_BLAME = {
    Outcome.COMPLETED: Blame.NOBODY,
    Outcome.CRASHED: Blame.NODE,
    Outcome.STALLED: Blame.NODE,
    Outcome.TRUNCATED: Blame.NODE,
    Outcome.CORRUPTED: Blame.NODE,
    # Another key answers at the node's address: whoever it is, it is not the node.
    Outcome.IMPOSTOR: Blame.NETWORK,
    # The node refused the request as such: a client must not be able to have a node ejected.
    Outcome.REFUSED: Blame.CLIENT,
    Outcome.BUSY: Blame.NOBODY,
    Outcome.TIMED_OUT: Blame.ROUTER,
    Outcome.ABANDONED: Blame.CLIENT,
}


def of_status(status: int) -> Outcome:
    """The outcome of a whole answer with this HTTP status."""
    if status == 200:
        return Outcome.COMPLETED
    if status in (429, 503):
        return Outcome.BUSY
    # It attested to this model, and does not serve it.
    if status == 404:
        return Outcome.CORRUPTED
    if 400 <= status < 500:
        return Outcome.REFUSED
    # Also redirects: nodes have no business sending work elsewhere.
    return Outcome.CRASHED
