"""Streams and whole answers of every kind of node, and of every kind of client: who gets what, and who is to blame."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest
from aiohttp import web

from fixtures.misbehaviour import HONEST
from fixtures.replies import made_up
from fixtures.streaming import KINDS, Behaviour
from router.gateway import handler
from router.gateway.client import ClientStream
from router.gateway.openai import GATEWAY
from router.model.standing import Standing
from router.model.tokens import Tokeniser, estimated
from router.service.state import STATE
from tests.integration.gateway import (
    CHAT,
    CHATS,
    PROMPT,
    STREAM,
    TEXT,
    TEXTS,
    VECTORS,
    WORK,
    EngineNode,
    Fleet,
    Heard,
    Running,
    official,
    opened,
    story,
)
from tests.unit.router.doubles import CHAT as DOCUMENT
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL

FEW = 5
"""Tokens of the node that takes over: so its answer is told from the first one's."""
PACED = {
    "slow", "stalls", "truncates", "no-finish", "no-done", "cuts", "cuts-mid-chunk", "resets", "bad-json",
    "error-event", "control",
}  # fmt: skip
"""Kinds that go wrong after some tokens: these are to reach the client one by one."""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


@pytest.fixture
async def ticking(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet whose clock runs: deadlines that span attempts need one."""
    async with opened(tmp_path, Running()) as fleet:
        yield fleet


class Ends(NamedTuple):
    """What becomes of the first node's attempt, and of the client's request."""

    outcome: str
    gets: str
    """The client: ``whole``, ``next`` (whole, of the next node), ``part`` and an error, or a status."""
    blame: str = "node"
    """By the record, once the request is over."""
    unclean: bool = False
    """Whether it counts as a breach of the protocol."""


WHOLE = Ends("completed", "whole", "nobody")
NEXT = {name: Ends(name, "next") for name in ("crashed", "stalled", "truncated", "hollow")} | {
    "busy": Ends("busy", "next", "nobody"),
    "corrupted": Ends("corrupted", "next", unclean=True),
}
PART = {name: Ends(name, "part") for name in ("crashed", "stalled", "truncated")} | {
    "corrupted": Ends("corrupted", "part", unclean=True)
}
REFUSED = Ends("refused", "400", "client")

STREAMED = {
    "honest": WHOLE,
    "slow": WHOLE,
    "crumbs": WHOLE,
    "crlf": WHOLE,
    "not-streaming": NEXT["corrupted"],
    "status": NEXT["crashed"],
    "busy": NEXT["busy"],
    "refuses": REFUSED,
    "redirect": NEXT["crashed"],
    "silent": NEXT["stalled"],
    "headers-only": NEXT["stalled"],
    "stalls": PART["stalled"],
    "lingers": WHOLE,
    "drips": PART["stalled"],
    "drips-comments": NEXT["stalled"],
    "endless": PART["corrupted"],
    "endless-hollow": NEXT["stalled"],
    "empty": NEXT["truncated"],
    "truncates": PART["truncated"],
    "no-finish": PART["truncated"],
    "no-done": WHOLE._replace(unclean=True),
    "usage-no-done": WHOLE._replace(unclean=True),
    "after-done": WHOLE,
    "cuts": PART["truncated"],
    "cuts-mid-chunk": PART["truncated"],
    "resets": PART["truncated"],
    "wrong-length": WHOLE,
    "garbage": NEXT["truncated"],
    "bad-json": PART["corrupted"],
    "error-event": PART["crashed"],
    "control": PART["crashed"],
    "huge-event": NEXT["corrupted"],
    "hollow": NEXT["hollow"],
    "usage": WHOLE,
    "no-usage": WHOLE,
    "wrong-model": WHOLE,
    "wrong-type": NEXT["corrupted"],
    "huge-header": NEXT["crashed"],
    "bomb": NEXT["truncated"],
}
"""Of streams."""

ANSWERED = {
    **STREAMED,
    "not-streaming": WHOLE,
    "stalls": NEXT["stalled"],
    "lingers": NEXT["stalled"],
    "drips": NEXT["stalled"],
    "endless": NEXT["stalled"],
    "empty": NEXT["corrupted"],
    "truncates": NEXT["corrupted"],
    "no-finish": NEXT["corrupted"],
    "no-done": WHOLE,
    "usage-no-done": WHOLE,
    "after-done": NEXT["corrupted"],
    "cuts": NEXT["truncated"],
    "cuts-mid-chunk": NEXT["truncated"],
    "resets": NEXT["truncated"],
    "wrong-length": NEXT["truncated"],
    "garbage": NEXT["corrupted"],
    "bad-json": NEXT["corrupted"],
    "error-event": NEXT["corrupted"],
    "control": REFUSED,
    "huge-event": WHOLE,
    "wrong-type": WHOLE,
    "bomb": NEXT["corrupted"],
}
"""Of whole answers."""

EMBEDDED = {**ANSWERED, "hollow": NEXT["corrupted"], "no-finish": WHOLE}
"""Of embeddings."""


def told(heard: Heard, size: int, other: int) -> str:
    """What a client gets, in a word; *size* of what the first node has to say, *other* of the next."""
    if heard.status != 200:
        assert set(heard.error) == {"message", "type", "param", "code"}
        return str(heard.status)
    said = heard.text
    if heard.streamed and not heard.done:
        assert heard.error is not None
        assert "[DONE]" not in heard.data
        assert len(said) > 0
        return "part"
    assert heard.error is None
    return {size: "whole", other: "next"}.get(len(said), said)


async def seen(fleet: Fleet, heard: Heard) -> tuple[str, str, bool, bool]:
    """What became of the first node: outcome, blame, whether its standing moved, and whether for a breach."""
    first = (await fleet.record(heard.headers))[0]
    standing = fleet.standing("a")
    return first["outcome"], first["blame"], standing.failed[1] > 0, standing.rejects > 0


def expected(ends: Ends) -> tuple[str, str, bool, bool]:
    return ends.outcome, ends.blame, ends.blame == "node", ends.unclean


async def two(fleet: Fleet, kind: str) -> None:
    """A node of a kind, and an honest one to take over."""
    await fleet.engine("a", Behaviour(kind, token_s=0.015 if kind in PACED else 0.0))
    await fleet.engine("b", Behaviour(tokens=FEW))
    if any(table[kind].outcome == "stalled" for table in (STREAMED, ANSWERED, EMBEDDED)):
        await fleet.start(attempt_timeout_s=1.2, stall_s=0.8, quiet_s=1.2, timeout_s=8)
    else:
        # A machine that is busy for a second makes no other end of it.
        await fleet.start(attempt_timeout_s=10, stall_s=10, quiet_s=10, timeout_s=40)


def test_the_tables_have_every_kind() -> None:
    """A kind that is added has its ends told here."""
    assert set(STREAMED) == set(ANSWERED) == set(KINDS)


@pytest.mark.parametrize(
    ("body", "path"), [(STREAM, CHATS), (TEXT | {"stream": True}, TEXTS)], ids=["chat", "text"]
)
@pytest.mark.parametrize("kind", KINDS)
async def test_how_a_stream_of_each_kind_ends(fleet: Fleet, kind: str, body: Any, path: str) -> None:
    """The client gets a whole answer or an explicit error; the outcome, its blame and the standing are as the table says."""
    await two(fleet, kind)
    heard = await fleet.ask(body | {"max_tokens": 16}, path)
    ends = STREAMED[kind]
    assert (told(heard, len(story()), len(story(FEW))), *await seen(fleet, heard)) == (
        ends.gets,
        *expected(ends),
    )


@pytest.mark.parametrize(("body", "path"), [(CHAT, CHATS), (TEXT, TEXTS)], ids=["chat", "text"])
@pytest.mark.parametrize("kind", KINDS)
async def test_how_a_whole_answer_of_each_kind_ends(fleet: Fleet, kind: str, body: Any, path: str) -> None:
    """Nothing of a failed answer reaches the client."""
    await two(fleet, kind)
    heard = await fleet.ask(body, path)
    ends = ANSWERED[kind]
    size = 8 << 20 if kind == "huge-event" else len(story())
    assert (told(heard, size, len(story(FEW))), *await seen(fleet, heard)) == (ends.gets, *expected(ends))


@pytest.mark.parametrize("kind", KINDS)
async def test_how_an_embedding_of_each_kind_ends(fleet: Fleet, kind: str) -> None:
    """As other whole answers."""
    await two(fleet, kind)
    heard = await fleet.ask(WORK, VECTORS)
    ends = EMBEDDED[kind]
    attempts = [attempt["node"] for attempt in await fleet.record(heard.headers)]
    gets = str(heard.status) if heard.status != 200 else {1: "whole", 2: "next"}[len(attempts)]
    assert (gets, *await seen(fleet, heard)) == (ends.gets, *expected(ends))


@pytest.mark.parametrize("kind", [kind for kind, ends in STREAMED.items() if ends.gets == "part"])
async def test_what_was_begun_is_never_spliced(fleet: Fleet, kind: str) -> None:
    """After the first text no other node is asked: its answer would not be the rest of this one."""
    await two(fleet, kind)
    heard = await fleet.ask(STREAM | {"max_tokens": 16})
    assert [attempt["node"] for attempt in await fleet.record(heard.headers)] == ["a"]


@pytest.mark.parametrize("kind", ["stalls", "cuts", "error-event", "bad-json"])
async def test_what_came_before_the_error_is_the_nodes(fleet: Fleet, kind: str) -> None:
    """Word for word, up to where it went wrong, or a word before."""
    await two(fleet, kind)
    assert (await fleet.ask()).text in (story(2), story(3))


# No request hangs past its deadline.

LONG_BEFORE_OTHERS_S = 15
"""A busy machine is late, but not by as much as the other limits are longer."""
UNENDING = [
    "silent",
    "headers-only",
    "slow",
    "stalls",
    "lingers",
    "drips",
    "drips-comments",
    "endless",
    "endless-hollow",
]


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", UNENDING)
async def test_the_deadline_holds_for_every_kind(ticking: Fleet, kind: str, body: Any) -> None:
    """Whatever the limits for attempts and pauses, the caller's time is the most there is."""
    for name in "abc":
        await ticking.engine(name, Behaviour(kind, token_s=0.2 if kind == "slow" else 0.0))
    await ticking.start(attempt_timeout_s=30, stall_s=30, timeout_s=30)
    began = time.monotonic()
    await ticking.ask(body, **{"X-Touchstone-Timeout": "0.6"})
    assert time.monotonic() - began < LONG_BEFORE_OTHERS_S


@pytest.mark.parametrize("kind", ["silent", "headers-only", "drips-comments", "endless-hollow"])
async def test_the_deadline_is_for_all_attempts_together(ticking: Fleet, kind: str) -> None:
    """The second node gets what the first has left of it."""
    for name in "abc":
        await ticking.engine(name, Behaviour(kind))
    await ticking.start(attempt_timeout_s=0.4, quiet_s=0.4, timeout_s=0.6)
    began = time.monotonic()
    heard = await ticking.ask()
    assert (heard.status, len(await ticking.record(heard.headers))) == (504, 2)
    assert time.monotonic() - began < LONG_BEFORE_OTHERS_S


async def test_a_caller_may_ask_for_less_time(ticking: Fleet) -> None:
    """And the node is not to blame for what the caller did not wait for."""
    await ticking.engine("a", Behaviour("silent"))
    await ticking.start(attempt_timeout_s=30, timeout_s=30)
    heard = await ticking.ask(**{"X-Touchstone-Timeout": "0.3"})
    assert (heard.status, heard.error["code"], ticking.standing("a")) == (504, "timed-out", Standing())


async def test_a_caller_cannot_ask_for_more_time(ticking: Fleet) -> None:
    """Than the router gives."""
    await ticking.engine("a", Behaviour("silent"))
    await ticking.start(timeout_s=0.3)
    began = time.monotonic()
    assert (await ticking.ask(**{"X-Touchstone-Timeout": "3600"})).status == 504
    assert time.monotonic() - began < LONG_BEFORE_OTHERS_S


async def test_a_caller_without_time_gets_nothing(fleet: Fleet) -> None:
    """And no node is asked."""
    node = await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(**{"X-Touchstone-Timeout": "0"})
    assert (heard.status, node.engine.requests) == (504, 0)


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "1e3", "inf", "nan", ".5", "0x10", "1,5", "9" * 13, "1.2.3"]
)
async def test_a_time_that_is_no_number_is_refused(fleet: Fleet, value: str) -> None:
    """Seconds are digits, with a point perhaps."""
    node = await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(**{"X-Touchstone-Timeout": value})
    assert (heard.status, node.engine.requests) == (400, 0)


async def test_a_request_that_never_comes_is_not_waited_for(fleet: Fleet) -> None:
    """A body that drips in holds its place no longer than the request may take."""
    await fleet.engine("a")
    await fleet.start(timeout_s=0.4)
    host, port = fleet.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {CHATS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    async with asyncio.timeout(LONG_BEFORE_OTHERS_S):
        assert (await reader.readline()).split()[1] == b"408"
    writer.close()
    assert fleet.app[GATEWAY].in_flight == 0


# Passed through as it comes.


def chunk(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    """An event of a chat."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + json.dumps(head | {"choices": [choice]} | more).encode() + b"\n\n"


class Gated:
    """A node that writes what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.written = 0
        self.gone = False

    async def act(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            while (part := await self.parts.get()) is not None:
                await response.write(part)
                self.written += len(part)
            await response.write_eof()
        except BaseException:
            self.gone = True
            raise
        return response

    def tell(self, *parts: bytes) -> None:
        for part in parts:
            self.parts.put_nowait(part)

    def finish(self) -> None:
        self.tell(chunk(None, "stop"), b"data: [DONE]\n\n")
        self.parts.put_nowait(None)


async def gated(fleet: Fleet, **settings: Any) -> Gated:
    node, gate = await fleet.node("a"), Gated()
    node.act = gate.act
    await fleet.start(**settings)
    return gate


async def test_each_text_reaches_the_client_before_the_next_is_sent(fleet: Fleet) -> None:
    """Nothing is buffered on the way: the node says more only once the client has heard."""
    gate = await gated(fleet)
    gate.tell(chunk("one"))
    got = []
    async with asyncio.timeout(5), fleet.http.post(fleet.url + CHATS, json=STREAM) as response:
        for text in ("two", "three"):
            got.append(await response.content.readuntil(b"\n\n"))
            gate.tell(chunk(text))
        got.append(await response.content.readuntil(b"\n\n"))
        gate.finish()
        await response.read()
    assert got == [chunk("one"), chunk("two"), chunk("three")]


async def test_an_event_in_pieces_reaches_the_client_whole(fleet: Fleet) -> None:
    """Half an event is kept until the other half has come."""
    gate = await gated(fleet)
    whole = chunk("a long word")
    gate.tell(chunk("one"), whole[:40])
    async with asyncio.timeout(5), fleet.http.post(fleet.url + CHATS, json=STREAM) as response:
        assert await response.content.readuntil(b"\n\n") == chunk("one")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await response.content.read(1)
        gate.tell(whole[40:])
        assert await response.content.readuntil(b"\n\n") == whole
        gate.finish()
        await response.read()


@pytest.mark.parametrize("cut", [1, 5, 6, 20, -2, -1])
async def test_an_event_may_be_cut_anywhere(fleet: Fleet, cut: int) -> None:
    """Within its name, its data or its end."""
    gate = await gated(fleet)
    whole = chunk("héllo ☃")
    asked = asyncio.create_task(fleet.ask())
    gate.tell(whole[:cut])
    await until(lambda: gate.written)
    await asyncio.sleep(0.02)
    gate.tell(whole[cut:])
    gate.finish()
    assert (await asked).text == "héllo ☃"


async def test_what_comes_with_the_end_goes_out_with_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One packet to the client for one from the node, and each byte as before."""
    sent: list[tuple[bytes, bool]] = []

    class WatchedStream(ClientStream):
        async def send(self, data: bytes, *, is_last: bool = False) -> None:
            sent.append((data, is_last))
            await super().send(data, is_last=is_last)

    monkeypatch.setattr(handler, "ClientStream", WatchedStream)
    gate = await gated(fleet)
    end = chunk("two") + chunk(None, "stop") + b"data: [DONE]\n\n"
    asked = asyncio.create_task(fleet.ask())
    gate.tell(chunk("one"))
    await until(lambda: sent)
    gate.tell(end)
    gate.parts.put_nowait(None)
    heard = await asked
    assert sent == [(chunk("one"), False), (end, True)]
    assert (heard.body, heard.text, heard.done) == (chunk("one") + end, "onetwo", True)
    await until(lambda: fleet.standing("a").completed[1] == 1.0)


async def test_nothing_is_sent_before_there_is_text(fleet: Fleet) -> None:
    """A role is no text: another node may still take over, and the first one's role is not heard."""
    node = await fleet.node("a")

    async def role_then_cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("", id="first"))
        await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    node.act = role_then_cut
    await fleet.engine("b")
    await fleet.start()
    heard = await fleet.ask()
    assert (heard.text, b'"first"' in heard.body) == (story(), False)


async def test_events_keep_their_names(fleet: Fleet) -> None:
    """Newer operations tell their events apart by name; the router's own events have none."""
    gate = await gated(fleet)
    gate.tell(b"event: text.delta\n" + chunk("one"), chunk("two"))
    gate.finish()
    heard = await fleet.ask()
    first, second, *_ = heard.body.split(b"\n\n")
    assert first.startswith(b"event: text.delta\ndata: {")
    assert second.startswith(b"data: {")


async def test_a_mark_of_the_byte_order_hides_no_text(fleet: Fleet) -> None:
    """A stream may begin with one (WHATWG HTML §9.2.6)."""
    gate = await gated(fleet)
    gate.tell(b"\xef\xbb\xbf" + chunk("one"), chunk("two"))
    gate.finish()
    assert (await fleet.ask()).text == "onetwo"


@pytest.mark.parametrize("side", ["client", "node"])
async def test_small_writes_are_not_held_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """TCP_NODELAY is set on both sides of a stream."""
    gate = await gated(fleet)
    requests: list[web.Request] = []

    class WatchedStream(ClientStream):
        def __init__(self, request: web.Request, *args: Any, **kwargs: Any) -> None:
            requests.append(request)
            super().__init__(request, *args, **kwargs)

    monkeypatch.setattr(handler, "ClientStream", WatchedStream)
    asked = asyncio.create_task(fleet.ask())
    gate.tell(chunk("one"))
    await until(lambda: gate.written)
    connector = fleet.app[GATEWAY].dispatcher._exchanges._upstream._connector
    (connection,) = connector._acquired
    transport = requests[0].transport if side == "client" else connection.transport
    assert transport is not None
    found = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    gate.finish()
    await asked
    assert found == 1


async def test_connections_are_used_again_after_streams(fleet: Fleet) -> None:
    """One handshake for ten streams, one after the other."""
    node = await fleet.engine("a")
    await fleet.start()
    for _ in range(10):
        assert (await fleet.ask()).done
    assert node.handshakes == 1


@pytest.mark.parametrize("kind", ["stalls", "lingers", "bad-json", "drips"])
async def test_a_connection_of_which_more_may_come_is_not_used_again(fleet: Fleet, kind: str) -> None:
    """The rest of one answer is not read as the next one's."""
    node = await fleet.engine("a", Behaviour(kind, token_s=0.015 if kind in PACED else 0.0))
    await fleet.start(stall_s=0.6)
    await fleet.ask()
    await until(lambda: node.engine.open == 0)
    node.behave()
    assert ((await fleet.ask()).text, node.handshakes) == (story(), 2)


async def test_every_stream_of_many_gets_its_own_text(fleet: Fleet) -> None:
    """Side by side on connections that are used again and again."""
    await fleet.engine("a")
    await fleet.start()
    fleet.establish("a")

    async def one(number: int) -> bool:
        content = f"request {number}"
        heard = await fleet.ask({**STREAM, "messages": [{"role": "user", "content": content}]})
        return heard.text == made_up(content)

    for _ in range(3):
        assert all(await asyncio.gather(*(one(number) for number in range(20))))


# Clients that do not read, and clients that leave.


async def flooded(fleet: Fleet, **settings: Any) -> tuple[Gated, socket.socket]:
    """A client that asks for a stream and does not read it, and a node that has more than any buffer holds."""
    gate = await gated(fleet, **settings)
    host, port = fleet.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    client.connect((host, int(port)))
    body = json.dumps(STREAM).encode()
    client.sendall(f"POST {CHATS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    gate.tell(*[chunk("a" * 60_000)] * 2000)
    gate.finish()
    return gate, client


async def test_a_client_that_does_not_read_costs_no_memory(fleet: Fleet) -> None:
    """The node is read no further than the buffers between them hold."""
    gate, client = await flooded(fleet)
    written = -1
    while written != gate.written:
        written = gate.written
        await asyncio.sleep(0.3)
    client.close()
    assert 0 < written < 24 << 20


@pytest.fixture
async def unread(fleet: Fleet) -> tuple[Gated, list[Any]]:
    """After a client that did not read was given up."""
    gate, client = await flooded(fleet, write_timeout_s=0.5, timeout_s=30, stall_s=30)
    await until(lambda: fleet.app[GATEWAY].in_flight)
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    client.close()
    (record,) = fleet.app[STATE].records.newest()
    return gate, record["attempts"]


async def test_a_client_that_does_not_read_is_given_up(unread: tuple[Gated, list[Any]]) -> None:
    """It has gone, for all that the router knows."""
    assert [(each["outcome"], each["blame"]) for each in unread[1]] == [("abandoned", "client")]


async def test_who_does_not_read_blames_nobody(unread: tuple[Gated, list[Any]], fleet: Fleet) -> None:
    """The node did what it was asked for."""
    assert (fleet.standing("a"), fleet.statistics("a").load.failures_in_a_row) == (Standing(), 0)


async def test_who_does_not_read_frees_the_node(unread: tuple[Gated, list[Any]], fleet: Fleet) -> None:
    """It sees that nobody listens, and its place is free."""
    await until(lambda: unread[0].gone)
    assert fleet.statistics("a").load.in_flight == 0


async def test_a_slow_client_gets_all(fleet: Fleet) -> None:
    """Who reads, however slowly, is not given up."""
    gate, client = await flooded(fleet, write_timeout_s=2, timeout_s=30, stall_s=0.3)
    written = -1
    while written != gate.written:
        written = gate.written
        await asyncio.sleep(0.4)
    client.setblocking(False)
    loop, size, tail = asyncio.get_running_loop(), 0, b""
    async with asyncio.timeout(20):
        while b"[DONE]" not in tail:
            data = await loop.sock_recv(client, 1 << 20)
            assert data, tail
            size, tail = size + len(data), (tail + data)[-64:]
    client.close()
    assert size > 2000 * 60_000


async def leave(fleet: Fleet, node: EngineNode, *, after: bytes | None) -> None:
    """Ask, wait for *after*, leave, and wait until all is settled."""
    async with aiohttp.ClientSession() as http:
        asked = asyncio.ensure_future(http.post(fleet.url + CHATS, json=STREAM))
        if after is None:
            await until(lambda: node.engine.open)
            asked.cancel()
        else:
            await (await asked).content.readuntil(after)
    await until(lambda: fleet.app[GATEWAY].in_flight == 0)


LEAVING = pytest.mark.parametrize(
    ("kind", "after"),
    [("silent", None), ("stalls", b"\n\n"), ("endless", b"\n\n")],
    ids=["before", "silence", "flow"],
)


@LEAVING
async def test_a_client_that_leaves_frees_the_node_at_once(
    fleet: Fleet, kind: str, after: bytes | None
) -> None:
    """Before the first text, in a silence, or while tokens flow: the node sees it, and its place is free."""
    node = await fleet.engine("a", Behaviour(kind))
    await fleet.start(attempt_timeout_s=30, stall_s=30, timeout_s=60)
    await leave(fleet, node, after=after)
    await until(lambda: node.engine.abandoned, LONG_BEFORE_OTHERS_S)
    assert (node.engine.open, fleet.statistics("a").load.in_flight) == (0, 0)


@LEAVING
async def test_a_client_that_leaves_blames_nobody(fleet: Fleet, kind: str, after: bytes | None) -> None:
    """Neither in the node's standing nor at its breaker."""
    node = await fleet.engine("a", Behaviour(kind))
    await fleet.start(attempt_timeout_s=30, stall_s=30, timeout_s=60)
    for _ in range(3):
        await leave(fleet, node, after=after)
    assert (fleet.standing("a"), fleet.statistics("a").load.failures_in_a_row) == (Standing(), 0)


@LEAVING
async def test_a_client_that_leaves_is_in_the_record_as_such(
    fleet: Fleet, kind: str, after: bytes | None
) -> None:
    """And no other node is asked."""
    node = await fleet.engine("a", Behaviour(kind))
    other = await fleet.engine("b")
    await fleet.start(attempt_timeout_s=30, stall_s=30, timeout_s=60)
    await leave(fleet, node, after=after)
    (record,) = fleet.app[STATE].records.newest()
    found = [(attempt["node"], attempt["outcome"], attempt["blame"]) for attempt in record["attempts"]]
    assert (found, other.engine.requests) == ([("a", "abandoned", "client")], 0)


# Usage.

WITH_USAGE = STREAM | {"stream_options": {"include_usage": True}}
COUNTED = (estimated(len(PROMPT)), estimated(len(story())))


@pytest.mark.parametrize("kind", ["honest", "usage", "no-usage"])
async def test_usage_is_told_as_the_router_counts_it(fleet: Fleet, kind: str) -> None:
    """With a tokeniser, whatever the node says, and once."""
    await fleet.engine("a", Behaviour(kind))
    await fleet.start()
    count = Tokeniser(lambda text: estimated(len(text)))
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": count}
    (usage,) = (await fleet.ask(WITH_USAGE)).usage
    prompt, completion = COUNTED
    assert usage == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def test_usage_that_no_node_tells_is_estimated(fleet: Fleet) -> None:
    """Without a tokeniser, by bytes; and it says whose count it is."""
    await fleet.engine("a", Behaviour("no-usage"))
    await fleet.start()
    heard = await fleet.ask(WITH_USAGE)
    (usage,) = heard.usage
    told = (usage["prompt_tokens"], usage["completion_tokens"], heard.events[-1]["usage_by"])
    assert told == (*COUNTED, "router")


async def test_usage_comes_last(fleet: Fleet) -> None:
    """In an event of its own without choices, before the end."""
    await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(WITH_USAGE)
    last = heard.events[-1]
    assert (last["choices"], last["object"], heard.done, "usage" in last) == (
        [],
        "chat.completion.chunk",
        True,
        True,
    )


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
async def test_usage_is_told_to_who_asks_for_it(fleet: Fleet, options: Any) -> None:
    """And to nobody else."""
    await fleet.engine("a", Behaviour("usage"))
    await fleet.start()
    assert (await fleet.ask(STREAM | {"stream_options": options})).usage == []


async def test_usage_beside_a_text_is_not_passed_on(fleet: Fleet) -> None:
    """What a node claims in any event is not what the client is told."""
    gate = await gated(fleet)
    gate.tell(chunk("one", usage={"prompt_tokens": 1, "completion_tokens": 10**6, "total_tokens": 10**6 + 1}))
    gate.finish()
    heard = await fleet.ask()
    assert (heard.text, heard.usage) == ("one", [])


async def test_a_stream_that_fails_tells_no_usage(fleet: Fleet) -> None:
    """It ends with its error."""
    await two(fleet, "cuts")
    heard = await fleet.ask(WITH_USAGE)
    assert (heard.usage, heard.error is None) == ([], False)


# The decision on every answer.


@pytest.mark.parametrize("kind", ["honest", "cuts", "busy", "refuses", "silent", "redirect"])
async def test_every_stream_names_its_decision(fleet: Fleet, kind: str) -> None:
    """Whole, broken off or refused."""
    await fleet.engine("a", Behaviour(kind, token_s=0.01))
    await fleet.start(attempt_timeout_s=0.8)
    heard = await fleet.ask()
    status, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}")
    assert (status, record["chosen"]) == (200, "a")


EXPLAIN = {"X-Touchstone-Explain": "1"}


async def test_a_stream_is_explained_at_its_end(fleet: Fleet) -> None:
    """In an event without choices, with what became of the decision."""
    await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(**EXPLAIN)
    explained = heard.events[-1]["touchstone"]
    found = (
        explained["id"],
        explained["chosen"],
        explained["attempts"][0]["outcome"],
        heard.done,
        heard.text,
    )
    assert found == (heard.headers["X-Touchstone-Decision"], "a", "completed", True, story())


async def test_a_stream_that_breaks_off_is_explained_with_its_error(fleet: Fleet) -> None:
    """In the same event."""
    await two(fleet, "cuts")
    heard = await fleet.ask(**EXPLAIN)
    assert (heard.error["code"], heard.events[-1]["touchstone"]["chosen"]) == ("truncated", "a")


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "whole"])
async def test_an_error_before_the_stream_is_explained(fleet: Fleet, body: Any) -> None:
    """Beside it, as JSON."""
    await fleet.engine("a", Behaviour("status"))
    await fleet.start()
    heard = await fleet.ask(body, **EXPLAIN)
    assert (heard.status, heard.json["touchstone"]["attempts"][0]["outcome"]) == (502, "crashed")


async def test_a_stream_without_the_wish_is_not_explained(fleet: Fleet) -> None:
    """Nothing is added to what OpenAI's clients know."""
    await fleet.engine("a")
    await fleet.start()
    assert b"touchstone" not in (await fleet.ask()).body


# Who is to blame for what may be the request's doing.


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["hollow", "status"])
async def test_what_all_nodes_answer_blames_nobody(fleet: Fleet, kind: str, body: Any) -> None:
    """In the records as in the standings: it is the request."""
    for name in "ab":
        await fleet.engine(name, Behaviour(kind))
    await fleet.start()
    heard = await fleet.ask(body)
    blames = [attempt["blame"] for attempt in await fleet.record(heard.headers)]
    assert (blames, fleet.standing("a"), fleet.standing("b")) == (["nobody"] * 2, Standing(), Standing())


async def test_a_hollow_stream_of_all_is_the_answer(fleet: Fleet) -> None:
    """Perhaps the request wants just that."""
    for name in "ab":
        await fleet.engine(name, Behaviour("hollow"))
    await fleet.start()
    heard = await fleet.ask(WITH_USAGE)
    assert (heard.status, heard.done, heard.text, heard.choices[-1]["finish_reason"]) == (
        200,
        True,
        "",
        "stop",
    )


async def test_a_node_that_died_is_taken_over_from(fleet: Fleet) -> None:
    """Also on a connection that was kept: the next node has the work, and the dead one the blame."""
    node = await fleet.engine("a")
    await fleet.engine("b", Behaviour(tokens=FEW))
    await fleet.start()
    await fleet.ask()
    node.engine.kill()
    heard = await fleet.ask()
    assert (heard.text, fleet.failed("a")) == (story(FEW), 3.0)


# OpenAI's own client.

MESSAGES: Any = CHAT["messages"]


async def test_the_official_client_chats(fleet: Fleet) -> None:
    """With the usage that it knows."""
    await fleet.engine("a")
    await fleet.start()
    async with official(fleet) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (answer.choices[0].message.content, answer.usage is not None) == (story(), True)


async def test_the_official_client_streams_a_chat(fleet: Fleet) -> None:
    """Chunk by chunk, and the usage at the end."""
    await fleet.engine("a")
    await fleet.start()
    async with official(fleet) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert usage is not None
    assert (text, usage.completion_tokens) == (story(), HONEST.tokens)


async def test_the_official_client_completes_text(fleet: Fleet) -> None:
    """The older operation."""
    await fleet.engine("a")
    await fleet.start()
    async with official(fleet) as client:
        answer = await client.completions.create(model=MODEL, prompt=PROMPT)
    assert answer.choices[0].text == story()


async def test_the_official_client_streams_text(fleet: Fleet) -> None:
    """Likewise."""
    await fleet.engine("a")
    await fleet.start()
    async with official(fleet) as client:
        stream = await client.completions.create(model=MODEL, prompt=PROMPT, stream=True)
        assert "".join([each.choices[0].text async for each in stream]) == story()


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_the_official_client_embeds(fleet: Fleet, form: Any) -> None:
    """In either form, the client's own choice included."""
    await fleet.engine("a")
    await fleet.start()
    given: dict[str, Any] = {} if form is None else {"encoding_format": form}
    async with official(fleet) as client:
        answer = await client.embeddings.create(model=MODEL, input=["one", "two"], **given)
    assert [len(each.embedding) for each in answer.data] in ([8, 8], [44, 44])


async def test_the_official_client_lists_and_retrieves_models(fleet: Fleet) -> None:
    """By a name with a slash, too."""
    await fleet.start()
    async with official(fleet) as client:
        listed = [model.id async for model in await client.models.list()]
        assert (listed, (await client.models.retrieve(MODEL)).id) == ([MODEL], MODEL)


async def test_the_official_client_knows_an_unknown_model(fleet: Fleet) -> None:
    """As its NotFoundError."""
    await fleet.start()
    async with official(fleet) as client:
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("unknown")
    assert refused.value.code == "model_not_found"


ERRORS = {
    "refuses": (openai.BadRequestError, 400),
    "busy": (openai.InternalServerError, 503),
    "status": (openai.InternalServerError, 502),
    "silent": (openai.InternalServerError, 504),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ERRORS)
async def test_the_official_client_understands_each_error(fleet: Fleet, kind: str, stream: bool) -> None:  # noqa: FBT001
    """As an exception of its own, with a body that it can read."""
    await fleet.engine("a", Behaviour(kind))
    await fleet.start(attempt_timeout_s=1.0)
    error, status = ERRORS[kind]
    async with official(fleet) as client:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    assert (raised.value.status_code, isinstance(raised.value.body, dict)) == (status, True)


async def test_the_official_client_knows_what_is_too_large(fleet: Fleet) -> None:
    """By its status."""
    await fleet.start()
    async with official(fleet) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.embeddings.create(model=MODEL, input="a" * (17 << 20))
    assert raised.value.status_code == 413


@pytest.mark.parametrize("kind", ["cuts", "stalls", "error-event", "bad-json"])
async def test_the_official_client_raises_what_breaks_off(fleet: Fleet, kind: str) -> None:
    """After the chunks that came, an APIError: no client takes half an answer for a whole one."""
    await fleet.engine("a", Behaviour(kind, token_s=0.015))
    await fleet.start(stall_s=0.8)
    got = []
    async with official(fleet) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="no node completed the work"):  # noqa: PT012
            async for each in stream:
                got.append(each.choices[0].delta.content or "")  # noqa: PERF401
    assert "".join(got) in (story(2), story(3))


async def test_the_official_client_tries_again_where_it_may(fleet: Fleet) -> None:
    """A node that is busy once is no more to it than a moment."""
    await fleet.engine("a", Behaviour("busy", share=0.5))
    await fleet.start()
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="x", max_retries=2) as client:
        first = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        second = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert [first.choices[0].message.content, second.choices[0].message.content] == [story()] * 2


async def test_a_whole_answer_is_not_changed(fleet: Fleet) -> None:
    """What the node wrote is what the client reads."""
    await fleet.node("a")
    await fleet.start()
    heard = await fleet.ask(CHAT)
    assert heard.json == DOCUMENT
