"""
llama.cpp: described by its server, walked by its file, which must be the model's.

Its answer was recorded from the real server (`fixtures/vectors/llamacpp_props.json`); tests change it.
The real server itself runs in `tests/conformance/test_llama_server.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from attester.engines.files import FileWalker
from attester.engines.http import EngineHttp
from attester.engines.llamacpp import LlamaCppEngine
from attester.engines.walker import Walker
from attester.errors import EngineError, WeightsError
from attester.weights import possession
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import Tensor

CHALLENGE = WalkChallenge("ef" * 32, rows=5, passes=2)
FILE = "tiny-q8_0.gguf"
RECORDED = Path(__file__).parents[3] / "fixtures" / "vectors" / "llamacpp_props.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / FILE).write_bytes(b"not looked into")
    return folder


@pytest.fixture
def props(folder: Path) -> dict[str, Any]:
    """What the server says of itself; a test may change it."""
    recorded: dict[str, Any] = json.loads(RECORDED.read_bytes())["props"]
    return {**recorded, "model_path": str(folder / FILE)}


@pytest.fixture
async def engine(folder: Path, props: dict[str, Any]) -> AsyncIterator[LlamaCppEngine]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(props)

    app = web.Application()
    app.router.add_get("/props", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        engine, folders = EngineHttp(http, f"http://127.0.0.1:{server.port}"), {"org/m": folder}
        yield LlamaCppEngine(engine, folders, FileWalker(folders, Walker("cpu", backend="numpy")))


async def test_the_server_is_described(engine):
    """By its own word, and by no more of it than is needed."""
    said = await engine.describe()
    assert (said.engine, said.version, said.context_length) == ("llama.cpp", "b0-unknown", 1024)
    assert said.arguments == {
        "model": FILE,
        "slots": 2,
        "chat_template": "sha256:872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
        "sampling": "sha256:fe070caa77f8e446c444f4d4182221454158f46f27d10cfc7bc79b6153200a80",
    }


async def test_another_template_or_another_default_is_seen(engine, props):
    """And what changes no answer is not: an engine's seed, how many tokens it gives."""
    before = (await engine.describe()).arguments
    params = props["default_generation_settings"]["params"]
    params["seed"], params["n_predict"] = 7, 5
    assert (await engine.describe()).arguments == before
    params["temperature"] = 0.7
    changed = (await engine.describe()).arguments
    assert changed["sampling"] != before["sampling"]
    assert changed["chat_template"] == before["chat_template"]
    props["chat_template"] += " "
    assert (await engine.describe()).arguments["chat_template"] != before["chat_template"]


async def test_an_older_server_is_described(engine, props):
    """One that says less of itself."""
    del props["total_slots"], props["default_generation_settings"], props["chat_template"]
    said = await engine.describe()
    assert (said.arguments, said.context_length) == ({"model": FILE, "slots": None}, 0)


def a_link(folder: Path) -> Path:
    outside = folder.with_name("elsewhere.gguf")
    outside.write_bytes(b"other weights")
    (folder / "link.gguf").symlink_to(outside)
    return folder / "link.gguf"


OUTSIDE: dict[str, Callable[[Path], Path | str]] = {
    "elsewhere": lambda _: "/srv/other/model.gguf",
    "a folder whose name begins alike": lambda folder: f"{folder}-2/{FILE}",
    "up and away": lambda folder: folder / ".." / FILE,
    "a link out of it": a_link,
    "relative": lambda _: FILE,
    "the folder above": lambda folder: folder.parent,
    "nothing": lambda _: "",
}


@pytest.mark.parametrize("name", OUTSIDE)
async def test_a_model_outside_the_folder_is_refused(engine, props, folder, name):
    """What is walked would not be what is served."""
    props["model_path"] = str(OUTSIDE[name](folder))
    with pytest.raises(
        EngineError,
        match=r"^llama\.cpp serves '.*', which is not in the folder of any model in attester\.toml$",
    ):
        await engine.describe()


async def test_a_path_that_comes_back_into_the_folder_is_taken(engine, props, folder):
    """It is the file that counts, not how it is called."""
    alias = folder.with_name("alias")
    alias.symlink_to(folder)
    props["model_path"] = str(alias / ".." / "model" / FILE)
    assert (await engine.describe()).arguments["model"] == FILE


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no path": lambda props: props.pop("model_path"),
    "no build": lambda props: props.pop("build_info"),
    "a path that is a number": lambda props: props.update(model_path=7),
    "an empty build": lambda props: props.update(build_info=""),
    "a build in two lines": lambda props: props.update(build_info="b6000\nb6001"),
    "a build without end": lambda props: props.update(build_info="b" * 129),
    "slots in words": lambda props: props.update(total_slots="four"),
    "a context in words": lambda props: props.update(default_generation_settings={"n_ctx": "long"}),
    "a context beyond all": lambda props: props.update(default_generation_settings={"n_ctx": 1 << 41}),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_description_that_is_none_is_refused(engine, props, name):
    """The operator is told that the engine is wrong, and nothing else breaks."""
    WRONG[name](props)
    with pytest.raises(EngineError, match="malformed"):
        await engine.describe()


async def test_a_name_that_is_not_ascii_is_shown_as_far_as_it_is(engine, props):
    """Evidence is printable ASCII; the manifest has the name as it is."""
    props["model_path"] = str(Path(props["model_path"]).with_name("modèle.gguf"))
    assert (await engine.describe()).arguments["model"] == "mod?le.gguf"


async def test_a_context_that_is_negative_is_not_known(engine, props):
    """As the server says where it has none."""
    props["default_generation_settings"] = {"n_ctx": -1}
    assert (await engine.describe()).context_length == 0


def write_gguf(path: Path) -> list[tuple[str, bytes]]:
    """A file by the reference writer; its tensors' bytes in walking order."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    noise = np.random.default_rng(3)
    whole = noise.normal(size=(64, 96)).astype(np.float32)
    q8 = gguf.GGMLQuantizationType.Q8_0
    tensors = {
        "token_embd.weight": (whole.astype(np.float16), None),
        "blk.0.attn_q.weight": (gguf.quants.quantize(whole, q8), q8),
        "blk.0.attn_norm.weight": (noise.normal(size=(33,)).astype(np.float32), None),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_token_list(["<s>", "</s>", "a", "日"])
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(name, tensors[name][0].tobytes()) for name in sorted(tensors)]


def expected(parts: list[tuple[str, bytes]]) -> list[bytes]:
    tensors = [Tensor(name, np.frombuffer(bytearray(data), np.int8)) for name, data in parts]
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    return possession.walk(tensors, words, CHALLENGE.passes, kernel("numpy"))


async def test_the_file_is_walked(engine, folder):
    """Quantised blocks as they lie in it, and the evidence says that it was a file."""
    parts = write_gguf(folder / FILE)
    assert await engine.prepare() == kernel("numpy").name
    answer = await engine.walk("org/m", CHALLENGE)
    assert (answer.source, list(answer.answers)) == ("file", expected(parts))


async def test_one_bit_of_the_file_changes_every_answer(engine, folder):
    """In a quantised block as anywhere."""
    parts = write_gguf(folder / FILE)
    before = expected(parts)
    data = bytearray((folder / FILE).read_bytes())
    data[data.index(parts[1][1]) + 40] ^= 1
    (folder / FILE).write_bytes(data)
    assert not set((await engine.walk("org/m", CHALLENGE)).answers) & set(before)


async def test_a_file_that_is_not_gguf_is_told_of_when_making_ready(engine):
    """Before a call comes."""
    with pytest.raises(WeightsError, match="not a GGUF file"):
        await engine.prepare()


async def test_an_unknown_model_is_refused(engine):
    """By name."""
    with pytest.raises(WeightsError, match="asks about 'org/else'"):
        await engine.walk("org/else", CHALLENGE)
