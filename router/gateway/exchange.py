"""
One exchange with one node: a whole answer, or a stream passed through as it comes.

Nothing of a stream goes to the client before the node has given the first text, so that
everything until then can be tried elsewhere.  From then on only whole events go on, at once;
and how it ended is known at its end: text, a reason to finish for every choice, and
``[DONE]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from attester.bounded import read_all
from router.config import GatewaySection
from router.gateway.answers import Answer, Chunk, judge, read_chunk, without_usage
from router.gateway.pinned import PinError
from router.gateway.sse import DONE, EventError, Events, event
from router.gateway.upstream import NodeResponse, Upstream
from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.tokens import TokenCounter
from router.model.usage import Usage
from router.model.workload import Workload

MAX_ANSWER: Final = 64 << 20
MAX_READING: Final = 1 << 30
"""Bytes of whole answers that are being read at a time: nodes could agree to fill the router's memory."""
_MAX_FAILURE: Final = 64 << 10
_MAX_HELD: Final = 1 << 20
_EXTRA_EVENTS: Final = 16
_LEAST_S: Final = 5.0
"""In less time nobody is called slow."""
_LEAST_PACE: Final = 1.0
"""Tokens per second: whose stream is slower when the caller's time is over, is stalling."""


@dataclass(frozen=True)
class Work:
    """A request as nodes will see it."""

    workload: Workload
    path: str
    body: bytes
    document: Mapping[str, Any]
    stream: bool = False
    caller: str = ""
    operator: str | None = None
    """The operator that the caller belongs to, if it is one's."""

    @property
    def wants_usage(self) -> bool:
        """Whether the stream is to end with what was used."""
        options = self.document.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the answer may have, all its choices together."""
        given = [self.document.get(name) for name in ("max_tokens", "max_completion_tokens")]
        limits = [limit for limit in given if type(limit) is int and limit > 0]
        choices, prompts = self.document.get("n"), self.document.get("prompt")
        several = (
            len(prompts) if isinstance(prompts, list) and not all(type(p) is int for p in prompts) else 1
        )
        return (
            max(limits) * (choices if type(choices) is int and choices > 0 else 1) * several
            if limits
            else None
        )


class ClientGoneError(ConnectionError):
    """The client takes nothing more."""


class Sink(Protocol):
    """The client's side of a stream."""

    @property
    def begun(self) -> bool:
        """Whether anything has gone to the client, so that no other node can take over."""

    async def ready(self) -> None:
        """Make ready what can be, without anything going to the client."""

    def may_wait(self, size: int) -> bool:
        """Whether sending so many bytes may have to wait for the client to read."""

    async def send(self, data: bytes) -> None:
        """Send whole events on.  Raises `ClientGoneError` where the client is gone or does not read."""


@dataclass
class Progress:
    """What was seen of an answer so far."""

    text: TokenCounter
    first_s: float | None = None
    events: int = 0
    """That carried text."""
    claimed: Usage | None = None
    done: bool = False
    waited_s: float = 0.0
    """For the client to read."""
    held: bytearray = field(default_factory=bytearray)
    """Of a stream: what was not sent on yet."""
    open_choices: set[int] = field(default_factory=set)
    ended_choices: set[int] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        """Whether every choice has come to its end."""
        return bool(self.ended_choices) and not self.open_choices

    def take(self, chunk: Chunk) -> bool:
        """Count an event; gives whether it carried text."""
        text = ""
        for choice in chunk.choices:
            text += choice.said
            if choice.finish_reason is not None:
                self.ended_choices.add(choice.index)
                self.open_choices.discard(choice.index)
            elif choice.index not in self.ended_choices:
                self.open_choices.add(choice.index)
        if chunk.usage is not None:
            self.claimed = chunk.usage.usage
        if not text:
            return False
        self.text.add(text)
        self.events += 1
        return True


class Exchanges:
    """Asks nodes, each over TLS pinned to its key."""

    def __init__(self, http: aiohttp.ClientSession, config: GatewaySection) -> None:
        self._config = config
        self._reading: dict[NodeResponse, int] = {}
        self._reading_now = 0
        self._upstream = Upstream(
            http, connect_timeout_s=config.connect_timeout_s, allow_private=config.allow_private
        )

    async def whole(self, endpoint: tuple[str, str], work: Work, left_s: float) -> Answer:
        """
        A whole answer, judged.

        Raises:
            AttemptError: there is none.
        """
        allowance = min(left_s, self._config.attempt_timeout_s)
        try:
            async with asyncio.timeout(allowance), self._post(endpoint, work) as response:
                data = await self._read(response)
        except TimeoutError:
            raise AttemptError(self._late(allowance), f"no whole answer within {allowance:.1f} s") from None
        return judge(work.path, response.status, data)

    async def _read(self, response: NodeResponse) -> bytes:
        """A whole body, within what one answer may have, and what all that are being read may have together."""
        content = response.content
        if content.is_eof():
            return content.read_nowait()
        parts: list[bytes] = []
        self._reading[response] = 0
        try:
            async for part in content.iter_any():
                parts.append(part)
                self._reading[response] += len(part)
                self._reading_now += len(part)
                if self._reading[response] > MAX_ANSWER:
                    raise AttemptError(Outcome.CORRUPTED, f"an answer of more than {MAX_ANSWER} bytes")
                if self._reading_now > MAX_READING:
                    # The largest makes room, whoever came last; that is no fault of it.
                    largest = max(self._reading, key=self._reading.__getitem__)
                    largest.dropped = True
                    largest.abort()
        except aiohttp.ClientPayloadError:
            if response.dropped:
                raise AttemptError(
                    Outcome.UNSUPPORTED, "dropped, for more was being read than may be"
                ) from None
            raise
        finally:
            self._reading_now -= self._reading.pop(response)
        return b"".join(parts)

    async def stream(
        self, endpoint: tuple[str, str], work: Work, left_s: float, sink: Sink, progress: Progress
    ) -> Answer | None:
        """
        Pass a stream on as it comes.

        Returns:
            `None` where it came to its end; an answer where the node refused.

        Raises:
            AttemptError: it did not; `sink` says whether another node may take over.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        last = began + left_s
        allowance = min(left_s, self._config.attempt_timeout_s)
        try:
            async with (
                asyncio.timeout(allowance) as timer,
                self._post(endpoint, work, sink.ready) as response,
            ):
                if response.status != 200:
                    return await _failure(response, work)
                if response.content_type != "text/event-stream":
                    raise AttemptError(Outcome.CORRUPTED, "status 200 that is no stream of events")
                await self._pass_on(response, work, sink, progress, timer, began, last)
        except TimeoutError:
            if progress.finished:
                # All was said but [DONE].
                return None
            now = loop.time()
            if not sink.begun:
                raise AttemptError(self._late(allowance), f"no text within {allowance:.1f} s") from None
            if now < last:
                raise AttemptError(
                    Outcome.STALLED, f"no more text for {self._config.stall_s:.1f} s"
                ) from None
            # By the time since its first text: how long that took was for the attempt to judge.
            since = now - began - (progress.first_s or 0.0) - progress.waited_s
            slow = since > _LEAST_S and progress.text.estimate() < _LEAST_PACE * since
            raise AttemptError(
                Outcome.STALLED if slow else Outcome.TIMED_OUT,
                "the stream did not end within the time there was",
            ) from None
        return None

    async def _pass_on(
        self,
        response: NodeResponse,
        work: Work,
        sink: Sink,
        progress: Progress,
        timer: asyncio.Timeout,
        began: float,
        last: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        events = Events()
        most = work.most_tokens
        try:
            async for data in response.content.iter_any():
                moved = False
                for payload in events.feed(data):
                    moved |= _take(payload, progress)
                    if progress.done:
                        break
                if moved and progress.first_s is None:
                    progress.first_s = loop.time() - began
                if most is not None and progress.events > most + _EXTRA_EVENTS:
                    raise AttemptError(Outcome.CORRUPTED, "more tokens than were asked for")
                if progress.events and progress.held:
                    await self._send_on(sink, progress, timer, last if moved else None)
                if progress.done:
                    return
        except aiohttp.ClientPayloadError:
            if not progress.finished:
                raise AttemptError(Outcome.TRUNCATED, "the stream broke off") from None
        except EventError as error:
            raise AttemptError(Outcome.CORRUPTED, str(error)) from None
        if not progress.finished:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")

    async def _send_on(
        self, sink: Sink, progress: Progress, timer: asyncio.Timeout, last: float | None
    ) -> None:
        """Send what is held; with *last*, there was text, and the node has its time anew, until then at most."""
        sending, progress.held = bytes(progress.held), bytearray()
        due = timer.when()
        if sink.may_wait(len(sending)):
            # While a slow client reads, the node's clock stands still.
            timer.reschedule(None)
            began = asyncio.get_running_loop().time()
            await sink.send(sending)
            waited = asyncio.get_running_loop().time() - began
            progress.waited_s += waited
            due = None if due is None else due + waited
        else:
            await sink.send(sending)
        if last is not None:
            due = min(last, asyncio.get_running_loop().time() + self._config.stall_s)
        if timer.when() != due:
            timer.reschedule(due)

    @asynccontextmanager
    async def _post(
        self, endpoint: tuple[str, str], work: Work, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[NodeResponse]:
        response: NodeResponse | None = None
        well = False
        try:
            response = await self._upstream.post(endpoint, work.path, work.body, meanwhile)
            yield response
            well = True
        except ClientGoneError:
            # An OSError as well, and not the node's.
            raise
        except aiohttp.ConnectionTimeoutError:
            raise AttemptError(Outcome.CRASHED, "no connection in time") from None
        except PinError as error:
            raise AttemptError(Outcome.IMPOSTOR, str(error)) from None
        except aiohttp.ClientPayloadError:
            raise AttemptError(Outcome.TRUNCATED, "the answer ended early") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            # Who takes a request and hangs up without a word may do so for what was asked.
            asked = isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))
            doubtful = asked and not isinstance(error, aiohttp.ClientConnectorError)
            message = f"no answer: {type(error).__name__}"
            raise AttemptError(Outcome.CRASHED, message, doubtful=doubtful) from None
        finally:
            if response is not None:
                response.leave(well=well)

    def _late(self, allowance: float) -> Outcome:
        """Whose time ran out: the attempt's, and the node is slow; or the caller's."""
        return Outcome.STALLED if allowance * 2 >= self._config.attempt_timeout_s else Outcome.TIMED_OUT


async def _failure(response: NodeResponse, work: Work) -> Answer:
    data = await read_all(response.content, _MAX_FAILURE)
    return judge(work.path, response.status, data or b"")


def _take(payload: bytes, progress: Progress) -> bool:
    """Count an event, and hold it for the client; gives whether it carried text."""
    if payload == DONE:
        if not progress.finished:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")
        progress.done = True
        return False
    chunk = read_chunk(payload)
    if chunk is None:
        raise AttemptError(Outcome.CORRUPTED, "an event that is no part of an answer")
    if chunk.error is not None:
        raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error")
    moved = progress.take(chunk)
    # What was used is told at the end, by the router.
    if chunk.usage is None:
        progress.held += event(payload)
    elif chunk.choices:
        stripped = without_usage(payload)
        if stripped is None:
            raise AttemptError(Outcome.CORRUPTED, "an event that is no part of an answer")
        progress.held += event(stripped)
    if len(progress.held) > _MAX_HELD and not progress.events:
        raise AttemptError(Outcome.CORRUPTED, f"{_MAX_HELD} bytes of events without text")
    return moved
