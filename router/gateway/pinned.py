"""
Connections to nodes: https, pinned to the key that their evidence named.

The pin is checked after the TLS handshake and before a byte of the request is sent: a
prompt never reaches an impostor.  Private addresses are refused unless the configuration
allows them, also where a name resolves to one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from asyncio import Transport
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import serialization


class PinError(aiohttp.ClientConnectionError):
    """Another key than the pinned one answered."""


class AddressError(OSError):
    """An address that nodes must not have."""


class SpkiPin(aiohttp.Fingerprint):
    """Accepts exactly the certificate whose public key has this SHA-256."""

    def __init__(self, pin: str) -> None:
        super().__init__(bytes.fromhex(pin))
        self._pin = pin

    def check(self, transport: Transport) -> None:
        """Raises `PinError` where the key is another one."""
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if certificate is None:
            raise PinError("no certificate")
        key = x509.load_der_x509_certificate(certificate).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if hashlib.sha256(spki).hexdigest() != self._pin:
            raise PinError("another key answered than the one the evidence named")


@lru_cache(maxsize=100_000)
def pin_for(pin: str) -> SpkiPin:
    """The one object for a pin: connections are kept by it."""
    return SpkiPin(pin)


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to private addresses."""

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As `AbstractResolver.resolve`; raises `AddressError`."""
        found = await self._resolver.resolve(host, port, family)
        for entry in found:
            check_address(entry["host"], allow_private=self._allow_private)
        return found

    async def close(self) -> None:
        """As `AbstractResolver.close`."""
        await self._resolver.close()


def check_address(host: str, *, allow_private: bool) -> None:
    """
    Refuse a literal address that nodes must not have; names pass, to be resolved.

    Raises:
        AddressError: private, loopback, link-local, multicast or reserved.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not allow_private and not address.is_global:
        raise AddressError(f"{host} is not a public address, and the configuration does not allow others")


def check_url(url: str, *, allow_private: bool) -> None:
    """As `check_address`, for the host of a URL (aiohttp does not resolve literal addresses)."""
    check_address(urlsplit(url).hostname or "", allow_private=allow_private)


def open_session(*, allow_private: bool) -> aiohttp.ClientSession:
    """A client for nodes: no proxies, no cookies, bounded connections."""
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(allow_private=allow_private), limit=0, limit_per_host=0, ttl_dns_cache=60
    )
    jar: Any = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, cookie_jar=jar, trust_env=False)
