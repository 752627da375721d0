"""Time-outs go by progress, and clients that wait get comments.  Over real sockets, with nodes that ping, drip and hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from router.gateway.sse import KEEP_ALIVE
from router.model import allowance
from router.model.standing import Standing
from tests.integration.gateway import CHAT, CHATS, STREAM, Fleet, Heard, official, opened
from tests.unit.router.doubles import FakeNode, until
from tests.unit.router.support import MODEL

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
Step = bytes | float


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def chunk(text: str = "", finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


END = chunk(finish="stop") + DONE


def streams(*steps: Step) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Sends bytes, and waits for seconds between them; then holds the stream open, unless it has ended."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in steps:
            if isinstance(step, bytes):
                await response.write(step)
            else:
                await asyncio.sleep(step)
        if steps and steps[-1] is END:
            return response
        await asyncio.Event().wait()
        return response

    return act


def answers_after(seconds: float) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def act(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        message = {"role": "assistant", "content": "hello"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    return act


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


HELLO = (chunk("hello"), END)


async def nodes(fleet: Fleet, *acts: Any) -> list[FakeNode]:
    made = []
    for name, act in zip("ab", acts, strict=False):
        node = await fleet.node(name)
        node.act = act
        made.append(node)
    return made


async def outcomes(fleet: Fleet, heard: Heard) -> list[tuple[str, str]]:
    return [(each["node"], each["outcome"]) for each in await fleet.record(heard.headers)]


# Whole answers.


async def test_a_whole_answer_of_many_tokens_may_take_its_time(fleet: Fleet) -> None:
    """900 tokens not streamed were `stalled` at 20 s: here 50 tokens have half a second on top of 0.2 s."""
    await nodes(fleet, answers_after(0.4), answers_after(0))
    await fleet.start(attempt_timeout_s=0.2, unseen_tokens_per_second=100)
    heard = await fleet.ask(CHAT | {"max_tokens": 50})
    assert (await outcomes(fleet, heard), fleet.failed("a")) == ([("a", "completed")], 0)


async def test_the_time_of_a_long_answer_takes_nothing_from_the_next_node(fleet: Fleet) -> None:
    """The first node has hung for all that is allowed, and the second has as much."""
    await nodes(fleet, hangs, answers_after(0.4))
    await fleet.start(attempt_timeout_s=0.2, timeout_s=0.3, unseen_tokens_per_second=100)
    heard = await fleet.ask(CHAT | {"max_tokens": 50})
    assert await outcomes(fleet, heard) == [("a", "stalled"), ("b", "completed")]


async def test_a_short_answer_has_little_time(fleet: Fleet) -> None:
    """A node that hangs is found by what was asked of it."""
    await nodes(fleet, answers_after(0.8), answers_after(0))
    await fleet.start(attempt_timeout_s=0.2, unseen_tokens_per_second=100)
    heard = await fleet.ask(CHAT | {"max_tokens": 5})
    assert await outcomes(fleet, heard) == [("a", "stalled"), ("b", "completed")]


async def test_a_dead_node_is_found_long_before_its_time_is_over(fleet: Fleet) -> None:
    """It has hours for so long an answer; but it answers no probes, and that shows sooner."""

    async def dies(request: web.Request) -> web.StreamResponse:
        fleet.router.note_probe("a")
        fleet.clock.forward(50)
        fleet.router.note_verifier_contact()
        return await hangs(request)

    await nodes(fleet, dies, answers_after(0))
    await fleet.start(attempt_timeout_s=0.2, unseen_tokens_per_second=1, timeout_s=100)
    heard = await fleet.ask(CHAT | {"max_tokens": 10_000})
    first, second = await fleet.record(heard.headers)
    assert (first["outcome"], second["outcome"]) == ("stalled", "completed")
    assert first["detail"] == "no whole answer, and the node answers no probes"


async def test_a_node_that_answers_probes_is_waited_for(fleet: Fleet) -> None:
    """A second long look finds nothing."""
    await nodes(fleet, answers_after(1.4))
    await fleet.start(attempt_timeout_s=0.1, unseen_tokens_per_second=1)
    assert await outcomes(fleet, await fleet.ask(CHAT | {"max_tokens": 100})) == [("a", "completed")]


# Until the first text.


async def test_a_long_prompt_has_more_time(fleet: Fleet) -> None:
    """Prompt length counts towards the time allowed for the first token."""
    await nodes(fleet, streams(0.5, *HELLO), streams(*HELLO))
    await fleet.start(attempt_timeout_s=0.2, unseen_prompt_tokens_per_second=100)
    long = {"messages": [{"role": "user", "content": "word " * 80}]}
    assert await outcomes(fleet, await fleet.ask(STREAM | long)) == [("a", "completed")]


async def test_a_short_prompt_has_less(fleet: Fleet) -> None:
    """The same node is stalled for it."""
    await nodes(fleet, streams(0.6, *HELLO), streams(*HELLO))
    await fleet.start(attempt_timeout_s=0.2, unseen_prompt_tokens_per_second=1000)
    assert await outcomes(fleet, await fleet.ask()) == [("a", "stalled"), ("b", "completed")]


@pytest.mark.parametrize(
    "sign", [PING, b":\n\n", chunk()], ids=["ping", "empty comment", "event without text"]
)
async def test_signs_of_life_through_a_long_prefill_are_waited_for(fleet: Fleet, sign: bytes) -> None:
    """A node that sends `: ping` through a long prefill is not stalled."""
    await nodes(fleet, streams(*([sign, 0.1] * 6), *HELLO), streams(*HELLO))
    await fleet.start(attempt_timeout_s=0.3, stall_s=0.3)
    heard = await fleet.ask()
    assert (await outcomes(fleet, heard), heard.text) == ([("a", "completed")], "hello")


async def test_a_node_that_only_pings_is_stalled_in_the_end(fleet: Fleet) -> None:
    """And the next one has its whole time."""
    await nodes(fleet, streams(*([PING, 0.05] * 100)), streams(0.2, *HELLO))
    await fleet.start(attempt_timeout_s=0.3, stall_s=0.3, quiet_s=0.6, timeout_s=0.5)
    heard = await fleet.ask()
    assert await outcomes(fleet, heard) == [("a", "stalled"), ("b", "completed")]
    assert fleet.failed("a") > 0


async def test_a_node_that_stops_pinging_is_stalled_soon(fleet: Fleet) -> None:
    """It had its time from the last sign on, and no more."""
    await nodes(fleet, streams(PING, 0.1, PING), streams(*HELLO))
    await fleet.start(attempt_timeout_s=0.2, stall_s=0.2, quiet_s=60)
    assert await outcomes(fleet, await fleet.ask()) == [("a", "stalled"), ("b", "completed")]


async def test_bytes_of_an_event_that_does_not_come_are_no_sign_of_life(fleet: Fleet) -> None:
    """A byte now and then buys no time."""
    await nodes(fleet, streams(*([b"d", 0.05] * 100)), streams(*HELLO))
    await fleet.start(attempt_timeout_s=0.3, stall_s=0.3, quiet_s=60)
    assert await outcomes(fleet, await fleet.ask()) == [("a", "stalled"), ("b", "completed")]


# Once it has begun.


async def test_a_stream_is_not_cut_while_it_progresses(fleet: Fleet) -> None:
    """Streamed, 900 tokens were cut at 60 s."""
    await nodes(fleet, streams(*([chunk("x"), 0.05] * 16), END))
    await fleet.start(timeout_s=0.4, attempt_timeout_s=0.4)
    heard = await fleet.ask()
    assert (heard.text, heard.done) == ("x" * 16, True)


async def test_comments_between_texts_are_signs_of_life(fleet: Fleet) -> None:
    """An engine that reads a call of a tool to its end says nothing else meanwhile."""
    await nodes(fleet, streams(chunk("a"), *([0.1, PING] * 6), chunk("b"), END))
    await fleet.start(stall_s=0.3)
    heard = await fleet.ask()
    assert (heard.text, heard.done) == ("ab", True)


async def test_comments_between_texts_are_not_waited_for_for_ever(fleet: Fleet) -> None:
    """The stream ends with an error, and the node is to blame."""
    await nodes(fleet, streams(chunk("a"), *([0.05, PING] * 100)))
    await fleet.start(stall_s=0.3, quiet_s=0.5)
    heard = await fleet.ask()
    assert (await outcomes(fleet, heard), heard.done) == ([("a", "stalled")], False)
    assert fleet.failed("a") > 0


async def test_a_stream_that_drips_is_ended(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text comes in time, and all together they are too slow.  The least pace is set to 1000 a second here."""
    monkeypatch.setattr(allowance, "LEAST_PACE", 1000)
    await nodes(fleet, streams(*([chunk("x"), 0.1] * 50)))
    await fleet.start(stall_s=0.3, quiet_s=0.4)
    heard = await fleet.ask()
    (first,) = await fleet.record(heard.headers)
    assert (first["outcome"], heard.done) == ("stalled", False)
    assert "tokens in" in first["detail"]


# The caller's own time.


CUT = {"X-Touchstone-Timeout": "0.5"}


@pytest.mark.parametrize(
    ("act", "body"),
    [
        (hangs, CHAT),
        (hangs, STREAM),
        (streams(*([PING, 0.1] * 50)), STREAM),
        (streams(*([chunk("x"), 0.1] * 50)), STREAM),
        (streams(chunk("x")), STREAM),
    ],
    ids=["whole", "stream", "pings", "flows", "stands"],
)
async def test_what_the_callers_time_cuts_is_nobodys(fleet: Fleet, act: Any, body: Any) -> None:
    """Also if the node had nearly all of its own time, and whatever it did meanwhile."""
    await nodes(fleet, act)
    await fleet.start(attempt_timeout_s=0.6, stall_s=0.6)
    heard = await fleet.ask(body, **CUT)
    assert (await outcomes(fleet, heard), heard.error["code"]) == ([("a", "timed-out")], "timed-out")
    assert (fleet.standing("a"), fleet.statistics("a").load.failures_in_a_row) == (Standing(), 0)


# Comments for the client.


def comments(heard: Heard) -> int:
    return heard.body.count(KEEP_ALIVE)


def without_comments(heard: Heard) -> Heard:
    return Heard(heard.status, heard.headers, heard.body.replace(KEEP_ALIVE, b""))


async def test_a_client_gets_comments_while_it_waits_for_the_first_text(fleet: Fleet) -> None:
    """The client saw no byte until the first text."""
    await nodes(fleet, streams(0.5, *HELLO))
    await fleet.start(keep_alive_s=0.1)
    heard = await fleet.ask()
    assert comments(heard) >= 2
    assert heard.body.startswith(KEEP_ALIVE)
    rest = without_comments(heard)
    assert (rest.text, rest.done) == ("hello", True)


async def test_the_head_comes_with_the_first_comment(fleet: Fleet) -> None:
    """So proxies and clients know that there is a stream."""
    await nodes(fleet, hangs)
    await fleet.start(keep_alive_s=0.05)
    async with fleet.http.post(fleet.url + CHATS, json=STREAM) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert "X-Touchstone-Decision" in response.headers
        assert await response.content.readuntil(b"\n\n") == KEEP_ALIVE


async def test_a_stream_that_flows_has_no_comments(fleet: Fleet) -> None:
    """They are for silence only."""
    await nodes(fleet, streams(*([chunk("x"), 0.05] * 10), END))
    await fleet.start(keep_alive_s=0.5)
    assert comments(await fleet.ask()) == 0


async def test_a_client_gets_comments_in_a_long_pause_too(fleet: Fleet) -> None:
    """Between whole events."""
    await nodes(fleet, streams(chunk("a"), 0.4, chunk("b"), END))
    await fleet.start(keep_alive_s=0.1)
    heard = await fleet.ask()
    assert comments(heard) >= 2
    assert without_comments(heard).text == "ab"


async def test_comments_can_be_turned_off(fleet: Fleet) -> None:
    """By 0."""
    await nodes(fleet, streams(0.3, *HELLO))
    await fleet.start(keep_alive_s=0)
    assert comments(await fleet.ask()) == 0


async def test_whole_answers_have_none(fleet: Fleet) -> None:
    """Their status is not known before they are there."""
    await nodes(fleet, answers_after(0.3))
    await fleet.start(keep_alive_s=0.05)
    assert (await fleet.ask(CHAT)).json["choices"][0]["message"]["content"] == "hello"


async def test_after_comments_another_node_can_still_take_over(fleet: Fleet) -> None:
    """A comment is nothing of an answer."""
    await nodes(fleet, hangs, streams(*HELLO))
    await fleet.start(keep_alive_s=0.1, attempt_timeout_s=0.4)
    heard = await fleet.ask()
    rest = without_comments(heard)
    assert (comments(heard) > 0, rest.text, rest.done) == (True, "hello", True)
    assert await outcomes(fleet, heard) == [("a", "stalled"), ("b", "completed")]


async def test_after_comments_an_error_is_an_event(fleet: Fleet) -> None:
    """The head has gone out with 200: what it would have said is in the error."""
    await nodes(fleet, hangs)
    await fleet.start(keep_alive_s=0.1, attempt_timeout_s=0.3)
    heard = await fleet.ask()
    rest = without_comments(heard)
    assert (heard.status, len(rest.data), "[DONE]" in rest.data) == (200, 1, False)
    assert (rest.error["code"], rest.error["status"]) == ("stalled", 504)


async def test_after_comments_it_is_told_when_to_try_again(fleet: Fleet) -> None:
    """As `Retry-After` would."""

    async def is_busy(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.json_response({"error": {"message": "full"}}, status=429)

    await nodes(fleet, is_busy)
    await fleet.start(keep_alive_s=0.1)
    error = without_comments(await fleet.ask()).error
    assert (error["code"], error["status"], error["retry_after"]) == ("busy", 503, 2)


async def test_after_comments_a_refusal_is_an_event(fleet: Fleet) -> None:
    """In the node's own words."""

    async def refuses(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.json_response({"error": {"message": "too long", "code": "context"}}, status=400)

    await nodes(fleet, refuses)
    await fleet.start(keep_alive_s=0.1)
    heard = await fleet.ask()
    error = without_comments(heard).error
    assert (error["message"], error["code"], error["status"]) == ("too long", "context", 400)
    assert await outcomes(fleet, heard) == [("a", "refused")]


async def test_before_the_first_comment_errors_have_their_status(fleet: Fleet) -> None:
    """Clients that try again by the status go on doing so for what fails at once."""
    await fleet.start(keep_alive_s=5)
    heard = await fleet.ask()
    assert (heard.status, heard.headers["Retry-After"]) == (503, "2")


async def test_a_stream_that_is_given_again_has_no_comments(fleet: Fleet) -> None:
    """What is kept is the answer."""
    await nodes(fleet, streams(0.3, *HELLO))
    await fleet.start(keep_alive_s=0.1)
    again = {"Idempotency-Key": "k1"}
    first = await fleet.ask(**again)
    second = await fleet.ask(**again)
    assert (comments(first) > 0, comments(second)) == (True, 0)
    assert without_comments(first).body == second.body


async def test_a_client_that_leaves_after_comments_frees_the_node(fleet: Fleet) -> None:
    """As one that leaves before."""
    await nodes(fleet, hangs)
    await fleet.start(keep_alive_s=0.05, attempt_timeout_s=30)
    async with fleet.http.post(fleet.url + CHATS, json=STREAM) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await until(lambda: not fleet.statistics("a").load.in_flight)
    assert fleet.standing("a") == Standing()


async def test_the_official_client_passes_over_comments(fleet: Fleet) -> None:
    """And raises the error that comes after them."""
    (node,) = await nodes(fleet, streams(0.3, *HELLO))
    await fleet.start(keep_alive_s=0.1, attempt_timeout_s=0.6)
    messages: Any = STREAM["messages"]
    async with official(fleet) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        assert [each.choices[0].delta.content async for each in stream] == ["hello", ""]
        node.act = hangs
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        with pytest.raises(openai.APIError, match="no node completed the work"):
            assert [each async for each in stream] == []
