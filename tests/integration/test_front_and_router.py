"""A real front before an engine, and a real router that asks it what it has signed of an answer."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from attester import identity as keys
from attester import router_list
from attester.config import Home
from attester.cose import PrivateKey
from attester.front import process, receipts
from attester.front.clients import LIST, replace_file
from attester.front.receipts import Ring, Served, open_receipt
from attester.router_list import KnownRouter
from fixtures.fronted import make_home
from fixtures.streaming import HONEST, Behaviour, StreamingEngine
from router.state.identity import Identity
from tests.integration.gateway import CHAT, STREAM, WORK, Fleet, opened
from tests.unit.router.doubles import answers, serving
from tests.unit.router.support import MODEL
from verifier.router_receipts import unb64url

PATH = "/touchstone/receipts/"


class Node:
    """A front that serves one router, and the engine behind it."""

    def __init__(self, fleet: Fleet, home: Home, port: int, engine: StreamingEngine) -> None:
        self.fleet = fleet
        self.engine = engine
        self.usage = home.path / "usage"
        self.pin = hashlib.sha256(keys.spki(home.tls_key())).hexdigest()
        self.endpoint = {"url": f"https://127.0.0.1:{port}", "spki_sha256": self.pin}

    async def receipt(self, headers: dict[str, str]) -> dict[str, Any]:
        """The router's receipt of an answer as JSON, with its payload."""
        path = f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}"
        status, document = await self.fleet.get(path, Accept="application/json")
        assert status == 200, document
        return {**document, "payload": msgspec.json.decode(unb64url(document["receipt"].split(".")[1]))}


@asynccontextmanager
async def fronted_router(
    folder: Path, *, behaviour: Behaviour = HONEST, sections: dict[str, Any] | None = None, **front: Any
) -> AsyncIterator[Node]:
    """A router and a front that knows it."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(opened(folder))
        engine = StreamingEngine(MODEL, behaviour)
        url = await stack.enter_async_context(serving(engine.app()))
        home = make_home(folder, url, front=front)
        identity = Identity.make(datetime.now(UTC))
        certificate = identity.certificate
        known = KnownRouter("router", certificate.der, certificate.spki_sha256.hex())
        replace_file(home.path / LIST, router_list.write((known,), int(time.time())))
        _, port = await stack.enter_async_context(process.serving(home, home.config()))
        node = Node(fleet, home, port, engine)
        fleet.verifier.trust("a", endpoint=node.endpoint, measured={"walk_at_ms": 1_794_999_000_000})
        await fleet.start(identity=identity, sections=sections)
        yield node


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
async def test_the_front_signs_what_the_router_received(tmp_path: Path, body: dict[str, Any]) -> None:
    """Both digests are one, and the front's signature is by the key that the router was pinned to."""
    async with fronted_router(tmp_path) as node:
        heard = await node.fleet.ask(body)
        assert heard.status == 200
        found = await node.receipt(heard.headers)
        of_node = found["payload"]["node"]
        signed = open_receipt(found["front"]["jws"], of_node["spki_sha256"])
        assert of_node["spki_sha256"] == node.pin
        assert (found["front"]["agrees"], signed.response.sha256) == (True, of_node["answer_sha256"])
        assert (signed.jti, signed.model) == (of_node["request"], MODEL)
        assert (signed.response.status, signed.response.complete) == (200, True)
        assert of_node["walk_at"] == 1_794_999_000_000


async def test_a_refusal_of_the_engine_is_signed_too(tmp_path: Path) -> None:
    async with fronted_router(tmp_path) as node:
        node.engine.behaviour = Behaviour("refuses")
        heard = await node.fleet.ask(CHAT)
        found = await node.receipt(heard.headers)
        assert heard.status == 400
        assert found["front"]["agrees"] is True


async def test_a_front_that_signs_another_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS protects the bytes between the two: it is not the network.  Both words stand beside each other."""
    real = Served.take_answer

    def lie(self: Served, part: bytes) -> None:
        real(self, part.replace(b"e", b"a"))

    monkeypatch.setattr(Served, "take_answer", lie)
    async with fronted_router(tmp_path) as node:
        heard = await node.fleet.ask(STREAM)
        found = await node.receipt(heard.headers)
        assert found["front"]["agrees"] is False
        signed = open_receipt(found["front"]["jws"], node.pin)
        assert signed.response.sha256 != found["payload"]["node"]["answer_sha256"]
        # It is shown, and moves nothing: the answer was given, and its outcome decided.
        assert found["payload"]["outcome"] == "completed"
        assert node.fleet.failed("a") == 0


async def test_an_answer_that_broke_off_is_not_compared(tmp_path: Path) -> None:
    """The router may have read less than was sent."""
    async with fronted_router(tmp_path, behaviour=Behaviour("cuts", tokens=5)) as node:
        heard = await node.fleet.ask(STREAM)
        found = await node.receipt(heard.headers)
        assert found["payload"]["outcome"] != "completed"
        assert found["front"] is None or found["front"]["agrees"] in (None, True)


async def test_a_front_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fronted_router(tmp_path) as node:
        heard = await node.fleet.ask(CHAT)
        first = await node.receipt(heard.headers)

        def fail(*_: Any) -> str:
            raise AssertionError

        monkeypatch.setattr("attester.front.ledger.sign", fail)
        again = await node.receipt(heard.headers)
        assert again["front"] == first["front"]


async def test_what_a_front_has_signed_is_kept(tmp_path: Path) -> None:
    """By a router that keeps its records, also when it is started again and the front has forgotten."""
    sections = {"store": {"path": str(tmp_path / "router.db"), "flush_s": 0.1}}
    async with fronted_router(tmp_path, sections=sections) as node:
        heard = await node.fleet.ask(CHAT)
        first = await node.receipt(heard.headers)
        await node.fleet.stop()
        await node.fleet.start(sections=sections)
        again = await node.receipt(heard.headers)
        assert (again["front"], again["receipt"]) == (first["front"], first["receipt"])


async def test_a_front_that_keeps_nothing_gives_no_receipt(tmp_path: Path) -> None:
    async with fronted_router(tmp_path, receipts=0) as node:
        heard = await node.fleet.ask(CHAT)
        found = await node.receipt(heard.headers)
        assert (heard.status, found["front"]) == (200, None)


async def test_a_node_without_a_front_gives_no_receipt(tmp_path: Path) -> None:
    """Whatever it answers there; it is asked once, and nothing is held against it."""
    async with opened(tmp_path) as fleet:
        node = await fleet.node("a")
        await fleet.start()
        for act in (answers(404), answers(200, b'{"a": 1}'), answers(500)):
            node.act = await_then(act)
            _, _, headers = await fleet.post(WORK)
            path = f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}"
            for _ in range(2):
                status, document = await fleet.get(path, Accept="application/json")
                assert (status, document["front"]) == (200, None)
        asked = [request.path for request in node.requests if request.path.startswith(PATH)]
        assert (len(asked), len(set(asked)), fleet.failed("a")) == (3, 3, 0)


async def test_what_another_key_has_signed_is_no_receipt(tmp_path: Path) -> None:
    """Nor is the right key's receipt of another request."""
    async with opened(tmp_path) as fleet:
        node = await fleet.node("a")
        served = Served("0" * 32)
        served.end(PrivateKey.generate(), 200, 1, is_complete=True)
        other = receipts.sign(served, 1)
        node.act = await_then(answers(200, other.encode(), Content_Type="application/jwt"))
        await fleet.start()
        _, _, headers = await fleet.post(WORK)
        status, document = await fleet.get(
            f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}", Accept="application/json"
        )
        assert (status, document["front"]) == (200, None)


async def test_the_receipt_of_another_request_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the right key has signed it: a node has one good answer, and shows its receipt for all."""
    async with fronted_router(tmp_path) as node:
        await node.fleet.ask(CHAT)
        second = await node.fleet.ask(CHAT)
        monkeypatch.setattr(Ring, "find", lambda self, *_: next(iter(self._kept.values()))[1])
        assert (await node.receipt(second.headers))["front"] is None


async def test_a_front_that_cannot_be_reached_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """Who waits for a receipt asks again and again; later the front is asked anew."""
    async with opened(tmp_path) as fleet:
        node = await fleet.node("a")
        asked, hang_up = [], True

        async def act(request: web.Request) -> web.StreamResponse:
            asked.append(request.path)
            if hang_up and request.transport is not None:
                request.transport.abort()
            return web.Response(status=404)

        node.act = await_then(act)
        await fleet.start()
        _, _, headers = await fleet.post(WORK)
        path = f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}"
        counts = []
        for _ in range(3):
            _, document = await fleet.get(path, Accept="application/json")
            assert document["front"] is None
            counts.append(len(asked))
        # The library itself asks once more.
        assert counts[0] == counts[-1] <= 2
        hang_up = False
        fleet.clock.forward(16)
        for _ in range(3):
            await fleet.get(path, Accept="application/json")
        assert len(asked) == counts[0] + 1


def await_then(act: Any) -> Any:
    """A node that works honestly, and answers so when it is asked for a receipt."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith(PATH):
            return await act(request)  # type: ignore[no-any-return]  # a handler
        await request.read()
        data = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
        return web.json_response({**data, "model": MODEL, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    return answer


async def test_every_attempt_has_an_id_of_its_own(tmp_path: Path) -> None:
    """A node cannot tell by it which requests belong together."""
    async with opened(tmp_path) as fleet:
        nodes = [await fleet.node(name) for name in "ab"]
        nodes[0].act = answers(500)
        await fleet.start()
        for _ in range(2):
            await fleet.post(WORK)
        ids = [each.headers["X-Touchstone-Request"] for node in nodes for each in node.requests]
        assert len(ids) == len(set(ids)) >= 3
        assert all(receipts.read_id(each) == each for each in ids)


async def test_the_choice_is_in_the_receipt(tmp_path: Path) -> None:
    """What was committed to, what was revealed, and the digest of the caller's nonce."""
    async with opened(tmp_path) as fleet:
        await fleet.node("a")
        await fleet.start()
        _, _, headers = await fleet.post(WORK)
        commitment = headers["X-Touchstone-Commitment"]
        nonce = "A" * 22
        _, _, headers = await fleet.post(
            WORK, **{"X-Touchstone-Nonce": f"{commitment.partition('.')[0]}.{nonce}"}
        )
        path = f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}"
        _, document = await fleet.get(path, Accept="application/json")
        choice = json.loads(unb64url(document["receipt"].split(".")[1]))["choice"]
        assert (choice["commitment"], choice["nonce_sha256"]) == (
            commitment,
            hashlib.sha256(bytes(16)).hexdigest(),
        )
        reveal = bytes.fromhex(choice["reveal"])
        assert hashlib.sha256(reveal).hexdigest() == commitment.partition(".")[2]
