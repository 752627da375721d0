"""Nodes that sign what is not true, one lie each: what the result says, and what follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attester.evidence import Manifest
from attester.kinds import write_submod
from attester.weights.folder import open_folder
from attester.weights.manifest import measure
from fixtures.simulator import MODEL, SimulatedNode, tiny_model

SUBMOD = f"model/{MODEL}"


def codes(result: dict[str, Any], submod: str = SUBMOD) -> set[str]:
    return {r["code"] for r in result["submods"][submod]["ear_verifier_claims"].get("reasons", ())}


def vector(result: dict[str, Any], submod: str = SUBMOD) -> dict[str, int]:
    return result["submods"][submod]["ear_trustworthiness_vector"]


async def lie(verifier, node: SimulatedNode, change: Callable[[dict[str, Any]], None], *, walk=True):
    """One called attestation, honest but for *change* to its claims."""
    session = await verifier.call(node, walk=walk)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    claims = node.claims(session.nonce, answers)
    change(claims)
    raw = {name: write_submod(submod) for name, submod in claims.items()}
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    return await verifier.submit(session, data, node)


@pytest.fixture
async def honest_passed(verifier):
    """Another operator's node has passed, so that a failing one is not our mistake."""
    other = await verifier.enrol(operator="other")
    await verifier.attest(other)
    return other


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """Weights with one value changed."""
    folder = tiny_model(tmp_path / "altered")
    tensors = load_file(folder / "model.safetensors")
    tensors["layer.0.bias"][3] += np.float32(1e-3)
    save_file(tensors, folder / "model.safetensors")
    return folder


async def incidents(verifier) -> list[dict[str, Any]]:
    return await verifier.rows("SELECT kind, severity, state, node_id FROM incidents")


async def test_other_weights_are_a_serious_incident(verifier, honest_passed, altered: Path) -> None:
    """Manifest, read and walk all differ: quarantine, and the result says so at once."""
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    result = await verifier.attest(node)
    assert vector(result) == {"file-system": 96, "executables": 96}
    assert {"weights.manifest.mismatch", "weights.read.wrong", "weights.walk.wrong"} <= codes(result)
    assert vector(result, "platform")["instance-identity"] == 96
    assert await incidents(verifier) == [
        {"kind": "model-integrity-failure", "severity": "serious", "state": "open", "node_id": node.id}
    ]
    causes = await verifier.rows("SELECT cause FROM incident_causes")
    assert len(causes) == 3


async def test_a_repeated_manifest_does_not_help(verifier, honest_passed, altered: Path) -> None:
    """A digest proves nothing: the challenges tell."""
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    true = measure(open_folder(verifier.model_folder)).to_claim()
    result = await lie(verifier, node, lambda claims: claims[SUBMOD].update(manifest=true))
    assert "weights.manifest.mismatch" not in codes(result)
    assert vector(result) == {"file-system": 96, "executables": 96}
    assert (await incidents(verifier))[0]["state"] == "open"


async def test_reasons_never_tell_what_was_expected_of_a_challenge(verifier, altered: Path) -> None:
    """Neither the commitment nor which rows are checked leaves the verifier."""
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    result = await verifier.attest(node)
    text = json.dumps(result)
    for row in await verifier.rows("SELECT commitments FROM pool WHERE session_id IS NOT NULL"):
        parts = [row["commitments"][i : i + 32].hex() for i in range(0, len(row["commitments"]), 32)]
        assert not any(part in text for part in parts)


async def test_a_missing_read_is_a_failure(verifier) -> None:
    """What was asked and not answered is not neutral."""
    node = await verifier.enrol()
    result = await lie(verifier, node, lambda claims: claims[SUBMOD].pop("read"))
    assert vector(result)["file-system"] == 96
    assert "weights.read.missing" in codes(result)


async def test_a_missing_walk_is_a_failure(verifier) -> None:
    """Likewise for a walk."""
    node = await verifier.enrol()
    result = await lie(verifier, node, lambda claims: claims[SUBMOD].pop("walk"))
    assert vector(result)["executables"] == 96
    assert "weights.walk.missing" in codes(result)


async def test_a_missing_model_is_a_failure(verifier) -> None:
    """A node cannot pass by saying nothing of the model it enrolled with."""
    node = await verifier.enrol()
    result = await lie(verifier, node, lambda claims: claims.pop(SUBMOD))
    assert vector(result) == {"file-system": 96, "executables": 96}
    assert "weights.model.missing" in codes(result)


async def test_answers_of_the_wrong_length(verifier) -> None:
    """Fewer rows than asked."""
    import msgspec

    node = await verifier.enrol()

    def shorten(claims: dict[str, Any]) -> None:
        walk = claims[SUBMOD]["walk"]
        claims[SUBMOD]["walk"] = msgspec.structs.replace(walk, answers=walk.answers[:-1])

    result = await lie(verifier, node, shorten)
    assert vector(result)["executables"] == 96
    assert "weights.walk.malformed" in codes(result)


async def test_an_answer_that_is_not_32_bytes(verifier) -> None:
    """Signed, and not of the claims table's form."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    raw = {n: write_submod(s) for n, s in node.claims(session.nonce, answers).items()}
    raw[SUBMOD][-80004]["answer"] = b"short"
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    result = await verifier.submit(session, data, node)
    assert vector(result)["file-system"] == 96
    assert "weights.read.malformed" in codes(result)
    assert (await incidents(verifier))[0]["severity"] == "minor"


async def test_answers_that_differ_between_call_and_evidence(verifier) -> None:
    """Garbage in time, then the truth: the clock stopped at the garbage."""
    import msgspec

    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    read, walk = answers[MODEL]
    garbage = msgspec.structs.replace(walk, answers=tuple(bytes(32) for _ in walk.answers))
    await verifier.client(node).answer_call(session, {MODEL: (read, garbage)})
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    result = await verifier.submit(session, data, node)
    assert vector(result)["executables"] == 96
    assert "weights.answers.differ" in codes(result)


async def test_evidence_for_a_call_without_answers_ahead(verifier) -> None:
    """Not sending the answers does not escape the clock."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    result = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    assert vector(result) == {"file-system": 96, "executables": 96}
    assert "weights.answers.differ" in codes(result)


async def test_late_walks_are_a_warning_by_their_median(verifier) -> None:
    """A busy honest node is late, not wrong."""
    node = await verifier.enrol()
    for number, seconds in enumerate((30, 30, 0, 0, 0)):
        session = await verifier.call(node)
        answers = node.answers(session)
        verifier.clock.forward(seconds)
        await verifier.client(node).answer_call(session, answers)
        data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
        result = await verifier.submit(session, data, node)
        late = number < 4
        assert vector(result)["executables"] == (-33 if late else -2), number
        assert ("weights.walk.late" in codes(result)) == late


async def test_a_walk_from_the_files_is_a_warning(verifier) -> None:
    """`source: file` says that the engine did not answer itself."""
    import msgspec

    node = await verifier.enrol()

    def from_file(claims: dict[str, Any]) -> None:
        claims[SUBMOD]["walk"] = msgspec.structs.replace(claims[SUBMOD]["walk"], source="file")

    result = await lie(verifier, node, from_file)
    assert vector(result)["executables"] == -33
    assert "weights.walk.from-file" in codes(result)


async def test_a_gpu_class_cannot_be_timed_by_so_small_a_walk(verifier) -> None:
    """Residence is not claimed where the walk is too short to show it."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, hardware_class="nvidia-h100-80g"))
    result = await verifier.attest(node)
    assert vector(result)["executables"] == -33
    assert "weights.walk.untimed" in codes(result)


async def test_a_walk_goes_stale(verifier) -> None:
    """Without a new call, the last right walk does not carry for ever."""
    node = await verifier.enrol()
    await verifier.attest(node)
    verifier.clock.forward(3601)
    result = await verifier.attest(node, walk=False)
    assert vector(result) == {"file-system": 2, "executables": -33}
    assert "weights.walk.stale" in codes(result)


async def test_calls_missed_repeatedly_contraindicate(verifier) -> None:
    """No answer to a call is `weights.walk.missed`; thrice in a row it counts."""
    from verifier.service.sweep import sweep

    node = await verifier.enrol()
    await verifier.attest(node)
    for _ in range(3):
        await verifier.call(node)
        verifier.clock.forward(121)
        await sweep(verifier.service)
    result = await verifier.attest(node, walk=False)
    assert vector(result)["executables"] == 96
    assert "weights.walk.missed" in codes(result)
    (noted,) = await incidents(verifier)
    assert noted["severity"] == "minor"
    # Answering again restores it.
    assert vector(await verifier.attest(node))["executables"] == -2


async def test_an_unknown_submodule_is_contraindicated(verifier) -> None:
    """Signed, and beyond what the profile knows: said, not silently dropped."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    claims = node.claims(session.nonce, node.answers(session))
    raw: dict[str, Any] = {name: write_submod(submod) for name, submod in claims.items()}
    raw["npu/0"] = {-80006: {"uuid": "GPU-1"}}
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    result = await verifier.submit(session, data, node)
    assert vector(result, "npu/0") == {"configuration": 96}
    assert codes(result, "npu/0") == {"evidence.submod.unknown"}
    assert result["ear_status"] == "contraindicated"


@pytest.mark.parametrize(
    ("arguments", "value", "code"),
    [
        ({"trust_remote_code": True}, 96, "runtime.argument.forbidden"),
        ({"quantization": "int8"}, 96, "runtime.argument.forbidden"),
        ({"seed": 7}, 2, None),
    ],
)
async def test_forbidden_settings(verifier, arguments: dict[str, Any], value: int, code: str | None) -> None:
    """A forbidden argument is contraindicated, and no incident."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, arguments=arguments))
    result = await verifier.attest(node)
    assert vector(result, "platform")["configuration"] == value
    assert codes(result, "platform") == ({code} if code else set())
    assert await incidents(verifier) == []


async def test_an_unapproved_engine_version(verifier) -> None:
    """Approved is what the policy's data lists, and nothing else."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, engine_version="6.6.6"))
    result = await verifier.attest(node)
    assert vector(result, "platform")["configuration"] == 96
    assert codes(result, "platform") == {"runtime.engine.unapproved"}


async def test_a_platform_that_says_nothing(verifier) -> None:
    """Missing evidence is a failure."""
    node = await verifier.enrol()
    result = await lie(verifier, node, lambda claims: claims["platform"].clear())
    assert vector(result, "platform")["configuration"] == 36
    assert {"runtime.missing", "identity.endpoint.missing", "capabilities.missing"} <= codes(
        result, "platform"
    )


async def test_an_endpoint_whose_key_did_not_sign(verifier) -> None:
    """Nobody claims an endpoint without its TLS key."""
    import msgspec

    from attester import identity
    from attester.cose import PrivateKey

    node = await verifier.enrol()
    foreign = identity.spki(PrivateKey.generate())

    def claim_foreign(claims: dict[str, Any]) -> None:
        endpoint = claims["platform"]["endpoint"]
        claims["platform"]["endpoint"] = msgspec.structs.replace(endpoint, spki=foreign)

    result = await lie(verifier, node, claim_foreign)
    assert vector(result, "platform")["instance-identity"] == 96
    assert "identity.endpoint.unproven" in codes(result, "platform")
    assert "endpoint" not in result["submods"]["platform"].get("ear_attester_claims", {})


async def test_a_tls_key_that_serves_for_another_node(verifier, honest_passed) -> None:
    """The newcomer is refused, the incumbent stays."""
    thief = SimulatedNode(verifier.model_folder, tls_key=honest_passed.tls_key)
    await verifier.enrol(thief, operator="thief")
    result = await verifier.attest(thief)
    assert vector(result, "platform")["instance-identity"] == 96
    assert "identity.endpoint.taken" in codes(result, "platform")
    assert (await verifier.attest(honest_passed))["ear_status"] == "affirming"


async def test_extra_files_are_a_warning(verifier, tmp_path: Path) -> None:
    """Files beyond the reference: a warning, and no incident."""
    node = await verifier.enrol()
    true = measure(open_folder(verifier.model_folder)).to_claim()
    more = Manifest(files=(*true.files, true.files[0].__class__(name="zz", size=1, sha256=bytes(32))))
    result = await lie(verifier, node, lambda claims: claims[SUBMOD].update(manifest=more))
    assert vector(result)["file-system"] == 32
    assert await incidents(verifier) == []


async def test_a_quarantined_node_stays_so_whatever_it_sends(verifier, honest_passed, altered: Path) -> None:
    """Good evidence afterwards does not open the door; only a person does."""
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    await verifier.attest(node)
    node.folder = verifier.model_folder
    result = await verifier.attest(node)
    assert vector(result) == {"file-system": 2, "executables": -2}
    assert vector(result, "platform")["instance-identity"] == 96
    assert codes(result, "platform") == {"identity.node.quarantined"}


async def test_earlier_results_are_revoked(verifier, honest_passed, altered: Path) -> None:
    """What it was given before it was caught is worth nothing any more."""
    node = await verifier.enrol(operator="turncoat")
    good = await verifier.attest(node)
    node.folder = altered
    await verifier.attest(node)
    _, status = await verifier.get(f"/api/v1/results/{good['jti']}")
    assert status["state"] == "revoked"
    kinds = [row["type"] for row in await verifier.rows("SELECT type FROM events ORDER BY seq")]
    assert "revocation" in kinds
