"""
What the verifier has said of each node, and what may replace it.

An older result never replaces a newer one, what is revoked stays revoked, and a ueid belongs to
one node.  The stream's word is enough for an incident and for its release.  But work goes to a
node only by a signed, live, affirming result, and those come from `router.state.result_reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import structlog
from prometheus_client import Counter

from router.model.node import NodeView
from router.state.feed_source import Event
from router.state.fleet import Fleet
from router.state.snapshot import Snapshot
from verifier.errors import ResultError
from verifier.incidents import HOLDING, State
from verifier.results import AttestationResult

MAX_NODES: Final = 1_000_000
_LOOKED_AT_AT_ONCE: Final = 1000
_DROPPED_AT_ONCE: Final = 50
"""Nodes that are looked at or dropped before other work has its turn."""

_log = structlog.get_logger("router")
_refused = Counter("touchstone_router_results_refused_total", "Results that were not accepted.")

ReadResult = AttestationResult | ResultError
"""A verified result, or why there is none."""


class KnownNodes:
    """
    Takes in what the verifier says, by events and by snapshots, and tells the fleet.

    Args:
        fleet: Told of each node that changes.
        on_incident_state: Called with an incident and its state, if the verifier decides about it.
    """

    def __init__(self, fleet: Fleet, on_incident_state: Callable[[str, str], None]) -> None:
        self._fleet = fleet
        self._on_incident_state = on_incident_state
        self._views: dict[str, NodeView] = {}
        self._owners: dict[str, str] = {}
        """By ueid, the node that it belongs to."""
        self._operators: dict[str, str] = {}
        """By open incident, the operator of its node."""

    def __len__(self) -> int:
        return len(self._views)

    def get(self, node: str) -> NodeView | None:
        """What is known of a node."""
        return self._views.get(node)

    # By events.

    def take_result(self, node: str, result: ReadResult, digest: bytes) -> None:
        """Take in a node's new result."""
        self._accept(node, result, digest)
        self._tell(node)

    def revoke(self, node: str) -> None:
        """Take in that a node's result is revoked."""
        known = self._views.get(node)
        if known is not None:
            self._views[node] = replace(known, revoked=True)
            self._tell(node)

    def retire(self, node: str) -> None:
        """Take in that a node is retired."""
        known = self._views.get(node)
        if known is not None or len(self._views) < MAX_NODES:
            self._views[node] = replace(known or NodeView(node), retired=True)
            self._tell(node)

    def take_incident(self, node: str, incident: str, event: Event) -> None:
        """Take in where an incident of a node stands."""
        before = self._views.get(node, NodeView(node))
        if event.state in HOLDING:
            if node in self._views or len(self._views) < MAX_NODES:
                self._views[node] = replace(before, incidents=before.incidents | {incident})
            if event.operator is not None and event.opened is not None:
                self._operators[incident] = event.operator
                self._fleet.set_operator_incident(event.operator, incident, event.opened)
        else:
            self._end_incident(before, incident, event.state)
        self._tell(node)

    def _end_incident(self, before: NodeView, incident: str, state: str | None) -> None:
        if before.node in self._views:
            self._views[before.node] = replace(before, incidents=before.incidents - {incident})
        operator = self._operators.pop(incident, None)
        if operator is not None:
            self._fleet.set_operator_incident(operator, incident, None)
        if incident in before.incidents and state == State.RELEASED:
            self._fleet.release_node(before.node)
        if state is not None:
            self._on_incident_state(incident, state)

    def _accept(self, node: str, result: ReadResult, digest: bytes) -> None:
        if isinstance(result, ResultError):
            self._refuse(node, str(result))
            return
        known = self._views.get(node)
        before = None if known is None else known.result
        if not self._owns(node, result) or (before is not None and before.ueid != result.ueid):
            self._refuse(node, "its ueid belongs to another node")
            return
        if before is not None:
            if result.iat < before.iat:
                # A replay of an old result is no way to keep a node out.
                _note_refusal(node, "it is older than the known one")
                return
            if result.jti == before.jti:
                # The same result again.  If it is revoked, it stays revoked.
                return
        if known is not None or len(self._views) < MAX_NODES:
            self._views[node] = replace(
                known or NodeView(node), result=result, token_digest=digest, revoked=False
            )

    def _owns(self, node: str, result: AttestationResult) -> bool:
        return self._owners.setdefault(result.ueid, node) == node

    def _refuse(self, node: str, why: str) -> None:
        """Refuse a result.  The previous result is void too, because the verifier has replaced it."""
        _note_refusal(node, why)
        known = self._views.get(node)
        if known is not None:
            self._views[node] = replace(known, revoked=True)

    def _tell(self, node: str) -> None:
        view = self._views.get(node)
        if view is not None:
            self._fleet.put_node(view)

    # By snapshots.

    def begin(self, snapshot: Snapshot) -> None:
        """
        Hold the nodes that a new snapshot's incidents hold.

        What is held counts at once, before any result: no node is let in that the verifier
        holds.  What is held no more is let go with the node's page.
        """
        for node, held in snapshot.held.items():
            known = self._views.get(node)
            before = frozenset() if known is None else known.incidents
            if not held <= before:
                self._views[node] = replace(known or NodeView(node), incidents=before | held)
                self._tell(node)
        for incident, (operator, opened) in snapshot.operators.items():
            self._operators[incident] = operator
            self._fleet.set_operator_incident(operator, incident, opened)

    def take_listed(self, snapshot: Snapshot, node: str, result: ReadResult, digest: bytes) -> None:
        """Take in what a snapshot's page lists for a node."""
        if node in snapshot.accepted:
            self.take_result(node, result, digest)
            return
        why = ""
        if isinstance(result, ResultError):
            why = str(result)
        elif not self._owns(node, result):
            why = "its ueid belongs to another node"
        if isinstance(result, ResultError) or why:
            _note_refusal(node, why)
            snapshot.refuse(node)
            self._put_unlisted(snapshot, node)
            return
        if len(snapshot.accepted) < MAX_NODES:
            snapshot.accepted.add(node)
            view = NodeView(node, result=result, token_digest=digest, incidents=_held(snapshot, node))
            self._replace(_not_older(view, self._views.get(node)))

    async def end(self, snapshot: Snapshot) -> None:
        """Drop what no page of a whole snapshot told of; other work has its turn meanwhile."""
        unlisted = []
        for number, node in enumerate(self._views):
            if number % _LOOKED_AT_AT_ONCE == 0:
                await asyncio.sleep(0)
            if node not in snapshot.accepted:
                unlisted.append(node)
        for number, node in enumerate(unlisted):
            if number % _DROPPED_AT_ONCE == 0:
                await asyncio.sleep(0)
            self._put_unlisted(snapshot, node)
        for incident in self._operators.keys() - snapshot.operators.keys():
            self._fleet.set_operator_incident(self._operators.pop(incident), incident, None)
        self.note_ended(snapshot.ended)

    def note_ended(self, incidents: Iterable[str]) -> None:
        """Take in that the verifier lists incidents no more whose end this router waits for."""
        for incident in incidents:
            self._on_incident_state(incident, State.RELEASED)

    def _put_unlisted(self, snapshot: Snapshot, node: str) -> None:
        """Take in that a node has no result; if the snapshot does not hold it either, it is forgotten."""
        held = _held(snapshot, node)
        known = self._views.get(node)
        if held:
            self._replace(NodeView(node, incidents=held))
        elif known is not None:
            del self._views[node]
            self._fleet.drop_node(node)
            if known.incidents:
                self._fleet.release_node(node)

    def _replace(self, view: NodeView) -> None:
        """Replace what is known of a node by what a snapshot says of it."""
        known = self._views.get(view.node)
        if known is not None and known.result is view.result and _says_the_same(known, view):
            return
        self._views[view.node] = view
        self._fleet.put_node(view)
        if known is not None and known.incidents - view.incidents:
            # The verifier decided while nobody listened.
            self._fleet.release_node(view.node)


def _note_refusal(node: str, why: str) -> None:
    _refused.inc()
    _log.warning("a result was refused", node=node[:64], why=why[:300])


def _held(snapshot: Snapshot, node: str) -> frozenset[str]:
    return snapshot.held.get(node, frozenset())


def _not_older(view: NodeView, known: NodeView | None) -> NodeView:
    """A view from a page, unless the known result is newer, or is the same and revoked."""
    if known is None or known.result is None or view.result is None:
        return view
    same = known.result.jti == view.result.jti
    if known.result.iat > view.result.iat or (same and known.revoked):
        return replace(view, result=known.result, token_digest=known.token_digest, revoked=known.revoked)
    return view


def _says_the_same(one: NodeView, other: NodeView) -> bool:
    return (one.revoked, one.retired, one.incidents) == (other.revoked, other.retired, other.incidents)
