"""
One exchange with one node: a whole answer, or a stream that is passed on as it comes.

Nothing of a stream goes to the client before the node has given the first text, so that
another node can be tried until then.  After it, each whole event goes on at once.  How the
stream ended is known at its end: there was text, a reason to finish for every choice, and the
protocol's last event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
import structlog

from attester.bounded import read_all
from router.choose.ranking import Ranked
from router.gateway.attempts import DOUBTFUL, Attempt, StreamSummary
from router.gateway.body import LARGE
from router.gateway.exchanges import Exchanges
from router.gateway.failures import classify
from router.gateway.lateness import TimeAllowed, is_late_here
from router.gateway.request import NodeRequest
from router.gateway.sink import ClientGoneError, Sink
from router.gateway.sse import EventError, EventParser, ServerEvent, encode_event
from router.gateway.time_limit import TimeLimit
from router.gateway.upstream import NodeResponse
from router.model.allowance import Allowance
from router.model.answers import Answer, StreamReader
from router.model.errors import AttemptError
from router.model.outcomes import Failure, Outcome
from router.model.tokens import TokenCounter
from router.model.usage import Usage

_MAX_ERROR_BODY: Final = 64 << 10
_MAX_UNSENT: Final = 1 << 20
_EXTRA_EVENTS: Final = 16
_END_BYTES: Final = 1024
"""At most so many bytes end a stream whose usage is not told."""
_NULL: Final = b"null"
_LOOK_EVERY_S: Final = 1.0
_EARLY_S: Final = 0.002
"""A limit comes up so much too early at most."""

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
    ) -> None:
        self._number = number
        self._exchanges = exchanges
        self._config = exchanges.config
        self._clock = exchanges.clock
        self._candidate = candidate
        self._endpoint = endpoint
        self._request = request
        self._sink = sink
        self._text = text
        self._loop = asyncio.get_running_loop()
        self._started = exchanges.clock.monotonic()
        self._began = self._loop.time()
        self._deadline = self._began + left_s
        self._allowed = allowed
        self._allowance_s = min(left_s, first_left_s, allowed.first_s)
        """Seconds for a whole answer, or for the first text of a stream without a sign of life."""
        self._is_gone = is_gone
        self._was_gone = False
        self._watcher: asyncio.TimerHandle | None = None
        self._life_at = self._began
        """When the node last showed that it lives."""
        self._reader: StreamReader | None = None
        self._events = 0
        self._first_token_s: float | None = None
        self._claimed: Usage | None = None
        self._was_given = False
        self._unsent = bytearray()
        self._text_at = self._began
        """When the last text came, by the loop's clock."""
        self._waited_s = 0.0
        """Seconds that the client took to read."""
        self._lost_before = self._lost_at_text = exchanges.lost_s()
        """How long the router had stood still when this began, and when the last text came."""

    @property
    def lent_s(self) -> float:
        """Seconds beyond the time of any request that the node has used, by right."""
        bound = self._allowed.first_s if self._life_at == self._began else self._allowed.quiet_s
        used_s = min(self._loop.time() - self._began, bound)
        return max(0.0, used_s - self._config.attempt_timeout_s)

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
                Outcome.CORRUPTED, "a whole answer although a stream was asked for", answer=answer
            )
        is_doubtful = answer.outcome in DOUBTFUL and answer.outcome is not Outcome.REFUSED
        return self._ended(answer.outcome, answer.detail, is_doubtful=is_doubtful, answer=answer)

    def abandoned(self) -> Attempt:
        """The attempt as it stands if the client has gone, or the router is stopping."""
        if self._exchanges.is_stopping:
            return self._failed(AttemptError.by(Failure.STOPPING))
        return self._ended(Outcome.ABANDONED, "the client went away")

    def _failed(self, error: AttemptError) -> Attempt:
        lost_s = self._exchanges.lost_s()
        allowed = TimeAllowed(self._config.connect_timeout_s, self._allowance_s, self._allowed.stall_s)
        if is_late_here(
            error,
            allowed,
            lost_s - self._lost_before,
            None if self._first_token_s is None else lost_s - self._lost_at_text,
        ):
            error = AttemptError.by(Failure.LATE_HERE)
        # An answer may be so long that no node has it ready in an attempt's time.
        is_slow = error.outcome is Outcome.STALLED
        is_doubtful = not self._has_begun and (error.is_doubtful or is_slow)
        return self._ended(error.outcome, str(error), is_doubtful=is_doubtful, failure=error.failure)

    def _note_given(self) -> None:
        self._was_given = True

    @property
    def _has_begun(self) -> bool:
        return self._sink is not None and self._sink.has_begun

    def _ended_stream(self) -> Attempt:
        if not self._events:
            return self._ended(Outcome.EMPTY, "a whole stream with nothing in it", is_doubtful=True)
        is_done = self._reader is not None and self._reader.is_done
        return self._ended(
            Outcome.COMPLETED, "a whole stream" if is_done else "a whole stream without [DONE]"
        )

    def _ended(
        self,
        outcome: Outcome,
        detail: str,
        *,
        failure: Failure | None = None,
        is_doubtful: bool = False,
        answer: Answer | None = None,
    ) -> Attempt:
        if self._watcher is not None:
            self._watcher.cancel()
        stream = None
        if self._sink is not None and answer is None:
            stream = StreamSummary(
                events=self._events,
                text=self._text,
                first_token_s=self._first_token_s,
                claimed=self._claimed,
                is_done=self._reader is not None and self._reader.is_done,
                unsent=bytes(self._unsent),
            )
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
        )

    async def _read_whole(self) -> Answer:
        """A whole answer, judged.  Raises `AttemptError`."""
        endpoint, operation = self._required_endpoint(), self._request.operation

        async def read(response: NodeResponse) -> tuple[int, bytes]:
            return response.status, await self._exchanges.read_body(response, operation.max_answer)

        limit = TimeLimit(self._loop, self._began + self._allowance_s)
        self._watch(limit)
        try:
            with limit:
                status, data = await self._exchanges.post(
                    endpoint, self._request, read, on_given=self._note_given
                )
        except TimeoutError:
            raise self._late("no whole answer") from None
        if len(data) <= LARGE:
            return operation.judge(status, data)
        return await self._exchanges.aside.run(operation.judge, status, data)

    async def _pass_stream(self, sink: Sink) -> Answer | None:
        """
        Pass a stream on as it comes.

        Returns:
            `None` if it came to its end; an answer if the node did not begin a stream.

        Raises:
            AttemptError: it did not come to its end.
        """
        endpoint = self._required_endpoint()
        limit = TimeLimit(self._loop, self._began + self._allowance_s)

        async def read(response: NodeResponse) -> Answer | None:
            if response.status != 200:
                body = await read_all(response.content, _MAX_ERROR_BODY)
                return self._request.operation.judge(response.status, body or b"")
            if response.content_type != "text/event-stream":
                raise AttemptError(Outcome.CORRUPTED, "status 200 with something else than a stream")
            await self._pass_events(response, sink, limit)
            return None

        self._watch(limit)
        try:
            with limit:
                return await self._exchanges.post(
                    endpoint, self._request, read, sink.prepare, on_given=self._note_given
                )
        except TimeoutError:
            self._check_late_stream(sink)
        return None

    def _check_late_stream(self, sink: Sink) -> None:
        """Decide whose time ran out.  Raises `AttemptError`, unless only the protocol's last event is missing."""
        if self._reader is not None and self._has_all(self._reader):
            return
        if not sink.has_begun:
            raise self._late("no text") from None
        if self._loop.time() >= self._deadline - _EARLY_S:
            # Also if the node is slow: how much time there is was not its choice.
            raise AttemptError(Outcome.TIMED_OUT, "the stream did not end before the time limit") from None
        since = self._loop.time() - self._began - (self._first_token_s or 0.0) - self._waited_s
        if self._allowed.is_behind(since + _EARLY_S, self._tokens):
            raise AttemptError(Outcome.STALLED, f"{self._tokens} tokens in {since:.1f} s") from None
        raise AttemptError(Outcome.STALLED, "no more text, or no sign of life, in time") from None

    @property
    def _tokens(self) -> int:
        """At least about so many tokens have come: an event may carry several, and a token many bytes."""
        return max(self._events, self._text.estimate())

    def _has_all(self, reader: StreamReader) -> bool:
        """Whether all of the answers that were asked for have their end, if the stream itself has none."""
        return reader.is_finished and reader.ended >= self._request.answers

    def _late(self, what: str) -> AttemptError:
        """The error of an attempt that has no text when its time is over."""
        waited_s = self._loop.time() - self._began
        if self._was_gone:
            return AttemptError(Outcome.STALLED, f"{what}, and the node answers no probes")
        return AttemptError(self._outcome_when_late(), f"{what} within {waited_s:.1f} s")

    def _watch(self, limit: TimeLimit) -> None:
        """
        Look whether the node is still there, if its time is longer than that of any request.

        A node that died while it works on a long answer looks like one that works on it.
        """
        if self._allowance_s > self._config.attempt_timeout_s + _LOOK_EVERY_S:
            self._watcher = self._loop.call_later(self._config.attempt_timeout_s, self._look, limit)

    def _look(self, limit: TimeLimit) -> None:
        now = self._loop.time()
        if self._first_token_s is not None:
            return
        if self._is_gone() and now - self._life_at >= self._config.attempt_timeout_s:
            self._was_gone = True
            limit.move(now)
        else:
            self._watcher = self._loop.call_later(_LOOK_EVERY_S, self._look, limit)

    async def _pass_events(self, response: NodeResponse, sink: Sink, limit: TimeLimit) -> None:
        make_reader = self._request.operation.read_stream
        assert make_reader is not None
        reader = self._reader = make_reader()
        parser, max_tokens, blocks = EventParser(), self._request.max_shown_tokens, 0
        try:
            async for data in response.content.iter_any():
                has_text = False
                for event in parser.feed(data):
                    has_text |= self._take(reader, event)
                    if reader.is_done:
                        break
                if has_text and self._first_token_s is None:
                    self._first_token_s = self._loop.time() - self._began
                if parser.blocks != blocks and not has_text:
                    self._note_life(limit)
                blocks = parser.blocks
                if max_tokens is not None and self._events > max_tokens + _EXTRA_EVENTS:
                    raise AttemptError(Outcome.CORRUPTED, "more tokens than were asked for")
                if self._events and self._unsent and not (reader.is_done and self._may_wait(sink)):
                    await self._send(sink, limit, has_text=has_text)
                if reader.is_done:
                    return
        except aiohttp.ClientPayloadError:
            if not self._has_all(reader):
                raise AttemptError(Outcome.TRUNCATED, "the stream broke off") from None
        except EventError as error:
            raise AttemptError(Outcome.CORRUPTED, str(error)) from None
        if not reader.is_finished:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")

    def _may_wait(self, sink: Sink) -> bool:
        """Whether what came with the end of a stream can go out in one packet with it: no tokens are counted first."""
        return not self._text.size and not sink.may_block(len(self._unsent) + _END_BYTES)

    def _note_life(self, limit: TimeLimit) -> None:
        """Something came that is no text: the node lives.  It has more time, but not for ever."""
        now, allowed = self._loop.time(), self._allowed
        self._life_at = now
        if self._first_token_s is None:
            bound = self._began + allowed.quiet_s
        else:
            bound = min(self._text_at + allowed.pause_s, self._behind_at())
        due = min(now + allowed.stall_s, bound, self._deadline)
        if limit.due is not None and due > limit.due:
            limit.move(due)

    def _behind_at(self) -> float:
        """When the stream is too slow, if no more text comes."""
        began = self._began + (self._first_token_s or 0.0) + self._waited_s
        return began + self._allowed.until_behind_s(self._tokens)

    def _take(self, reader: StreamReader, event: ServerEvent) -> bool:
        """Count an event, and keep it for the client; returns whether it carried text."""
        if event.data == _NULL:
            # llama.cpp begins a stream of several prompts with it.
            return False
        part = reader.read(event.data)
        text, forward = part.text, part.forward
        if part.claimed is not None:
            self._claimed = part.claimed
        if text:
            self._text.add(text)
            self._events += 1
        if forward is not None:
            self._unsent += encode_event(forward, event.name)
        if not self._events and len(self._unsent) > _MAX_UNSENT:
            raise AttemptError(Outcome.CORRUPTED, f"{_MAX_UNSENT} bytes of events without text")
        return bool(text)

    async def _send(self, sink: Sink, limit: TimeLimit, *, has_text: bool) -> None:
        """Send on what is unsent.  If the node gave text, its time for the next text begins."""
        sending, self._unsent = bytes(self._unsent), bytearray()
        due = limit.due
        if sink.may_block(len(sending)):
            # While a slow client reads, the node's clock stands still.
            limit.move(None)
            began = self._loop.time()
            await sink.send(sending)
            waited_s = self._loop.time() - began
            self._waited_s += waited_s
            due = None if due is None else due + waited_s
        else:
            await sink.send(sending)
        if has_text:
            self._lost_at_text = self._exchanges.lost_s()
            self._text_at = self._loop.time()
            due = min(self._deadline, self._text_at + self._allowed.stall_s, self._behind_at())
        if limit.due != due:
            limit.move(due)

    def _required_endpoint(self) -> tuple[str, str]:
        if self._endpoint is None:
            raise AttemptError(Outcome.UNSUPPORTED, "the node has no endpoint any more")
        return self._endpoint

    def _outcome_when_late(self) -> Outcome:
        """
        The outcome of an attempt whose time ran out.

        What the caller's own time cuts is nobody's fault.  Otherwise the node is slow if it had at least half of
        the time that it is allowed: the attempts before it may have used up the rest.
        """
        if self._loop.time() >= self._deadline - _EARLY_S:
            return Outcome.TIMED_OUT
        is_node_slow = self._allowance_s * 2 >= self._allowed.first_s
        return Outcome.STALLED if is_node_slow else Outcome.TIMED_OUT
