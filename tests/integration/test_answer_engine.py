"""What a trusted engine says is read as it was recorded of a real vLLM; what cannot be read is an error and no answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from fixtures.fleet import free_port
from verifier.answers.checks import EngineUsed
from verifier.challenges.answer_engine import AnswerEngine, Named, answer_engine
from verifier.errors import ReferenceValueError

RECORDED = msgspec.json.decode(
    (Path(__file__).parents[2] / "fixtures" / "vectors" / "vllm_answers.json").read_bytes()
)
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hi to a cat."}], "temperature": 0}


class Recorded:
    """A server that answers what was recorded, or what a test puts in its place."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = dict(RECORDED)
        self.refuses_logprobs = False

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = msgspec.json.decode(body) if body else None
        self.asked.append((request.path, asked))
        found = self.answers.get(f"{request.method} {request.path}")
        if found is None or (self.refuses_logprobs and asked and "logprobs" in asked):
            return web.Response(status=404 if found is None else 400, body=b'{"error": "no"}')
        data = found if isinstance(found, bytes) else msgspec.json.encode(found)
        return web.Response(body=data, content_type="application/json")


@pytest.fixture
async def vllm() -> AsyncIterator[tuple[Recorded, AnswerEngine]]:
    recorded, port = Recorded(), free_port()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorded.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with answer_engine(f"http://127.0.0.1:{port}", "m") as engine:
        yield recorded, engine
    await runner.cleanup()


async def test_vllm_says_what_it_is(vllm: tuple[Recorded, AnswerEngine]) -> None:
    _, engine = vllm
    used = await engine.describe(Named(), "BF16")
    assert used == EngineUsed(name="vllm", version="0.32.0", dtype="bfloat16", family="vllm")
    assert not engine.is_llama_cpp
    assert await engine.operation() == "chat.completions"


async def test_a_vllm_that_does_not_say_its_precision_has_that_of_the_weights(
    vllm: tuple[Recorded, AnswerEngine],
) -> None:
    recorded, engine = vllm
    del recorded.answers["GET /server_info"]
    assert (await engine.describe(Named(), "BF16")).dtype == "BF16"
    assert (await engine.describe(Named(dtype="float16"), "BF16")).dtype == "float16"


async def test_a_chat_of_vllm(vllm: tuple[Recorded, AnswerEngine]) -> None:
    recorded, engine = vllm
    answered = await engine.ask("chat.completions", CHAT)
    assert (answered.text, answered.finish_reason, answered.prompt_tokens) == ("I'm here to", "length", 36)
    assert answered.prompt_ids is not None
    assert (len(answered.prompt_ids), answered.prompt_ids[:3]) == (36, (1, 9690, 198))
    assert answered.tokens is not None
    assert [token.text for token in answered.tokens] == ["I", "'m", " here", " to"]
    assert answered.tokens[0].margin == pytest.approx(0.5)
    ((_, asked),) = recorded.asked
    assert asked == {**CHAT, "model": "m", "return_token_ids": True, "logprobs": True, "top_logprobs": 5}


async def test_a_completion_of_vllm(vllm: tuple[Recorded, AnswerEngine]) -> None:
    """Its log-probabilities have another form, and the ids of the prompt are elsewhere."""
    recorded, engine = vllm
    answered = await engine.ask("completions", {"prompt": "The capital of France", "temperature": 0})
    assert answered.text == " is Paris."
    assert answered.prompt_ids == (504, 3575, 282, 4649)
    assert answered.tokens is not None
    assert [token.top[1][0] for token in answered.tokens] == [",", " the", ","]
    assert answered.tokens[2].margin == pytest.approx(1.25)
    assert recorded.asked[0][1]["logprobs"] == 5


async def test_a_token_that_was_drawn_is_not_taken_for_the_likeliest(
    vllm: tuple[Recorded, AnswerEngine],
) -> None:
    """VLLM puts it first, as it did when it was asked with a seed."""
    recorded, engine = vllm
    chat = msgspec.json.decode(msgspec.json.encode(RECORDED["POST /v1/chat/completions"]))
    tops = chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    tops.insert(0, tops.pop())
    recorded.answers["POST /v1/chat/completions"] = chat
    answered = await engine.ask("chat.completions", CHAT)
    assert answered.tokens is not None
    assert [piece for piece, _ in answered.tokens[0].top] == ["I", "Hello", "Oh"]
    assert answered.tokens[0].margin == pytest.approx(0.5)


async def test_an_engine_without_log_probabilities_is_asked_without(
    vllm: tuple[Recorded, AnswerEngine],
) -> None:
    """Once it has refused them, it is not asked for them again."""
    recorded, engine = vllm
    recorded.refuses_logprobs = True
    for _ in range(2):
        await engine.ask("chat.completions", CHAT)
    assert ["logprobs" in asked for _, asked in recorded.asked] == [True, False, False]


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}}]}',
        b'{"choices": [{"text": "' + b"x" * (1 << 20) + b'"}]}',
    ],
    ids=["no json", "nothing", "no choice", "no text", "no log-probability", "too long"],
)
async def test_an_answer_that_cannot_be_read_is_an_error(
    vllm: tuple[Recorded, AnswerEngine], answer: bytes
) -> None:
    recorded, engine = vllm
    recorded.answers["POST /v1/chat/completions"] = answer
    with pytest.raises(ReferenceValueError, match="the engine"):
        await engine.ask("chat.completions", CHAT)


@pytest.mark.parametrize("embedding", ["####", "AAA=", "", [1e39], ["x"], 3], ids=str)
async def test_a_vector_that_cannot_be_read_is_an_error(
    vllm: tuple[Recorded, AnswerEngine], embedding: Any
) -> None:
    recorded, engine = vllm
    recorded.answers["POST /v1/embeddings"] = {"data": [{"index": 0, "embedding": embedding}]}
    with pytest.raises(ReferenceValueError, match="the engine"):
        await engine.ask("embeddings", {"input": "x"})


async def test_vectors_are_in_the_order_of_their_index(vllm: tuple[Recorded, AnswerEngine]) -> None:
    """As base64, and as decimals of an engine that knows no base64."""
    recorded, engine = vllm
    recorded.answers["POST /v1/embeddings"] = {
        "data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": "AACAPw=="}]
    }
    answered = await engine.ask("embeddings", {"input": ["a", "b"]})
    assert answered.vectors == (b"\x00\x00\x80?", b"\x00\x00\x00@")
