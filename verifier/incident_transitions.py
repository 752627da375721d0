"""
The facts that the rules of incidents take, and the transitions that they return.

Both are plain values.  `verifier.incident_rules` makes transitions from facts.
`verifier.store.incident_facts` reads the facts, and `verifier.store.incident_transitions` applies the transitions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from verifier.errors import RequestError
from verifier.incidents import BLAST_OPERATORS, HOLDING, REPORTED_NODES, Draft, Severity, State, Tally

VERIFIER: Final = "verifier"
"""The actor of the moves that no person makes."""
WHOLE_INCIDENT: Final = ""
"""The cause of a proposal to release the incident itself."""

NodeState = Literal["active", "probation", "retired"]


# Facts.


@dataclass(frozen=True)
class Proposal:
    """A release that waits for a second person."""

    cause: str
    """The cause that the incident would rest on no longer; `WHOLE_INCIDENT` for the release of the incident."""
    actor: str


@dataclass(frozen=True, kw_only=True)
class Incident:
    """An incident as it stands."""

    id: str
    kind: str
    severity: Severity
    state: State
    node_id: str | None
    """`None` for a review of a cause."""
    operator: str | None
    code: str
    detail: str
    count: int
    opened_ms: int
    causes: tuple[str, ...] = ()
    """The causes that it still rests on, sorted."""
    proposals: tuple[Proposal, ...] = ()

    @property
    def is_holding(self) -> bool:
        """Whether it keeps its node in quarantine."""
        return self.state in HOLDING


@dataclass(frozen=True)
class IncidentNode:
    """A node, with its incidents that a rule may have to look at."""

    id: str
    operator: str
    state: NodeState
    incidents: tuple[Incident, ...]
    """
    By id: those that are suspected or hold the node, those noted or flagged within the last hour,
    and those with proposals.
    """

    def is_held_without(self, ended: Collection[str]) -> bool:
        """Whether an incident holds the node that is not among the ids in *ended*."""
        return any(incident.is_holding and incident.id not in ended for incident in self.incidents)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What on the verifier's side a finding rests on, and what is known of it."""

    name: str
    """``CODE@THING``, as in a draft."""
    failed: frozenset[str]
    """Operators."""
    passed: frozenset[str]
    """Operators."""
    since_ms: int
    suspected: tuple[Incident, ...] = ()
    """The suspected incidents that rest on it, by id."""
    review: Incident | None = None
    """The open review of it."""

    @property
    def tally(self) -> Tally:
        """The operators that failed and passed, for `verifier.incidents.decide_disposition`."""
        return Tally(self.failed, self.passed, self.since_ms, reviewed=self.review is not None)


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """A router that reports, and which nodes it has reported of late."""

    cause: str
    """The cause of the incidents that rest on its reports."""
    operators: frozenset[str]
    """The operators of those nodes."""
    nodes: frozenset[str]
    """Ids of those nodes; no more of them than make it doubted."""
    review: Incident | None = None
    """The open review of it."""

    @property
    def is_doubted(self) -> bool:
        """Whether its word alone holds nobody: it speaks against too many, or a person reviews it."""
        many = len(self.operators) >= BLAST_OPERATORS or len(self.nodes) >= REPORTED_NODES
        return many or self.review is not None


@dataclass(frozen=True)
class PersonStep:
    """A step that a person takes, with the person's name and reason."""

    name: str
    actor: str
    reason: str

    def __post_init__(self) -> None:
        """Raise `RequestError` if the actor or the reason is blank."""
        if not self.actor.strip():
            raise RequestError("a step needs the name of the person who takes it")
        if not self.reason.strip():
            raise RequestError("a step needs a reason")


# Transitions.


@dataclass(frozen=True)
class Open:
    """Make an incident of a draft."""

    draft: Draft
    state: State
    node_id: str | None = None
    operator: str | None = None
    session_id: str | None = None


@dataclass(frozen=True)
class Count:
    """Count one more finding into an incident."""

    incident_id: str


@dataclass(frozen=True)
class RestOn:
    """Let an incident rest on one more cause."""

    incident_id: str
    cause: str


@dataclass(frozen=True)
class RemoveCause:
    """Remove a cause from an incident.  A proposal to release it for this cause is then fulfilled."""

    incident_id: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class Move:
    """Put an incident into a state, and write it into the history."""

    incident_id: str
    state: State
    actor: str
    reason: str
    step: str | None = None
    """The step of a person; `None` for a move of the verifier."""
    ends_proposals: bool = True


@dataclass(frozen=True, kw_only=True)
class Propose:
    """Let a release wait for a second person.  The first proposal of the same release stays the one that counts."""

    incident_id: str
    cause: str
    actor: str
    state: State
    """The state that the incident keeps."""
    reason: str


@dataclass(frozen=True)
class VoidProposals:
    """End the proposals of an incident, and write the reason into the history."""

    incident_id: str
    state: State
    """The state that the incident keeps."""
    reason: str


@dataclass(frozen=True)
class AddToTallies:
    """Remember that an operator passed or failed at causes."""

    causes: tuple[str, ...]
    operator: str
    passed: bool


@dataclass(frozen=True)
class RevokeResults:
    """Revoke the results that a node still has."""

    node_id: str


@dataclass(frozen=True)
class PutOnProbation:
    """Put an active node on probation: it must walk again before it is affirmed."""

    node_id: str


@dataclass(frozen=True)
class RetireNode:
    """Retire a node: revoke its results, and free its endpoint and its devices for others."""

    node_id: str


Transition: TypeAlias = (
    Open
    | Count
    | RestOn
    | RemoveCause
    | Move
    | Propose
    | VoidProposals
    | AddToTallies
    | RevokeResults
    | PutOnProbation
    | RetireNode
)
"""One change, to be applied in the given order and in one transaction with the facts that led to it."""
