"""What tests of a model's revisions share: a second revision, nodes that go from one to the other, and the steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from attester.proof import Request
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from tests.integration.lifecycle import post

SUBMOD = f"model/{MODEL}"
WHY = {"reason": "because"}
SETTINGS: dict[str, Any] = {
    "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
    "policy": {"workers": 1},
    "pool": {"low_hours": 0.5, "low_water": 0},
    "results": {"lifetime_s": 3600},
}


def resaved(old: Path, folder: Path, *, byte: int = -40) -> Path:
    """Another revision of a model: the same tensors with other bytes."""
    shutil.copytree(old, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[byte] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    return folder


async def in_force(verifier: Any) -> str:
    """The digest of the value in force."""
    (row,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'active'")
    return str(row["digest"])


async def mint(verifier: Any, folder: Path, *, replace: bool = False, **counts: int) -> str:
    """Add a folder as a value, with its challenges; its digest."""
    service = verifier.service
    return await publish(service.db, service.pool_key, folder, verifier.clock.ms, replace=replace, **counts)


async def step(verifier: Any, name: str, **body: Any) -> tuple[int, Any]:
    """A step over the API: start, finish or abort."""
    path = "/api/v1/rollouts" + ("" if name == "start" else f"/{name}")
    return await post(verifier, path, {"model": MODEL, **WHY, **body})


async def begin(verifier: Any, to: str, **more: Any) -> None:
    """Start a roll-out to *to*."""
    status, body = await step(verifier, "start", to=to, **more)
    assert status == 201, body


async def say(
    verifier: Any, node: SimulatedNode, revisions: Any, *, of: str | None = None, signed: bool = True
) -> tuple[int, Any]:
    """What a node says of itself; status and body."""
    path = f"/api/v1/nodes/{of or node.id}/revisions"
    body = revisions if isinstance(revisions, bytes) else json.dumps({"revisions": revisions}).encode()
    request = Request("PUT", verifier.url.partition("://")[2], path, body)
    headers = {"Content-Type": "application/json"}
    if signed:
        headers["Authorization"] = request.authorize(node.key, now=verifier.clock.seconds)
    async with verifier.stranger.put(verifier.url + path, data=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def upgrade(verifier: Any, node: SimulatedNode, folder: Path, digest: str) -> None:
    """A node takes another revision, and says so."""
    node.folder = folder
    verifier.clock.forward(1)
    status, body = await say(verifier, node, {MODEL: digest})
    assert status == 204, body


async def newest(verifier: Any, node: SimulatedNode) -> Any:
    """The claims of a node's live result; `None` if it has none."""
    path = f"/api/v1/nodes/{node.id}/result"
    status, body = await verifier.get(path, Accept="application/json")
    return body if status == 200 else None


def reasons(result: Any) -> list[str]:
    """The codes of what a result says of the model."""
    return [reason["code"] for reason in result["submods"][SUBMOD]["ear_verifier_claims"].get("reasons", ())]


def compared_with(result: Any) -> str:
    """The digest of the value that a result was compared with."""
    return str(result["submods"][SUBMOD]["ear_verifier_claims"]["reference"])


def vector(result: Any) -> dict[str, int]:
    """The trust vector of the model."""
    found: dict[str, int] = result["submods"][SUBMOD]["ear_trustworthiness_vector"]
    return found
