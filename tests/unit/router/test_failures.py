"""The table of failures: each error has one, each failure has an outcome, and what is ours moves no node."""

from __future__ import annotations

import errno
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from router.gateway.failures import classify
from router.gateway.lateness import TimeAllowed, is_late_here
from router.gateway.pinned import (
    AddressError,
    GuardedResolver,
    LookupFailedError,
    MalformedURLError,
    PinError,
)
from router.model.errors import AttemptError
from router.model.load import BREAKER_OPEN_S, Load
from router.model.outcomes import FAILURES, Blame, Execution, Failure, Outcome
from router.model.standing import Standing
from tests.unit.router.support import TICKS

PLACE = ConnectionKey("node.test", 443, True, True, None, None, None)


def connecting(error: OSError) -> aiohttp.ClientConnectorError:
    """As the connector raises it."""
    return aiohttp.ClientConnectorError(PLACE, error)


def of_ssl(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


ERRORS = [
    (connecting(ConnectionRefusedError(errno.ECONNREFUSED, "")), Failure.CONNECTION_REFUSED),
    (connecting(ConnectionResetError(errno.ECONNRESET, "")), Failure.CONNECTION_LOST),
    (aiohttp.ServerDisconnectedError(), Failure.CONNECTION_LOST),
    (aiohttp.ClientOSError(errno.EPIPE, ""), Failure.CONNECTION_LOST),
    (of_ssl("TLSV1_ALERT_INTERNAL_ERROR"), Failure.TLS_FAILED),
    (of_ssl("WRONG_VERSION_NUMBER"), Failure.TLS_FAILED),
    (PinError("another key"), Failure.ANOTHER_KEY),
    (ValueError("not HTTP"), Failure.NOT_HTTP),
    (aiohttp.ClientPayloadError("cut"), Failure.NOT_HTTP),
    (TimeoutError(), Failure.SILENT),
    (aiohttp.ConnectionTimeoutError("late"), Failure.NO_CONNECTION_IN_TIME),
    (connecting(TimeoutError(errno.ETIMEDOUT, "")), Failure.NO_CONNECTION_IN_TIME),
    *(
        (connecting(OSError(n, "")), Failure.NO_ROUTE)
        for n in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
    ),
    (connecting(PermissionError(errno.EACCES, "")), Failure.NO_ROUTE),
    (connecting(OSError(errno.EAFNOSUPPORT, "")), Failure.NO_ROUTE),
    (LookupFailedError(Failure.NO_NAME_SERVER), Failure.NO_NAME_SERVER),
    (aiohttp.ClientConnectorDNSError(PLACE, LookupFailedError(Failure.NAME_UNKNOWN)), Failure.NAME_UNKNOWN),
    (AddressError("10.0.0.1"), Failure.ADDRESS_REFUSED),
    (MalformedURLError("ftp"), Failure.ADDRESS_REFUSED),
    (aiohttp.ClientConnectorDNSError(PLACE, AddressError("10.0.0.1")), Failure.ADDRESS_REFUSED),
    *((connecting(OSError(n, "")), Failure.NO_SOCKETS) for n in (errno.EMFILE, errno.ENFILE)),
    *((connecting(OSError(n, "")), Failure.NO_MEMORY) for n in (errno.ENOMEM, errno.ENOBUFS)),
    *((connecting(OSError(n, "")), Failure.NO_PORTS) for n in (errno.EADDRNOTAVAIL, errno.EADDRINUSE)),
    (connecting(PermissionError(errno.EPERM, "")), Failure.FORBIDDEN_HERE),
    (of_ssl("NO_PROTOCOLS_AVAILABLE"), Failure.OUR_TLS),
    (MemoryError(), Failure.NO_MEMORY),
    (RuntimeError("can't start new thread"), Failure.NO_MEMORY),
    (RuntimeError("something else"), Failure.UNFORESEEN),
    (KeyError("x"), Failure.UNFORESEEN),
]


@pytest.mark.parametrize(
    ("error", "failure"), ERRORS, ids=lambda each: getattr(each, "value", None) or repr(each)[:50]
)
def test_an_error_is_one_failure(error: Exception, failure: Failure) -> None:
    """What the router's machine alone can raise is the router's; what can come from afar is not."""
    assert classify(error) is failure


MIXED = [
    ("[Errno 101] Network is unreachable, [Errno 111] Connect call failed", Failure.CONNECTION_REFUSED),
    ("[Errno 24] Too many open files, [Errno 101] Network is unreachable", Failure.NO_ROUTE),
    ("[Errno 104] Connection reset, [Errno 101] Network is unreachable", Failure.CONNECTION_LOST),
    ("something without a number", Failure.CONNECTION_LOST),
]


@pytest.mark.parametrize(("text", "failure"), MIXED)
def test_of_several_addresses_the_one_that_answered_counts(text: str, failure: Failure) -> None:
    """A node cannot hide behind a second address that nobody can reach."""
    assert classify(connecting(OSError(f"Multiple exceptions: {text}"))) is failure


def test_every_failure_has_a_row() -> None:
    """None is left out of the table, and each is told apart by its sentence."""
    assert set(FAILURES) == set(Failure)
    assert len({sentence for _, sentence in FAILURES.values()}) == len(Failure)


NOT_THE_NODES = [failure for failure in Failure if failure.outcome.blame in (Blame.ROUTER, Blame.NETWORK)]


@pytest.mark.parametrize("failure", NOT_THE_NODES)
def test_what_is_ours_or_the_networks_moves_no_standing(failure: Failure) -> None:
    """Not by any number of it."""
    standing = Standing((5.0, 5.0), (3.0, 3.0), 6.0, 0.0, TICKS)
    assert standing.add(Execution(failure.outcome, 1.0), TICKS + 1) == standing


@pytest.mark.parametrize("failure", [f for f in Failure if f.outcome.blame is Blame.ROUTER])
def test_what_is_ours_opens_no_breaker(failure: Failure) -> None:
    """A router without sockets must not find its nodes shut when it has some again."""
    load = Load()
    for _ in range(20):
        load.end_request(failure.outcome, TICKS, load.begin_request())
    assert (load.failures_in_a_row, load.breaker_is_open(TICKS)) == (0, False)


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.IMPOSTOR])
def test_what_is_the_networks_never_lengthens_a_pause(outcome: Outcome) -> None:
    """After an outage of hours, work goes on within ten seconds."""
    load = Load()
    for _ in range(50):
        load.end_request(outcome, TICKS, load.begin_request())
    assert load.open_until == TICKS + BREAKER_OPEN_S


@pytest.mark.parametrize("failure", list(Failure))
def test_a_probe_shows_silence_only_where_it_came_to_the_node(failure: Failure) -> None:
    """What the router could not send, what found no way, and who is not known yet, shows nothing."""
    never_came = failure.outcome.blame is Blame.ROUTER or failure in (
        Failure.NO_ROUTE,
        Failure.NO_NAME_SERVER,
        Failure.CERTIFICATE_NEW,
    )
    assert failure.is_silence is not never_came


# Names.


class Names(aiohttp.abc.AbstractResolver):
    """A name server: what it has, and what it says of other names."""

    def __init__(self, error: Exception) -> None:
        self.known = {"other.test", "third.test"}
        self.error = error

    async def resolve(self, host, port=0, family=socket.AF_INET):
        if host not in self.known:
            raise self.error
        return [{"hostname": host, "host": "8.8.8.8", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


async def lookup(error: Exception, *before: str) -> Failure:
    """How the lookup of a node's name fails, after others were looked up."""
    names = GuardedResolver(allow_private=True)
    names._resolver = Names(error)
    for name in before:
        await names.resolve(name)
    with pytest.raises(LookupFailedError) as raised:
        await names.resolve("node.test")
    assert names._pending == {}
    return raised.value.failure


NO_NAME, AGAIN = socket.gaierror(socket.EAI_NONAME, ""), socket.gaierror(socket.EAI_AGAIN, "")
LOOKUPS = [
    (NO_NAME, ["other.test"], Failure.NAME_UNKNOWN),
    (NO_NAME, [], Failure.NO_NAME_SERVER),
    # A name server that does not answer proves nothing by what it said before.
    (AGAIN, ["other.test"], Failure.NO_NAME_SERVER),
    (AGAIN, [], Failure.NO_NAME_SERVER),
    (socket.gaierror(socket.EAI_FAIL, ""), [], Failure.NO_NAME_SERVER),
    (socket.gaierror(socket.EAI_MEMORY, ""), ["other.test"], Failure.NO_MEMORY),
    (OSError(errno.EMFILE, ""), ["other.test"], Failure.NO_SOCKETS),
    (RuntimeError("can't start new thread"), ["other.test"], Failure.NO_MEMORY),
]


@pytest.mark.parametrize(("error", "before", "failure"), LOOKUPS)
async def test_a_name_is_its_nodes_only_if_others_are_found(
    error: Exception, before: list[str], failure: Failure
) -> None:
    """A name server that is gone is the router's; a name that is gone is its node's."""
    assert await lookup(error, *before) is failure


async def test_a_name_that_fails_while_others_are_found_is_its_nodes() -> None:
    """Its own name servers do not answer: a node must not be able to pass that for an outage of ours."""
    names = GuardedResolver(allow_private=True)

    class Slow(Names):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            if host == "node.test":
                # Meanwhile another node is found.
                await names.resolve("other.test")
            return await super().resolve(host, port, family)

    names._resolver = Slow(AGAIN)
    with pytest.raises(LookupFailedError) as raised:
        await names.resolve("node.test")
    assert raised.value.failure is Failure.NAME_UNKNOWN


# Late.

ALLOWED = TimeAllowed(3.0, 20.0, 10.0)
STALLED = AttemptError(Outcome.STALLED, "")
LATE = [
    (AttemptError.by(Failure.NO_CONNECTION_IN_TIME), 0.51, None, True),
    (AttemptError.by(Failure.NO_CONNECTION_IN_TIME), 0.49, None, False),
    (STALLED, 2.1, None, True),
    (STALLED, 1.9, None, False),
    (STALLED, 60.0, 0.9, False),
    (STALLED, 60.0, 1.1, True),
    (AttemptError(Outcome.TRUNCATED, ""), 5.1, None, True),
    (AttemptError(Outcome.TRUNCATED, ""), 4.9, None, False),
    (AttemptError.by(Failure.CONNECTION_LOST), 5.1, None, True),
    (AttemptError(Outcome.CORRUPTED, ""), 60.0, None, False),
    (AttemptError(Outcome.BUSY, ""), 60.0, None, False),
]


@pytest.mark.parametrize(("error", "lost_s", "since_text_s", "is_late"), LATE)
def test_what_ran_out_while_the_router_stood_still_is_the_routers(
    error: AttemptError,
    lost_s: float,
    since_text_s: float | None,
    is_late: bool,  # noqa: FBT001
) -> None:
    """If that was a tenth of the time and half a second; of a stream, what was lost since the last text counts."""
    assert is_late_here(error, ALLOWED, lost_s, since_text_s) is is_late
