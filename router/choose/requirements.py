"""
Whether a node meets what a caller itself requires: one more gate, which fails closed.

It is asked of nodes that the workload's own gates let through, and of no others, so it can only keep nodes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from attester.kinds import model_submod
from router.choose.gates import GateContext, GateVerdict, submod_falls_short, submods_of
from router.model.node import NodeView, endpoint_of, revision_of, signer_tag, walk_at_ms
from router.model.requirements import CallerRequirements
from verifier.results import AttestationResult

_GATE: Final = "requirements"
_PLATFORM: Final = "platform"
_SHORT: Final = 12


def find_unmet(
    node: NodeView, required: CallerRequirements, model: str, context: GateContext
) -> GateVerdict | None:
    """What a caller requires and a node does not show; `None` if it meets all of it."""
    ear = node.result
    if ear is None:
        return _closed("result", "no result yet")
    if required.nodes and node.node not in required.nodes:
        return _closed("node", "it is none of the nodes that the caller allows")
    if node.node in required.not_nodes:
        return _closed("node", "the caller excludes it")
    if (verdict := _check_place(node, required)) is not None:
        return verdict
    if (verdict := _check_ages(node, ear, required, model, context)) is not None:
        return verdict
    if (verdict := _check_result(ear, node.token_digest, required, model)) is not None:
        return verdict
    aside = node.aside
    if aside is None:
        return None
    # It is set aside until its time comes, and what it does not show counts as not shown.
    if required.spki_sha256 and not _has_pin(endpoint_of(aside.result), required):
        return _closed("pin", "its newest result pins another key")
    return _check_result(aside.result, aside.digest, required, model)


def changes_in(node: NodeView, required: CallerRequirements, model: str, context: GateContext) -> float:
    """After how many seconds time alone will next change `find_unmet`."""
    ear = node.result
    if ear is None or (required.max_age_s is None and required.max_walk_age_s is None):
        return math.inf
    left = [
        limit - age
        for limit, ages in (
            (required.max_age_s, _ages_of_result(node, ear, context)),
            (required.max_walk_age_s, _ages_of_walk(node, ear, model, context)),
        )
        if limit is not None
        for age in ages
    ]
    # Just after it: an age that equals the limit is met.
    return min((each + 1e-3 for each in left if each >= 0), default=math.inf)


def _check_place(node: NodeView, required: CallerRequirements) -> GateVerdict | None:
    """Whose it is, where it is, and by which key it serves."""
    if required.operators and node.operator not in required.operators:
        return _closed("operator", f"its operator {node.operator[:80]!r} is none that the caller allows")
    if required.not_operators and node.operator in required.not_operators:
        return _closed("operator", f"the caller excludes its operator {node.operator[:80]!r}")
    if required.regions or required.not_regions:
        region = node.capabilities.get("region")
        # A node that names no region may be in one that is excluded.
        if not isinstance(region, str) or not region:
            return _closed("region", "it names no region")
        if required.regions and region not in required.regions:
            return _closed("region", f"its region {region[:80]!r} is none that the caller allows")
        if region in required.not_regions:
            return _closed("region", f"the caller excludes its region {region[:80]!r}")
    if required.spki_sha256 and not _has_pin(node.endpoint, required):
        return _closed("pin", "the key of its endpoint is none that the caller has pinned")
    return None


def _has_pin(endpoint: tuple[str, str] | None, required: CallerRequirements) -> bool:
    return endpoint is not None and endpoint[1] in required.spki_sha256


def _check_ages(
    node: NodeView, ear: AttestationResult, required: CallerRequirements, model: str, context: GateContext
) -> GateVerdict | None:
    most = required.max_age_s
    if most is not None and max(_ages_of_result(node, ear, context)) > most:
        return _closed("age", f"its result is older than {most} s")
    most = required.max_walk_age_s
    if most is not None:
        ages = list(_ages_of_walk(node, ear, model, context))
        if not ages:
            return _closed("walk-age", "its result names no right walk of the model")
        if max(ages) > most:
            return _closed("walk-age", f"its last right walk of the model is older than {most} s")
    return None


def _ages_of_result(node: NodeView, ear: AttestationResult, context: GateContext) -> Iterator[float]:
    """In seconds, by the clock that people set and by the one that nobody does: what is required must hold by both."""
    yield context.now_ms / 1000 - ear.iat
    if node.issued_at != math.inf:
        yield context.monotonic - node.issued_at


def _ages_of_walk(
    node: NodeView, ear: AttestationResult, model: str, context: GateContext
) -> Iterator[float]:
    at_ms = walk_at_ms(ear, model)
    if at_ms is None:
        return
    # The verifier has dated both, so that the router's clock is not asked how old the walk was then.
    before_s = max(ear.iat - at_ms / 1000, 0.0)
    for age_s in _ages_of_result(node, ear, context):
        yield age_s + before_s


def _check_result(
    ear: AttestationResult, digest: bytes, required: CallerRequirements, model: str
) -> GateVerdict | None:
    """Who signed a result, by which policy, and what it shows."""
    if required.kids and not any(digest.endswith(signer_tag(kid)) for kid in required.kids):
        return _closed("kid", "its result is signed by none of the keys that the caller names")
    submods = dict.fromkeys((*required.claims, *required.assurance))
    for name in submods:
        found = submods_of(ear, name)
        if not found:
            return _closed("claim", f"its result says nothing of {name}")
        for submod in found:
            claims, assurance = required.claims.get(name, ()), required.assurance.get(name, "declared")
            verdict = submod_falls_short(ear, submod, claims, assurance)
            if verdict is not None:
                what = "assurance" if verdict.code == "result.assurance" else "claim"
                return _closed(what, verdict.detail)
    revision = revision_of(ear, model)
    if required.reference and revision not in required.reference:
        has = f"{revision[:_SHORT]}…" if revision else "none that its result names"
        return _closed("reference", f"its reference value of {model} is {has}")
    if required.policies:
        judged = [
            _PLATFORM,
            model_submod(model),
            *(each for name in submods for each in submods_of(ear, name)),
        ]
        for submod in dict.fromkeys(judged):
            appraisal = ear.submods.get(submod)
            ids = () if appraisal is None else appraisal.ear_appraisal_policy_ids
            if not set(ids) & set(required.policies):
                return _closed("policy", f"{submod} was judged by {', '.join(ids)[:120] or 'no policy'}")
    return None


def _closed(what: str, detail: str) -> GateVerdict:
    return GateVerdict(_GATE, f"{_GATE}.{what}", detail)
