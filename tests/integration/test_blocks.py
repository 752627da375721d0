"""Emergency blocks: what they hit, who made them and why, and what hits nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fixtures.simulator import ENGINE, ENGINE_VERSION, SimulatedNode
from tests.integration.lifecycle import post
from tests.unit.verifier.test_gpu_scheme import GOOD
from verifier.commands import blocking
from verifier.commands.rollout import policy as commands

BLOCKS = "/api/v1/policies/blocks"
WHY = {"actor": "kim", "reason": "CVE-2026-1"}
RUNNING = f"{ENGINE}@{ENGINE_VERSION}"


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}}


async def configuration(verifier, node: SimulatedNode) -> int:
    _, result = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    return result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"]


async def block(verifier, kind: str, value: str, **more: Any) -> tuple[int, Any]:
    return await post(verifier, BLOCKS, {**WHY, "kind": kind, "value": value, **more})


@pytest.mark.parametrize(
    "value",
    [
        RUNNING,
        f"{RUNNING} ",
        RUNNING.upper(),
        f"{ENGINE}@*",
        f"{ENGINE}@>=0,<999",
        f" {ENGINE} @ {ENGINE_VERSION} ",
    ],
)
async def test_a_block_in_every_spelling_hits(verifier, value: str) -> None:
    """A trailing space, another case, a pattern, a range: the live result is contraindicated, and so is the next."""
    node = await verifier.enrol()
    await verifier.attest(node)
    status, blocked = await block(verifier, "engine-version", value)
    assert (status, blocked["hits"]) == (201, {"nodes": 1, "live_results": 1, "affirming": 1})
    deadline = asyncio.get_running_loop().time() + 5
    while await configuration(verifier, node) != 96:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    result = await verifier.attest(node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 96


@pytest.mark.parametrize("value", [GOOD["inventory"].uuid.lower(), f"{GOOD['inventory'].uuid[:8]}*"])
async def test_a_device_in_another_spelling_is_blocked(verifier, value: str) -> None:
    """The result of the node that has it says so, and that of no other."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, devices=(GOOD,)))
    other = await verifier.enrol(operator="other")
    for each in (node, other):
        await verifier.attest(each)
    status, blocked = await block(verifier, "device", value)
    assert (status, blocked["hits"]["nodes"]) == (201, 1)
    assert (await verifier.attest(node))["ear_status"] == "contraindicated"
    assert (await verifier.attest(other))["ear_status"] == "affirming"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("engine-version", f"{ENGINE}@999.*"),
        ("engine-version", f"{ENGINE}x@{ENGINE_VERSION}"),
        ("engine-version", f"{ENGINE}@<0.0.0.1"),
        ("device", "GPU-unknown"),
        ("digest", "ab" * 32),
    ],
)
async def test_what_hits_nothing_is_refused(verifier, kind: str, value: str) -> None:
    """A misspelt block must not look like one that works; nothing is written down."""
    await verifier.attest(await verifier.enrol())
    status, problem = await block(verifier, kind, value)
    assert (status, problem["type"].rpartition("#")[2]) == (409, "policy.block.misses")
    if kind == "engine-version":
        assert f"The fleet runs {RUNNING} (1)." in problem["detail"]
    assert await verifier.rows("SELECT * FROM blocks") == []


async def test_what_hits_nothing_is_blocked_if_that_is_asked_for(verifier) -> None:
    """It counts for who comes later."""
    status, blocked = await block(verifier, "engine-version", RUNNING, anyway=True)
    assert (status, blocked["hits"]["nodes"]) == (201, 0)
    assert (await verifier.attest(await verifier.enrol()))["ear_status"] == "contraindicated"


async def test_a_dry_run_counts_and_blocks_nothing(verifier) -> None:
    """By the same count."""
    node = await verifier.enrol()
    await verifier.attest(node)
    status, counted = await block(verifier, "engine-version", f"{ENGINE}@*", dry_run=True)
    assert (status, counted["hits"]) == (200, {"nodes": 1, "live_results": 1, "affirming": 1})
    assert await verifier.rows("SELECT * FROM blocks") == []
    assert await configuration(verifier, node) == 2


async def test_a_node_without_a_live_result_is_hit_by_its_newest_evidence(verifier) -> None:
    """A fleet that is switched off has something to block too; a node that was retired has not."""
    node = await verifier.enrol()
    await verifier.attest(node)
    verifier.clock.forward(86_400)
    _, counted = await block(verifier, "engine-version", RUNNING, dry_run=True)
    assert counted["hits"] == {"nodes": 1, "live_results": 0, "affirming": 0}
    async with verifier.http.delete(f"{verifier.url}/api/v1/nodes/{node.id}") as response:
        assert response.status == 204
    assert (await block(verifier, "engine-version", RUNNING))[0] == 409


async def test_the_list_says_who_when_why_and_what_is_hit(verifier) -> None:
    """After the block has taken effect no affirming result is left; after it is lifted the list has it on request."""
    node = await verifier.enrol()
    await verifier.attest(node)
    _, blocked = await block(verifier, "engine-version", RUNNING)

    async def listed(query: str = "") -> Any:
        _, body = await verifier.get(BLOCKS + query)
        return body["blocks"]

    deadline = asyncio.get_running_loop().time() + 5
    while (await listed())[0]["hits"] != {"nodes": 1, "live_results": 1, "affirming": 0}:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    (found,) = await listed()
    assert (found["id"], found["value"]) == (blocked["block"], RUNNING)
    assert (found["actor"], found["lifted"]) == ("kim", None)
    assert "CVE-2026-1" in found["reason"]
    assert (await post(verifier, f"{BLOCKS}/{found['id']}/lift", {**WHY, "reason": "mended"}))[0] == 204
    assert await listed() == []
    (found,) = await listed("?all=1")
    assert "mended" in found["lifted_reason"]


# On the command line.


async def command(verifier, *arguments: str, code: int = 0) -> str:
    given = ["block", *arguments, "--home", str(verifier.home.path)]
    done = await asyncio.to_thread(CliRunner().invoke, commands, given)
    assert done.exit_code == code, done.output
    return done.output


async def test_the_command_says_how_much_it_hits(verifier, monkeypatch) -> None:
    """Before, by a dry run; then by the block; and afterwards in the list."""
    monkeypatch.setattr(blocking, "now_ms", lambda: verifier.clock.ms)
    await verifier.attest(await verifier.enrol())
    said = await command(verifier, "--engine-version", f"{ENGINE}@*", "--dry-run")
    expected = "1 node with 1 live result, 1 of them affirming"
    assert said == f"A block of engine-version {ENGINE}@* would hit {expected}. Nothing was blocked.\n"
    said = await command(verifier, "--engine-version", f"{RUNNING} ", "--reason", "CVE")
    assert said.startswith(f"Blocked engine-version {RUNNING}. It hits {expected}.\n")
    said = await command(verifier, "--list")
    assert "1 nodes; 1 live results" in said
    assert ": CVE" in said
    listed = msgspec.json.decode(await command(verifier, "--list", "--json"))
    assert [each["value"] for each in listed] == [RUNNING]
    said = await command(verifier, "--engine-version", RUNNING.upper(), "--lift", "--reason", "mended")
    assert said.startswith(f"Lifted the block of engine-version {RUNNING}, which hit 1 node")
    assert await command(verifier, "--list") == "Nothing is blocked.\n"


async def test_the_command_refuses_what_hits_nothing(verifier) -> None:
    """With the version that was perhaps meant; `--anyway` blocks it."""
    await verifier.attest(await verifier.enrol())
    said = await command(verifier, "--engine-version", f"{ENGINE}@999", "--reason", "CVE", code=1)
    assert f"The fleet runs {RUNNING} (1)." in said
    assert "--anyway" in said
    said = await command(verifier, "--engine-version", f"{ENGINE}@999", "--reason", "CVE", "--anyway")
    assert "It hits 0 nodes" in said
