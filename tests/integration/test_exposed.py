"""Row 5 of the issue, and "probing oneself": control routes that can be reached through the endpoint contraindicate the node."""

from __future__ import annotations

from typing import Any

import pytest

from attester.evidence import Exposure
from attester.kinds import write_submod
from tests.conftest import RunningVerifier
from verifier.blame import Whose, whose
from verifier.reasons import REASONS


async def platform_of(verifier: RunningVerifier, exposure: Any) -> tuple[dict[str, Any], str]:
    """What the result says of the platform whose evidence has this claim, and of the whole node."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    submods = {name: write_submod(claims) for name, claims in node.claims(session.nonce, answers).items()}
    if isinstance(exposure, Exposure):
        submods["platform"] |= write_submod({"exposure": exposure})
    elif exposure is not None:
        submods["platform"][-80009] = exposure
    evidence = node.token(session.nonce, submods, iat=verifier.clock.seconds).sign(node.key)
    claims = await verifier.submit(session, evidence, node)
    return claims["submods"]["platform"], claims["ear_status"]


def codes(platform: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in platform["ear_verifier_claims"].get("reasons", [])]


async def test_control_routes_that_are_reached_contraindicate_the_node(verifier: RunningVerifier) -> None:
    """With each of them by name, and no incident: it is the operator's to mend, and no lie."""
    found = Exposure(reached=True, routes=("/collective_rpc", "/sleep"))
    platform, status = await platform_of(verifier, found)
    assert platform["ear_status"] == status == "contraindicated"
    assert platform["ear_trustworthiness_vector"]["configuration"] == 96
    assert codes(platform) == ["runtime.exposed"]
    assert "/collective_rpc, /sleep" in str(platform["ear_verifier_claims"]["reasons"])
    assert await verifier.rows("SELECT * FROM incidents") == []
    assert (whose("runtime.exposed"), REASONS["runtime.exposed"].incident) == (Whose.NODE, None)


@pytest.mark.parametrize(
    "exposure",
    [None, Exposure(reached=False), Exposure(reached=True)],
    ids=["an older attester", "it could not look", "closed"],
)
async def test_nothing_else_costs_a_node_anything(
    verifier: RunningVerifier, exposure: Exposure | None
) -> None:
    """An attester that does not look earns what it earned before, and a network that failed exposes nothing."""
    platform, status = await platform_of(verifier, exposure)
    assert platform["ear_status"] == status == "affirming"
    assert platform["ear_trustworthiness_vector"]["configuration"] == 2
    assert codes(platform) == []


async def test_as_many_routes_as_there_may_be_are_told_in_a_bounded_line(verifier: RunningVerifier) -> None:
    """The paths are the node's own words."""
    long = tuple(f"/{number:03}{'x' * 120}" for number in range(64))
    platform, status = await platform_of(verifier, Exposure(reached=True, routes=long))
    assert status == "contraindicated"
    assert len(platform["ear_verifier_claims"]["reasons"][0]["detail"]) <= 300


@pytest.mark.parametrize(
    "claim",
    [
        {"routes": []},
        {"reached": 1},
        {"reached": True, "routes": ["/x"] * 65},
        {"reached": True, "routes": ["/\x1b"]},
        {"reached": True, "more": 1},
        {"reached": True, "routes": [""]},
        [],
    ],
    ids=["no word", "a number", "too many", "unprintable", "unknown", "empty", "a list"],
)
async def test_a_malformed_claim_is_malformed_evidence(verifier: RunningVerifier, claim: Any) -> None:
    """As any other claim."""
    platform, status = await platform_of(verifier, claim)
    assert status == "contraindicated"
    assert "evidence.claims.malformed" in codes(platform)


async def test_the_verifier_says_that_it_knows_the_claim(verifier: RunningVerifier) -> None:
    """Attesters send it to no verifier that would refuse it."""
    _, document = await verifier.get("/.well-known/veraison/verification")
    assert "touchstone-exposure" in document["attestation-schemes"]
