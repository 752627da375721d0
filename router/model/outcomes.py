"""
How one execution at a node ended, and who is to blame for it.

The router decides both at the end of the execution, by where it failed.  Text that a node
supplies never decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Final


class Blame(StrEnum):
    """The party whose fault an outcome is.  Only the node's own faults change its standing."""

    NOBODY = "nobody"
    NODE = "node"
    CLIENT = "client"
    NETWORK = "network"
    ROUTER = "router"


class Outcome(StrEnum):
    """
    How an execution ended.

    The values are what records of decisions and clients see.  Two of them are older than the
    names that the code uses: `EMPTY` is ``hollow`` there, and `UNSUPPORTED` is ``unserved``.
    """

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
        """The party to blame."""
        return OUTCOMES[self][0]

    @property
    def may_move_on(self) -> bool:
        """Whether another node may be tried after this outcome."""
        return self not in (Outcome.COMPLETED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.ABANDONED)


OUTCOMES: Final[Mapping[Outcome, tuple[Blame, str]]] = {
    Outcome.COMPLETED: (Blame.NOBODY, "The answer is whole."),
    Outcome.CRASHED: (
        Blame.NODE,
        "There was no connection, a broken one, a redirect, a demand for credentials, or status 5xx.",
    ),
    Outcome.STALLED: (Blame.NODE, "No answer, or no further text, came in time."),
    Outcome.TRUNCATED: (Blame.NODE, "The answer ended before its text did."),
    Outcome.CORRUPTED: (
        Blame.NODE,
        "The status is 200, but the body is not such an answer, is too large, or has more than was asked for.",
    ),
    Outcome.IMPOSTOR: (
        Blame.NETWORK,
        "Another key answered at the node's address: what answered is not the node.",
    ),
    # A client must not be able to have a node ejected.
    Outcome.REFUSED: (Blame.CLIENT, "The node refused the request (status 400, 413, 415 or 422)."),
    Outcome.BUSY: (Blame.NOBODY, "The node has no room (status 429 or 503)."),
    Outcome.UNSUPPORTED: (
        Blame.NOBODY,
        "The node does not have this operation or model (status 404 or 405); perhaps no node has it.",
    ),
    Outcome.EMPTY: (
        Blame.NOBODY,
        "The answer is whole and has nothing in it; perhaps the request asks for just that.",
    ),
    Outcome.TIMED_OUT: (Blame.ROUTER, "The caller's time ran out, and the node was not slow."),
    Outcome.ABANDONED: (Blame.CLIENT, "The client went away, or did not read."),
}
"""For each outcome, who is to blame, and what it means."""


@dataclass(frozen=True, slots=True)
class Execution:
    """
    One execution at a node: how it ended, and what the router measured.

    Statistics of nodes are made from these records.  A new signal for the ranking begins with a
    field here.
    """

    outcome: Outcome
    seconds: float
    _: KW_ONLY
    is_clean: bool = True
    """Whether the node kept to the protocol and claimed the usage that was counted."""
    earns_credit: bool = True
    """Whether a good end counts for the node: not if its own operator sent the work."""
    first_token_s: float | None = None
    """Of a stream, seconds until the first token."""
    token_s: float | None = None
    """Of a stream, seconds for each token after the first."""


_REFUSALS: Final = frozenset({400, 413, 415, 422})
_BUSY: Final = frozenset({429, 503})
_UNSUPPORTED: Final = frozenset({404, 405})


def of_status(status: int) -> Outcome:
    """The outcome of a whole answer with this HTTP status."""
    if status == 200:
        return Outcome.COMPLETED
    if status in _BUSY:
        return Outcome.BUSY
    if status in _REFUSALS:
        return Outcome.REFUSED
    if status in _UNSUPPORTED:
        return Outcome.UNSUPPORTED
    # Redirects and demands for credentials are crashes too: a node must send neither.
    return Outcome.CRASHED
