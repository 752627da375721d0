"""The node as it looks from outside: `check`, and the control routes that each evidence tells of."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from attester import identity
from attester.config import Home
from attester.errors import EngineError, VerifierError
from attester.evidence import Exposure
from attester.front import exposure
from attester.front.check import WARNING, Line, check_outside
from attester.front.clients import replace_file
from attester.front.outside import ExposureClaim, Outside
from fixtures.fronted import Fronted, fronted, make_home, own_identity
from tests.conftest import FakeClock


@pytest.fixture
async def node(tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest) -> AsyncIterator[Fronted]:
    sections: dict[str, Any] = getattr(request, "param", {})
    async with fronted(tmp_path, lambda: float(clock.seconds), **sections) as found:
        yield found


async def look(home: Home, now: float = 1e9) -> dict[str, tuple[bool | None, str]]:
    """The lines of `check` that are about the endpoint, by what they are about."""
    async with aiohttp.ClientSession() as http:
        lines: list[Line] = await check_outside(Outside(home, home.config()), home.tls_key(), http, now)
    return {what: (passed, detail) for passed, what, detail in lines}


@contextlib.asynccontextmanager
async def serving(home: Home, handle: Any, **options: Any) -> AsyncIterator[None]:
    """Something else than the front at the home's URL: an endpoint with the attested key and no more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.path / "tls.crt", home.path / "tls.key")
    for name, value in options.items():
        setattr(context, name, value)
    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(
        runner, "127.0.0.1", int(home.config().serve.url.rpartition(":")[2]), ssl_context=context
    ).start()
    try:
        yield
    finally:
        await runner.cleanup()


# `check`.


async def test_check_passes_with_the_front(node: Fronted, clock: FakeClock) -> None:
    """It names the model, the routers, and how many control routes it tried."""
    found = await look(node.home, clock.seconds)
    url = node.home.config().serve.url
    assert found == {
        "endpoint": (True, f"{url} answers with the attested key, and the engine behind it has org/model"),
        "who is served": (True, "only the routers of the verifier's list (router-1), and this node"),
        "control routes": (True, f"none of {len(exposure.ALL)} can be reached from outside"),
    }


async def test_check_passes_before_the_first_router_exists(node: Fronted, clock: FakeClock) -> None:
    """By the node's own certificate."""
    node.list_routers([], clock.seconds)
    found = await look(node.home, clock.seconds)
    assert [passed for passed, _ in found.values()] == [True, True, True]
    assert "none yet" in found["who is served"][1]


async def test_check_fails_with_nothing_listening(tmp_path: Path) -> None:
    """Row 4 of the issue: it had passed."""
    found = await look(make_home(tmp_path, "http://127.0.0.1:9"))
    assert list(found) == ["endpoint"]
    assert found["endpoint"][0] is False
    assert "Connect call failed" in found["endpoint"][1] or "no connection" in found["endpoint"][1]


async def test_check_fails_with_another_key(node: Fronted) -> None:
    """The evidence names the key of the home, and routers pin it."""
    path = node.home.path / "tls.key"
    path.unlink()
    identity.create_key(path, -7)
    found = await look(node.home)
    assert found["endpoint"][0] is False
    assert "another key answers there than tls.key" in found["endpoint"][1]


async def test_check_fails_with_a_tls_that_is_too_old(tmp_path: Path) -> None:
    """The front speaks 1.3, and so must a proxy."""
    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, _answer, maximum_version=ssl.TLSVersion.TLSv1_2):
        found = await look(home)
    assert found["endpoint"][0] is False
    assert "it does not speak TLS 1.3" in found["endpoint"][1]


async def _answer(_: web.BaseRequest) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "org/model"}]})


async def test_check_warns_if_anybody_is_served(tmp_path: Path) -> None:
    """Row 5 of the issue: whoever reads a public result's URL could use the node."""
    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, _answer):
        found = await look(home)
    assert found["endpoint"][0] is True
    assert found["who is served"][0] is WARNING
    assert "anyone can use the node" in found["who is served"][1]
    # It answers everything alike, so nothing is exposed by that.
    assert found["control routes"][0] is True


@pytest.mark.parametrize("node", [{"engine": {"url": "http://127.0.0.1:9"}}], indirect=True, ids=["gone"])
async def test_check_fails_if_the_front_leads_to_no_engine(node: Fronted) -> None:
    """The endpoint is there, and the engine is not."""
    found = await look(node.home)
    assert found["endpoint"][0] is False
    assert "the engine behind it does not" in found["endpoint"][1]


async def test_check_fails_if_the_front_leads_to_another_engine(node: Fronted, tmp_path: Path) -> None:
    """By the models that each of them names."""

    async def other(_: web.BaseRequest) -> web.Response:
        return web.json_response({"data": [{"id": "another/model"}]})

    home = make_home(tmp_path / "other", node.home.config().engine.url)
    async with serving(home, other):
        found = await look(home)
    assert found["endpoint"][0] is False
    assert "leads to another engine" in found["endpoint"][1]


async def test_check_fails_if_the_engine_wants_a_key(node: Fronted) -> None:
    """And says where it belongs."""

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "Unauthorized"}, status=401)

    node.engine.handle = refuse  # type: ignore[method-assign]  # the route asks for it at each request
    found = await look(node.home)
    assert found["endpoint"][0] is False
    assert "[engine] api_key_file" in found["endpoint"][1]


@pytest.mark.parametrize("node", [{"front": {"operations": ["embeddings"]}}], indirect=True, ids=["few"])
async def test_check_passes_without_the_list_of_models(node: Fronted) -> None:
    """The operator does not pass it."""
    found = await look(node.home)
    assert found["endpoint"] == (True, f"{node.home.config().serve.url} answers with the attested key")


async def test_check_reaches_the_front_where_the_configuration_says(tmp_path: Path, clock: FakeClock) -> None:
    """From behind a network in which the node's own URL leads nowhere."""
    async with fronted(tmp_path, lambda: float(clock.seconds)) as node:
        toml = node.home.path / "attester.toml"
        text = toml.read_text().replace(node.url, "https://127.0.0.2:9")
        toml.write_text(text.replace("[front]\n", f'[front]\nconnect = "127.0.0.1:{node.port}"\n'))
        assert (await look(node.home))["endpoint"][0] is True


# Control routes.


@pytest.mark.parametrize("control", exposure.ALL, ids=lambda control: control.path)
async def test_a_control_route_that_is_reached_is_found(
    node: Fronted, tmp_path: Path, control: exposure.Control
) -> None:
    """Through an endpoint that passes everything on: each of the table."""

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.path != control.path:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.Response(status=200 if control.method == "GET" else 405)

    home = make_home(tmp_path / "open", "http://127.0.0.1:9")
    async with serving(home, handle):
        assert await Outside(home, home.config()).exposed(home.tls_key()) == (control.path,)


async def test_check_names_the_control_routes_that_are_open(tmp_path: Path) -> None:
    """Row 4 of the issue: vLLM with TLS of its own has them on the public port."""

    async def vllm(request: web.BaseRequest) -> web.Response:
        if request.path == "/v1/models":
            return await _answer(request)
        return web.Response(status=405 if request.path in ("/collective_rpc", "/sleep") else 404)

    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, vllm):
        found = await look(home)
    assert found["control routes"][0] is False
    assert "anybody who is served reaches /collective_rpc, /sleep" in found["control routes"][1]


@pytest.mark.parametrize("status", [200, 204, 401, 403, 404, 405, 429, 500, 502, 301])
async def test_an_endpoint_that_answers_everything_alike_exposes_nothing(tmp_path: Path, status: int) -> None:
    """It does not tell what is behind it."""

    async def alike(_: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, alike):
        assert await Outside(home, home.config()).exposed(home.tls_key()) == ()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503, 504, 307])
async def test_a_route_that_is_guarded_or_fails_is_not_exposed(tmp_path: Path, status: int) -> None:
    """What a proxy answers because its engine is gone says nothing of the route."""

    async def guarded(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status if request.path == "/collective_rpc" else 404)

    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, guarded):
        assert await Outside(home, home.config()).exposed(home.tls_key()) == ()


async def test_the_front_exposes_none_and_asks_the_engine_nothing(node: Fronted) -> None:
    """Not one of the probes comes as far as the engine."""
    assert await Outside(node.home, node.home.config()).exposed(node.home.tls_key()) == ()
    assert node.engine.paths == []


async def test_no_probe_can_have_an_effect(tmp_path: Path) -> None:
    """Only methods that are safe (RFC 9110 §9.2.1), no body, and GET only where the table says that it reads."""
    seen: list[tuple[str, str, bytes]] = []

    async def record(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, request.path_qs, await request.read()))
        return web.Response(status=404)

    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(home, record):
        await Outside(home, home.config()).exposed(home.tls_key())
    reading = {control.path for control in exposure.ALL if control.method == "GET"} | {exposure.NOWHERE}
    assert len(seen) == len(exposure.ALL) + 2
    for method, path, body in seen:
        assert body == b""
        assert method == "OPTIONS" or (method == "GET" and path in reading)
    # These are read on every engine that has them; /metrics of llama.cpp is not, because reading resets it.
    assert reading == {"/props", "/slots", "/lora-adapters", "/api/tags", exposure.NOWHERE}


async def test_an_endpoint_that_cannot_be_reached_is_no_exposure(tmp_path: Path) -> None:
    """It is an error of its own."""
    home = make_home(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="cannot be reached"):
        await Outside(home, home.config()).exposed(home.tls_key())


# The claim.


class Discovering:
    """A verifier's client that gives a discovery document."""

    def __init__(self, *schemes: str) -> None:
        self.schemes, self.asked, self.is_gone = list(schemes), 0, False

    async def discover(self) -> dict[str, Any]:
        self.asked += 1
        if self.is_gone:
            raise VerifierError("gone")
        return {"attestation-schemes": self.schemes}


def claim(tmp_path: Path, client: Discovering, look: Any, clock: FakeClock) -> ExposureClaim:
    home = make_home(tmp_path, "http://127.0.0.1:9")
    outside: Any = Outside(home, home.config())
    source: Any = client
    return ExposureClaim(outside, source, home.tls_key, lambda: clock.ticks, look)


async def nothing(_: Any) -> tuple[str, ...]:
    return ()


async def unreached(_: Any) -> tuple[str, ...]:
    raise EngineError("cannot be reached")


async def everything(_: Any) -> tuple[str, ...]:
    return ("/sleep",)


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (nothing, Exposure(reached=True)),
        (unreached, Exposure(reached=False)),
        (everything, Exposure(reached=True, routes=("/sleep",))),
    ],
    ids=["closed", "unreached", "open"],
)
async def test_the_claim_says_what_was_seen(
    tmp_path: Path, clock: FakeClock, look: Any, expected: Exposure
) -> None:
    """A failure of the network is none of the routes."""
    found = claim(tmp_path, Discovering("touchstone-exposure"), look, clock)
    assert await found.collect() == expected


async def test_an_older_verifier_gets_no_claim(tmp_path: Path, clock: FakeClock) -> None:
    """It would refuse the evidence for a claim that it does not know; it is asked again later."""
    client = Discovering("touchstone-platform")
    found = claim(tmp_path, client, nothing, clock)
    assert await found.collect() is None
    client.schemes.append("touchstone-exposure")
    assert await found.collect() is None
    clock.forward(601)
    assert await found.collect() == Exposure(reached=True)
    assert client.asked == 2


async def test_a_verifier_that_is_away_gets_no_claim(tmp_path: Path, clock: FakeClock) -> None:
    """Until it was there once."""
    client = Discovering("touchstone-exposure")
    client.is_gone = True
    found = claim(tmp_path, client, nothing, clock)
    assert await found.collect() is None
    client.is_gone = False
    assert await found.collect() == Exposure(reached=True)


async def test_the_nodes_own_certificate_is_made_once(tmp_path: Path) -> None:
    """And anew if it does not fit its key."""
    home = make_home(tmp_path, "http://127.0.0.1:9")
    own_identity(home)
    certificate = home.path / "check.crt"
    first = certificate.read_bytes()
    own_identity(home)
    assert certificate.read_bytes() == first
    replace_file(certificate, b"damaged")
    own_identity(home)
    assert certificate.read_bytes() != first
    assert (home.path / "check.key").stat().st_mode & 0o077 == 0


def test_every_control_route_says_what_it_does() -> None:
    """And is there once in its table."""
    for controls in exposure.CONTROLS.values():
        assert len({control.path for control in controls}) == len(controls)
        assert all(control.does and control.path.startswith("/") for control in controls)


async def test_a_slow_endpoint_ends_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of attestation does not wait for it."""

    async def never(_: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("attester.front.outside._ALL_S", 0.2)
    home = make_home(tmp_path, "http://127.0.0.1:9")
    async with serving(
        home,
        never,
    ):
        with pytest.raises(EngineError, match="in time"):
            await Outside(home, home.config()).exposed(home.tls_key())
