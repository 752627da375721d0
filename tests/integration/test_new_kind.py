"""
A new evidence kind in four additions: a collector, a scheme, its rows in the tables, a policy file.

The toy kind measures a node's fans.  It is collected by the real collector, signed, checked,
judged by a policy, recorded, and required by a router's workload.  Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Struct

from attester import kinds
from attester.collector import Collector
from attester.collectors import COLLECTORS
from attester.collectors.base import EvidenceSession, Sources
from attester.config import AttesterConfig
from attester.engines.base import Description
from attester.evidence import Claim, Claims, Count, WalkAnswer
from attester.kinds import KINDS, Kind, Submod
from attester.weights.possession import ModelChallenge, WalkChallenge
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode
from router.choose import gates
from router.choose.gates import GateContext
from router.model.node import NodeView
from router.model.table import read_table
from tests.integration.lifecycle import changed, smuggle
from tests.integration.test_recordings import again
from verifier import appraisal, reasons, results
from verifier.policy import contract
from verifier.reasons import REASONS, Reason
from verifier.schemes.context import Context, Submods
from verifier.schemes.facts import Facts
from verifier.schemes.findings import CheckedSubmod, Finding
from verifier.schemes.registry import SCHEMES, Scheme

SUBMOD = "fan/0"

# 1. A collector.


class FanCollector:
    """See `attester.collectors.base.KindCollector`."""

    rpm = 3000

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def collect(self, _session: EvidenceSession) -> Mapping[str, Submod]:
        return {SUBMOD: {"speed": Speed(rpm=self.rpm)}}


# 2. A scheme.


def check(submod: str, submods: Submods, _context: Context) -> CheckedSubmod:
    """A fan must turn."""
    speed: Speed | None = submods.claim(submod, "speed")
    turns = speed is not None and speed.rpm > 0
    findings = () if turns else (Finding("fan.stopped", "0 rpm"),)
    return CheckedSubmod(
        FanFacts(turns=turns), findings=findings, may_affirm={"hardware": 2} if turns else {}
    )


# 3. Its rows in the tables: claims, facts, a reason code.


class Speed(Claims, frozen=True):
    """How fast a fan turns."""

    rpm: Count


class FanFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="fan"):
    """`fan/N`: one fan."""

    turns: Annotated[bool, Meta(description="Whether it turns.")]


KIND = Kind("fan", (Claim(-80999, "speed", Speed, "How fast a fan turns."),), kinds.KINDS["gpu"].members)
REASON = Reason("fan.stopped", "A fan stands still.", "Replace it.")

# 4. A policy file.

POLICY = """package touchstone

outcome[name] := {"trust_vector": {"hardware": fan(facts)}, "reasons": []} if {
	some name, facts in input.checked
	facts.kind == "fan"
}

fan(facts) := data.ar4si.hardware.genuine if {
	facts.turns
} else := data.ar4si.hardware.contradicted
"""

TABLE = f"""
tiers:
  cool:
    submods:
      fan: {{claims: [hardware]}}
workloads:
  tiny: {{model: {MODEL}, tier: cool}}
""".encode()


@pytest.fixture
def fans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four additions."""
    monkeypatch.setitem(KINDS, "fan", KIND)
    monkeypatch.setitem(COLLECTORS, "fan", FanCollector)
    monkeypatch.setitem(SCHEMES, "fan", Scheme(check=check, facts=FanFacts, malfunction=("hardware",)))
    monkeypatch.setitem(REASONS, "fan.stopped", REASON)


class Engine:
    """An engine that has the simulated node's weights loaded."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node

    async def describe(self) -> Description:
        return Description(
            engine=ENGINE,
            version=ENGINE_VERSION,
            arguments={},
            packages={},
            python="3.11",
            context_length=256,
        )

    async def prepare(self) -> str:
        return "numpy"

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        _, walk = self._node.answer(ModelChallenge(model, None, challenge))
        assert walk is not None
        return walk


def collector_of(node: SimulatedNode) -> Collector:
    given = {
        "verifier": {"url": node.audience},
        "models": {MODEL: {"dir": str(node.folder)}},
        "serve": {"url": node.url},
        "gpu": {"devices": []},
    }
    config = msgspec.convert(given, AttesterConfig)
    return Collector(config, Engine(node), node.tls_key, node.key.public.kid)


async def attest(verifier: Any) -> Any:
    """A call that a node with the real collector answers; the result."""
    verifier_policy = changed(await verifier.policy(), "fans", fan_rego=POLICY)
    await smuggle(verifier, verifier_policy)
    node = await verifier.enrol()
    collector = collector_of(node)
    session = await verifier.call(node)
    answers = {challenge.model: await collector.answer(challenge) for challenge in session.models}
    await verifier.client(node).answer_call(session, answers)
    submods = await collector.submods(session.nonce, answers)
    token = node.token(session.nonce, submods, iat=verifier.clock.seconds)
    jwt = await verifier.client(node).submit(session, token.sign(node.key))
    return results.decode_jwt(
        jwt, verifier.service.verifying_keys(), issuer=verifier.url, now=verifier.clock.seconds
    )


def verdict(verifier: Any, result: Any) -> Any:
    workload = read_table(TABLE).workloads["tiny"]
    context = GateContext(verifier.clock.ms)
    return gates.check(NodeView("n", result=result), workload, context)


async def test_a_new_kind_goes_the_whole_way(verifier: Any, fans: None) -> None:
    """Collected, signed, checked, judged affirming, recorded, and enough for the workload that requires it."""
    result = await attest(verifier)
    fan = result.submods[SUBMOD]
    assert (fan.ear_status, dict(fan.ear_trustworthiness_vector)) == ("affirming", {"hardware": 2})
    assert verdict(verifier, result) is None
    claims = msgspec.json.decode(msgspec.json.encode(result.to_claims()))
    assert await again(verifier, result.jti) == claims


async def test_a_new_kind_can_fail(verifier: Any, fans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finding is in the result with its code, and the workload's gate is closed."""
    monkeypatch.setattr(FanCollector, "rpm", 0)
    result = await attest(verifier)
    fan = result.submods[SUBMOD]
    assert fan.ear_status == "contraindicated"
    assert [reason.code for reason in fan.ear_verifier_claims.reasons] == ["fan.stopped"]
    closed = verdict(verifier, result)
    assert (closed.code, closed.detail) == (
        "result.not-affirming",
        "fan/0 hardware is 96 (contraindicated); fan.stopped",
    )


async def test_a_kind_without_a_scheme_is_a_finding(
    verifier: Any, fans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submodule that the profile knows and no scheme checks is never dropped in silence."""
    monkeypatch.delitem(SCHEMES, "fan")
    result = await attest(verifier)
    codes = [reason.code for reason in result.submods[SUBMOD].ear_verifier_claims.reasons]
    assert codes == ["evidence.submod.unknown"]
    assert verdict(verifier, result).code == "result.not-affirming"


def test_a_policy_that_fails_is_a_malfunction_of_what_the_kind_speaks_for(fans: None) -> None:
    """−1 for the claims of its row, and for no other."""
    outcome = appraisal.malfunction([SUBMOD, "npu/0"])
    assert outcome.vectors == {SUBMOD: {"hardware": -1}, "npu/0": {"configuration": -1}}


def test_the_contract_of_policies_has_the_new_facts(fans: None) -> None:
    """The schema and the page are generated from the registry."""
    assert "FanFacts" in contract.input_schema()["$defs"]
    assert "### FanFacts" in contract.page()


def test_a_kind_that_nobody_knows_cannot_be_required() -> None:
    """A spelling mistake in the table must not exclude every node in silence."""
    with pytest.raises(Exception, match="no kind of submodule 'fan'; there are gpu, model, platform"):
        read_table(TABLE)


def test_the_registries_have_the_same_kinds() -> None:
    """Each kind is named, collected and checked."""
    assert KINDS.keys() == COLLECTORS.keys() == SCHEMES.keys()
    assert {reason.code for reason in reasons.REASONS.values()} == REASONS.keys()
