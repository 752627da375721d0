"""Whose request it is behind proxies: a table of headers, and that nothing a client sends is believed."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.service import addresses
from verifier.service.addresses import (
    MAX_HOPS,
    MAX_LIST,
    client_of,
    key_of,
    read_address,
    read_forwarded,
    read_networks,
    read_x_forwarded_for,
)

PROXIES = read_networks(["10.0.0.0/8", "2001:db8:ffff::/48"])
PEER = read_address("10.0.0.1")
V4, V6 = "203.0.113.9", "2001:db8::7"


def client(*, peer: str = "10.0.0.1", forwarded: str | None = None, xff: str | None = None) -> str:
    return str(client_of(read_address(peer), forwarded, xff, PROXIES))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (V4, V4),
        (f"{V4}:4711", V4),
        (V6, V6),
        (f"[{V6}]", V6),
        (f"[{V6}]:4711", V6),
        (f"::ffff:{V4}", V4),
        (f"1.2.3.4, {V4}", V4),
        (f"1.2.3.4,{V4},10.9.9.9", V4),
        (f"1.2.3.4, {V4}, 10.9.9.9, 2001:db8:ffff::1", V4),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        (f"{V4}, unknown", "10.0.0.1"),
        (f"{V4}, unknown, 10.3.3.3", "10.3.3.3"),
        (f"{V4}, _hidden", "10.0.0.1"),
        ("", "10.0.0.1"),
        (f"{V4},", "10.0.0.1"),
        (f"{V4}, 1.2.3", "10.0.0.1"),
        (f"{V4}, 01.2.3.4", "10.0.0.1"),
        (f"{V4}, [1.2.3.4]", "10.0.0.1"),
        (f"{V4}, evil", "10.0.0.1"),
        (f"{V4}:99999999", "10.0.0.1"),
        ("fe80::1%eth0", "10.0.0.1"),
        (f"{V4}," * 400 + V4, "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(header: str, expected: str) -> None:
    """Up to the first hop that is no trusted proxy; a list that is malformed or too long counts for nothing."""
    assert client(xff=header) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"for={V4}", V4),
        (f"For={V4}", V4),
        (f'for="{V4}"', V4),
        (f'for="{V4}:4711"', V4),
        (f'for="[{V6}]"', V6),
        (f'for="[{V6}]:4711"', V6),
        (f'for="[{V6}]:_port"', V6),
        (f'for="[::ffff:{V4}]"', V4),
        (f"for={V4};proto=https;by=203.0.113.43;host=verifier.example", V4),
        (f"proto=https; for={V4}", "10.0.0.1"),
        (f"proto=https;for={V4};", V4),
        (f"for=1.2.3.4, for={V4}", V4),
        (f"for={V4}, for=10.9.9.9", V4),
        (f"for={V4}, for=unknown", "10.0.0.1"),
        (f"for={V4}, for=_SEVKISEK", "10.0.0.1"),
        (f'for={V4}, for="_gazonk:_p"', "10.0.0.1"),
        (f"for={V4}, proto=https", "10.0.0.1"),
        (f"for={V4}, proto=https, for=10.5.5.5", "10.5.5.5"),
        (r'for="2\03.0.113.9"', V4),
        (f"for=[{V6}]", "10.0.0.1"),
        (f"for={V6}", "10.0.0.1"),
        (f'for="{V4}', "10.0.0.1"),
        (f"for={V4};for=1.2.3.4", "10.0.0.1"),
        (f"for={V4};secret=abc", "10.0.0.1"),
        ("for=", "10.0.0.1"),
        ("for", "10.0.0.1"),
        ("", "10.0.0.1"),
        (f"for={V4}" + ",for=10.1.1.1" * 400, "10.0.0.1"),
    ],
)
def test_forwarded_is_read_from_the_right(header: str, expected: str) -> None:
    """The same for RFC 7239, with its quotes, ports, brackets and hidden names."""
    assert client(forwarded=header) == expected


@pytest.mark.parametrize(
    "sent",
    [
        'for="',
        'for="1.2.3.4',
        'by=", for=1.2.3.4;host="',
        'host="a;for=6.6.6.6;proto="b',
        "for=6.6.6.6;proto=",
    ],
)
def test_a_client_cannot_swallow_what_its_proxy_adds(sent: str) -> None:
    """By an open quote before it."""
    told = client(forwarded=f'{sent}, for="{V4}";host=";for=6.6.6.6;by=x"')
    assert told == "10.0.0.1"


def test_a_peer_that_is_no_proxy_is_believed_nothing() -> None:
    """Whatever it sends."""
    assert client(peer="198.51.100.1", forwarded=f"for={V4}", xff=V4) == "198.51.100.1"


def test_two_headers_that_agree_count() -> None:
    """Some proxies write both."""
    assert client(forwarded=f"for={V4}", xff=f"6.6.6.6, {V4}") == V4


@pytest.mark.parametrize("forwarded", ["for=6.6.6.6", "for=unknown", 'for="'])
def test_two_headers_that_disagree_count_for_nothing(forwarded: str) -> None:
    """One of them comes from the client, and nobody knows which."""
    assert client(forwarded=forwarded, xff=V4) == "10.0.0.1"


def test_no_header_at_all_is_the_proxys_own_request() -> None:
    """Such as its probe."""
    assert client() == "10.0.0.1"


def test_only_so_many_hops_are_followed() -> None:
    """A chain of proxies has an end."""
    chain = ", ".join([V4, *(f"10.0.1.{n}" for n in range(MAX_HOPS))])
    assert client(xff=chain) == "10.0.1.0"


def test_ipv6_is_counted_by_network() -> None:
    """Whoever has one address of it has all."""
    assert key_of(read_address("2001:db8::1")) == key_of(read_address("2001:db8::ffff:1")) == "2001:db8::/64"
    assert key_of(read_address("2001:db8:0:1::1")) != "2001:db8::/64"


def test_mapped_addresses_are_ipv4() -> None:
    """So that nobody counts twice, and a proxy is known either way."""
    assert key_of(read_address(f"::ffff:{V4}")) == V4
    assert read_networks(["::ffff:10.0.0.0/104"]) == read_networks(["10.0.0.0/8"])
    assert client(peer="::ffff:10.0.0.1", xff=V4) == V4


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example", ""])
def test_networks_are_read_strictly(text: str) -> None:
    """A host's bits in a network are a mistake."""
    with pytest.raises(ValueError):
        read_networks([text])


some_address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
anything: Any = st.text(max_size=200) | st.from_regex(r'[a-z=;,:"\[\]0-9. _\\]{0,80}', fullmatch=True)


def spelt(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return host if port is None else f"{host}:{port}"


@given(some_address, st.none() | st.integers(0, 65535), anything)
def test_what_the_proxy_has_seen_is_what_counts(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int | None, sent: str
) -> None:
    """Whatever the client sends before it: the address that the proxy adds, or the proxy's own."""
    seen = read_address(str(address))
    told = client_of(PEER, None, f"{sent}, {spelt(address, port)}", PROXIES)
    assert told in (seen, PEER) or addresses.is_in(seen, PROXIES)
    told = client_of(PEER, f'{sent}, for="{spelt(address, port)}"', None, PROXIES)
    assert told in (seen, PEER) or addresses.is_in(seen, PROXIES)


@given(st.lists(some_address, min_size=1, max_size=8))
def test_both_headers_say_the_same_of_the_same_hops(
    hops: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    """Round trip: what is written is read."""
    expected = [read_address(str(hop)) for hop in hops]
    assert read_x_forwarded_for(", ".join(map(str, hops))) == expected
    assert read_forwarded(", ".join(f'for="{spelt(hop, 80)}"' for hop in hops)) == expected


@given(anything)
def test_the_parsers_take_any_text(text: str) -> None:
    """And give hops or nothing, never more of them than there are commas."""
    for parse in (read_forwarded, read_x_forwarded_for):
        hops = parse(text)
        assert hops is None or len(hops) == text.count(",") + 1


def test_a_long_list_is_not_read() -> None:
    """The bound is of characters, so that nothing is parsed first."""
    assert read_x_forwarded_for(" " * MAX_LIST + V4) is None
    assert read_forwarded(f"for={V4};proto=" + "h" * MAX_LIST) is None
