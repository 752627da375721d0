"""
How one execution at a node ended, and who is to blame for it.

The router decides both at the end of the execution, by where it failed.  Text that a node
supplies never decides anything.

    Failure   why there was no answer; each has its outcome (`FAILURES`)
    Outcome   how the execution ended; each has its blame (`OUTCOMES`)

All blame goes by these two tables (docs/adr/0030).
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
    UNHONOURED = "unhonoured"
    TIMED_OUT = "timed-out"
    ABANDONED = "abandoned"
    UNREACHABLE = "unreachable"
    NOT_ALLOWED = "not-allowed"
    NOT_ADMITTED = "not-admitted"
    HINDERED = "hindered"

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
    Outcome.UNHONOURED: (
        Blame.NOBODY,
        "The answer is whole and does not keep to a setting of the request; perhaps the model cannot.",
    ),
    Outcome.TIMED_OUT: (
        Blame.ROUTER,
        "The time that the caller gave was over, or earlier attempts had used it up.",
    ),
    Outcome.ABANDONED: (Blame.CLIENT, "The client went away, or did not read."),
    # Who stands between the router and the node cannot be told from the node itself, so nothing is held against it.
    Outcome.UNREACHABLE: (
        Blame.NETWORK,
        "No way led to the node: there is no route to it, or no name server told its address.",
    ),
    Outcome.NOT_ALLOWED: (
        Blame.ROUTER,
        "This router's configuration does not let it connect to the node's address.",
    ),
    Outcome.NOT_ADMITTED: (
        Blame.NOBODY,
        "The node serves the routers that it knows, and may not know this one yet.",
    ),
    Outcome.HINDERED: (
        Blame.ROUTER,
        "The router itself could not: no sockets, no memory, not registered, too late, or it was stopping.",
    ),
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
    is_unrated: bool = False
    """
    Whether it leaves no trace in the standing, good or bad.

    Checks are booked as work is, or an operator could tell the two apart by its standing.  So that they earn nothing,
    as many executions as there are checks are drawn by lot, and those are unrated (docs/adr/0057).
    """
    is_blamed: bool = False
    """Whether it turned out to be the node's fault, although its outcome alone does not say so."""
    is_further: bool = False
    """Whether it failed at one moment with another execution that was counted already."""
    first_token_s: float | None = None
    """Of a stream, seconds until the first token."""
    token_s: float | None = None
    """Of a stream, seconds for each token after the first."""
    whole_token_s: float | None = None
    """Of a whole answer, seconds for each token, if there were enough."""
    prompt_token_s: float | None = None
    """Of a stream, seconds until the first token for each token of the prompt, if there were enough."""
    size_share: float = 1.0
    """
    The tier's usual exchange as a share of this one, at most 1.

    Objectives compare like with like: a duration counts as this share of itself.
    """
    calls_are_valid: bool | None = None
    """Whether the tools were called as they can be; `None` if there was no call to look at."""


CERTIFICATE_STATUSES: Final = frozenset({495, 496})
"""nginx's numbers for a client's certificate that is wrong or missing: it completes the handshake in any case."""
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


class Failure(StrEnum):
    """Why a node gave no answer, to work or to a probe."""

    CONNECTION_REFUSED = "connection-refused"
    CONNECTION_LOST = "connection-lost"
    TLS_FAILED = "tls-failed"
    NOT_HTTP = "not-http"
    NAME_UNKNOWN = "name-unknown"
    SILENT = "silent"
    ANOTHER_KEY = "another-key"
    CERTIFICATE_REFUSED = "certificate-refused"
    NO_CONNECTION_IN_TIME = "no-connection-in-time"
    NO_ROUTE = "no-route"
    NO_NAME_SERVER = "no-name-server"
    CERTIFICATE_NEW = "certificate-new"
    NOT_REGISTERED = "not-registered"
    ADDRESS_REFUSED = "address-refused"
    NO_SOCKETS = "no-sockets"
    NO_MEMORY = "no-memory"
    NO_PORTS = "no-ports"
    FORBIDDEN_HERE = "forbidden-here"
    OUR_TLS = "our-tls"
    LATE_HERE = "late-here"
    DROPPED_HERE = "dropped-here"
    STOPPING = "stopping"
    UNFORESEEN = "unforeseen"

    @property
    def outcome(self) -> Outcome:
        """The outcome of an execution that fails so."""
        return FAILURES[self][0]

    @property
    def sentence(self) -> str:
        """What happened."""
        return FAILURES[self][1]

    @property
    def is_silence(self) -> bool:
        """Whether a probe that fails so shows that the node does not answer."""
        return self not in _NO_PROBE


FAILURES: Final[Mapping[Failure, tuple[Outcome, str]]] = {
    Failure.CONNECTION_REFUSED: (Outcome.CRASHED, "The node's machine refused the connection."),
    Failure.CONNECTION_LOST: (Outcome.CRASHED, "The node closed or reset the connection before it answered."),
    Failure.TLS_FAILED: (Outcome.CRASHED, "The node did not complete the TLS handshake."),
    Failure.NOT_HTTP: (Outcome.CRASHED, "What the node sent is not HTTP."),
    # Its domain is the node's affair, as long as the names of others are found at the same time.
    Failure.NAME_UNKNOWN: (
        Outcome.CRASHED,
        "The node's name was not found, and the names of other nodes were.",
    ),
    Failure.SILENT: (Outcome.STALLED, "The node took the connection and sent nothing in time."),
    Failure.ANOTHER_KEY: (Outcome.IMPOSTOR, "Another key answered at the node's address."),
    # Nodes read the verifier's list each minute.  Counts once another node has completed the same request.
    Failure.CERTIFICATE_REFUSED: (
        Outcome.CRASHED,
        "The node refused this router's certificate, which the verifier has listed for two minutes.",
    ),
    # Counts once another node has completed the same request: if the way out is cut, no node completes any.
    Failure.NO_CONNECTION_IN_TIME: (Outcome.CRASHED, "There was no connection in time."),
    # Routers on the way report it too, so a node could choose it.  It gains what it would gain by saying 503.
    Failure.NO_ROUTE: (Outcome.UNREACHABLE, "There is no route to the node's address from here."),
    Failure.NO_NAME_SERVER: (Outcome.UNREACHABLE, "No name server told the node's address."),
    Failure.CERTIFICATE_NEW: (
        Outcome.NOT_ADMITTED,
        "The node refused this router's certificate, and it is new, or whether it is still listed is being asked.",
    ),
    Failure.NOT_REGISTERED: (
        Outcome.HINDERED,
        "The node serves registered routers alone, and this router is not registered at the verifier.",
    ),
    Failure.ADDRESS_REFUSED: (
        Outcome.NOT_ALLOWED,
        "[gateway] allow_private keeps this router from the node's address.",
    ),
    Failure.NO_SOCKETS: (Outcome.HINDERED, "The router has no file descriptors left (EMFILE, ENFILE)."),
    Failure.NO_MEMORY: (Outcome.HINDERED, "The router's machine has no memory or no threads left."),
    Failure.NO_PORTS: (
        Outcome.HINDERED,
        "The router's machine has no local port or address left for the connection.",
    ),
    Failure.FORBIDDEN_HERE: (
        Outcome.HINDERED,
        "The router's machine forbids the connection (EPERM, EACCES).",
    ),
    Failure.OUR_TLS: (Outcome.HINDERED, "The router's own TLS settings allow no handshake."),
    Failure.LATE_HERE: (Outcome.HINDERED, "The time ran out while the router itself stood still."),
    Failure.DROPPED_HERE: (
        Outcome.HINDERED,
        "The answers that the router was reading were too large together.",
    ),
    Failure.STOPPING: (Outcome.HINDERED, "The router was stopping."),
    # If another node completes the same request, it was this node's answer that the router could not take.
    Failure.UNFORESEEN: (Outcome.HINDERED, "The router failed in a way that nobody foresaw."),
}
"""For each failure, the outcome of an execution that fails so, and what happened."""

_NO_PROBE: Final = frozenset(
    failure for failure, (outcome, _) in FAILURES.items() if outcome.blame is Blame.ROUTER
) | {Failure.NO_ROUTE, Failure.NO_NAME_SERVER, Failure.CERTIFICATE_NEW}
"""
After these a probe has shown no silence of its node: it never came as far as the node's address, or the node did not
know yet who asks.
"""
