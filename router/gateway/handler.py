"""One request of a client, from its body to its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from router.config import ApiKey, GatewaySection
from router.gateway.arms import Arms
from router.gateway.aside import Aside
from router.gateway.attempts import Attempt, Fail
from router.gateway.body import LARGE, is_large
from router.gateway.checks import Checks
from router.gateway.client import ClientStream
from router.gateway.continuing import read_continue
from router.gateway.deciding import WORKLOAD_HEADER, Deciding
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.errors import (
    DECISION_HEADER,
    REVISION_HEADER,
    GatewayError,
    nobody_completed,
    nobody_may,
    refusal_document,
)
from router.gateway.fronts import Fronts
from router.gateway.idempotency import CachedResponse, IdempotencyCache, IdempotencyError
from router.gateway.keep_alive import KeepAlive
from router.gateway.keys import Keyring
from router.gateway.metering import BY_ROUTER, Metering
from router.gateway.peers import Overheard
from router.gateway.receipting import FAILED, RECEIPT_HEADER, REFUSED, Draft, members_of
from router.gateway.request import NodeRequest, read_request
from router.gateway.sink import ClientGoneError
from router.gateway.sse import encode_event
from router.gateway.terms import REQUIRE_HEADER, Terms, one_header
from router.gateway.told import tell_whole
from router.model import dialects
from router.model.answers import DONE
from router.model.clock import Clock
from router.model.continuing import told
from router.model.operations import Operation
from router.model.workload import Table
from router.state.receipts import ReceiptBook
from router.state.records import Record
from verifier.errors import RequestError
from verifier.service.http import read_body
from verifier.service.problem import status_of

EXPLAIN_HEADER: Final = "X-Touchstone-Explain"
TIMEOUT_HEADER: Final = "X-Touchstone-Timeout"
"""Seconds that the caller gives the request; the router's own limit is the most."""
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"


USAGE_HEADER: Final = "X-Touchstone-Usage-By"
"""Whose count the usage in a whole answer is: the node's own, or the router's."""

_LAST_EVENT: Final = encode_event(DONE)

_log = structlog.get_logger("router")


@dataclass
class Gateway:
    """What requests share."""

    dispatcher: Dispatcher
    config: GatewaySection
    clock: Clock
    keyring: Keyring
    replays: IdempotencyCache
    checks: Checks
    skew_s: int = 30
    """By how much the router's clock and the verifier's may differ."""
    aside: Aside = field(default_factory=partial(Aside, "requests"))
    """Where large bodies are read."""
    terms: Terms = field(kw_only=True)
    arms: Arms = field(kw_only=True)
    """Which table requests go by while another one is tried."""
    receipts: ReceiptBook | None = None
    """Of all answers; `None` if there are none."""
    fronts: Fronts | None = None
    """What asks nodes what they have signed of answers; `None` if answers have no receipts."""
    in_flight: int = 0
    _finished: list[Handler] = field(default_factory=list)

    @property
    def table(self) -> Table:
        """The workloads, as of now."""
        return self.dispatcher.fleet.table

    def has_room(self) -> bool:
        """Whether there are places that no request needs soon."""
        return self.in_flight * 4 < self.config.max_in_flight * 3

    def close(self) -> None:
        """End the threads."""
        self.aside.close()
        self.dispatcher.close()

    def finish_soon(self, handler: Handler) -> None:
        """Have a request booked in the next turn of the loop: one after the other, they take less time each."""
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._finish_all)
        self._finished.append(handler)

    def _finish_all(self) -> None:
        finished, self._finished = self._finished, []
        for handler in finished:
            try:
                handler.finish()
            except Exception:  # noqa: BLE001
                # One request's failure must not keep the places of the others.
                _log.exception("a request could not be booked")


class Handler:
    """One request."""

    def __init__(
        self,
        gateway: Gateway,
        operation: Operation,
        request: web.Request,
        key: ApiKey,
        draft: Draft | None = None,
    ) -> None:
        self._draft = draft
        self._answered: Attempt | None = None
        self._outcome = REFUSED
        self._gateway = gateway
        self._operation = operation
        self._request = request
        self._key = key
        self._explain = request.headers.get(EXPLAIN_HEADER) == "1"
        self._continue: str | None = None
        self._idempotency_key: str | None = None
        self._run: Run | None = None
        self._sink: ClientStream | None = None
        self._deciding = Deciding(gateway.dispatcher, gateway.terms, gateway.arms, request, key)
        self._heard: Overheard | None = None
        """If the answer is to be scored by another node."""

    async def answer(self) -> web.StreamResponse:
        """What the client gets."""
        try:
            if self._draft is not None:
                self._draft.check_salt()
            began = self._gateway.clock.monotonic()
            deadline = began + self._allowed_s()
            if self._request.content.is_eof():
                request = await self._read()
            else:
                async with asyncio.timeout(self._gateway.config.timeout_s):
                    request = await self._read()
            self._continue = read_continue(self._request)
            cached = await self._begin_idempotent(request)
        except GatewayError as error:
            return error.response(None, self._operation.error_members)
        except TimeoutError:
            late = GatewayError(408, "invalid_request_error", "the request did not come in time")
            return late.response(None, self._operation.error_members)
        if cached is not None:
            return _answer_again(cached)
        try:
            left_s = deadline - self._gateway.clock.monotonic()
            decided, record = await self._deciding.decide(request, left_s)
        except GatewayError as error:
            return error.response(None, self._operation.error_members)
        # Who is checked, and what others may see of it, goes by the table in force.
        self._gateway.checks.note(request, record.decision)
        self._heard = self._gateway.checks.peers.sample(request, self._request.headers)
        tells_usage = request.is_streamed and (self._explain or request.wants_usage)
        patience_s = self._gateway.config.timeout_s
        if decided is not request:
            # The table in force must have the time to do the work if the candidate's nodes do not.
            patience_s = min(patience_s, left_s / 2)
        self._run = Run(
            record=record,
            request=decided,
            deadline=deadline,
            first_by=began + patience_s,
            tells_usage=tells_usage,
            says=self._continue,
        )
        return await (self._stream(self._run) if request.is_streamed else self._whole(self._run))

    def fail(self) -> web.StreamResponse:
        """What the client gets if the router itself failed, if an answer can still be sent."""
        self._outcome = FAILED
        failed = GatewayError(500, "internal_error", "the router failed")
        response = failed.response(None, self._operation.error_members)
        if self._sink is None:
            return response
        if not self._sink.is_open:
            return self._sink.replace_with(response)
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._sink.end()

    def _end_receipt(self) -> None:
        draft, run = self._draft, self._run
        if draft is None:
            return
        if run is None:
            draft.end(self._outcome)
            return
        outcome, members = members_of(run, self._answered, self._gateway.dispatcher.metering)
        draft.end(FAILED if self._outcome == FAILED else outcome, members)

    def finish(self) -> None:
        """Book what became of the request, and free the places that it had."""
        gateway, run = self._gateway, self._run
        try:
            if run is not None:
                gateway.dispatcher.finish(run)
            self._deciding.finish(run)
        except Exception:  # noqa: BLE001
            # The outermost of the bookkeeping: the places must be freed whatever fails.
            _log.exception("the end of a request could not be recorded")
        finally:
            usage = None if run is None else run.usage
            gateway.in_flight -= 1
            gateway.keyring.leave(self._key, 0 if usage is None else usage.total)
            if self._idempotency_key is not None:
                # The request may be tried again, unless its answer was cached.
                gateway.replays.forget(self._key.name, self._idempotency_key)
            self._end_receipt()
            if self._heard is not None:
                # Nobody is to be scored for what another node has written.
                self._heard.end(None if run is None or run.seam is not None else self._answered)

    async def _read(self) -> NodeRequest:
        try:
            data = await read_body(self._request, self._operation.max_request)
        except RequestError as error:
            status = status_of(error.code)
            kind = "invalid_request_error" if status < 500 else "service_unavailable"
            raise GatewayError(status, kind, str(error), retry_after=error.retry_after) from None
        if self._draft is not None:
            await self._draft.note_request(data, self._gateway.aside)
        required = one_header(self._request, REQUIRE_HEADER)

        def read_by(table: Table) -> NodeRequest:
            return read_request(
                data,
                self._operation,
                table,
                self._key,
                workload=self._request.headers.get(WORKLOAD_HEADER),
                required=required,
                is_asked=self._gateway.checks.asks,
            )

        async def read(table: Table) -> NodeRequest:
            return (
                await self._gateway.aside.run(partial(read_by, table)) if is_large(data) else read_by(table)
            )

        if self._gateway.arms.is_sharing:
            self._deciding.read = read
        return await read(self._gateway.table)

    async def _begin_idempotent(self, request: NodeRequest) -> CachedResponse | None:
        """The cached answer, if the request has an ``Idempotency-Key`` and was answered before."""
        header = self._request.headers.get(IDEMPOTENCY_HEADER)
        if header is None:
            return None
        # The request itself is in the fingerprint, so that a key never gets another request's answer.
        shape = f"{request.operation.path}\n{request.workload.name}\n{self._explain}\n".encode()
        digest = hashlib.sha256(shape)
        if request.required is not None:
            # An answer that was given under other requirements is another one.
            digest.update(request.required.key)
        digest.update(f"continue {self._continue}".encode())
        if self._draft is not None:
            # The receipt that is given again is of the first request's salt.
            digest.update(len(self._draft.salt).to_bytes(1, "big") + self._draft.salt)
        if len(request.body) > LARGE:
            await self._gateway.aside.run(lambda: digest.update(request.repeatable))
        else:
            digest.update(request.repeatable)
        fingerprint = digest.digest()
        try:
            cached = self._gateway.replays.begin(self._key.name, header, fingerprint)
        except IdempotencyError as error:
            raise GatewayError(
                error.status,
                "invalid_request_error" if error.status < 500 else "service_unavailable",
                str(error),
                code=error.code,
                retry_after=error.retry_after,
                retry=error.retry_after is not None,
            ) from None
        if cached is None:
            self._idempotency_key = header
        return cached

    def _cache(self, make: Callable[[], CachedResponse | None]) -> None:
        if self._idempotency_key is not None:
            self._gateway.replays.keep(self._key.name, self._idempotency_key, make())

    def _allowed_s(self) -> float:
        longest = self._gateway.config.longest_s
        text = self._request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return longest
        whole, _, part = text.partition(".")
        if not (text.isascii() and whole.isdigit() and (not part or part.isdigit()) and len(text) <= 12):
            message = f"{TIMEOUT_HEADER} must be a number of seconds"
            raise GatewayError(400, "invalid_request_error", message)
        return min(float(text), longest)

    def _explanation(self, record: Record) -> dict[str, Any]:
        if not self._explain:
            return {}
        dispatcher = self._gateway.dispatcher
        return {"touchstone": record.to_wire(dispatcher.excluded(record.decision))}

    async def _dispatch(self, run: Run) -> Attempt | GatewayError:
        """The attempt whose answer the client gets, or the error that it gets instead."""
        end = await self._deciding.run(run)
        if end is None:
            gateway, decision = self._gateway, run.record.decision
            note = gateway.clock.describe_difference(gateway.skew_s)
            return nobody_may(decision, gateway.dispatcher.shortfalls(decision), note)
        if isinstance(end, Fail):
            self._answered = next((each for each in reversed(run.attempts) if each.has_begun), None)
            return nobody_completed(end)
        self._answered = end.attempt
        return end.attempt

    async def _whole(self, run: Run) -> web.Response:
        found, record = await self._dispatch(run), run.record
        if isinstance(found, GatewayError):
            return found.response(record, {**self._operation.error_members, **self._explanation(record)})
        assert found.answer is not None
        gateway, status, body = self._gateway, found.answer.status, found.answer.body
        headers = _answered_by(record, found) | self._receipt_header()
        if status == 200:
            body, by = await tell_whole(run.request, found, gateway.dispatcher.metering, gateway.aside)
            headers |= {} if by is None else {USAGE_HEADER: by}
        if status == 200 and (extra := self._explanation(record)):
            body = await gateway.aside.run_on(body, partial(_with_extra, extra=extra))
        if status == 200:
            self._cache(lambda: CachedResponse(200, "application/json", tuple(headers.items()), body))
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **headers})

    async def _stream(self, run: Run) -> web.StreamResponse:
        sink = self._sink = run.sink = ClientStream(
            self._request,
            {DECISION_HEADER: run.record.id} | self._receipt_header(),
            write_timeout_s=self._gateway.config.write_timeout_s,
            is_cached=self._idempotency_key is not None,
            draft=self._draft,
            heard=None if self._heard is None else self._heard.add,
        )
        try:
            with KeepAlive(sink, self._gateway.config.keep_alive_s):
                return await self._stream_into(sink, run)
        except ClientGoneError:
            return sink.end()

    async def _stream_into(self, sink: ClientStream, run: Run) -> web.StreamResponse:
        found = await self._dispatch(run)
        # Another table may have taken over meanwhile.
        record, request = run.record, run.request
        if isinstance(found, GatewayError):
            extra = {**self._operation.error_members, **self._explanation(record)}
            if not sink.is_open:
                return sink.replace_with(found.response(record, extra))
            # The status is out, perhaps half an answer too.  The stream ends with an error that every client
            # sees, and without its last event.
            return await self._end_with_error(sink, {**found.event_document(), **extra})
        if found.answer is not None:
            if sink.is_open:
                return await self._end_with_error(sink, refusal_document(found.answer))
            headers = {"Content-Type": "application/json", **_answered_by(record, found)}
            answer = web.Response(status=found.answer.status, body=found.answer.body, headers=headers)
            return sink.replace_with(answer)
        rest = b"" if found.stream is None else found.stream.unsent
        has_types, last = request.operation.has_typed_events, request.operation.last_event
        if last is not None and found.stream is not None and not found.stream.is_done:
            rest += encode_event(last[1], last[0])
        if run.tells_usage:
            chunk = request.operation.empty_chunk(request.workload.model, record.id)
            if request.wants_usage and run.usage is not None and not has_types:
                told_usage = _told_usage(self._gateway.dispatcher.metering, run, found)
                rest += encode_event(dialects.encode({**chunk, **told_usage}))
            if extra := self._explanation(record):
                rest += _event({**chunk, **extra}, b"touchstone" if has_types else b"")
        if not has_types:
            rest += _LAST_EVENT
        await sink.send(rest, is_last=True)
        self._cache(sink.cached_response)
        return self._end_whole(sink)

    async def _end_with_error(self, sink: ClientStream, document: Mapping[str, Any]) -> web.StreamResponse:
        has_types = self._operation.has_typed_events
        name, members = (b"error", {"type": "error"}) if has_types else (b"", {})
        await sink.send(_event({**members, **document}, name))
        return self._end_whole(sink)

    def _end_whole(self, sink: ClientStream) -> web.StreamResponse:
        """End a stream of which everything has been sent."""
        if self._draft is not None:
            self._draft.is_complete = True
        return sink.end()

    def _receipt_header(self) -> dict[str, str]:
        return {} if self._draft is None else {RECEIPT_HEADER: self._draft.id}


def _answered_by(record: Record, attempt: Attempt) -> dict[str, str]:
    """The headers that say by which decision an answer came, and of which revision of the model it is."""
    found = {DECISION_HEADER: record.id}
    return {**found, REVISION_HEADER: attempt.revision} if attempt.revision else found


def _with_extra(body: bytes, extra: Mapping[str, Any]) -> bytes:
    return dialects.encode({**dialects.decode(body), **extra})


def _event(document: Mapping[str, Any], name: bytes = b"") -> bytes:
    """An event of the router's own."""
    return encode_event(msgspec.json.encode(document), name)


def _answer_again(cached: CachedResponse) -> web.Response:
    headers = {**dict(cached.headers), "Idempotent-Replayed": "true", "Content-Type": cached.content_type}
    return web.Response(status=cached.status, body=cached.body, headers=headers)


def _told_usage(metering: Metering, run: Run, found: Attempt) -> dict[str, Any]:
    """What the last chunk of a stream tells of the usage."""
    assert run.usage is not None
    if run.seam is not None:
        # What the last node says of it is of its own part.
        return {"usage": run.usage.to_wire(), "usage_by": BY_ROUTER, "touchstone": told(run.seam.told())}
    usage, by = metering.told_streamed(run.request, found, run.usage)
    return {"usage": usage, "usage_by": by}
