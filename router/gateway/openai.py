"""
The OpenAI-compatible resources: models, embeddings, chat and text completions, also streamed.

Any client of OpenAI's works by another ``base_url``.  Every answer that a decision was made
for carries its id, errors included.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from router.config import GatewaySection
from router.gateway.client import ClientStream
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.exchange import ClientGoneError, Work
from router.gateway.idempotency import CachedResponse, IdempotencyCache, IdempotencyError
from router.gateway.keys import ANONYMOUS, Key, Keyring, LimitError
from router.model.clock import Clock
from router.model.errors import AttemptError, PoolEmptyError, WorkloadError
from router.model.outcomes import Outcome
from router.model.workload import Table
from router.state.records import Record
from verifier.errors import RequestError
from verifier.service.http import read_body

MAX_REQUEST: Final = 16 << 20
DECISION_HEADER: Final = "X-Touchstone-Decision"
EXPLAIN_HEADER: Final = "X-Touchstone-Explain"
WORKLOAD_HEADER: Final = "X-Touchstone-Workload"
TIMEOUT_HEADER: Final = "X-Touchstone-Timeout"
"""Seconds that the caller gives the request, at most those that the router gives it."""
_RETRY_AFTER_S: Final = 2
_STATUS: Final = {Outcome.TIMED_OUT: 504, Outcome.STALLED: 504, Outcome.BUSY: 503}
_MAX_NAME: Final = 128
_LARGE: Final = 64 << 10
_LEAST_PACE: Final = 64 << 10
"""Bytes per second that a client takes of a large answer."""
_COUNTS: Final = ("n", "max_tokens", "max_completion_tokens")
_READ_EXACTLY: Final = ("model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens")
"""Keys that the router goes by: in another spelling a node might read them, and the router not."""
_SPELLINGS: Final = frozenset(_READ_EXACTLY)


_log = structlog.get_logger("router")


@dataclass
class Gateway:
    """What the resources need."""

    dispatcher: Dispatcher
    config: GatewaySection
    clock: Clock
    keyring: Keyring
    replays: IdempotencyCache
    in_flight: int = 0

    @property
    def table(self) -> Table:
        """The workloads, as of now."""
        return self.dispatcher.fleet.table


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)


class AnswerError(Exception):
    """An error in the form that OpenAI's clients read."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        retry_after: int | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.retry_after = retry_after
        self.retry = retry

    def document(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}}

    def response(self, record: Record | None = None, extra: dict[str, Any] | None = None) -> web.Response:
        """As an answer."""
        headers = {} if record is None else {DECISION_HEADER: record.id}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.retry is not None:
            # OpenAI's clients ask this before their own judgement.
            headers["x-should-retry"] = "true" if self.retry else "false"
        return _json(self.status, {**self.document(), **(extra or {})}, headers)


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/v1/models", models),
        web.get("/v1/models/{model:.+}", model),
        web.post("/v1/embeddings", work),
        web.post("/v1/chat/completions", work),
        web.post("/v1/completions", work),
        web.route("*", "/v1/{rest:.*}", unknown),
    ]


async def unknown(request: web.Request) -> web.Response:
    """Anything else below /v1, refused in the form that OpenAI's clients read."""
    message = f"no resource {request.method} {request.path[:100]}"
    return AnswerError(404, "invalid_request_error", message).response()


async def models(request: web.Request) -> web.Response:
    """The models there is a workload for."""
    try:
        key = key_of(request)
    except AnswerError as error:
        return error.response()
    data = [_model(name) for name in _models_for(request, key)]
    return _json(200, {"object": "list", "data": data})


async def model(request: web.Request) -> web.Response:
    """One of them."""
    try:
        key = key_of(request)
    except AnswerError as error:
        return error.response()
    name = request.match_info["model"]
    if name not in _models_for(request, key):
        return AnswerError(404, "invalid_request_error", "no such model", code="model_not_found").response()
    return _json(200, _model(name))


def _models_for(request: web.Request, key: Key) -> list[str]:
    workloads = request.app[GATEWAY].table.workloads.values()
    return sorted({w.model for w in workloads if not key.workloads or w.name in key.workloads})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "touchstone"}


def key_of(request: web.Request) -> Key:
    """
    The caller's API key.

    Raises:
        AnswerError: none that is known.
    """
    key = request.app[GATEWAY].keyring.find(request.headers.get("Authorization"))
    if key is None:
        raise AnswerError(401, "invalid_request_error", "a valid API key is needed", code="invalid_api_key")
    return key


async def work(request: web.Request) -> web.StreamResponse:
    """Decide, send, answer."""
    gateway = request.app[GATEWAY]
    try:
        key = key_of(request)
        _admit(gateway, key)
    except AnswerError as error:
        return _closing(request, error.response())
    gateway.in_flight += 1
    handler = _Handler(gateway, request, key)
    try:
        response = await handler.answer()
        await _write_large(request, response, gateway.config.write_timeout_s)
    except (ConnectionError, asyncio.CancelledError):
        # The client has gone.
        handler.finish()
        raise
    except Exception:  # noqa: BLE001
        # The outermost of a request: nothing of an internal failure may reach the caller.
        _log.exception("a request failed", path=request.path[:100])
        response = handler.failed()
    # After the answer was written, in this turn of the loop: the client need not wait for our books.
    asyncio.get_running_loop().call_soon(handler.finish)
    return _closing(request, response)


async def _write_large(request: web.Request, response: web.StreamResponse, timeout_s: float) -> None:
    """A large answer keeps its places until the client has it; who reads too slowly is given up."""
    size = response.content_length or 0
    if isinstance(response, web.Response) and size > _LARGE:
        try:
            async with asyncio.timeout(timeout_s + size / _LEAST_PACE):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass


def _closing(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """An unread body is not worth reading: the connection ends with the answer."""
    if not request.content.is_eof():
        response.force_close()
    return response


def _admit(gateway: Gateway, key: Key) -> None:
    if gateway.in_flight >= gateway.config.max_in_flight:
        raise AnswerError(503, "service_unavailable", "the router is full", retry_after=1)
    try:
        gateway.keyring.enter(key)
    except LimitError as error:
        spent = error.code == "budget_exhausted"
        raise AnswerError(
            429,
            "insufficient_quota" if spent else "rate_limit_error",
            str(error),
            code=error.code,
            retry_after=error.retry_after,
            retry=False if spent else None,
        ) from None


@contextmanager
def _logged() -> Iterator[None]:
    """One book that cannot be kept keeps no other from being kept."""
    try:
        yield
    except Exception:  # noqa: BLE001
        _log.exception("what became of a request could not be written down")


class _Handler:
    """One request, from its body to its answer."""

    def __init__(self, gateway: Gateway, request: web.Request, key: Key) -> None:
        self._gateway = gateway
        self._request = request
        self._key = key
        self._explain = request.headers.get(EXPLAIN_HEADER) == "1"
        self._replay: str | None = None
        self._run: Run | None = None
        self._sink: ClientStream | None = None

    def failed(self) -> web.StreamResponse:
        """What the client gets where the router itself failed, as far as it can still be told."""
        response = AnswerError(500, "internal_error", "the router failed").response()
        if self._sink is None:
            return response
        if not self._sink.begun:
            return self._sink.instead(response)
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._sink.end()

    def finish(self) -> None:
        """Keep the books, and free the places that it had."""
        run, gateway = self._run, self._gateway
        try:
            for each in () if run is None else run.later:
                with _logged():
                    each()
        finally:
            counted = None if run is None else run.counted
            gateway.in_flight -= 1
            gateway.keyring.leave(self._key, 0 if counted is None else counted.prompt + counted.completion)
            if self._replay is not None:
                # It may be tried again, unless it was kept.
                gateway.replays.forget(self._key.name, self._replay)

    async def answer(self) -> web.StreamResponse:
        try:
            allowed_s = self._allowed_s()
            deadline = self._gateway.clock.monotonic() + allowed_s
            if self._request.content.is_eof():
                work = await self._read()
            else:
                async with asyncio.timeout(self._gateway.config.timeout_s):
                    work = await self._read()
            if (kept := self._begin(work)) is not None:
                headers = {**dict(kept.headers), "Idempotent-Replayed": "true"}
                return web.Response(
                    status=kept.status,
                    body=kept.body,
                    headers={"Content-Type": kept.content_type, **headers},
                )
        except AnswerError as error:
            return error.response()
        except TimeoutError:
            return AnswerError(408, "invalid_request_error", "the request did not come in time").response()
        run = self._run = Run(self._gateway.dispatcher.decide(work.workload, self._key.name), work, deadline)
        return await (self._streamed(run) if work.stream else self._whole(run))

    async def _read(self) -> Work:
        """
        The request, as nodes will see it.

        It is parsed whole and written anew, so that no node reads another model, or another
        wish to stream, than the router did: keys stand once, and in one spelling.
        """
        request = self._request
        try:
            data = await read_body(request, MAX_REQUEST)
            document = msgspec.json.decode(data, type=dict[str, Any])
            stream = document.get("stream")
            if stream is None or stream is False:
                # Said or not, it is the same; so nodes are told nothing of it.
                document.pop("stream", None)
            body = msgspec.json.encode(document)
        except RequestError as error:
            status = 413 if error.code == "request.too-large" else 400
            raise AnswerError(status, "invalid_request_error", str(error)) from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise AnswerError(400, "invalid_request_error", str(error)) from None
        model = document.get("model")
        if not isinstance(model, str) or len(model) > _MAX_NAME:
            raise AnswerError(400, "invalid_request_error", "model is not a name")
        for name in document:
            if name not in _SPELLINGS and name.casefold() in _SPELLINGS:
                raise AnswerError(400, "invalid_request_error", f"{name[:40]!r}: keys are in lower case")
        for name in _COUNTS:
            # What engines would read as a number, and the router not, would make a liar of an honest node.
            value = document.get(name)
            if value is not None and (type(value) is not int or value < 0):
                raise AnswerError(400, "invalid_request_error", f"{name} is no whole number")
        if stream is not None and not isinstance(stream, bool):
            raise AnswerError(400, "invalid_request_error", "stream is neither true nor false")
        operation = request.path.removeprefix("/v1/")
        if stream and operation == "embeddings":
            raise AnswerError(400, "invalid_request_error", "embeddings are not streamed")
        try:
            named = request.headers.get(WORKLOAD_HEADER)
            workload = self._gateway.table.route(model, named, self._key.workloads)
        except WorkloadError as error:
            status = 404 if error.code == "model_not_found" else 400
            raise AnswerError(status, "invalid_request_error", str(error), code=error.code) from None
        if operation not in workload.operations:
            raise AnswerError(404, "invalid_request_error", "the model does not have this operation")
        return Work(workload, request.path, body, document, bool(stream), self._key.name, self._key.operator)

    def _begin(self, work: Work) -> CachedResponse | None:
        """Whether the request was answered before, where it has an ``Idempotency-Key``."""
        given = self._request.headers.get("Idempotency-Key")
        if given is None:
            return None
        # With the request itself in the fingerprint, a key is never answered with another's answer.
        shape = f"{work.path}\n{work.workload.name}\n{self._explain}\n".encode()
        fingerprint = hashlib.sha256(shape + work.body).digest()
        try:
            kept = self._gateway.replays.begin(self._key.name, given, fingerprint)
        except IdempotencyError as error:
            raise AnswerError(
                error.status,
                "invalid_request_error" if error.status < 500 else "service_unavailable",
                str(error),
                code=error.code,
                retry_after=error.retry_after,
                retry=error.retry_after is not None,
            ) from None
        if kept is None:
            self._replay = given
        return kept

    def _keep(self, kept: CachedResponse | None) -> None:
        if self._replay is not None:
            self._gateway.replays.keep(self._key.name, self._replay, kept)

    def _allowed_s(self) -> float:
        most = self._gateway.config.timeout_s
        text = self._request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return most
        whole, _, part = text.partition(".")
        if not (text.isascii() and whole.isdigit() and (not part or part.isdigit()) and len(text) <= 12):
            raise AnswerError(400, "invalid_request_error", f"{TIMEOUT_HEADER} is not a number of seconds")
        return min(float(text), most)

    def _explained(self, record: Record) -> dict[str, Any] | None:
        if not self._explain:
            return None
        dispatcher = self._gateway.dispatcher
        return {"touchstone": record.to_wire(dispatcher.excluded(record.decision))}

    async def _whole(self, run: Run) -> web.Response:
        record = run.record
        try:
            answer = await self._gateway.dispatcher.run(run)
        except (PoolEmptyError, AttemptError) as error:
            return _failure(error).response(record, self._explained(record))
        assert answer is not None
        data = answer.body
        if answer.status == 200 and (extra := self._explained(record)) is not None:
            data = msgspec.json.encode({**msgspec.json.decode(data, type=dict[str, msgspec.Raw]), **extra})
        headers = {DECISION_HEADER: record.id}
        if answer.status == 200:
            self._keep(CachedResponse(200, "application/json", tuple(headers.items()), data))
        return web.Response(
            status=answer.status, body=data, headers={"Content-Type": "application/json", **headers}
        )

    async def _streamed(self, run: Run) -> web.StreamResponse:
        sink = self._sink = run.sink = ClientStream(
            self._request,
            {DECISION_HEADER: run.record.id},
            write_timeout_s=self._gateway.config.write_timeout_s,
            keep=self._replay is not None,
        )
        try:
            return await self._stream_into(sink, run)
        except ClientGoneError:
            return sink.end()

    async def _stream_into(self, sink: ClientStream, run: Run) -> web.StreamResponse:
        record = run.record
        try:
            answer = await self._gateway.dispatcher.run(run)
        except (PoolEmptyError, AttemptError) as error:
            failure = _failure(error)
            extra = self._explained(record)
            if not sink.begun:
                return sink.instead(failure.response(record, extra))
            # Half an answer is out: it ends with an error that every client sees, and no [DONE].
            await sink.give({**failure.document(), **(extra or {})})
            return sink.end()
        if answer is not None:
            headers = {"Content-Type": "application/json", DECISION_HEADER: record.id}
            return sink.instead(web.Response(status=answer.status, body=answer.body, headers=headers))
        if run.work.wants_usage and run.counted is not None:
            await sink.give({**_empty_chunk(run.work, record.id), "usage": run.counted.to_wire()})
        if (extra := self._explained(record)) is not None:
            await sink.give({**_empty_chunk(run.work, record.id), **extra})
        await sink.done()
        self._keep(sink.kept())
        return sink.end()


def _empty_chunk(work: Work, record_id: str) -> dict[str, Any]:
    kind = "chat.completion.chunk" if work.path.endswith("/chat/completions") else "text_completion"
    return {
        "id": record_id,
        "object": kind,
        "created": 0,
        "model": work.workload.model,
        "choices": [],
    }


def _failure(error: PoolEmptyError | AttemptError) -> AnswerError:
    if isinstance(error, PoolEmptyError):
        counts = ", ".join(f"{n} {code}" for code, n in sorted(error.decision.closed.items()))
        message = f"no node may do this work now: {counts or 'no nodes are known'}"
        return AnswerError(503, "service_unavailable", message, retry_after=_RETRY_AFTER_S)
    status = _STATUS.get(error.outcome, 502)
    message = f"no node completed the work; the last: {error.outcome}"
    return AnswerError(
        status,
        "upstream_error",
        message,
        code=str(error.outcome),
        retry_after=_RETRY_AFTER_S if status == 503 else None,
    )


def may_review(key: Key) -> bool:
    """Whether a caller may decide about incidents: nobody, where no keys are configured."""
    return key.role == "reviewer" and key is not ANONYMOUS


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=headers
    )
