"""
The gates, in order.  The first five fail closed: an empty pool is an answer.

Each gives `None` or the verdict that closed it.  The breaker alone may fail open, and then
the decision says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from router.snapshot import NodeView, Snapshot
from router.workload import ASSURANCES, Workload
from verifier.trust import Tier, tier_of

FEED_SILENT_S: Final = 60.0
"""Longer without a word from the verifier, and a revocation may have been missed."""


@dataclass(frozen=True)
class Verdict:
    """Why a gate is closed to a node."""

    gate: str
    code: str
    detail: str


BREAKER: Final = "capacity.breaker"
"""The one verdict that gives way when nobody else is left."""

Gate: TypeAlias = Callable[[NodeView, Workload, Snapshot], Verdict | None]


def identity(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """Enrolled, not retired, with an endpoint and a pin in its result."""
    if node.retired:
        return Verdict("identity", "identity.retired", "the node was retired")
    if node.result is not None and node.endpoint is None:
        return Verdict("identity", "identity.endpoint", "its result names no proven endpoint")
    return None


def result(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """A live result, young enough, with every required claim affirming and the assurance."""
    ear = node.result
    if ear is None:
        return Verdict("result", "result.missing", "no result yet")
    if node.revoked:
        return Verdict("result", "result.revoked", f"result {ear.jti} was revoked")
    now = snapshot.now_ms // 1000
    if ear.exp <= now:
        return Verdict("result", "result.expired", f"expired {now - ear.exp} s ago")
    if now - ear.iat > workload.max_age_s:
        return Verdict("result", "result.old", f"{now - ear.iat} s old, at most {workload.max_age_s}")
    model = f"model/{workload.model}"
    required = (
        ("platform", workload.platform_claims, workload.platform_assurance),
        (model, workload.model_claims, workload.model_assurance),
    )
    for submod, claims, assurance in required:
        if submod not in ear.submods:
            return Verdict("result", "result.no-submod", f"its result says nothing of {submod}")
        for claim in claims:
            value = ear.value(submod, claim)
            tier = tier_of(value)
            if tier is not Tier.AFFIRMING:
                reasons = [r.code for r in ear.submods[submod].ear_verifier_claims.reasons]
                detail = f"{submod} {claim} is {value} ({tier}); {', '.join(reasons) or 'no reason given'}"
                return Verdict("result", "result.not-affirming", detail)
        given = ear.submods[submod].ear_verifier_claims.assurance
        if given not in ASSURANCES or ASSURANCES.index(given) < ASSURANCES.index(assurance):
            return Verdict("result", "result.assurance", f"{submod} is {given}, and {assurance} is required")
    return None


def incident(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """No open quarantine; closed for all while the verifier is silent."""
    if snapshot.feed_silent_s > FEED_SILENT_S:
        return Verdict(
            "incident", "incident.feed-silent", f"nothing heard for {snapshot.feed_silent_s:.0f} s"
        )
    if node.incidents:
        return Verdict("incident", "incident.quarantine", f"incident {min(node.incidents)} is open")
    return None


def capability(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """What the node declares meets what the work needs; declared values can only exclude."""
    declared = node.capabilities

    def closed(name: str, have: object, need: object) -> Verdict:
        return Verdict("capability", f"capability.{name}", f"has {str(have)[:80]}, and {need} is needed")

    allowed = (
        ("hardware-class", declared.get("hardware_class"), workload.hardware_classes),
        ("quantisation", declared.get("quantisation"), workload.quantisations),
        ("region", declared.get("region"), workload.regions),
    )
    for name, have, options in allowed:
        if options and have not in options:
            return closed(name, have, " or ".join(options))
    floors = (
        ("memory", declared.get("memory_bytes"), workload.min_memory_bytes),
        ("context", declared.get("context_length"), workload.min_context),
    )
    for name, have, least in floors:
        if least and not (type(have) is int and have >= least):
            return closed(name, have, least)
    listed = declared.get("features", ())
    features = {f for f in listed if isinstance(f, str)} if isinstance(listed, (list, tuple)) else set()
    if missing := set(workload.features) - features:
        return closed("feature", sorted(features), min(missing))
    return None


def floors(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """The verified rate meets the floor; no rate does not."""
    least = workload.min_walk_bytes_per_second
    if not least or node.result is None:
        return None
    measured = node.result.submods[f"model/{workload.model}"].ear_verifier_claims.measured
    rate = measured.get("walk_bytes_per_second")
    if type(rate) is not int or rate < least:
        return Verdict("floors", "floors.walk-rate", f"verified {rate}, and {least} bytes/s is the floor")
    return None


def capacity(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """Room for one more, and the breaker closed."""
    standing = snapshot.standing(node.node, workload.model)
    # Room first: it never gives way, and the breaker may.
    if standing.in_flight >= workload.concurrency:
        return Verdict("capacity", "capacity.full", f"{standing.in_flight} requests under way")
    if not standing.breaker_is_closed(snapshot.monotonic):
        return Verdict("capacity", BREAKER, f"{standing.failures_in_a_row} failures in a row")
    return None


CLOSED_GATES: Final[tuple[Gate, ...]] = (identity, result, incident, capability, floors)
"""They fail closed, always."""


def check(node: NodeView, workload: Workload, snapshot: Snapshot) -> Verdict | None:
    """The first gate of those that fail closed that is closed to *node*."""
    for gate in CLOSED_GATES:
        verdict = gate(node, workload, snapshot)
        if verdict is not None:
            return verdict
    return None
