"""
Incidents: their kinds, severities and states, and how far one mistake may reach.

    suspected ─▶ open ─▶ under-review ─▶ released (to probation) | retired
        └──────▶ folded (into one reference-suspect review)
    noted ─▶ flagged (many within an hour: a person looks at them, and may quarantine)

Only a person ends a quarantine.  `suspected` holds no node.  Soon after a change on the verifier's side
(a reference value, a batch of challenges) a failing node may be right and the verifier wrong.
So the finding waits until another operator passes at the same reference value or batch, or until the window ends.
A serious report of a router waits likewise: until another router reports the same, or until the window ends.
A cause that nobody has ever passed quarantines nobody: it opens a review of the cause.
Results fail in every case (docs/adr/0004-blast-radius.md, docs/adr/0014-what-nobody-ever-passed.md).

This module is pure.  `verifier.incident_rules` decides what to do, and `verifier.store.incidents` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from verifier import reasons
from verifier.blame import Whose, whose
from verifier.errors import RequestError
from verifier.reasons import REASONS
from verifier.schemes.findings import Finding

BLAST_WINDOW_MS: Final = 15 * 60 * 1000
"""How long after a change on the verifier's side a finding may be the verifier's own mistake."""
BLAST_OPERATORS: Final = 3
"""So many operators that fail at one cause make the cause suspect."""
NOTE_TOGETHER_MS: Final = 3600 * 1000
"""Minor findings of one node, kind and code within this time are one incident with a count."""
MANY_MINOR: Final = 10
"""A minor incident with this count is flagged for a person."""
REVIEW_TARGET_MS: Final = 24 * 3600 * 1000
REFERENCE_SUSPECT: Final = "reference-suspect"
REPORTER_SUSPECT: Final = "reporter-suspect"
ANSWER_MISMATCH: Final = reasons.ANSWER_MISMATCH
"""Answers that true weights do not give.  It comes of many checks (`verifier.store.suspicions`), never of one."""
REPORTS_WINDOW_MS: Final = 24 * 3600 * 1000
"""Over this time the nodes are counted that one router has reported."""
REPORTED_NODES: Final = 10
"""A router that alone reports so many nodes is doubted, as it is with nodes of `BLAST_OPERATORS` operators."""


class Severity(StrEnum):
    """Serious incidents quarantine; minor ones are kept and counted."""

    SERIOUS = "serious"
    MINOR = "minor"


class State(StrEnum):
    """Where an incident stands.  A minor one is noted, and flagged for a person if it is one of many."""

    NOTED = "noted"
    FLAGGED = "flagged"
    SUSPECTED = "suspected"
    OPEN = "open"
    UNDER_REVIEW = "under-review"
    RELEASED = "released"
    RETIRED = "retired"
    FOLDED = "folded"


HOLDING: Final = (State.OPEN, State.UNDER_REVIEW)
"""An incident in one of these states keeps its node in quarantine."""

SEVERITY: Final[Mapping[str, Severity]] = {
    reasons.MODEL_INTEGRITY: Severity.SERIOUS,
    "identity-spoofing": Severity.SERIOUS,
    "evidence-forgery": Severity.SERIOUS,
    "settlement-mismatch": Severity.SERIOUS,
    ANSWER_MISMATCH: Severity.SERIOUS,
    REFERENCE_SUSPECT: Severity.SERIOUS,
    REPORTER_SUSPECT: Severity.SERIOUS,
    reasons.MALFORMED: Severity.MINOR,
    reasons.UNANSWERED: Severity.MINOR,
    reasons.DECLARED_DUPLICATE: Severity.MINOR,
    "latency-spike": Severity.MINOR,
    "missed-probe": Severity.MINOR,
}
"""The severity of each kind."""

REPORTABLE: Final = frozenset({"settlement-mismatch", "latency-spike", "missed-probe"})
"""The kinds that a router may report: it has seen or metered these itself."""

REPORTER: Final = "reporter"
"""The kind of a cause that is the word of a router."""

RELEASE: Final = "release"
PERSON_STEPS: Final[Mapping[str, tuple[tuple[State, ...], State]]] = {
    "quarantine": ((State.NOTED, State.FLAGGED, State.SUSPECTED), State.OPEN),
    "review": ((State.OPEN,), State.UNDER_REVIEW),
    RELEASE: ((State.FLAGGED, State.SUSPECTED, State.OPEN, State.UNDER_REVIEW), State.RELEASED),
    "retire": ((State.FLAGGED, State.SUSPECTED, State.OPEN, State.UNDER_REVIEW), State.RETIRED),
}
"""The steps that a person may take: from which states, and to which state."""

VERIFIER_MOVES: Final = frozenset(
    {
        (State.NOTED, State.FLAGGED),
        (State.SUSPECTED, State.OPEN),
        (State.SUSPECTED, State.FOLDED),
    }
)
"""The moves that the verifier may make by itself.  None of them leaves quarantine."""


def step(state: State, name: str) -> State:
    """
    Give the state of an incident after a person's step *name*.

    Raises:
        RequestError: There is no such step, or it is not allowed from *state*.
    """
    if name not in PERSON_STEPS:
        raise RequestError(f"there is no step {name!r}. The steps are {', '.join(PERSON_STEPS)}")
    allowed, target = PERSON_STEPS[name]
    if state not in allowed:
        raise RequestError(
            f"the step {name} is not allowed for an incident that is {state}", code="incident.state"
        )
    return target


@dataclass(frozen=True)
class Draft:
    """An incident that a finding makes."""

    kind: str
    severity: Severity
    finding: Finding
    cause: str | None
    """``CODE@THING``: the finding's code with the reference value or the batch that the finding rests on."""


def drafts(findings: tuple[Finding, ...]) -> list[Draft]:
    """Give the incidents that the findings of one signed piece of evidence make, one for each kind and cause."""
    found: dict[tuple[str, str | None], Draft] = {}
    for finding in findings:
        kind = REASONS[finding.code].incident
        if kind is None or whose(finding.code) is not Whose.NODE:
            continue
        cause = None if finding.cause is None else f"{finding.code}@{finding.cause}"
        found.setdefault((kind, cause), Draft(kind, SEVERITY[kind], finding, cause))
    return list(found.values())


def report_draft(kind: str, detail: str) -> Draft:
    """
    Give the incident that a router's report makes.

    Raises:
        RequestError: A router may not report this kind.
    """
    if kind not in REPORTABLE:
        raise RequestError(f"a router may report {', '.join(sorted(REPORTABLE))}, but not {kind[:60]!r}")
    return Draft(kind, SEVERITY[kind], Finding(f"router.{kind}", detail), None)


def reported_by(code: str, reporter: str) -> str:
    """Give the cause of the incidents that rest on the reports of one router."""
    return f"{code}@{REPORTER}:{reporter}"


def is_of_reporter(cause: str) -> bool:
    """Whether a cause is the word of a router."""
    return cause.partition("@")[2].startswith(f"{REPORTER}:")


def missed_call_draft() -> Draft:
    """Give the incident that a call without evidence makes."""
    finding = Finding("weights.walk.missed", "a call was not answered")
    return Draft(reasons.UNANSWERED, SEVERITY[reasons.UNANSWERED], finding, None)


@dataclass(frozen=True)
class Tally:
    """The operators that failed and those that passed at one cause since it began."""

    failed: frozenset[str]
    passed: frozenset[str]
    """Operators, not nodes: an operator with many nodes counts once."""
    since_ms: int
    """When the cause began: the reference value came into force, or the batch was first used."""
    reviewed: bool = False
    """Whether a review of the cause is open."""


class Disposition(StrEnum):
    """What a serious finding leads to."""

    QUARANTINE = "quarantine"
    SUSPECT = "suspect"
    REFERENCE_SUSPECT = "reference-suspect"


def decide_disposition(tally: Tally, operator: str, now_ms: int) -> Disposition:
    """
    Decide whether a serious finding about a node of *operator* quarantines the node.

    The cause is suspect if three or more operators fail and no fewer fail than pass,
    as long as the cause is young or a person reviews it.  It is suspect at any age if nobody has ever passed.
    A young cause quarantines only if another operator has passed.
    """
    failed = tally.failed | {operator}
    many = len(failed) >= BLAST_OPERATORS and len(failed) >= len(tally.passed)
    young = now_ms - tally.since_ms <= BLAST_WINDOW_MS
    if many and (young or tally.reviewed):
        return Disposition.REFERENCE_SUSPECT
    if young:
        return Disposition.QUARANTINE if tally.passed - {operator} else Disposition.SUSPECT
    return Disposition.QUARANTINE if tally.passed else Disposition.REFERENCE_SUSPECT
