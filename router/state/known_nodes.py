"""
What the verifier has said of each node, and what may replace it.

An older result never replaces a newer one, what is revoked stays revoked (`router.state.succession`),
and a ueid belongs to one node.  A result that cannot be accepted voids nothing.  The stream's word is
enough for an incident and for its release.  But work goes to a node only by a signed, live,
affirming result, and those come from `router.state.result_reader`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import Counter

from router.model.node import NodeView
from router.state import succession
from router.state.feed_source import Event
from router.state.fleet import Fleet
from router.state.result_reader import ResultReader
from router.state.snapshot import Snapshot
from verifier.errors import ResultError
from verifier.incidents import HOLDING, State
from verifier.results import AttestationResult

MAX_NODES: Final = 1_000_000
_LOOKED_AT_AT_ONCE: Final = 1000
_FEW_ASIDE: Final = 1000
_STEP_S: Final = 1.0
_DROPPED_AT_ONCE: Final = 50
"""Nodes that are looked at or dropped before other work has its turn."""

_log = structlog.get_logger("router")
_refused = Counter("touchstone_router_results_refused_total", "Results that were not accepted.")
_set_aside = Counter("touchstone_router_results_set_aside_total", "Results before or after their time.")

ReadResult = AttestationResult | ResultError
"""A verified result, or why there is none."""


class KnownNodes:
    """
    Takes in what the verifier says, by events and by snapshots, and tells the fleet.

    Args:
        fleet: Told of each node that changes.
        reader: Tells the age of results.
        on_incident_state: Called with an incident and its state, if the verifier decides about it.
    """

    def __init__(
        self, fleet: Fleet, reader: ResultReader, on_incident_state: Callable[[str, str], None]
    ) -> None:
        self._fleet = fleet
        self._reader = reader
        self._on_incident_state = on_incident_state
        self._views: dict[str, NodeView] = {}
        self._owners: dict[str, str] = {}
        """By ueid, the node that it belongs to."""
        self._operators: dict[str, str] = {}
        """By open incident, the operator of its node."""
        self._voids: dict[str, int] = {}
        """By node that is not known, up to which number its results are revoked."""
        self._aside: set[str] = set()
        """Nodes with a result that is set aside; some had one."""
        self._coming: list[tuple[int, str]] = []
        """When the time of such a result comes, and whose it is: a heap."""
        self._promoted_off_s = reader.wall_less_monotonic()

    def __len__(self) -> int:
        return len(self._views)

    def get(self, node: str) -> NodeView | None:
        """What is known of a node."""
        return self._views.get(node)

    # By events.

    def take_result(self, node: str, result: ReadResult, digest: bytes) -> None:
        """Take in a node's new result."""
        known = self._views.get(node)
        if known is None and len(self._views) >= MAX_NODES:
            return
        before = known or NodeView(node, void=self._voids.pop(node, 0))
        view, _ = self._succeed(before, result, digest)
        if view is not before:
            self._views[node] = view
            self._tell(node)

    def revoke(self, node: str, sequence: int | None = None) -> None:
        """Take in that a node's results are revoked: up to a number, or all that are known."""
        known = self._views.get(node)
        if known is not None:
            self._views[node] = succession.void(known, sequence)
            self._tell(node)
        elif sequence is not None and len(self._voids) < MAX_NODES:
            self._voids[node] = max(self._voids.get(node, 0), sequence)

    def promote(self) -> None:
        """Let the results count that were set aside and for which the time is right by now."""
        off_s = self._reader.wall_less_monotonic()
        if abs(off_s - self._promoted_off_s) > _STEP_S:
            # The clock was set: any of them may be timely.
            self._promoted_off_s = off_s
            for node in list(self._aside):
                self._promote(node)
        while self._coming and self._reader.has_come(self._coming[0][0]):
            self._promote(heapq.heappop(self._coming)[1])

    def _promote(self, node: str) -> None:
        view = self._views.get(node)
        if view is None or view.aside is None:
            self._aside.discard(node)
        elif not self._reader.is_untimely(view.aside.result):
            self._aside.discard(node)
            self._views[node] = succession.promote(view)
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

    def _succeed(self, before: NodeView, result: ReadResult, digest: bytes) -> tuple[NodeView, bool]:
        """The view with a result that comes, which is the same view if it changes nothing; and whether that is refused."""
        if isinstance(result, ResultError):
            # Others can make us unable to read it.  The verifier revokes what must count no more.
            _note_refusal(before.node, str(result))
            return before, True
        if succession.is_known(before, result):
            # The same result again.  If it is revoked, it stays revoked, and it grows no younger.
            return before, False
        is_untimely = self._reader.is_untimely(result)
        if not succession.is_newer(before, result, is_untimely=is_untimely):
            # A replay of an old result is no way to keep a node out.
            _note_refusal(before.node, "it is older than the known one")
            return before, False
        if not self._owns(before, result):
            # The verifier contradicts itself, and with it what it said before.
            _note_refusal(before.node, "its ueid belongs to another node")
            return (before if before.result is None else replace(before, revoked=True, aside=None)), True
        if is_untimely:
            self._await_time(before.node, result)
        issued_at = self._reader.issued_at(result)
        return succession.take(before, result, digest, issued_at, is_untimely=is_untimely), False

    def _await_time(self, node: str, result: AttestationResult) -> None:
        _set_aside.inc()
        self._aside.add(node)
        heapq.heappush(self._coming, (result.iat, node))
        if len(self._coming) > 2 * len(self._aside) + _FEW_ASIDE:
            # Most of them have been replaced by now.
            self._aside = {node} | {
                n for n in self._aside if (v := self._views.get(n)) is not None and v.aside
            }
            self._coming = sorted(
                {(result.iat, node)}
                | {(a.result.iat, n) for n in self._aside - {node} if (a := self._views[n].aside) is not None}
            )

    def _owns(self, view: NodeView, result: AttestationResult) -> bool:
        """Whether a result's ueid is the node's, and no other node's."""
        known = view.result or (None if view.aside is None else view.aside.result)
        if known is not None and known.ueid != result.ueid:
            return False
        return self._owners.setdefault(result.ueid, view.node) == view.node

    def _is_good(self, view: NodeView) -> bool:
        """Whether a node has a result that is not revoked, nor signed by a key that has left."""
        return view.result is not None and not view.revoked and self._reader.is_trusted(view.token_digest)

    async def void_untrusted(self) -> None:
        """Take in that a key has left: what it has signed is void.  Other work has its turn meanwhile."""
        for number, (node, view) in enumerate(list(self._views.items())):
            if number % _LOOKED_AT_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._views.get(node) is not view:
                # It came after the key had left.
                continue
            aside = view.aside
            if aside is not None and not self._reader.is_trusted(aside.digest):
                aside = None
            revoked = view.revoked or (
                view.result is not None and not self._reader.is_trusted(view.token_digest)
            )
            if (revoked, aside) != (view.revoked, view.aside):
                self._views[node] = replace(view, revoked=revoked, aside=aside)
                self._tell(node)

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

    def take_listed(
        self, snapshot: Snapshot, node: str, result: ReadResult, digest: bytes, void: int | None = None
    ) -> None:
        """
        Take in what a snapshot's page lists for a node.

        Args:
            void: Up to which number the node's results are revoked; `None` if the page does not say.
        """
        if node in snapshot.accepted:
            self.take_result(node, result, digest)
            return
        if len(snapshot.accepted) >= MAX_NODES:
            return
        known = self._views.get(node) or NodeView(node, void=self._voids.pop(node, 0))
        held = _held(snapshot, node)
        if known.retired or known.incidents != held:
            known = replace(known, retired=False, incidents=held)
        known = known if void is None else succession.void(known, void)
        view, is_refused = self._succeed(known, result, digest)
        if is_refused:
            snapshot.refuse(node)
            if void is None or not self._is_good(view):
                # What came before may have been revoked while nobody listened.
                self._put_unlisted(snapshot, node)
                return
        snapshot.accepted.add(node)
        self._replace(view)

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
        self._voids.pop(node, None)
        if held:
            self._replace(NodeView(node, incidents=held, void=0 if known is None else known.void))
        elif known is not None:
            del self._views[node]
            self._fleet.drop_node(node)
            if known.incidents:
                self._fleet.release_node(node)

    def _replace(self, view: NodeView) -> None:
        """Replace what is known of a node by what a snapshot says of it."""
        known = self._views.get(view.node)
        if known is not None and known.result is view.result and _says_the_same(known, view):
            self._views[view.node] = view
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


def _says_the_same(one: NodeView, other: NodeView) -> bool:
    mine, others = ((v.revoked, v.retired, v.incidents, v.aside) for v in (one, other))
    return mine == others
