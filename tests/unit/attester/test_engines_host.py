"""Both ends of the loopback, over real sockets: an engine's process and the attester's adapter."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from attester.engines.base import Description
from attester.engines.budget import Budget
from attester.engines.host import HostedEngine, serve_in_thread
from attester.engines.http import MAX_ANSWER_BYTES
from attester.engines.loopback import LoopbackEngine
from attester.engines.walker import Walker
from attester.errors import EngineError, WeightsError
from attester.weights import possession
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import Tensor
from fixtures.fleet import free_port

SECRET = "s3cret"
MODEL = "org/m"
CHALLENGE = WalkChallenge("12" * 32, rows=5, passes=2)
DESCRIPTION = Description(
    engine="test-engine",
    version="1.2",
    arguments={"dtype": "bfloat16", "eager": True, "slots": 4, "revision": None},
    packages={"numpy": np.__version__},
    python="3.11",
    context_length=512,
    features=("embeddings",),
)


@dataclass
class Loaded:
    """An engine's tensors, and how often they were asked for."""

    tensors: list[Tensor] = field(
        default_factory=lambda: [
            Tensor("a", np.arange(5000).astype(np.int8)),
            Tensor("b", np.ones(3, np.int8)),
        ]
    )
    asked: int = 0

    def __call__(self) -> list[Tensor]:
        self.asked += 1
        return self.tensors

    def expected(self, challenge: WalkChallenge = CHALLENGE) -> list[bytes]:
        words = [row_words(bytes.fromhex(challenge.seed), row) for row in range(challenge.rows)]
        return possession.walk(self.tensors, words, challenge.passes, kernel("numpy"))


@pytest.fixture
def loaded() -> Loaded:
    return Loaded()


@pytest.fixture
def hosted(loaded: Loaded) -> HostedEngine:
    return HostedEngine(lambda: DESCRIPTION, {MODEL: loaded}, Walker(backend="numpy"))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def url_of(server: TestServer) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
async def url(hosted: HostedEngine) -> AsyncIterator[str]:
    async with TestServer(hosted.app(SECRET)) as server:
        yield url_of(server)


@pytest.fixture
def engine(http: aiohttp.ClientSession, url: str) -> LoopbackEngine:
    return LoopbackEngine(http, url, SECRET)


async def test_the_engine_is_described_as_it_describes_itself(engine):
    """Every kind of argument, unchanged."""
    assert await engine.describe() == DESCRIPTION


async def test_the_engine_walks_what_it_has_loaded(engine, loaded):
    """Every row, as many times through as asked, and the evidence says that it was the engine."""
    answer = await engine.walk(MODEL, CHALLENGE)
    assert (answer.source, answer.device) == ("engine", kernel("numpy").name)
    assert list(answer.answers) == loaded.expected()
    assert answer.micros > 0


async def test_the_tensors_are_asked_for_at_each_walk(engine, loaded):
    """What was loaded anew is what is walked."""
    before = await engine.walk(MODEL, CHALLENGE)
    loaded.tensors = [replace(loaded.tensors[0], data=loaded.tensors[0].data ^ 1), loaded.tensors[1]]
    after = await engine.walk(MODEL, CHALLENGE)
    assert list(after.answers) == loaded.expected()
    assert not set(after.answers) & set(before.answers)
    assert loaded.asked == 2


async def test_the_most_that_a_challenge_may_ask_is_answered(engine, loaded):
    """As many rows as there may be, in one answer."""
    loaded.tensors = [Tensor("a", np.ones(3, np.int8))]
    challenge = WalkChallenge("34" * 32, rows=2048, passes=1)
    assert list((await engine.walk(MODEL, challenge)).answers) == loaded.expected(challenge)


async def test_making_ready_asks_nothing_of_the_engine(http):
    """Its own process has its kernel; it need not even run yet."""
    engine = LoopbackEngine(http, "http://127.0.0.1:1", SECRET)
    assert await engine.prepare() == "the engine at http://127.0.0.1:1"


@pytest.mark.parametrize("secret", ["", "S3cret", "s3cre", "s3crets", "sécret"])
async def test_a_wrong_secret_is_refused(http, url, loaded, secret):
    """Neither described nor walked."""
    engine = LoopbackEngine(http, url, secret)
    with pytest.raises(
        EngineError, match=r"^the engine answers GET /touchstone/engine with HTTP status 401$"
    ):
        await engine.describe()
    with pytest.raises(EngineError, match=r"^the engine answers POST /touchstone/walk with HTTP status 401$"):
        await engine.walk(MODEL, CHALLENGE)
    assert loaded.asked == 0


@pytest.mark.parametrize(
    "header",
    [None, b"s3cret", b"bearer s3cret", b"Basic s3cret", b"Bearer", b"Bearer \xff\xfe", b"Bearer s3cret, x"],
)
async def test_another_authorisation_is_refused(url, loaded, header):
    """Whatever stands there, if it is not the secret: bytes that are no text too."""
    line = b"" if header is None else b"Authorization: " + header + b"\r\n"
    request = b"GET /touchstone/engine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + line + b"\r\n"
    assert (await raw(url, request)).startswith(b"HTTP/1.1 401 ")


async def raw(url: str, request: bytes) -> bytes:
    """What comes back for bytes that no client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("path", ["/", "/touchstone", "/touchstone/walks"])
async def test_even_what_is_not_there_is_behind_the_secret(http, url, path):
    """Who has not the secret learns nothing."""
    async with http.get(url + path) as response:
        assert response.status == 401
    async with http.get(url + path, headers={"Authorization": f"Bearer {SECRET}"}) as response:
        assert response.status == 404


async def test_an_unknown_model_is_refused(engine, loaded):
    """By its name, and nothing is walked."""
    with pytest.raises(
        EngineError,
        match=r"^the engine answers POST /touchstone/walk with HTTP status 404: there is no model 'org/else'$",
    ):
        await engine.walk("org/else", CHALLENGE)
    assert loaded.asked == 0


GOOD = {"model": MODEL, "seed": CHALLENGE.seed, "rows": 4, "passes": 1}

MALFORMED = {
    "nothing": b"",
    "cut short": msgspec.json.encode(GOOD)[:-1],
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"model": "\xff"}',
    "no seed": {key: value for key, value in GOOD.items() if key != "seed"},
    "a field more": GOOD | {"whole_up_to": 1},
    "a seed in capitals": GOOD | {"seed": "AB" * 32},
    "a short seed": GOOD | {"seed": "12" * 31},
    "a seed and a line": GOOD | {"seed": CHALLENGE.seed + "\n"},
    "no rows": GOOD | {"rows": 0},
    "too many rows": GOOD | {"rows": 2049},
    "rows in words": GOOD | {"rows": "4"},
    "half a row": GOOD | {"rows": 4.5},
    "no passes": GOOD | {"passes": 0},
    "too many passes": GOOD | {"passes": 65},
    "a model of no name": GOOD | {"model": None},
    "a model of too long a name": GOOD | {"model": "m" * 129},
}


async def post(http: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with http.post(f"{url}/touchstone/walk", data=body, headers=headers) as response:
        return response.status, await response.read()


async def test_a_well_formed_body_is_answered(http, url):
    """What the malformed ones differ from."""
    status, body = await post(http, url, msgspec.json.encode(GOOD))
    assert (status, msgspec.json.decode(body).keys()) == (200, {"answers", "device", "micros", "source"})


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_body_is_refused(http, url, loaded, name):
    """With what is wrong with it, and nothing is walked."""
    given = MALFORMED[name]
    status, body = await post(http, url, given if isinstance(given, bytes) else msgspec.json.encode(given))
    assert status == 400
    assert msgspec.json.decode(body)["error"]
    assert loaded.asked == 0


async def test_an_oversized_body_is_refused(http, url, loaded):
    """Though it would be well-formed, were it read to its end."""
    body = msgspec.json.encode(GOOD)
    assert (await post(http, url, body + b" " * (4096 - len(body))))[0] == 200
    assert (await post(http, url, body + b" " * (4097 - len(body))))[0] == 413
    assert loaded.asked == 1


async def test_a_budget_that_is_spent_reaches_the_operator(http, hosted, loaded, clock):
    """As the sentence that the engine has for it."""
    hosted = replace(hosted, walker=Walker("cpu", Budget(60, 10, lambda: clock.ticks), "numpy"))
    slow = replace(hosted, models={MODEL: lambda: passing(clock, 10, loaded())})
    async with TestServer(slow.app(SECRET)) as server:
        engine = LoopbackEngine(http, url_of(server), SECRET)
        assert list((await engine.walk(MODEL, CHALLENGE)).answers) == loaded.expected()
        with pytest.raises(EngineError, match=r"503: walks have used their limit of 10 s within the hour$"):
            await engine.walk(MODEL, CHALLENGE)
        clock.forward(3601)
        await engine.walk(MODEL, CHALLENGE)


async def test_a_walk_beyond_its_cap_reaches_the_operator(http, hosted, loaded, clock):
    """It ends, and says why."""
    models = {MODEL: lambda: passing(clock, 61, loaded())}
    hosted = HostedEngine(hosted.describe, models, Walker("cpu", Budget(clock=lambda: clock.ticks), "numpy"))
    async with TestServer(hosted.app(SECRET)) as server:
        engine = LoopbackEngine(http, url_of(server), SECRET)
        with pytest.raises(EngineError, match=r"503: the walk exceeds its limit of 60 s$"):
            await engine.walk(MODEL, CHALLENGE)


class Passing(list):
    """Tensors on whose first way through time passes."""

    clock: Any
    seconds: float

    def __iter__(self):
        self.clock.forward(self.seconds)
        self.seconds = 0
        return super().__iter__()


def passing(clock: Any, seconds: float, tensors: list[Tensor]) -> Passing:
    found = Passing(tensors)
    found.clock, found.seconds = clock, seconds
    return found


@pytest.mark.parametrize("error", [WeightsError("a.bin is gone"), EngineError("loaded as I8")])
async def test_tensors_that_cannot_be_had_reach_the_operator(http, hosted, error):
    """With the sentence that says why."""

    def gone() -> list[Tensor]:
        raise error

    async with TestServer(replace(hosted, models={MODEL: gone}).app(SECRET)) as server:
        with pytest.raises(
            EngineError, match=rf"^the engine answers POST /touchstone/walk with HTTP status 503: {error}$"
        ):
            await LoopbackEngine(http, url_of(server), SECRET).walk(MODEL, CHALLENGE)


async def test_an_engine_without_bytes_is_refused(http, hosted):
    """There is nothing to walk."""
    async with TestServer(replace(hosted, models={MODEL: list}).app(SECRET)) as server:
        with pytest.raises(EngineError, match=r"there are no bytes to walk"):
            await LoopbackEngine(http, url_of(server), SECRET).walk(MODEL, CHALLENGE)


async def test_an_engine_that_does_not_run_is_told_of(http):
    """With a question that helps."""
    engine = LoopbackEngine(http, f"http://127.0.0.1:{free_port()}", SECRET)
    with pytest.raises(EngineError, match=r"does not answer \(ClientConnectorError\)\. Is it running\?$"):
        await engine.describe()


def answering(body: bytes, status: int = 200, **headers: str) -> web.Application:
    """An engine that answers whatever it is asked with the same."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


WALKED = {"answers": ["ab" * 32] * CHALLENGE.rows, "device": "cpu", "micros": 7}

WRONG_WALKS: dict[str, object] = {
    "not JSON": b"<html>",
    "not UTF-8": b'{"answers": ["\xff"]}',
    "nothing": b"",
    "a list": [],
    "no device": {key: value for key, value in WALKED.items() if key != "device"},
    "a field more": WALKED | {"rows": 5},
    "another source": WALKED | {"source": "file"},
    "a row less": WALKED | {"answers": WALKED["answers"][1:]},
    "a row more": WALKED | {"answers": [*WALKED["answers"], "ab" * 32]},
    "no row": WALKED | {"answers": []},
    "a short answer": WALKED | {"answers": [*WALKED["answers"][1:], "ab" * 31]},
    "an answer that is not hex": WALKED | {"answers": [*WALKED["answers"][1:], "xy" * 32]},
    "an answer that is a number": WALKED | {"answers": [*WALKED["answers"][1:], 7]},
    "time that runs back": WALKED | {"micros": -1},
    "half a microsecond": WALKED | {"micros": 0.5},
    "a device in two lines": WALKED | {"device": "cpu\ngpu"},
    "a device without end": WALKED | {"device": "c" * 513},
}


async def test_a_walk_of_the_right_form_is_taken(http):
    """What the wrong ones differ from."""
    async with TestServer(answering(msgspec.json.encode(WALKED))) as server:
        answer = await LoopbackEngine(http, url_of(server), SECRET).walk(MODEL, CHALLENGE)
    assert (answer.answers, answer.device, answer.micros) == ((b"\xab" * 32,) * 5, "cpu", 7)


@pytest.mark.parametrize("name", WRONG_WALKS)
async def test_a_walk_of_another_form_is_refused(http, name):
    """It would not become evidence, and the operator is told."""
    given = WRONG_WALKS[name]
    body = given if isinstance(given, bytes) else msgspec.json.encode(given)
    async with TestServer(answering(body)) as server:
        with pytest.raises(EngineError, match=r"malformed|instead of 5"):
            await LoopbackEngine(http, url_of(server), SECRET).walk(MODEL, CHALLENGE)


WRONG_WORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no name": lambda said: said.pop("engine"),
    "an empty name": lambda said: said.update(engine=""),
    "a field more": lambda said: said.update(gpu="H"),
    "arguments in a list": lambda said: said.update(arguments=["x"]),
    "an argument that is a list": lambda said: said.update(arguments={"x": [1]}),
    "a context below nothing": lambda said: said.update(context_length=-1),
}


@pytest.mark.parametrize("name", WRONG_WORDS)
async def test_a_description_of_another_form_is_refused(http, name):
    """As a walk would be."""
    said = msgspec.to_builtins(DESCRIPTION)
    WRONG_WORDS[name](said)
    async with TestServer(answering(msgspec.json.encode(said))) as server:
        with pytest.raises(EngineError, match=r"/touchstone/engine is malformed"):
            await LoopbackEngine(http, url_of(server), SECRET).describe()


async def test_an_answer_without_end_is_not_read_to_its_end(http):
    """A limit, and a sentence."""
    async with TestServer(answering(b" " * (MAX_ANSWER_BYTES + 1))) as server:
        with pytest.raises(EngineError, match=f"larger than {MAX_ANSWER_BYTES} bytes"):
            await LoopbackEngine(http, url_of(server), SECRET).describe()
    body = msgspec.json.encode(DESCRIPTION)
    async with TestServer(answering(body + b" " * (MAX_ANSWER_BYTES - len(body)))) as server:
        assert await LoopbackEngine(http, url_of(server), SECRET).describe() == DESCRIPTION


async def test_nobody_is_asked_elsewhere(http, url):
    """A redirect would carry the secret away."""
    there = {"Location": f"{url}/touchstone/engine"}
    async with TestServer(answering(b"", 307, **there)) as server:
        with pytest.raises(EngineError, match=r"HTTP status 307"):
            await LoopbackEngine(http, url_of(server), SECRET).describe()


async def test_an_engines_reason_is_shown_in_one_short_line(http):
    """What it sends goes to a terminal."""
    body = msgspec.json.encode({"error": "\x1b[2Jgone\n" + "x" * 500})
    async with TestServer(answering(body, 500)) as server:
        with pytest.raises(EngineError) as caught:
            await LoopbackEngine(http, url_of(server), SECRET).describe()
    assert str(caught.value).endswith(": ?[2Jgone?" + "x" * 191)


async def test_an_engine_without_a_loop_serves_from_a_thread(http, hosted, loaded):
    """It is there when the call returns, and answers as any other."""
    port = free_port()
    thread = serve_in_thread(hosted, SECRET, port=port)
    engine = LoopbackEngine(http, f"http://127.0.0.1:{port}", SECRET)
    assert await engine.describe() == DESCRIPTION
    assert list((await engine.walk(MODEL, CHALLENGE)).answers) == loaded.expected()
    with pytest.raises(EngineError, match=r"HTTP status 401"):
        await LoopbackEngine(http, engine._http.url, "guess").describe()
    # The engine's end must not wait for it.
    assert thread.daemon
    assert thread.is_alive()


def test_a_port_that_is_taken_is_told_of(hosted, monkeypatch):
    """To whoever starts the engine, and not in a thread that nobody sees; however long starting takes."""
    setup = web.AppRunner.setup

    async def slow(runner: web.AppRunner) -> None:
        await asyncio.sleep(0.005)
        await setup(runner)

    monkeypatch.setattr(web.AppRunner, "setup", slow)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"address already in use"):
            serve_in_thread(hosted, SECRET, port=taken.getsockname()[1])


def test_an_engine_that_cannot_walk_does_not_serve(hosted):
    """A device without an exact kernel is told of before a port is bound."""
    port = free_port()
    with pytest.raises(WeightsError, match=r"no kernel can walk on nonsense"):
        serve_in_thread(replace(hosted, walker=Walker("nonsense")), SECRET, port=port)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
