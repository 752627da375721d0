"""
Incidents: kinds, severities, the quarantine's states, and how far one mistake may reach.

Pure: the store asks, in the transaction that inserts a result, what to do.

    suspected ─▶ open ─▶ under-review ─▶ released (to probation) | retired
        └──────▶ folded (into one reference-suspect review)
    noted ─▶ flagged (many within an hour: a person looks, and may quarantine)

Only a person leaves quarantine.  `suspected` holds nobody: right after a change of ours
(reference, batch of challenges) a failing node may be right and we wrong, so a finding
waits for someone else to pass at the same reference or batch, or for the window to end.
What nobody has ever passed quarantines nobody: it is a review of what is ours.  Results
fail in any case (docs/adr/0004-blast-radius.md, 0014).

Where two people are asked for, a release waits as a proposal until another one takes it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from verifier import reasons
from verifier.errors import RequestError
from verifier.reasons import REASONS
from verifier.schemes.findings import Finding

BLAST_WINDOW_MS: Final = 15 * 60 * 1000
BLAST_OPERATORS: Final = 3
MANY_MINOR: Final = 10
REVIEW_TARGET_MS: Final = 24 * 3600 * 1000
REFERENCE_SUSPECT: Final = "reference-suspect"


class Severity(StrEnum):
    """Serious incidents quarantine; minor ones are kept and counted."""

    SERIOUS = "serious"
    MINOR = "minor"


class State(StrEnum):
    """Where an incident stands.  A minor one is noted, and flagged for a person when it is one of many."""

    NOTED = "noted"
    FLAGGED = "flagged"
    SUSPECTED = "suspected"
    OPEN = "open"
    UNDER_REVIEW = "under-review"
    RELEASED = "released"
    RETIRED = "retired"
    FOLDED = "folded"


HOLDING: Final = (State.OPEN, State.UNDER_REVIEW)

SEVERITY: Final[Mapping[str, Severity]] = {
    reasons.MODEL_INTEGRITY: Severity.SERIOUS,
    "identity-spoofing": Severity.SERIOUS,
    "evidence-forgery": Severity.SERIOUS,
    "settlement-mismatch": Severity.SERIOUS,
    REFERENCE_SUSPECT: Severity.SERIOUS,
    reasons.MALFORMED: Severity.MINOR,
    reasons.UNANSWERED: Severity.MINOR,
    reasons.DECLARED_DUPLICATE: Severity.MINOR,
    "latency-spike": Severity.MINOR,
    "missed-probe": Severity.MINOR,
}

REPORTABLE: Final = frozenset({"settlement-mismatch", "latency-spike", "missed-probe"})
"""What a router may report: what it has seen and metered itself."""

_STEPS: Final[Mapping[str, tuple[tuple[State, ...], State]]] = {
    "quarantine": ((State.NOTED, State.FLAGGED, State.SUSPECTED), State.OPEN),
    "review": ((State.OPEN,), State.UNDER_REVIEW),
    "release": ((State.FLAGGED, State.SUSPECTED, State.OPEN, State.UNDER_REVIEW), State.RELEASED),
    "retire": ((State.FLAGGED, State.SUSPECTED, State.OPEN, State.UNDER_REVIEW), State.RETIRED),
}
STEPS: Final = tuple(_STEPS)


def step(state: State, name: str) -> State:
    """
    The state after a person's *name* step.

    Raises:
        RequestError: not a step, or not from *state*.
    """
    if name not in _STEPS:
        raise RequestError(f"no step {name!r}; there are {', '.join(STEPS)}")
    allowed, target = _STEPS[name]
    if state not in allowed:
        raise RequestError(f"an incident that is {state} cannot be moved by {name}", code="incident.state")
    return target


def is_another(actor: str, proposer: str) -> bool:
    """Whether two names are of two people, as far as names can tell."""
    return actor.strip().casefold() != proposer.strip().casefold()


@dataclass(frozen=True)
class Draft:
    """An incident that a finding makes."""

    kind: str
    severity: Severity
    finding: Finding
    cause: str | None
    """What of ours it rests on, with the finding's code: who else fails or passes at it."""


def drafts(findings: tuple[Finding, ...]) -> list[Draft]:
    """The incidents that the findings of one signed piece of evidence make."""
    found: dict[tuple[str, str | None], Draft] = {}
    for finding in findings:
        kind = REASONS[finding.code].incident
        if kind is None:
            continue
        cause = None if finding.cause is None else f"{finding.code}@{finding.cause}"
        found.setdefault((kind, cause), Draft(kind, SEVERITY[kind], finding, cause))
    return list(found.values())


@dataclass(frozen=True)
class Tally:
    """Who failed and who passed at one cause since it came to be."""

    failed: frozenset[str]
    passed: frozenset[str]
    """Operators, not nodes: one with many nodes has one voice."""
    since_ms: int
    reviewed: bool = False
    """A review of the cause is open: a person looks at what of ours it is."""


class Disposition(StrEnum):
    """What a serious finding leads to."""

    QUARANTINE = "quarantine"
    SUSPECT = "suspect"
    REFERENCE_SUSPECT = "reference-suspect"


def disposition(tally: Tally, operator: str, now_ms: int) -> Disposition:
    """
    Whether a serious finding about *operator*'s node quarantines it.

    Three operators failing, and no fewer than pass, soon after a change or while a person looks
    at it: we are the likelier culprit.  Soon after a change and nobody else has passed yet: too
    early to tell.  Nobody has ever passed: nothing shows that ours is right.
    """
    failed = tally.failed | {operator}
    many = len(failed) >= BLAST_OPERATORS and len(failed) >= len(tally.passed)
    young = now_ms - tally.since_ms <= BLAST_WINDOW_MS
    if many and (young or tally.reviewed):
        return Disposition.REFERENCE_SUSPECT
    if young:
        return Disposition.QUARANTINE if tally.passed - {operator} else Disposition.SUSPECT
    return Disposition.QUARANTINE if tally.passed else Disposition.REFERENCE_SUSPECT
