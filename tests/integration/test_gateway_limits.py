"""What callers may use of the gateway, what is answered again, and nodes that claim more than they did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from aiohttp import web

from fixtures.replies import count_tokens
from fixtures.streaming import Behaviour
from router.gateway.openai import GATEWAY
from router.model.standing import Grade
from router.model.tokens import Tokeniser
from router.model.usage import ANSWERS
from router.model.workload import Table, Workload
from router.service.state import STATE
from router.state import holds as review
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
    by,
    key,
    official,
    opened,
    story,
)
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL

DAY_S = 86_400
USED = -(-len(PROMPT) // 4) + -(-len(story()) // 4)
"""Tokens of one chat, by the router's estimate."""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def limited(
    fleet: Fleet, behaviour: str = "honest", *, sections: Any = None, **limits: int
) -> EngineNode:
    """A router that Ada may use within limits, and one node."""
    node = await fleet.engine("a", Behaviour(behaviour))
    await fleet.start(
        sections={"keys": [key("ada", **limits), key("bob")], **(sections or {})}, attempt_timeout_s=30
    )
    return node


async def chat(fleet: Fleet, name: str = "ada", body: Any = CHAT, **headers: str) -> Heard:
    return await fleet.ask(body, **by(name), **headers)


async def used_up(fleet: Fleet, limits: Any) -> Heard:
    """The answer to the first request that is too many."""
    for _ in range(5):
        heard = await chat(fleet)
        if heard.status != 200:
            return heard
    raise AssertionError(limits)


RATES = {
    "requests": {"requests_per_minute": 6},
    "tokens": {"tokens_per_minute": 60},
}
BUDGET = {"tokens_per_day": 50}


@pytest.mark.parametrize("limits", RATES.values(), ids=RATES)
async def test_too_much_a_minute_is_429(fleet: Fleet, limits: dict[str, int]) -> None:
    """With the seconds after which it is worth asking again."""
    await limited(fleet, **limits)
    heard = await used_up(fleet, limits)
    code, wait = heard.error["code"], int(heard.headers["Retry-After"])
    assert (heard.status, code, 1 <= wait <= 60) == (429, "rate_limit_exceeded", True)


@pytest.mark.parametrize("limits", RATES.values(), ids=RATES)
async def test_after_the_wait_it_is_admitted(fleet: Fleet, limits: dict[str, int]) -> None:
    """As long as the answer said, and no longer."""
    await limited(fleet, **limits)
    heard = await used_up(fleet, limits)
    fleet.clock.forward(int(heard.headers["Retry-After"]))
    assert (await chat(fleet)).status == 200


@pytest.mark.parametrize("limits", [*RATES.values(), BUDGET], ids=[*RATES, "budget"])
async def test_one_keys_limits_are_not_anothers(fleet: Fleet, limits: dict[str, int]) -> None:
    """Who has used up theirs takes nothing from the others."""
    await limited(fleet, **limits)
    await used_up(fleet, limits)
    assert (await chat(fleet, "bob")).status == 200


async def test_a_node_is_not_asked_for_what_is_refused(fleet: Fleet) -> None:
    """Limits come before any work."""
    node = await limited(fleet, requests_per_minute=6)
    await used_up(fleet, 6)
    assert node.engine.requests == 1


async def test_a_budget_that_is_spent_is_429(fleet: Fleet) -> None:
    """Until the next day of UTC, and clients are told not to try before."""
    await limited(fleet, **BUDGET)
    heard = await used_up(fleet, BUDGET)
    left = DAY_S - fleet.clock.seconds % DAY_S
    found = (heard.status, heard.error["code"], heard.headers["x-should-retry"])
    assert found == (429, "budget_exhausted", "false")
    assert left <= int(heard.headers["Retry-After"]) <= left + 1


async def test_a_budget_is_for_a_day(fleet: Fleet) -> None:
    """The next one begins with midnight."""
    await limited(fleet, **BUDGET)
    heard = await used_up(fleet, BUDGET)
    fleet.clock.forward(int(heard.headers["Retry-After"]))
    # Nobody may do the work any more, after such a time without a result; but it is admitted.
    assert (await chat(fleet)).status == 503


async def test_the_official_client_does_not_try_again_without_budget(fleet: Fleet) -> None:
    """It asks the header before its own judgement."""
    node = await limited(fleet, **BUDGET)
    await used_up(fleet, BUDGET)
    asked = node.engine.requests
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="sk-ada", max_retries=5) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            async with asyncio.timeout(2):
                await client.chat.completions.create(model=MODEL, messages=CHAT["messages"])
    assert (refused.value.code, node.engine.requests) == ("budget_exhausted", asked)


async def test_a_budget_survives_a_restart(fleet: Fleet, tmp_path: Path) -> None:
    """A router that is started again has not forgotten what was spent."""
    store = {"store": {"path": str(tmp_path / "router.db"), "flush_s": 600}}
    await limited(fleet, sections=store, **BUDGET)
    await used_up(fleet, BUDGET)
    await fleet.stop()
    await fleet.start(sections={"keys": [key("ada", **BUDGET)], **store})
    assert (await chat(fleet)).error["code"] == "budget_exhausted"


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_what_is_used_is_what_was_delivered(fleet: Fleet, body: Any) -> None:
    """By the router's count, streamed or not."""
    await limited(fleet, tokens_per_day=10_000)
    await chat(fleet, body=body)
    assert fleet.app[GATEWAY].keyring.spent()["ada"][1] == USED


@pytest.mark.parametrize("kind", ["usage", "no-usage"])
async def test_what_a_node_claims_is_not_what_a_caller_pays(fleet: Fleet, kind: str) -> None:
    """Neither more nor less."""
    await limited(fleet, kind, tokens_per_day=10_000)
    await chat(fleet)
    assert fleet.app[GATEWAY].keyring.spent()["ada"][1] == USED


@pytest.mark.parametrize("kind", ["status", "refuses", "cuts"])
async def test_what_failed_is_not_paid_for(fleet: Fleet, kind: str) -> None:
    """The caller has got nothing for it."""
    await limited(fleet, kind, tokens_per_day=10_000)
    await chat(fleet)
    assert fleet.app[GATEWAY].keyring.spent() == {}


async def leave_after_a_word(fleet: Fleet) -> None:
    async with fleet.http.post(fleet.url + CHATS, json=STREAM, headers=by("ada")) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await until(lambda: not fleet.app[GATEWAY].in_flight)


async def test_who_leaves_pays_for_what_came(fleet: Fleet) -> None:
    """Leaving before the end is no way to have answers for nothing."""
    await limited(fleet, "endless", tokens_per_day=10_000)
    await leave_after_a_word(fleet)
    assert fleet.app[GATEWAY].keyring.spent()["ada"][1] > 0


async def test_who_gives_too_little_time_pays_for_what_came(fleet: Fleet) -> None:
    """Nor is a deadline just before it."""
    await limited(fleet, "endless", tokens_per_day=10_000)
    await chat(fleet, body=STREAM, **{"X-Touchstone-Timeout": "0.3"})
    assert fleet.app[GATEWAY].keyring.spent()["ada"][1] > 0


async def waiting(fleet: Fleet, node: EngineNode, count: int, name: str = "ada") -> list[asyncio.Task[Heard]]:
    """Requests that a silent node has."""
    tasks = [asyncio.create_task(chat(fleet, name)) for _ in range(count)]
    await until(lambda: node.engine.open == count)
    return tasks


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_too_many_at_a_time_is_429(fleet: Fleet) -> None:
    """Of one key; another's are not counted."""
    node = await limited(fleet, "silent", concurrency=2)
    tasks = await waiting(fleet, node, 2)
    heard = await chat(fleet)
    others = await waiting_more(fleet, node)
    await end(*tasks, others)
    assert (heard.status, heard.error["code"], heard.headers["Retry-After"]) == (429, "concurrency", "1")


async def waiting_more(fleet: Fleet, node: EngineNode) -> asyncio.Task[Heard]:
    task = asyncio.create_task(chat(fleet, "bob"))
    await until(lambda: node.engine.open == 3)
    return task


async def test_who_leaves_gives_back_their_place(fleet: Fleet) -> None:
    """At once."""
    node = await limited(fleet, "silent", concurrency=2)
    await end(*await waiting(fleet, node, 2))
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    node.behave()
    assert (await chat(fleet)).status == 200


@pytest.mark.parametrize("name", ["ada", "bob"])
async def test_a_full_router_is_503(fleet: Fleet, name: str) -> None:
    """For all alike, with when to come back; and no node hears of it."""
    node = await fleet.engine("a", Behaviour("silent"))
    keys = {"keys": [key("ada"), key("bob")]}
    await fleet.start(sections=keys, max_in_flight=2, attempt_timeout_s=30)
    tasks = await waiting(fleet, node, 2)
    heard = await chat(fleet, name)
    await end(*tasks)
    assert (heard.status, heard.headers["Retry-After"], node.engine.requests) == (503, "1", 2)


async def test_a_router_that_was_full_is_open_again(fleet: Fleet) -> None:
    """Once there is room."""
    node = await fleet.engine("a", Behaviour("silent"))
    await fleet.start(sections={"keys": [key("ada")]}, max_in_flight=2, attempt_timeout_s=30)
    await end(*await waiting(fleet, node, 2))
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    node.behave()
    assert (await chat(fleet)).status == 200


# Which workload.

OTHER = "example/other"


async def mapped(fleet: Fleet) -> None:
    """Two workloads for one model, one for another, and keys for some of them."""
    await fleet.engine("a")
    workloads = [
        Workload(MODEL, name="fast", tier="small"),
        Workload(MODEL, name="safe", tier="small", platform_assurance="hardware-rooted"),
        Workload(OTHER, name="other", tier="small"),
    ]
    keys = [
        key("ada", workloads=["fast"]),
        key("bob", workloads=["safe"]),
        key("eve"),
        key("kim", workloads=["other"]),
    ]
    await fleet.start(sections={"keys": keys}, table=Table(workloads, frozenset({"safe"})))


@pytest.mark.parametrize(
    ("name", "named", "workload"),
    [
        ("ada", None, "fast"),
        ("bob", None, "safe"),
        ("eve", None, "safe"),
        ("eve", "fast", "fast"),
        ("ada", "fast", "fast"),
    ],
)
async def test_a_request_maps_to_one_workload(
    fleet: Fleet, name: str, named: str | None, workload: str
) -> None:
    """The one that it names, the one that its key is for, or else the default."""
    await mapped(fleet)
    heard = await chat(fleet, name, **({} if named is None else {"X-Touchstone-Workload": named}))
    _, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}", **by(name))
    assert record["workload"]["name"] == workload


@pytest.mark.parametrize(
    ("name", "named"), [("ada", "safe"), ("kim", None), ("eve", "other"), ("eve", "none"), ("eve", "")]
)
async def test_what_a_key_may_not_use_is_404(fleet: Fleet, name: str, named: str | None) -> None:
    """As what does not exist: a name is no way around it."""
    await mapped(fleet)
    heard = await chat(fleet, name, **({} if named is None else {"X-Touchstone-Workload": named}))
    assert (heard.status, heard.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("name", "models"), [("ada", [MODEL]), ("kim", [OTHER]), ("eve", [OTHER, MODEL])])
async def test_a_key_sees_the_models_that_it_may_use(fleet: Fleet, name: str, models: list[str]) -> None:
    """And no others."""
    await mapped(fleet)
    _, page = await fleet.get("/v1/models", **by(name))
    assert [model["id"] for model in page["data"]] == models


# Answers that are given again.


def once(name: str = "k-1") -> dict[str, str]:
    return {"Idempotency-Key": name}


@pytest.mark.parametrize(
    ("body", "path"),
    [(CHAT, CHATS), (STREAM, CHATS), (TEXT, TEXTS), (TEXT | {"stream": True}, TEXTS), (WORK, VECTORS)],
    ids=["chat", "chat stream", "text", "text stream", "embeddings"],
)
async def test_an_answer_is_given_again(fleet: Fleet, body: Any, path: str) -> None:
    """To the byte, with the decision of then, and without the work."""
    node = await fleet.engine("a")
    await fleet.start()
    first = await fleet.ask(body, path, **once())
    again = await fleet.ask(body, path, **once())
    assert (again.status, again.body, node.engine.requests) == (200, first.body, 1)
    assert again.headers["X-Touchstone-Decision"] == first.headers["X-Touchstone-Decision"]


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_an_answer_that_is_given_again_says_so(fleet: Fleet, body: Any) -> None:
    """In a header; the first one has none."""
    await fleet.engine("a")
    await fleet.start()
    heards = [await fleet.ask(body, **once()) for _ in range(2)]
    assert [heard.headers.get("Idempotent-Replayed") for heard in heards] == [None, "true"]
    assert [heard.headers["Content-Type"] for heard in heards] == [heards[0].headers["Content-Type"]] * 2


async def test_an_answer_that_is_given_again_costs_nothing(fleet: Fleet) -> None:
    """Its tokens were paid for."""
    await limited(fleet, tokens_per_day=10_000)
    for _ in range(3):
        await chat(fleet, **once())
    assert fleet.app[GATEWAY].keyring.spent()["ada"][1] == USED


async def test_the_official_client_reads_a_stream_that_is_given_again(fleet: Fleet) -> None:
    """As it read it the first time."""
    await fleet.engine("a")
    await fleet.start()
    texts = []
    async with official(fleet) as client:
        for _ in range(2):
            stream = await client.chat.completions.create(
                model=MODEL, messages=CHAT["messages"], stream=True, extra_headers=once()
            )
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
    assert texts == [story()] * 2


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_a_request_under_way_is_not_done_twice(fleet: Fleet, body: Any) -> None:
    """The second is told to come back."""
    node = await fleet.engine("a", Behaviour("silent"))
    await fleet.start(attempt_timeout_s=30)
    first = asyncio.create_task(fleet.ask(body, **once()))
    await until(lambda: node.engine.open)
    second = await fleet.ask(body, **once())
    await end(first)
    found = (
        second.status,
        second.error["code"],
        second.headers["Retry-After"],
        second.headers["x-should-retry"],
    )
    assert (found, node.engine.requests) == ((409, "idempotency_in_progress", "1", "true"), 1)


@pytest.mark.parametrize(
    ("body", "path"),
    [(CHAT | {"seed": 1}, CHATS), (STREAM, CHATS), (TEXT, TEXTS)],
    ids=["another body", "another form", "another resource"],
)
async def test_a_key_of_another_request_is_refused(fleet: Fleet, body: Any, path: str) -> None:
    """It is never answered with another's answer."""
    await fleet.engine("a")
    await fleet.start()
    await fleet.ask(CHAT, **once())
    heard = await fleet.ask(body, path, **once())
    assert (heard.status, heard.error["code"], heard.headers["x-should-retry"]) == (
        422,
        "idempotency_key_reused",
        "false",
    )


async def test_the_same_request_written_otherwise_is_the_same(fleet: Fleet) -> None:
    """Space between its parts says nothing."""
    node = await fleet.engine("a")
    await fleet.start()
    await fleet.ask(CHAT, **once())
    status, _, _ = await fleet.post(msgspec.json.format(msgspec.json.encode(CHAT), indent=8), CHATS, **once())
    assert (status, node.engine.requests) == (200, 1)


async def test_keys_of_two_callers_are_two(fleet: Fleet) -> None:
    """Nobody reads another's answers by guessing."""
    node = await limited(fleet)
    for name in ("ada", "bob"):
        await chat(fleet, name, **once())
    assert node.engine.requests == 2


@pytest.mark.parametrize("kind", ["status", "refuses", "busy", "cuts", "stalls", "error-event"])
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_what_failed_may_be_tried_again(fleet: Fleet, kind: str, body: Any) -> None:
    """Also where half of it was delivered."""
    node = await fleet.engine("a", Behaviour(kind, token_s=0.015 if kind != "stalls" else 0.0))
    await fleet.start(attempt_timeout_s=0.4, stall_s=0.3)
    await fleet.ask(body, **once())
    node.behave()
    heard = await fleet.ask(body, **once())
    assert (heard.status, heard.text, "Idempotent-Replayed" in heard.headers) == (200, story(), False)


@pytest.mark.parametrize("after", [False, True], ids=["before", "within"])
async def test_what_was_left_may_be_tried_again(fleet: Fleet, after: bool) -> None:  # noqa: FBT001
    """The client that went may come again, as clients do that lost their connection."""
    node = await fleet.engine("a", Behaviour("endless" if after else "silent"))
    await fleet.start(attempt_timeout_s=30)
    asked = asyncio.ensure_future(fleet.http.post(fleet.url + CHATS, json=STREAM, headers=once()))
    await until(lambda: node.engine.open)
    if after:
        response = await asked
        await response.content.readuntil(b"\n\n")
        response.close()
    await end(asked)
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    node.behave()
    assert (await fleet.ask(STREAM, **once())).text == story()


async def test_an_answer_too_large_to_keep_is_not_done_again(fleet: Fleet) -> None:
    """Nor given again: the client is told so."""
    node = await fleet.engine("a", Behaviour("huge-event"))
    await fleet.start()
    assert (await fleet.ask(CHAT, **once())).status == 200
    heard = await fleet.ask(CHAT, **once())
    found = (heard.status, heard.error["code"], heard.headers["x-should-retry"], node.engine.requests)
    assert found == (409, "idempotency_answer_not_kept", "false", 1)


@pytest.mark.parametrize("value", ["", '""', '"', "a" * 256, "é", '"a"b'])
async def test_a_key_that_is_none_is_refused(fleet: Fleet, value: str) -> None:
    """Rather than ignored: its sender counts on it."""
    node = await fleet.engine("a")
    await fleet.start()
    heard = await fleet.ask(CHAT, **once(value))
    assert (heard.status, heard.error["code"], node.engine.requests) == (400, "idempotency_key_invalid", 0)


ERRORS = {409: openai.ConflictError, 422: openai.UnprocessableEntityError, 429: openai.RateLimitError}


@pytest.mark.parametrize("status", ERRORS)
async def test_the_official_client_understands_each_refusal(fleet: Fleet, status: int) -> None:
    """As an exception of its own."""
    node = await limited(fleet, requests_per_minute=18)
    await chat(fleet, **once())
    tasks = []
    if status == 409:
        node.behave("silent")
        tasks = await waiting_for(fleet, node)
    if status == 429:
        await chat(fleet)
        await chat(fleet)
    async with official(fleet, "sk-ada") as client:
        with pytest.raises(ERRORS[status]):
            await client.chat.completions.create(
                model=MODEL,
                messages=CHAT["messages"] if status != 422 else [{"role": "user", "content": "another"}],
                extra_headers=once("k-2" if status == 409 else "k-1"),
            )
    await end(*tasks)


async def waiting_for(fleet: Fleet, node: EngineNode) -> list[asyncio.Task[Heard]]:
    task = asyncio.create_task(chat(fleet, **once("k-2")))
    await until(lambda: node.engine.open)
    return [task]


# Nodes that claim more than they did.

WITH_USAGE = STREAM | {"stream_options": {"include_usage": True}}
COUNT = {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}
REVIEWER = by("rae")


def tokens(folder: Path, name: str) -> str:
    (folder / name).write_text(f"token-of-{name}")
    return str(folder / name)


async def metered(
    fleet: Fleet, tmp_path: Path, *liars: str, behaviour: Behaviour | None = None, **section: Any
) -> list[EngineNode]:
    """A router with a tokeniser that counts words, and nodes of an operator each that claim ten times too much."""
    behaviour = behaviour or Behaviour("usage", factor=10)
    nodes = [await fleet.engine(name, behaviour, operator=f"op-{name}") for name in liars]
    sections = {
        "keys": [key("ada"), key("rae", role="reviewer"), key("sam", role="reviewer")],
        "verifier": {
            "router_token_file": tokens(tmp_path, "router"),
            "admin_token_file": tokens(tmp_path, "admin"),
        },
        "review": section,
    }
    await fleet.start(sections=sections)
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(count_tokens)}
    return nodes


@pytest.mark.parametrize("body", [CHAT, WITH_USAGE], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["honest", "usage"])
async def test_the_client_gets_the_routers_count(fleet: Fleet, tmp_path: Path, kind: str, body: Any) -> None:
    """By the model's own tokeniser, whatever the node claims."""
    await metered(fleet, tmp_path, "a", behaviour=Behaviour(kind))
    assert (await chat(fleet, body=body)).usage == [COUNT]


@pytest.mark.parametrize("body", [CHAT, WITH_USAGE, TEXT], ids=["whole", "stream", "text"])
async def test_who_claims_too_much_is_unclean(fleet: Fleet, tmp_path: Path, body: Any) -> None:
    """In the record, with both numbers, and in the standing; the work itself counts as done."""
    await metered(fleet, tmp_path, "a")
    heard = await fleet.ask(body, TEXTS if body is TEXT else CHATS, **by("ada"))
    _, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}", **by("ada"))
    (attempt,) = record["attempts"]
    assert (attempt["outcome"], attempt["unclean"], attempt["tokens"], attempt["claimed"]) == (
        "completed",
        True,
        20,
        164,
    )
    assert (fleet.standing("a").rejects, fleet.standing("a").completed[1], fleet.failed("a")) == (
        1.0,
        1.0,
        0.0,
    )


@pytest.mark.parametrize("factor", [1.0, 1.25, 1.5, 0.0])
async def test_who_claims_about_what_was_counted_is_clean(
    fleet: Fleet, tmp_path: Path, factor: float
) -> None:
    """Special tokens and chat templates are a node's to add; and who claims less is no liar."""
    await metered(fleet, tmp_path, "a", behaviour=Behaviour("usage", factor=factor))
    await chat(fleet)
    assert fleet.standing("a").rejects == 0.0


async def test_an_embedding_is_not_held_against_a_count(fleet: Fleet, tmp_path: Path) -> None:
    """What a node adds around an input says nothing about text that it made."""
    await metered(fleet, tmp_path, "a", behaviour=Behaviour("usage", factor=1000))
    await fleet.ask(WORK, VECTORS, **by("ada"))
    assert fleet.standing("a").rejects == 0.0


async def claim(fleet: Fleet, answers: int = ANSWERS, body: Any = CHAT) -> None:
    """So many answers, to three clients in turn."""
    for number in range(answers):
        assert (await chat(fleet, ("ada", "rae", "sam")[number % 3], body)).status == 200


async def open_holds(fleet: Fleet, who: dict[str, str] = REVIEWER) -> list[Any]:
    status, page = await fleet.get("/api/v1/incidents", **who)
    assert status == 200
    return list(page["incidents"])


async def test_who_keeps_claiming_too_much_is_held(fleet: Fleet, tmp_path: Path) -> None:
    """At once: the next request goes to nobody."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    heard = await chat(fleet)
    assert (heard.status, "1 incident.quarantine" in heard.error["message"]) == (503, True)


async def test_who_claims_too_much_in_streams_without_an_end_is_held(fleet: Fleet, tmp_path: Path) -> None:
    """Leaving [DONE] out is unclean, and hides no claim."""
    await metered(fleet, tmp_path, "a", behaviour=Behaviour("usage-no-done", factor=10))
    await claim(fleet, body=WITH_USAGE)
    assert (await chat(fleet)).status == 503


async def test_too_few_answers_hold_nobody(fleet: Fleet, tmp_path: Path) -> None:
    """One less than it takes."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet, ANSWERS - 1)
    assert fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
async def test_a_smaller_difference_holds_nobody(fleet: Fleet, tmp_path: Path, factor: float) -> None:
    """Below the threshold for a hold, however often."""
    await metered(fleet, tmp_path, "a", behaviour=Behaviour("usage", factor=factor))
    await claim(fleet, 3 * ANSWERS)
    assert ((await chat(fleet)).status, await open_holds(fleet)) == (200, [])


@pytest.mark.parametrize("body", [CHAT, WITH_USAGE], ids=["whole", "stream"])
async def test_a_hold_is_listed_for_review(fleet: Fleet, tmp_path: Path, body: Any) -> None:
    """With the node, its operator, the numbers and the time left to look."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet, body=body)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    assert (hold["node"], hold["operator"], hold["kind"], hold["code"], hold["state"], hold["holding"]) == (
        "a", "op-a", "settlement-mismatch", "router.settlement-mismatch", "open", True,
    )  # fmt: skip
    numbers = {
        "answers": ANSWERS,
        "of": "answers",
        "claimed_tokens": ANSWERS * 160,
        "allowed_tokens": ANSWERS * 24,
    }
    assert hold["evidence"] == numbers
    assert 0 < hold["review_due_in_s"] <= 24 * 3600


async def test_a_hold_is_shown_with_what_was_seen(fleet: Fleet, tmp_path: Path) -> None:
    """Its history, and the node's standing."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    _, shown = await fleet.get(f"/api/v1/incidents/{hold['id']}", **REVIEWER)
    (step,) = shown["history"]
    assert (step["step"], step["actor"], step["automatic"], step["reason"]) == (
        "hold", "router", True, hold["detail"],
    )  # fmt: skip
    assert (shown["seen"]["node"], shown["seen"]["tiers"]["small"]["standing"]) == ("a", "degraded")


@pytest.mark.parametrize("name", ["ada", "nobody"])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/r-0"), ("POST", "/r-0/release")])
async def test_incidents_are_for_reviewers(
    fleet: Fleet, tmp_path: Path, name: str, method: str, path: str
) -> None:
    """Callers neither see nor decide them."""
    await metered(fleet, tmp_path, "a")
    url = f"{fleet.url}/api/v1/incidents{path}"
    async with fleet.http.request(
        method, url, json={"reason": "x"} if method == "POST" else None, headers=by(name)
    ) as response:
        assert response.status == (403 if name == "ada" else 401)


async def test_without_keys_nobody_is_a_reviewer(fleet: Fleet) -> None:
    """Work is for anyone at an open gateway, decisions about nodes are not."""
    await fleet.start()
    async with fleet.http.get(f"{fleet.url}/api/v1/incidents") as response:
        assert response.status == 401


async def told(fleet: Fleet) -> Any:
    """The hold, once the verifier has been told of it."""
    await until(lambda: fleet.app[STATE].holds._known)
    await fleet.app[STATE].holds.report_all()
    (hold,) = await open_holds(fleet)
    return hold


async def test_a_hold_is_reported_to_the_verifier(fleet: Fleet, tmp_path: Path) -> None:
    """Under the router's token, with the evidence, and once."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    await fleet.app[STATE].holds.report_all()
    (report,) = fleet.verifier.reports
    assert report == {
        "node": "a", "kind": "settlement-mismatch", "detail": hold["detail"], "evidence": hold["evidence"],
        "report": hold["id"], "by": "Bearer token-of-router",
    }  # fmt: skip


async def test_a_hold_is_listed_once_when_the_verifier_knows_it(fleet: Fleet, tmp_path: Path) -> None:
    """Its incident and the router's hold are one thing to look at."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    assert (hold["held_by"], hold["incident"]) == ("router", "i-1")


@pytest.mark.parametrize("answer", ["down", "refuses", "garbage"])
async def test_a_hold_stands_where_the_verifier_cannot_be_told(
    fleet: Fleet, tmp_path: Path, answer: str
) -> None:
    """It is told later."""
    await metered(fleet, tmp_path, "a")
    status = {"down": 503, "refuses": 401, "garbage": 201}[answer]
    fleet.verifier.bodies["reports"] = lambda: web.Response(status=status, body=b"\x00")
    await claim(fleet)
    hold = await told(fleet)
    assert ((await chat(fleet)).status, hold["incident"]) == (503, None)
    del fleet.verifier.bodies["reports"]
    assert (await told(fleet))["incident"] == "i-1"


async def release(
    fleet: Fleet, hold: str, reason: str = "looked into it", who: str = "rae"
) -> tuple[int, Any]:
    status, document, _ = await fleet.post({"reason": reason}, f"/api/v1/incidents/{hold}/release", **by(who))
    return status, document


async def test_a_person_lets_a_node_go_to_probation(fleet: Fleet, tmp_path: Path) -> None:
    """It gets work again, its good works are forgotten, and who decided is written down."""
    (node,) = await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    status, document = await release(fleet, hold["id"])
    assert (status, document["state"], document["awaiting_second"]) == (200, "released", False)
    await until(lambda: fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None)
    assert fleet.standing("a").completed == (0.0, 0.0)
    node.behave()
    assert (await chat(fleet)).status == 200


async def test_a_release_is_written_down(fleet: Fleet, tmp_path: Path) -> None:
    """ChangeAuthor, and why: by the name of the key, whatever the body says."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    await release(fleet, hold["id"])
    _, shown = await fleet.get(f"/api/v1/incidents/{hold['id']}", **REVIEWER)
    assert [(s["step"], s["actor"], s["reason"]) for s in shown["history"]] == [
        ("hold", "router", hold["detail"]),
        ("release", "rae", "looked into it"),
    ]


async def test_a_release_reaches_the_verifier(fleet: Fleet, tmp_path: Path) -> None:
    """In the person's name, by the administrators' token."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    await release(fleet, hold["id"])
    assert fleet.verifier.steps == [
        {"actor": "rae", "reason": "looked into it", "by": "Bearer token-of-admin"}
    ]


async def test_a_release_that_the_feed_brings_first_is_a_release(fleet: Fleet, tmp_path: Path) -> None:
    """The verifier's word may come before its answer."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    let_go = fleet.verifier.release

    async def slowly(request: web.Request) -> web.Response:
        (incident,) = fleet.verifier.incidents
        let_go(incident)
        await until(lambda: not fleet.app[STATE].holds._known)
        return web.json_response(incident)

    fleet.verifier.on_release = slowly
    assert (await release(fleet, hold["id"]))[0] == 200


async def test_a_release_at_the_verifier_comes_by_the_feed(fleet: Fleet, tmp_path: Path) -> None:
    """A person decides there, and the router's own hold ends with it."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await told(fleet)
    (incident,) = fleet.verifier.incidents
    fleet.verifier.release(incident)
    await until(lambda: fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None)
    assert (fleet.standing("a").completed, await open_holds(fleet)) == ((0.0, 0.0), [])


async def test_a_release_that_nobody_heard_comes_with_the_next_snapshot(fleet: Fleet, tmp_path: Path) -> None:
    """The verifier lists it as open no more."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await told(fleet)
    fleet.verifier.ended, fleet.verifier.incidents = fleet.verifier.incidents, []
    fleet.verifier.forget_events()
    fleet.verifier.hang_up()
    await until(lambda: fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None)
    assert await open_holds(fleet) == []


async def test_an_incident_that_the_verifier_has_lost_is_reported_again(fleet: Fleet, tmp_path: Path) -> None:
    """Its database was restored: nobody has decided, so the node stays held."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    hold = await told(fleet)
    fleet.verifier.incidents = []
    fleet.verifier.forget_events()
    fleet.verifier.hang_up()
    await until(lambda: all(each.incident is None for each in fleet.app[STATE].holds._known.values()))
    await fleet.app[STATE].holds.report_all()
    assert [report["node"] for report in fleet.verifier.reports] == ["a", "a"]
    assert (await told(fleet))["id"] == hold["id"]
    assert (await chat(fleet)).status == 503


async def test_a_released_node_is_held_again_for_the_same(fleet: Fleet, tmp_path: Path) -> None:
    """It begins to be counted anew."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await release(fleet, (await told(fleet))["id"])
    await until(lambda: fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None)
    await claim(fleet)
    assert (await chat(fleet)).status == 503


@pytest.mark.parametrize("reason", ["", " "])
async def test_a_release_needs_a_reason(fleet: Fleet, tmp_path: Path, reason: str) -> None:
    """And the node stays held without one."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    status, _ = await release(fleet, hold["id"], reason)
    assert (status in (400, 409), (await chat(fleet)).status) == (True, 503)


async def test_what_is_decided_is_not_decided_again(fleet: Fleet, tmp_path: Path) -> None:
    """A second release is told that it is over."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    await release(fleet, hold["id"])
    assert (await release(fleet, hold["id"]))[0] == 409


@pytest.mark.parametrize("which", ["r-0000000000000000", "..%2F..", "i-9"])
async def test_an_unknown_incident_is_404(fleet: Fleet, tmp_path: Path, which: str) -> None:
    """Neither the router's nor the verifier's."""
    await metered(fleet, tmp_path, "a")
    assert (await fleet.get(f"/api/v1/incidents/{which}", **REVIEWER))[0] == 404


async def test_a_release_may_take_two(fleet: Fleet, tmp_path: Path) -> None:
    """The first is written down; the same person twice is one; another ends it."""
    await metered(fleet, tmp_path, "a", two_person=True)
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)
    said = [
        (await release(fleet, hold["id"], who=who))[1]["awaiting_second"] for who in ("rae", "rae", "sam")
    ]
    assert said == [True, True, False]


async def three(fleet: Fleet, tmp_path: Path) -> None:
    """Nodes of three operators that all claim too much; the last is the one that makes it three."""
    await metered(fleet, tmp_path, "a", "b", "c")
    for name in "abc":
        fleet.router.end_hold(name, "elsewhere")
        for other in set("abc") - {name}:
            fleet.router.begin_hold(other, "elsewhere")
        await claim(fleet)
    fleet.router.end_hold("c", "elsewhere")


async def test_three_operators_with_it_hold_no_third(fleet: Fleet, tmp_path: Path) -> None:
    """It is our count that is wrong, and nobody more is held for it."""
    await three(fleet, tmp_path)
    workload = fleet.router.table.workloads["tiny"]
    assert fleet.router.verdict("c", workload) is None


async def test_three_operators_with_it_are_a_review_without_a_node(fleet: Fleet, tmp_path: Path) -> None:
    """People look at the tokeniser."""
    await three(fleet, tmp_path)
    await until(lambda: len(fleet.app[STATE].holds._known) == 3)
    (suspect,) = [hold for hold in await open_holds(fleet) if hold["kind"] == "token-count-suspect"]
    assert (suspect["node"], suspect["holding"], suspect["evidence"]["node"]) == (None, False, "c")


async def test_a_review_without_a_node_is_not_reported(fleet: Fleet, tmp_path: Path) -> None:
    """The verifier has nobody to hold for it."""
    await three(fleet, tmp_path)
    await until(lambda: len(fleet.app[STATE].holds._known) == 3)
    await fleet.app[STATE].holds.report_all()
    assert [report["node"] for report in fleet.verifier.reports] == ["a", "b"]


# Holds while the store is slow.


async def stale(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, meanwhile: Any) -> None:
    """What is read of the holds is from before *meanwhile*."""
    read = review.holds.list_open

    async def slowly(tx: Any) -> Any:
        found = await read(tx)
        monkeypatch.setattr(review.holds, "list_open", read)
        await meanwhile()
        return found

    monkeypatch.setattr(review.holds, "list_open", slowly)
    await fleet.app[STATE].holds.sync()


async def test_a_hold_is_not_lost_to_a_reading_from_before_it(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is read and written at the same time."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet, ANSWERS - 1)

    async def meanwhile() -> None:
        await claim(fleet, 1)
        await until(lambda: fleet.app[STATE].holds._known)

    await stale(fleet, monkeypatch, meanwhile)
    assert (await chat(fleet)).status == 503


async def test_a_release_is_not_undone_by_a_reading_from_before_it(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    await until(lambda: fleet.app[STATE].holds._known)
    (hold,) = await open_holds(fleet)

    async def meanwhile() -> None:
        await release(fleet, hold["id"])

    await stale(fleet, monkeypatch, meanwhile)
    assert fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None


# Whose work earns nothing.


async def test_who_sends_work_to_their_own_nodes_earns_nothing_by_it(fleet: Fleet) -> None:
    """Who pays himself proves nothing."""
    await fleet.engine("a", operator="acme")
    await fleet.start(sections={"keys": [key("ada", operator="acme"), key("bob")]})
    await chat(fleet)
    assert fleet.standing("a").completed == (0.0, 0.0)


async def test_failures_under_their_own_work_count(fleet: Fleet) -> None:
    """Nothing is hidden by it either."""
    await fleet.engine("a", Behaviour("status"), operator="acme")
    await fleet.start(sections={"keys": [key("ada", operator="acme")]})
    await chat(fleet)
    assert fleet.failed("a") == 3.0


async def test_many_lies_make_a_node_degraded(fleet: Fleet, tmp_path: Path) -> None:
    """Before it comes to a hold: who breaks the rules is asked last."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet, 15)
    assert (fleet.statistics("a").rating.grade, fleet.statistics("a").rating.why) == (
        Grade.DEGRADED,
        "standing.unclean",
    )


async def test_a_price_below_its_energy_asks_for_an_audit(fleet: Fleet) -> None:
    """People are told once, and the node goes on."""
    cheap = {"prices": {"*": {"output": 1}}, "energy_floor": {"output": 1000}}
    await fleet.engine("a", operator="op-a")
    await fleet.start(cheap, sections={"keys": [key("ada"), key("rae", role="reviewer")]})
    for _ in range(3):
        assert (await chat(fleet)).status == 200
    await until(lambda: fleet.app[STATE].holds._known)
    (review,) = await open_holds(fleet)
    assert (review["node"], review["kind"], review["holding"]) == ("a", "price-below-energy", False)


async def test_whose_fault_it_was_moves_the_next_of_the_kind(fleet: Fleet, tmp_path: Path) -> None:
    """What people found before is in the queue, with what follows from it."""
    await metered(fleet, tmp_path, "a")
    await claim(fleet)
    holds = fleet.app[STATE].holds
    await until(lambda: holds._known)
    (hold,) = await open_holds(fleet)
    assert (hold["held"], hold["confidence"], hold["found_before"]) == (
        True, 0.8, {"at_fault": 0, "not_at_fault": 0},
    )  # fmt: skip
    body = {"reason": "our table was wrong", "fault": "ours"}
    status, _, _ = await fleet.post(body, f"/api/v1/incidents/{hold['id']}/release", **REVIEWER)
    assert status == 200
    holds.ask("settlement-mismatch", "again", {}, node="b", operator="other")
    await until(lambda: holds._known)
    (again,) = await open_holds(fleet)
    assert (again["held"], again["found_before"]) == (False, {"at_fault": 0, "not_at_fault": 1})
    assert again["confidence"] == round(8 * 0.8 / 9, 3)
