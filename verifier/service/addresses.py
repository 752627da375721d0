"""
Client addresses: whose request it is if trusted proxies stand between, and under which key it is counted.

A proxy that is named in ``trusted_proxies`` tells the address of its client in ``Forwarded`` (RFC 7239) or in
``X-Forwarded-For``.  Each proxy adds to the end of the list, and a client can send a list of its own: so it is read
from the end, up to the first hop that is no trusted proxy.  What stands before that hop is not believed.

Two rules for what cannot be believed:

- A malformed list, or one that is too long, counts for nothing: the request is the proxy's own.
- If both headers are there and name different clients, neither counts: a proxy writes one of them, and passes on
  the other as its client sent it.

Pure: no socket, no clock.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_LIST: Final = 4096
"""Characters of a list of hops; a longer one is not read."""
MAX_HOPS: Final = 16
"""Trusted proxies in a row."""
IPV6_PREFIX: Final = 64
"""Whoever has an IPv6 address has this whole network (RFC 6177), so it is counted as one."""
_MAPPED_BITS: Final = 96
_MAX_ADDRESS: Final = 64

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# What stands in quotes may have no comma, semicolon or equals sign: no parameter needs them, and a client could
# open a quote in which the proxy's own part would disappear.
_PAIR: Final = re.compile(rf'({_WORD})=(?:({_WORD})|"((?:[^"\\,;=\x00-\x20\x7f-\uffff]|\\[^,;="\\\s])*)")')
_PARAMETERS: Final = frozenset({"by", "for", "host", "proto"})
_NODE: Final = re.compile(
    r"(?:(?P<v4>[0-9.]{7,15})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>unknown|_[A-Za-z0-9._-]+))"
    r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?",
    re.IGNORECASE,
)

Hops = Sequence[IPAddress | None]
"""Of a list, in its order; `None` for a hop that does not tell its address."""


def read_networks(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    """Networks from addresses and CIDR ranges.  Raises `ValueError`: one is neither."""
    found = []
    for text in texts:
        network = ipaddress.ip_network(text)
        mapped = network.network_address
        if (
            isinstance(mapped, ipaddress.IPv6Address)
            and mapped.ipv4_mapped
            and network.prefixlen >= _MAPPED_BITS
        ):
            network = ipaddress.ip_network((mapped.ipv4_mapped, network.prefixlen - _MAPPED_BITS))
        found.append(network)
    return tuple(found)


@lru_cache(maxsize=4096)
def read_address(text: str) -> IPAddress | None:
    """An IP address as text, if it is one: an IPv4-mapped IPv6 address is the IPv4 address, and a zone is left out."""
    if len(text) > _MAX_ADDRESS:
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def key_of(address: IPAddress | None) -> str:
    """What a client is counted under: its IPv4 address, or its IPv6 network of 64 bits."""
    if address is None:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))


def is_in(address: IPAddress | None, networks: Sequence[IPNetwork]) -> bool:
    """Whether an address is in one of the networks."""
    return address is not None and any(address in network for network in networks)


def read_forwarded(text: str) -> Hops | None:
    """
    The hops of a ``Forwarded`` header; `None` if it is malformed.

    Only the four parameters of RFC 7239 are known, each once in an element, and an element without ``for`` is a hop
    that does not tell its address.
    """
    if len(text) > MAX_LIST:
        return None
    hops: list[IPAddress | None] = []
    for element in text.split(","):
        hop: IPAddress | None = None
        seen = set()
        for part in element.strip(" \t").split(";"):
            if not part:
                continue
            found = _PAIR.fullmatch(part)
            if found is None:
                return None
            name = found[1].lower()
            if name not in _PARAMETERS or name in seen:
                return None
            seen.add(name)
            if name == "for":
                value = found[2] if found[2] is not None else re.sub(r"\\(.)", r"\1", found[3])
                node = _NODE.fullmatch(value)
                if node is None:
                    return None
                hop = _address_in(node)
                if hop is None and node["name"] is None:
                    return None
        hops.append(hop)
    return hops


def read_x_forwarded_for(text: str) -> Hops | None:
    """The hops of an ``X-Forwarded-For`` header, with or without ports and brackets; `None` if it is malformed."""
    if len(text) > MAX_LIST:
        return None
    hops: list[IPAddress | None] = []
    for part in text.split(","):
        value = part.strip(" \t")
        node = _NODE.fullmatch(value)
        hop = read_address(value) if node is None and "%" not in value else node and _address_in(node)
        if hop is None and (node is None or node["name"] is None):
            return None
        hops.append(hop)
    return hops


def _address_in(node: re.Match[str]) -> IPAddress | None:
    text = node["v4"] or node["v6"]
    address = None if text is None else read_address(text)
    if node["v6"] is not None and ":" not in node["v6"]:
        return None
    return address


def client_of(
    peer: IPAddress | None, forwarded: str | None, x_forwarded_for: str | None, proxies: Sequence[IPNetwork]
) -> IPAddress | None:
    """
    Whose request it is.

    Args:
        peer: Who is connected.
        forwarded: The ``Forwarded`` headers, joined with commas; `None` if there is none.
        x_forwarded_for: The ``X-Forwarded-For`` headers, likewise.
        proxies: The trusted proxies.
    """
    if not is_in(peer, proxies):
        return peer
    told = []
    if forwarded is not None:
        told.append(_first_untrusted(peer, read_forwarded(forwarded), proxies))
    if x_forwarded_for is not None:
        told.append(_first_untrusted(peer, read_x_forwarded_for(x_forwarded_for), proxies))
    return told[0] if told and all(each == told[0] for each in told) else peer


def _first_untrusted(
    peer: IPAddress | None, hops: Hops | None, proxies: Sequence[IPNetwork]
) -> IPAddress | None:
    """Go from the peer towards the client, as far as each who tells of the next one is trusted."""
    last = peer
    for hop in reversed((hops or ())[-MAX_HOPS:]):
        if hop is None:
            # The last trusted proxy does not say who its client is.
            return last
        last = hop
        if not is_in(hop, proxies):
            break
    return last
