"""The verifier behind real proxies, with the configurations of docs/proxies.md: floods and half-open connections."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fixtures.fleet import free_port
from tests.conftest import RunningVerifier
from tests.integration.front import until
from tests.integration.test_strangers import BURST, attest_whole
from tests.integration.test_tls import Authority

PAGE = (Path(__file__).parents[2] / "docs" / "proxies.md").read_text()
PATH = os.pathsep.join([os.environ.get("TEST_PROXIES", ""), os.environ.get("PATH", ""), "/usr/sbin"])
LANGUAGES = {"nginx": "nginx", "caddy": "caddyfile", "envoy": "yaml"}
NEW = "/challenge-response/v1/newSession"


def configuration(name: str) -> str:
    """The proxy's configuration, as the page has it."""
    found = re.search(rf"```{LANGUAGES[name]}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def command(name: str, folder: Path, upstream: int, port: int, pair: tuple[Path, Path]) -> list[str]:
    """Write the configuration with ports and files of our own; how the proxy is started with it."""
    program = shutil.which(name, path=PATH)
    if program is None:
        pytest.skip(f"{name} is not here: put it on the PATH, or its folder into TEST_PROXIES")
    text = configuration(name)
    for old, new in {
        "/etc/touchstone/tls.pem": str(pair[0]),
        "/etc/touchstone/tls.key": str(pair[1]),
        "127.0.0.1:8440": f"127.0.0.1:{upstream}",
        "127.0.0.1:8443": f"127.0.0.1:{port}",
        "port_value: 8440": f"port_value: {upstream}",
        "port_value: 8443": f"port_value: {port}",
    }.items():
        text = text.replace(old, new)
    path = folder / f"{name}.conf"
    match name:
        case "nginx":
            paths = "".join(
                f"{kind}_temp_path {folder}/{kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            head = f"daemon off; user root; pid {folder}/pid; error_log stderr; events {{ worker_connections 2048; }}"
            path.write_text(f"{head} http {{ access_log off; {paths}\n{text} }}")
            return [program, "-c", str(path), "-p", str(folder)]
        case "caddy":
            path.write_text(text.replace("{\n", "{\n  admin off\n  auto_https disable_redirects\n", 1))
            return [program, "run", "--adapter", "caddyfile", "--config", str(path)]
        case _:
            path = path.with_suffix(".yaml")
            path.write_text(text)
            return [program, "-c", str(path), "--base-id", str(port), "--concurrency", "1"]


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def verifier_settings(ports: tuple[int, int]) -> dict[str, Any]:
    upstream, port = ports
    return {
        "service": {
            "listen": f"127.0.0.1:{upstream}",
            "url": f"https://127.0.0.1:{port}",
            "trusted_proxies": ["127.0.0.1"],
        },
        "sessions": {"per_address_per_minute": 60, "strangers_per_minute": 300},
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
    }


@dataclass
class Behind:
    """The verifier, as clients at several addresses see it through the proxy."""

    verifier: RunningVerifier
    context: ssl.SSLContext
    port: int

    async def open_as(self, source: str, count: int, **headers: str) -> list[int]:
        """Ask for sessions as a stranger at an address of this machine."""
        connector = aiohttp.TCPConnector(ssl=self.context, local_addr=(source, 0))
        async with aiohttp.ClientSession(connector=connector) as http:
            seen = []
            for _ in range(count):
                async with http.post(self.verifier.url + NEW, headers=headers) as response:
                    seen.append(response.status)
            return seen


@pytest.fixture(params=LANGUAGES)
async def behind(
    request: pytest.FixtureRequest,
    verifier: RunningVerifier,
    ports: tuple[int, int],
    tmp_path: Path,
) -> AsyncIterator[Behind]:
    authority = Authority(tmp_path / "pki")
    start = command(request.param, tmp_path, *ports, authority.issue("proxy"))
    log = tmp_path / "proxy.log"
    process = await asyncio.to_thread(_spawn, start, log)
    context = authority.client()
    try:
        await until(lambda: _is_open(ports[1]) or process.poll() is not None, 30)
        assert process.poll() is None, log.read_text()
        connector, headers = aiohttp.TCPConnector(ssl=context), verifier.http.headers
        async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
            verifier.http = http
            yield Behind(verifier, context, ports[1])
    finally:
        # Asked to end, Caddy waits for connections that a test has left half open.
        process.kill()
        await asyncio.to_thread(process.wait, 20)


def _spawn(start: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as out:
        return subprocess.Popen(start, stdout=out, stderr=out, env={**os.environ, "HOME": str(log.parent)})


def _is_open(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_strangers_flood_through_a_proxy_is_its_own(behind: Behind) -> None:
    """Another stranger is served, and so is a node, even at the flood's address; nothing that it invents helps it."""
    node = await behind.verifier.enrol()
    assert 429 in await behind.open_as("127.0.0.2", BURST + 1)
    assert await behind.open_as("127.0.0.3", 1) == [201]
    lies = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.8"}
    assert await behind.open_as("127.0.0.2", 1, **lies) == [429]
    # The node's requests come from 127.0.0.1, which has an own share; let a stranger use that up too.
    assert 429 in await behind.open_as("127.0.0.1", BURST + 1)
    await attest_whole(behind.verifier, node)


async def test_half_open_connections_to_a_proxy_keep_nobody_out(behind: Behind) -> None:
    """Nor do half-open handshakes, and an open stream goes on."""
    async with behind.verifier.http.get(f"{behind.verifier.url}/api/v1/events") as events:
        held = [await asyncio.open_connection("127.0.0.1", behind.port) for _ in range(100)]
        held += [
            await asyncio.open_connection("127.0.0.1", behind.port, ssl=behind.context) for _ in range(100)
        ]
        for _, writer in held[100:]:
            writer.write(b"GET / HTTP/1.1\r\n")
        assert await behind.open_as("127.0.0.3", 1) == [201]
        line = await asyncio.wait_for(events.content.readuntil(b"\n\n"), 10)
        assert b"heartbeat" in line
        for _, writer in held:
            writer.close()
