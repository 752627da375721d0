"""
The client over a real router: what verifies is handed on, and nothing that somebody altered on the way.

Mallory stands between client and router, as a proxy, a reverse proxy or the router's own operator could.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from aiohttp import web
from msgspec import structs

from router.client import Client, RefusedError, UnreachableError, UnverifiedError, trusting
from router.client.awaiting import LogWatch
from router.client.errors import Step
from router.client.kept import KeptFolder
from router.client.offline import read_material, verify_offline
from router.client.proxy import LOGGED_HEADER, VERIFIED_HEADER, Proxy
from router.client.session import NONCE_HEADER, RECEIPT_HEADER, REQUIRE_HEADER, AsyncClient
from router.client.streams import Answer
from router.client.trust import Required, RouterTrust, Trust, TrustFile, VerifierTrust
from router.gateway.sse import encode_event
from tests.integration.gateway import CHAT, CHATS, PROMPT, STREAM, WORK, Fleet, key, opened, story
from tests.unit.router.doubles import serving
from tests.unit.router.support import MODEL

KEY = "sk-caller"
SECTIONS = {"keys": [key("caller")]}
LATER = Required(log="later", log_within_s=60)


class Mallory:
    """Passes requests on to a router, and alters what it is told to."""

    def __init__(self, router: str) -> None:
        self.router = router
        self.alter: Callable[[bytes], bytes] = bytes
        """Of the bodies of answers below /v1."""
        self.alter_receipt: Callable[[dict[str, Any]], dict[str, Any]] = dict
        self.asked: Callable[[str], str] = str
        """Which receipt is asked for in place of one."""
        self.without: set[str] = set()
        """Headers of answers that get lost."""
        self.status: int | None = None
        self.paths: tuple[str, ...] = ("/v1/",)
        """Where answers are altered."""
        self.lost: set[str] = set()
        """Headers of requests that get lost."""
        self.forced: dict[str, str] = {}
        """Headers that requests get in the place of their own."""
        self.requests: list[tuple[str, dict[str, str]]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.path_qs, dict(request.headers)))
        path = request.path_qs
        is_receipt = path.startswith("/api/v1/receipts/")
        if is_receipt:
            folder, _, receipt = path.rpartition("/")
            path = f"{folder}/{self.asked(receipt)}"
        headers = {name: value for name, value in request.headers.items() if name not in {"Host", *self.lost}}
        headers |= {name: value for name, value in self.forced.items() if name in headers}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(
                request.method, self.router + path, data=await request.read(), headers=headers
            ) as answer,
        ):
            data, status, given = await answer.read(), answer.status, dict(answer.headers)
        if is_receipt and status == 200:
            data = msgspec.json.encode(self.alter_receipt(json.loads(data)))
        elif path.startswith(self.paths):
            data, status = self.alter(data), self.status or status
        for name in {"Content-Length", "Transfer-Encoding", "Connection", "Date", "Server", *self.without}:
            given.pop(name, None)
        return web.Response(status=status, body=data, headers=given)


async def make_trust(fleet: Fleet, url: str, require: Required | None = None) -> Trust:
    """What a person has agreed to, by way of the honest router."""
    file = await trusting.fetch_trust(fleet.url, fleet.verifier.url)
    file = structs.replace(file, router=structs.replace(file.router, url=url))
    return Trust(structs.replace(file, require=require or Required(log="never")))


@asynccontextmanager
async def connected(
    fleet: Fleet, *, require: Required | None = None, **given: Any
) -> AsyncIterator[tuple[AsyncClient, Mallory]]:
    """A client, and Mallory in between."""
    mallory = Mallory(fleet.url)
    async with serving(mallory.app()) as url:
        trust = given.pop("trust", None) or await make_trust(fleet, url, require)
        client = AsyncClient(url, trust=trust, key=KEY, now=lambda: fleet.clock.ms / 1000, **given)
        async with client:
            yield client, mallory


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as found:
        await found.engine("a")
        await found.start(sections=SECTIONS)
        yield found


async def chat(client: AsyncClient, body: Any = CHAT) -> Answer:
    return await client.ask("POST", CHATS, msgspec.json.encode(body), {"Content-Type": "application/json"})


async def refused(client: AsyncClient, body: Any = CHAT) -> Step:
    with pytest.raises(UnverifiedError) as caught:
        await chat(client, body)
    return caught.value.step


TAKEN = [Step.RECEIPT, Step.REQUEST, Step.RESPONSE, Step.RESULT, Step.MODEL, Step.AGE, Step.CHAIN]


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
async def test_an_answer_is_handed_on_once_it_is_verified(fleet: Fleet, body: Any) -> None:
    async with connected(fleet) as (client, _):
        answer = await chat(client, body)
    assert answer.status == 200
    assert answer.checked is not None
    assert list(answer.checked.steps) == TAKEN
    assert answer.checked.receipt.response.streamed is (body is STREAM)
    assert answer.checked.result is not None


async def test_embeddings_and_lists_are_verified_alike(fleet: Fleet) -> None:
    async with connected(fleet) as (client, _):
        vectors = await client.ask("POST", "/v1/embeddings", msgspec.json.encode(WORK))
        models = await client.ask("GET", "/v1/models")
    assert vectors.checked is not None
    assert vectors.checked.result is not None
    assert models.checked is not None
    assert json.loads(models.body)["data"][0]["id"] == MODEL


async def test_a_refusal_has_a_receipt_too(fleet: Fleet) -> None:
    async with connected(fleet) as (client, _):
        answer = await chat(client, {**CHAT, "model": "example/unknown"})
    assert answer.status == 404
    assert answer.checked is not None
    assert answer.checked.receipt.node is msgspec.UNSET


def change(data: bytes) -> bytes:
    """Another word of the answer."""
    return data.replace(b"content", b"Content", 1)


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
async def test_an_altered_answer(fleet: Fleet, body: Any) -> None:
    async with connected(fleet) as (client, mallory):
        mallory.alter = change
        assert await refused(client, body) is Step.RESPONSE


async def test_a_stream_that_lacks_an_event(fleet: Fleet) -> None:
    async with connected(fleet) as (client, mallory):
        mallory.alter = lambda data: b"".join(part + b"\n\n" for part in data.split(b"\n\n")[1:-1])
        assert await refused(client, STREAM) is Step.RESPONSE


async def test_a_stream_with_another_comment(fleet: Fleet) -> None:
    """Every byte counts, also of what no program reads."""
    async with connected(fleet) as (client, mallory):
        mallory.alter = lambda data: b": hello\n\n" + data
        assert await refused(client, STREAM) is Step.RESPONSE


async def test_another_status(fleet: Fleet) -> None:
    async with connected(fleet) as (client, mallory):
        mallory.status = 203
        assert await refused(client) is Step.RESPONSE


async def test_no_receipt_at_all(fleet: Fleet) -> None:
    """There is no silent downgrade."""
    async with connected(fleet) as (client, mallory):
        mallory.without = {RECEIPT_HEADER}
        assert await refused(client) is Step.RECEIPT


async def test_a_receipt_that_is_kept_back(fleet: Fleet) -> None:
    async with connected(fleet) as (client, mallory):
        mallory.asked = lambda _: "0" * 32
        assert await refused(client) is Step.RECEIPT


async def test_an_old_receipt_in_the_place_of_the_new_one(fleet: Fleet) -> None:
    async with connected(fleet) as (client, mallory):
        first = await chat(client)
        assert first.checked is not None
        old = first.checked.receipt.jti
        mallory.asked = lambda _: old
        # The same question, and the same answer: the salt tells them apart.
        assert await refused(client) is Step.REQUEST


async def test_the_same_answer_again_where_that_is_asked_for(fleet: Fleet) -> None:
    """By an ``Idempotency-Key``: the answer and its receipt are those of the first time."""
    again = {"Idempotency-Key": "mine"}
    async with connected(fleet) as (client, _):
        await chat(client)
        first = await client.ask("POST", CHATS, msgspec.json.encode(CHAT), again)
        fleet.clock.forward(400)
        fleet.verifier.beat()
        second = await client.ask("POST", CHATS, msgspec.json.encode(CHAT), again)
    assert first.checked is not None
    assert second.checked is not None
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.checked.receipt == first.checked.receipt
    assert second.body == first.body


async def test_an_old_answer_is_not_given_again_to_another_question(fleet: Fleet) -> None:
    again = {"Idempotency-Key": "mine"}
    async with connected(fleet) as (client, mallory):
        first = await client.ask("POST", CHATS, msgspec.json.encode(CHAT), again)
        assert first.checked is not None
        old = first.checked.receipt.jti
        mallory.asked = lambda _: old
        with pytest.raises(UnverifiedError) as caught:
            await client.ask("POST", CHATS, msgspec.json.encode(CHAT), {"Idempotency-Key": "another"})
    assert caught.value.step is Step.REQUEST


async def test_the_receipt_of_another_key(tmp_path: Path) -> None:
    """It is not told whether there is one."""
    async with opened(tmp_path) as fleet:
        await fleet.engine("a")
        await fleet.start(sections={"keys": [key("caller"), key("other")]})
        answer = await fleet.ask(CHAT, Authorization="Bearer sk-other")
        other = answer.headers[RECEIPT_HEADER]
        async with connected(fleet) as (client, mallory):
            mallory.asked = lambda _: other
            assert await refused(client) is Step.RECEIPT


async def test_the_result_of_another_node(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        await fleet.engine("a")
        await fleet.start(sections=SECTIONS)
        another = fleet.verifier.token("b")
        async with connected(fleet) as (client, mallory):
            mallory.alter_receipt = lambda bundle: {**bundle, "result": another}
            assert await refused(client) is Step.RESULT


async def test_a_router_that_is_not_the_one_that_was_agreed_to(fleet: Fleet, tmp_path: Path) -> None:
    async with opened(tmp_path / "other") as other:
        await other.start(sections=SECTIONS)
        async with serving(Mallory(other.url).app()) as url:
            trust = await make_trust(other, url)
    file: TrustFile = structs.replace(
        trust.file, router=structs.replace(trust.router, url=fleet.url, name=None)
    )
    async with AsyncClient(trust=Trust(file), key=KEY, now=lambda: fleet.clock.ms / 1000) as client:
        assert await refused(client) is Step.RECEIPT


async def test_what_the_client_requires_is_beyond_what_the_router_does(fleet: Fleet) -> None:
    """The workload lets any node in that is challenged."""
    async with connected(fleet, require=Required(log="never", assurance="confidential")) as (client, _):
        assert await refused(client) is Step.MODEL


async def test_parts_come_unverified_only_where_that_is_asked_for(fleet: Fleet) -> None:
    async with connected(fleet) as (client, mallory):
        mallory.alter = change
        parts: list[bytes] = []

        async def take() -> None:
            async with client.stream("POST", CHATS, msgspec.json.encode(STREAM)) as stream:
                async for part in stream.parts():
                    parts.append(part)  # noqa: PERF401  # what came before the error counts

        with pytest.raises(UnverifiedError) as caught:
            await take()
        assert caught.value.step is Step.RESPONSE
        assert b"".join(parts).count(b"[DONE]") == 1


async def test_no_receipts_where_a_person_has_agreed_to_that(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        await fleet.engine("a")
        await fleet.start(sections={**SECTIONS, "receipts": {"enabled": False}})
        file = TrustFile(
            router=RouterTrust(url=fleet.url, gives_receipts=False),
            verifier=VerifierTrust(issuer=fleet.verifier.url, keys=tuple(fleet.verifier.keys)),
            require=Required(log="never"),
        )
        async with AsyncClient(trust=Trust(file), key=KEY) as client, serving(Proxy(client).app()) as url:
            answer = await chat(client)
            assert (answer.status, answer.checked) == (200, None)
            async with aiohttp.ClientSession() as http, http.post(url + CHATS, json=CHAT) as passed:
                assert passed.headers[VERIFIED_HEADER] == "nothing"


async def test_a_router_without_receipts_is_an_error_otherwise(tmp_path: Path) -> None:
    async with opened(tmp_path) as fleet:
        await fleet.engine("a")
        await fleet.start(sections=SECTIONS)
        trust = await make_trust(fleet, fleet.url)
        await fleet.stop()
    async with opened(tmp_path / "again") as fleet:
        await fleet.engine("a")
        await fleet.start(sections={**SECTIONS, "receipts": {"enabled": False}})
        file = structs.replace(trust.file, router=structs.replace(trust.router, url=fleet.url))
        async with AsyncClient(trust=Trust(file), key=KEY) as client:
            assert await refused(client) is Step.RECEIPT


async def test_receipts_are_kept_and_verify_later(fleet: Fleet, tmp_path: Path) -> None:
    kept = KeptFolder(tmp_path / "receipts", has_bodies=True)
    async with connected(fleet, kept=kept) as (client, _):
        for body in (CHAT, STREAM):
            await chat(client, body)
        trust = client.trust
    files = sorted((tmp_path / "receipts").iterdir())
    assert len(files) == 2
    for file in files:
        assert file.stat().st_mode & 0o077 == 0
        outcome = verify_offline(read_material(file.read_bytes()), trust)
        assert {Step.REQUEST, Step.RESPONSE, Step.RESULT} <= set(outcome.checked.steps)


async def test_kept_receipts_have_no_word_of_the_request(fleet: Fleet, tmp_path: Path) -> None:
    async with connected(fleet, kept=KeptFolder(tmp_path / "receipts")) as (client, _):
        await chat(client)
    (file,) = (tmp_path / "receipts").iterdir()
    assert PROMPT not in file.read_text()
    assert story() not in file.read_text()
    assert "request" not in json.loads(file.read_text())


async def test_a_receipt_that_does_not_get_into_the_log_ends_the_work(fleet: Fleet) -> None:
    """This verifier has no log."""
    async with connected(fleet) as (client, _):
        trust = Trust(structs.replace(client.trust.file, require=Required(log="never")))
        trust.require = LATER
        client.watch = LogWatch(trust, client.fetch, None, now=lambda: fleet.clock.ms / 1000)
        answer = await chat(client)
        assert answer.checked is not None
        assert client.watch.pending == 1
        fleet.clock.forward(30)
        fleet.verifier.beat()
        client.watch.check()
        fleet.clock.forward(31)
        assert await refused(client) is Step.LOG


async def test_a_router_that_is_away(fleet: Fleet) -> None:
    async with connected(fleet) as (client, _):
        await fleet.stop()
        with pytest.raises(UnverifiedError):
            await chat(client)
    with pytest.raises(UnreachableError):
        async with AsyncClient(trust=client.trust, key=KEY) as again:
            await chat(again)


# The choice.

REPLAYED = Required(log="never", choice="replayed")


async def test_the_first_answer_brings_what_the_next_one_needs(fleet: Fleet) -> None:
    """By default nothing is asked for beforehand."""
    async with connected(fleet) as (client, _):
        first, second = await chat(client), await chat(client)
    assert first.checked is not None
    assert second.checked is not None
    assert Step.CHOICE not in first.checked.steps
    assert "commitment" in second.checked.steps[Step.CHOICE]


async def test_a_decision_comes_out_again(fleet: Fleet) -> None:
    async with connected(fleet, require=REPLAYED) as (client, _):
        answer = await chat(client)
    assert answer.checked is not None
    assert "comes out again by seed" in answer.checked.steps[Step.CHOICE]


async def test_a_router_that_passes_over_the_nonce(fleet: Fleet) -> None:
    async with connected(fleet, require=REPLAYED) as (client, mallory):
        mallory.lost = {NONCE_HEADER}
        assert await refused(client) is Step.CHOICE


async def test_a_router_that_gives_out_no_commitments(fleet: Fleet) -> None:
    async with connected(fleet, require=REPLAYED) as (client, mallory):
        mallory.alter = lambda _: b"{}"
        mallory.paths = ("/api/v1/commitments",)
        assert await refused(client) is Step.CHOICE


async def test_a_decision_of_another_commitment(fleet: Fleet) -> None:
    """The router is told another nonce than the client has sent, by whoever wants to steer it."""
    async with connected(fleet, require=REPLAYED) as (client, mallory):
        (commitment,) = (await client._fetch_commitments())[:1]
        other = f"{commitment.partition('.')[0]}.{'A' * 43}"
        mallory.forced = {NONCE_HEADER: other}
        assert await refused(client) is Step.CHOICE


async def test_a_router_that_was_started_again_has_forgotten(fleet: Fleet) -> None:
    """What it had committed to before is void: the client begins anew, and its caller sees nothing of that."""
    async with connected(fleet) as (client, mallory):
        client._commitments.put(f"{'A' * 48}.{'0' * 64}", fleet.clock.ms / 1000)
        answer = await chat(client)
        assert answer.status == 200
        posts = [headers for path, headers in mallory.requests if path == CHATS]
        assert [NONCE_HEADER in headers for headers in posts] == [True, False]


async def test_what_the_client_requires_travels_along(fleet: Fleet) -> None:
    """The router answers 412 before any node is asked, where the client would have refused the answer."""
    required = Required(log="never", references=("ab" * 32,), tells_router=True)
    async with connected(fleet, require=required) as (client, _):
        answer = await chat(client)
    assert answer.status == 412
    assert answer.checked is not None


def requiring(**members: Any) -> dict[str, Any]:
    return {**CHAT, "provider": {"touchstone": members}}


@pytest.mark.parametrize("members", [{"nodes": ["a"]}, {"assurance": "challenged", "max_age_s": 200}])
async def test_what_a_request_requires_is_checked_by_the_client_too(
    fleet: Fleet, members: dict[str, Any]
) -> None:
    async with connected(fleet) as (client, _):
        answer = await chat(client, requiring(**members))
    assert answer.status == 200
    assert answer.checked is not None
    assert Step.REQUIREMENTS in answer.checked.steps


@pytest.mark.parametrize(
    "members",
    [
        {"nodes": ["b"]}, {"not_nodes": ["a"]}, {"operators": ["acme"]}, {"regions": ["eu"]},
        {"claims": {"gpu": ["hardware"]}}, {"assurance": "confidential"}, {"max_walk_age_s": 10},
        {"reference": ["ab" * 32]}, {"spki_sha256": ["ab" * 32]}, {"kids": ["A" * 43]}, {"policies": ["other"]},
        {"unknown": 1},
    ],
    ids=lambda members: next(iter(members)),
)  # fmt: skip
async def test_a_router_that_passes_over_what_a_request_requires(
    fleet: Fleet, members: dict[str, Any]
) -> None:
    """Here it never hears of it; a dishonest one would hear, and give the work to whom it likes."""
    async with connected(fleet) as (client, mallory):
        mallory.lost = {REQUIRE_HEADER}
        header = {REQUIRE_HEADER: json.dumps(members)}
        with pytest.raises(UnverifiedError) as caught:
            await client.ask("POST", CHATS, msgspec.json.encode(CHAT), header)
    assert caught.value.step is Step.REQUIREMENTS


# The three lines.


def in_thread(work: Callable[[], Any]) -> Awaitable[Any]:
    return asyncio.to_thread(work)


async def three_lines(fleet: Fleet, url: str, work: Callable[[Client], Any]) -> Any:
    trust = await make_trust(fleet, url)

    def run() -> Any:
        with Client(url, key=KEY, trust=trust) as client:
            client._client._now = lambda: fleet.clock.ms / 1000
            return work(client)

    return await in_thread(run)


async def test_three_lines_of_python(fleet: Fleet) -> None:
    def work(client: Client) -> Any:
        return client.chat.completions.create(model=MODEL, messages=CHAT["messages"])

    answer = await three_lines(fleet, fleet.url, work)
    assert answer.choices[0].message.content == story()
    assert list(answer.checked.steps) == TAKEN


@pytest.mark.parametrize("stream", [True, "unverified"])
async def test_three_lines_with_a_stream(fleet: Fleet, stream: Any) -> None:
    def work(client: Client) -> Any:
        events = client.chat.completions.create(model=MODEL, messages=CHAT["messages"], stream=stream)
        return "".join(event.choices[0].delta.get("content") or "" for event in events if event.choices)

    assert await three_lines(fleet, fleet.url, work) == story()


async def test_the_other_resources_by_their_names(fleet: Fleet) -> None:
    def work(client: Client) -> Any:
        return client.embeddings.create(**WORK), client.models.list()

    vectors, models = await three_lines(fleet, fleet.url, work)
    assert vectors.data[0].embedding
    assert [model.id for model in models.data] == [MODEL]


async def test_three_lines_and_a_refusal(fleet: Fleet) -> None:
    def work(client: Client) -> Any:
        with pytest.raises(RefusedError) as caught:
            client.chat.completions.create(model="example/unknown", messages=[])
        return caught.value

    error = await three_lines(fleet, fleet.url, work)
    assert (error.status, error.code) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True, "unverified"])
async def test_three_lines_and_mallory(fleet: Fleet, stream: Any) -> None:
    mallory = Mallory(fleet.url)
    mallory.alter = change

    def work(client: Client) -> Any:
        answer = client.chat.completions.create(model=MODEL, messages=CHAT["messages"], stream=stream)
        return list(answer) if stream else answer

    async with serving(mallory.app()) as url:
        with pytest.raises(UnverifiedError, match="response"):
            await three_lines(fleet, url, work)


# The proxy.


@asynccontextmanager
async def proxied(fleet: Fleet, **given: Any) -> AsyncIterator[tuple[str, Mallory]]:
    """A proxy's URL, and Mallory between it and the router."""
    async with connected(fleet) as (client, mallory), serving(Proxy(client, **given).app()) as url:
        yield url, mallory


async def test_the_official_client_through_the_proxy(fleet: Fleet) -> None:
    async with proxied(fleet) as (url, _):
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == story()
        parts = [part async for part in await client.chat.completions.create(**STREAM)]
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == story()
        raw = await client.embeddings.with_raw_response.create(**WORK)
        assert {str(step) for step in [*TAKEN, Step.CHOICE]} == {*raw.headers[VERIFIED_HEADER].split()}
        assert raw.headers[LOGGED_HEADER] == "not-asked"
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**CHAT, "model": "example/unknown"})


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
async def test_the_proxy_hands_on_nothing_that_was_altered(fleet: Fleet, body: Any) -> None:
    async with proxied(fleet) as (url, mallory), aiohttp.ClientSession() as http:
        mallory.alter = change
        async with http.post(url + CHATS, json=body) as answer:
            error = (await answer.json())["error"]
    assert answer.status == 502
    assert error["code"] == "unverified.response"
    assert error["type"] == "unverified_answer"


async def test_a_stream_that_goes_on_as_it_comes_ends_well_or_with_an_error(fleet: Fleet) -> None:
    async with proxied(fleet, passes_streams=True) as (url, mallory), aiohttp.ClientSession() as http:
        async with http.post(url + CHATS, json=STREAM) as answer:
            right = await answer.read()
        assert answer.headers[VERIFIED_HEADER] == "at-end"
        mallory.alter = change
        async with http.post(url + CHATS, json=STREAM) as answer:
            wrong = await answer.read()
    assert right.endswith(encode_event(b"[DONE]"))
    assert b"[DONE]" not in wrong
    assert b"unverified.response" in wrong.split(b"\n\n")[-2]


async def test_the_official_client_sees_that_error(fleet: Fleet) -> None:
    async with proxied(fleet, passes_streams=True) as (url, mallory):
        mallory.alter = change
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="must not be used"):
            async for _ in await client.chat.completions.create(**STREAM):
                pass


async def test_a_refusal_of_a_stream_is_verified_before_it_goes_on(fleet: Fleet) -> None:
    async with proxied(fleet, passes_streams=True) as (url, mallory), aiohttp.ClientSession() as http:
        async with http.post(url + CHATS, json={**STREAM, "model": "example/unknown"}) as answer:
            assert answer.status == 404
        mallory.alter = lambda data: data.replace(b"model", b"Model", 1)
        async with http.post(url + CHATS, json={**STREAM, "model": "example/unknown"}) as answer:
            assert answer.status == 502


async def test_nobody_but_the_proxy_says_what_was_verified(fleet: Fleet) -> None:
    async def lie(request: web.Request) -> web.Response:
        answer = await Mallory(fleet.url).handle(request)
        answer.headers[VERIFIED_HEADER] = "everything"
        return answer

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", lie)
    async with serving(app) as mallory:
        trust = await make_trust(fleet, mallory)
        async with (
            AsyncClient(trust=trust, key=KEY, now=lambda: fleet.clock.ms / 1000) as client,
            serving(Proxy(client).app()) as url,
            aiohttp.ClientSession() as http,
            http.post(url + CHATS, json=CHAT) as answer,
        ):
            assert answer.headers.getall(VERIFIED_HEADER) == [" ".join(TAKEN)]


async def test_the_proxy_says_that_the_router_is_away(fleet: Fleet) -> None:
    trust = await make_trust(fleet, "http://127.0.0.1:9")
    async with (
        AsyncClient(trust=trust, key=KEY) as client,
        serving(Proxy(client).app()) as url,
        aiohttp.ClientSession() as http,
        http.post(url + CHATS, json=CHAT) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (502, "router_unreachable")


async def to_proxy(
    fleet: Fleet, headers: dict[str, str], method: str = "POST", **given: Any
) -> tuple[int, int]:
    """The status of the answer, and how many requests went on."""
    async with proxied(fleet, **given) as (url, mallory), aiohttp.ClientSession() as http:
        async with http.request(method, url + CHATS, json=CHAT, headers=headers) as answer:
            await answer.read()
        return answer.status, len(mallory.requests)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Host": "evil.test:4180"},
        {"Host": "127.0.0.1.evil.test"},
    ],
    ids=["origin", "null", "rebinding", "suffix"],
)
async def test_a_web_page_cannot_use_the_proxy(fleet: Fleet, headers: dict[str, str]) -> None:
    """Neither across origins, nor by a name of its own that leads to loopback."""
    assert await to_proxy(fleet, headers) == (403, 0)


async def test_callers_present_the_proxys_own_key_where_there_is_one(fleet: Fleet) -> None:
    assert await to_proxy(fleet, {}, caller_key="own") == (401, 0)
    assert await to_proxy(fleet, {"Authorization": "Bearer other"}, caller_key="own") == (401, 0)
    status, asked = await to_proxy(fleet, {"Authorization": "Bearer own"}, caller_key="own")
    assert (status, asked) == (200, 2)


async def test_methods_that_do_not_belong(fleet: Fleet) -> None:
    assert await to_proxy(fleet, {}, method="DELETE") == (405, 0)


async def test_the_routers_key_never_goes_to_callers_nor_theirs_to_it(fleet: Fleet) -> None:
    async with (
        proxied(fleet) as (url, mallory),
        aiohttp.ClientSession() as http,
        http.post(url + CHATS, json=CHAT, headers={"Authorization": "Bearer mine"}) as answer,
    ):
        text = await answer.text() + str(answer.headers)
    assert KEY not in text
    assert {headers["Authorization"] for _, headers in mallory.requests} == {f"Bearer {KEY}"}


async def test_a_body_that_is_too_large_is_refused_unread(fleet: Fleet) -> None:
    async with proxied(fleet, max_body=1000) as (url, mallory), aiohttp.ClientSession() as http:
        async with http.post(url + CHATS, data=b"x" * 2000) as answer:
            assert answer.status == 413
        assert mallory.requests == []


async def test_only_so_many_at_a_time(fleet: Fleet) -> None:
    async with (
        proxied(fleet, max_in_flight=0) as (url, _),
        aiohttp.ClientSession() as http,
        http.post(url + CHATS, json=CHAT) as answer,
    ):
        assert answer.status == 503
