"""The streaming fixture engine: honest towards OpenAI's client, and wrong on the wire as its table says."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fixtures.replies import count_tokens, made_up
from fixtures.streaming import CONTROL, KINDS, Behaviour, StreamingEngine
from tests.unit.router.doubles import Certificate, serving, until

MODEL, PROMPT = "example/tiny", "tell me a story"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
STREAM = CHAT | {"stream": True}
WITH_USAGE = STREAM | {"stream_options": {"include_usage": True}}
VECTORS = {"model": MODEL, "input": PROMPT}
WORDS = [word if at == 0 else f" {word}" for at, word in enumerate(made_up(PROMPT).split())]
QUIET_S = 0.05
"""How long to listen for what should not come."""


class Heard:
    """What came over the wire in answer to one request."""

    def __init__(self, raw: bytes, end: str) -> None:
        self.end = end
        """``open``, ``closed`` or ``reset``: the connection, when listening ended."""
        self.status, self.headers, self.body, self.whole = 0, dict[str, str](), b"", False
        """Whole is a body that came to the end that HTTP has for it."""
        head, _, rest = raw.partition(b"\r\n\r\n")
        if not head:
            return
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if (length := self.headers.get("content-length")) is not None:
            self.body, self.whole = rest, len(rest) == int(length)
            return
        chunks = []
        while rest and not self.whole:
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            rest, self.whole = rest[int(size, 16) + 2 :], size == b"0"
        self.body = b"".join(chunks)

    @property
    def events(self) -> list[Any]:
        """The data of every whole event, as JSON where it is."""
        found: list[Any] = [event.removeprefix("data: ") for event in self.body.decode().split("\n\n")[:-1]]
        for at, data in enumerate(found):
            with suppress(json.JSONDecodeError):
                found[at] = json.loads(data)
        return found

    @property
    def choices(self) -> list[Any]:
        return [
            choice for event in self.events if isinstance(event, dict) for choice in event.get("choices", ())
        ]

    @property
    def contents(self) -> list[str]:
        deltas = [choice["delta"] for choice in self.choices if "role" not in choice["delta"]]
        return [delta["content"] for delta in deltas if "content" in delta]

    @property
    def finishes(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]

    @property
    def done(self) -> bool:
        return self.events[-1:] == ["[DONE]"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """An engine at the other end of plain sockets."""

    def __init__(self, engine: StreamingEngine, url: str, stack: AsyncExitStack) -> None:
        self.engine = engine
        self.url = url
        self._stack = stack

    async def open(self, body: Any = STREAM, path: str = "/v1/chat/completions") -> asyncio.StreamReader:
        """Ask, and leave the answer to be read."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        # A writer that nobody holds closes its connection.
        self._stack.callback(_abort, writer)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        return reader

    async def ask(
        self, kind: str, body: Any = STREAM, path: str = "/v1/chat/completions", **how: Any
    ) -> Heard:
        """The whole answer, to where the engine closes the connection."""
        self.engine.behaviour = Behaviour(kind, **how)
        return await _heard(await self.open(body, path))

    async def listen(self, kind: str, seen: bytes, times: int = 1, body: Any = STREAM, **how: Any) -> Heard:
        """The answer until *seen* came so many times, and what comes soon after that."""
        self.engine.behaviour = Behaviour(kind, **how)
        return await _heard(await self.open(body), seen, times)


def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _heard(reader: asyncio.StreamReader, seen: bytes | None = None, times: int = 1) -> Heard:
    raw, end = bytearray(), "open"
    try:
        async with asyncio.timeout(10) as limit:
            while True:
                if seen is not None and raw.count(seen) >= times:
                    limit.reschedule(asyncio.get_running_loop().time() + QUIET_S)
                    seen = None
                if not (data := await reader.read(1 << 20)):
                    end = "closed"
                    break
                raw += data
    except ConnectionResetError:
        end = "reset"
    except TimeoutError:
        assert seen is None, f"{seen!r} has not come"
    return Heard(bytes(raw), end)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    engine = StreamingEngine()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(engine.app()))
        yield Wire(engine, url, stack)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    certificate = Certificate(tmp_path, "engine")
    async with serving(StreamingEngine().app(), certificate.context) as url:
        http = openai.DefaultAsyncHttpxClient(verify=False)
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http
        ) as opened:
            yield opened


# Honest, to the official client.


async def test_a_chat_is_answered(client: openai.AsyncOpenAI) -> None:
    """With the text of its prompt, and usage that can be counted."""
    answer = await client.chat.completions.create(**CHAT)
    text = answer.choices[0].message.content
    assert text == made_up(PROMPT)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == count_tokens(text) == 16
    assert answer.usage.prompt_tokens == count_tokens(PROMPT)


async def test_a_chat_streams(client: openai.AsyncOpenAI) -> None:
    """The role, a chunk each token, the finish, the usage."""
    chunks = [chunk async for chunk in await client.chat.completions.create(**WITH_USAGE)]
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == WORDS
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 16)


async def test_usage_streams_only_if_asked_for(client: openai.AsyncOpenAI) -> None:
    """As with OpenAI."""
    chunks = [chunk async for chunk in await client.chat.completions.create(**STREAM)]
    assert not any(chunk.usage for chunk in chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_is_kept(client: openai.AsyncOpenAI, name: str) -> None:
    """The finish says that it was the limit."""
    answer = await client.chat.completions.create(**CHAT, **{name: 5})
    assert count_tokens(answer.choices[0].message.content or "") == 5
    assert answer.choices[0].finish_reason == "length"


async def test_a_completion_is_answered(client: openai.AsyncOpenAI) -> None:
    """The older operation."""
    answer = await client.completions.create(model=MODEL, prompt=PROMPT)
    assert (answer.object, answer.choices[0].text) == ("text_completion", made_up(PROMPT))


async def test_a_completion_streams(client: openai.AsyncOpenAI) -> None:
    """In the older form."""
    chunks = [
        chunk async for chunk in await client.completions.create(model=MODEL, prompt=PROMPT, stream=True)
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks) == made_up(PROMPT)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_embeddings_are_the_same_in_both_formats(client: openai.AsyncOpenAI) -> None:
    """Of a text or of several."""
    one = await client.embeddings.create(model=MODEL, input="b", encoding_format="float")
    two = await client.embeddings.create(model=MODEL, input=["a", "b"])
    assert len(one.data[0].embedding) == 8
    assert one.data[0].embedding == two.data[1].embedding != two.data[0].embedding


async def test_the_models_are_listed(client: openai.AsyncOpenAI) -> None:
    """There is one."""
    assert [model.id async for model in await client.models.list()] == [MODEL]


async def test_parts_of_a_message_are_one_prompt(client: openai.AsyncOpenAI) -> None:
    """Text may come in parts."""
    parts: Any = [{"type": "text", "text": "tell me"}, {"type": "text", "text": "a story"}]
    answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == made_up(PROMPT)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"max_tokens": 0}, {"messages": []}, {"messages": 1}])
async def test_what_it_cannot_do_is_refused(client: openai.AsyncOpenAI, wrong: dict[str, Any]) -> None:
    """With a 400."""
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**CHAT | wrong)


async def test_several_answers_are_given(client: openai.AsyncOpenAI) -> None:
    """To each of several prompts, by index, whole and streamed."""
    asked: Any = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "max_tokens": 3}
    whole = await client.completions.create(**asked)
    texts = [made_up(prompt, 3) for prompt in "aabb"]
    assert [choice.text for choice in whole.choices] == texts
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    streamed, ends = [""] * 4, set()
    async for chunk in await client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            ends |= {choice.index} if choice.finish_reason else set()
    assert (streamed, ends) == (texts, {0, 1, 2, 3})


async def test_another_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    """With OpenAI's code."""
    with pytest.raises(openai.NotFoundError) as refused:
        await client.embeddings.create(model="another", input="x")
    assert refused.value.code == "model_not_found"


async def test_an_unusual_dialect_is_understood(wire: Wire) -> None:
    """CRLF, a byte order mark and comments are SSE too."""
    wire.engine.behaviour = Behaviour("crlf")
    async with openai.AsyncOpenAI(base_url=f"{wire.url}/v1", api_key="none", max_retries=0) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(**STREAM)]
    assert len(chunks) == 18


# Honest, on the wire.


async def test_an_honest_stream(wire: Wire) -> None:
    """Every part of it, to the end."""
    heard = await wire.ask("honest")
    assert heard.headers["content-type"].startswith("text/event-stream")
    assert (heard.contents, heard.finishes, heard.done, heard.whole) == (WORDS, ["stop"], True, True)


@pytest.mark.parametrize("kind", ["slow", "crumbs", "wrong-type", "huge-header"])
async def test_what_is_odd_about_it_is_not_in_the_body(wire: Wire, kind: str) -> None:
    """The same bytes as an honest one."""
    assert (await wire.ask(kind)).body == (await wire.ask("honest")).body


async def test_coalesced_is_the_same(wire: Wire) -> None:
    """In one chunk of HTTP."""
    assert (await wire.ask("honest", coalesce=True)).body == (await wire.ask("honest")).body


async def test_the_pace_is_kept(wire: Wire) -> None:
    """Before the first token and between tokens."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await wire.ask("slow", first_token_s=0.05, token_s=0.01, tokens=6)
    assert loop.time() - begun >= 0.1


async def test_headers_come_before_the_first_token(wire: Wire) -> None:
    """However long that takes."""
    heard = await wire.listen("slow", b"\r\n\r\n", first_token_s=60)
    assert (heard.status, heard.body) == (200, b"")


@pytest.mark.parametrize(("share", "bad"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
async def test_a_share_misbehaves(wire: Wire, share: float, bad: int) -> None:
    """Evenly, the others being honest."""
    statuses = [(await wire.ask("status", share=share)).status for _ in range(8)]
    assert statuses.count(500) == bad
    spots = [at for at, status in enumerate(statuses) if status == 500]
    assert len({after - before for before, after in pairwise(spots)}) <= 1


# Misbehaviour: it says no.


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(("kind", "status"), [("status", 503), ("busy", 429), ("refuses", 400)])
async def test_it_says_no(wire: Wire, kind: str, status: int, body: dict[str, Any]) -> None:
    """With an error as OpenAI has it."""
    heard = await wire.ask(kind, body, status=503)
    assert heard.status == status
    assert set(heard.json["error"]) == {"message", "type", "param", "code"}


async def test_busy_says_when_to_come_back(wire: Wire) -> None:
    """In a second."""
    assert (await wire.ask("busy")).headers["retry-after"] == "1"


async def test_redirect(wire: Wire) -> None:
    """To where it is told."""
    heard = await wire.ask("redirect", location="https://127.0.0.1:2/")
    assert (heard.status, heard.headers["location"]) == (307, "https://127.0.0.1:2/")


# Misbehaviour: it does not come to an end.


async def test_silent(wire: Wire) -> None:
    """Not a byte."""
    wire.engine.behaviour = Behaviour("silent")
    reader = await wire.open()
    await until(lambda: wire.engine.open)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), QUIET_S)


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_headers_only(wire: Wire, body: dict[str, Any]) -> None:
    """And nothing after them."""
    heard = await wire.listen("headers-only", b"\r\n\r\n", body=body)
    assert (heard.status, heard.body, heard.end) == (200, b"", "open")


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_stalls(wire: Wire, after: int) -> None:
    """After so many chunks with content."""
    heard = await wire.listen("stalls", b'"content"', after + 1, after=after)
    assert (heard.contents, heard.end) == (WORDS[:after], "open")


async def test_stalls_within_json(wire: Wire) -> None:
    """Halfway through."""
    honest = await wire.ask("honest", CHAT)
    half = honest.body[: len(honest.body) // 2]
    heard = await wire.listen("stalls", half, body=CHAT)
    assert (heard.body, heard.end) == (half, "open")


async def test_lingers(wire: Wire) -> None:
    """A whole answer, yet not its end."""
    heard = await wire.listen("lingers", b"[DONE]")
    assert (heard.finishes, heard.done, heard.whole, heard.end) == (["stop"], True, False, "open")


async def test_drips(wire: Wire) -> None:
    """A byte is a chunk of HTTP."""
    heard = await wire.listen("drips", b"\r\n1\r\n", 5, token_s=0.001)
    assert (heard.contents[:3], heard.whole) == (WORDS[:3], False)


async def test_drips_a_byte_a_minute(wire: Wire) -> None:
    """Where nothing else is said."""
    heard = await wire.listen("drips", b'"content"', 4)
    assert (heard.contents, heard.end) == (WORDS[:3], "open")


@pytest.mark.parametrize(("body", "given"), [(STREAM, b": ping\n\n"), (CHAT, b" ")])
async def test_drips_comments(wire: Wire, body: dict[str, Any], given: bytes) -> None:
    """Signs of life, and no data."""
    heard = await wire.listen("drips-comments", given + b"\r\n", 5, body=body, token_s=0.001)
    assert (heard.body.replace(given, b""), heard.end) == (b"", "open")


async def test_endless(wire: Wire) -> None:
    """Far above the limit."""
    heard = await wire.listen("endless", b'"content"', 40, body=STREAM | {"max_tokens": 4})
    assert len(heard.contents) >= 39
    assert (heard.finishes, heard.end) == ([], "open")


async def test_endless_json(wire: Wire) -> None:
    """A body that is never whole."""
    assert (await wire.listen("endless", b" word", 40, body=CHAT)).end == "open"


async def test_endless_hollow(wire: Wire) -> None:
    """Chunks, and nothing in them."""
    heard = await wire.listen("endless-hollow", b'"content"', 40, token_s=0.001)
    assert (set(heard.contents), heard.end) == ({""}, "open")


# Misbehaviour: it ends too early or too late.


@pytest.mark.parametrize(("body", "given"), [(STREAM, b""), (CHAT, b"{}")])
async def test_empty(wire: Wire, body: dict[str, Any], given: bytes) -> None:
    """Yet a whole body."""
    heard = await wire.ask("empty", body)
    assert (heard.status, heard.body, heard.whole) == (200, given, True)


async def test_truncates(wire: Wire) -> None:
    """HTTP sees nothing amiss."""
    heard = await wire.ask("truncates")
    assert (heard.contents, heard.finishes, heard.done, heard.whole) == (WORDS[:3], [], False, True)


async def test_no_finish(wire: Wire) -> None:
    """Only the end."""
    heard = await wire.ask("no-finish")
    assert (heard.contents, heard.finishes, heard.done) == (WORDS, [], True)


async def test_no_done(wire: Wire) -> None:
    """Only the finish."""
    heard = await wire.ask("no-done")
    assert (heard.contents, heard.finishes, heard.done, heard.whole) == (WORDS, ["stop"], False, True)


async def test_after_done(wire: Wire) -> None:
    """It goes on."""
    heard = await wire.ask("after-done")
    assert heard.contents == [*WORDS, WORDS[0]]
    assert not heard.done


@pytest.mark.parametrize(("kind", "end"), [("cuts", "closed"), ("resets", "reset")])
async def test_cuts(wire: Wire, kind: str, end: str) -> None:
    """After whole chunks, without the end that HTTP has."""
    heard = await wire.ask(kind)
    assert (heard.contents, heard.whole, heard.end) == (WORDS[:3], False, end)


async def test_cuts_mid_chunk(wire: Wire) -> None:
    """The last event is a part of one."""
    heard = await wire.ask("cuts-mid-chunk")
    assert (heard.contents, heard.whole, heard.end) == (WORDS[:3], False, "closed")
    assert heard.body.rpartition(b"\n\n")[2].startswith(b"data: {")


@pytest.mark.parametrize("kind", ["cuts", "cuts-mid-chunk", "resets", "truncates", "bad-json", "garbage"])
async def test_json_breaks(wire: Wire, kind: str) -> None:
    """What goes wrong in a stream goes wrong in JSON too."""
    with pytest.raises(ValueError):
        assert (await wire.ask(kind, CHAT)).json


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_wrong_length(wire: Wire, body: dict[str, Any]) -> None:
    """Sixty-four bytes are missing."""
    heard = await wire.ask("wrong-length", body)
    assert (int(heard.headers["content-length"]) - len(heard.body), heard.end) == (64, "closed")


# Misbehaviour: it says the wrong thing.


async def test_garbage(wire: Wire) -> None:
    """Not even text."""
    with pytest.raises(UnicodeDecodeError):
        assert (await wire.ask("garbage")).events


async def test_bad_json(wire: Wire) -> None:
    """One event of an otherwise good stream."""
    heard = await wire.ask("bad-json")
    assert (heard.contents, heard.done) == (WORDS, True)
    assert [event for event in heard.events if isinstance(event, str)] == ['{"id":\x00"', "[DONE]"]


async def test_error_event(wire: Wire) -> None:
    """In the middle, and then an end as if all were well."""
    heard = await wire.ask("error-event")
    assert (heard.contents, heard.finishes, heard.done) == (WORDS[:3], [], True)
    assert heard.events[-2]["error"]["message"] == "out of memory"


async def test_error_with_status_200(wire: Wire) -> None:
    """Where it does not stream."""
    heard = await wire.ask("error-event", CHAT)
    assert (heard.status, list(heard.json)) == (200, ["error"])


async def test_control(wire: Wire) -> None:
    """In content and in the error."""
    heard = await wire.ask("control")
    assert all(content.startswith("\x1b[31m") and content.endswith("\r\n") for content in heard.contents)
    assert heard.events[-2]["error"]["message"] == CONTROL


async def test_control_in_a_refusal(wire: Wire) -> None:
    """Where it does not stream."""
    heard = await wire.ask("control", CHAT)
    assert (heard.status, heard.json["error"]["message"]) == (400, CONTROL)


async def test_huge_event(wire: Wire) -> None:
    """Eight MiB before the next end of a line."""
    heard = await wire.ask("huge-event")
    assert max(map(len, heard.body.split(b"\n"))) > 8 << 20


async def test_hollow(wire: Wire) -> None:
    """Paid for and not there."""
    heard = await wire.ask("hollow", WITH_USAGE)
    assert (heard.contents, heard.finishes) == ([""] * 16, ["stop"])
    assert heard.events[-2]["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("body", [CHAT, WITH_USAGE])
async def test_usage(wire: Wire, body: dict[str, Any]) -> None:
    """Ten times what it was."""
    heard = await wire.ask("usage", body)
    answer = heard.events[-2] if "stream" in body else heard.json
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 160, "total_tokens": 164}


@pytest.mark.parametrize("body", [CHAT, WITH_USAGE])
async def test_no_usage(wire: Wire, body: dict[str, Any]) -> None:
    """Though asked for."""
    heard = await wire.ask("no-usage", body)
    assert (heard.status, b"usage" in heard.body) == (200, False)


@pytest.mark.parametrize(
    ("body", "path"), [(STREAM, "/chat/completions"), (CHAT, "/chat/completions"), (VECTORS, "/embeddings")]
)
async def test_wrong_model(wire: Wire, body: dict[str, Any], path: str) -> None:
    """Whatever it was asked for."""
    heard = await wire.ask("wrong-model", body, f"/v1{path}")
    assert b'"model":"example/another"' in heard.body
    assert b'"model":"example/tiny"' not in heard.body


async def test_wrong_type(wire: Wire) -> None:
    """A page, it says."""
    assert (await wire.ask("wrong-type")).headers["content-type"].startswith("text/html")


async def test_huge_header(wire: Wire) -> None:
    """More than clients take."""
    assert len((await wire.ask("huge-header")).headers["x-filler"]) == 65_536


async def test_bomb(wire: Wire) -> None:
    """Small until it is unpacked."""
    heard = await wire.ask("bomb")
    assert heard.headers["content-encoding"] == "gzip"
    assert len(heard.body) < 16_384 < 8 << 20 == len(gzip.decompress(heard.body))


async def test_not_streaming(wire: Wire) -> None:
    """An answer, but not as asked."""
    heard = await wire.ask("not-streaming")
    assert heard.headers["content-type"].startswith("application/json")
    assert heard.json["choices"][0]["message"]["content"] == made_up(PROMPT)


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_every_kind_has_something_for_embeddings(wire: Wire, kind: str) -> None:
    """It begins, and can be left."""
    wire.engine.behaviour = Behaviour(kind)
    await wire.open(VECTORS, "/v1/embeddings")
    await until(lambda: wire.engine.requests)
    wire.engine.kill()
    await until(lambda: not wire.engine.open)


def test_an_unknown_kind_is_an_error() -> None:
    """Said where it is asked for."""
    with pytest.raises(ValueError, match="no kind 'kind'"):
        Behaviour("kind")


# Its life.


async def test_what_is_done_is_counted(wire: Wire) -> None:
    """Once it is."""
    await wire.ask("honest")
    engine = wire.engine
    assert (engine.requests, engine.open, engine.completed, engine.abandoned) == (1, 0, 1, 0)


@pytest.mark.parametrize("kind", ["silent", "headers-only", "stalls", "drips", "endless", "huge-event"])
async def test_a_client_that_leaves_is_counted(wire: Wire, kind: str) -> None:
    """Whatever the engine was doing."""
    wire.engine.behaviour = Behaviour(kind)
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(f"{wire.url}/v1/chat/completions", json=STREAM))
        await until(lambda: wire.engine.open)
        asking.cancel()
    await until(lambda: wire.engine.abandoned)
    assert (wire.engine.requests, wire.engine.open, wire.engine.completed) == (1, 0, 0)


async def test_kill_aborts_what_is_open(wire: Wire) -> None:
    """At once."""
    wire.engine.behaviour = Behaviour("stalls")
    readers = [await wire.open() for _ in range(3)]
    await until(lambda: wire.engine.open == 3)
    wire.engine.kill()
    assert {(await _heard(reader)).end for reader in readers} <= {"closed", "reset"}
    await until(lambda: wire.engine.abandoned == 3)


async def test_kill_refuses_until_revived(wire: Wire) -> None:
    """Not a byte of an answer meanwhile."""
    wire.engine.kill()
    refused = await wire.ask("honest")
    wire.engine.revive()
    assert (refused.status, (await wire.ask("honest")).status) == (0, 200)


async def test_its_behaviour_is_told_over_http() -> None:
    """And its counts are asked for."""
    engine = StreamingEngine()
    async with serving(engine.control()) as url, aiohttp.ClientSession(url) as session:
        async with session.put("/behaviour", json={"kind": "stalls", "after": 1}) as response:
            assert response.status == 200
        async with session.get("/behaviour") as response:
            assert msgspec.convert(await response.json(), Behaviour) == engine.behaviour
        async with session.get("/counts") as response:
            assert await response.json() == {"requests": 0, "open": 0, "completed": 0, "abandoned": 0}
    assert engine.behaviour == Behaviour("stalls", after=1)


@pytest.mark.parametrize("wrong", [{"kind": "unheard"}, {"kin": "honest"}, {"after": "x"}, []])
async def test_a_behaviour_that_is_none_is_refused(wrong: Any) -> None:
    """And changes nothing."""
    engine = StreamingEngine()
    async with (
        serving(engine.control()) as url,
        aiohttp.ClientSession(url) as session,
        session.put("/behaviour", json=wrong) as response,
    ):
        assert response.status == 400
    assert engine.behaviour == Behaviour()


async def test_the_command_line() -> None:
    """A line of JSON says where it serves and with which key; SIGTERM ends it."""
    arguments = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--kind", "usage", "--factor", "2"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fixtures.streaming", *arguments, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    told = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    host, _, port = told["url"].removeprefix("https://").partition(":")
    certificate = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    async with aiohttp.ClientSession() as session:
        url = f"{told['url']}/v1/chat/completions"
        async with session.post(url, json=CHAT, ssl=False) as response:
            claimed = (await response.json())["usage"]["completion_tokens"]
        async with session.get(f"{told['control']}/counts") as response:
            counts = await response.json()
    process.terminate()
    assert (claimed, counts["completed"], await process.wait()) == (32, 1, 0)
    assert _pin(certificate) == told["spki_sha256"]


def _pin(pem: str) -> str:
    public = x509.load_pem_x509_certificate(pem.encode()).public_key()
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
