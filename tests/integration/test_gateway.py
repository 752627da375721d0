"""The gateway: OpenAI's clients in front, nodes that misbehave behind."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from router.gateway import exchanges
from router.model.load import BREAKER_OPEN_S
from router.model.standing import Standing
from router.service.state import STATE
from tests.integration.gateway import WORK, Fleet, by, key, official, opened
from tests.unit.router.doubles import (
    VECTORS,
    answers,
    honest,
    until,
)
from tests.unit.router.support import MODEL

ERROR = {"message", "type", "param", "code"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


# Honest work.


async def test_the_official_client_gets_its_embedding(fleet: Fleet) -> None:
    """Changing the base URL is all it takes."""
    await fleet.node("a")
    await fleet.start()
    async with official(fleet) as client:
        answer = await client.embeddings.create(model=MODEL, input="hello", encoding_format="float")
    assert answer.data[0].embedding == [0.25, -0.5]


async def test_the_official_client_gets_its_chat(fleet: Fleet) -> None:
    """The other operation too."""
    await fleet.node("a")
    await fleet.start()
    async with official(fleet) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "really?"}]
        )
    assert answer.choices[0].message.content == "yes"


async def test_the_official_client_sees_the_models(fleet: Fleet) -> None:
    """Those there is a workload for."""
    await fleet.start()
    async with official(fleet) as client:
        assert [model.id async for model in await client.models.list()] == [MODEL]


async def test_the_official_client_understands_our_errors(fleet: Fleet) -> None:
    """An unknown model is its own NotFoundError with its own code."""
    await fleet.start()
    async with official(fleet) as client:
        with pytest.raises(openai.NotFoundError) as refused:
            await client.embeddings.create(model="unknown", input="x")
    assert refused.value.code == "model_not_found"


async def test_the_official_client_sees_a_refusal_of_the_node(fleet: Fleet) -> None:
    """A 400 is a BadRequestError with the node's message."""
    node = await fleet.node("a")
    node.act = answers(400, b'{"error": {"message": "input is empty", "type": "invalid_request_error"}}')
    await fleet.start()
    async with official(fleet) as client:
        with pytest.raises(openai.BadRequestError, match="input is empty"):
            await client.embeddings.create(model=MODEL, input="")


async def test_the_answer_is_the_nodes(fleet: Fleet) -> None:
    """Byte for byte in meaning, with nothing added."""
    await fleet.node("a")
    await fleet.start()
    assert (await fleet.post())[1] == VECTORS


async def test_completed_work_counts_for_the_node(fleet: Fleet) -> None:
    """And its place is free again."""
    await fleet.node("a")
    await fleet.start()
    await fleet.post()
    standing = fleet.standing("a")
    assert (standing.completed, standing.failed, fleet.statistics("a").load.in_flight) == (
        (1.0, 1.0),
        (0.0, 0.0),
        0,
    )


# The decision on every answer.


async def test_an_answer_names_its_decision(fleet: Fleet) -> None:
    """Whoever asks gets it with what became of it."""
    await fleet.node("a")
    await fleet.start()
    assert await fleet.attempts() == [("a", "completed")]


@pytest.mark.parametrize(
    ("act", "status"),
    [(answers(500), 502), (answers(400), 400), (answers(429), 503), (answers(404), 502), (answers(200), 502)],
)
async def test_an_error_names_its_decision(fleet: Fleet, act: Any, status: int) -> None:
    """Whatever went wrong after the decision was made."""
    node = await fleet.node("a")
    node.act = act
    await fleet.start()
    found, _, headers = await fleet.post()
    assert (found, len(headers.get("X-Touchstone-Decision", ""))) == (status, 32)


async def test_an_empty_pool_names_its_decision(fleet: Fleet) -> None:
    """There was one: that nobody may."""
    await fleet.start()
    _, _, headers = await fleet.post()
    status, record = await fleet.get(f"/api/v1/decisions/{headers['X-Touchstone-Decision']}")
    assert (status, record["ranked"]) == (200, [])


@pytest.mark.parametrize(("act", "status"), [(honest, 200), (answers(500), 502)])
async def test_explain_adds_the_decision(fleet: Fleet, act: Any, status: int) -> None:
    """To answers and to errors."""
    node = await fleet.node("a")
    node.act = act
    await fleet.start()
    found, document, headers = await fleet.post(**{"X-Touchstone-Explain": "1"})
    explained = document["touchstone"]
    assert (found, explained["id"], explained["chosen"]) == (status, headers["X-Touchstone-Decision"], "a")


async def test_explain_names_who_was_excluded_and_why(fleet: Fleet) -> None:
    """Also of an empty pool."""
    await fleet.node("a")
    fleet.verifier.incidents = [{"id": "i", "node": "a", "state": "open"}]
    await fleet.start()
    _, document, _ = await fleet.post(**{"X-Touchstone-Explain": "1"})
    assert document["touchstone"]["excluded"]["a"]["code"] == "incident.quarantine"


async def test_a_node_cannot_explain_in_the_routers_name(fleet: Fleet) -> None:
    """What is under our name is ours."""
    node = await fleet.node("a")
    node.act = answers(200, json.dumps({**VECTORS, "touchstone": {"chosen": "me"}}).encode())
    await fleet.start()
    _, document, _ = await fleet.post(**{"X-Touchstone-Explain": "1"})
    assert document["touchstone"]["chosen"] == "a"


@pytest.mark.parametrize("value", ["0", "", "true", "11"])
async def test_explain_is_asked_for_with_a_one(fleet: Fleet, value: str) -> None:
    """Anything else is no wish."""
    await fleet.node("a")
    await fleet.start()
    assert (await fleet.post(**{"X-Touchstone-Explain": value}))[1] == VECTORS


# Moving on before the first byte.


async def test_nobody_listening_moves_on(fleet: Fleet) -> None:
    """The work is done by the next, and the first is to blame."""
    await fleet.node("b")
    endpoint = {"url": "https://127.0.0.1:1", "spki_sha256": "ab" * 32}
    fleet.verifier.trust("a", endpoint=endpoint)
    await fleet.start()
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]
    assert fleet.failed("a") == 3.0


async def test_a_500_moves_on(fleet: Fleet) -> None:
    """Another completed the same request, so that it was the node."""
    node = await fleet.node("a")
    node.act = answers(500)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]
    assert fleet.failed("a") == 3.0


NO_ANSWER = [
    b"",
    b"garbage",
    b"{}",
    b"null",
    b"[]",
    b'"data"',
    b'{"data": null}',
    b'{"data": []}',
    b'{"data": {}}',
    b'{"data": "x"}',
    b'{"data": [1',
    b'{"data": [1]} {}',
    b'{"error": {"message": "out of memory"}}',
    b'{"choices": [{}]}',
    b'{"x": ' + b"[" * 100_000,
    b"\xff\xfe",
    b"<html>200 OK</html>",
]


@pytest.mark.parametrize("body", NO_ANSWER, ids=[body[:20].decode("latin-1") for body in NO_ANSWER])
async def test_a_200_that_is_no_answer_moves_on(fleet: Fleet, body: bytes) -> None:
    """Never 200 with nothing in it."""
    node = await fleet.node("a")
    node.act = answers(200, body)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "corrupted"), ("b", "completed")]
    assert fleet.failed("a") == 3.0


@pytest.mark.parametrize(
    "body", [b'{"data": [null]}', b'{"data": [7]}', b'{"data": [{}]}', b'{"data": [{"embedding": "\xff"}]}']
)
async def test_a_200_with_an_empty_shell_moves_on(fleet: Fleet, body: bytes) -> None:
    """A list of nothing is no embedding, and must not earn a completion."""
    node = await fleet.node("a")
    node.act = answers(200, body)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "corrupted"), ("b", "completed")]


TRUNCATED = {
    "by length": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"data"',
    "in chunks": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"dat\r\n',
}


@pytest.mark.parametrize("sent", TRUNCATED.values(), ids=TRUNCATED.keys())
async def test_a_truncated_answer_moves_on(fleet: Fleet, sent: bytes) -> None:
    """Not a byte of it reaches the client."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    await fleet.raw("a", cut)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "truncated"), ("b", "completed")]


@pytest.mark.parametrize(
    "sent",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000],
    ids=["nothing", "no HTTP", "no status", "endless header"],
)
async def test_what_is_no_answer_at_all_moves_on(fleet: Fleet, sent: bytes) -> None:
    """A hang-up, or another protocol."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    await fleet.raw("a", talk)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]


@pytest.mark.parametrize("right", [False, True])
async def test_another_key_never_gets_a_byte_of_the_request(fleet: Fleet, right: bool) -> None:  # noqa: FBT001
    """The connection ends after the handshake; the prompt is for the pinned key alone."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(4096):
                heard.extend(data)
                if data.endswith(b"}"):
                    return

    await fleet.raw("a", listen, pin=None if right else "cd" * 32)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "crashed" if right else "impostor"), ("b", "completed")]
    await asyncio.sleep(0.05)
    assert (b"secret prompt" in heard, bool(heard)) == (right, right)


async def test_an_impostor_does_not_cost_the_node_its_standing(fleet: Fleet) -> None:
    """It keeps work away from that address, and no more."""
    node = await fleet.node("a")
    fleet.verifier.trust("a", endpoint={**node.endpoint, "spki_sha256": "cd" * 32})
    await fleet.start()
    for _ in range(5):
        await fleet.post()
    standing = fleet.standing("a")
    assert (standing.failed, fleet.statistics("a").load.failures_in_a_row) == ((0.0, 0.0), 5)


async def test_a_kept_connection_is_not_lent_to_another_key(fleet: Fleet) -> None:
    """Two nodes that name one address are told apart by their pins, also on a warm connection."""
    node = await fleet.node("a")
    await fleet.start()
    await fleet.post()
    fleet.verifier.send("revocation", node="a")
    endpoint = {"url": node.url, "spki_sha256": "cd" * 32}
    fleet.verifier.send("result", node="b", token=fleet.verifier.token("b", endpoint=endpoint))
    await until(lambda: "b" in fleet.router)
    assert await fleet.attempts() == [("b", "impostor")]
    assert len(node.requests) == 1


async def test_a_hanging_handshake_moves_on(fleet: Fleet) -> None:
    """Who does not greet is not waited for."""

    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    await fleet.raw("a", hang, tls=False)
    await fleet.node("b")
    await fleet.start(connect_timeout_s=0.3)
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]


async def test_a_node_without_tls_is_none(fleet: Fleet) -> None:
    """Plain text on its port ends the attempt, and the prompt is not sent."""
    heard: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    await fleet.raw("a", plain, tls=False)
    await fleet.node("b")
    await fleet.start()
    assert (await fleet.attempts())[-1] == ("b", "completed")
    assert b"secret" not in b"".join(heard)


async def test_a_hanging_answer_moves_on(fleet: Fleet) -> None:
    """The attempt has a time of its own within the caller's."""

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    node = await fleet.node("a")
    node.act = hang
    await fleet.node("b")
    await fleet.start(attempt_timeout_s=0.3)
    assert await fleet.attempts() == [("a", "stalled"), ("b", "completed")]


async def test_a_dripping_answer_moves_on(fleet: Fleet) -> None:
    """A byte now and then does not buy more time."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    node = await fleet.node("a")
    node.act = drip
    await fleet.node("b")
    await fleet.start(attempt_timeout_s=0.4)
    assert await fleet.attempts() == [("a", "stalled"), ("b", "completed")]


async def test_a_gzip_bomb_is_bounded(fleet: Fleet) -> None:
    """A small body that becomes a large one is left where it gets too large."""
    bomb = gzip.compress(bytes(80 << 20), 1)
    node = await fleet.node("a")
    node.act = answers(200, bomb, Content_Encoding="gzip")
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "corrupted"), ("b", "completed")]


async def test_an_endless_answer_is_bounded(fleet: Fleet) -> None:
    """As is one that needs no trick."""

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport is not None:
            await response.write(bytes(1 << 20))
            # A write need not yield, and whoever reads shares this loop.
            await asyncio.sleep(0)
        return response

    node = await fleet.node("a")
    node.act = flood
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "corrupted"), ("b", "completed")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(fleet: Fleet, status: int) -> None:
    """Not to the cloud's metadata, and not to a friend's node."""
    friend = await fleet.node("friend")
    del fleet.verifier.results["friend"]
    node = await fleet.node("a")
    node.act = answers(status, b"", Location=f"{friend.url}/v1/embeddings")
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]
    assert friend.requests == []


@pytest.mark.parametrize("status", [404, 405])
async def test_not_served_here_moves_on(fleet: Fleet, status: int) -> None:
    """Another has it, so that it was the node: its result says that it serves the model."""
    node = await fleet.node("a")
    node.act = answers(status)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "unserved"), ("b", "completed")]
    assert fleet.failed("a") == 3.0


@pytest.mark.parametrize("status", [404, 405])
async def test_what_nobody_serves_is_nobodys_fault(fleet: Fleet, status: int) -> None:
    """Perhaps the client knew."""
    for name in "ab":
        (await fleet.node(name)).act = answers(status)
    await fleet.start()
    assert await fleet.attempts() == [("a", "unserved"), ("b", "unserved")]
    assert (fleet.standing("a"), fleet.standing("b")) == (Standing(), Standing())


async def test_a_node_that_refuses_everything_is_not_taken_at_its_word(fleet: Fleet) -> None:
    """Another is asked too, and where that one completes, it was the node."""
    node = await fleet.node("a")
    node.act = answers(400, b'{"error": {"message": "no"}}')
    await fleet.node("b")
    await fleet.start()
    assert [(await fleet.attempts())[-1][1] for _ in range(3)] == ["refused"] * 3
    assert await fleet.attempts() == [("a", "refused"), ("b", "completed")]
    assert fleet.failed("a") == 3.0


async def test_what_every_node_refuses_is_refused(fleet: Fleet) -> None:
    """However often: a client cannot have nodes ejected by bad requests."""
    for name in "ab":
        (await fleet.node(name)).act = answers(400, b'{"error": {"message": "no"}}')
    await fleet.start()
    assert {(await fleet.post())[0] for _ in range(12)} == {400}
    assert (fleet.failed("a"), fleet.failed("b")) == (0.0, 0.0)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_node_moves_on(fleet: Fleet, status: int) -> None:
    """It loses nothing of its completion."""
    node = await fleet.node("a")
    node.act = answers(status)
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "busy"), ("b", "completed")]
    assert (fleet.failed("a"), fleet.statistics("a").load.failures_in_a_row) == (0.0, 1)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_refusal_is_passed_through(fleet: Fleet, status: int) -> None:
    """It goes to no other node, and nobody is to blame."""
    node = await fleet.node("a")
    node.act = answers(status, b'{"error": {"message": "no"}}')
    other = await fleet.node("b")
    await fleet.start()
    found, document, _ = await fleet.post()
    assert (found, document, other.requests) == (status, {"error": {"message": "no"}}, [])
    assert fleet.standing("a") == Standing()


@pytest.mark.parametrize("status", [400, 413])
async def test_a_refusal_in_plain_text_is_nobodys_fault(fleet: Fleet, status: int) -> None:
    """Web servers refuse what is too large in words of their own; a client must not eject nodes so."""
    node = await fleet.node("a")
    node.act = answers(status, b"413: Request Entity Too Large", Content_Type="text/plain")
    await fleet.start()
    await fleet.post()
    assert fleet.failed("a") == 0.0


async def test_what_every_node_stumbles_over_ejects_nobody(fleet: Fleet) -> None:
    """It is the request."""
    for name in "abc":
        (await fleet.node(name)).act = answers(500)
    await fleet.start()
    for _ in range(5):
        await fleet.post()
    assert [fleet.standing(name) for name in "abc"] == [Standing()] * 3


async def test_a_request_that_another_refuses_ejects_nobody(fleet: Fleet) -> None:
    """One stumbles and one refuses: nobody completed it, and it is the request."""
    node = await fleet.node("a")
    node.act = answers(500)
    other = await fleet.node("b")
    other.act = answers(400)
    await fleet.start()
    await fleet.post()
    assert fleet.failed("a") == 0.0


async def test_a_lonely_node_that_fails_is_to_blame(fleet: Fleet) -> None:
    """There is nobody to ask whether it was the request."""
    (await fleet.node("a")).act = answers(500)
    await fleet.start()
    await fleet.post()
    assert fleet.failed("a") == 3.0


async def test_attempts_are_bounded(fleet: Fleet) -> None:
    """However many nodes there are."""
    for name in "abcd":
        (await fleet.node(name)).act = answers(500)
    await fleet.start(attempts=2)
    assert len(await fleet.attempts()) == 2


async def test_the_callers_time_is_bounded(fleet: Fleet) -> None:
    """No further node is tried when it is over."""
    node = await fleet.node("a")
    other = await fleet.node("b")

    async def slowly(request: web.Request) -> web.StreamResponse:
        fleet.clock.forward(5)
        return await answers(500)(request)

    node.act = slowly
    await fleet.start(timeout_s=5)
    assert (await fleet.attempts(), other.requests) == ([("a", "crashed")], [])


async def test_a_node_without_a_public_address_is_not_asked(fleet: Fleet) -> None:
    """Unless the configuration allows it."""
    node = await fleet.node("a")
    await fleet.start(allow_private=False)
    status, _, _ = await fleet.post()
    assert (status, node.requests) == (503, [])


@pytest.mark.parametrize(
    "endpoint",
    [
        {"url": "http://127.0.0.1:1", "spki_sha256": "ab" * 32},
        {"url": "nonsense", "spki_sha256": "ab" * 32},
        {"url": "", "spki_sha256": ""},
        {"url": "https://127.0.0.1:1", "spki_sha256": "zz"},
        {"url": "https://127.0.0.1:1", "spki_sha256": "ab" * 20},
        {"url": "https://127.0.0.1:99999", "spki_sha256": "ab" * 32},
        {"url": "https://" + "a" * 300, "spki_sha256": "ab" * 32},
        {"url": "https://[::", "spki_sha256": "ab" * 32},
    ],
)
async def test_an_endpoint_that_is_none_moves_on(fleet: Fleet, endpoint: dict[str, str]) -> None:
    """It spoils its own node's chance only."""
    fleet.verifier.trust("a", endpoint=endpoint)
    await fleet.node("b")
    await fleet.start()
    assert (await fleet.attempts())[-1] == ("b", "completed")


@pytest.mark.parametrize(
    "event",
    [
        ("revocation", {"node": "b"}),
        ("incident", {"node": "b", "incident": "i", "state": "open"}),
        ("node", {"node": "b", "state": "retired"}),
    ],
    ids=["revoked", "held", "retired"],
)
async def test_a_node_that_lost_trust_meanwhile_is_skipped(fleet: Fleet, event: Any) -> None:
    """Between the decision and the second attempt, work must not go where trust has gone."""
    node, other = await fleet.node("a"), await fleet.node("b")

    async def meanwhile(request: web.Request) -> web.StreamResponse:
        before = fleet.router.version
        fleet.verifier.send(event[0], **event[1])
        await until(lambda: fleet.router.version > before)
        return await answers(500)(request)

    node.act = meanwhile
    await fleet.start()
    assert (await fleet.attempts(), other.requests) == ([("a", "crashed"), ("b", "skipped")], [])


async def test_all_trust_ends_with_the_verifiers_voice(fleet: Fleet) -> None:
    """A silence of more than a minute also ends what was decided before it."""
    node, other = await fleet.node("a"), await fleet.node("b")

    async def meanwhile(request: web.Request) -> web.StreamResponse:
        fleet.clock.forward(61)
        return await answers(500)(request)

    node.act = meanwhile
    await fleet.start(timeout_s=600)
    assert (await fleet.attempts(), other.requests) == ([("a", "crashed"), ("b", "skipped")], [])


# The breaker.


async def refusing(fleet: Fleet, name: str) -> None:
    """A node at whose address nobody listens."""
    fleet.verifier.trust(name, endpoint={"url": "https://127.0.0.1:1", "spki_sha256": "ab" * 32})


async def test_a_node_that_keeps_failing_gets_no_more_work(fleet: Fleet) -> None:
    """As soon as there is another."""
    await refusing(fleet, "a")
    await fleet.start()
    for _ in range(3):
        await fleet.post()
    await fleet.node("b")
    token = fleet.verifier.results["b"]
    fleet.verifier.send("result", node="b", token=token)
    await until(lambda: "b" in fleet.router)
    _, document, _ = await fleet.post(**{"X-Touchstone-Explain": "1"})
    assert document["touchstone"]["excluded"]["a"]["code"] == "capacity.breaker"


async def test_the_last_node_is_tried_though_broken(fleet: Fleet) -> None:
    """Better to try than to refuse, and the decision says so."""
    await refusing(fleet, "a")
    await fleet.start()
    for _ in range(3):
        await fleet.post()
    _, document, _ = await fleet.post(**{"X-Touchstone-Explain": "1"})
    assert document["touchstone"]["opened"] == ["capacity.breaker"]


async def test_a_mended_node_comes_back_by_a_probe(fleet: Fleet) -> None:
    """One success closes the breaker."""
    node = await fleet.node("a")
    node.act = answers(200, b"garbage")
    await fleet.start()
    for _ in range(3):
        await fleet.post()
    node.act = honest
    fleet.clock.forward(BREAKER_OPEN_S)
    await fleet.post()
    assert (
        fleet.statistics("a").load.failures_in_a_row,
        not fleet.statistics("a").load.breaker_is_open(0),
    ) == (0, True)


# Requests.


async def test_duplicate_keys_cannot_smuggle_a_model(fleet: Fleet) -> None:
    """The node reads the model the router decided for, once."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post(b'{"model": "big", "input": "x", "model": "%s"}' % MODEL.encode())
    assert (status, node.bodies[0].count(b'"model"'), json.loads(node.bodies[0])["model"]) == (200, 1, MODEL)


async def test_the_last_of_duplicate_models_is_the_one(fleet: Fleet) -> None:
    """As the router reads it, so it decides."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post(b'{"model": "%s", "input": "x", "model": "big"}' % MODEL.encode())
    assert (status, node.requests) == (404, [])


@pytest.mark.parametrize(
    "key", ["Model", "MODEL", "mOdel", "Stream", "STREAM", "\u017ftream", "\\u004dodel", "\\u017ftream"]
)
async def test_other_spellings_of_our_keys_are_refused(fleet: Fleet, key: str) -> None:
    """A lenient parser on the node would read them."""
    node = await fleet.node("a")
    await fleet.start()
    status, document, _ = await fleet.post(f'{{"model": "{MODEL}", "{key}": "big"}}'.encode())
    assert (status, set(document["error"]), node.requests) == (400, ERROR, [])


async def test_an_escaped_key_is_the_key(fleet: Fleet) -> None:
    """Escapes are read before anything is decided."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post(b'{"\\u006dodel": "%s", "input": "x"}' % MODEL.encode())
    assert (status, json.loads(node.bodies[0])) == (200, {"model": MODEL, "input": "x"})


@pytest.mark.parametrize("value", [True, 1, "true", "false", "", {}, [], 2.5])
async def test_a_wish_to_stream_is_refused(fleet: Fleet, value: Any) -> None:
    """Rather than answered as if it had not been said."""
    node = await fleet.node("a")
    await fleet.start()
    status, document, _ = await fleet.post({**WORK, "stream": value})
    assert (status, set(document["error"]), node.requests) == (400, ERROR, [])


@pytest.mark.parametrize("value", [None, False])
async def test_no_wish_to_stream_is_accepted(fleet: Fleet, value: Any) -> None:
    """As clients write it, and the node hears nothing of it."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post({**WORK, "stream": value})
    assert (status, json.loads(node.bodies[0])) == (200, WORK)


async def test_a_second_stream_key_cannot_smuggle(fleet: Fleet) -> None:
    """The last one counts, and none reaches the node."""
    node = await fleet.node("a")
    await fleet.start()
    status, _, _ = await fleet.post(b'{"model": "%s", "stream": true, "stream": false}' % MODEL.encode())
    assert (status, b"stream" in node.bodies[0]) == (200, False)


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "no model": b"{}",
    "a number": b'{"model": 7}',
    "null model": b'{"model": null}',
    "a long model": b'{"model": "%s"}' % (b"m" * 129),
    "not UTF-8": b'{"model": "\xff"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "a lone surrogate elsewhere": b'{"model": "example/tiny", "input": "\\udfff"}',
    "deep": b'{"model": "example/tiny", "input": ' + b"[" * 100_000,
    "deep and closed": b'{"model": "example/tiny", "input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "infinite": b'{"model": "example/tiny", "input": 1e999}',
    "NaN": b'{"model": "example/tiny", "input": NaN}',
    "two documents": b'{"model": "example/tiny"} {}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused(fleet: Fleet, body: bytes) -> None:
    """In the form that OpenAI's clients read, and no node is bothered."""
    node = await fleet.node("a")
    await fleet.start()
    status, document, _ = await fleet.post(body)
    assert (status, set(document["error"]), node.requests) == (400, ERROR, [])


async def test_large_numbers_reach_the_node_whole(fleet: Fleet) -> None:
    """Writing the request anew does not change what it says."""
    node = await fleet.node("a")
    await fleet.start()
    given = {**WORK, "seed": 2**70, "user": "é\u0000😀", "nested": {"model": "x", "stream": True}}
    await fleet.post(given)
    assert json.loads(node.bodies[0]) == given


async def test_a_body_that_is_too_large_is_413(fleet: Fleet) -> None:
    """By what it says of its length."""
    node = await fleet.node("a")
    await fleet.start()
    status, document, _ = await fleet.post(bytes((16 << 20) + 1))
    assert (status, set(document["error"]), node.requests) == (413, ERROR, [])


async def test_a_body_that_grows_too_large_is_413(fleet: Fleet) -> None:
    """By what comes, where it says nothing."""
    await fleet.start()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(1 << 20)

    async with fleet.http.post(f"{fleet.url}/v1/embeddings", data=chunks()) as response:
        assert response.status == 413


async def test_a_compressed_request_is_refused(fleet: Fleet) -> None:
    """No bomb is opened here."""
    await fleet.start()
    status, document, _ = await fleet.post(gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})
    assert (status, set(document["error"])) == (400, ERROR)


async def test_an_unknown_model_is_404(fleet: Fleet) -> None:
    """In the form that OpenAI's clients read."""
    await fleet.start()
    status, document, _ = await fleet.post({"model": "unknown"})
    assert (status, set(document["error"]), document["error"]["code"]) == (404, ERROR, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nothing/at/all"),
        ("PATCH", "/v1/"),
        ("POST", "/v1/embeddings/"),
        ("POST", "/v1/chat%2Fcompletions"),
        ("POST", "/v1/Embeddings"),
    ],
)
async def test_an_unknown_resource_is_404(fleet: Fleet, method: str, path: str) -> None:
    """Anything below /v1 that is not there, by whatever method."""
    node = await fleet.node("a")
    await fleet.start()
    async with fleet.http.request(method, fleet.url + path, json=WORK) as response:
        document = await response.json(content_type=None)
    assert (response.status, set(document["error"]), node.requests) == (404, ERROR, [])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
    ],
)
async def test_another_method_is_405(fleet: Fleet, method: str, path: str, allowed: str) -> None:
    """It says which there are."""
    node = await fleet.node("a")
    await fleet.start()
    async with fleet.http.request(method, fleet.url + path, json=WORK) as response:
        document = await response.json(content_type=None)
    assert (response.status, set(document["error"]), node.requests) == (405, ERROR, [])
    assert response.headers["Allow"] == allowed


async def test_an_operation_that_the_workload_lacks_is_404(fleet: Fleet) -> None:
    """A model for embeddings does not chat."""
    node = await fleet.node("a")
    await fleet.start({"operations": ["embeddings"]})
    status, document, _ = await fleet.post({"model": MODEL}, "/v1/chat/completions")
    assert (status, set(document["error"]), node.requests) == (404, ERROR, [])


# Keys and secrets.

KEY = "sk-test"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic sk-test",
        "sk-test",
        f"Bearer {DIGEST}",
        "Bearer é",
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions", "/api/v1/decisions"])
async def test_without_a_key_nothing_is_done(fleet: Fleet, path: str, header: str | None) -> None:
    """Missing, wrong, in another form, or the digest in its place."""
    node = await fleet.node("a")
    await fleet.start(key_digests=[DIGEST])
    status, _, _ = await fleet.post(WORK, path, **({} if header is None else {"Authorization": header}))
    assert (status, node.requests) == (401, [])


async def test_a_body_that_nobody_wants_is_not_read(fleet: Fleet) -> None:
    """The connection ends with the refusal, however much is still to come."""
    await fleet.start(key_digests=[DIGEST])
    begun = asyncio.Event()

    async def forever() -> AsyncIterator[bytes]:
        yield b"{"
        await begun.wait()

    async with fleet.http.post(f"{fleet.url}/v1/embeddings", data=forever()) as response:
        found = response.status, response.headers.get("Connection")
    begun.set()
    assert found == (401, "close")


@pytest.mark.parametrize("path", ["/v1/models", f"/api/v1/decisions/{'0' * 32}"])
async def test_without_a_key_nothing_is_shown(fleet: Fleet, path: str) -> None:
    """Neither models nor decisions."""
    await fleet.start(key_digests=[DIGEST])
    assert (await fleet.get(path))[0] == 401


async def test_any_of_the_keys_opens(fleet: Fleet) -> None:
    """Each caller has one of their own."""
    await fleet.node("a")
    await fleet.start(key_digests=["00" * 32, DIGEST, "ff" * 32])
    async with official(fleet, KEY) as client:
        answer = await client.embeddings.create(model=MODEL, input="x", encoding_format="float")
    assert len(answer.data) == 1


async def test_the_official_client_understands_a_wrong_key(fleet: Fleet) -> None:
    """As its own AuthenticationError."""
    await fleet.start(key_digests=[DIGEST])
    async with official(fleet, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.embeddings.create(model=MODEL, input="x")
    assert refused.value.code == "invalid_api_key"


async def test_what_identifies_the_client_never_reaches_a_node(fleet: Fleet) -> None:
    """Neither keys nor cookies nor addresses: of the request's headers, none."""
    node = await fleet.node("a")
    await fleet.start(key_digests=[DIGEST])
    await fleet.post(
        Authorization=f"Bearer {KEY}",
        Cookie="session=secret-cookie",
        **{
            "X-Forwarded-For": "198.51.100.7",
            "X-Api-Key": "secret-key",
            "OpenAI-Organization": "secret-org",
            "User-Agent": "secret-agent",
        },
    )
    (request,) = node.requests
    sent = repr(list(request.headers.items())).lower()
    assert [word for word in ("secret", KEY, "cookie", "authorization", "198.51") if word in sent] == []


async def test_a_nodes_cookie_comes_back_to_nobody(fleet: Fleet) -> None:
    """Neither to the client nor, with the next request, to the node."""
    node = await fleet.node("a")
    node.act = answers(200, json.dumps(VECTORS).encode(), Set_Cookie="mark=1; Path=/", X_Mark="1")
    await fleet.start()
    _, _, headers = await fleet.post()
    await fleet.post()
    assert ("Set-Cookie" in headers, "X-Mark" in headers, "Cookie" in node.requests[1].headers) == (
        False,
        False,
        False,
    )


# Empty pools and full nodes.


async def test_an_empty_pool_is_503(fleet: Fleet) -> None:
    """With the counts of why, and when to come back."""
    for name in "abc":
        fleet.verifier.trust(name)
    fleet.verifier.incidents = [{"id": "i", "node": "a", "state": "open"}]
    for name in "bc":
        fleet.verifier.trust(name, platform_assurance="none")
    await fleet.start()
    status, document, headers = await fleet.post()
    message = "no node may do this work now: 1 incident.quarantine, 2 result.assurance"
    assert (status, document["error"]["message"], int(headers["Retry-After"]) > 0) == (503, message, True)


async def test_a_pool_of_nobody_is_503(fleet: Fleet) -> None:
    """And says that no nodes are known."""
    await fleet.start()
    status, document, headers = await fleet.post()
    assert (status, set(document["error"]), "Retry-After" in headers) == (503, ERROR, True)


async def test_a_full_node_is_not_overfilled(fleet: Fleet) -> None:
    """The request beyond its concurrency is told to come back."""
    node = await fleet.node("a")
    go = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return await honest(request)

    node.act = wait
    await fleet.start({"concurrency": 2})
    waiting = [asyncio.create_task(fleet.post()) for _ in range(2)]
    await until(lambda: len(node.requests) == 2)
    status, document, _ = await fleet.post()
    go.set()
    await asyncio.gather(*waiting)
    assert (status, "1 capacity.full" in document["error"]["message"]) == (503, True)


# Clients that leave.


async def test_a_client_that_leaves_frees_the_node_and_blames_nobody(fleet: Fleet) -> None:
    """The work is ended where it is done, too."""
    node = await fleet.node("a")
    ended = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    node.act = wait
    await fleet.start()
    leaving = asyncio.create_task(fleet.post())
    await until(lambda: node.requests)
    busy = fleet.statistics("a").load.in_flight
    leaving.cancel()
    await until(lambda: fleet.statistics("a").load.in_flight == 0)
    async with asyncio.timeout(5):
        await ended.wait()
    assert (busy, fleet.standing("a")) == (1, Standing())


async def test_a_client_that_leaves_is_in_the_record(fleet: Fleet) -> None:
    """As the client's own doing, and no other node is tried."""
    node = await fleet.node("a")
    other = await fleet.node("b")

    async def wait(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    node.act = wait
    await fleet.start()
    leaving = asyncio.create_task(fleet.post())
    await until(lambda: node.requests)
    (record,) = fleet.app[STATE].records._newest._things.values()
    leaving.cancel()
    await until(lambda: record.attempts)
    assert ([(a.outcome, a.blame) for a in record.attempts], other.requests) == (
        [("abandoned", "client")],
        [],
    )


# Decisions as a resource.


async def test_a_decision_can_be_asked_for(fleet: Fleet) -> None:
    """With where the nodes serve, and by which key they are known."""
    node = await fleet.node("a")
    await fleet.start(sections={"keys": [key("ada", may_dispatch=True)]})
    status, document, headers = await fleet.post({"model": MODEL}, "/api/v1/decisions", **by("ada"))
    assert (status, document["chosen"], document["endpoints"]) == (201, "a", {"a": node.endpoint})
    assert headers["Location"] == f"/api/v1/decisions/{document['id']}"


async def test_endpoints_are_for_keys_that_may_dispatch(fleet: Fleet) -> None:
    """Who has them reaches nodes without the router, its limits and its records."""
    node = await fleet.node("a")
    await fleet.start(sections={"keys": [key("ada"), key("adam", roles=["administrator"])]})
    for who in ("ada", "adam"):
        status, document, _ = await fleet.post({"model": MODEL}, "/api/v1/decisions", **by(who))
        assert (status, document["chosen"], document["endpoints"]) == (201, "a", None)
        assert node.url not in str(document)


async def test_a_decision_can_be_looked_up(fleet: Fleet) -> None:
    """It is the one that was made."""
    await fleet.node("a")
    await fleet.start()
    _, made, headers = await fleet.post({"model": MODEL}, "/api/v1/decisions")
    status, found = await fleet.get(headers["Location"])
    assert (status, found) == (200, {k: v for k, v in made.items() if k != "endpoints"})


async def test_a_decision_sends_no_work(fleet: Fleet) -> None:
    """Whoever asked dispatches it."""
    node = await fleet.node("a")
    await fleet.start()
    await fleet.post({"model": MODEL}, "/api/v1/decisions")
    assert (node.requests, fleet.standing("a")) == ([], Standing())


async def test_a_decision_without_explanation_counts_only(fleet: Fleet) -> None:
    """In a large fleet the full list is long."""
    fleet.verifier.trust("a", platform_assurance="none")
    await fleet.start()
    _, document, _ = await fleet.post({"model": MODEL, "explain": False}, "/api/v1/decisions")
    assert (document["closed"], "excluded" in document) == ({"result.assurance": 1}, False)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "unknown"}, 404),
        ({}, 400),
        ({"model": 7}, 400),
        ({"model": MODEL, "explain": "yes"}, 400),
        ({"model": MODEL, "seed": 1}, 400),
        (b"[" * 10_000, 400),
        (bytes(65 * 1024), 413),
    ],
)
async def test_a_decision_that_cannot_be_made_is_refused(fleet: Fleet, body: Any, status: int) -> None:
    """As a problem document."""
    await fleet.start()
    found, document, _ = await fleet.post(body, "/api/v1/decisions")
    assert (found, document["status"]) == (status, status)


@pytest.mark.parametrize("which", ["0" * 32, "x", "..%2F..", "%00"])
async def test_an_unknown_decision_is_404(fleet: Fleet, which: str) -> None:
    """Ids are not guessed."""
    await fleet.start()
    assert (await fleet.get(f"/api/v1/decisions/{which}"))[0] == 404


async def test_what_a_node_said_is_not_in_an_error(fleet: Fleet) -> None:
    """An error of the router's is in the router's words."""
    (await fleet.node("a")).act = answers(500, b'{"error": "APIConnectionError: do not blame me"}')
    await fleet.start()
    _, document, _ = await fleet.post()
    assert (document["error"]["message"], fleet.failed("a")) == (
        "no node completed the work; the last: crashed",
        3.0,
    )


async def test_answers_together_are_bounded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that agree to send as much as one may cannot fill the router's memory."""

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(8):
            await response.write(bytes(1 << 20))
        return response

    monkeypatch.setattr(exchanges, "MAX_READING", 4 << 20)
    (await fleet.node("a")).act = large
    await fleet.node("b")
    await fleet.start()
    assert await fleet.attempts() == [("a", "hindered"), ("b", "completed")]
