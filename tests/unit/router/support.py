"""Nodes, results and snapshots for the router's tests: honest, and wrong in one thing at a time."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from router.snapshot import NodeView, Snapshot
from router.standing import Standing
from router.workload import Workload
from verifier import trust
from verifier.results import Appraisal, AttestationResult, VerifierClaims, VerifierId

MODEL = "example/tiny"
ISSUER = "https://verifier.test"
NOW = 1_795_000_000
TICKS = 1000.0
PIN = "ab" * 32
WORKLOAD = Workload(MODEL)

PLATFORM: dict[str, int] = {"instance-identity": 2, "configuration": 2}
WEIGHTS: dict[str, int] = {"file-system": 2, "executables": -2}


def submod(
    vector: Mapping[str, int], assurance: str, claims: Mapping[str, Any], measured: Mapping[str, Any]
) -> Appraisal:
    return Appraisal(
        ear_status=trust.worst(vector),
        ear_trustworthiness_vector=dict(vector),
        ear_appraisal_policy_ids=("policy",),
        ear_verifier_claims=VerifierClaims(assurance=assurance, bound="true", measured=dict(measured)),
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
) -> AttestationResult:
    """An honest result of node *name*, but for what is given."""
    given = {
        "endpoint": {"url": "https://192.0.2.1", "spki_sha256": PIN} if endpoint is None else endpoint,
        "capabilities": {} if capabilities is None else capabilities,
        **(claims or {}),
    }
    submods = {
        "platform": submod(PLATFORM if platform is None else platform, platform_assurance, given, {}),
        f"model/{MODEL}": submod(
            WEIGHTS if weights is None else weights, model_assurance, {}, measured or {}
        ),
    }
    for lacking in without:
        del submods[lacking]
    return AttestationResult(
        iss=issuer,
        iat=iat,
        exp=iat + 600 if exp is None else exp,
        jti=jti or secrets.token_hex(16),
        ueid=ueid or f"ueid-{name}",
        cnf={},
        ear_verifier_id=VerifierId("d", "b"),
        ear_status=trust.worst_tier([a.ear_status for a in submods.values()]),
        submods=submods,
        status={"uri": f"{issuer}/status"},
    )


def view(name: str = "n", **given: Any) -> NodeView:
    """A node that may be trusted, but for what is given."""
    about = {key: given.pop(key) for key in ("revoked", "retired", "incidents") if key in given}
    return NodeView(name, result=ear(name, jti=f"jti-{name}", **given), **about)


def snapshot(*nodes: NodeView, standings: Mapping[str, Standing] | None = None, **given: Any) -> Snapshot:
    """A snapshot of *nodes*, with standings by node for the one model."""
    found = Snapshot(
        version=1,
        now_ms=NOW * 1000,
        monotonic=TICKS,
        nodes={node.node: node for node in nodes},
        standings={(name, MODEL): standing for name, standing in (standings or {}).items()},
    )
    return replace(found, **given)
