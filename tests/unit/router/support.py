"""Nodes, results and snapshots for the router's tests: honest, and wrong in one thing at a time."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from router.choose import decision
from router.choose.decision import Decision
from router.choose.gates import GateVerdict
from router.model.clock import Clock
from router.model.load import Load
from router.model.node import NodeView
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from verifier import trust
from verifier.results import Appraisal, AttestationResult, NodeRecord, ReasonEntry, VerifierClaims, VerifierId

MODEL = "example/tiny"
ISSUER = "https://verifier.test"
NOW = 1_795_000_000
TICKS = 1000.0
PIN = "ab" * 32
WORKLOAD = Workload(MODEL, name="tiny")

PLATFORM: dict[str, int] = {"instance-identity": 2, "configuration": 2}
WEIGHTS: dict[str, int] = {"file-system": 2, "executables": -2}


def submod(
    vector: Mapping[str, int],
    assurance: str,
    claims: Mapping[str, Any],
    measured: Mapping[str, Any],
    record: NodeRecord | None = None,
) -> Appraisal:
    return Appraisal(
        ear_status=trust.worst(vector),
        ear_trustworthiness_vector=dict(vector),
        ear_appraisal_policy_ids=("policy",),
        ear_verifier_claims=VerifierClaims(
            assurance=assurance, bound="true", measured=dict(measured), node=record
        ),
        ear_attester_claims=dict(claims),
    )


def ear(
    name: str = "n",
    *,
    iat: int = NOW,
    exp: int | None = None,
    issuer: str = ISSUER,
    platform: Mapping[str, int] | None = None,
    weights: Mapping[str, int] | None = None,
    platform_assurance: str = "declared",
    model_assurance: str = "challenged",
    endpoint: Any = None,
    capabilities: Any = None,
    claims: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    jti: str | None = None,
    ueid: str | None = None,
    without: tuple[str, ...] = (),
    operator: str | None = None,
    enrolled: int = NOW - 86400,
    hardware_class: str = "cpu",
    sequence: int | None = None,
    reasons: tuple[str, ...] = (),
    revision: str | None = None,
    cnf: dict[str, Any] | None = None,
    prompting: Mapping[str, str] | None = None,
) -> AttestationResult:
    """An honest result of node *name*, but for what is given."""
    given = {
        "endpoint": {"url": "https://192.0.2.1", "spki_sha256": PIN} if endpoint is None else endpoint,
        "capabilities": {} if capabilities is None else capabilities,
        **(claims or {}),
    }
    submods = {
        "platform": submod(
            PLATFORM if platform is None else platform,
            platform_assurance,
            given,
            {},
            None if operator is None else NodeRecord(operator, enrolled, "active", hardware_class),
        ),
        f"model/{MODEL}": submod(
            WEIGHTS if weights is None else weights, model_assurance, {}, measured or {}
        ),
    }
    model = submods[f"model/{MODEL}"]
    found = tuple(ReasonEntry(code, "because") for code in reasons)
    said = msgspec.structs.replace(
        model.ear_verifier_claims, reasons=found, reference=revision, prompting=dict(prompting or {})
    )
    submods[f"model/{MODEL}"] = msgspec.structs.replace(model, ear_verifier_claims=said)
    for lacking in without:
        del submods[lacking]
    return AttestationResult(
        iss=issuer,
        iat=iat,
        exp=iat + 600 if exp is None else exp,
        jti=jti or secrets.token_hex(16),
        ueid=ueid or f"ueid-{name}",
        cnf=cnf or {},
        ear_verifier_id=VerifierId("d", "b"),
        ear_status=trust.worst_tier([a.ear_status for a in submods.values()]),
        submods=submods,
        status={"uri": f"{issuer}/status"},
        ear_touchstone_sequence=sequence,
    )


def view(name: str = "n", **given: Any) -> NodeView:
    """A node that may be trusted, but for what is given."""
    about = {key: given.pop(key) for key in ("revoked", "retired", "incidents") if key in given}
    return NodeView(name, result=ear(name, jti=f"jti-{name}", **given), **about)


@dataclass(frozen=True)
class Given:
    """What a router knows at one moment, put together in the order of its nodes."""

    nodes: Mapping[str, NodeView]
    standings: Mapping[str, Standing] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    holds: Mapping[str, float] = field(default_factory=dict)
    """By operator, since when one of its nodes is held."""
    now_ms: int = NOW * 1000
    monotonic: float = TICKS
    silent_s: float = 0.0

    def fleet(self, workload: Workload = WORKLOAD) -> Fleet:
        silent_ms = int(self.silent_s * 1000)
        at = [self.now_ms - silent_ms, self.monotonic - self.silent_s]
        clock = Clock(lambda: int(at[0]), lambda: at[1])
        made = Fleet(Table([workload]), clock)
        made.note_verifier_contact()
        at[:] = self.now_ms, self.monotonic
        for operator, since in self.holds.items():
            made.set_operator_incident(operator, "i", since)
        for node in self.nodes.values():
            made.put_node(node)
        for name, standing in self.standings.items():
            made.restore_statistics(name, workload.standing_key, StatisticsAggregate(standing))
        for name, load in self.loads.items():
            if (kept := made.statistics(name, workload.standing_key)) is None:
                made.restore_statistics(
                    name, workload.standing_key, StatisticsAggregate(Standing(at=self.now_ms / 1000))
                )
                kept = made.statistics(name, workload.standing_key)
            assert kept is not None
            kept.load = Load(load.in_flight, load.failures_in_a_row, load.open_until)
            made.put_node(self.nodes[name])
        return made


def snapshot(*nodes: NodeView, **given: Any) -> Given:
    """A moment with *nodes*."""
    return Given({node.node: node for node in nodes}, **given)


def decide(given: Given, workload: Workload = WORKLOAD, seed: int = 0) -> Decision:
    return decision.decide(given.fleet(workload).view_for(workload), workload, seed)


def excluded(given: Given, workload: Workload = WORKLOAD) -> dict[str, GateVerdict]:
    made = given.fleet(workload)
    made.advance()
    return made.excluded(workload)


def nodes_of(ranked: Iterable[Any]) -> list[str]:
    return [entry.node for entry in ranked]
