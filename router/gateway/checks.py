"""
Checks: nodes are asked what a trusted engine has answered already, as users ask (docs/adr/0057).

A check is one more request like those that come.  A request that comes makes one more by chance, at the rate of the
lane that it went to.  That goes to a node that a decision of its own draws from the lane, at a moment drawn from when
requests come, and through the code that sends all requests.  Nobody's budget pays for it, no record is kept of it, and
it takes no place that work needs.  The verifier, which minted the answer, judges what came.

    asks      whether the requests of a workload are written in one form
    note      a request came
    shares    how often nodes are asked, by how far they are proven
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog
from msgspec import structs
from prometheus_client import Counter

from router.choose.candidates import CandidateIndex, Key, Lane
from router.choose.decision import Decision, decide
from router.choose.ranking import WIDTH, CandidateFacts, Pool, score
from router.config import ChecksSection, GatewaySection
from router.gateway.check_run import Offered, make_request, operation_of, send
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.errors import GatewayError
from router.gateway.peers import Peers
from router.gateway.request import NodeRequest
from router.model.arrivals import Arrivals
from router.model.clock import Clock
from router.model.errors import RouterError
from router.model.traffic import Kind, ModelTraffic, describe, profile_of
from router.model.workload import Workload
from router.state.random_bytes import random_bytes
from verifier.answers.checks import Given
from verifier.answers.shapes import Profile

__all__ = ["CheckSource", "CheckSourceError", "Checks", "NoChecksError", "Offered"]

_MAX_WAITING: Final = 256
"""Checks that wait for their moment, or are under way."""
_ALL: Final = 1000
_SAMPLED: Final = 0.25
"""Once so many requests for a model were looked at, a share of the further ones is."""
_TRIES: Final = 8
"""Moments that are tried, if the node has no place beside the one that work may need."""
_ASK_AGAIN_S: Final = 60.0
"""After the verifier had no check for a model."""
_REPORT_AFTER_S: Final = (0.0, 1.0, 5.0, 30.0, 120.0)
"""Waits before each try to report."""
_HOUR_S: Final = 3600.0
_LANES: Final = (Lane.ESTABLISHED, Lane.PROBATION, Lane.DEGRADED)
"""Nodes in other lanes get no work, or have all that they may have."""

_log = structlog.get_logger("router")
_checks = Counter(
    "touchstone_router_answer_checks_total", "Checks of answers, by what became of them.", ["how"]
)


class CheckSourceError(RouterError):
    """The verifier gives no answer that can be used."""


class NoChecksError(CheckSourceError):
    """The verifier has no check for this, or knows of no such thing."""


class CheckSource(Protocol):
    """The verifier, as far as it gives checks.  What its methods raise: `CheckSourceError`, `NoChecksError`."""

    async def take(self, model: str, node: str, operation: str) -> Offered:
        """A check for this node, of one of the verifier's operations: it is used up by that."""

    async def report(self, check: str, report: dict[str, Any]) -> None:
        """Report what became of a check."""

    async def report_score(self, report: dict[str, Any]) -> bool:
        """Report what a node says of another's answer; returns whether it is taken, and not refused for ever."""


class _OneLane:
    """A `Pool` of which a decision sees one lane."""

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self._pool = pool
        self.lanes: Mapping[Lane, CandidateIndex] = {lane: pool.lanes[lane]} if pool.sizes[lane] else {}
        self.sizes = {each: (size if each is lane else 0) for each, size in pool.sizes.items()}
        self.stages = pool.stages
        self.usual_calls = pool.usual_calls

    def facts(self, node: str) -> CandidateFacts:
        return self._pool.facts(node)

    def has_full_share(self, operator: str) -> bool:
        return self._pool.has_full_share(operator)


class Checks:
    """
    Asks nodes as users do, and reports what they answer.

    Args:
        dispatcher: Sends checks as it sends work.
        config: The rates.
        limits: The gateway's times.
        source: Gives checks; `None` if there is no verifier that could.
        has_room: Whether the router has places left that no work needs.
        draw: A random number from 0 and below 1 that nobody can foretell.
        name: The router's.
        routers: The names of those that share the store, this one among them: if a node is never chosen, one of them
            asks it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        config: ChecksSection,
        limits: GatewaySection,
        clock: Clock,
        source: CheckSource | None,
        *,
        has_room: Callable[[], bool] = lambda: True,
        draw: Callable[[], float] = lambda: int.from_bytes(random_bytes(4), "little") / 2**32,
        name: str = "",
        routers: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._dispatcher = dispatcher
        self._config = config
        self._limits = limits
        self._clock = clock
        self._source = source if config.enabled else None
        self.has_room = has_room
        self._draw = draw
        self._name = name
        self._routers = routers
        self._traffic: dict[str, ModelTraffic] = {}
        self._arrivals: dict[tuple[str, Lane], Arrivals] = {}
        self._models: set[str] = set()
        """Those that the verifier has checks for."""
        self._none_until: dict[str, float] = {}
        self._asked_at: dict[tuple[str, str], float] = {}
        self._began = clock.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rates: Mapping[Lane, float] = {
            Lane.ESTABLISHED: config.established_per_mille / 1000,
            Lane.PROBATION: config.probation_per_mille / 1000,
            Lane.DEGRADED: max(config.degraded_per_mille, config.suspected_per_mille) / 1000,
        }
        dispatcher.is_unrated = self._is_unrated
        self.peers = Peers(
            dispatcher,
            limits,
            clock,
            lambda: self._source,
            has_place=lambda node, workload: self.has_room() and self._has_place(node, workload),
            draw=self.draw,
        )
        """Have real answers scored, where a workload says so."""

    def draw(self) -> float:
        """A random number from 0 and below 1 that nobody can foretell."""
        return self._draw()

    # What every request asks.

    def asks(self, workload: Workload) -> bool:
        """Whether nodes are asked about a workload's model: then all requests for it have one form."""
        return workload.model in self._models and workload.checks.enabled

    def note(self, request: NodeRequest, decision: Decision) -> None:
        """Note a request and where it goes; by chance, it is followed by a check."""
        workload = request.workload
        if not workload.checks.enabled:
            return
        self._dispatcher.salts.note(request)
        traffic = self._traffic.get(workload.model)
        if traffic is None:
            traffic = self._traffic[workload.model] = ModelTraffic()
        if traffic.requests < _ALL or self._draw() < _SAMPLED:
            traffic.note(describe(request.document, request.operation.checked_as, request.added))
        if self._source is None or decision.chosen is None:
            return
        lane = decision.chosen.lane
        rate = self._rates.get(lane)
        if rate is None:
            return
        arrivals = self._arrivals.get((workload.name, lane))
        if arrivals is None:
            arrivals = self._arrivals[workload.name, lane] = Arrivals()
        arrivals.note(self._clock.monotonic())
        if self._draw() < rate:
            self._propose(workload, lane, arrivals)

    def share(self, node: str, workload: Workload, lane: Lane | None) -> float:
        """How many checks a node gets for each request."""
        if lane is None or lane not in self._rates:
            return 0.0
        if workload.model in self._dispatcher.fleet.suspected(node):
            return self._config.suspected_per_mille / 1000
        return self._config.degraded_per_mille / 1000 if lane is Lane.DEGRADED else self._rates[lane]

    def _is_unrated(self, run: Run, node: str) -> bool:
        """As many executions leave no trace in a node's standing as there are checks among them."""
        workload = run.request.workload
        if not self.asks(workload):
            return False
        share = self.share(node, workload, self._dispatcher.fleet.lane(node, workload))
        return self._draw() * (1 + share) < share

    # What people ask.

    def profile(self) -> Profile:
        """What the traffic of each model looks like."""
        return profile_of(sorted(self._traffic.items()))

    # When a check is sent, and where to.

    def _propose(self, workload: Workload, lane: Lane, arrivals: Arrivals) -> None:
        if len(self._tasks) >= _MAX_WAITING:
            return
        if self._none_until.get(workload.model, 0.0) > self._clock.monotonic():
            return
        delay_s = arrivals.draw_delay_s(self._draw)
        if delay_s is None:
            return
        later = self._ask_later(delay_s, arrivals, workload.name, lane)
        task = asyncio.create_task(later, name="a check")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_later(self, delay_s: float | None, arrivals: Arrivals, name: str, lane: Lane) -> None:
        """Ask when a later request might come; if there is no place then, at a further such moment."""
        for _ in range(_TRIES):
            await asyncio.sleep(delay_s or 0.0)
            if await self._ask_once(name, lane):
                return
            delay_s = arrivals.draw_delay_s(self._draw)
        _checks.labels("no-place").inc()

    async def _ask_once(self, name: str, lane: Lane) -> bool:
        """Ask a node now; returns whether there is nothing more to do."""
        workload = self._dispatcher.fleet.table.workloads.get(name)
        if workload is None or self._source is None:
            return True
        try:
            return self.has_room() and await self._ask(workload, lane)
        except CheckSourceError as error:
            self._pause(workload.model, str(error))
        except Exception:  # noqa: BLE001
            # The outermost of a check, which nobody waits for.
            _log.exception("a check failed")
        return True

    def _pause(self, model: str, why: str) -> None:
        if model not in self._none_until:
            _log.info("no checks of answers", model=model, why=why[:300])
        self._none_until[model] = self._clock.monotonic() + _ASK_AGAIN_S
        _checks.labels("none").inc()

    async def _ask(self, workload: Workload, lane: Lane) -> bool:
        """Ask a node; returns `False` if there is none with a place now."""
        decision, operation = self._decide(workload, lane), self._draw_operation(workload)
        if decision is None or not self._has_place(decision.ranked[0].node, workload):
            return False
        # A lane is asked at the rate of the most suspected; others in it are passed over.
        first = decision.ranked[0]
        is_passed_over = self._draw() * self._rates[lane] >= self.share(first.node, workload, first.lane)
        if is_passed_over or operation is None or self._source is None:
            return True
        node = first.node
        result = self._dispatcher.fleet.view(node).result
        offered = await self._source.take(workload.model, node, operation)
        self._none_until.pop(workload.model, None)
        if workload.model not in self._models:
            # From now on all requests have one form.  This check comes too early: until enough of them were seen.
            self._models.add(workload.model)
            self._traffic[workload.model].forget_kinds()
        made = self._make(offered, workload)
        if made is None or result is None:
            await self._report(offered, {"node": node, "failed": "unlike"})
            return True
        if not self._has_place(node, workload):
            await self._report(offered, {"node": node, "failed": "withdrawn"})
            return True
        request, kind = self._dispatcher.salts.as_of_late(made[0], self._draw()), made[1]
        self._traffic[workload.model].note_check(kind)
        self._asked_at[node, workload.name] = self._clock.monotonic()
        asked_ms = self._clock.now_ms()
        attempt, given = await send(
            self._dispatcher, request, decision, self._limits, self._clock.monotonic()
        )
        if given is None:
            outcome = "skipped" if attempt is None else str(attempt.outcome)
            await self._report(offered, {"node": node, "failed": outcome})
        else:
            await self._report(offered, _report_of(node, result.jti, asked_ms, given))
        return True

    def _decide(self, workload: Workload, lane: Lane) -> Decision | None:
        """An ordinary decision, but for its first node: that is drawn from the lane, or was not asked for too long."""
        view = self._dispatcher.fleet.view_for(workload)
        seed = int.from_bytes(random_bytes(8), "little")
        decision = decide(view, workload, seed)
        overdue = self._overdue(workload, view.pool)
        if overdue is not None:
            key, its_lane = overdue
            first = score(key, its_lane, view.pool.facts(key[1]), workload)
        else:
            drawn = decide(structs.replace(view, pool=_OneLane(view.pool, lane)), workload, seed)
            if drawn.chosen is None:
                return None
            first = drawn.chosen
        others = tuple(each for each in decision.ranked if each.node != first.node)
        return structs.replace(decision, ranked=(first, *others)[:WIDTH])

    def _overdue(self, workload: Workload, pool: Pool) -> tuple[Key, Lane] | None:
        """A node that was asked nothing for too long, if one that is drawn from all is such a one."""
        if not self._config.at_least_every_hours:
            return None
        place = int(self._draw() * sum(pool.sizes[lane] for lane in _LANES))
        for lane in _LANES:
            if place < pool.sizes[lane]:
                key = pool.lanes[lane].at(place)
                last = self._asked_at.get((key[1], workload.name), self._began)
                is_due = self._clock.monotonic() - last >= self._config.at_least_every_hours * _HOUR_S
                return (key, lane) if is_due and self._is_own(key[1]) else None
            place -= pool.sizes[lane]
        return None

    def _is_own(self, node: str) -> bool:
        """Whether of all routers this is the one that asks a node which is never chosen (rendezvous hashing)."""
        routers = self._routers() or (self._name,)
        return (
            max(routers, key=lambda name: hashlib.sha256(f"{name}\n{node}".encode()).digest()) == self._name
        )

    def _has_place(self, node: str, workload: Workload) -> bool:
        """Whether a node may be asked now, and has a place beside the one that work may need next."""
        fleet = self._dispatcher.fleet
        if fleet.verdict(node, workload) is not None or fleet.lane(node, workload) not in _LANES:
            return False
        statistics = fleet.statistics(node, workload.standing_key)
        in_flight = 0 if statistics is None else statistics.load.in_flight
        return in_flight == 0 or in_flight + 2 <= workload.concurrency

    # What is asked.

    def _draw_operation(self, workload: Workload) -> str | None:
        """One of the verifier's operations, as often as requests have it."""
        traffic = self._traffic.get(workload.model)
        counts = {} if traffic is None else traffic.operations()
        usable = {
            name: count
            for name, count in counts.items()
            if (operation := operation_of(name)) is not None and operation.name in workload.operations
        }
        return _pick(usable, self._draw)

    def _make(self, offered: Offered, workload: Workload) -> tuple[NodeRequest, Kind] | None:
        """The check's request, if it is like those that come."""
        traffic = self._traffic[workload.model]
        encoding = _pick(traffic.encodings(offered.operation), self._draw) or ""
        table = self._dispatcher.fleet.table
        try:
            request, kind = make_request(offered, workload, table, encoding=encoding, is_asked=self.asks)
        except GatewayError as error:
            _log.warning(
                "a check that the gateway would take from nobody", model=workload.model, why=str(error)
            )
            return None
        return (request, kind) if kind is not None and traffic.admits(kind) else None

    async def _report(self, offered: Offered, report: dict[str, Any]) -> None:
        assert self._source is not None
        _checks.labels(report.get("failed", "answered")).inc()
        for wait_s in _REPORT_AFTER_S:
            await asyncio.sleep(wait_s)
            try:
                await self._source.report(offered.id, report)
            except NoChecksError as error:
                _log.warning("the verifier does not take what became of a check", why=str(error))
                return
            except CheckSourceError as error:
                _log.warning("what became of a check could not be reported", why=str(error))
            else:
                return
        _checks.labels("unreported").inc()

    async def close(self) -> None:
        """Send no more; those under way are given up."""
        self._source = None
        await self.peers.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report_of(node: str, jti: str, asked_ms: int, given: Given) -> dict[str, Any]:
    return {"node": node, "result": jti, "at_ms": asked_ms, "given": msgspec.to_builtins(given)}


def _pick(counts: Mapping[str, int], draw: Callable[[], float]) -> str | None:
    """One of the names, each as often as its count says."""
    left = draw() * sum(counts.values())
    for name, count in sorted(counts.items()):
        left -= count
        if left < 0:
            return name
    return None
