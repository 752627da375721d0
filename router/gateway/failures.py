"""
Which failure an error of the network, of TLS or of the machine is: see `router.model.outcomes`.

What a node can bring about must not look like a failure of ours (docs/adr/0030).  So an error is the
router's own only if the router's machine alone can raise it.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from router.gateway.pinned import AddressError, LookupFailedError, PinError, pin_for
from router.model.outcomes import Failure

_BY_ERRNO: Final[Mapping[int, Failure]] = {
    errno.ECONNREFUSED: Failure.CONNECTION_REFUSED,
    errno.ETIMEDOUT: Failure.NO_CONNECTION_IN_TIME,
    errno.ENETUNREACH: Failure.NO_ROUTE,
    errno.EHOSTUNREACH: Failure.NO_ROUTE,
    errno.ENETDOWN: Failure.NO_ROUTE,
    errno.EHOSTDOWN: Failure.NO_ROUTE,
    errno.ENONET: Failure.NO_ROUTE,
    errno.EAFNOSUPPORT: Failure.NO_ROUTE,
    # ICMPv6 can bring this one about from afar ("administratively prohibited").
    errno.EACCES: Failure.NO_ROUTE,
    errno.EMFILE: Failure.NO_SOCKETS,
    errno.ENFILE: Failure.NO_SOCKETS,
    errno.ENOMEM: Failure.NO_MEMORY,
    errno.ENOBUFS: Failure.NO_MEMORY,
    errno.EADDRNOTAVAIL: Failure.NO_PORTS,
    errno.EADDRINUSE: Failure.NO_PORTS,
    errno.EPERM: Failure.FORBIDDEN_HERE,
}
_OUR_TLS: Final = frozenset(
    {"NO_PROTOCOLS_AVAILABLE", "NO_CIPHERS_AVAILABLE", "NO_CIPHER_MATCH", "MALLOC_FAILURE"}
)
"""Reasons that OpenSSL gives before a byte goes out, or for want of memory."""
_CERTIFICATE_REFUSED: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_NO_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    }
)
"""Alerts by which a server refuses a client for its certificate (RFC 8446 §6.2), as OpenSSL names them."""
_NUMBER: Final = re.compile(r"\[Errno (\d+)\]")
_NO_THREAD: Final = "can't start new thread"


def classify(error: BaseException) -> Failure:
    """The failure that *error*, raised while a node was asked, is."""
    match error:
        case PinError():
            return Failure.ANOTHER_KEY
        case LookupFailedError():
            return error.failure
        case AddressError():
            return Failure.ADDRESS_REFUSED
        case aiohttp.ConnectionTimeoutError():
            return Failure.NO_CONNECTION_IN_TIME
        case TimeoutError() if error.errno is None:
            return Failure.SILENT
        case aiohttp.ClientOSError() if (inner := _inner(error)) is not None:
            return classify(inner)
        case ssl.SSLError():
            return _of_tls(error)
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or _NO_THREAD in str(error):
            return Failure.NO_MEMORY
        case aiohttp.ServerDisconnectedError() | socket.gaierror():
            return Failure.CONNECTION_LOST
        case OSError():
            return _of_os(error)
        case aiohttp.ClientError() | HttpProcessingError() | ValueError():
            return Failure.NOT_HTTP
        case _:
            return Failure.UNFORESEEN


async def not_listed() -> Failure:
    """Whose fault a refusal is where nobody registers the router: the node's."""
    return Failure.CERTIFICATE_REFUSED


async def judge(failure: Failure, pin: str, judge_refusal: Callable[[], Awaitable[Failure]]) -> Failure:
    """
    Say whose fault it is if a node may have refused the router's certificate; every other *failure* stays.

    A server that refuses one closes the connection at once.  If the request is on its way then, the router's machine may
    hear of the end before it has read the alert.

    Args:
        failure: As `classify` gives it.
        pin: The node's.
        judge_refusal: Whose fault it is that a node refuses the certificate now.
    """
    if failure is Failure.CERTIFICATE_REFUSED:
        return await judge_refusal()
    if failure is Failure.CONNECTION_LOST and pin_for(pin).asks:
        judged = await judge_refusal()
        return failure if judged is Failure.CERTIFICATE_REFUSED else judged
    return failure


def _inner(error: aiohttp.ClientOSError) -> BaseException | None:
    """The error that aiohttp has put into its own."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return None if error.os_error is error else error.os_error
    # TLS failed after the handshake.  The number is one of TLS's own: as an errno it would mean something else.
    return error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else None


def _of_tls(error: ssl.SSLError) -> Failure:
    if error.reason in _CERTIFICATE_REFUSED:
        # With TLS 1.3 this comes after the handshake, with the first read.
        return Failure.CERTIFICATE_REFUSED
    return Failure.OUR_TLS if error.reason in _OUR_TLS else Failure.TLS_FAILED


def _of_os(error: OSError) -> Failure:
    if error.errno is not None:
        return _BY_ERRNO.get(error.errno, Failure.CONNECTION_LOST)
    # A name with several addresses failed at each of them, in different ways.
    found = [_BY_ERRNO.get(int(number)) for number in _NUMBER.findall(str(error))]
    if not found or None in found:
        return Failure.CONNECTION_LOST
    # If the node's machine answered at one of them, that is the failure.
    return min((each for each in found if each is not None), key=list(Failure).index)
