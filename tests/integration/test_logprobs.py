"""Log-probabilities are asked of a real engine with every request, and given to those that asked (docs/adr/0057)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import LlamaServer
from tests.integration.checking import Minter, check, learn, sections
from tests.integration.gateway import Fleet, opened
from tests.unit.router.support import MODEL

SAID = [{"role": "user", "content": "Say one word."}]
PLAIN: dict[str, Any] = {"messages": SAID, "model": MODEL, "temperature": 0, "max_tokens": 6}


@pytest.fixture
async def fleet(tmp_path: Path, llama: LlamaServer) -> AsyncIterator[Fleet]:
    """A router over a node whose engine is the real llama.cpp; its workload asks for log-probabilities."""
    # The engine ends connections that have idled, and one of them must not be used again.
    each_anew = aiohttp.TCPConnector(force_close=True)
    async with opened(tmp_path) as made, aiohttp.ClientSession(connector=each_anew) as engine:
        node = await made.node("a")

        async def act(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            async with engine.post(llama.url + request.path, data=body, headers=request.headers) as answer:
                kind = {"Content-Type": answer.headers["Content-Type"]}
                return web.Response(status=answer.status, body=await answer.read(), headers=kind)

        node.act = act
        made.verifier.offers = Minter(
            lambda operation: (
                {key: value for key, value in PLAIN.items() if key != "model"}
                if operation == "chat.completions"
                else {"prompt": "One", "temperature": 0, "max_tokens": 6}
            )
        )
        await made.start(
            {"checks": {"logprobs": True}}, sections=sections(tmp_path), attempt_timeout_s=60, timeout_s=60
        )
        learn(made, PLAIN)
        yield made


@pytest.mark.parametrize("stream", [False, True])
async def test_who_did_not_ask_gets_none_and_the_check_has_them(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    heard = await fleet.ask(PLAIN | ({"stream": True} if stream else {}))
    assert heard.status == 200
    assert b'"top_logprobs"' not in heard.body
    assert {choice.get("logprobs") for choice in heard.choices} == {None}
    given = (await check(fleet))["given"]
    assert given["text"] == heard.text
    assert "".join(token["text"] for token in given["tokens"]) == heard.text
    assert {len(token["top"]) for token in given["tokens"]} == {5}


@pytest.mark.parametrize("shown", [0, 2, 5, 7])
async def test_who_asked_gets_as_many_as_it_asked_for(fleet: Fleet, shown: int) -> None:
    asked = {"logprobs": True, "top_logprobs": shown} if shown else {"logprobs": True}
    for stream in ({}, {"stream": True}):
        heard = await fleet.ask(PLAIN | asked | stream)
        positions = [
            position
            for choice in heard.choices
            if choice.get("logprobs")
            for position in choice["logprobs"]["content"]
        ]
        assert len(positions) > 2
        assert {len(position["top_logprobs"]) for position in positions} == {shown}


async def test_usage_stays_as_it_is(fleet: Fleet) -> None:
    streams = {"stream": True, "stream_options": {"include_usage": True}}
    whole, streamed = [await fleet.ask(PLAIN | more) for more in ({}, streams)]
    assert whole.usage[0]["completion_tokens"] == streamed.usage[-1]["completion_tokens"] > 2
    assert not (await fleet.ask(PLAIN | {"stream": True})).usage
