"""
A node of the real llama.cpp: attested by its GGUF file, routed where the workload says so, asked through the gateway.

Engine, attester, front, verifier and router are the real ones, on real sockets.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from msgspec import structs

from attester.agent import decode_unverified
from attester.config import AttesterConfig, CapabilitiesSection, Enrolment, Home
from attester.front import process
from attester.front.clients import LIST
from attester.front.keeper import RouterKeeper
from attester.running import agent_of, opened
from attester.selftest import BY_FILE_EARNS, run_checks
from attester.weights.folder import open_folder
from fixtures import llama_server, smollm
from fixtures.fleet import free_port
from fixtures.published import publish
from router.choose.decision import decide, explain_closed
from router.choose.explaining import explanation
from router.config import RouterConfig
from router.model.table import read_table, write_table
from router.model.workload import MODEL_CLAIMS
from router.service.app import make_app
from router.service.setup import RouterSetup
from router.service.state import STATE
from router.state.fleet import Fleet
from tests.conftest import FakeClock, LlamaServer, RunningVerifier
from tests.unit.router.doubles import serving, until
from verifier.config import Home as VerifierHome
from verifier.references import measured
from verifier.references.measured import Document
from verifier.roles import Role
from verifier.service.clock import Clock
from verifier.store import nodes
from verifier.store.nodes import Grant

FILES_ALONE = ("file-system",)
TAKES_FILES = (
    f"model/{smollm.MODEL} executables is -33 (warning); weights.walk.from-file; its engine shows its files alone, "
    "and a workload that takes that asks for no more than model_claims: [file-system]"
)


class RealClock(FakeClock):
    """The time of the node's own attester."""

    def clock(self) -> Clock:
        return Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)


@pytest.fixture
def clock() -> FakeClock:
    return RealClock(ms=time.time_ns() // 1_000_000)


@pytest.fixture
def verifier_home(verifier_home: VerifierHome) -> VerifierHome:
    """The policy approves the server by the table of engines alone: no Rego is edited."""
    path = verifier_home.path / "policy" / "data.json"
    data = json.loads(path.read_text())
    data["approved_engines"] = {"llama.cpp": {"versions": [llama_server.BUILD], "weak": []}}
    path.write_text(json.dumps(data))
    return verifier_home


@dataclass
class LlamaNode:
    """A node of llama.cpp with its home, enrolled."""

    verifier: RunningVerifier
    home: Home
    id: str

    async def attest(self) -> dict[str, Any]:
        """Answer a call; the result's claims."""
        async with agent_of(self.home) as agent:
            await agent.prepare()
            session = await self.verifier.call(self)
            return decode_unverified(await agent.attest(session, called=True))

    async def check(self, **capabilities: str) -> dict[str, tuple[bool | None, str]]:
        """What `touchstone attester check` prints: by what was checked, whether it passed, and the detail."""
        config = self.home.config()
        config = structs.replace(config, capabilities=CapabilitiesSection(**capabilities))
        async with opened(self.home, config) as (client, collector, _):
            found = await run_checks(self.home, config, client, collector, time.time)
        return {what: (passed, detail) for passed, what, detail in found}


@pytest.fixture(scope="session")
def measured_once(llama: LlamaServer) -> Document:
    """The reference value: the same for all tests."""
    return measured.measure_folder(smollm.MODEL, open_folder(llama.folder))


@pytest.fixture
async def node(
    verifier: RunningVerifier, llama: LlamaServer, measured_once: Document, tmp_path: Path
) -> LlamaNode:
    service, now_ms = verifier.service, verifier.clock.ms
    await publish(
        service.db,
        service.pool_key,
        llama.folder,
        now_ms,
        model=smollm.MODEL,
        document=measured_once,
        reads=4,
        walks=4,
    )
    port = free_port()
    given = {
        "verifier": {"url": verifier.url},
        "models": {smollm.MODEL: {"dir": str(llama.folder)}},
        "serve": {"url": f"https://127.0.0.1:{port}"},
        "front": {"listen": f"127.0.0.1:{port}"},
        "engine": {"adapter": "llama.cpp", "url": llama.url},
    }
    home = Home(tmp_path / "node")
    home.create(msgspec.convert(given, AttesterConfig))
    token = await service.db.write(
        lambda tx: nodes.issue_token(tx, Grant("acme", (smollm.MODEL,)), now_ms, 3_600_000)
    )
    async with opened(home, home.config()) as (client, _, _):
        enrolment = msgspec.convert(await client.enrol(token, [smollm.MODEL]), Enrolment)
    home.save_enrolment(enrolment)
    return LlamaNode(verifier, home, enrolment.node)


@asynccontextmanager
async def router_of(
    node: LlamaNode, folder: Path, claims: Sequence[str], **sections: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Fleet]]:
    """A router by the table that `router init --model-claims` writes, the node's front, and a client."""
    credential = await node.verifier.key("router-1", Role.ROUTER)
    (folder / "router.key").write_text(credential["Authorization"].partition(" ")[2])
    given = {
        "verifier": {"url": node.verifier.url, "router_token_file": "router.key"},
        "gateway": {"open": True, "allow_private": True},
        **sections,
    }
    table = read_table(write_table({"chat": smollm.MODEL}, claims).encode())
    app = make_app(RouterSetup(msgspec.convert(given, RouterConfig), table, folder))
    config = node.home.config()
    async with (
        process.serving(node.home, config, now=time.time) as (front, _),
        serving(app) as url,
        opened(node.home, config) as (client, _, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asking,
    ):
        keeper = RouterKeeper(client, node.home, 86_400)
        fleet = app[STATE].fleet
        await until(lambda: len(fleet) == 1)
        async with asyncio.timeout(10):
            # The router registers itself when it starts; the attester would fetch the list.
            while await keeper.fetch() and b"router-1" not in (node.home.path / LIST).read_bytes():
                pass
        front.look()
        yield asking, fleet


async def test_a_llama_cpp_node_is_attested_by_its_file(node: LlamaNode) -> None:
    """
    llama.cpp earns `executables -33` (the file was walked), `file-system 2`, and an approved configuration.

    The engine is approved by the operator's table of engines: no Rego was edited for `b0-unknown`.
    """
    claims = await node.attest()
    platform, model = claims["submods"]["platform"], claims["submods"][f"model/{smollm.MODEL}"]
    assert platform["ear_trustworthiness_vector"]["configuration"] == 2
    assert model["ear_trustworthiness_vector"] == {"file-system": 2, "executables": -33}
    assert [reason["code"] for reason in model["ear_verifier_claims"]["reasons"]] == [
        "weights.walk.from-file"
    ]
    declared = platform["ear_attester_claims"]
    assert declared["capabilities"]["quantisation"] == "q4_1"


async def test_check_says_what_such_a_node_can_earn(node: LlamaNode) -> None:
    """`check` printed ok throughout: it says now that routers by default send such a node nothing."""
    found = await node.check()
    assert found[f"what {smollm.MODEL} can earn"] == (None, BY_FILE_EARNS)
    assert "executables -33 (warning)" in BY_FILE_EARNS
    assert "--model-claims file-system" in BY_FILE_EARNS
    assert found["quantisation"] == (True, "q4_1, as the files of the weights say")
    practice = found[f"practice challenge of {smollm.MODEL}"]
    assert practice[0], practice
    assert "walk correct, from file" in practice[1]


async def test_check_refuses_a_quantisation_that_the_weights_contradict(node: LlamaNode) -> None:
    """`quantisation: none` declared for a Q4_1 file."""
    passed, detail = (await node.check(quantisation="none"))["quantisation"]
    assert passed is False
    assert detail.startswith(f"attester.toml declares none, but the weights of {smollm.MODEL} are q4_1. ")


async def test_a_gguf_walked_by_file_is_routed_where_the_workload_says_so(
    node: LlamaNode, tmp_path: Path
) -> None:
    """A llama.cpp node is attested and gets work, and its answer comes through the front and the gateway."""
    await node.attest()
    async with router_of(node, tmp_path, FILES_ALONE) as (client, _):
        stream = await client.chat.completions.create(
            model=smollm.MODEL, messages=list(smollm.QUESTION), temperature=0, max_tokens=24, stream=True
        )
        texts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        assert "".join(texts) == "The capital of France is Paris."
        assert stream.response.headers["x-touchstone-decision"]


async def test_the_503_says_which_claim_is_missing_and_what_to_do(node: LlamaNode, tmp_path: Path) -> None:
    """`router init` requires `executables`, so every request is 503: the answer and `explain` say why."""
    await node.attest()
    async with router_of(node, tmp_path, MODEL_CLAIMS) as (client, fleet):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model=smollm.MODEL, messages=list(smollm.QUESTION))
        assert caught.value.status_code == 503
        message = caught.value.response.json()["error"]["message"]
        assert message == f"no node may do this work now: 1 result.not-affirming. 1 node: {TAKES_FILES}"
        workload = next(iter(fleet.table.workloads.values()))
        excluded = explain_closed(fleet.excluded(workload))
        record = decide(fleet.view_for(workload), workload, 1).to_wire() | {
            "id": "d", "attempts": [], "excluded": excluded
        }  # fmt: skip
        assert f"      {node.id}  result.not-affirming: {TAKES_FILES}" in explanation(record)
