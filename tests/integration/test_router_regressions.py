"""What an attack on the router found: each a defect that was reproduced."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attester.bounded import read_all
from fixtures.misbehaviour import Behaviour
from fixtures.transactions import transaction
from router.choose.decision import Decision, replay
from router.gateway import exchanges, probe
from router.gateway.openai import GATEWAY
from router.gateway.pinned import open_session
from router.gateway.upstream import Upstream
from router.model.load import BREAKER_FAILURES
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.model.tokens import Tokeniser
from router.model.usage import ANSWERS
from router.service.state import STATE
from router.state.prober import Prober
from router.state.records import FinishedRecord, Records
from router.store import holds, standings
from router.store.holds import Hold
from tests.integration.gateway import CHAT, CHATS, STREAM, TEXT, TEXTS, Fleet, by, key, opened
from tests.unit.router.doubles import CHAT as CHAT_ANSWER
from tests.unit.router.doubles import Certificate, raw_server, until


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def whole(content: str, **more: Any) -> bytes:
    """A whole answer's bytes, over a connection that is kept."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return framed(json.dumps({**CHAT_ANSWER, "choices": [choice], **more}).encode())


def framed(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def heard(reader: asyncio.StreamReader) -> bytes:
    """One request's body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return await reader.readexactly(int(length[0].split(b":")[1])) if length else b""


async def test_what_came_before_a_request_is_no_answer_to_it(fleet: Fleet) -> None:
    """One answer too many on a kept connection gives every later client the answer to the one before."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        while True:
            prompt = json.loads(await heard(reader))["messages"][0]["content"]
            if not first:
                await asyncio.sleep(0.05)
            writer.write(whole(f"for {prompt}"))
            if first:
                await asyncio.sleep(0.1)
                writer.write(whole("nobody's"))
            first = False

    await fleet.raw("a", act)
    await fleet.start()
    said = []
    for name in ("ann", "ben", "cid"):
        said.append((await fleet.ask(CHAT | {"messages": [{"role": "user", "content": name}]})).text)
        await asyncio.sleep(0.2)
    assert said == ["for ann", "for ben", "for cid"]


async def test_a_request_that_was_not_read_is_not_waited_for_by_the_next_one(tmp_path: Path) -> None:
    """A node that answers without reading has each further body pile up in the router's memory."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            await asyncio.sleep(0.1)
            writer.write(framed(b"{}", "400 Bad Request"))

    certificate = Certificate(tmp_path, "a")
    most = 0
    async with raw_server(act, certificate.context) as url, open_session(allow_private=True) as http:
        upstream = Upstream(http, connect_timeout_s=2, allow_private=True)
        for _ in range(5):
            response = await upstream.post(
                (url, certificate.pin), CHATS, b"x" * (8 << 20), request_id="0" * 32
            )
            protocol = response._connection.protocol
            assert protocol is not None
            assert protocol.transport is not None
            most = max(most, protocol.transport.get_write_buffer_size())
            await read_all(response.content, 100)
            response.leave(went_well=True)
    assert most < 10 << 20


async def test_a_connection_that_a_probe_opened_may_close_for_being_idle(fleet: Fleet) -> None:
    """A node whose kept connection from a probe closes as work comes is taken to have crashed."""
    asked = 0

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        probed = False
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                probed = True
                writer.write(framed(b"{}"))
                continue
            if probed:
                return
            asked += 1
            writer.write(whole("yes"))

    await fleet.raw("a", act)
    await fleet.engine("b")
    await fleet.start()
    state = fleet.app[STATE]
    http = fleet.app[GATEWAY].dispatcher._exchanges._upstream._session
    ask = partial(probe.ask, http, allow_private=True)
    prober = Prober(fleet.router, ask, state.clock, every_s=5)
    assert await prober.probe("a")
    outcomes = await fleet.attempts(CHAT, CHATS)
    assert outcomes == [("a", "completed")]
    assert fleet.failed("a") == 0


async def test_work_is_not_done_again_for_each_kept_connection(fleet: Fleet) -> None:
    """One request is sent once for each kept connection of a node that hangs up after taking it."""
    bodies: list[bytes] = []
    gate = asyncio.Event()
    hang_up = False

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await heard(reader)
            if hang_up:
                bodies.append(body)
                return
            await gate.wait()
            writer.write(whole("yes"))

    await fleet.raw("a", act)
    await fleet.start({"concurrency": 100})
    fleet.establish("a")
    asking = [asyncio.create_task(fleet.ask(CHAT)) for _ in range(10)]
    await asyncio.sleep(0.5)
    gate.set()
    assert {(await each).status for each in asking} == {200}
    hang_up = True
    await fleet.ask(CHAT)
    assert len(bodies) <= 2


async def test_who_leaves_while_tokens_are_counted_pays(fleet: Fleet) -> None:
    """A client that hangs up after the last text, while its long prompt is counted in a thread, pays nothing."""
    await fleet.engine("a", Behaviour("honest"))
    await fleet.start(sections={"keys": [key("ada", tokens_per_day=1000)]})

    def slowly(text: str) -> int:
        time.sleep(0.5 if len(text) > 8192 else 0)
        return len(text)

    gateway = fleet.app[GATEWAY]
    gateway.dispatcher.metering.tokenisers = {"tiny": Tokeniser(slowly)}
    body = STREAM | {"messages": [{"role": "user", "content": "long " * 4000}]}
    async with fleet.http.post(fleet.url + CHATS, json=body, headers=by("ada")) as response:
        seen = b""
        async for data in response.content.iter_any():
            seen += data
            if b'"finish_reason":"stop"' in seen.replace(b" ", b""):
                break
        response.close()
    await until(lambda: gateway.in_flight == 0)
    spent = gateway.keyring.spent().get("ada", (0, 0))[1]
    assert spent > 0


@pytest.mark.parametrize("odd", [b"1e999", b'"\xff\xfe"'])
async def test_an_answer_that_clients_cannot_read_is_not_completed(fleet: Fleet, odd: bytes) -> None:
    """A whole answer with a number or text that JSON does not have is a 500 of ours, and the node's good work."""
    plain = json.dumps(CHAT_ANSWER).encode()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await heard(reader)
            writer.write(framed(plain[:-1] + b', "odd": ' + odd + b"}"))

    await fleet.raw("a", act)
    await fleet.engine("b")
    await fleet.start()
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(len)}
    found = await fleet.ask(CHAT)
    assert found.status == 200
    assert [(a["node"], a["outcome"]) for a in await fleet.record(found.headers)] == [
        ("a", "corrupted"),
        ("b", "completed"),
    ]


async def test_a_stream_that_clients_cannot_read_is_not_completed(fleet: Fleet) -> None:
    """An event that is not UTF-8 where the router does not look breaks every client, and counts as good."""
    choice = b'{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}],"odd":"\xff"}'

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head + b"data: " + choice + b"\n\ndata: [DONE]\n\n")
        await writer.drain()
        await asyncio.sleep(0.2)

    await fleet.raw("a", act)
    await fleet.start()
    found = await fleet.ask(STREAM)
    assert [a["outcome"] for a in await fleet.record(found.headers)] == ["corrupted"]


@pytest.mark.parametrize("harm", ["account", "revision"])
async def test_what_a_neighbour_wrote_does_not_end_persistence(
    fleet: Fleet, tmp_path: Path, harm: str
) -> None:
    """A row of another router that cannot be used ends persistence for good, unnoticed."""
    await fleet.engine("a")
    sections = {"store": {"path": str(tmp_path / "router.db"), "flush_s": 0.1}}
    await fleet.start(sections=sections)
    state = fleet.app[STATE]
    async with transaction(state.persistence._db) as tx:
        account = StatisticsAggregate(Standing((1.0, 1.0)))
        await standings.save(tx, "evil", [("a", "small", account)], 1)
        if harm == "account":
            await tx.execute("UPDATE standings SET account = ? WHERE router = 'evil'", b"\xc1")
        if harm == "revision":
            await tx.execute("UPDATE standings SET revision = ? WHERE router = 'evil'", (1 << 63) - 1)
    await asyncio.sleep(0.3)
    found = await fleet.ask(CHAT)
    record = found.headers["X-Touchstone-Decision"]
    await asyncio.sleep(0.5)
    assert await state.persistence.find(record) is not None


async def test_what_one_node_fills_no_other_is_blamed_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of hostile nodes that fill what may be read at a time open the breakers of honest ones."""
    monkeypatch.setattr(exchanges, "MAX_READING", 1 << 20)
    begun = asyncio.Event()

    async def hoards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b" " * (1 << 20))
        await writer.drain()
        begun.set()
        await asyncio.sleep(60)

    async def honest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await heard(reader)
            answer = whole("yes" * 1000)
            writer.write(answer[:500])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(answer[500:])

    await fleet.raw("a", hoards)
    await fleet.raw("b", honest)
    await fleet.start({"concurrency": 1}, attempt_timeout_s=30, timeout_s=30)
    hoarding = asyncio.create_task(fleet.ask(CHAT))
    await begun.wait()
    await asyncio.sleep(0.2)
    statuses = [(await fleet.ask(CHAT)).status for _ in range(BREAKER_FAILURES)]
    hoarding.cancel()
    assert fleet.statistics("b").load.failures_in_a_row == 0
    assert statuses == [200] * BREAKER_FAILURES


async def test_an_answer_that_is_not_read_keeps_its_place(fleet: Fleet) -> None:
    """Whole answers that a client does not read are held without a place, a limit or an end."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await heard(reader)
            writer.write(whole("x" * (12 << 20)))

    await fleet.raw("a", act)
    await fleet.start(sections={"keys": [key("ada", concurrency=1)]}, write_timeout_s=1)
    body = json.dumps(CHAT).encode()
    head = (
        f"POST {CHATS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-ada\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    host, port = fleet.url.removeprefix("http://").split(":")
    writers = []
    gateway = fleet.app[GATEWAY]
    admitted = 0
    try:
        for _ in range(5):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writers.append(writer)
            writer.write(head + body)
            admitted += b"200" in await reader.readline()
            await asyncio.sleep(0.2)
        held = admitted - gateway.in_flight
        await asyncio.sleep(2)
        assert held <= 0
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_an_internal_failure_after_the_head_was_ready_is_framed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 after a stream's head was made ready has a Content-Length and a chunked body."""
    await fleet.engine("a", Behaviour("status"))
    await fleet.start()

    async def fails(*_: Any) -> None:
        await sink_ready(*_)
        raise RuntimeError("unforeseen")

    async def sink_ready(_self: Any, run: Any) -> None:
        await run.sink.ready()

    monkeypatch.setattr("router.gateway.dispatch.Dispatcher.run", fails)
    host, port = fleet.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(STREAM).encode()
    writer.write(f"POST {CHATS} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    rest = await asyncio.wait_for(reader.read(1000), 2)
    writer.close()
    assert head.startswith(b"http/1.1 500")
    if b"transfer-encoding: chunked" not in head:
        assert rest.startswith(b"{"), (head, rest)
    assert not (b"transfer-encoding" in head and b"content-length" in head)


async def test_events_without_text_stall_nobody(fleet: Fleet) -> None:
    """A megabyte of tiny events without text is copied again for each of them, and all other work waits."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head + b"data: {}\n\n" * 104_000)
        await writer.drain()
        await asyncio.sleep(5)

    await fleet.raw("a", act)
    await fleet.start()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    began = time.thread_time()
    await fleet.ask(STREAM)
    watching.cancel()
    took = time.thread_time() - began
    assert longest < 0.2, (longest, took)


async def test_what_is_put_back_and_does_not_fit_is_counted() -> None:
    """Records that are dropped because the store could not take them are lost without being counted."""
    lost: list[None] = []
    records = Records(writes=True, lost=lambda: lost.append(None), max_unwritten=2)
    records.requeue([FinishedRecord(name, 1, "ada", b"") for name in "cd"])
    records.requeue([FinishedRecord(name, 1, "ada", b"") for name in "ab"])
    assert len(lost) == 2


@pytest.mark.parametrize("of", ["completed", "failed", "at", "latency_s"])
async def test_what_a_neighbour_counted_can_be_replayed(fleet: Fleet, tmp_path: Path, of: str) -> None:
    """A neighbour's NaN goes into decisions, which then cannot be read or made again."""
    await fleet.engine("a")
    await fleet.engine("b")
    await fleet.start(sections={"store": {"path": str(tmp_path / "router.db"), "flush_s": 0.1}})
    odd: Any = float("nan")
    given: dict[str, Any] = {of: (odd, odd) if of in ("completed", "failed") else odd}
    async with transaction(fleet.app[STATE].persistence._db) as tx:
        await standings.save(tx, "evil", [("a", "small", StatisticsAggregate(Standing(**given)))], 1)
    await asyncio.sleep(0.5)
    found = await fleet.ask(CHAT)
    assert found.status == 200
    status, record = await fleet.get(f"/api/v1/decisions/{found.headers['X-Touchstone-Decision']}")
    assert status == 200, record
    replay(Decision.from_wire(record))


async def test_a_neighbours_hold_that_cannot_be_read_ends_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """A hold of another router with evidence that is no JSON ends the reading of all holds for good."""
    await fleet.engine("a")
    await fleet.start(sections={"store": {"path": str(tmp_path / "router.db")}})
    held = fleet.app[STATE].holds
    now_ms = fleet.clock.ms
    given: dict[str, Any] = {
        "operator": "o", "code": "c", "detail": "d", "evidence": {}, "opened_ms": now_ms, "due_ms": now_ms
    }  # fmt: skip
    one = Hold(id="r-1", node=None, kind="token-count-suspect", holding=False, **given)
    two = Hold(id="r-2", node="a", kind="settlement-mismatch", holding=True, **given)
    async with transaction(held._db) as tx:
        await holds.add(tx, one)
        await tx.execute("UPDATE holds SET evidence = ?", b"{")
        await holds.add(tx, two)
    with suppress(Exception):
        await held.sync()
    assert "r-2" in fleet.router.view("a").incidents


async def test_a_router_starts_beside_a_neighbour_that_writes_otherwise(fleet: Fleet, tmp_path: Path) -> None:
    """One account of a neighbour that this version cannot read keeps a router from starting."""
    await fleet.engine("a")
    sections = {"store": {"path": str(tmp_path / "router.db"), "flush_s": 60}}
    await fleet.start(sections=sections)
    async with transaction(fleet.app[STATE].persistence._db) as tx:
        await standings.save(tx, "newer", [("a", "small", StatisticsAggregate(Standing((1.0, 1.0))))], 1)
        await tx.execute("UPDATE standings SET account = ? WHERE router = 'newer'", b"\x91\x01")
    other = fleet.another()
    started = True
    try:
        await other.start(sections={**sections, "service": {"name": "other"}})
    except Exception:  # noqa: BLE001
        started = False
    assert started


async def test_tokens_of_a_late_stream_are_not_counted_in_the_loop(fleet: Fleet) -> None:
    """A long stream whose time is over is counted by the tokeniser in the loop, and all other work waits."""
    text = "word " * 20_000

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
        writer.write(head + b"data: " + chunk + b"\n\n")
        await writer.drain()
        await asyncio.sleep(5)

    await fleet.raw("a", act)
    await fleet.start()
    here = threading.get_ident()
    threads = []

    def count(what: str) -> int:
        if len(what) > 8192:
            threads.append(threading.get_ident())
        return len(what)

    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(count)}
    await fleet.ask(STREAM, **{"X-Touchstone-Timeout": "1"})
    assert here not in threads


@pytest.mark.parametrize(
    "asked",
    [
        {"max_tokens": 8, "prompt": [f"prompt {n}" for n in range(8)]},
        {"max_tokens": 8, "n": 8.0},
        {"max_tokens": 8, "n": "8"},
        {"max_tokens": 1, "max_completion_tokens": "64"},
    ],
    ids=["prompts", "float", "string", "other-limit"],
)
async def test_a_node_that_gives_what_was_asked_for_is_no_liar(fleet: Fleet, asked: Any) -> None:
    """What engines read as more tokens (a list of prompts, "8", 8.0) the router does not, and blames the node."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(await heard(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        most = int(asked.get("max_completion_tokens", asked["max_tokens"]))
        many = asked["prompt"] if isinstance(asked["prompt"], list) else range(int(asked.get("n", 1)))
        for index, _ in enumerate(many):
            for number in range(most):
                last = number == most - 1
                choice = {"index": index, "text": "yes ", "finish_reason": "length" if last else None}
                writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        await asyncio.sleep(0.2)

    await fleet.raw("a", act)
    await fleet.start()
    found = await fleet.ask(TEXT | {"stream": True} | asked, TEXTS)
    if found.status != 400:
        assert [a["outcome"] for a in await fleet.record(found.headers)] == ["completed"]
    assert fleet.failed("a") == 0


async def test_a_caller_with_little_time_ejects_nobody(fleet: Fleet) -> None:
    """The wait for the first token counts into the pace, so a caller's own short timeout is the node's stall."""
    await fleet.engine("a", Behaviour("honest", first_token_s=2.0, token_s=0.2, tokens=100))
    await fleet.start(sections={"keys": [key("ada", tokens_per_day=10_000)]}, attempt_timeout_s=60)
    found = await fleet.ask(STREAM, **by("ada"), **{"X-Touchstone-Timeout": "2.1"})
    gateway = fleet.app[GATEWAY]
    await until(lambda: gateway.in_flight == 0)
    assert found.streamed
    assert fleet.failed("a") == 0
    assert fleet.statistics("a").load.failures_in_a_row == 0
    assert gateway.keyring.spent().get("ada", (0, 0))[1] > 0


async def test_tools_that_the_router_does_not_count_hold_nobody(fleet: Fleet) -> None:
    """A caller's long tool definitions, which only the engine counts, have an honest node held until a person comes."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = json.loads(await heard(reader))
            prompt = len(json.dumps(asked["messages"])) + len(json.dumps(asked.get("tools", [])))
            usage = {"prompt_tokens": prompt // 4, "completion_tokens": 1, "total_tokens": prompt // 4 + 1}
            writer.write(whole("yes", usage=usage))

    await fleet.raw("a", act)
    await fleet.start()
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(lambda text: len(text) // 4 + 1)}
    tool = {"type": "function", "function": {"name": "f", "description": "what it does " * 2000}}
    for _ in range(ANSWERS + 1):
        await fleet.ask(CHAT | {"tools": [tool]})
    assert not fleet.router.view("a").incidents


async def test_who_leaves_during_a_large_answer_leaves_no_place_behind(fleet: Fleet) -> None:
    """A client that goes while its large whole answer is written leaves its places taken for ever."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await heard(reader)
            writer.write(whole("x" * (12 << 20)))

    await fleet.raw("a", act)
    await fleet.start(sections={"keys": [key("ada", concurrency=1)]})
    body = json.dumps(CHAT).encode()
    head = f"POST {CHATS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-ada\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = fleet.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(head.encode() + body)
    assert b"200" in await reader.readline()
    writer.transport.abort()
    gateway = fleet.app[GATEWAY]
    await asyncio.sleep(1)
    assert gateway.in_flight == 0
    assert (await fleet.ask(CHAT, **by("ada"))).status == 200


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "user", "content": "a"}] * 500},
        {"documents": [{"title": "t", "text": "what it says " * 2000}]},
    ],
    ids=["messages", "documents"],
)
async def test_what_a_template_adds_to_a_prompt_holds_nobody(fleet: Fleet, asked: Any) -> None:
    """What a chat template adds for each message, or from fields of the engine's own, is held against the node."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            given = json.loads(await heard(reader))
            # As a template does: <|im_start|>user\na<|im_end|>\n is six tokens where one is said.
            prompt = sum(5 + len(m["content"]) // 4 + 1 for m in given["messages"])
            prompt += len(json.dumps(given.get("documents", []))) // 4
            usage = {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1}
            writer.write(whole("yes", usage=usage))

    await fleet.raw("a", act)
    await fleet.start()
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(lambda text: len(text) // 2 + 1)}
    for _ in range(ANSWERS + 1):
        await fleet.ask(CHAT | asked)
    assert not fleet.router.view("a").incidents
