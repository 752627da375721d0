"""
The adapter `files` names the engine by the engine's own word, and never says that there is none.

llama.cpp's answer is recorded (`fixtures/vectors/llamacpp_props.json`); vLLM's was read in vLLM 0.32's own
source, those of Ollama and of KServe's protocol in their documentation.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attester.config import Home
from attester.engines import open_engine
from attester.engines.base import Description
from attester.engines.files import FileEngine
from attester.errors import EngineError
from fixtures.fleet import free_port
from tests.unit.attester.test_engines_open import config_of

RECORDED = Path(__file__).parents[3] / "fixtures" / "vectors" / "llamacpp_props.json"
PROPS = {**json.loads(RECORDED.read_bytes())["props"], "model_path": "/nowhere/model.gguf"}
VLLM_MODELS = {"object": "list", "data": [{"id": "org/m", "owned_by": "vllm", "max_model_len": 2048}]}
ENGINES: dict[str, tuple[dict[str, Any], tuple[str, str, int]]] = {
    "llama.cpp": ({"/props": PROPS}, ("llama.cpp", "b0-unknown", 1024)),
    "vllm": ({"/version": {"version": "0.32.0"}, "/v1/models": VLLM_MODELS}, ("vllm", "0.32.0", 2048)),
    "ollama": ({"/api/version": {"version": "0.12.3"}}, ("ollama", "0.12.3", 0)),
    "kserve": ({"/v2": {"name": "kserve", "version": "0.16.0", "extensions": []}}, ("kserve", "0.16.0", 0)),
}


@asynccontextmanager
async def serving(answers: dict[str, Any], **engine: Any) -> AsyncIterator[FileEngine]:
    """The adapter, and an engine with these answers by path: JSON, a number for a status, or text."""

    async def answer(request: web.Request) -> web.Response:
        found = answers.get(request.path, 404)
        if isinstance(found, int):
            return web.json_response({"error": {"message": "no"}}, status=found)
        return web.Response(text=found) if isinstance(found, str) else web.json_response(found)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}"
        opened = open_engine(config_of(adapter="files", url=url, **engine), http, Home(Path("/nowhere")))
        assert isinstance(opened, FileEngine)
        yield opened


@pytest.mark.parametrize("name", ENGINES)
async def test_files_names_its_engine(name):
    """`files` named its engine `none 0`, which no policy approves."""
    answers, expected = ENGINES[name]
    async with serving(answers) as engine:
        said = await engine.describe()
    assert (said.engine, said.version, said.context_length) == expected


async def test_no_engine_is_a_plain_finding():
    """Nothing listens: the operator is told where, and no evidence says that there is no engine."""
    url = f"http://127.0.0.1:{free_port()}"
    async with aiohttp.ClientSession() as http:
        engine = open_engine(config_of(adapter="files", url=url), http, Home(Path("/nowhere")))
        with pytest.raises(EngineError, match=rf"^the engine at {url} does not answer .*Is it running\?$"):
            await engine.describe()


async def test_an_engine_that_says_nothing_of_itself_asks_for_the_operators_word():
    """As transformers serve, whose only description is /v1/models."""
    async with serving({"/v1/models": {"data": [{"id": "org/m", "owned_by": "org"}]}}) as engine:
        with pytest.raises(EngineError, match=r"does not say what it is: .* \[engine\]: name and version$"):
            await engine.describe()


async def test_the_operators_word_counts_where_the_engine_says_nothing():
    answers = {"/v1/models": {"data": [{"id": "org/m", "owned_by": "org"}]}}
    async with serving(answers, name="transformers", version="5.19.0") as engine:
        said = await engine.describe()
    assert (said.engine, said.version) == ("transformers", "5.19.0")


async def test_the_operators_word_needs_an_engine_too():
    """A name for nothing at all is not evidence of an engine."""
    url = f"http://127.0.0.1:{free_port()}"
    config = config_of(adapter="files", url=url, name="transformers", version="5.19.0")
    async with aiohttp.ClientSession() as http:
        with pytest.raises(EngineError, match="does not answer"):
            await open_engine(config, http, Home(Path("/nowhere"))).describe()


async def test_the_operators_word_cannot_hide_an_engine():
    """What the engine says of itself comes first."""
    async with serving(ENGINES["ollama"][0], name="vllm", version="0.32.0") as engine:
        with pytest.raises(
            EngineError, match=r"says that it is ollama 0\.12\.3, and attester\.toml says vllm"
        ):
            await engine.describe()


async def test_the_operators_word_may_agree():
    async with serving(ENGINES["ollama"][0], name="ollama", version="0.12.3") as engine:
        assert (await engine.describe()).engine == "ollama"


@pytest.mark.parametrize("status", [401, 403])
async def test_an_engine_that_wants_a_key_is_told_of(status):
    """It is not taken for another engine."""
    async with serving({"/props": status}) as engine:
        with pytest.raises(EngineError, match=r"wants an API key: name its file as api_key_file"):
            await engine.describe()


async def test_a_llama_cpp_that_serves_another_file_is_refused():
    """By `files` as by its own adapter: what is walked would not be what is served."""
    async with serving({"/props": {**PROPS, "model_path": "/srv/other.gguf"}}) as engine:
        with pytest.raises(EngineError, match="is not in the folder of any model"):
            await engine.describe()


OTHERS: dict[str, dict[str, Any]] = {
    "a version without a list of models": {"/version": {"version": "1"}},
    "a version of an engine that is not vLLM": {
        "/version": {"version": "1"},
        "/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]},
    },
    "a page at every path": dict.fromkeys(
        ("/props", "/version", "/api/version", "/v2", "/v1/models"), "<html>"
    ),
    "numbers for versions": {
        "/version": {"version": 1},
        "/api/version": {"version": 1},
        "/v2": {"version": 2},
    },
    "lists": {"/props": [], "/version": [], "/api/version": [], "/v2": []},
    "errors": {"/props": 500, "/version": 503, "/api/version": 405, "/v2": 404},
    "answers without end": {"/api/version": {"version": "1" * (1 << 21)}},
}


@pytest.mark.parametrize("name", OTHERS)
async def test_what_names_no_engine_is_not_taken_for_one(name):
    async with serving(OTHERS[name]) as engine:
        with pytest.raises(EngineError, match="does not say what it is"):
            await engine.describe()


@pytest.mark.parametrize("version", ["", "0.12\n", "ö", "1" * 129])
async def test_a_version_that_evidence_cannot_hold_is_refused(version):
    async with serving({"/api/version": {"version": version}}) as engine:
        with pytest.raises(EngineError, match="malformed"):
            await engine.describe()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["version", "name", "data"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(["/props", "/version", "/api/version", "/v2", "/v1/models"]), ANYTHING)
)
async def test_any_answers_describe_an_engine_or_are_refused(answers):
    """Whatever an engine says, the adapter describes it or raises its own error, and never says `none`."""
    async with serving(
        {path: value for path, value in answers.items() if not isinstance(value, (int, str))}
    ) as engine:
        try:
            said = await engine.describe()
        except EngineError:
            return
    assert isinstance(said, Description)
    assert said.engine != "none"


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "a name alone": ({"adapter": "files", "name": "x"}, "together"),
    "a version alone": ({"adapter": "files", "version": "1"}, "together"),
    "of another adapter": ({"adapter": "vllm", "name": "x", "version": "1"}, "for the adapter files"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_word_that_would_not_be_used_is_refused(name):
    engine, why = WRONG[name]
    with pytest.raises(ValueError, match=why):
        config_of(**engine)
