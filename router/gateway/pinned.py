"""
Connections to nodes: https, pinned to the key that their evidence named.

The pin is checked after the TLS handshake and before a byte of the request is sent, so that a
prompt never reaches an impostor.  Private addresses are refused unless the configuration
allows them, also if a name resolves to one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from asyncio import Transport
from functools import lru_cache
from typing import Any

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization


class PinError(aiohttp.ClientConnectionError):
    """Another key than the pinned key answered."""


class AddressError(OSError):
    """An address that nodes must not have."""


class SpkiPin(aiohttp.Fingerprint):
    """Accepts exactly the certificate whose public key has this SHA-256."""

    def __init__(self, pin: str) -> None:
        super().__init__(bytes.fromhex(pin))
        self._pin = pin

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
    """Resolves names, and refuses names that lead to private addresses."""

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`.  Raises `AddressError`."""
        found = await self._resolver.resolve(host, port, family)
        for entry in found:
            check_address(entry["host"], allow_private=self._allow_private)
        return found

    async def close(self) -> None:
        """See `AbstractResolver.close`."""
        await self._resolver.close()


def check_address(host: str, *, allow_private: bool) -> None:
    """
    Refuse a literal address that nodes must not have.  Names pass: the resolver checks them.

    Raises:
        AddressError: it is private, loopback, link-local, multicast or reserved, or such an
            address is embedded in it by a transition mechanism.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not allow_private and not all(_is_public(each) for each in _with_embedded(address)):
        raise AddressError(f"{host} is not a public address, and the configuration allows no others")


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
        raise AddressError("the URL cannot be read") from None
    if parsed.scheme != "https" or not url.isascii() or not host or parsed.user is not None:
        raise AddressError("the URL must be https and plain ASCII")
    check_address(host, allow_private=allow_private)
    return parsed


def open_session(*, allow_private: bool) -> aiohttp.ClientSession:
    """A client for nodes: no proxies, no cookies, and no compression, because that could be a bomb."""
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(allow_private=allow_private), limit=0, limit_per_host=0, ttl_dns_cache=60
    )
    jar: Any = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=jar,
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept"),
    )
