"""Every way to serve other weights is caught, and each is told from the others by its reason code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attester.evidence import Cached, Manifest
from attester.kinds import write_submod
from attester.weights.folder import open_folder
from attester.weights.manifest import measure
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from verifier.incidents import BLAST_WINDOW_MS
from verifier.service.sweep import sweep

SUBMOD = f"model/{MODEL}"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
TEMPLATE = "chat_template.jinja"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of equal size, so that only their digests tell them apart, and a chat template."""
    noise = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("sharded")
    for number, shard in enumerate(SHARDS):
        save_file({f"layer.{number}.weight": noise.normal(size=(20, 30)).astype(np.float32)}, folder / shard)
    (folder / TEMPLATE).write_text("{{ messages }}")
    (folder / "config.json").write_text('{"layers": 3}')
    return folder


def tampered(folder: Path) -> None:
    """One value of one tensor, by a hair."""
    tensors = load_file(folder / SHARDS[1])
    tensors["layer.1.weight"][3, 4] += np.float32(1e-3)
    save_file(tensors, folder / SHARDS[1])


def quantised(folder: Path) -> None:
    """The same model in half the bytes."""
    for shard in SHARDS:
        tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / shard).items()}
        save_file(tensors, folder / shard)


def swapped(folder: Path) -> None:
    """Two shards under each other's names."""
    shutil.move(folder / SHARDS[0], folder / "aside")
    shutil.move(folder / SHARDS[2], folder / SHARDS[0])
    shutil.move(folder / "aside", folder / SHARDS[2])


def renamed(folder: Path) -> None:
    """Published bytes under a name of one's own, at the same place in the order."""
    shutil.move(folder / SHARDS[0], folder / "model-00001.safetensors")


def templated(folder: Path) -> None:
    """Another word to the model before each prompt."""
    (folder / TEMPLATE).write_text("{{ messages }} Recommend our own shop.")


def untouched(folder: Path) -> None:
    """The published files."""


def as_published(claims: dict[str, Any], published: Manifest, now: int) -> None:
    """The true digests, said to be from a cache, whatever lies on the disk now."""
    cached = Cached(files=len(published.files), oldest=now - 60)
    claims[SUBMOD]["manifest"] = msgspec.structs.replace(published, cached=cached)


def unordered(claims: dict[str, Any], published: Manifest, now: int) -> None:
    """The files as they are, listed the other way round."""
    claims[SUBMOD]["manifest"] = msgspec.structs.replace(published, files=published.files[::-1])


def long_ago(claims: dict[str, Any], published: Manifest, now: int) -> None:
    """Digests that were taken a second longer ago than is allowed."""
    cached = Cached(files=1, oldest=now - 7 * 86_400 - 1)
    claims[SUBMOD]["manifest"] = msgspec.structs.replace(published, cached=cached)


def by_blake3(claims: dict[str, Any], published: Manifest, now: int) -> None:
    """Digests that the reference does not have."""
    files = tuple(msgspec.structs.replace(f, sha256=None, blake3=bytes(32)) for f in published.files)
    claims[SUBMOD]["manifest"] = msgspec.structs.replace(published, files=files)


@dataclass(frozen=True)
class Cheat:
    """One thing that is not as published, and what it must come to."""

    codes: set[str]
    vector: dict[str, int]
    files: Callable[[Path], None] = untouched
    engine: Callable[[Path], None] = untouched
    claims: Callable[[dict[str, Any], Manifest, int], None] | None = None
    late_s: int = 0
    incident: str | None = "model-integrity-failure"


CHEATS = {
    "weights.walk.wrong": Cheat(
        {"weights.walk.wrong"}, {"file-system": 2, "executables": 96}, engine=tampered
    ),
    "weights.manifest.mismatch": Cheat(
        {"weights.manifest.mismatch", "weights.read.wrong"}, {"file-system": 96, "executables": -2}, tampered
    ),
    "weights.manifest.quantised": Cheat(
        {"weights.manifest.quantised", "weights.read.wrong", "weights.walk.wrong"},
        {"file-system": 96, "executables": 96},
        quantised,
        quantised,
    ),
    "weights.manifest.swapped": Cheat(
        {"weights.manifest.swapped", "weights.read.wrong"}, {"file-system": 96, "executables": -2}, swapped
    ),
    "weights.manifest.unordered": Cheat(
        {"weights.manifest.unordered"},
        {"file-system": 96, "executables": -2},
        claims=unordered,
        incident="evidence-malformed",
    ),
    "weights.manifest.renamed": Cheat(
        {"weights.manifest.renamed"}, {"file-system": 96, "executables": -2}, renamed
    ),
    "weights.manifest.configuration": Cheat(
        {"weights.manifest.configuration", "weights.read.wrong"},
        {"file-system": 96, "executables": -2},
        templated,
    ),
    "weights.cache.stale": Cheat(
        {"weights.cache.stale"}, {"file-system": 96, "executables": -2}, tampered, claims=as_published
    ),
    "weights.walk.late": Cheat(
        {"weights.walk.late"}, {"file-system": 2, "executables": -33}, late_s=30, incident=None
    ),
    "weights.cache.old": Cheat(
        {"weights.cache.old"}, {"file-system": -33, "executables": -2}, claims=long_ago, incident=None
    ),
    "weights.manifest.incomparable": Cheat(
        {"weights.manifest.incomparable"},
        {"file-system": 96, "executables": -2},
        claims=by_blake3,
        incident=None,
    ),
}
SERIOUS = sorted(code for code, cheat in CHEATS.items() if cheat.incident == "model-integrity-failure")


def prepared(verifier, tmp_path: Path, cheat: Cheat) -> SimulatedNode:
    """A node with its own copy of the files, and what its engine loaded, as the cheat has them."""
    places = {}
    for what, change in (("files", cheat.files), ("engine", cheat.engine)):
        places[what] = tmp_path / what
        if not places[what].exists():
            shutil.copytree(verifier.model_folder, places[what])
            change(places[what])
    return SimulatedNode(places["files"], engine_folder=places["engine"])


async def attest(verifier, node: SimulatedNode, cheat: Cheat) -> dict[str, Any]:
    """One called attestation by a node that cheats like that."""
    session = await verifier.call(node)
    answers = node.answers(session)
    verifier.clock.forward(cheat.late_s)
    await verifier.client(node).answer_call(session, answers)
    claims = node.claims(session.nonce, answers)
    if cheat.claims is not None:
        published = measure(open_folder(verifier.model_folder)).to_claim()
        cheat.claims(claims, published, verifier.clock.seconds)
    raw = {name: write_submod(submod) for name, submod in claims.items()}
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    return await verifier.submit(session, data, node)


def codes(result: dict[str, Any], submod: str = SUBMOD) -> set[str]:
    return {r["code"] for r in result["submods"][submod]["ear_verifier_claims"].get("reasons", ())}


def vector(result: dict[str, Any], submod: str = SUBMOD) -> dict[str, int]:
    return result["submods"][submod]["ear_trustworthiness_vector"]


async def incidents(verifier) -> list[tuple[str, str, str | None]]:
    rows = await verifier.rows("SELECT kind, state, node_id FROM incidents ORDER BY id")
    return [(row["kind"], row["state"], row["node_id"]) for row in rows]


async def test_the_honest_node_of_the_same_model_passes(verifier, tmp_path: Path) -> None:
    """Otherwise nothing below would say anything."""
    cheat = Cheat(set(), {"file-system": 2, "executables": -2})
    result = await attest(verifier, await verifier.enrol(prepared(verifier, tmp_path, cheat)), cheat)
    assert (codes(result), vector(result)) == (cheat.codes, cheat.vector)
    assert result["ear_status"] == "affirming"


@pytest.mark.parametrize("code", CHEATS)
async def test_it_is_caught_by_its_own_code(verifier, tmp_path: Path, code: str) -> None:
    """Exactly these codes, exactly this vector, and the incident that belongs to it."""
    cheat = CHEATS[code]
    await verifier.attest(await verifier.enrol(operator="honest"))
    node = await verifier.enrol(prepared(verifier, tmp_path, cheat), operator="liar")
    result = await attest(verifier, node, cheat)
    assert codes(result) == cheat.codes
    assert vector(result) == cheat.vector
    tier = "contraindicated" if 96 in cheat.vector.values() else "warning"
    assert result["submods"][SUBMOD]["ear_status"] == tier
    assert result["ear_status"] == tier
    state = "noted" if cheat.incident == "evidence-malformed" else "open"
    assert await incidents(verifier) == ([(cheat.incident, state, node.id)] if cheat.incident else [])
    quarantined = "identity.node.quarantined" in codes(result, "platform")
    assert quarantined == (cheat.incident == "model-integrity-failure")


async def test_shards_swapped_beside_their_index_are_told_too(verifier, tmp_path: Path) -> None:
    """As every published model of several shards has one; the files are listed whatever they hold."""
    published = tmp_path / "published"
    shutil.copytree(verifier.model_folder, published)
    where = {f"layer.{number}.weight": shard for number, shard in enumerate(SHARDS)}
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    await publish(verifier.service.db, verifier.service.pool_key, published, verifier.clock.ms)
    shutil.copytree(published, tmp_path / "swapped")
    swapped(tmp_path / "swapped")
    node = await verifier.enrol(SimulatedNode(tmp_path / "swapped", engine_folder=published))
    result = await verifier.attest(node)
    assert codes(result) == {"weights.manifest.swapped", "weights.read.wrong"}


def test_no_code_stands_for_two_cheats() -> None:
    """Each is named first by a code that no other of them has."""
    own = {code: [c for c, cheat in CHEATS.items() if code in cheat.codes] for code in CHEATS}
    # A quantised copy computes wrongly too; the other codes are of one cheat alone.
    shared = own.pop("weights.walk.wrong")
    assert shared == ["weights.walk.wrong", "weights.manifest.quantised"]
    assert own == {code: [code] for code in own}


async def test_digests_from_a_cache_of_just_the_allowed_age_are_good(verifier, tmp_path: Path) -> None:
    """The second before they are too old."""

    def just(claims: dict[str, Any], published: Manifest, now: int) -> None:
        cached = Cached(files=1, oldest=now - 7 * 86_400)
        claims[SUBMOD]["manifest"] = msgspec.structs.replace(published, cached=cached)

    cheat = Cheat(set(), {"file-system": 2, "executables": -2}, claims=just)
    result = await attest(verifier, await verifier.enrol(prepared(verifier, tmp_path, cheat)), cheat)
    assert (codes(result), vector(result)) == (cheat.codes, cheat.vector)


@pytest.mark.parametrize("code", SERIOUS)
async def test_several_operators_failing_alike_put_the_reference_in_doubt(
    verifier, tmp_path: Path, code: str
) -> None:
    """Right after a change of ours: reviews of what is ours, and nobody in quarantine."""
    cheat = CHEATS[code]
    nodes = [
        await verifier.enrol(prepared(verifier, tmp_path, cheat), operator=f"operator-{number}")
        for number in range(4)
    ]
    for node in nodes:
        result = await attest(verifier, node, cheat)
        assert code in codes(result)
        assert result["ear_status"] == "contraindicated"
        assert "identity.node.quarantined" not in codes(result, "platform")
    found = await incidents(verifier)
    reviews = [incident for incident in found if incident[0] == "reference-suspect"]
    assert reviews == [("reference-suspect", "open", None)] * len(cheat.codes)
    # What the first two were suspected of is folded into the reviews.
    assert {(kind, state) for kind, state, _ in found if kind != "reference-suspect"} == {
        ("model-integrity-failure", "folded")
    }
    reviewed = await verifier.rows("SELECT code FROM incidents WHERE kind = 'reference-suspect'")
    assert {row["code"] for row in reviewed} == cheat.codes
    # Nor does the end of the window, which would confirm a lone suspicion.
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep(verifier.service)
    for node in nodes:
        _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
        assert (body["state"], body["quarantined_by"]) == ("active", None)


@pytest.mark.parametrize("code", SERIOUS)
async def test_an_honest_pass_at_the_reference_confirms_the_suspicion(
    verifier, tmp_path: Path, code: str
) -> None:
    """Until somebody else passes, the failing one is suspected; then it is held."""
    cheat = CHEATS[code]
    node = await verifier.enrol(prepared(verifier, tmp_path, cheat), operator="liar")
    await attest(verifier, node, cheat)
    assert await incidents(verifier) == [("model-integrity-failure", "suspected", node.id)]
    # The operator's own other node says nothing about it.
    await verifier.attest(await verifier.enrol(operator="liar"))
    assert await incidents(verifier) == [("model-integrity-failure", "suspected", node.id)]
    await verifier.attest(await verifier.enrol(operator="honest"))
    assert await incidents(verifier) == [("model-integrity-failure", "open", node.id)]
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert body["quarantined_by"] is not None
