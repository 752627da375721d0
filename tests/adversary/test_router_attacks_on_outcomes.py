"""
Attacks by how work ends: 9 and 23 to 26 of the catalogue (reference/routers.md §C.2).

Each test fails where its attack succeeds; the last one takes the defences away and shows that it does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fixtures.streaming import Behaviour
from router.choose.candidates import Lane
from router.gateway import attempts, exchange, measuring
from router.gateway.exchange import Exchange
from router.model import answers as model_answers
from router.model import load, operations, standing
from router.model.answers import Answer
from router.model.errors import AttemptError
from router.model.load import BREAKER_FAILURES
from router.model.operations import Operation
from router.model.outcomes import Blame, Execution, Outcome
from router.model.quantiles import enough_for
from router.model.standing import PROVEN, Grade, Standing, rate
from router.model.statistics import SERIES, StatisticsAggregate
from router.state.fleet import Fleet as RouterFleet
from tests.adversary.defences import Row, names, succeeds_without
from tests.integration.gateway import CHAT, CHATS, STREAM, WORK, Fleet, by, key, opened
from tests.unit.router.doubles import Handler, answers, honest, until
from tests.unit.router.support import NOW


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def prefer_a(fleet: Fleet) -> None:
    """Both are established, and the first is so much quicker that it is asked first as long as it is."""
    for name, latency_s in (("a", 0.01), ("b", 20.0)):
        seen = Standing((100.0,) * 2, exchanges=100.0, at=fleet.clock.ms / 1000, latency_s=latency_s)
        fleet.router.restore_statistics(name, "small", StatisticsAggregate(seen))
    fleet.in_order()


def lane(fleet: Fleet, node: str) -> Lane | None:
    return fleet.router.lane(node, fleet.router.table.workloads["tiny"])


# 9: paying oneself for work.

OWN = {"keys": [key("acme", operator="acme"), key("customer")]}


async def test_attack_9_wash_traffic(fleet: Fleet) -> None:
    """9, self-rental: what an operator's own key sends earns its nodes nothing, and earns another's as usual."""
    await fleet.engine("own", operator="acme")
    await fleet.engine("other", operator="other")
    await fleet.start(sections=OWN)
    for aside in ("own", "other"):
        fleet.router.begin_hold(aside, "aside")
        for body in (CHAT, STREAM) * PROVEN:
            assert (await fleet.ask(body, **by("acme"))).status == 200
        fleet.router.end_hold(aside, "aside")
    assert lane(fleet, "other") is Lane.ESTABLISHED
    own = fleet.statistics("own")
    assert own.own == Standing(), "attack 9 succeeds: it has bought a standing"
    assert (lane(fleet, "own"), own.aggregate(0.0).slices) == (
        Lane.PROBATION,
        {name: {} for name in SERIES},
    )


async def test_attack_9_wash_traffic_hides_no_failures(fleet: Fleet) -> None:
    """9, and what fails counts, whoever sent it."""
    await fleet.engine("own", Behaviour("truncates"), operator="acme")
    await fleet.start(sections=OWN)
    for _ in range(2):
        await fleet.ask(**by("acme"))
    assert fleet.failed("own") == 6.0, "attack 9 succeeds: its own traffic hides its failures"


async def test_attack_9_wash_traffic_keeps_no_breaker_shut(fleet: Fleet) -> None:
    """9, and one good answer to oneself between any two failures does not make them any fewer in a row."""
    node = await fleet.engine("own", operator="acme")
    await fleet.start(sections=OWN)
    for _ in range(BREAKER_FAILURES):
        node.behave("truncates")
        await fleet.ask(**by("customer"))
        node.behave()
        await fleet.ask(**by("acme"))
    assert lane(fleet, "own") is Lane.BROKEN, "attack 9 succeeds: it keeps its breaker shut itself"


def with_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is work, whoever pays for it."""
    end_work = RouterFleet.end_work

    def credited(
        self: RouterFleet, node: str, workload: Any, execution: Execution, *which: Any, **how: Any
    ) -> None:
        end_work(self, node, workload, replace(execution, earns_credit=True), *which, **how)

    monkeypatch.setattr(RouterFleet, "end_work", credited)


def without_own_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator sends to itself is not looked at."""
    add = Standing.add

    def kind(self: Standing, execution: Execution, now: float) -> Standing:
        return self if execution.outcome is not Outcome.COMPLETED else add(self, execution, now)

    monkeypatch.setattr(Standing, "add", kind)


# 23: good for long, then bad.

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def worked(seen: Standing, seconds: float, every_s: float, outcome: Outcome = Outcome.COMPLETED) -> Standing:
    """With so many seconds of work, a request each *every_s*."""
    for _ in range(int(seconds / every_s)):
        seen = seen.add(Execution(outcome, 1.0), seen.at + every_s)
    return seen


def failures_to_fall(seen: Standing, every_s: float, bad_of: int = 1) -> int:
    """How many requests until it is established no more, one of *bad_of* failing."""
    for number in range(1, 100_000):
        outcome = Outcome.CRASHED if number % bad_of == 0 else Outcome.COMPLETED
        seen = seen.add(Execution(outcome, 1.0), seen.at + every_s)
        if rate(seen, seen.at).grade is not Grade.ESTABLISHED:
            return number
    raise AssertionError


@pytest.mark.parametrize(
    ("every_s", "bad_of", "most"),
    [(600.0, 1, 1), (60.0, 1, 2), (60.0, 3, 6), (6.0, 1, 26), (6.0, 3, 81)],
)
async def test_attack_23_milking(every_s: float, bad_of: int, most: int) -> None:
    """
    23, milking: a week of faultless work, at whatever rate, covers for no more than minutes of bad work.

    N, the requests until it is out of the established lane: 1 at six an hour, 2 at one a minute (6
    where every third fails), 26 at ten a minute (81).  What is banked is bounded by the shorter
    half-life, and the breaker, after three failures in a row, comes before it.
    """
    week = worked(Standing(at=float(NOW)), 7 * DAY, every_s)
    assert rate(week, week.at).grade is Grade.ESTABLISHED
    found = failures_to_fall(week, every_s, bad_of)
    assert found <= most, f"attack 23 succeeds: only after {found}"


@pytest.mark.parametrize(("hours", "days"), [(1, 4), (2, 1)])
async def test_attack_23_on_off(hours: int, days: int) -> None:
    """23, on–off: bad for one hour of 24, it is never established again from the fifth day on; for two, from the second."""
    seen = Standing(at=float(NOW))
    for day in range(7):
        established = False
        for _ in range(24 - hours):
            seen = worked(seen, HOUR, MINUTE)
            established |= rate(seen, seen.at).grade is Grade.ESTABLISHED
        assert not established or day < days, f"attack 23 succeeds: established on day {day}"
        assert established or day > 0
        seen = worked(seen, hours * HOUR, MINUTE, Outcome.CRASHED)


async def test_attack_23_milking_at_the_gateway(fleet: Fleet) -> None:
    """23, on sockets: whatever its history, a node that turns bad has failed three clients and no more."""
    await fleet.engine("a", Behaviour("cuts"))
    await fleet.engine("b")
    await fleet.start()
    prefer_a(fleet)
    failed = [(await fleet.ask()).done for _ in range(40)].count(False)
    assert failed > 0
    assert failed <= BREAKER_FAILURES, f"attack 23 succeeds: {failed} of 40 failed"


def with_a_week_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One half-life, the longer."""
    monkeypatch.setattr(standing, "HALF_LIVES_S", (7 * DAY, 7 * DAY))


def with_an_hour_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One half-life, the shorter."""
    monkeypatch.setattr(standing, "HALF_LIVES_S", (HOUR, HOUR))


def without_breakers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No breaker, and failures that weigh next to nothing."""
    monkeypatch.setattr(load, "BREAKING", frozenset())
    monkeypatch.setattr(standing, "FAILURE_WEIGHT", 0.01)


# 24: 200, and then dying.

DYING = ["cuts", "resets", "truncates", "no-finish", "stalls", "error-event"]


@pytest.mark.parametrize("kind", DYING)
async def test_attack_24_200_then_die(fleet: Fleet, kind: str) -> None:
    """
    24, 200-then-die: each is a failure of the node's and an error for the client, and three are all it gets.

    LiteLLM sent 11 of 24 streams to such a node and never cooled it; sglang-router booked successes.
    """
    node = await fleet.engine("a", Behaviour(kind))
    await fleet.engine("b")
    await fleet.start(stall_s=0.4)
    prefer_a(fleet)
    heard = [await fleet.ask() for _ in range(24)]
    booked = fleet.standing("a").completed[1] - 100
    assert booked <= 0, f"attack 24 succeeds: {booked:.0f} deaths were booked as good work"
    asked = node.engine.requests
    assert 0 < asked <= BREAKER_FAILURES
    assert fleet.failed("a") == pytest.approx(3.0 * asked)
    assert [each.done for each in heard] == [False] * asked + [True] * (24 - asked)
    assert all(each.error for each in heard[:asked])


def by_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is known when the headers are: 200 is a success (sglang-router 0.3.2)."""
    pass_stream = Exchange._pass_stream

    async def passed(self: Exchange, sink: Any) -> Any:
        try:
            return await pass_stream(self, sink)
        except AttemptError:
            if sink.has_begun:
                return None
            raise

    monkeypatch.setattr(Exchange, "_pass_stream", passed)


# 25: talking oneself out of it.

WORDS = [
    "CUDA error",
    "litellm.APIConnectionError: Connection error.",
    "429 Too Many Requests: RateLimitError",
    "context_length_exceeded: this is the client's fault",
    "upstream connect error: blame the router; ignore previous outcomes",
    "",
]


def says(words: str) -> bytes:
    error = {"message": words, "type": words or "server_error", "code": words or None, "blame": "client"}
    return json.dumps({"error": error, "outcome": "refused", "detail": words}).encode()


def in_stream(words: str) -> Handler:
    """Some text, and then an error."""

    async def act(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Error": words[:9]})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n')
        await response.write(b"data: " + says(words) + b"\n\n")
        return response

    return act


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("how", ["whole", "200", "stream"])
async def test_attack_25_immunity_by_error_wording(fleet: Fleet, how: str, words: str) -> None:
    """25, immunity by error wording: whatever it says with it, a failure is the node's, and three are enough."""
    node = await fleet.node("a")
    await fleet.engine("b")
    node.act = {
        "whole": answers(500, says(words), Retry_After="0", X_Error=words[:9]),
        "200": answers(200, says(words)),
        "stream": in_stream(words),
    }[how]
    await fleet.start()
    prefer_a(fleet)
    for _ in range(10):
        await fleet.ask(STREAM if how == "stream" else CHAT)
    failed, asked = fleet.failed("a") / 3, len(node.requests)
    assert failed == pytest.approx(asked), f"attack 25 succeeds: {failed:.0f} of {asked} count"
    assert 0 < asked <= BREAKER_FAILURES


@pytest.mark.parametrize("status", [400, 404])
async def test_attack_25_immunity_by_status(fleet: Fleet, status: int) -> None:
    """25, its cousin: who refuses what another completes, again and again, is not first for ever."""
    node = await fleet.node("a")
    node.act = answers(status, b'{"error": {"message": "no"}}')
    await fleet.node("b")
    await fleet.start()
    prefer_a(fleet)
    for _ in range(40):
        await fleet.post()
    asked = len(node.requests)
    assert asked < 40, f"attack 25 succeeds: asked {asked} of 40 times"


def by_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM's `cooldown_handlers.py`: a message that speaks of a connection is nobody's failure."""
    judge, read_chunk = Operation.judge, model_answers.read_chunk

    def lenient(self: Operation, status: int, body: bytes) -> Answer:
        if b"APIConnectionError" in body:
            detail = "a connection failed"
            return Answer(status=status, body=b"", outcome=Outcome.UNSUPPORTED, detail=detail)
        return judge(self, status, body)

    def lenient_chunk(data: bytes) -> Any:
        if b"APIConnectionError" in data:
            raise AttemptError(Outcome.UNSUPPORTED, "a connection failed")
        return read_chunk(data)

    monkeypatch.setattr(Operation, "judge", lenient)
    monkeypatch.setattr(model_answers, "read_chunk", lenient_chunk)
    monkeypatch.setattr(exchange, "DOUBTFUL", frozenset({Outcome.CRASHED}))


# 26: making honest nodes look bad.


async def unharmed(fleet: Fleet, *names: str) -> None:
    """Nobody has lost anything."""
    await until(lambda: not any(fleet.router.in_flight(name) for name in names))
    found = [(fleet.failed(name), fleet.statistics(name).load.failures_in_a_row) for name in names]
    assert found == [(0.0, 0)] * len(names), f"attack 26 succeeds: {found}"


@pytest.mark.parametrize("body", [CHAT | {"max_tokens": 0}, CHAT | {"n": 0}, CHAT | {"messages": []}])
@pytest.mark.parametrize("nodes", ["a", "ab"])
async def test_attack_26_ejection_by_bad_requests(fleet: Fleet, body: dict[str, Any], nodes: str) -> None:
    """26, client-induced ejection: what a node refuses is the client's, also where there is but one node."""
    for name in nodes:
        await fleet.engine(name)
    await fleet.start()
    heard = [await fleet.ask(body | {"stream": stream}) for stream in (True, False) * 5]
    await unharmed(fleet, *nodes)
    assert {each.status for each in heard} == {400}


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_attack_26_ejection_by_huge_prompts(fleet: Fleet, status: int) -> None:
    """26, prompts beyond a node's context, which it refuses in whatever words."""

    async def refuses(request: web.Request) -> web.StreamResponse:
        large = len(await request.read()) > 10_000
        return web.Response(status=status, text="too large") if large else await honest(request)

    (await fleet.node("a")).act = refuses
    await fleet.start()
    found = [(await fleet.post(WORK | {"input": "x" * 1_000_000}))[0] for _ in range(5)]
    await unharmed(fleet, "a")
    assert found == [status] * 5


@pytest.mark.parametrize("stream", [True, False])
async def test_attack_26_ejection_by_leaving(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """26, a client that asks and goes, before the first text and in the middle."""
    node = await fleet.engine("a", Behaviour("slow", first_token_s=0.05, token_s=0.05, tokens=100))
    await fleet.start()
    for seconds in (0.02, 0.2, 0.02, 0.2, 0.2):
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await fleet.ask(CHAT | {"stream": stream})
    await unharmed(fleet, "a")
    assert node.engine.requests >= 3


POISON: dict[str, Handler] = {
    "500": answers(500, b'{"error": {"message": "assertion failed"}}'),
    "502 in HTML": answers(502, b"<html>", Content_Type="text/html"),
    "nothing": answers(
        200, b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": ""}}]}'
    ),
}


@pytest.mark.parametrize("act", POISON.values(), ids=POISON.keys())
async def test_attack_26_ejection_by_poison(fleet: Fleet, act: Handler) -> None:
    """26, a request that every node stumbles over, or has nothing to say to, is the request's doing."""
    for name in "abc":
        (await fleet.node(name)).act = act
    await fleet.start()
    for _ in range(5):
        await fleet.post(CHAT, CHATS)
    await unharmed(fleet, *"abc")


ODD_CALLS: dict[str, Any] = {
    "an object": {"function": {"name": "f", "arguments": {"a": 1}}},
    "nobody's form": "f()",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("calls", ODD_CALLS.values(), ids=ODD_CALLS)
async def test_attack_26_ejection_by_tools(fleet: Fleet, calls: Any, stream: bool) -> None:  # noqa: FBT001
    """26, twelve requests with `tools` from one client, at which engines word their answer in a form of their own."""
    part = "delta" if stream else "message"
    choice = {"index": 0, part: {"content": None, "tool_calls": [calls]}, "finish_reason": "tool_calls"}
    body = json.dumps({"choices": [choice]}).encode()
    for name in "abc":
        (await fleet.node(name)).act = (
            answers(200, b"data: " + body + b"\n\ndata: [DONE]\n\n", Content_Type="text/event-stream")
            if stream
            else answers(200, body)
        )
    await fleet.start()
    fleet.establish(*"abc")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for _ in range(12):
        await fleet.ask(CHAT | {"tools": tools, "stream": stream})
    await unharmed(fleet, *"abc")
    assert {lane(fleet, name) for name in "abc"} == {Lane.ESTABLISHED}


async def test_attack_26_ejection_by_long_answers(fleet: Fleet) -> None:
    """26, a whole answer so long that no node has it ready in the time of an attempt."""
    for name in "abc":
        await fleet.engine(name, Behaviour("slow", token_s=0.05, tokens=1000))
    await fleet.start(attempt_timeout_s=0.1)
    heard = [await fleet.ask(CHAT) for _ in range(4)]
    await unharmed(fleet, *"abc")
    assert {each.status for each in heard} == {504}


def reads_slowly(request_s: float, token_s: float) -> Handler:
    """An honest node that takes its time for every request, and for each token of a prompt."""

    async def act(request: web.Request) -> web.StreamResponse:
        size = len(await request.read()) / 4
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(request_s + size * token_s)
        chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    return act


async def missed_by(fleet: Fleet, act: Handler, words: int) -> str | None:
    """The objective that a node misses after as many prompts as it takes to judge it."""
    (await fleet.node("a")).act = act
    await fleet.start({"first_token_p90_ms": 400, "typical": {"input": 100, "output": 10}})
    body = STREAM | {"messages": [{"role": "user", "content": "four" * words}]}
    await asyncio.gather(*(fleet.ask(body) for _ in range(enough_for(0.9))))
    fleet.router.sweep(10)
    return fleet.statistics("a").missed_objective


async def test_attack_26_ejection_by_long_prompts(fleet: Fleet) -> None:
    """26, prompts of twenty times the tier's usual length: objectives compare like with like."""
    missed = await missed_by(fleet, reads_slowly(0, 0.0003), 2000)
    assert missed is None, f"attack 26 succeeds: {missed}"


async def test_long_prompts_hide_no_slow_node(fleet: Fleet) -> None:
    """Who is slow for its usual prompts misses the objective."""
    assert await missed_by(fleet, reads_slowly(0.5, 0), 50) == "standing.first-token-p90"


def with_every_length_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first text counts as it is, whatever was asked."""
    monkeypatch.setattr(measuring, "size_share", lambda *_, **__: 1.0)


async def test_attack_26_ejection_by_a_query_of_death(fleet: Fleet) -> None:
    """26, a request at which every engine drops the connection."""

    async def dies(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    for name in "abc":
        (await fleet.node(name)).act = dies
    await fleet.start()
    for _ in range(5):
        await fleet.post(CHAT, CHATS)
    await unharmed(fleet, *"abc")


def with_refusals_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4xx is a worker's failure (sglang #25811)."""
    of_status = operations.of_status
    monkeypatch.setattr(operations, "of_status", lambda status: of_status(500 if status >= 400 else status))


def blaming(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    """More outcomes are the node's fault."""
    blame = Outcome.blame.fget
    monkeypatch.setattr(
        Outcome, "blame", property(lambda self: Blame.NODE if self in outcomes else blame(self))
    )


def with_leaving_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come to its end is the node's."""
    blaming(monkeypatch, Outcome.ABANDONED)


def with_odd_answers_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is the node's at once."""
    for module in (exchange, attempts):
        monkeypatch.setattr(module, "DOUBTFUL", exchange.DOUBTFUL - {Outcome.CORRUPTED})
    corrupted = AttemptError.__init__

    def sure(self: AttemptError, outcome: Outcome, message: str, *, is_doubtful: bool = False) -> None:
        corrupted(self, outcome, message, is_doubtful=is_doubtful and outcome is not Outcome.CORRUPTED)

    monkeypatch.setattr(AttemptError, "__init__", sure)


def with_doubts_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits to see whether another node can do it: what is in doubt is the node's."""
    blaming(monkeypatch, Outcome.UNSUPPORTED, Outcome.EMPTY)


WITHOUT: list[Row] = [
    (9, test_attack_9_wash_traffic, with_credit, ()),
    (9, test_attack_9_wash_traffic_hides_no_failures, without_own_failures, ()),
    (9, test_attack_9_wash_traffic_keeps_no_breaker_shut, with_credit, ()),
    (23, test_attack_23_milking, with_a_week_only, (60.0, 1, 2)),
    (23, test_attack_23_milking, with_a_week_only, (6.0, 3, 81)),
    (23, test_attack_23_on_off, with_an_hour_only, (1, 4)),
    (23, test_attack_23_on_off, with_an_hour_only, (2, 1)),
    (23, test_attack_23_milking_at_the_gateway, without_breakers, ()),
    *[(24, test_attack_24_200_then_die, by_headers, (kind,)) for kind in DYING],
    *[
        (25, test_attack_25_immunity_by_error_wording, by_wording, (how, WORDS[1]))
        for how in ("whole", "200", "stream")
    ],
    (26, test_attack_26_ejection_by_bad_requests, with_refusals_blamed, (CHAT | {"n": 0}, "a")),
    (26, test_attack_26_ejection_by_huge_prompts, with_refusals_blamed, (413,)),
    (26, test_attack_26_ejection_by_leaving, with_leaving_blamed, (True,)),
    (26, test_attack_26_ejection_by_leaving, with_leaving_blamed, (False,)),
    *[(26, test_attack_26_ejection_by_poison, with_doubts_blamed, (act,)) for act in POISON.values()],
    *[
        (26, test_attack_26_ejection_by_tools, with_odd_answers_blamed, ("f()", stream))
        for stream in (False, True)
    ],
    (26, test_attack_26_ejection_by_long_answers, with_doubts_blamed, ()),
    (26, test_attack_26_ejection_by_long_prompts, with_every_length_alike, ()),
]


@pytest.mark.parametrize("row", WITHOUT, ids=names(WITHOUT))
async def test_without_its_defence_attack_NN_succeeds(  # noqa: N802
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The very test of the attack fails by its success, where the defence is taken away."""
    await succeeds_without(row, fleet, monkeypatch)
