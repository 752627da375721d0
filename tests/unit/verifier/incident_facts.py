"""Facts for the rules of incidents."""

from __future__ import annotations

from typing import Any

from verifier.incident_rules import record_passes, take_finding
from verifier.incident_transitions import (
    VERIFIER,
    Cause,
    Incident,
    IncidentNode,
    Move,
    PersonStep,
    Transition,
)
from verifier.incidents import (
    BLAST_WINDOW_MS,
    REFERENCE_SUSPECT,
    Draft,
    Severity,
    State,
    report_draft,
)
from verifier.schemes.findings import Finding

NOW = 10**12
OLD = NOW - BLAST_WINDOW_MS - 1
READ, MANIFEST = "weights.read.wrong@batch:7", "weights.manifest.mismatch@reference:ab"
KIND = "model-integrity-failure"
SERIOUS = Draft(KIND, Severity.SERIOUS, Finding("weights.read.wrong", "d", cause="batch:7"), READ)
METERED = report_draft("settlement-mismatch", "claims 10 times what was metered")
SPIKE = report_draft("latency-spike", "40 times its median")
NODE = IncidentNode("n", "acme", "active", ())


def incident(state: State, id_: str = "i", **given: Any) -> Incident:
    facts: dict[str, Any] = {
        "kind": KIND,
        "severity": Severity.SERIOUS,
        "node_id": "n",
        "operator": "acme",
        "code": "weights.read.wrong",
        "detail": "d",
        "count": 1,
        "opened_ms": NOW - 1,
        "causes": (READ,),
    }
    return Incident(id=id_, state=state, **{**facts, **given})


def spike(state: State = State.NOTED, **given: Any) -> Incident:
    facts: dict[str, Any] = {"kind": SPIKE.kind, "severity": Severity.MINOR, "code": SPIKE.finding.code}
    return incident(state, **{**facts, "causes": (), **given})


def review(**given: Any) -> Incident:
    facts: dict[str, Any] = {"kind": REFERENCE_SUSPECT, "node_id": None, "operator": None}
    return incident(State.OPEN, "review", **{**facts, **given})


def node(*incidents: Incident, state: Any = "active") -> IncidentNode:
    return IncidentNode("n", "acme", state, incidents)


def cause(name: str = READ, *, failed: str = "", passed: str = "", since: int = NOW, **given: Any) -> Cause:
    return Cause(name=name, failed=frozenset(failed), passed=frozenset(passed), since_ms=since, **given)


def take(draft: Draft, of: IncidentNode, at: Cause | None = None) -> tuple[Transition, ...]:
    return take_finding(draft, of, at, "session", NOW)


def person(name: str, actor: str = "ada") -> PersonStep:
    return PersonStep(name, actor, "looked")


def verifier_move(incident_id: str, state: State, reason: str) -> Move:
    return Move(incident_id=incident_id, state=state, actor=VERIFIER, reason=reason)


def passes(*passed: str, suspected: tuple[Incident, ...] = (), **given: Any) -> tuple[Transition, ...]:
    facts: dict[str, Any] = {"node_state": "active", "operator": "b", "is_held": False}
    return record_passes(passed, suspected=suspected, **{**facts, **given})
