"""Where nodes may be: public addresses over https, however they are written."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from router.gateway.pinned import AddressError, GuardedResolver, SpkiPin, check_address, check_url, pin_for

PRIVATE = {
    "loopback": "127.0.0.1",
    "the rest of loopback": "127.255.255.254",
    "loopback 6": "::1",
    "unspecified": "0.0.0.0",
    "unspecified 6": "::",
    "ten": "10.0.0.1",
    "172": "172.16.0.1",
    "172 end": "172.31.255.255",
    "192": "192.168.1.1",
    "carrier": "100.64.0.1",
    "link-local": "169.254.169.254",
    "link-local 6": "fe80::1",
    "link-local 6 with a zone": "fe80::1%eth0",
    "unique local": "fd00::1",
    "multicast": "224.0.0.1",
    "public multicast": "233.252.0.1",
    "multicast 6": "ff02::1",
    "global multicast 6": "ff0e::1",
    "broadcast": "255.255.255.255",
    "class E": "240.0.0.1",
    "documentation": "192.0.2.1",
    "documentation 6": "2001:db8::1",
    "benchmarks": "198.18.0.1",
    "mapped": "::ffff:127.0.0.1",
    "mapped ten": "::ffff:10.0.0.1",
    "mapped metadata": "::ffff:a9fe:a9fe",
    "6to4": "2002:7f00:1::",
    "6to4 ten": "2002:a00:1::1",
    "NAT64": "64:ff9b::7f00:1",
    "NAT64 metadata": "64:ff9b::169.254.169.254",
    "teredo": "2001:0:7f00:1::1",
}


@pytest.mark.parametrize("host", PRIVATE.values(), ids=PRIVATE.keys())
def test_a_private_address_is_refused(host: str) -> None:
    """Also where a mechanism of transition carries it."""
    with pytest.raises(AddressError):
        check_address(host, allow_private=False)


UNCAUGHT = {
    "site-local": "fec0::1",
    "IPv4-compatible": "::127.0.0.1",
    "SIIT": "::ffff:0:127.0.0.1",
    "local NAT64": "64:ff9b:1::7f00:1",
    "reserved": "4000::1",
}


@pytest.mark.parametrize("host", UNCAUGHT.values(), ids=UNCAUGHT.keys())
def test_a_reserved_ipv6_address_is_refused(host: str) -> None:
    """Nothing outside 2000::/3 is the public Internet."""
    with pytest.raises(AddressError):
        check_address(host, allow_private=False)


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "2606:4700::1111", "2002:808:808::", "64:ff9b::808:808", "172.32.0.1", "100.128.0.1"]
)
def test_a_public_address_is_accepted(host: str) -> None:
    """The guard refuses no more than it must."""
    assert check_url(f"https://{f'[{host}]' if ':' in host else host}/", allow_private=False).host == host


@pytest.mark.parametrize("host", PRIVATE.values(), ids=PRIVATE.keys())
def test_a_private_address_is_accepted_where_it_is_allowed(host: str) -> None:
    """A network of one's own is a choice of the configuration, and then of nothing else."""
    assert check_address(host, allow_private=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8",
        "ws://8.8.8.8",
        "ftp://8.8.8.8",
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "//8.8.8.8",
        "8.8.8.8",
        "",
        "https://",
        "https:///x",
        "https:8.8.8.8",
        "https://8.8.8.8:99999",
        "https://8.8.8.8:x",
        "https://[::1",
        "https://１２７.0.0.1",
        "https://8。8。8。8",
        "https://①.8.8.8",
        "https://exämple.test",
        "https://example.test\u2024com",
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_only_https_in_plain_ascii(url: str, allow_private: bool) -> None:  # noqa: FBT001
    """Digits and dots of other scripts are read as plain ones further down, so they end here."""
    with pytest.raises(AddressError):
        check_url(url, allow_private=allow_private)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1",
        "https://8.8.8.8@127.0.0.1/",
        "https://8.8.8.8:443@127.0.0.1/",
        "https://user:secret@127.0.0.1/",
        "https://127.0.0.1#@8.8.8.8/",
        "https://127.0.0.1?@8.8.8.8/",
        "https://[::ffff:127.0.0.1]/",
        "HTTPS://127.0.0.1/",
    ],
)
def test_the_host_that_is_checked_is_the_one_that_is_called(url: str) -> None:
    """Whatever stands before an @ or after a #."""
    with pytest.raises(AddressError):
        check_url(url, allow_private=False)


@pytest.mark.parametrize(
    "host", ["2130706433", "127.1", "0177.0.0.1", "0x7f000001", "127.000.000.001", "%31%32%37.0.0.1"]
)
async def test_a_number_that_is_an_address_reaches_nobody(host: str) -> None:
    """Old spellings of loopback, which resolvers understand, come to nothing."""
    from router.gateway.pinned import open_session

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0)
        url = check_url(f"https://{host}:{listening.getsockname()[1]}", allow_private=False)
        async with open_session(allow_private=False) as http:
            with pytest.raises((aiohttp.ClientError, OSError)):
                await http.get(url, ssl=pin_for("00" * 32), timeout=aiohttp.ClientTimeout(total=5))
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_a_name_that_resolves_to_a_private_address_is_refused() -> None:
    """What a name says today it may not say tomorrow: the address is what counts."""
    resolver = GuardedResolver(allow_private=False)
    with pytest.raises(AddressError):
        await resolver.resolve("localhost", 443)
    await resolver.close()


class _Answers(aiohttp.abc.AbstractResolver):
    """A resolver with given answers."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [
            {"hostname": host, "host": found, "port": port, "family": family, "proto": 0, "flags": 0}
            for found in self.hosts
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("hidden", ["127.0.0.1", "169.254.169.254", "::1", "2002:7f00:1::"])
async def test_one_private_address_among_public_ones_is_enough(hidden: str) -> None:
    """The one that is tried may be any of them."""
    resolver = GuardedResolver(allow_private=False)
    resolver._resolver = _Answers("8.8.8.8", hidden)
    with pytest.raises(AddressError):
        await resolver.resolve("rebinding.test", 443)


async def test_a_name_with_public_addresses_resolves() -> None:
    """All of them are given on."""
    resolver = GuardedResolver(allow_private=False)
    resolver._resolver = _Answers("8.8.8.8", "1.1.1.1")
    assert [found["host"] for found in await resolver.resolve("public.test", 443)] == ["8.8.8.8", "1.1.1.1"]


async def test_a_private_name_resolves_where_it_is_allowed() -> None:
    """The configuration's choice holds for names too."""
    resolver = GuardedResolver(allow_private=True)
    resolver._resolver = _Answers("127.0.0.1")
    assert [found["host"] for found in await resolver.resolve("private.test", 443)] == ["127.0.0.1"]


@pytest.mark.parametrize("pin", ["", "zz" * 32, "ab", "ab" * 20, "ab" * 16, "ab" * 33])
def test_a_pin_is_a_sha256(pin: str) -> None:
    """A shorter one would be easier to meet."""
    with pytest.raises(ValueError):
        SpkiPin(pin)


def test_one_pin_is_one_object() -> None:
    """Connections are kept by it: another pin never gets another's connection."""
    assert (pin_for("ab" * 32) is pin_for("ab" * 32), pin_for("ab" * 32) is pin_for("cd" * 32)) == (
        True,
        False,
    )
