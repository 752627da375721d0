"""
The gates that a node must pass before it can be ranked, in order.

Each gives `None`, or the verdict that closes it.  The first six fail closed: an empty pool is
an answer.  The last one, capacity, is closed to nodes that may do the work and have no room.
Some of its codes fail open if no other node is left: those nodes have lanes of their own
(`router.choose.candidates`), and the decision says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from router.model.node import NodeView, endpoint_of, revision_of
from router.model.workload import ASSURANCES, Workload
from verifier.results import AttestationResult
from verifier.trust import Tier, tier_of

FEED_SILENT_S: Final = 60.0
"""After a longer silence of the verifier, a revocation may have been missed."""
FEED_SILENT: Final = "incident.feed-silent"
PENDING: Final = "address.pending"
EXHAUSTED: Final = "result.verifier-exhausted"
NOT_AFFIRMING: Final = "result.not-affirming"
OTHER_REVISION: Final = "result.revision"
SHORTFALLS: Final = frozenset({NOT_AFFIRMING, OTHER_REVISION})
"""Codes whose detail tells who asks for work what its nodes lack."""
NOT_LIVE: Final = frozenset(
    {
        "identity.retired",
        "result.missing",
        "result.revoked",
        "result.expired",
        "result.untimely",
        "result.old",
        "result.no-submod",
    }
)
"""Codes of nodes without a live result of the model: which revision they have is not known."""
_NAMED_REVISIONS: Final = 2
_SHORT: Final = 12
_FROM_FILE: Final = "weights.walk.from-file"
_TAKES_FILES: Final = (
    "its engine shows its files alone, and a workload that takes that asks for no more than "
    "model_claims: [file-system]"
)
"""What to do about a node whose walk was one of files: it is the workload that says whether that is enough."""
_NO_CHALLENGES: Final = "challenges.exhausted"
_FOLLOWS: Final = frozenset(
    {_NO_CHALLENGES, "weights.walk.stale", "weights.walk.announced", "weights.read.unasked"}
)
"""Reasons that follow from an empty pool of challenges.  Any other one is about the node."""


class GateVerdict(Struct, frozen=True, omit_defaults=True):
    """Why a gate is closed to a node."""

    gate: str
    code: str
    detail: str
    jti: str = ""
    """The result that the node had when the gate closed; empty if it had none."""


class GateContext(Struct, frozen=True):
    """What a gate looks at beside the node itself."""

    now_ms: int
    held_since: float | None = None
    """When the first open incident of its operator's nodes was opened, Unix seconds."""
    pace: float | None = None
    """Tokens per second that routers measured in the last hour, if they measured enough."""
    monotonic: float = 0.0
    """Seconds by the clock that nobody sets."""
    refused: GateVerdict | None = None
    """Why this router may not connect to the node's address."""


Gate: TypeAlias = Callable[[NodeView, Workload, GateContext], GateVerdict | None]


def identity(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """Enrolled, not retired, with an endpoint and a pin in its result."""
    if node.retired:
        return GateVerdict("identity", "identity.retired", "the node was retired")
    if node.result is not None and node.endpoint is None:
        return GateVerdict("identity", "identity.endpoint", "its result names no proven endpoint")
    return None


def result(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """
    A live result, young enough, with every required claim affirming and the assurance.

    Its age is told by two clocks.  One of them may have been set, so the result must be young by both.  If a newer
    result is set aside because it is not of this time, that must allow the work too: bad news needs no right clock.
    """
    ear, aside = node.result, node.aside
    if ear is None and aside is None:
        return GateVerdict("result", "result.missing", "no result yet")
    if ear is not None and node.revoked:
        return GateVerdict("result", "result.revoked", f"result {ear.jti} was revoked")
    now, age_s = context.now_ms // 1000, context.monotonic - node.issued_at
    if ear is None or ear.exp <= now or age_s >= ear.exp - ear.iat:
        if aside is not None and aside.result.exp > now:
            return _untimely(aside.result, now)
        exp = aside.result.exp if aside is not None else ear.exp if ear is not None else 0
        return GateVerdict("result", "result.expired", f"it ran out at {exp}, and it is {now}")
    if now - ear.iat > workload.max_age_s or age_s >= workload.max_age_s + 1:
        return GateVerdict(
            "result", "result.old", f"issued at {ear.iat}, and {workload.max_age_s} s is the most"
        )
    verdict = _falls_short(ear, workload)
    if verdict is None and aside is not None:
        if endpoint_of(aside.result) != node.endpoint:
            return _untimely(aside.result, now)
        verdict = _falls_short(aside.result, workload)
    return verdict


def _untimely(ear: AttestationResult, now: int) -> GateVerdict:
    detail = f"its newest result is of {ear.iat} to {ear.exp}, and by the router's clock it is {now}"
    return GateVerdict("result", "result.untimely", detail)


def _falls_short(ear: AttestationResult, workload: Workload) -> GateVerdict | None:
    """What a workload requires and a result does not show."""
    for name, claims, assurance in workload.required_submods():
        found = submods_of(ear, name)
        if not found:
            return GateVerdict("result", "result.no-submod", f"its result says nothing of {name}")
        for submod in found:
            verdict = submod_falls_short(ear, submod, claims, assurance)
            if verdict is not None:
                return verdict
    return _has_other_revision(ear, workload) if workload.digests else None


def _has_other_revision(ear: AttestationResult, workload: Workload) -> GateVerdict | None:
    """Whether the model's revision is none of those that the workload requires."""
    revision = revision_of(ear, workload.model)
    if revision in workload.digests:
        return None
    asked = " or ".join(f"{digest[:_SHORT]}…" for digest in workload.digests[:_NAMED_REVISIONS])
    if len(workload.digests) > _NAMED_REVISIONS:
        asked += f" or {len(workload.digests) - _NAMED_REVISIONS} more"
    has = f"revision {revision[:_SHORT]}…" if revision else "no revision that its result names"
    return GateVerdict("result", OTHER_REVISION, f"{workload.model} is of {has}, and {asked} is asked for")


def submods_of(ear: AttestationResult, name: str) -> list[str]:
    """The submodule of this name; if it is the name of a kind, all submodules of the kind."""
    if name in ear.submods:
        return [name]
    if "/" in name:
        # Exactly this one: `model/a` must not be met by the claims of another model `a/b`.
        return []
    return sorted(submod for submod in ear.submods if submod.startswith(f"{name}/"))


def submod_falls_short(
    ear: AttestationResult, submod: str, claims: Sequence[str], assurance: str
) -> GateVerdict | None:
    """Which of the claims is not affirming in a submodule, or that its assurance is less; `None` if neither is so."""
    appraised = ear.submods[submod].ear_verifier_claims
    for claim in claims:
        value = ear.value(submod, claim)
        tier = tier_of(value)
        if tier is not Tier.AFFIRMING:
            codes = [reason.code for reason in appraised.reasons]
            if tier is not Tier.CONTRAINDICATED and _NO_CHALLENGES in codes and _FOLLOWS.issuperset(codes):
                detail = f"{submod} {claim} is {value} ({tier}): the verifier had no challenges for the node"
                return GateVerdict("result", EXHAUSTED, detail)
            reasons = ", ".join(codes) or "no reason given"
            detail = f"{submod} {claim} is {value} ({tier}); {reasons}"
            if _FROM_FILE in codes and tier is not Tier.CONTRAINDICATED:
                detail += f"; {_TAKES_FILES}"
            return GateVerdict("result", NOT_AFFIRMING, detail)
    given = appraised.assurance
    if given not in ASSURANCES or ASSURANCES.index(given) < ASSURANCES.index(assurance):
        detail = f"{submod} is {given}, and {assurance} is required"
        return GateVerdict("result", "result.assurance", detail)
    return None


def changes_in(node: NodeView, workload: Workload, context: GateContext) -> float:
    """After how many seconds time alone will next change the verdict about its result."""
    ear = node.result
    if ear is None:
        return math.inf
    now, oldest_s = context.now_ms / 1000, workload.max_age_s + 1
    age_s = context.monotonic - node.issued_at
    left = (ear.exp - now, ear.iat + oldest_s - now, ear.exp - ear.iat - age_s, oldest_s - age_s)
    return min((each for each in left if each > 0), default=math.inf)


def incident(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """
    No open quarantine, of the node or of a node that it may replace.

    If an operator enrols a node while another of its nodes is held, the new node waits for that
    review: a new name must not be worth more than a bad one (ADR 0017).
    """
    if node.incidents:
        return GateVerdict("incident", "incident.quarantine", f"incident {min(node.incidents)} is open")
    enrolled = node.enrolled
    if context.held_since is not None and enrolled is not None and enrolled >= int(context.held_since):
        detail = "enrolled after a node of its operator was quarantined, and that is not decided yet"
        return GateVerdict("incident", "incident.operator", detail)
    return None


def address(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """This router may connect to where the node serves.  That is the router's own affair, and not the node's."""
    return context.refused


def capability(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """What the node declares meets what the work needs.  Declared values can only exclude a node."""
    declared = node.capabilities

    def closed(name: str, have: object, need: object) -> GateVerdict:
        return GateVerdict("capability", f"capability.{name}", f"has {str(have)[:80]}, and {need} is needed")

    allowed = (
        ("hardware-class", node.hardware_class, workload.hardware_classes),
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


def floors(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """The verified rate and the measured pace meet the floors, and the price meets the ceiling."""
    least = workload.min_walk_bytes_per_second
    if least and node.result is not None:
        measured = node.result.submods[f"model/{workload.model}"].ear_verifier_claims.measured
        rate = measured.get("walk_bytes_per_second")
        if type(rate) is not int or rate < least:
            return GateVerdict(
                "floors", "floors.walk-rate", f"verified {rate}, and {least} bytes/s is the floor"
            )
    pace = context.pace
    if workload.min_tokens_per_second and pace is not None and pace < workload.min_tokens_per_second:
        detail = f"{pace:.1f} tokens/s in the last hour, and {workload.min_tokens_per_second} is the floor"
        return GateVerdict("floors", "floors.pace", detail)
    ceiling = workload.price_ceiling
    if ceiling is not None:
        price = workload.price_of(node.operator, node.vouched_class)
        for what, asked, most in (
            ("input", price.input, ceiling.input),
            ("output", price.output, ceiling.output),
        ):
            if asked > most:
                detail = f"{asked} for a million tokens of {what}, and {most} is the ceiling"
                return GateVerdict("floors", "floors.price", detail)
    return None


CLOSED_GATES: Final[tuple[Gate, ...]] = (identity, result, incident, address, capability, floors)
"""They fail closed, always.  `router.choose.requirements` is one more, for requests with requirements of their own."""


def check(node: NodeView, workload: Workload, context: GateContext) -> GateVerdict | None:
    """The verdict of the first gate that is closed to *node*, of those that fail closed."""
    for gate in CLOSED_GATES:
        verdict = gate(node, workload, context)
        if verdict is not None:
            return verdict
    return None


CODES: Final = {
    "identity.retired": "The node was retired.",
    "identity.endpoint": "Its result names no endpoint that the node has proven to be its own.",
    "result.missing": "The verifier has issued no result for it.",
    "result.revoked": "Its result was revoked.",
    "result.expired": "Its result has expired.",
    "result.untimely": "Its newest result is not of this time: the router's clock or the verifier's is wrong.",
    "result.old": "Its result is older than the workload allows.",
    "result.no-submod": "Its result lacks a submodule that is required.",
    NOT_AFFIRMING: "A required claim is not affirming.",
    "result.assurance": "The assurance of its result is less than what is required.",
    OTHER_REVISION: "Its revision of the model is none of those that the workload asks for.",
    EXHAUSTED: "The verifier has no challenges left, so it cannot tell; that is not the node's fault.",
    "incident.quarantine": "An incident is open; a person must review it.",
    "incident.operator": "It was enrolled while another node of its operator was in quarantine.",
    FEED_SILENT: "The verifier is silent: a revocation may have been missed.",
    "address.malformed": "Its URL is one that no router can use.",
    "address.not-allowed": "This router may not connect to its address: see `[gateway] allow_private` in `router.toml`.",
    PENDING: "This router is looking its name up before it sends work.",
    "capability.hardware-class": "Its hardware class is not one of those that the tier asks for.",
    "capability.quantisation": "Its quantisation is not one of those that the tier allows.",
    "capability.region": "Its region is not one of those that the tier allows.",
    "capability.memory": "It has too little memory.",
    "capability.context": "Its context is too short.",
    "capability.feature": "Its engine lacks a feature that the tier asks for.",
    "floors.walk-rate": "The rate that a walk verified is below the floor, or no walk has verified one.",
    "floors.pace": "The pace that routers measured is below the floor.",
    "floors.price": "Its price is above the ceiling.",
    "requirements.node": "It is none of the nodes that the caller allows, or one that the caller excludes.",
    "requirements.operator": "Its operator is none that the caller allows, or one that the caller excludes.",
    "requirements.region": "Its region is none that the caller allows, one that the caller excludes, or not named.",
    "requirements.pin": "The key of its endpoint is none that the caller has pinned.",
    "requirements.age": "Its result is older than the caller allows.",
    "requirements.walk-age": "Its last right walk of the model is older than the caller allows, or not named.",
    "requirements.kid": "Its result is signed by none of the verifier's keys that the caller names.",
    "requirements.claim": "A trust claim that the caller requires is not affirming.",
    "requirements.assurance": "The assurance of its result is less than what the caller requires.",
    "requirements.reference": "Its reference value of the model is none that the caller allows.",
    "requirements.policy": "Its result was judged by a policy that the caller does not name.",
    "requirements.result": "It has no result.",
    "capacity.full": "It has as many requests in flight as it may have.",
    "capacity.warming": "It is on probation and has as many requests in flight as its evidence allows.",
    "capacity.breaker": "It failed several times in a row and gets no work for a while.",
    "capacity.silent": "It has not answered for longer than is usual.",
}
"""Every code of a closed gate, with its sentence."""


FAIL_OPEN_CODES: Final = frozenset({"capacity.warming", "capacity.breaker", "capacity.silent"})
"""Codes of capacity that fail open if no other node is left."""


def sort_codes(codes: Iterator[str]) -> list[str]:
    """Codes in the order of the gates."""
    known = list(CODES)
    return sorted(codes, key=lambda code: known.index(code) if code in known else len(known))
