"""Streams of the real llama.cpp server that are cut, and gone on with by another node: the text is that of an unbroken one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fixtures import llama_server
from router.gateway.openai import GATEWAY
from router.model.tokens import Tokeniser
from tests.conftest import LlamaServer
from tests.integration.gateway import CHATS, TEXTS, Fleet, Heard, opened
from tests.integration.test_continuing import WORDS
from tests.unit.router.doubles import serving

REVISION = "11" * 32
TOKENS = 12
CUTS = (1, 5)
"""Events with text after which the first node breaks off."""
CHAT: dict[str, Any] = {
    "model": "", "messages": [{"role": "user", "content": "Tell me a short story about a fox."}],
    "stream": True, "temperature": 0, "max_tokens": TOKENS, "stream_options": {"include_usage": True},
}  # fmt: skip
TEXT: dict[str, Any] = {
    "model": "", "prompt": "Once upon a time there was", "stream": True, "temperature": 0,
    "max_tokens": TOKENS, "stream_options": {"include_usage": True},
}  # fmt: skip


def count(url: str, text: str) -> int:
    """By the model's own tokeniser, which its GGUF file has."""
    data = json.dumps({"content": text}).encode()
    request = urllib.request.Request(f"{url}/tokenize", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return len(json.load(answer)["tokens"])


def counts(heard: Heard) -> tuple[int, int]:
    (usage,) = heard.usage
    return usage["prompt_tokens"], usage["completion_tokens"]


class Passing:
    """A node that passes all on to the real server, and may break off after so many events with text of a first part."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self.cut: int | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/{rest:.*}", self._pass)
        return app

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        is_first = "messages" in asked or asked["prompt"] == TEXT["prompt"]
        left = self.cut if is_first and "continue_final_message" not in asked else None
        async with self._http.post(
            self._url + request.path, data=await request.read(), headers={"Content-Type": "application/json"}
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for line in answer.content:
                await response.write(line)
                if left is not None and (b'"content":"' in line or b'"text":"' in line):
                    left -= 1
                    if not left:
                        await response.write(b"\n")
                        assert request.transport is not None
                        request.transport.abort()
                        break
            return response


@pytest.fixture
async def passing(tmp_path: Path, llama: LlamaServer) -> AsyncIterator[tuple[Fleet, list[Passing]]]:
    async with opened(tmp_path) as fleet:
        nodes = []
        for name in ("a", "b"):
            certificate = fleet.certificate(name)
            node = Passing(llama.url, fleet.http)
            url = await fleet._stack.enter_async_context(serving(node.app(), certificate.context))
            claims = {"runtime": {"engine": "llama.cpp", "version": llama_server.BUILD}}
            endpoint = {"url": url, "spki_sha256": certificate.pin}
            fleet.verifier.trust(name, endpoint=endpoint, claims=claims, revision=REVISION)
            nodes.append(node)
        file = tmp_path / "tokenizer.json"
        file.write_text(WORDS)
        given = {"tokeniser": str(file), "continuing": "always"}
        await fleet.start(given, timeout_s=60, attempt_timeout_s=60, stall_s=60)
        fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(partial(count, llama.url))}
        yield fleet, nodes


@pytest.mark.parametrize(("body", "path"), [(CHAT, CHATS), (TEXT, TEXTS)], ids=["chat", "completion"])
async def test_a_stream_that_was_gone_on_with_is_that_which_did_not_break(
    passing: tuple[Fleet, list[Passing]], body: dict[str, Any], path: str
) -> None:
    fleet, nodes = passing
    body = body | {"model": fleet.app[GATEWAY].table.models[0]}
    unbroken = await fleet.ask(body, path)
    for cut in CUTS:
        for node in nodes:
            node.cut = cut
        heard = await fleet.ask(body, path)
        assert heard.done
        assert heard.text == unbroken.text
        assert counts(heard) == counts(unbroken)
        marks = [event["touchstone"]["continued"] for event in heard.events if "touchstone" in event]
        assert [[part["tokens"] for part in mark] for mark in marks] == [[cut], [cut]]
