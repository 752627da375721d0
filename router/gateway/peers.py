"""
Peers: another operator's node scores a sample of real answers (docs/adr/0060).

Only where a workload says so (``checks: {peers: …}``), for a second node sees the prompt.  The caller waits for nothing:
its answer is out before the other node is asked, and its bill, records and receipts know nothing of that.  Nor does the
standing of the other node: nobody else asks this of it, so it could be told from work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
import structlog
from msgspec import structs
from prometheus_client import Counter

from router.choose.candidates import Lane
from router.choose.decision import Decision, decide
from router.choose.ranking import Ranked
from router.config import GatewaySection
from router.gateway.attempts import Attempt
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.request import NodeRequest
from router.gateway.sse import EventError, EventParser
from router.model import dialects, peers
from router.model.answers import DONE
from router.model.clock import Clock
from router.model.errors import RouterError
from router.model.outcomes import Outcome
from router.model.peers import Score, UnableError
from router.model.workload import Workload
from router.state.random_bytes import random_bytes
from router.state.records import Record

OPT_OUT_HEADER: Final = "X-Touchstone-Peers"
"""With any value: the caller's prompt is shown to no second node."""
_MAX_STREAM: Final = 1 << 20
"""Bytes of a stream whose text is put together: an event has some hundred bytes for a word."""
_MAX_SCORES: Final = 16 << 20
"""Bytes of an answer with scores."""
_MAX_WAITING: Final = 32
_DECISIONS: Final = 4
"""Decisions that are made for one answer: the nodes of one may all be of the operator that answered."""
_UNABLE_S: Final = 3600.0
"""For so long a node that gives no scores is not asked for any."""
_MAX_UNABLE: Final = 4096
_REPORT_AFTER_S: Final = (0.0, 1.0, 5.0, 30.0, 120.0)
"""Waits before each try to report."""
_LANES: Final = (Lane.ESTABLISHED, Lane.PROBATION)
"""The word of a node that is itself suspected says little."""
_ANSWERED: Final = (Outcome.COMPLETED, Outcome.EMPTY, Outcome.UNHONOURED)
"""The one token that was asked for may well be the end."""

_log = structlog.get_logger("router")
_scores = Counter(
    "touchstone_router_peer_scores_total", "Answers that peers scored, by what became of it.", ["how"]
)


class Reporting(Protocol):
    """The verifier, as far as it takes scores."""

    async def report_score(self, report: dict[str, Any]) -> bool:
        """Report a score; returns whether the verifier has taken it or never will.  Raises `RouterError`."""


class Overheard:
    """One answer that was drawn, while it goes to its client."""

    def __init__(self, owner: Peers, request: NodeRequest) -> None:
        self._owner = owner
        self._request = request
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """What of a stream was sent."""
        if len(self._data) <= _MAX_STREAM:
            self._data += data

    def end(self, attempt: Attempt | None) -> None:
        """The request has ended, with this attempt if with any."""
        if attempt is None or attempt.outcome is not Outcome.COMPLETED or len(self._data) > _MAX_STREAM:
            return
        operation = self._request.operation.checked_as
        if attempt.answer is not None:
            if len(attempt.answer.body) > _MAX_STREAM:
                return
            documents = [dialects.decode(attempt.answer.body)]
        else:
            try:
                events = EventParser().feed(bytes(self._data))
                documents = [dialects.decode(each.data) for each in events if each.data != DONE]
            except EventError:
                return
        text = peers.text_of(documents, operation)
        if text is not None:
            self._owner.score_soon(self._request, attempt, text)


class Peers:
    """
    Has answers scored, and reports the scores.

    Args:
        reporting: The verifier; gives `None` if nothing is to be asked.
        has_place: Whether a node may be asked now, and has a place that no work needs.
        draw: A random number from 0 and below 1 that nobody can foretell.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: GatewaySection,
        clock: Clock,
        reporting: Callable[[], Reporting | None],
        *,
        has_place: Callable[[str, Workload], bool],
        draw: Callable[[], float],
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._clock = clock
        self._reporting = reporting
        self._has_place = has_place
        self._draw = draw
        self._unable: dict[tuple[str, str], float] = {}
        """By node and model, until when it is asked for no scores."""
        self._tasks: set[asyncio.Task[None]] = set()

    def sample(self, request: NodeRequest, headers: Mapping[str, str]) -> Overheard | None:
        """Draw whether the answer to a request is to be scored."""
        checks = request.workload.checks
        if not checks.peers or not checks.enabled or self._reporting() is None:
            return None
        # Who requires something of its node has not required it of a second one.
        if request.required is not None or OPT_OUT_HEADER in headers or len(request.body) > peers.MAX_BYTES:
            return None
        if self._draw() * 1000 >= checks.peers:
            return None
        is_one = peers.may_be_scored(request.document, request.operation.checked_as)
        return Overheard(self, request) if is_one else None

    def score_soon(self, request: NodeRequest, attempt: Attempt, text: str) -> None:
        """Have an answer scored, by a task that nobody waits for."""
        if len(self._tasks) >= _MAX_WAITING:
            _scores.labels("no-place").inc()
            return
        task = asyncio.create_task(self._score(request, attempt, text), name="a score")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _score(self, request: NodeRequest, attempt: Attempt, text: str) -> None:
        try:
            how = await self._ask(request, attempt, text)
        except Exception:  # noqa: BLE001
            # The outermost of a score, which nobody waits for.
            _log.exception("an answer could not be scored")
            how = "failed"
        _scores.labels(how).inc()

    async def _ask(self, request: NodeRequest, attempt: Attempt, text: str) -> str:
        """Ask a peer, and report what it says; returns what became of it."""
        workload, view = request.workload, attempt.view
        if view is None or view.result is None or not attempt.revision or not attempt.operator:
            return "unknown"
        decision = self._decide(workload, attempt)
        if decision is None:
            return "no-place"
        peer = decision.ranked[0].node
        result = self._dispatcher.fleet.view(peer).result
        operation = request.operation
        document = peers.scored_request(request.document, operation.checked_as, text, random_bytes(16).hex())
        body = msgspec.json.encode(document)
        if len(body) > peers.MAX_BYTES or result is None:
            return "too-long"
        asked = NodeRequest(operation=operation, workload=workload, body=body, document=document)
        asked_ms = self._clock.now_ms()
        heard = await self._send(asked, decision)
        if heard is None or heard.answer is None or len(heard.answer.body) > _MAX_SCORES:
            return "failed"
        if heard.outcome not in _ANSWERED:
            if heard.outcome in (Outcome.REFUSED, Outcome.UNSUPPORTED):
                self._note_unable(peer, workload)
                return "unable"
            return "failed"
        try:
            score = await asyncio.to_thread(peers.read_scores, heard.answer.body, text)
        except UnableError:
            self._note_unable(peer, workload)
            return "unable"
        if score is None:
            return "unreadable"
        names = {"node": attempt.node, "result": view.result.jti, "by": peer, "by_result": result.jti}
        return await self._report({"model": workload.model, **names, "at_ms": asked_ms}, score)

    def _decide(self, workload: Workload, attempt: Attempt) -> Decision | None:
        """An ordinary decision, of which one node is left: another operator's, with the same revision, with a place."""
        view = self._dispatcher.fleet.view_for(workload)
        for _ in range(_DECISIONS):
            decision = decide(view, workload, int.from_bytes(random_bytes(8), "little"))
            for ranked in decision.ranked:
                if self._may_score(ranked, workload, attempt):
                    return structs.replace(decision, ranked=(ranked,))
        return None

    def _may_score(self, ranked: Ranked, workload: Workload, attempt: Attempt) -> bool:
        if (
            ranked.operator in ("", attempt.operator)
            or ranked.node == attempt.node
            or ranked.lane not in _LANES
        ):
            return False
        if self._unable.get((ranked.node, workload.model), 0.0) > self._clock.monotonic():
            return False
        revision = self._dispatcher.fleet.view(ranked.node).revision(workload.model)
        return revision == attempt.revision and self._has_place(ranked.node, workload)

    async def _send(self, request: NodeRequest, decision: Decision) -> Attempt | None:
        now = self._clock.monotonic()
        run = Run(
            record=Record(decision),
            request=request,
            deadline=now + self._limits.longest_s,
            first_by=now + self._limits.timeout_s,
            is_check=True,
            is_scoring=True,
        )
        await self._dispatcher.run(run)
        # It is not paid, and the node may claim it.
        self._dispatcher.metering.on_check_end(run)
        return run.attempts[0] if run.attempts else None

    def _note_unable(self, node: str, workload: Workload) -> None:
        if len(self._unable) >= _MAX_UNABLE:
            self._unable.clear()
        self._unable[node, workload.model] = self._clock.monotonic() + _UNABLE_S

    async def _report(self, names: dict[str, Any], score: Score) -> str:
        report = {"id": random_bytes(16).hex(), **names, **msgspec.to_builtins(score)}
        for wait_s in _REPORT_AFTER_S:
            await asyncio.sleep(wait_s)
            reporting = self._reporting()
            try:
                if reporting is None:
                    break
                is_taken = await reporting.report_score(report)
            except RouterError as error:
                _log.warning("a score could not be reported", why=str(error))
            else:
                return "reported" if is_taken else "refused"
        return "unreported"

    async def close(self) -> None:
        """Those under way are given up."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
