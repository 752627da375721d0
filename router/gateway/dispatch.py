"""
The dispatcher: a decision, then attempts at its nodes in order until one completes.

Until the first text has gone to the client, a failed attempt moves on to the next node.  After
it the stream ends with an explicit error, unless workload and caller want another node to go on
(`router.gateway.continuing`).  The outcome is decided at the end of each attempt; only a node's
own faults change its standing.

    run      attempts, each followed by `decide_next`
    settle   records a completed attempt: the node's standing, usage, the record
    finish   records what could wait until the answer was on its way
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import prometheus_client
import structlog
from msgspec import structs

from router.choose.choice import Choice
from router.choose.decision import Decision, decide
from router.choose.gates import GateVerdict
from router.choose.ranking import Ranked
from router.gateway.attempts import (
    Attempt,
    Continue,
    Fail,
    Return,
    decide_next,
    find_blamed,
)
from router.gateway.continuing import FreshSink, make_continuing
from router.gateway.exchange import Exchange
from router.gateway.exchanges import Exchanges
from router.gateway.measuring import earns_credit, measure
from router.gateway.metering import Metering, ReviewQueue
from router.gateway.run import Run
from router.gateway.salting import Salts
from router.model.allowance import Seen, allow
from router.model.clock import Clock
from router.model.outcomes import Blame, Execution, Outcome
from router.model.tokens import TokenCounter
from router.model.usage import Usage
from router.model.workload import Workload
from router.state.fleet import Fleet
from router.state.narrowed import NarrowedPool
from router.state.prober import ADDRESS_REFUSED
from router.state.random_bytes import random_bytes
from router.state.records import AttemptRecord, Record, Records

__all__ = ["Dispatcher", "Run", "closed_since"]

_NOTHING: Final = TokenCounter(None)
"""Of an answer that is not streamed: its text comes whole."""
_OFTEN_REFUSED: Final = 3
"""If a node refused so many requests in a row, another node is asked too."""

_log = structlog.get_logger("router")
_outcomes = prometheus_client.Counter("touchstone_router_outcomes_total", "How attempts ended.", ["outcome"])
_by_outcome = {outcome: _outcomes.labels(outcome) for outcome in Outcome}


class Dispatcher:
    """Decides, tries, records."""

    def __init__(
        self,
        fleet: Fleet,
        exchanges: Exchanges,
        clock: Clock,
        *,
        records: Records,
        metering: Metering,
        reviews: ReviewQueue,
        seed: Callable[[], int] = lambda: int.from_bytes(random_bytes(8), "little"),
    ) -> None:
        self.fleet = fleet
        self.records = records
        self.metering = metering
        self._exchanges = exchanges
        self._clock = clock
        self._reviews = reviews
        self.salts = Salts(clock)
        self.seed = seed
        self.is_unrated: Callable[[Run, str], bool] = lambda _run, _node: False
        """Draws by lot whether an execution at a node leaves no trace in its standing; see `Execution`."""

    def decide(
        self,
        workload: Workload,
        caller: str = "",
        *,
        has_tools: bool = False,
        narrowed: NarrowedPool | None = None,
        chosen: tuple[Choice, int] | None = None,
        affinity: str | None = None,
    ) -> Record:
        """
        Decide which nodes may do the work, and keep the record.

        Args:
            workload: What the work requires.
            caller: For whom.
            has_tools: Whether the work may call tools.
            narrowed: The nodes that meet what the caller itself requires, if it requires anything.
            chosen: The seed, and where it comes from, if the caller had a part in it.
            affinity: The key by which requests that begin alike find the same node.
        """
        choice, seed = (None, self.seed()) if chosen is None else chosen
        view = self.fleet.view_for(workload, narrowed)
        decision = decide(view, workload, seed, has_tools=has_tools, choice=choice, affinity=affinity)
        record = Record(decision, caller)
        self.records.add(record)
        if workload.energy_floor is not None:
            for ranked in decision.ranked:
                if ranked.below_energy:
                    self._reviews.report_low_price(ranked.node, ranked.operator)
        return record

    def excluded(self, decision: Decision) -> dict[str, GateVerdict]:
        """The nodes that a decision excluded, as far as that is remembered."""
        is_known = decision.table in self.fleet.tables()
        found = self.fleet.excluded(decision.workload, decision.snapshot) if is_known else {}
        if decision.required is None or not is_known:
            return found
        return found | self.fleet.narrowings.excluded(decision.workload, decision.required, decision.at_ms)

    def shortfalls(self, decision: Decision) -> Counter[str]:
        """What nodes lack that a decision's workload or its caller requires, and how many nodes lack it."""
        if decision.is_unmet and decision.required is not None:
            return self.fleet.narrowings.shortfalls(decision.workload, decision.required)
        return self.fleet.shortfalls(decision.workload)

    def endpoints(self, record: Record) -> dict[str, dict[str, str]]:
        """Where the ranked nodes serve, with the pins of their TLS keys."""
        found = {r.node: self.fleet.view(r.node).endpoint for r in record.decision.ranked}
        return {
            node: {"url": endpoint[0], "spki_sha256": endpoint[1]}
            for node, endpoint in found.items()
            if endpoint is not None
        }

    def stop(self) -> None:
        """Note that the router is stopping: what breaks off from now on is its own doing."""
        self._exchanges.is_stopping = True

    def close(self) -> None:
        """End the threads."""
        self._exchanges.aside.close()

    async def run(self, run: Run) -> Return | Fail:
        """
        Send the work to the nodes of a decision, in order, until one completes.

        Returns:
            What the client gets.  A stream's events have gone to the sink already; after
            `Fail` it may have begun, and lacks its end.
        """
        ranked = run.record.decision.ranked
        run.continuing = make_continuing(run.request, run.says, self.fleet, self.metering)
        end = await self._try_all(run, ranked)
        if isinstance(end, Return) and end.attempt.outcome is Outcome.UNHONOURED and not run.is_scoring:
            end = Return(await self._charge(run, end.attempt))
        blamed = [] if run.is_scoring else find_blamed(run.attempts, end, ranked=len(ranked))
        for attempt in blamed:
            run.record.blame(attempt.node)
            # What is nobody's in itself turned out to be a failure of the node, of no kind of its own.
            is_of_a_kind = attempt.outcome.blame is Blame.NODE or attempt.outcome is Outcome.UNHONOURED
            outcome = attempt.outcome if is_of_a_kind else Outcome.CRASHED
            self.fleet.blame_node(attempt.node, run.request.workload, outcome, attempt.number)
        return end

    async def _try_all(self, run: Run, ranked: tuple[Ranked, ...]) -> Return | Fail:
        for candidate in ranked:
            now = self._clock.monotonic()
            left_s = min(run.deadline, run.first_by) - now
            if left_s <= 0 and not run.attempts:
                return Fail(Outcome.TIMED_OUT)
            sent = [attempt for attempt in run.attempts if attempt.outcome is not Outcome.NOT_ALLOWED]
            if left_s <= 0 or len(sent) >= self._exchanges.config.attempts:
                break
            if (verdict := closed_since(self.fleet, candidate.node, run.record.decision)) is not None:
                skipped = AttemptRecord(node=candidate.node, outcome="skipped", detail=verdict.code)
                run.record.attempts.append(skipped)
                continue
            if run.seam is not None and (why := run.seam.obstacle(candidate.node)):
                run.record.attempts.append(AttemptRecord(node=candidate.node, outcome="skipped", detail=why))
                continue
            await self._attempt(run, candidate, now)
            step = run.next_step()
            if isinstance(step, Fail) and await run.goes_on(self._clock, self._exchanges.config.timeout_s):
                continue
            if not isinstance(step, Continue):
                return step
        if run.seam is not None:
            return Fail(run.seam.parts[-1].attempt.outcome)
        end = decide_next(run.attempts, is_exhausted=True)
        assert not isinstance(end, Continue)
        return end

    async def _attempt(self, run: Run, candidate: Ranked, now: float) -> None:
        """Try one node; its attempt is added to the run."""
        request, node, parts = run.asked, candidate.node, run.continuing
        sink = run.sink if run.sink is None or run.seam is None else FreshSink(run.sink)
        statistics = self.fleet.statistics(node, request.workload.standing_key)
        seen = Seen() if statistics is None else statistics.seen
        allowed = allow(self._exchanges.limits, seen, request.size, is_streamed=request.is_streamed)
        view = self.fleet.view(node)
        endpoint, revision = view.endpoint, view.revision(request.workload.model)
        if sink is not None:
            sink.name_revision(revision)
        text = self.metering.counter_for(request) if sink is not None else _NOTHING
        number = self.fleet.start_work(node, request.workload, is_check=run.is_check)
        exchange = Exchange(
            self._exchanges,
            candidate,
            endpoint,
            self.salts.write(request, view.engine),
            allowed=allowed,
            left_s=run.deadline - now,
            first_left_s=run.first_by + allowed.extra_s - now,
            is_gone=partial(self._is_gone, node),
            sink=sink,
            text=text,
            number=number,
            keeps_text=parts is not None,
            splice=None if parts is None else parts.splice(),
        )
        attempt: Attempt | None = None
        try:
            attempt = await exchange.run()
            # What a node got for the size of the request, or for its signs of life, takes nothing from the next.
            run.first_by += exchange.lent_s
        finally:
            # Also if the client went away and this task was cancelled, the node's place must be freed.
            attempt = structs.replace(
                attempt or exchange.abandoned(),
                revision=revision,
                view=view,
                price=candidate.price,
                carried=0 if parts is None else parts.tokens,
            )
            if attempt.outcome is Outcome.REFUSED and self._refuses_often(node, request.workload):
                attempt = structs.replace(attempt, is_doubtful=True)
            run.last = attempt
            _by_outcome[attempt.outcome].inc()
            run.record.attempts.append(_record_of(run, attempt))
            if attempt.outcome is not Outcome.COMPLETED:
                self._settle_failed(run, attempt)
            if attempt.outcome is Outcome.NOT_ALLOWED and endpoint is not None:
                self.fleet.addresses.set_verdict(node, endpoint[0], ADDRESS_REFUSED)
        if attempt.outcome is Outcome.COMPLETED:
            attempt = await self._complete(run, attempt)
        elif attempt.outcome not in (Outcome.ABANDONED, Outcome.REFUSED):
            _log.warning("an attempt failed", node=node, outcome=attempt.outcome, detail=attempt.detail)
        run.attempts.append(attempt)

    def _is_gone(self, node: str) -> bool:
        """Whether a node has answered no probe for so long that it is taken to be gone."""
        heartbeat = self.fleet.heartbeat(node)
        return heartbeat is not None and heartbeat.ends()[1] <= self._clock.monotonic()

    def _refuses_often(self, node: str, workload: Workload) -> bool:
        statistics = self.fleet.statistics(node, workload.standing_key)
        return statistics is not None and statistics.load.refusals_in_a_row >= _OFTEN_REFUSED

    async def _complete(self, run: Run, attempt: Attempt) -> Attempt:
        """
        Count what a completed attempt used, and settle it.

        An answer whose claim is not judged is settled after it was sent (`finish`), unless its end tells the usage.
        """
        if run.is_scoring:
            # Nobody is billed, and no claim is judged: hardly an engine counts such a prompt as the router would.
            _end_work(self, run, attempt, Execution(attempt.outcome, attempt.seconds))
            return attempt
        if not self._must_count(run, attempt):
            run.unsettled = attempt
            return attempt
        counted: Attempt | None = None
        try:
            counted = await self._count(run, attempt)
        finally:
            if counted is None:
                # The caller left while tokens were counted, and pays by the estimate.
                uncredited = Execution(Outcome.COMPLETED, attempt.seconds, earns_credit=False)
                _end_work(self, run, attempt, uncredited)
                run.charge(self.metering.estimate(run.request, attempt))
        self.settle(run, counted)
        return counted

    def _must_count(self, run: Run, attempt: Attempt) -> bool:
        """Whether its tokens must be counted before the client gets its end."""
        if attempt.answer is not None:
            return self.metering.judges(run.request)
        return run.tells_usage or self.metering.has_tokeniser(run.request)

    async def _count(self, run: Run, attempt: Attempt) -> Attempt:
        """The attempt with the router's own count."""
        if run.prompt is None:
            run.prompt = await self.metering.count_prompt(run.request)
        answer = await self.metering.count_answer(run.request, attempt)
        counted = Usage(run.prompt.tokens, answer.tokens)
        return structs.replace(attempt, counted=counted, is_exact=run.prompt.is_exact and answer.is_exact)

    async def _charge(self, run: Run, attempt: Attempt) -> Attempt:
        """Charge the client for an answer that it gets although the answer does not keep to all of the request."""
        run.charge(self.metering.estimate(run.request, attempt))
        if self._must_count(run, attempt):
            attempt = await self._count(run, attempt)
            run.charge(attempt.counted)
            # What is claimed for it is judged as for any other.
            self.metering.judge_claim(run.request, attempt)
        return attempt

    def settle(self, run: Run, attempt: Attempt) -> None:
        """Record a completed attempt: compare the claim with the count, and credit the node."""
        request, stream = run.request, attempt.stream
        counted = attempt.counted or self.metering.estimate(request, attempt)
        run.charge(counted)
        # Each claim is judged, also that of a stream without its last event.
        is_claim_true = self.metering.judge_claim(request, attempt)
        is_clean = is_claim_true and (stream is None or stream.is_done)
        _end_work(self, run, attempt, measure(request, attempt, counted, is_clean=is_clean))
        first_token_s = None if stream is None else stream.first_token_s
        run.record.complete_last(
            tokens=counted.total,
            unclean=not is_clean,
            claimed=None if attempt.claimed is None else attempt.claimed.total,
            first_ms=None if first_token_s is None else int(first_token_s * 1000),
        )

    def _settle_failed(self, run: Run, attempt: Attempt) -> None:
        """Record an attempt that did not complete."""
        if attempt.outcome in (Outcome.ABANDONED, Outcome.TIMED_OUT):
            prompt_tokens = None if run.prompt is None else run.prompt.tokens
            charged = self.metering.charge_unfinished(run.request, attempt, prompt_tokens)
            run.charge(charged)
        is_unproven = attempt.is_doubtful and attempt.outcome.blame is Blame.NODE
        counted = Outcome.UNSUPPORTED if is_unproven else attempt.outcome
        execution = Execution(
            counted,
            attempt.seconds,
            earns_credit=earns_credit(run.request, attempt),
            calls_are_valid=None if attempt.kept is None else attempt.kept.calls_are_valid,
        )
        _end_work(self, run, attempt, execution)

    def finish(self, run: Run) -> None:
        """Record what could wait until the answer was on its way."""
        unsettled, run.unsettled = run.unsettled, None
        try:
            if unsettled is not None:
                self.settle(run, unsettled)
        finally:
            self.records.finish(run.record)


def _end_work(dispatcher: Dispatcher, run: Run, attempt: Attempt, execution: Execution) -> None:
    if run.is_scoring:
        execution = Execution(Outcome.UNSUPPORTED, attempt.seconds, is_unrated=True)
    elif dispatcher.is_unrated(run, attempt.node):
        execution = replace(execution, is_unrated=True)
    workload = run.request.workload
    dispatcher.fleet.end_work(attempt.node, workload, execution, attempt.number, is_check=run.is_check)


def closed_since(fleet: Fleet, node: str, decision: Decision) -> GateVerdict | None:
    """The gate that closed to a node since the decision: work must not go to a node that lost its trust."""
    verdict = fleet.verdict(node, decision.workload)
    if verdict is not None and verdict.code not in decision.opened:
        return verdict
    if decision.required is None:
        return None
    return fleet.narrowings.verdict(fleet.view(node), decision.workload, decision.required)


def _record_of(run: Run, attempt: Attempt) -> AttemptRecord:
    """The record of an attempt whose usage is not counted yet."""
    return AttemptRecord(
        continues="" if run.seam is None else run.seam.parts[-1].attempt.node,
        node=attempt.node,
        outcome=attempt.outcome,
        blame=Blame.NOBODY if attempt.is_doubtful else attempt.outcome.blame,
        detail=attempt.detail,
        revision=attempt.revision,
        ms=int(attempt.seconds * 1000),
    )
