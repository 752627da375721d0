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
    UNSERVED = "unserved"
    HOLLOW = "hollow"
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
    # It does not have this operation or model: perhaps nobody has, and the client knew.
    Outcome.UNSERVED: Blame.NOBODY,
    # A whole answer with nothing in it: perhaps the request wants just that.
    Outcome.HOLLOW: Blame.NOBODY,
    Outcome.TIMED_OUT: Blame.ROUTER,
    Outcome.ABANDONED: Blame.CLIENT,
}


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
        return Outcome.UNSERVED
    # Also redirects, and demands for credentials: nodes have no business with either.
    return Outcome.CRASHED
