"""The configuration's word for an engine, and the adapter it gives."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
import pytest

from attester import commands, config
from attester.config import AttesterConfig, Home
from attester.engines import open_engine
from attester.engines.files import FileEngine
from attester.engines.llamacpp import LlamaCppEngine
from attester.engines.loopback import LoopbackEngine
from attester.engines.vllm import VllmEngine
from attester.errors import ConfigError

EXPECTED = {
    "loopback": LoopbackEngine,
    "vllm": VllmEngine,
    "llama.cpp": LlamaCppEngine,
    "files": FileEngine,
}


def config_of(**engine: Any) -> AttesterConfig:
    given = {
        "verifier": {"url": "https://v.example"},
        "models": {"org/m": {"dir": "/nowhere"}},
        "serve": {"url": "https://n.example"},
        "engine": engine,
    }
    return msgspec.convert(given, AttesterConfig)


@pytest.fixture
def home(tmp_path) -> Home:
    (tmp_path / "engine.secret").write_text("s3cret\n")
    (tmp_path / "engine.secret").chmod(0o600)
    return Home(tmp_path)


@pytest.mark.parametrize("name", config.ADAPTERS)
async def test_each_adapter_is_opened_by_its_name(home, name):
    """Without asking anything yet."""
    async with aiohttp.ClientSession() as http:
        assert type(open_engine(config_of(adapter=name), http, home)) is EXPECTED[name]


async def test_an_unknown_adapter_is_refused(home):
    """With those that there are."""
    async with aiohttp.ClientSession() as http:
        with pytest.raises(
            ConfigError, match=r"no adapter 'tgi'\. Choose one of loopback, vllm, llama\.cpp, files"
        ):
            open_engine(config_of(adapter="tgi"), http, home)


async def test_what_a_walk_may_cost_is_the_configurations(home):
    """The operator's caps and device reach the walker."""
    async with aiohttp.ClientSession() as http:
        given = config_of(adapter="files", device="cuda:3", walk_s=7.5, hour_s=70)
        walker = open_engine(given, http, home)._files._walker
    assert (walker._device, walker._budget._walk_s, walker._budget._hour_s) == ("cuda:3", 7.5, 70)


def test_the_command_line_offers_the_adapters_there_are():
    """No more and no fewer."""
    assert commands.ADAPTERS == config.ADAPTERS == tuple(EXPECTED)
