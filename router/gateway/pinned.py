"""
Connections to nodes: https, pinned to the key that their evidence named.

The pin is checked after the TLS handshake and before a byte of the request is sent, so that a
prompt never reaches an impostor.  Private addresses are refused unless the configuration
allows them, also if a name resolves to one.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
import ssl
import time
from asyncio import Transport
from collections import Counter
from functools import lru_cache
from typing import Any, Final

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from router.choose import gates
from router.choose.gates import GateVerdict
from router.model.outcomes import Failure
from router.state.identity import AskedTLS

_DEFINITE: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})
"""Errors by which a name server says that there is no such name, and not that it does not know."""
_TRUSTED_FOR_S: Final = 600.0
"""For so long after it has found a name, a name server that says "no such name" is believed."""


PENDING: Final = GateVerdict("address", gates.PENDING, "the router is finding out where its name leads")


class PinError(aiohttp.ClientConnectionError):
    """Another key than the pinned key answered."""


class AddressError(OSError):
    """An address that nodes must not have."""


class MalformedURLError(AddressError):
    """A URL that no router can use."""


class LookupFailedError(OSError):
    """A name's address could not be found; *failure* says whose fault that is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class SpkiPin(aiohttp.Fingerprint):
    """Accepts exactly the certificate whose public key has this SHA-256."""

    def __init__(self, pin: str) -> None:
        super().__init__(bytes.fromhex(pin))
        self._pin = pin
        self.asks = False
        """Whether the node asked for the router's certificate when it was last connected to."""

    def check(self, transport: Transport) -> None:
        """
        Accept the connection, or end it.

        Raises:
            PinError: another key answered, or something that is not a certificate.
        """
        try:
            found = _spki_sha256(transport)
        except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
            found = None
        if found != self._pin:
            # aiohttp closes the connection only for its own errors.
            transport.abort()
            raise PinError("another key answered than the key that the evidence named")
        tls = transport.get_extra_info("ssl_object")
        self.asks = isinstance(tls, AskedTLS) and tls.was_asked


def _spki_sha256(transport: Transport) -> str | None:
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    if certificate is None:
        return None
    key = x509.load_der_x509_certificate(certificate).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


@lru_cache(maxsize=100_000)
def pin_for(pin: str) -> SpkiPin:
    """The only object for a pin: the connector keeps connections by it."""
    return SpkiPin(pin)


class GuardedResolver(AbstractResolver):
    """
    Resolves names, and refuses names that lead to private addresses.

    It tells whose fault it is if a name is not found.  A name is its node's affair, the name server is
    the router's.  So it is the node's only if the names of other nodes are found at the same time.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver: AbstractResolver = aiohttp.ThreadedResolver()
        self._allow_private = allow_private
        self._pending: Counter[str] = Counter()
        self._found: dict[str, float] = {}
        """When a name was last found, of the two that were found last."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`.  Raises `AddressError`, `LookupFailedError`."""
        began = time.monotonic()
        self._pending[host] += 1
        try:
            found = await self._resolver.resolve(host, port, family)
        except (OSError, RuntimeError) as error:
            raise LookupFailedError(self._judge(host, error, began)) from None
        finally:
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]
        self._found.pop(host, None)
        self._found[host] = time.monotonic()
        if len(self._found) > 2:
            del self._found[next(iter(self._found))]
        for entry in found:
            check_address(entry["host"], allow_private=self._allow_private)
        return found

    def late(self, host: str, since: float) -> LookupFailedError | None:
        """The error if the time since *since* ran out while *host* was being looked up; `None` if it was not."""
        if host not in self._pending:
            return None
        return LookupFailedError(self._whose(host, since))

    def _judge(self, host: str, error: OSError | RuntimeError, began: float) -> Failure:
        if isinstance(error, socket.gaierror):
            if error.errno == socket.EAI_MEMORY:
                return Failure.NO_MEMORY
            return self._whose(host, began - _TRUSTED_FOR_S if error.errno in _DEFINITE else began)
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE):
            return Failure.NO_SOCKETS
        if number == errno.ENOMEM or isinstance(error, RuntimeError):
            return Failure.NO_MEMORY
        return self._whose(host, began)

    def _whose(self, host: str, since: float) -> Failure:
        """The node's failure if the name of another node was found since *since*; else the name server's."""
        is_working = any(other != host and at >= since for other, at in self._found.items())
        return Failure.NAME_UNKNOWN if is_working else Failure.NO_NAME_SERVER

    async def close(self) -> None:
        """See `AbstractResolver.close`."""
        await self._resolver.close()


class NodeConnector(aiohttp.TCPConnector):
    """
    Connections to nodes, without a limit of their number.

    Args:
        context: TLS with the router's certificate, for nodes that ask for one; `None`: the router has none.
    """

    def __init__(self, names: GuardedResolver, context: ssl.SSLContext | None = None) -> None:
        super().__init__(resolver=names, limit=0, limit_per_host=0, ttl_dns_cache=60)
        self.names = names
        self._context = context

    def _get_ssl_context(self, req: ClientRequest) -> ssl.SSLContext | None:
        """The context of aiohttp's own for pins has no certificate."""
        if self._context is not None and isinstance(req.ssl, SpkiPin):
            return self._context
        return super()._get_ssl_context(req)


def check_address(host: str, *, allow_private: bool) -> None:
    """
    Refuse a literal address that nodes must not have.  Names pass: the resolver checks them.

    The message does not say which: decisions show it to those who may not know where nodes are.

    Raises:
        AddressError: it is private, loopback, link-local, multicast or reserved, or such an
            address is embedded in it by a transition mechanism.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not allow_private and not all(_is_public(each) for each in _with_embedded(address)):
        raise AddressError(
            "it is not a public address, and this router connects to no others "
            "unless router.toml has [gateway] allow_private = true"
        )


_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All global unicast addresses of IPv6: the library's lists of exceptions differ by version."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return False
    return address.is_global and not address.is_multicast


def _with_embedded(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = [address.ipv4_mapped, address.sixtofour, teredo[1] if teredo else None]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        found += [a for a in inner if a is not None]
    return found


def check_url(url: str, *, allow_private: bool) -> yarl.URL:
    """
    The URL to connect to, its host checked (aiohttp does not resolve literal addresses).

    Raises:
        AddressError: it is not https, not plain ASCII, or has an address that nodes must not have.
    """
    try:
        parsed = yarl.URL(url)
        host = parsed.raw_host or ""
    except (ValueError, UnicodeError):
        raise MalformedURLError("the URL cannot be read") from None
    if parsed.scheme != "https" or not url.isascii() or not host or parsed.user is not None:
        raise MalformedURLError("the URL must be https and plain ASCII")
    check_address(host, allow_private=allow_private)
    return parsed


def judge_url(url: str, *, allow_private: bool) -> GateVerdict | None:
    """
    Why this router may not connect to a node's URL; `None` if it may.

    If that depends on what a name leads to, the verdict is `PENDING`: see `judge_name`.
    """
    try:
        host = check_url(url, allow_private=allow_private).raw_host or ""
    except MalformedURLError as error:
        return GateVerdict("address", "address.malformed", str(error))
    except AddressError as error:
        return GateVerdict("address", "address.not-allowed", str(error))
    return PENDING if not allow_private and not _is_literal(host) else None


async def judge_name(http: aiohttp.ClientSession, url: str) -> GateVerdict | None:
    """
    The same for a URL with a name, by what the name leads to now.

    Raises:
        OSError: that cannot be found out now.
    """
    connector = http.connector
    assert isinstance(connector, NodeConnector)
    place = yarl.URL(url)
    try:
        await connector.names.resolve(place.raw_host or "", place.port or 443, socket.AF_UNSPEC)
    except AddressError as error:
        return GateVerdict("address", "address.not-allowed", f"its name leads to an address: {error}")
    return None


async def look_up(http: aiohttp.ClientSession, host: str, port: int) -> list[str]:
    """
    The addresses that a name leads to now, those of IPv4 first: most gateways can reach them.

    Raises:
        OSError: that cannot be found out now, or one of them is an address to which this router may not connect.
    """
    connector = http.connector
    assert isinstance(connector, NodeConnector)
    found = await connector.names.resolve(host, port, socket.AF_UNSPEC)
    return sorted((entry["host"] for entry in found), key=lambda address: ":" in address)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def open_session(*, allow_private: bool, context: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """
    A client for nodes: no proxies, no cookies, and no compression, because that could be a bomb.

    Args:
        allow_private: Whether nodes may have private addresses.
        context: See `NodeConnector`.
    """
    connector = NodeConnector(GuardedResolver(allow_private=allow_private), context)
    jar: Any = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=jar,
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept"),
    )
