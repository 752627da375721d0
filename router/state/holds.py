"""
Holds: what this router itself keeps nodes from work for, and what it wants people to look at.

The router acts at once on what it has metered itself, writes it to the store, and reports it to
the verifier until the verifier takes it.  Only a person ends a hold: here, or at the verifier,
whose decision comes by the feed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import structlog
from prometheus_client import Counter

from router.config import ReviewSection
from router.model.clock import Clock
from router.model.errors import HoldError
from router.model.usage import UsageMismatch
from router.state.fleet import Fleet
from router.state.reviews import ReviewWatch, waiting
from router.store import holds
from router.store.holds import Hold
from verifier.errors import StoreError
from verifier.incidents import HOLDING, State
from verifier.store.database import Database, Row, Tx
from verifier.triage import FOUND_MS, Costs, Fault, Priority, Waiting, in_order

SETTLEMENT: Final = "settlement-mismatch"
UNCONFIRMED: Final = "settlement-unconfirmed"
OUR_COUNT: Final = "token-count-suspect"
BELOW_ENERGY: Final = "price-below-energy"
ROUTER: Final = "router"
"""Who takes the steps that nobody takes."""
_RETRY_S: Final = 5.0

_log = structlog.get_logger("router")
_opened = Counter("touchstone_router_holds_total", "What the router held nodes for.", ["kind"])


class IncidentReporter(Protocol):
    """Reports a hold to the verifier."""

    async def __call__(self, hold: Hold) -> tuple[str, str]:
        """The id and the state of the verifier's incident.  Raises `HoldError` if the report is not taken."""


class Holds:
    """This router's holds, in the store that it shares with other routers."""

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        clock: Clock,
        config: ReviewSection,
        *,
        report: IncidentReporter | None = None,
        new_id: Callable[[], str] = lambda: f"r-{secrets.token_hex(8)}",
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._report = report
        self._new_id = new_id
        self._known: dict[str, Hold] = {}
        self._changes = 0
        """How often this router has begun or ended a hold."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = ReviewWatch(db)
        self._cheap_nodes: set[str] = set()
        """Nodes whose price was reported."""

    async def sync(self) -> None:
        """Bring the fleet up to what is stored, by this router before a restart and by other routers."""
        before = -1
        while before != self._changes:
            # A hold that changed while the store was read may be missing in what was read.
            before = self._changes
            async with self._db.read() as tx:
                found = {hold.id: hold for hold in await holds.list_open(tx)}
        for hold in found.values():
            if hold.id not in self._known and hold.holding and hold.node is not None:
                self._fleet.begin_hold(hold.node, hold.id)
        for hold in list(self._known.values()):
            if hold.id not in found and hold.node is not None:
                self._fleet.end_hold(hold.node, hold.id)
                if hold.holding:
                    self._fleet.release_node(hold.node)
        self._known = found

    def report_mismatch(self, node: str, operator: str, mismatch: UsageMismatch) -> None:
        """
        Hold a node for a large settlement mismatch that several clients' answers confirm.

        If the router's own count is wrong, or fewer clients may have caused it, a person is asked instead.
        """
        evidence = {
            "answers": mismatch.answers,
            "claimed_tokens": mismatch.claimed,
            "allowed_tokens": mismatch.allowed,
            "of": mismatch.what,
        }
        detail = (
            f"the node claimed {mismatch.claimed} tokens of {mismatch.what} over {mismatch.answers} answers;"
            f" at most {mismatch.allowed} were expected"
        )
        if mismatch.router_is_wrong:
            self._begin(None, "", OUR_COUNT, detail, {**evidence, "node": node}, holding=False)
        elif mismatch.is_confirmed:
            self._begin(node, operator, SETTLEMENT, detail, evidence, holding=True)
        else:
            detail += "; it does not stand without two of the clients, so the node goes on"
            self._begin(node, operator, UNCONFIRMED, detail, evidence, holding=False)

    def report_low_price(self, node: str, operator: str) -> None:
        """Ask for an audit of a price below what the energy alone costs.  The node goes on meanwhile."""
        if node not in self._cheap_nodes:
            self._cheap_nodes.add(node)
            detail = "its price is below the energy floor of the tier: what does it run on?"
            self._begin(node, operator, BELOW_ENERGY, detail, {}, holding=False)

    def ask(
        self, kind: str, detail: str, evidence: dict[str, Any], *, node: str | None = None, operator: str = ""
    ) -> None:
        """Ask a person to look at something.  It holds nobody."""
        self._begin(node, operator, kind, detail, evidence, holding=False)

    def _begin(
        self,
        node: str | None,
        operator: str,
        kind: str,
        detail: str,
        evidence: dict[str, Any],
        *,
        holding: bool,
    ) -> None:
        now_ms = self._clock.now_ms()
        hold = Hold(
            id=self._new_id(),
            node=node,
            operator=operator,
            kind=kind,
            code=f"router.{kind}",
            detail=detail,
            evidence=evidence,
            holding=holding,
            opened_ms=now_ms,
            due_ms=now_ms + self._config.target_hours * 3_600_000,
        )
        if holding and node is not None:
            # At once: work that is already decided for the node is turned away before its attempt.
            self._fleet.begin_hold(node, hold.id)
        _opened.labels(kind).inc()
        _log.warning("held" if holding else "to be reviewed", node=node, kind=kind, detail=detail)
        self._start(self._write(hold), "a hold")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, hold: Hold) -> None:
        while True:
            try:
                was_added = await self._db.write(partial(_add, hold))
                break
            except StoreError as error:
                _log.error("a hold could not be written; it is tried again", why=str(error)[:300])
                await asyncio.sleep(1)
        self._changes += 1
        if was_added:
            self._known[hold.id] = hold
            return
        await self.sync()
        if hold.node is not None:
            # Another open hold of this kind keeps the node from work.
            self._fleet.end_hold(hold.node, hold.id)

    async def run(self) -> None:
        """Report holds to the verifier, and read other routers' holds, until cancelled."""
        while True:
            try:
                await self.sync()
                await self.report_all()
                await self._watch.refresh(self._known.values(), self._clock.now_ms())
            except StoreError as error:
                _log.error("holds could not be read", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nothing would be reported or read any more.
                _log.exception("the holds failed")
            await asyncio.sleep(_RETRY_S)

    async def report_all(self) -> None:
        """Report every hold that the verifier does not know of."""
        for hold in list(self._known.values()):
            if self._report is None or hold.incident is not None or not hold.holding:
                continue
            try:
                incident, state = await self._report(hold)
            except HoldError as error:
                _log.warning("the verifier did not take a report", hold=hold.id, why=str(error)[:300])
                continue
            await self._db.write(partial(self._note_incident, hold.id, incident, state))
            if hold.id in self._known:
                self._known[hold.id] = msgspec.structs.replace(hold, incident=incident)

    async def _note_incident(self, hold_id: str, incident: str, state: str, tx: Tx) -> None:
        await holds.set_incident(tx, hold_id, incident)
        if state not in HOLDING:
            detail = f"the verifier's incident is {state[:40]} and holds nobody; this router holds the node"
            await holds.add_step(
                tx, hold_id, step="told", actor=ROUTER, reason=detail, now_ms=self._clock.now_ms()
            )

    def note_incident_state(self, incident: str, state: str) -> None:
        """End the hold that was reported as *incident*, if the verifier has decided about it."""
        if state not in (State.RELEASED, State.RETIRED, State.FOLDED):
            return
        for hold in list(self._known.values()):
            if hold.incident == incident:
                reason = f"incident {incident} is {state}"
                self._start(self._end_by_verifier(hold, reason), "a hold's end")

    def note_incident_lost(self, incident: str) -> None:
        """Report a hold again whose incident the verifier has forgotten: nobody has decided about it."""
        for hold in list(self._known.values()):
            if hold.incident == incident:
                _log.warning("the verifier has lost an incident; it is reported again", hold=hold.id)
                self._start(self._forget_incident(hold), "a hold's incident")

    async def _forget_incident(self, hold: Hold) -> None:
        try:
            await self._db.write(lambda tx: holds.set_incident(tx, hold.id, None))
        except StoreError as error:
            # The verifier's next snapshot brings it up again.
            _log.error("a hold could not be written", hold=hold.id, why=str(error)[:300])
            return
        if hold.id in self._known:
            self._known[hold.id] = msgspec.structs.replace(hold, incident=None)

    def reported_incidents(self) -> frozenset[str]:
        """The verifier's incidents whose end would end a hold."""
        return frozenset(hold.incident for hold in self._known.values() if hold.incident is not None)

    async def list_open(self) -> list[Hold]:
        """The holds that nobody has decided about."""
        async with self._db.read() as tx:
            return await holds.list_open(tx)

    async def queue(self) -> list[tuple[Hold, Waiting, Priority]]:
        """The same with what to look at first in front, and why."""
        now_ms = self._clock.now_ms()
        async with self._db.read() as tx:
            found = {hold.id: hold for hold in await holds.list_open(tx)}
            past = await holds.decided(tx, now_ms - FOUND_MS)
        costs = Costs(held=self._config.hour_held_costs, trusted=self._config.hour_trusted_costs)
        queue = in_order(waiting(found.values(), past), costs, now_ms)
        return [(found[each.id], each, priority) for each, priority in queue]

    async def show(self, hold_id: str) -> tuple[Hold, list[Row]]:
        """
        One hold, and the steps that people took.

        Raises:
            HoldError: there is none.
        """
        async with self._db.read() as tx:
            return await holds.get(tx, hold_id), await holds.steps(tx, hold_id)

    async def release(self, hold_id: str, actor: str, reason: str, fault: Fault | None = None) -> bool:
        """
        Release a node to probation, by a person's decision.

        Returns:
            Whether it is released; `False` if a second person must say so too.

        Raises:
            HoldError: there is no such hold, it is decided already, or there is no reason.
        """
        if not reason.strip():
            raise HoldError("a release needs a reason")
        released = await self._db.write(partial(self._take_release, hold_id, actor, reason, fault))
        if released is None:
            return False
        self._end(released)
        return True

    async def _take_release(
        self, hold_id: str, actor: str, reason: str, fault: Fault | None, tx: Tx
    ) -> Hold | None:
        """Release a hold, and give it; or note a proposal, and give `None`."""
        now_ms = self._clock.now_ms()
        hold = await holds.get(tx, hold_id)
        if hold.state != "open":
            raise HoldError(f"it is {hold.state} already")
        if self._config.two_person:
            proposed = [s for s in await holds.steps(tx, hold_id) if s["step"] == "propose-release"]
            others = {step["actor"] for step in proposed} - {actor}
            if not others:
                await holds.add_step(
                    tx, hold_id, step="propose-release", actor=actor, reason=reason, now_ms=now_ms
                )
                return None
        await holds.add_step(
            tx, hold_id, step="release", actor=actor, reason=reason, now_ms=now_ms, fault=fault
        )
        await holds.release(tx, hold_id)
        return hold

    async def _end_by_verifier(self, hold: Hold, reason: str) -> None:
        async def end(tx: Tx) -> None:
            now_ms = self._clock.now_ms()
            await holds.add_step(tx, hold.id, step="release", actor="verifier", reason=reason, now_ms=now_ms)
            await holds.release(tx, hold.id)

        try:
            await self._db.write(end)
        except StoreError as error:
            # The node stays held; the verifier's next snapshot brings this decision up again.
            _log.error("a hold's end could not be written", hold=hold.id, why=str(error)[:300])
            return
        self._end(hold)

    def _end(self, hold: Hold) -> None:
        self._changes += 1
        self._known.pop(hold.id, None)
        if hold.node is not None:
            self._fleet.end_hold(hold.node, hold.id)
            if hold.holding:
                self._fleet.release_node(hold.node)

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)


async def _add(hold: Hold, tx: Tx) -> bool:
    """Write a new hold with its first step: nobody but the router decided it, and why."""
    was_added = await holds.add(tx, hold)
    if was_added:
        step = "hold" if hold.holding else "ask"
        await holds.add_step(tx, hold.id, step=step, actor=ROUTER, reason=hold.detail, now_ms=hold.opened_ms)
    return was_added
