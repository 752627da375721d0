"""
One exchange with one node: a whole answer, or a stream that is passed on as it comes.

Nothing of a stream goes to the client before the node has given the first text, so that
another node can be tried until then.  After it, each whole event goes on at once.  How the
stream ended is known at its end: there was text, a reason to finish for every choice, and the
protocol's last event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import aiohttp
import structlog

from attester.bounded import read_all
from router.choose.ranking import Ranked
from router.gateway.answer_digest import AnswerDigest
from router.gateway.attempts import DOUBTFUL, Attempt
from router.gateway.exchanges import Exchanges, T
from router.gateway.failures import classify
from router.gateway.lateness import TimeAllowed, is_late_here
from router.gateway.progress import Progress
from router.gateway.received import Received
from router.gateway.request import NodeRequest
from router.gateway.sink import ClientGoneError, Sink
from router.gateway.sse import EventError, EventParser
from router.gateway.time_limit import TimeLimit
from router.gateway.upstream import NodeResponse
from router.gateway.watch import NodeLimit
from router.model.allowance import Allowance
from router.model.answers import Answer, ChunkReader, StreamReader
from router.model.continuing import Delivered, Splice
from router.model.errors import AttemptError
from router.model.outcomes import Failure, Outcome
from router.model.tokens import TokenCounter
from router.model.wishes import Kept, Wishes, check_gathered
from router.state.random_bytes import random_bytes

_MAX_ERROR_BODY: Final = 64 << 10
_END_BYTES: Final = 1024
"""At most so many bytes end a stream whose usage is not told."""

_log = structlog.get_logger("router")


class Exchange:
    """
    One attempt at one node while it runs.  `run` gives the frozen `Attempt`, and can be called once.

    Args:
        exchanges: What all exchanges share.
        candidate: The node.
        endpoint: Its URL and the pin of its TLS key; `None` if it has none any more.
        request: What it is sent.
        allowed: What the node is allowed for it.
        left_s: Seconds until the caller's time runs out.
        first_left_s: Seconds until the router's own patience does, without a text or a whole answer.
        is_gone: Whether the node has answered no probes for so long that it is taken to be gone.
        sink: The client's side, if the answer is streamed.
        text: Counts the tokens of a stream.
        number: The request's at this node, from `Load.begin_request`.
        keeps_text: Whether the text of a stream is kept, for another node to go on from.
        splice: Joins the node's chunks to those of the node before, if it goes on from there.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        candidate: Ranked,
        endpoint: tuple[str, str] | None,
        request: NodeRequest,
        *,
        allowed: Allowance,
        left_s: float,
        first_left_s: float,
        is_gone: Callable[[], bool],
        sink: Sink | None,
        text: TokenCounter,
        number: int | None = None,
        keeps_text: bool = False,
        splice: Splice | None = None,
    ) -> None:
        self._keeps_text = keeps_text
        self._goes_on = splice is not None
        self._number = number
        self._exchanges = exchanges
        self._config = exchanges.config
        self._clock = exchanges.clock
        self._candidate = candidate
        self._endpoint = endpoint
        self._request = request
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._started = exchanges.clock.monotonic()
        self._progress = Progress(allowed, began=self._loop.time(), left_s=left_s, first_left_s=first_left_s)
        self._is_gone = is_gone
        self._wishes = request.wishes
        most = request.max_shown_tokens if sink is not None else None
        self._received = Received(text, most, request.added, splice)
        self._was_given = False
        self._request_id = random_bytes(16).hex()
        self._digest = AnswerDigest(exchanges.aside, enabled=exchanges.digests)
        self._lost_before = self._lost_at_text = exchanges.lost_s()
        """How long the router had stood still when this began, and when the last text came."""

    @property
    def lent_s(self) -> float:
        """Seconds beyond the time of any request that the node has used, by right."""
        return self._progress.lent_s(self._loop.time())

    async def run(self) -> Attempt:
        """Send the request, pass the answer on, and say how it ended."""
        try:
            answer = await (self._read_whole() if self._sink is None else self._pass_stream(self._sink))
        except AttemptError as error:
            return self._failed(error)
        except ClientGoneError:
            return self.abandoned()
        except Exception as error:  # noqa: BLE001
            # The outermost of an attempt: whatever this node's answer did to us, the next node may be tried.
            _log.exception("an attempt failed", node=self._candidate.node)
            failure = classify(error)
            if failure.outcome is not Outcome.HINDERED:
                failure = Failure.UNFORESEEN
            return self._failed(AttemptError.by(failure, is_doubtful=failure is Failure.UNFORESEEN))
        if answer is None:
            return self._ended_stream()
        if self._sink is not None and answer.outcome is Outcome.COMPLETED:
            return self._ended(
                Outcome.CORRUPTED,
                "a whole answer although a stream was asked for",
                is_doubtful=True,
                answer=answer,
            )
        is_doubtful = answer.outcome in DOUBTFUL and answer.outcome is not Outcome.REFUSED
        if answer.kept is not None and answer.kept.is_models:
            is_doubtful = False
        return self._ended(
            answer.outcome, answer.detail, is_doubtful=is_doubtful, answer=answer, kept=answer.kept
        )

    def abandoned(self) -> Attempt:
        """The attempt as it stands if the client has gone, or the router is stopping."""
        if self._exchanges.is_stopping:
            return self._failed(AttemptError.by(Failure.STOPPING))
        return self._ended(Outcome.ABANDONED, "the client went away")

    def _failed(self, error: AttemptError) -> Attempt:
        lost_s = self._exchanges.lost_s()
        progress = self._progress
        allowed = TimeAllowed(self._config.connect_timeout_s, progress.allowance_s, progress.allowed.stall_s)
        if is_late_here(
            error,
            allowed,
            lost_s - self._lost_before,
            None if progress.first_token_s is None else lost_s - self._lost_at_text,
        ):
            error = AttemptError.by(Failure.LATE_HERE)
        # An answer may be so long that no node has it ready in an attempt's time, or be such that engines break at it.
        # What kept the node from answering at all is a failure, and says for itself whether it is in doubt.
        is_of_answer = error.failure is None or error.outcome is Outcome.STALLED
        is_doubtful = not self._has_begun and (
            error.is_doubtful or (is_of_answer and error.outcome in DOUBTFUL)
        )
        return self._ended(error.outcome, str(error), is_doubtful=is_doubtful, failure=error.failure)

    def _note_given(self) -> None:
        self._was_given = True

    @property
    def _has_begun(self) -> bool:
        return self._sink is not None and self._sink.has_begun

    def _ended_stream(self) -> Attempt:
        received = self._received
        if not received.events and not self._goes_on:
            return self._ended(Outcome.EMPTY, "a whole stream with nothing in it", is_doubtful=True)
        kept, reader = None, received.reader
        if self._wishes is not None and isinstance(reader, ChunkReader):
            kept = check_gathered(self._wishes, reader.gathered, reader.ended, received.claimed)
            if kept.unhonoured is not None:
                # No other node can be asked, so nothing will show whose doing it is.
                return self._ended(Outcome.UNHONOURED, kept.sentence, kept=kept)
        detail = "a whole stream" if received.is_done else "a whole stream without [DONE]"
        return self._ended(Outcome.COMPLETED, detail, kept=kept)

    def _ended(
        self,
        outcome: Outcome,
        detail: str,
        *,
        failure: Failure | None = None,
        is_doubtful: bool = False,
        answer: Answer | None = None,
        kept: Kept | None = None,
    ) -> Attempt:
        stream = None
        if self._sink is not None and answer is None:
            stream = self._received.summary(self._progress.first_token_s)
        return Attempt(
            node=self._candidate.node,
            operator=self._candidate.operator,
            outcome=outcome,
            detail=detail,
            failure=failure,
            seconds=self._clock.monotonic() - self._started,
            is_doubtful=is_doubtful,
            has_begun=self._has_begun,
            answer=answer,
            stream=stream,
            number=self._number,
            was_given=self._was_given,
            request_id=self._request_id if self._was_given else "",
            answer_sha256=self._digest.hex(),
            kept=kept,
        )

    async def _read_whole(self) -> Answer:
        """A whole answer, judged.  Raises `AttemptError`."""
        operation = self._request.operation
        judge = operation.judge if self._wishes is None else partial(operation.judge_against, self._wishes)

        async def read(response: NodeResponse) -> tuple[int, bytes]:
            return response.status, await self._exchanges.read_body(response, operation.max_answer)

        limit = NodeLimit(self._loop, self._progress, self._is_gone)
        try:
            with limit:
                status, data = await self._post(read)
        except TimeoutError:
            raise self._progress.error_without_text(self._loop.time(), "no whole answer") from None
        await self._digest.add_whole(data)
        return await self._exchanges.aside.run_on(data, partial(judge, status))

    async def _pass_stream(self, sink: Sink) -> Answer | None:
        """
        Pass a stream on as it comes.

        Returns:
            `None` if it came to its end; an answer if the node did not begin a stream.

        Raises:
            AttemptError: it did not come to its end.
        """
        limit = NodeLimit(self._loop, self._progress, self._is_gone)

        async def read(response: NodeResponse) -> Answer | None:
            if response.status != 200:
                body = await read_all(response.content, _MAX_ERROR_BODY) or b""
                await self._digest.add_whole(body)
                return self._request.operation.judge(response.status, body)
            if response.content_type != "text/event-stream":
                raise AttemptError(Outcome.CORRUPTED, "status 200 with something else than a stream")
            await self._pass_events(response, sink, limit)
            return None

        try:
            with limit:
                return await self._post(read, sink.prepare)
        except TimeoutError:
            self._check_late_stream(sink)
        return None

    def _check_late_stream(self, sink: Sink) -> None:
        """Decide whose time ran out.  Raises `AttemptError`, unless only the protocol's last event is missing."""
        if self._received.is_finished:
            return
        now = self._loop.time()
        if not sink.has_begun:
            raise self._progress.error_without_text(now, "no text") from None
        raise self._progress.error_within_stream(now) from None

    async def _pass_events(self, response: NodeResponse, sink: Sink, limit: TimeLimit) -> None:
        received, progress = self._received, self._progress
        reader = received.reader = _make_reader(self._request, self._wishes, keeps_text=self._keeps_text)
        parser, blocks = EventParser(), 0
        try:
            async for data in response.content.iter_any():
                has_text = False
                self._digest.add(data)
                for event in parser.feed(data):
                    has_text |= received.take(reader, event)
                    if reader.is_done:
                        break
                if has_text:
                    progress.note_first_text(self._loop.time())
                elif parser.blocks != blocks and limit.due is not None:
                    limit.move(progress.note_life(self._loop.time(), limit.due))
                blocks = parser.blocks
                received.check_length()
                if received.events and received.unsent and not (reader.is_done and self._may_wait(sink)):
                    await self._send(sink, limit, has_text=has_text)
                if reader.is_done:
                    return
        except aiohttp.ClientPayloadError:
            if not reader.is_finished:
                raise AttemptError(Outcome.TRUNCATED, "the stream broke off") from None
        except EventError as error:
            raise AttemptError(Outcome.CORRUPTED, str(error)) from None
        if not reader.is_finished:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")

    def _may_wait(self, sink: Sink) -> bool:
        """Whether what came with the end of a stream can go out in one packet with it: no tokens are counted first."""
        return not self._received.text.size and not sink.may_block(len(self._received.unsent) + _END_BYTES)

    async def _send(self, sink: Sink, limit: TimeLimit, *, has_text: bool) -> None:
        """Send on what is unsent.  If the node gave text, its time for the next text begins."""
        sending, self._received.unsent = bytes(self._received.unsent), bytearray()
        due = limit.due
        if sink.may_block(len(sending)):
            # While a slow client reads, the node's clock stands still.
            limit.move(None)
            began = self._loop.time()
            await sink.send(sending)
            waited_s = self._loop.time() - began
            self._progress.waited_s += waited_s
            due = None if due is None else due + waited_s
        else:
            await sink.send(sending)
        if has_text:
            self._lost_at_text = self._exchanges.lost_s()
            due = self._progress.note_text(self._loop.time(), self._received.tokens)
        if limit.due != due:
            limit.move(due)

    def _post(
        self,
        read: Callable[[NodeResponse], Awaitable[T]],
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> Awaitable[T]:
        """Send the request to the node, and have its answer read."""
        if self._endpoint is None:
            raise AttemptError(Outcome.UNSUPPORTED, "the node has no endpoint any more")
        return self._exchanges.post(
            self._endpoint,
            self._request,
            read,
            meanwhile,
            request_id=self._request_id,
            on_given=self._note_given,
        )


def _make_reader(request: NodeRequest, wishes: Wishes | None, *, keeps_text: bool) -> StreamReader:
    assert request.operation.read_stream is not None
    reader = request.operation.read_stream()
    if isinstance(reader, ChunkReader):
        if wishes is not None:
            reader.watch(wishes)
        if keeps_text:
            reader.delivered = Delivered()
    return reader
