"""vLLM 0.32 itself, on a CPU: what operators run, and what the stand-ins of the other tests are measured by."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attester.engines.vllm import VllmEngine
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures.simulator import MODEL
from fixtures.vllm_server import OURS, PLAIN
from router.model.continuing import CHAT, TEXT, ask_to_go_on
from tests.conftest import RunningVerifier
from tests.engines.conftest import Vllm, vllm
from tests.integration.test_running_attester import Running
from verifier.challenges.trusted_engine import trusted_engine
from verifier.service.calls import CALL_SCHEDULER

CHALLENGE = WalkChallenge("56" * 32, rows=8, passes=2)


def expected(folder: Path) -> list[bytes]:
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    return possession.walk(TensorFiles(open_folder(folder)), words, CHALLENGE.passes, kernel())


async def attested(verifier: RunningVerifier, running: Running) -> dict[str, Any]:
    """A call with a walk, answered by the running attester; the result's claims."""
    before = await running.results()
    await running.until(running.is_connected)
    await verifier.app[CALL_SCHEDULER].call(running.node, walk=True)

    async def is_there() -> bool:
        return await running.results() > before

    await running.until(is_there)
    rows = await verifier.rows(
        "SELECT claims FROM appraisals WHERE node_id = ? ORDER BY issued_ms DESC LIMIT 1", running.node
    )
    claims: dict[str, Any] = json.loads(rows[0]["claims"])
    return claims


def codes(claims: dict[str, Any]) -> set[str]:
    found = [each["ear_verifier_claims"].get("reasons", ()) for each in claims["submods"].values()]
    return {reason["code"] for reasons in found for reason in reasons}


def test_vllm_answers(chat: Vllm) -> None:
    """The model is the one that was published, dequantised, and not a random one."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    answer = chat.request("/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."


async def test_check_is_content_with_vllm(node: Running) -> None:
    """Row: a stock vLLM is refused for the scales of its attention; now its walk is right."""
    checking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "touchstone", "attester", "check", "--home", str(node.home.path)),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await checking.communicate())[0].decode()
    assert "engine: vllm 0.32.0" in said
    assert "read correct; walk correct, from engine on " in said, said


async def test_vllm_is_affirmed_until_its_weights_are_zeroed(
    verifier: RunningVerifier, node: Running, chat: Vllm
) -> None:
    """Whoever has the development endpoints can change live weights, and the next walk shows it."""
    await node.start()
    claims = await attested(verifier, node)
    assert claims["ear_status"] == "affirming", claims
    chat.request("/weight_checker", {"action": "reset"})
    claims = await attested(verifier, node)
    assert claims["ear_status"] == "contraindicated"
    assert "weights.walk.wrong" in codes(claims)


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights on two workers, each with half of every layer."""
    log = tmp_path_factory.mktemp("vllm") / "sharded.log"
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with vllm(tiny, log, "--tensor-parallel-size", "2", extension=PLAIN, **threads) as server:
        yield server


async def test_two_workers_walk_as_the_files_do(sharded: Vllm, tiny: Path) -> None:
    """Row: tensor parallel 2: right walks, and vLLM's own calls get their own answers afterwards."""
    before = sharded.request("/weight_checker", {"action": "checksum"})
    async with aiohttp.ClientSession() as http:
        engine = VllmEngine(http, sharded.url, {MODEL: tiny})
        assert (await engine.describe()).arguments["workers"] == 2
        assert (await engine.prepare()).endswith(", 2 workers")
        for _ in range(3):
            answer = await engine.walk(MODEL, CHALLENGE)
            assert list(answer.answers) == expected(tiny)
    assert sharded.request("/weight_checker", {"action": "checksum"}) == before
    assert len(before["checksums"]) > 20


async def test_two_workers_walk_what_each_has_loaded(sharded: Vllm, tiny: Path) -> None:
    """Rank by rank: twice alike, and otherwise than the files."""
    async with aiohttp.ClientSession() as http:
        engine = VllmEngine(http, sharded.url, {MODEL: tiny}, as_loaded={MODEL})
        await engine.prepare()
        first, second = [await engine.walk(MODEL, CHALLENGE) for _ in range(2)]
    assert first.answers == second.answers
    assert list(first.answers) != expected(tiny)


async def test_a_failing_walk_leaves_the_calls_of_two_workers_in_step(
    sharded: Vllm, tiny: Path, smollm2: Path
) -> None:
    """Row: our extension raised in a worker, and every later call of vLLM's was answered by the one before."""
    before = sharded.request("/weight_checker", {"action": "checksum"})
    async with aiohttp.ClientSession() as http:
        engine = VllmEngine(http, sharded.url, {MODEL: smollm2})
        with pytest.raises(EngineError, match="cannot walk: "):
            await engine.prepare()
        engine = VllmEngine(http, sharded.url, {MODEL: tiny / "nothing"})
        with pytest.raises(EngineError, match="cannot walk: "):
            await engine.prepare()
    assert sharded.request("/get_world_size") == {"world_size": 2}
    assert sharded.request("/weight_checker", {"action": "checksum"}) == before


async def test_two_workers_serve_while_they_walk(sharded: Vllm, tiny: Path) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 32, "ignore_eos": True, "temperature": 0}
    quiet = sharded.request("/v1/completions", body)["choices"]
    async with aiohttp.ClientSession() as http:
        engine = VllmEngine(http, sharded.url, {MODEL: tiny})
        await engine.prepare()
        served, walked = await asyncio.gather(
            asyncio.to_thread(sharded.request, "/v1/completions", body), engine.walk(MODEL, CHALLENGE)
        )
    assert served["choices"] == quiet
    assert list(walked.answers) == expected(tiny)


@pytest.fixture(scope="module")
def stock(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As vLLM is on a CPU, with our extension and nothing else."""
    with vllm(tiny, tmp_path_factory.mktemp("vllm") / "stock.log", extension=OURS) as server:
        yield server


async def test_an_operator_of_packed_weights_reads_the_cause(stock: Vllm, tiny: Path) -> None:
    """Row: on a CPU, vLLM packs its linear layers and frees the plain weight."""
    async with aiohttp.ClientSession() as http:
        engine = VllmEngine(http, stock.url, {MODEL: tiny})
        said = await engine.describe()
        assert said.packages["vllm"] == "0.32.0"
        with pytest.raises(EngineError, match=r"loaded as \(0,\).* has packed this weight .*oneDNN"):
            await engine.prepare()


async def test_packed_weights_cannot_be_walked_as_loaded_either(stock: Vllm, tiny: Path) -> None:
    """OneDNN's copy is in no tensor, so it would not be walked at all."""
    async with aiohttp.ClientSession() as http:
        with pytest.raises(EngineError, match=r"'[a-z_.0-9]+weight' is empty: .*oneDNN"):
            await VllmEngine(http, stock.url, {MODEL: tiny}, as_loaded={MODEL}).prepare()


async def test_a_paused_engine_is_not_walked(stock: Vllm, tiny: Path) -> None:
    """As sleep mode, which vLLM does not have on a CPU."""
    stock.request("/pause", {})
    try:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(EngineError, match="sleeps or is paused"):
                await VllmEngine(http, stock.url, {MODEL: tiny}).prepare()
    finally:
        stock.request("/resume", {})


def test_gptq_that_vllm_repacks_is_walked_as_it_is(gptq: Path, tmp_path: Path) -> None:
    """Row: engines that hold other bytes than the file: a second process of the build walks as the trusted one did."""
    challenge = (bytes.fromhex(CHALLENGE.seed), CHALLENGE.rows, CHALLENGE.passes)
    with vllm(gptq, tmp_path / "trusted.log", extension=PLAIN) as server:
        with trusted_engine(server.url, None, MODEL, gptq) as trusted:
            by, answers = trusted.measure(*challenge)
        with pytest.raises(EngineError, match="cannot walk: "):
            asyncio.run(prepare_as_published(server, gptq))
    assert (by.engine, by.version) == ("vllm", "0.32.0")
    assert list(answers) != expected(gptq)
    with (
        vllm(gptq, tmp_path / "node.log", extension=PLAIN) as server,
        trusted_engine(server.url, None, MODEL, gptq) as node,
    ):
        assert node.walk(*challenge) == answers
        server.request("/weight_checker", {"action": "reset"})
        assert node.walk(*challenge) != answers


async def prepare_as_published(server: Vllm, folder: Path) -> None:
    async with aiohttp.ClientSession() as http:
        await VllmEngine(http, server.url, {MODEL: folder}).prepare()


# What routers rest on when they have another node go on, and when they write salts (docs/adr/0068).

STORY = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a short story about a fox."}]}
GREEDY = {"temperature": 0, "max_tokens": 24}
LONG = {"model": MODEL, "messages": [{"role": "user", "content": "We sell tea. " * 60}], "max_tokens": 1}


def text_of(answer: Any) -> str:
    (choice,) = answer["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def test_vllm_goes_on_with_an_open_message_and_says_only_what_is_new(chat: Vllm) -> None:
    whole = text_of(chat.request("/v1/chat/completions", STORY | GREEDY))
    words = whole.split(" ")
    begun = " ".join(words[: len(words) // 2])
    said = [*STORY["messages"], {"role": "assistant", "content": begun}]
    document = ask_to_go_on(STORY | GREEDY, CHAT, begun, 12, ("max_tokens",))
    assert document is not None
    assert document["messages"] == said
    rest = text_of(chat.request("/v1/chat/completions", document))
    # The next words; further on, what was read and what was made may differ in the last bits of a number.
    assert rest.split(" ")[1:4] == words[len(words) // 2 :][:3]


def test_vllm_goes_on_with_a_completion(chat: Vllm) -> None:
    asked = {"model": MODEL, "prompt": "Once upon a time there was"} | GREEDY
    words = text_of(chat.request("/v1/completions", asked)).split(" ")
    document = ask_to_go_on(asked, TEXT, " ".join(words[:6]), 5, ("max_tokens",))
    assert document is not None
    assert text_of(chat.request("/v1/completions", document)).split(" ")[1:4] == words[6:9]


def test_vllm_keeps_apart_what_has_another_salt(chat: Vllm) -> None:
    def hits() -> float:
        with urllib.request.urlopen(f"{chat.url}/metrics", timeout=30) as answer:
            found = re.search(
                r"^vllm:prefix_cache_hits_total\S* ([0-9.e+]+)", answer.read().decode(), re.MULTILINE
            )
        assert found is not None
        return float(found[1])

    def found_by(salt: str) -> float:
        before = hits()
        chat.request("/v1/chat/completions", LONG | {"cache_salt": salt})
        return hits() - before

    assert found_by("ada") == 0
    assert found_by("bob") == 0
    assert found_by("ada") > 0
