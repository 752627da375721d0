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
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from router.gateway.pinned import AddressError, LookupFailedError, PinError
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
        case aiohttp.ClientConnectorError() if error.os_error is not error:
            return classify(error.os_error)
        case ssl.SSLError():
            return Failure.OUR_TLS if error.reason in _OUR_TLS else Failure.TLS_FAILED
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


def _of_os(error: OSError) -> Failure:
    if error.errno is not None:
        return _BY_ERRNO.get(error.errno, Failure.CONNECTION_LOST)
    # A name with several addresses failed at each of them, in different ways.
    found = [_BY_ERRNO.get(int(number)) for number in _NUMBER.findall(str(error))]
    if not found or None in found:
        return Failure.CONNECTION_LOST
    # If the node's machine answered at one of them, that is the failure.
    return min((each for each in found if each is not None), key=list(Failure).index)
