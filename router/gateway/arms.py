"""
Which of two tables a request goes by, and what becomes of it by each.

A request in the candidate's share is decided by the candidate.  Whatever the candidate cannot do, the table in force
does: if it has no node, if it fails to decide, if its nodes complete nothing.  So no request fails because of a
candidate, unless a stream breaks off that has begun.

    decide      the candidate's decision, if the request is in its share and it can decide
    fall_back   the table in force takes over
    shadow      the other table's decision, for comparison alone
    finish      what became of the request
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import prometheus_client
import structlog

from router.choose.choice import Choice
from router.choose.decision import Decision, decide
from router.choose.difference import Ask, Difference, find_difference
from router.choose.ranking import Ranked
from router.config import ApiKey
from router.gateway.attempts import Attempt, Fail, Return, find_blamed
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.errors import GatewayError
from router.gateway.measuring import size_share
from router.gateway.request import NodeRequest
from router.gateway.terms import Terms
from router.model.allowance import LEAST_ANSWER
from router.model.change import Arm
from router.model.clock import Clock
from router.model.comparison import Observation
from router.model.errors import WorkloadError
from router.model.outcomes import Blame, Outcome
from router.model.usage import Usage
from router.model.workload import Price, Table
from router.state.changes import Changes
from router.state.narrowed import NarrowedPool
from router.state.records import Record
from router.state.trial import Trial

Chosen = tuple[Choice, int]
_EXCUSED: Final = frozenset(
    {Outcome.HINDERED, Outcome.NOT_ALLOWED, Outcome.NOT_ADMITTED, Outcome.ABANDONED}
    | {outcome for outcome in Outcome if outcome.blame is Blame.NETWORK}
)
"""What says nothing of a table: the router's own doing, the client's, the network's."""

_log = structlog.get_logger("router")
_requests = prometheus_client.Counter(
    "touchstone_router_change_requests_total", "Requests while a change is live.", ["arm", "end"]
)
_seconds = prometheus_client.Histogram(
    "touchstone_router_change_seconds",
    "Until the first text, or a whole answer, as for a usual exchange.",
    ["arm"],
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
_cost = prometheus_client.Counter(
    "touchstone_router_change_cost_total", "What requests cost, in millionths of the unit.", ["arm"]
)
_differences = prometheus_client.Counter(
    "touchstone_router_change_differences_total", "What two tables decided about a request.", ["kind"]
)
_shadowing = prometheus_client.Counter(
    "touchstone_router_change_shadow_seconds_total", "What it took to decide by the other table."
)


@dataclass(kw_only=True)
class Tried:
    """One request while a change is live."""

    trial: Trial
    arm: Arm
    workload: str
    """By the table in force."""
    key: ApiKey
    named: str | None
    """The workload that the caller names, if it names one."""
    is_hurried: bool
    """Whether the caller gives it so little time that two tables do not fit in."""
    refusal: str = ""
    """Why the candidate did not take it, if it should have."""
    fell_back: bool = False
    other: Ranked | None = None
    """The node that the other table would have chosen, if that was looked up."""
    other_price: Price | None = None
    candidate: Run | None = None
    """What the candidate's nodes made of it before the table in force took over."""


class Arms:
    """The arms of requests at one router."""

    def __init__(
        self,
        changes: Changes,
        dispatcher: Dispatcher,
        terms: Terms,
        clock: Clock,
        *,
        per_second: int,
        patience_s: float,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._changes = changes
        self._dispatcher = dispatcher
        self._terms = terms
        self._clock = clock
        self._per_second = per_second
        self._patience_s = patience_s
        self.has_room = has_room
        self._tokens = float(per_second)
        self._filled_at = clock.monotonic()

    @property
    def is_sharing(self) -> bool:
        """Whether a candidate has a share of the traffic."""
        trial = self._changes.trial
        return trial is not None and trial.has_share

    def begin(self, request: NodeRequest, key: ApiKey, named: str | None, *, left_s: float) -> Tried | None:
        """Note a request that has *left_s* seconds; `None` if no change is live."""
        trial = self._changes.trial
        if trial is None:
            return None
        arm = Arm.CANDIDATE if trial.takes(request.caller, request.document) else Arm.ACTIVE
        name, is_hurried = request.workload.name, left_s < 2 * self._patience_s
        return Tried(trial=trial, arm=arm, workload=name, key=key, named=named, is_hurried=is_hurried)

    async def decide(
        self,
        tried: Tried,
        read: Callable[[Table], Awaitable[NodeRequest]],
        chosen: Chosen | None,
    ) -> tuple[NodeRequest, Record] | None:
        """
        The candidate's decision; `None` if the table in force must take the request.

        Args:
            tried: The request.
            read: Reads it by another table.
            chosen: The seed, and where it comes from, if the caller had a part in it.
        """
        if tried.arm is not Arm.CANDIDATE:
            return None
        try:
            own = await read(tried.trial.table)
            narrowed = await self._terms.narrow(own.workload, own.required, own.caller)
            record = self._dispatcher.decide(
                own.workload,
                own.caller,
                has_tools=own.has_tools,
                narrowed=narrowed,
                chosen=chosen,
                affinity=self._dispatcher.salts.affinity_of(own),
            )
        except GatewayError as error:
            tried.refusal = error.code or "unknown"
            return None
        except Exception:  # noqa: BLE001
            # Nothing of a candidate's failure may reach the caller: the table in force takes over.
            _note_error(tried.trial)
            tried.refusal = "error"
            return None
        if not record.decision.ranked:
            self._dispatcher.records.finish(record)
            tried.refusal = "no-node"
            return None
        return own, record

    def shadow(
        self,
        tried: Tried,
        request: NodeRequest,
        record: Record,
        narrowed: NarrowedPool | None,
        *,
        is_own: bool = False,
    ) -> None:
        """
        Compare a decision with the other table's, if there is time for it.

        Args:
            tried: The request.
            request: As the table in force has it.
            record: The decision that counts.
            narrowed: The nodes that meet what the caller requires, by the table in force.
            is_own: Whether the candidate has made that decision.
        """
        # What a caller requires of its own takes time to look up for another table.
        has_own = record.decision.required is not None and not is_own
        if has_own or not self._may_shadow():
            tried.trial.sight.skipped += 1
            return
        began = time.perf_counter()
        try:
            self._compare(tried, request, record, narrowed, is_own=is_own)
        except Exception:  # noqa: BLE001
            # What is only looked at must not harm the request.
            _note_error(tried.trial)
        _shadowing.inc(time.perf_counter() - began)

    def _may_shadow(self) -> bool:
        now = self._clock.monotonic()
        self._tokens = min(self._tokens + (now - self._filled_at) * self._per_second, float(self._per_second))
        self._filled_at = now
        if self._tokens < 1 or not self.has_room():
            return False
        self._tokens -= 1
        return True

    def _compare(
        self,
        tried: Tried,
        request: NodeRequest,
        record: Record,
        narrowed: NarrowedPool | None,
        *,
        is_own: bool,
    ) -> None:
        made, fleet = record.decision, self._dispatcher.fleet
        candidate: Decision | None
        if is_own:
            candidate = made
            view = fleet.view_for(request.workload, narrowed)
            active = decide(
                view,
                request.workload,
                made.seed,
                has_tools=made.has_tools,
                affinity=self._dispatcher.salts.affinity_of(request),
            )
            tried.other = active.chosen
            tried.other_price = price_of(active.chosen)
            found = find_difference(active, candidate, _ask(self._dispatcher))
        else:
            active = made
            found, candidate = self._decide_by(tried, request, made)
        costs = None
        if candidate is not None and candidate.chosen is not None and active.chosen is not None:
            typical = Usage(request.workload.typical.input, request.workload.typical.output)
            prices = price_of(candidate.chosen), price_of(active.chosen)
            costs = prices[0].charge(typical), prices[1].charge(typical)
        _differences.labels(found.kind).inc()
        tried.trial.note_difference(tried.workload, found, record.id, active, candidate, costs)

    def _decide_by(
        self, tried: Tried, request: NodeRequest, active: Decision
    ) -> tuple[Difference, Decision | None]:
        """What the candidate would have decided."""
        try:
            table, model = tried.trial.table, request.workload.model
            workload = table.route(model, tried.named, tried.key.workloads)
            if request.operation.name not in workload.operations:
                return Difference("unknown", "operation"), None
            view = self._dispatcher.fleet.view_for(workload)
            candidate = decide(
                view,
                workload,
                active.seed,
                has_tools=active.has_tools,
                affinity=self._dispatcher.salts.affinity_of(request, workload),
            )
        except WorkloadError as error:
            return Difference("unknown", error.code), None
        except Exception:  # noqa: BLE001
            # An error of the candidate is a difference like others.
            _note_error(tried.trial)
            return Difference("error"), None
        return find_difference(active, candidate, _ask(self._dispatcher)), candidate

    def must_fall_back(self, tried: Tried, run: Run, end: Return | Fail) -> bool:
        """Whether the table in force must take over: the candidate's nodes completed nothing, and nothing was sent."""
        if tried.arm is not Arm.CANDIDATE or tried.refusal or tried.fell_back:
            return False
        if any(attempt.has_begun for attempt in run.attempts) or (
            run.sink is not None and run.sink.has_begun
        ):
            return False
        is_done = isinstance(end, Return) and end.attempt.outcome is Outcome.COMPLETED
        return not is_done and self._clock.monotonic() < run.deadline

    def fall_back(self, tried: Tried, run: Run, request: NodeRequest, record: Record) -> None:
        """Have the table in force take over a request, with the whole of the router's patience."""
        tried.fell_back = True
        earlier = Run(record=run.record, request=run.request, deadline=run.deadline, first_by=run.first_by)
        earlier.attempts, earlier.last, earlier.usage = run.attempts, run.last, run.usage
        tried.candidate = earlier
        run.earlier = [*run.earlier, *run.attempts]
        run.record, run.request = record, request
        run.attempts, run.last, run.unsettled, run.prompt, run.usage = [], None, None, None, None
        run.first_by = self._clock.monotonic() + self._patience_s

    def finish(self, tried: Tried, run: Run | None, end: Return | Fail | None) -> None:
        """Note what became of a request, when all else of it is booked."""
        self._finish_candidate(tried, end)
        seen = self._observation(tried, run, end)
        how = "unclear" if seen.failed is None else "failed" if seen.failed else "completed"
        _requests.labels(seen.arm, how).inc()
        if seen.seconds is not None:
            _seconds.labels(seen.arm).observe(seen.seconds)
        _cost.labels(seen.arm).inc(seen.cost / 1e6)
        self._changes.observe(tried.trial, seen)

    def _finish_candidate(self, tried: Tried, end: Return | Fail | None) -> None:
        """Book what the candidate's nodes did before the table in force took over."""
        earlier = tried.candidate
        if earlier is None:
            return
        is_completed = isinstance(end, Return) and end.attempt.outcome is Outcome.COMPLETED
        ranked = len(earlier.record.decision.ranked)
        if is_completed and not (ranked == 1 and len(earlier.attempts) == 1):
            # Another node completed the same request, as if it had been in the same decision.
            for attempt in find_blamed(earlier.attempts, end, ranked=ranked) if end is not None else ():
                earlier.record.blame(attempt.node)
                outcome = attempt.outcome if attempt.outcome.blame is Blame.NODE else Outcome.CRASHED
                self._dispatcher.fleet.blame_node(
                    attempt.node, earlier.request.workload, outcome, attempt.number
                )
        self._dispatcher.records.finish(earlier.record)

    def _observation(self, tried: Tried, run: Run | None, end: Return | Fail | None) -> Observation:
        workload, streamed = tried.workload, run is not None and run.request.is_streamed
        stratum = f"{workload}{'/stream' if streamed else ''}"
        first = _first(run)
        revision = "" if first is None else first.revision
        if run is None or end is None or (isinstance(end, Fail) and end.outcome is Outcome.ABANDONED):
            waited = None if run is None else _waited(run)
            return Observation(
                arm=tried.arm, stratum=stratum, revision=revision, seconds=waited, is_over=False
            )
        failed = _has_failed(tried, run, end)
        completed = isinstance(end, Return) and end.attempt.outcome is Outcome.COMPLETED
        is_plain = completed and not tried.fell_back and not tried.refusal
        used = run.usage if is_plain else None
        price = price_of(_ranked(run, end)) if is_plain else Price()
        is_retried = is_plain and any(a.blame is Blame.NODE for a in run.record.attempts[:-1])
        other = None if used is None or tried.other_price is None else tried.other_price.charge(used)
        return Observation(
            arm=tried.arm,
            stratum=stratum,
            revision=revision,
            failed=failed,
            refused=bool(tried.refusal) or not run.record.decision.ranked,
            retried=is_retried,
            seconds=_seconds_of(run) if is_plain else None,
            token_s=_token_s_of(run) if is_plain else None,
            cost=0 if used is None else price.charge(used),
            other_cost=other,
            tokens=0 if used is None else used.total,
        )


def _note_error(trial: Trial) -> None:
    """Tell of the first error of a change, from where it is handled: to tell of each would hold up all other requests."""
    if not trial.has_erred:
        trial.has_erred = True
        _log.exception("a candidate fails to decide; further errors of it are only counted")


def price_of(ranked: Ranked | None) -> Price:
    """What the work of a ranked node costs, by the table that decided."""
    return Price() if ranked is None or ranked.price is None else ranked.price


def _ask(dispatcher: Dispatcher) -> Ask:
    return lambda node, decision: dispatcher.fleet.verdict(node, decision.workload)


def _ranked(run: Run, end: Return | Fail) -> Ranked | None:
    node = end.attempt.node if isinstance(end, Return) else None
    return next((ranked for ranked in run.record.decision.ranked if ranked.node == node), None)


def _first(run: Run | None) -> Attempt | None:
    attempts = [] if run is None else [*run.earlier, *run.attempts]
    return attempts[0] if attempts else None


def _has_failed(tried: Tried, run: Run, end: Return | Fail) -> bool | None:
    """Whether a request failed by its table; `None` if that says nothing of the table."""
    completed = isinstance(end, Return) and end.attempt.outcome is Outcome.COMPLETED
    if tried.refusal:
        # What no table can do is no fault of the candidate's.
        return True if completed else None
    if tried.fell_back:
        if not completed:
            return None
        return None if _is_excused(run.earlier, is_hurried=tried.is_hurried) else True
    if isinstance(end, Return):
        return False if completed else None
    if not run.record.decision.ranked:
        return True
    return None if _is_excused(run.attempts, is_hurried=tried.is_hurried) else True


def _is_excused(attempts: list[Attempt], *, is_hurried: bool) -> bool:
    """Whether no attempt failed by its node: by the network, the client, the router, or for want of the caller's time."""
    excused = [
        attempt.outcome in _EXCUSED or (is_hurried and attempt.outcome is Outcome.TIMED_OUT)
        for attempt in attempts
    ]
    return all(excused) if attempts else is_hurried


def _waited(run: Run) -> float | None:
    """How long a client that left had waited for the first text, or for a whole answer."""
    last = run.last
    if last is None or last.outcome is not Outcome.ABANDONED or last.has_begun:
        return None
    before = [attempt for attempt in (*run.earlier, *run.attempts) if attempt is not last]
    return sum(attempt.seconds for attempt in before) + last.seconds


def _token_s_of(run: Run) -> float | None:
    """For each token of a stream after the first."""
    last = run.attempts[-1] if run.attempts else None
    if last is None or last.stream is None or last.stream.first_token_s is None or run.usage is None:
        return None
    if run.usage.completion < LEAST_ANSWER or not run.request.is_evidence:
        return None
    return max(last.seconds - last.stream.first_token_s, 0.0) / (run.usage.completion - 1)


def _seconds_of(run: Run) -> float | None:
    """Until the first text, or a whole answer, failed attempts included, as for the tier's usual exchange."""
    if not run.attempts or run.usage is None:
        return None
    last, streamed = run.attempts[-1], run.attempts[-1].stream
    own = last.seconds if streamed is None else streamed.first_token_s
    if own is None:
        return None
    waited = sum(attempt.seconds for attempt in run.attempts[:-1])
    return waited + own * size_share(run.request.workload, run.usage, is_streamed=streamed is not None)
