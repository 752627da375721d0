"""
Dispatch: a decision, then attempts at its nodes in order until one completes.

Until the first byte has gone to the client a failed attempt moves on to the next node; after
it the stream ends with an explicit error, never with a splice.  The outcome is decided at the
end of each attempt, and only the node's blame moves its standing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog
from prometheus_client import Counter

from router.choose.decision import Decision, decide
from router.choose.gates import GateVerdict
from router.choose.ranking import Ranked
from router.config import GatewaySection
from router.gateway.answers import Answer, with_usage
from router.gateway.exchange import ClientGoneError, Exchanges, Progress, Sink, Work
from router.model.clock import Clock
from router.model.errors import AttemptError, PoolEmptyError
from router.model.outcomes import Blame, Outcome
from router.model.tokens import (
    TokenCounter,
    Tokeniser,
    counts_all,
    estimated,
    prompt_ids,
    prompt_text,
    templates,
)
from router.model.usage import Usage, UsageMeter, UsageMismatch, is_true
from router.model.workload import Workload
from router.state.fleet import Fleet
from router.state.records import Record, Records

_OFTEN: Final = 3
"""A node that refused so many requests in a row is not taken at its word: another is asked too."""
_DOUBTFUL: Final = frozenset(
    {Outcome.CRASHED, Outcome.STALLED, Outcome.EMPTY, Outcome.UNSUPPORTED, Outcome.REFUSED}
)
_TEMPLATE_TOKENS: Final = 16
"""That a chat template may add for each message."""
_LONG: Final = 8192
"""Characters above which tokens are counted in a thread."""

_log = structlog.get_logger("router")
_outcomes = Counter("touchstone_router_outcomes_total", "How attempts ended.", ["outcome"])
_by_outcome = {outcome: _outcomes.labels(outcome) for outcome in Outcome}


@dataclass
class Run:
    """One request on its way."""

    record: Record
    work: Work
    deadline: float
    sink: Sink | None = None
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    """Attempts whose failure may be the request's doing."""
    hollow: Answer | Progress | None = None
    """A whole answer with nothing in it, for want of a better one."""
    refusal: Answer | None = None
    """What a node said that refuses often; the client's answer, where no other node completes."""
    counted: Usage | None = None
    prompt_tokens: int | None = None
    later: list[Callable[[], None]] = field(default_factory=list)
    """What is to be done once the answer is on its way: nobody waits for books to be kept."""

    @property
    def begun(self) -> bool:
        """Whether anything has gone to the client."""
        return self.sink is not None and self.sink.begun


@dataclass(frozen=True)
class _Ended:
    """How an attempt ended."""

    outcome: Outcome
    detail: str
    answer: Answer | None = None
    doubtful: bool = False
    """Whether it may be the request's doing."""


class Dispatcher:
    """Decides, tries, records."""

    def __init__(
        self, fleet: Fleet, exchanges: Exchanges, config: GatewaySection, clock: Clock, records: Records
    ) -> None:
        self.fleet = fleet
        self.records = records
        self._exchanges = exchanges
        self._config = config
        self._clock = clock
        self._meter = UsageMeter()
        self.seed: Callable[[], int] = lambda: secrets.randbits(64)
        self.tokenisers: Mapping[str, Tokeniser] = {}
        """By workload."""
        self.on_mismatch: Callable[[str, str, UsageMismatch], None] = lambda *_: None
        self.on_cheap: Callable[[str, str], None] = lambda *_: None

    def decide(self, workload: Workload, caller: str = "") -> Record:
        """Decide and keep the record."""
        decision = decide(self.fleet.snapshot(workload), workload, self.seed())
        record = Record(decision, caller)
        self.records.add(record)
        if workload.energy_floor is not None:
            for ranked in decision.ranked:
                if ranked.below_energy:
                    self.on_cheap(ranked.node, ranked.operator)
        return record

    def excluded(self, decision: Decision) -> dict[str, GateVerdict]:
        """Who was excluded from a decision, as far as that is remembered."""
        return self.fleet.excluded(decision.workload, decision.snapshot)

    def endpoints(self, record: Record) -> dict[str, dict[str, str]]:
        """Where the ranked nodes serve, with the pins of their TLS keys."""
        found = {r.node: self.fleet.view(r.node).endpoint for r in record.decision.ranked}
        return {
            node: {"url": endpoint[0], "spki_sha256": endpoint[1]}
            for node, endpoint in found.items()
            if endpoint is not None
        }

    async def run(self, run: Run) -> Answer | None:
        """
        Send the work to the nodes of a decision, in order, until one completes.

        Returns:
            The answer; `None` where it has gone to the sink.

        Raises:
            PoolEmptyError: the decision has no nodes.
            AttemptError: the last attempt's failure, when none completed; also after the
                sink has begun, which then lacks its end.
        """
        try:
            return await self._run(run)
        finally:
            run.later.append(partial(self.records.ended, run.record))

    async def _run(self, run: Run) -> Answer | None:
        decision = run.record.decision
        if not decision.ranked:
            raise PoolEmptyError(decision)
        failure = AttemptError(Outcome.BUSY, "every node was closed since the decision")
        tried = 0
        for ranked in decision.ranked:
            left = run.deadline - self._clock.monotonic()
            if left <= 0:
                failure = failure if tried else AttemptError(Outcome.TIMED_OUT, "no time was left")
                break
            if tried >= self._config.attempts:
                break
            if (verdict := self._closed_since(ranked.node, decision)) is not None:
                run.record.attempts.append(
                    {"node": ranked.node, "outcome": "skipped", "detail": verdict.code}
                )
                continue
            tried += 1
            try:
                answer = await self._attempt(run, ranked, left)
            except AttemptError as error:
                failure = error
                if run.begun or not error.outcome.may_move_on:
                    break
            else:
                if answer is None or answer.outcome is Outcome.COMPLETED:
                    self._blame(run, _DOUBTFUL)
                return answer
        if run.refusal is not None and not run.begun:
            return run.refusal
        if not run.begun and run.hollow is not None:
            # Whoever was asked had nothing to say: that is the answer.
            return await self._give_hollow(run)
        if len(run.doubtful) == 1 and tried == 1 and len(decision.ranked) == 1:
            # Nobody else to ask whether it was the request.
            self._blame(run, {Outcome.CRASHED, Outcome.STALLED})
        raise failure

    async def _give_hollow(self, run: Run) -> Answer | None:
        hollow = run.hollow
        if isinstance(hollow, Progress):
            assert run.sink is not None
            await run.sink.send(bytes(hollow.held))
            return None
        return hollow

    def _closed_since(self, node: str, decision: Decision) -> GateVerdict | None:
        """What has happened to a node since the decision: work must not go where trust has gone."""
        verdict = self.fleet.verdict(node, decision.workload)
        return None if verdict is not None and verdict.code in decision.opened else verdict

    def _blame(self, run: Run, which: AbstractSet[Outcome]) -> None:
        """
        Hold doubtful answers against the nodes that gave them.

        Only where another node completed the same request, or there was no other: what every
        node stumbles over is the request, and a client must not eject nodes with one.
        """
        for attempt in run.doubtful:
            if attempt["outcome"] in which:
                attempt["blame"] = Blame.NODE
                self.fleet.blamed(attempt["node"], run.work.workload, Outcome.CRASHED)

    async def _attempt(self, run: Run, ranked: Ranked, left: float) -> Answer | None:
        node, work = ranked.node, run.work
        self.fleet.started(node, work.workload)
        start = self._clock.monotonic()
        progress = Progress(TokenCounter(self.tokenisers.get(work.workload.name)))
        ended = _Ended(Outcome.ABANDONED, "the client went away")
        try:
            ended = await self._try(run, node, left, progress)
        finally:
            # Also where the client went away and this task was cancelled: the place is freed.
            seconds = self._clock.monotonic() - start
            entry = self._note(run, node, ended, progress, seconds)
        outcome, answer = ended.outcome, ended.answer
        if outcome is Outcome.COMPLETED:
            if answer is not None and not self._measures(work):
                run.later.append(partial(self._book, run, ranked, progress, answer, seconds, entry))
                return answer
            return await self._completed(run, ranked, progress, answer, seconds, entry)
        if outcome is Outcome.REFUSED and answer is not None:
            if not ended.doubtful:
                return answer
            run.refusal = answer
            raise AttemptError(Outcome.UNSUPPORTED, "it refuses often: another is asked")
        if outcome is Outcome.EMPTY:
            run.hollow = answer or progress
        if outcome is not Outcome.ABANDONED:
            _log.warning("an attempt failed", node=node, outcome=outcome, detail=ended.detail)
        raise AttemptError(outcome, ended.detail)

    async def _try(self, run: Run, node: str, left: float, progress: Progress) -> _Ended:
        try:
            answer = await self._ask(run, node, left, progress)
            outcome, detail = self._judge(run, progress, answer)
            return _Ended(outcome, detail, answer, doubtful=self._is_doubtful(node, run.work, outcome))
        except AttemptError as error:
            # An answer may be so long that no node has it ready in the time of an attempt.
            doubtful = not run.begun and (error.doubtful or error.outcome is Outcome.STALLED)
            return _Ended(error.outcome, str(error), doubtful=doubtful)
        except ClientGoneError:
            return _Ended(Outcome.ABANDONED, "the client went away")
        except Exception:  # noqa: BLE001
            # The outermost of an attempt: whatever it was, this node is not the client's concern.
            _log.exception("an attempt failed", node=node)
            return _Ended(Outcome.CRASHED, "the attempt failed in a way that was not foreseen")

    def _note(self, run: Run, node: str, ended: _Ended, progress: Progress, seconds: float) -> dict[str, Any]:
        """Write down how an attempt ended, and let its standing have a bad end."""
        outcome = ended.outcome
        entry: dict[str, Any] = {
            "node": node,
            "outcome": outcome,
            "blame": outcome.blame,
            "detail": ended.detail,
            "ms": int(seconds * 1000),
        }
        run.record.attempts.append(entry)
        _by_outcome[outcome].inc()
        if outcome is Outcome.COMPLETED:
            return entry
        if outcome in (Outcome.ABANDONED, Outcome.TIMED_OUT) and progress.events:
            # Who leaves before the end, or gives too little time, pays for what came.
            prompt = estimated(len(run.work.body)) if run.prompt_tokens is None else run.prompt_tokens
            run.counted = Usage(prompt, progress.text.estimate())
        if ended.doubtful:
            entry["blame"] = Blame.NOBODY
            run.doubtful.append(entry)
        counted = Outcome.UNSUPPORTED if ended.doubtful and outcome is not Outcome.REFUSED else outcome
        self.fleet.ended(node, run.work.workload, counted, seconds)
        return entry

    def _is_doubtful(self, node: str, work: Work, outcome: Outcome) -> bool:
        """Whether an answer, whole and no success, may be the request's doing."""
        if outcome is not Outcome.REFUSED:
            return outcome in _DOUBTFUL
        kept = self.fleet.kept(node, work.workload.standing_key)
        return kept is not None and kept.load.refusals_in_a_row >= _OFTEN

    async def _ask(self, run: Run, node: str, left: float, progress: Progress) -> Answer | None:
        endpoint = self.fleet.view(node).endpoint
        if endpoint is None:
            raise AttemptError(Outcome.IMPOSTOR, "the node has no endpoint any more")
        if run.sink is None:
            return await self._exchanges.whole(endpoint, run.work, left)
        return await self._exchanges.stream(endpoint, run.work, left, run.sink, progress)

    @staticmethod
    def _judge(run: Run, progress: Progress, answer: Answer | None) -> tuple[Outcome, str]:
        if answer is not None:
            if run.sink is not None and answer.outcome is Outcome.COMPLETED:
                return Outcome.CORRUPTED, "a whole answer where a stream was asked for"
            return answer.outcome, answer.detail
        if not progress.events:
            return Outcome.EMPTY, "a whole stream with nothing in it"
        return Outcome.COMPLETED, "a whole stream" if progress.done else "a whole stream without [DONE]"

    def _measures(self, work: Work) -> bool:
        """Whether what is claimed for this work is held against the router's own count."""
        return work.workload.name in self.tokenisers and not work.path.endswith("/embeddings")

    async def _completed(
        self,
        run: Run,
        ranked: Ranked,
        progress: Progress,
        answer: Answer | None,
        seconds: float,
        entry: dict[str, Any],
    ) -> Answer | None:
        """Count what was used, and book the good end; gives the answer with the router's own count."""
        try:
            run.counted = await self._count(run, progress, answer)
        except asyncio.CancelledError:
            # Who leaves while it is counted pays by the estimate.
            text = progress.text.estimate() if answer is None else _estimate_of(answer.text)
            run.counted = Usage(_estimate_of_prompt(run.work), text)
            self.fleet.ended(ranked.node, run.work.workload, Outcome.COMPLETED, seconds, credit=False)
            raise
        self._book(run, ranked, progress, answer, seconds, entry)
        if answer is not None and answer.claimed != run.counted:
            body = with_usage(answer.body, run.counted)
            return Answer(answer.status, body, answer.outcome, answer.detail, answer.text, answer.claimed)
        return answer

    def _book(
        self,
        run: Run,
        ranked: Ranked,
        progress: Progress,
        answer: Answer | None,
        seconds: float,
        entry: dict[str, Any],
    ) -> None:
        """Hold what the node says against what was counted, and let its standing have the good end."""
        work, clean = run.work, answer is not None or progress.done
        claimed = progress.claimed if answer is None else answer.claimed
        if run.counted is None:
            assert answer is not None
            run.counted = Usage(_estimate_of_prompt(work), _estimate_of(answer.text))
        counted = run.counted
        if claimed is not None and self._measures(work):
            # What the router does not count it holds against nobody.
            prompt = claimed.prompt if counts_all(work.document) else counted.prompt
            held = Usage(prompt, claimed.completion)
            allowed = Usage(counted.prompt + _TEMPLATE_TOKENS * templates(work.document), counted.completion)
            clean = clean and is_true(held, allowed)
            now = self._clock.monotonic()
            mismatch = self._meter.add(ranked.node, ranked.operator, held, allowed, now)
            if mismatch is not None:
                self.on_mismatch(ranked.node, ranked.operator, mismatch)
        token_s = None
        if progress.first_s is not None and counted.completion > 1:
            token_s = max(seconds - progress.first_s, 0.0) / (counted.completion - 1)
        self.fleet.ended(
            ranked.node,
            work.workload,
            Outcome.COMPLETED,
            seconds,
            clean=clean,
            # Who pays himself for work proves nothing by it.
            credit=not work.operator or work.operator != ranked.operator,
            first_s=progress.first_s,
            token_s=token_s,
        )
        entry["tokens"] = counted.prompt + counted.completion
        if not clean:
            entry["unclean"] = True
        if claimed is not None:
            entry["claimed"] = claimed.prompt + claimed.completion
        if progress.first_s is not None:
            entry["first_ms"] = int(progress.first_s * 1000)

    async def _count(self, run: Run, progress: Progress, answer: Answer | None) -> Usage:
        """Tokens by the router's own count: by the model's tokeniser where one is given, by bytes else."""
        if run.prompt_tokens is None:
            run.prompt_tokens = await self._tokens_of_prompt(run.work)
        if answer is None:
            long = progress.text.size > _LONG
            total = await asyncio.to_thread(progress.text.total) if long else progress.text.total()
            return Usage(run.prompt_tokens, total)
        return Usage(run.prompt_tokens, await self._tokens_of(run.work, answer.text))

    async def _tokens_of_prompt(self, work: Work) -> int:
        if work.workload.name not in self.tokenisers:
            return _estimate_of_prompt(work)
        return await self._tokens_of(work, prompt_text(work.document)) + prompt_ids(work.document)

    async def _tokens_of(self, work: Work, text: str) -> int:
        tokeniser = self.tokenisers.get(work.workload.name)
        if tokeniser is None:
            return _estimate_of(text)
        if len(text) > _LONG:
            return await asyncio.to_thread(tokeniser.count, text)
        return tokeniser.count(text)


def _estimate_of_prompt(work: Work) -> int:
    if len(work.body) > _LONG:
        # An estimate by bytes needs no more than the number of bytes.
        return estimated(len(work.body))
    return _estimate_of(prompt_text(work.document)) + prompt_ids(work.document)


def _estimate_of(text: str) -> int:
    return estimated(len(text) if text.isascii() else len(text.encode(errors="replace")))
