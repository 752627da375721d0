"""Answers and evidence are sent again while their session lives, and never after."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from attester.client import Session, VerifierClient
from attester.cose import PrivateKey
from attester.errors import VerifierError
from attester.evidence import ReadAnswer
from attester.proof import Proof

START = 1_795_000_000.0
KEY = PrivateKey.generate()
ANSWERS = {"a": (ReadAnswer(answer=bytes(32), micros=1), None)}
RESULT = {"nonce": "", "expiry": "", "status": "complete", "result": "e30.e30.c2ln"}


def problem(status: int, code: str, **headers: str) -> web.Response:
    body = msgspec.json.encode({"type": f"tag:x#{code}", "title": "No."})
    return web.Response(status=status, body=body, headers=headers)


def done() -> web.Response:
    return web.Response(body=msgspec.json.encode(RESULT))


DROP = "the connection is dropped when the request has arrived"


@dataclass
class Verifier:
    """It answers with the steps in turn, and keeps what came."""

    steps: list[object]
    now: float = START
    bodies: list[bytes] = field(default_factory=list)
    proofs: list[bytes] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    client: VerifierClient = field(init=False)

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        if "Authorization" in request.headers:
            self.proofs.append(Proof.decode(request.headers["Authorization"]).random)
        step = self.steps.pop(0)
        if step is DROP:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        assert isinstance(step, web.Response)
        return step

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@asynccontextmanager
async def verifier(*steps: object) -> AsyncIterator[Verifier]:
    running = Verifier(list(steps))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", running.answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        running.client = make_client(running, http, str(server.make_url("")).rstrip("/"))
        yield running


def make_client(running: Verifier, http: aiohttp.ClientSession, url: str) -> VerifierClient:
    return VerifierClient(http, url, KEY, now=lambda: running.now, sleep=running.sleep, rng=random.Random(1))


def session(lifetime_s: float | None = 60) -> Session:
    return Session("0" * 32, bytes(32), (), None if lifetime_s is None else START + lifetime_s)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_evidence_is_sent_again_with_the_same_bytes(status: int) -> None:
    """Whatever the verifier or a server before it says for now."""
    async with verifier(web.Response(status=status), DROP, problem(status, "x"), done()) as running:
        assert await running.client.submit(session(), b"evidence") == RESULT["result"]
    assert running.bodies == [b"evidence"] * 4
    assert len(running.waits) == 3


async def test_answers_are_sent_again_and_each_time_signed_anew() -> None:
    """A signature counts once, so the old one would be refused."""
    async with verifier(problem(503, "store.unavailable"), DROP, done()) as running:
        await running.client.answer_call(session(), ANSWERS)
    assert len(set(running.bodies)) == 1
    assert len(set(running.proofs)) == 3


async def test_retry_after_is_the_least_that_is_waited() -> None:
    """And a random part is added, so that a fleet does not come back at one moment."""
    steps = [problem(503, "x", **{"Retry-After": "7"}) for _ in range(3)]
    async with verifier(*steps, done()) as running:
        await running.client.submit(session(), b"evidence")
    assert all(7 < wait < 15 for wait in running.waits)
    assert len(set(running.waits)) == 3


async def test_the_wait_grows_up_to_a_bound() -> None:
    """Without Retry-After."""
    async with verifier(*(web.Response(status=502) for _ in range(40))) as running:
        with pytest.raises(VerifierError):
            await running.client.submit(session(100), b"evidence")
    assert max(running.waits) <= 8
    assert running.waits[0] <= 0.5


@pytest.mark.parametrize("retry_after", ["", "0", "59"])
async def test_nothing_is_sent_after_the_session(retry_after: str) -> None:
    """The last error is given."""
    steps = [problem(503, "store.unavailable", **{"Retry-After": retry_after}) for _ in range(300)]
    async with verifier(*steps) as running:
        with pytest.raises(VerifierError) as caught:
            await running.client.answer_call(session(), ANSWERS)
        assert caught.value.code == "store.unavailable"
    assert running.now < START + 60
    assert len(running.bodies) == len(running.waits) + 1


async def test_a_retry_after_beyond_the_session_is_an_error_at_once() -> None:
    """As is one that cannot be read, if the session has no end that is known."""
    async with verifier(problem(503, "x", **{"Retry-After": "60"}), web.Response(status=503)) as running:
        for lifetime_s in (60, None):
            with pytest.raises(VerifierError):
                await running.client.submit(session(lifetime_s), b"evidence")
    assert running.waits == []


@pytest.mark.parametrize("text", ["-1", "1.5", "soon", "²", "9" * 30])
async def test_a_malformed_retry_after_counts_as_none(text: str) -> None:
    """The verifier's answers are parsed strictly."""
    refused = web.Response(status=503, headers={"Retry-After": text})
    async with verifier(refused, done()) as running:
        await running.client.submit(session(), b"evidence")
    assert running.waits[0] <= 0.5


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "x"), (401, "x"), (409, "session.closed"), (410, "session.expired"), (500, "x")],
)
async def test_what_is_refused_for_good_is_not_sent_again(status: int, code: str) -> None:
    """One request, one error."""
    async with verifier(problem(status, code)) as running:
        with pytest.raises(VerifierError):
            await running.client.answer_call(session(), ANSWERS)
    assert len(running.bodies) == 1


@pytest.mark.parametrize("first", [DROP, web.Response(status=502), problem(503, "store.unavailable")])
async def test_answers_whose_acknowledgement_was_lost_are_acknowledged_by_a_refusal(first: object) -> None:
    """The second time the call is answered already: by the first."""
    step = first if first is DROP else web.Response(status=first.status, body=first.body)  # type: ignore[attr-defined]
    async with verifier(step, problem(409, "session.closed")) as running:
        await running.client.answer_call(session(), ANSWERS)


async def test_answers_that_were_surely_not_taken_are_refused() -> None:
    """After 429 a closed session means that something else has closed it."""
    async with verifier(problem(429, "request.too-often"), problem(409, "session.closed")) as running:
        with pytest.raises(VerifierError) as caught:
            await running.client.answer_call(session(), ANSWERS)
    assert caught.value.code == "session.closed"


async def test_a_verifier_that_cannot_be_reached_is_tried_again() -> None:
    """Nothing listens at first.  So nothing may have arrived."""
    running = Verifier([])
    async with aiohttp.ClientSession() as http:
        client = make_client(running, http, f"http://127.0.0.1:{unused_port()}")
        with pytest.raises(VerifierError) as caught:
            await client.submit(session(5), b"evidence")
    assert running.waits
    assert caught.value.is_temporary
    assert not caught.value.may_have_arrived
