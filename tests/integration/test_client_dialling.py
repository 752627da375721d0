"""A caller dials nodes itself: by the pin in the result that the verifier gives to it, and by nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from router.client.dialling import Dialled, Dialler
from router.client.errors import RefusedError, Step, UnreachableError, UnverifiedError
from router.client.trust import Required, RouterTrust, Trust, TrustFile, VerifierTrust
from tests.integration.gateway import CHAT, CHATS, EngineNode, Fleet, key, opened
from tests.unit.router.doubles import serving
from tests.unit.router.support import MODEL, ear
from verifier.results import encode_jwt

REQUIRED = Required(log="never")


class Results:
    """The verifier's resource that gives a node's result to those that ask for it by name."""

    def __init__(self, fleet: Fleet) -> None:
        self.tokens: dict[str, str] = dict(fleet.verifier.results)
        self.asked: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/nodes/{id}/result", self._show)
        return app

    async def _show(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer of-the-verifier"
        self.asked.append(request.match_info["id"])
        token = self.tokens.get(request.match_info["id"])
        return web.Response(status=200 if token else 404, text=token)


@asynccontextmanager
async def dialling(fleet: Fleet, name: str = "sk-caller") -> AsyncIterator[tuple[Dialler, Results]]:
    """A dialler, whose verifier's results a test may change: they are signed for the URL that gives them."""
    results = Results(fleet)
    async with serving(results.app()) as url:
        for node, endpoint in fleet_endpoints(fleet).items():
            results.tokens[node] = token(fleet, url, node, endpoint)
        file = TrustFile(
            router=RouterTrust(url=fleet.url, gives_receipts=False),
            verifier=VerifierTrust(issuer=url, keys=tuple(fleet.verifier.keys)),
            require=REQUIRED,
        )
        async with Dialler(
            trust=Trust(file), key=name, verifier_key="of-the-verifier", allow_private=True,
            clock=lambda: fleet.clock.ms / 1000,
        ) as dialler:  # fmt: skip
            yield dialler, results


def fleet_endpoints(fleet: Fleet) -> dict[str, Any]:
    views = {name: fleet.router.view(name) for name in fleet.verifier.results}
    return {
        name: {"url": view.endpoint[0], "spki_sha256": view.endpoint[1]}
        for name, view in views.items()
        if view.endpoint is not None
    }


def token(fleet: Fleet, issuer: str, node: str, endpoint: Any, **given: Any) -> str:
    result = ear(node, issuer=issuer, iat=fleet.clock.seconds, endpoint=endpoint, **given)
    return encode_jwt(result, fleet.verifier.key)


Nodes = tuple[Fleet, EngineNode, EngineNode]


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with opened(tmp_path) as fleet:
        one, two = await fleet.engine("a"), await fleet.engine("b")
        await fleet.start(sections={"keys": [key("caller", may_dispatch=True), key("other")]})
        yield fleet, one, two


async def ask(dialler: Dialler) -> Dialled:
    return await dialler.ask(MODEL, CHATS, msgspec.json.encode(CHAT))


async def test_a_node_is_dialled_by_its_result(nodes: Nodes) -> None:
    fleet, one, two = nodes
    async with dialling(fleet) as (dialler, results):
        answer = await ask(dialler)
    assert answer.status == 200
    assert answer.node == results.asked[0]
    assert one.engine.requests + two.engine.requests == 1
    assert list(answer.steps) == [Step.RESULT, Step.MODEL, Step.AGE]


async def refused(dialler: Dialler) -> Step:
    with pytest.raises(UnverifiedError) as caught:
        await ask(dialler)
    return caught.value.step


async def test_another_key_than_the_results_gets_no_byte(nodes: Nodes) -> None:
    """Neither by the router's word nor by its own does a node get a prompt."""
    fleet, one, two = nodes
    async with dialling(fleet) as (dialler, results):
        for node, endpoint in fleet_endpoints(fleet).items():
            wrong = {**endpoint, "spki_sha256": "ab" * 32}
            results.tokens[node] = token(fleet, dialler.trust.verifier.issuer, node, wrong)
        assert await refused(dialler) is Step.RESULT
    assert one.engine.requests + two.engine.requests == 0


async def test_another_node_answers_at_the_address(nodes: Nodes) -> None:
    """Router and verifier name one key, and another answers."""
    fleet, one, two = nodes
    async with dialling(fleet) as (dialler, results):
        places = fleet_endpoints(fleet)
        swapped = {
            "a": {**places["a"], "url": places["b"]["url"]},
            "b": {**places["b"], "url": places["a"]["url"]},
        }
        for node, endpoint in swapped.items():
            results.tokens[node] = token(fleet, dialler.trust.verifier.issuer, node, endpoint)

        async def decide(_: str) -> Any:
            decision = await Dialler._decide(dialler, MODEL)
            return msgspec.convert({**msgspec.to_builtins(decision), "endpoints": swapped}, type(decision))

        dialler._decide = decide  # type: ignore[method-assign]  # the router lies
        assert await refused(dialler) is Step.RESULT
    assert one.engine.requests + two.engine.requests == 0


async def test_the_next_node_is_dialled_if_the_first_does_not_verify(nodes: Nodes) -> None:
    fleet, _, two = nodes
    async with dialling(fleet) as (dialler, results):
        results.tokens["a"] = token(
            fleet, dialler.trust.verifier.issuer, "a", fleet_endpoints(fleet)["a"], weights={"file-system": 2}
        )
        answer = await ask(dialler)
    assert answer.node == "b"
    assert two.engine.requests == 1


async def test_a_result_that_has_expired(nodes: Nodes) -> None:
    fleet, _, _ = nodes
    async with dialling(fleet) as (dialler, _):
        fleet.clock.forward(400)
        fleet.verifier.beat()
        with pytest.raises((UnverifiedError, RefusedError)):
            await ask(dialler)


async def test_a_verifier_that_knows_no_such_node(nodes: Nodes) -> None:
    fleet, _, _ = nodes
    async with dialling(fleet) as (dialler, results):
        results.tokens.clear()
        assert await refused(dialler) is Step.RESULT


async def test_a_key_that_may_not_dispatch(nodes: Nodes) -> None:
    fleet, _, _ = nodes
    async with dialling(fleet, "sk-other") as (dialler, _):
        with pytest.raises(RefusedError, match="may not dispatch"):
            await ask(dialler)


async def test_a_node_that_is_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        await fleet.raw("a", _hang_up)
        await fleet.start(sections={"keys": [key("caller", may_dispatch=True)]})
        async with dialling(fleet) as (dialler, _):
            with pytest.raises(UnreachableError):
                await ask(dialler)


async def _hang_up(_: Any, writer: Any) -> None:
    writer.close()
