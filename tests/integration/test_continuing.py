"""Streams that break after their first text, and what another node may do about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.replies import count_tokens, made_up
from fixtures.streaming import Behaviour
from router.choose.explaining import explanation
from router.gateway.openai import GATEWAY
from router.settlement.exchanges import read
from tests.integration.gateway import (
    CHATS,
    PROMPT,
    STREAM,
    TEXT,
    TEXTS,
    EngineNode,
    Fleet,
    Heard,
    by,
    official,
    opened,
    story,
)
from tests.integration.test_changes import ACTIVE, TIER, canary, said
from tests.integration.test_changes import start as begin_changes
from tests.unit.router.doubles import until

ENGINE = {"engine": "vllm", "version": "0.32.0"}
REVISION, OTHER = "11" * 32, "22" * 32
AFTER = 6
"""Tokens that come before the stream breaks."""
BROKEN = Behaviour("cuts", after=AFTER)
TOLD = STREAM | {"stream_options": {"include_usage": True}}
ASKED = {"X-Touchstone-Continue": "1"}
WORDS = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"},
    }
)
"""A tokeniser whose tokens are words, as those of the engines here."""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def record(node: EngineNode) -> list[dict[str, Any]]:
    """What the node is asked from now on."""
    asked: list[dict[str, Any]] = []
    answer = node.engine._answer

    async def watch(request: Any, behaviour: Behaviour) -> Any:
        asked.append(json.loads(await request.read()))
        return await answer(request, behaviour)

    node.engine._answer = watch  # type: ignore[method-assign]
    return asked


async def node(fleet: Fleet, name: str, behaviour: Behaviour | None = None, **given: Any) -> EngineNode:
    """A node of the one engine and the one revision, but for what is given."""
    claims = {"runtime": given.pop("runtime", ENGINE)}
    trusted = {"claims": claims, "revision": REVISION, "operator": f"op-{name}", **given}
    return await fleet.engine(name, behaviour or Behaviour(), **trusted)


async def start(fleet: Fleet, continuing: str = "always", **gateway: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "tokenizer.json"
        words.write_text(WORDS)
        await fleet.start({"continuing": continuing, "tokeniser": str(words)}, **gateway)


async def broken_then(fleet: Fleet, **given: Any) -> EngineNode:
    """Node a breaks, and node b, which is returned, is as given."""
    await node(fleet, "a", BROKEN)
    return await node(fleet, "b", **given)


def ended_with_error(heard: Heard) -> bool:
    return heard.error is not None and not heard.done and heard.text == story(AFTER)


async def test_another_node_goes_on_with_the_text_of_a_broken_stream(fleet: Fleet) -> None:
    asked = record(await broken_then(fleet))
    await start(fleet)
    heard = await fleet.ask()
    assert heard.text == story()
    assert heard.done
    (seen,) = asked
    assert seen["messages"][-1] == {"role": "assistant", "content": story(AFTER)}
    assert (seen["continue_final_message"], seen["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    "kind", ["cuts", "cuts-mid-chunk", "resets", "truncates", "no-finish", "error-event"]
)
async def test_however_it_breaks_the_text_is_whole_and_comes_once(fleet: Fleet, kind: str) -> None:
    await node(fleet, "a", Behaviour(kind, after=AFTER))
    await node(fleet, "b")
    await start(fleet)
    heard = await fleet.ask()
    assert (heard.text, heard.done) == (story(), True)


@pytest.mark.parametrize("kind", ["bad-json", "endless", "control"])
async def test_what_is_no_honest_beginning_is_not_gone_on_with(fleet: Fleet, kind: str) -> None:
    await node(fleet, "a", Behaviour(kind, after=AFTER))
    asked = record(await node(fleet, "b"))
    await start(fleet)
    heard = await fleet.ask(STREAM | {"max_tokens": 12})
    assert heard.error is not None
    assert asked == []


async def test_a_completion_goes_on_with_its_prompt_and_the_text(fleet: Fleet) -> None:
    asked = record(await broken_then(fleet))
    await start(fleet)
    heard = await fleet.ask(TEXT | {"stream": True}, TEXTS)
    assert heard.text == story()
    assert asked[0]["prompt"] == PROMPT + story(AFTER)


async def test_the_first_chunk_after_the_seam_bears_the_mark_and_no_other(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    heard = await fleet.ask()
    marks = [event.get("touchstone") for event in heard.events]
    assert [at for at, mark in enumerate(marks) if mark] == [AFTER + 1]
    assert marks[AFTER + 1] == {"continued": [{"node": "a", "outcome": "truncated", "tokens": AFTER}]}


async def test_all_chunks_are_of_one_answer(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    events = (await fleet.ask()).events
    assert len({(event["id"], event["created"]) for event in events}) == 1
    roles = [choice["delta"].get("role") for event in events for choice in event["choices"]]
    assert [role for role in roles if role] == ["assistant"]


async def test_the_official_client_puts_the_parts_together(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    async with official(fleet).chat.completions.stream(
        model=STREAM["model"], messages=STREAM["messages"]
    ) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    assert (message.role, message.content) == ("assistant", story())


async def test_usage_is_told_once_for_all_parts(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    heard = await fleet.ask(TOLD)
    prompt, whole = count_tokens(PROMPT), count_tokens(story())
    (usage,) = heard.usage
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, whole)
    last = heard.events[-1]
    assert last["usage_by"] == "router"
    assert last["touchstone"]["continued"][0]["node"] == "a"


async def test_the_limit_is_what_the_first_node_has_left(fleet: Fleet) -> None:
    asked = record(await broken_then(fleet))
    await start(fleet)
    heard = await fleet.ask(STREAM | {"max_tokens": 9})
    assert asked[0]["max_tokens"] == 9 - AFTER
    assert heard.text == story(9)


async def test_a_stream_that_has_all_its_tokens_is_not_gone_on_with(fleet: Fleet) -> None:
    asked = record(await broken_then(fleet))
    await start(fleet)
    await fleet.ask(STREAM | {"max_tokens": AFTER})
    assert asked == []


async def test_it_is_off_unless_the_workload_says_so(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet, "never")
    assert ended_with_error(await fleet.ask(**ASKED))


async def test_the_caller_may_have_to_ask(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet, "asked")
    assert ended_with_error(await fleet.ask())
    assert (await fleet.ask(**ASKED)).text == story()


async def test_the_caller_may_decline(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    assert ended_with_error(await fleet.ask(**{"X-Touchstone-Continue": "0"}))


@pytest.mark.parametrize("value", ["", "yes", "1, 1", "2"])
async def test_what_the_caller_says_of_it_must_be_plain(fleet: Fleet, value: str) -> None:
    await node(fleet, "a")
    await start(fleet)
    heard = await fleet.ask(**{"X-Touchstone-Continue": value})
    assert (heard.status, heard.error["param"]) == (400, "X-Touchstone-Continue")


@pytest.mark.parametrize(
    "given",
    [
        {"revision": OTHER},
        {"revision": None},
        {"runtime": {"engine": "vllm", "version": "0.32.1"}},
        {"runtime": {"engine": "llama.cpp", "version": "0.32.0"}},
        {"runtime": None},
    ],
    ids=["another revision", "no revision", "another version", "another engine", "no engine"],
)
async def test_only_a_node_of_the_same_revision_and_engine_goes_on(fleet: Fleet, given: Any) -> None:
    await broken_then(fleet, **given)
    await start(fleet)
    heard = await fleet.ask()
    assert ended_with_error(heard)
    attempts = await fleet.record(heard.headers)
    assert [attempt["outcome"] for attempt in attempts] == ["truncated", "skipped"]


async def test_a_chat_of_an_engine_that_was_never_seen_to_go_on_ends(fleet: Fleet) -> None:
    own = {"engine": "their-own", "version": "1"}
    await node(fleet, "a", BROKEN, runtime=own)
    await node(fleet, "b", runtime=own)
    await start(fleet)
    assert ended_with_error(await fleet.ask())
    assert (await fleet.ask(TEXT | {"stream": True}, TEXTS)).text == story()


@pytest.mark.parametrize(
    "more",
    [
        {"stop": ["\n"]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"something_new": 1},
    ],
)
async def test_what_the_beginning_would_decide_anew_is_not_gone_on_with(
    fleet: Fleet, more: dict[str, Any]
) -> None:
    await broken_then(fleet)
    await start(fleet)
    assert ended_with_error(await fleet.ask(STREAM | more))


async def test_a_quarantined_node_does_not_go_on(fleet: Fleet) -> None:
    """Its gate closes while the first node streams."""
    first = await node(fleet, "a", Behaviour("stalls", after=AFTER))
    await node(fleet, "b")
    await start(fleet, stall_s=0.6)
    asking = asyncio.create_task(fleet.ask())
    await until(lambda: first.engine.open == 1)
    fleet.router.begin_hold("b", "hold")
    heard = await asking
    assert ended_with_error(heard)
    assert (await fleet.record(heard.headers))[-1]["outcome"] == "skipped"


async def test_nothing_is_built_on_the_text_of_a_node_that_is_quarantined(fleet: Fleet) -> None:
    first = await node(fleet, "a", Behaviour("stalls", after=AFTER))
    await node(fleet, "b")
    await start(fleet, stall_s=0.6)
    asking = asyncio.create_task(fleet.ask())
    await until(lambda: first.engine.open == 1)
    fleet.router.begin_hold("a", "hold")
    assert ended_with_error(await asking)


async def test_the_next_node_has_the_router_s_whole_patience(fleet: Fleet) -> None:
    """However long the first one took."""
    first = await node(fleet, "a", Behaviour("stalls", after=AFTER))
    await node(fleet, "b")
    await start(fleet, stall_s=0.6, timeout_s=5)
    asking = asyncio.create_task(fleet.ask())
    await until(lambda: first.engine.open == 1)
    fleet.clock.forward(10)
    assert (await asking).text == story()


async def test_each_part_is_its_own_nodes(fleet: Fleet) -> None:
    """The first is blamed for its end; the second is credited with its own tokens alone, and its claim is no mismatch."""
    await broken_then(fleet)
    await start(fleet)
    heard = await fleet.ask(TOLD)
    first, second = await fleet.record(heard.headers)
    assert (first["outcome"], first["blame"]) == ("truncated", "node")
    assert (second["outcome"], second["continues"]) == ("completed", "a")
    assert second["tokens"] == count_tokens(PROMPT) + count_tokens(story()) - AFTER
    assert second["claimed"] == count_tokens(PROMPT) + count_tokens(story())
    assert not second.get("unclean")
    assert fleet.failed("a") > 0
    assert fleet.failed("b") == 0


async def test_what_a_node_has_read_of_another_s_text_it_may_claim(fleet: Fleet) -> None:
    await node(fleet, "a", Behaviour("cuts", tokens=200, after=150))
    await node(fleet, "b", Behaviour(tokens=200))
    await start(fleet)
    heard = await fleet.ask(TOLD)
    assert heard.text == story(200)
    last = (await fleet.record(heard.headers))[-1]
    assert last["claimed"] == count_tokens(PROMPT) + 200
    assert not last.get("unclean")


async def test_the_explanation_says_who_went_on_from_whom(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    heard = await fleet.ask()
    _, record = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}")
    (said,) = [line for line in explanation(record) if "going on from what a gave" in line]
    assert said.startswith("  → b  completed")


async def test_a_claim_on_the_parts_of_others_is_found(fleet: Fleet) -> None:
    await broken_then(fleet, behaviour=Behaviour("usage", factor=4.0))
    await start(fleet)
    heard = await fleet.ask(TOLD)
    assert (await fleet.record(heard.headers))[-1]["unclean"]


async def test_a_node_that_refuses_to_go_on_is_passed_over(fleet: Fleet) -> None:
    await broken_then(fleet, behaviour=Behaviour("refuses"))
    await node(fleet, "c")
    await start(fleet)
    heard = await fleet.ask()
    assert heard.text == story()
    assert [each["outcome"] for each in await fleet.record(heard.headers)] == [
        "truncated", "refused", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["refuses", "status", "empty", "hollow", "not-streaming", "busy"])
async def test_if_nobody_goes_on_the_stream_ends_with_the_error_of_today(fleet: Fleet, kind: str) -> None:
    await broken_then(fleet, behaviour=Behaviour(kind))
    await start(fleet)
    heard = await fleet.ask()
    if kind == "hollow":
        # The rest of an answer may be its end alone.
        assert (heard.text, heard.done) == (story(AFTER), True)
        return
    assert ended_with_error(heard)
    assert heard.error["code"] == "truncated"


async def test_a_failure_to_go_on_blames_no_node_that_nobody_bettered(fleet: Fleet) -> None:
    """The request is one that no client has written: its form may be the cause."""
    await broken_then(fleet, behaviour=Behaviour("status"))
    await start(fleet)
    await fleet.ask()
    assert fleet.failed("a") > 0
    assert fleet.failed("b") == 0


async def test_a_second_seam_is_the_last_there_is(fleet: Fleet) -> None:
    for name in "ab":
        await node(fleet, name, BROKEN)
    await node(fleet, "c")
    await start(fleet)
    heard = await fleet.ask(TOLD)
    assert heard.text == story()
    marks = [event["touchstone"]["continued"] for event in heard.events if event.get("touchstone")]
    assert [[part["node"] for part in mark] for mark in marks] == [["a"], ["a", "b"], ["a", "b"]]
    assert [part["tokens"] for part in marks[-1]] == [AFTER, AFTER]
    assert heard.usage[0]["completion_tokens"] == count_tokens(story())


async def test_the_stream_ends_if_all_three_break(fleet: Fleet) -> None:
    for name in "abc":
        await node(fleet, name, BROKEN)
    await start(fleet)
    heard = await fleet.ask()
    assert heard.error["code"] == "truncated"
    assert heard.text == story()
    assert len(await fleet.record(heard.headers)) == 3


async def test_a_receipt_names_each_node_with_its_part(fleet: Fleet) -> None:
    await broken_then(fleet)
    await start(fleet)
    heard = await fleet.ask(TOLD)
    receipt = await receipt_of(fleet, heard)
    (part,) = receipt["continued"]
    assert (part["node"]["id"], part["operator"], part["outcome"]) == ("a", "op-a", "truncated")
    assert part["completion"] == AFTER
    assert part["node"]["reference"] == receipt["node"]["reference"] == REVISION
    assert (receipt["node"]["id"], receipt["outcome"]) == ("b", "completed")
    assert receipt["usage"] == {
        "by": "router", "completion": count_tokens(story()), "prompt": count_tokens(PROMPT),
    }  # fmt: skip
    assert receipt["metered"]["completion"] == count_tokens(story()) - AFTER
    assert receipt["metered"]["prompt"] == count_tokens(PROMPT)
    assert receipt["response"]["sha256"] == hashlib.sha256(heard.body).hexdigest()


async def test_what_nodes_are_paid_adds_up_to_what_the_caller_is_charged(fleet: Fleet) -> None:
    for name in "ab":
        await node(fleet, name, BROKEN)
    await node(fleet, "c")
    await start(fleet)
    heard = await fleet.ask(TOLD)
    await receipt_of(fleet, heard)
    book = fleet.app[GATEWAY].receipts
    assert book is not None
    kept = book.get(heard.headers["X-Touchstone-Receipt"])
    assert kept is not None
    paid = {each.node: each.counted for each in read(kept.payload)}
    assert set(paid) == {"a", "b", "c"}
    assert sum(each.prompt for each in paid.values()) == heard.usage[0]["prompt_tokens"]
    assert sum(each.completion for each in paid.values()) == heard.usage[0]["completion_tokens"]


async def test_the_receipt_of_an_answer_that_nobody_went_on_with_has_one_node(fleet: Fleet) -> None:
    await broken_then(fleet, behaviour=Behaviour("status"))
    await start(fleet)
    heard = await fleet.ask()
    receipt = await receipt_of(fleet, heard)
    assert (receipt["node"]["id"], receipt["outcome"]) == ("a", "truncated")
    assert "continued" not in receipt


async def receipt_of(fleet: Fleet, heard: Heard) -> dict[str, Any]:
    """The payload of an answer's receipt, once it is made."""
    book, name = fleet.app[GATEWAY].receipts, heard.headers["X-Touchstone-Receipt"]
    assert book is not None
    await until(lambda: book.get(name) is not None)
    kept = book.get(name)
    assert kept is not None
    receipt: dict[str, Any] = json.loads(kept.payload)
    return receipt


async def test_the_table_in_force_takes_over_with_its_own_request(fleet: Fleet, tmp_path: Path) -> None:
    """A candidate's node fails before its first text; then a node of the table in force breaks, and another goes on."""
    words = tmp_path / "tokenizer.json"
    words.write_text(WORDS)
    chat = {"model": STREAM["model"], "tier": "small", "tokeniser": str(words), "continuing": "always"}
    own = {**ACTIVE, "workloads": {"tiny": chat}}
    for name, behaviour, hardware in (
        ("a", BROKEN, "good"),
        ("b", None, "good"),
        ("c", Behaviour("status"), "other"),
    ):
        await node(fleet, name, behaviour, hardware_class=hardware)
    await begin_changes(fleet, None, own)
    fleet.in_order()
    tier = {**TIER, "hardware_classes": ["other"]}
    candidate = {"tiers": {"small": tier}, "workloads": {"tiny": chat | {"continuing": "never"}}}
    await canary(fleet, candidate, 90)
    heard = [await fleet.ask(said(number, stream=True), CHATS, **by("ada")) for number in range(3)]
    assert all(each.done and each.text == made_up(f"story {number}") for number, each in enumerate(heard))
    assert any(["continued" in await receipt_of(fleet, each) for each in heard])
