"""
The real llama.cpp server: described, asked, streamed from, and walked over its GGUF file.

Nothing here is a stand-in: `fixtures/llama_server.py` runs llama.cpp's own server from a wheel, with
SmolLM2-135M-Instruct in Q4_1.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from msgspec import structs

from attester.config import Home, ModelSection
from attester.engines import open_engine
from attester.engines.base import Engine
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.quantisation import quantisation_of
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures import llama_server, smollm
from fixtures.fleet import free_port
from tests.conftest import LlamaServer
from tests.unit.attester.test_engines_open import config_of

RECORDED = Path(__file__).parents[2] / "fixtures" / "vectors" / "llamacpp_props.json"


@asynccontextmanager
async def opened(llama: LlamaServer, adapter: str, folder: Path | None = None) -> AsyncIterator[Engine]:
    config = config_of(adapter=adapter, url=llama.url)
    models = {"org/m": ModelSection(str(folder or llama.folder))}
    async with aiohttp.ClientSession() as http:
        yield open_engine(structs.replace(config, models=models), http, Home(Path("/nowhere")))


@pytest.mark.parametrize("adapter", ["llama.cpp", "files"])
async def test_the_real_server_is_described(llama, adapter):
    """By its own adapter and by `files` alike: name, build, file, slots, context."""
    async with opened(llama, adapter) as engine:
        said = await engine.describe()
    assert (said.engine, said.version, said.context_length) == ("llama.cpp", llama_server.BUILD, 1024)
    assert (said.arguments["model"], said.arguments["slots"]) == (smollm.FILE, 2)
    digests = {said.arguments["chat_template"], said.arguments["sampling"]}
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in digests)
    assert "chat" in said.features


async def test_a_real_server_that_serves_another_file_is_refused(llama, tmp_path):
    """What is walked would not be what is served."""
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    async with opened(llama, "llama.cpp", tmp_path) as engine:
        with pytest.raises(EngineError, match="is not in the folder of any model"):
            await engine.describe()


async def test_its_answer_is_still_the_recorded_one(llama):
    """The recording that the unit tests use has the keys and types that the server has."""
    async with aiohttp.ClientSession() as http, http.get(f"{llama.url}/props") as response:
        live = await response.json()
    recorded = json.loads(RECORDED.read_bytes())["props"]
    assert shape(live) == shape(recorded)


def shape(value: Any) -> Any:
    """The keys and the types of values."""
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value).__name__


async def test_the_real_file_is_walked(llama):
    """All of its 272 tensors, and the evidence says that it was a file."""
    challenge = WalkChallenge("ab" * 32, rows=2, passes=1)
    async with opened(llama, "llama.cpp") as engine:
        await engine.prepare()
        answer = await engine.walk("org/m", challenge)
    tensors = TensorFiles(open_folder(llama.folder))
    words = [row_words(bytes.fromhex(challenge.seed), row) for row in range(challenge.rows)]
    assert len(tensors) == 272
    assert answer.source == "file"
    assert list(answer.answers) == possession.walk(tensors, words, 1, kernel())


def test_the_real_file_says_how_it_is_quantised(llama):
    """`quantisation: none` declared for a Q4_1 file: the file says it, as the server does."""
    found = quantisation_of(open_folder(llama.folder))
    assert found is not None
    assert (found.name, found.is_called("none")) == ("q4_1", False)


async def test_the_real_server_answers(llama):
    """The official client gets a right answer at temperature 0, and the server's own usage."""
    async with openai.AsyncOpenAI(base_url=f"{llama.url}/v1", api_key="none") as client:
        done = await client.chat.completions.create(
            model=smollm.MODEL, messages=list(smollm.QUESTION), temperature=0, max_tokens=24
        )
    assert done.choices[0].message.content == "The capital of France is Paris."
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("stop", 8)


async def test_the_real_server_streams(llama):
    """Text by text, an end, and usage where it is asked for."""
    async with openai.AsyncOpenAI(base_url=f"{llama.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=smollm.MODEL, messages=list(smollm.QUESTION), temperature=0, max_tokens=24,
            stream=True, stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "The capital of France is Paris."
    assert sum(map(bool, texts)) > 1
    assert chunks[-1].usage.completion_tokens == 8


async def test_a_real_server_with_a_key_asks_for_it(llama, tmp_path):
    """`files` does not take it for an engine that says nothing of itself."""
    listen = f"127.0.0.1:{free_port()}"
    with llama_server.running(llama.file, listen, "m", tmp_path / "log", "--api-key", "k") as url:
        keyed = LlamaServer(url, llama.folder, llama.file)
        async with opened(keyed, "files") as engine:
            with pytest.raises(EngineError, match="wants an API key"):
                await engine.describe()
