"""
The resources that OpenAI's clients know: models, and the operations of `router.model.operations`.

Any client of OpenAI's works if its ``base_url`` is changed.  Every answer for which a decision
was made carries the decision's id; errors do too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import web

from router.config import ApiKey
from router.gateway.commitments import COMMITMENT_HEADER
from router.gateway.errors import GatewayError, json_answer
from router.gateway.handler import Gateway, Handler
from router.gateway.keys import LimitError
from router.gateway.receipting import ANSWERED, REFUSED, Draft
from router.model.operations import Operation
from verifier.errors import RequestError

__all__ = [
    "GATEWAY",
    "KEY",
    "Gateway",
    "admit",
    "answer_errors",
    "commit",
    "list_models",
    "refusal_of",
    "serve",
    "show_model",
]

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
KEY: web.RequestKey[ApiKey] = web.RequestKey("key", ApiKey)
"""The key of a request, which the table of routes has looked at already."""
DRAFT: web.RequestKey[Draft] = web.RequestKey("draft", Draft)
"""The receipt of a request's answer, if there are receipts."""

_LEAST_ERROR: Final = 400
"""The status of an answer is that of an error from here on."""
_LARGE: Final = 64 << 10
_LEAST_PACE: Final = 64 << 10
"""Bytes per second that a client must take of a large answer."""

_REFUSED: Final[Mapping[str, tuple[int, str, str | None]]] = {
    "request.unauthorised": (401, "invalid_request_error", "invalid_api_key"),
    "request.forbidden": (403, "invalid_request_error", "insufficient_permissions"),
    "request.not-found": (404, "invalid_request_error", None),
    "request.too-often": (429, "rate_limit_error", "rate_limit_exceeded"),
    "request.issuer-unavailable": (503, "service_unavailable", None),
    "service.busy": (503, "service_unavailable", None),
}

_log = structlog.get_logger("router")


async def answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give what the table of routes refuses in the form that OpenAI's clients read, and each answer a receipt."""
    gateway = request.app[GATEWAY]
    if gateway.receipts is None:
        return await _answer_errors(request, handler)
    draft = request[DRAFT] = Draft(gateway.receipts, gateway.clock, request)
    response = await _answer_errors(request, handler)
    if draft.is_claimed:
        return response
    # What does no work is answered in one go, and not later.
    key = request.get(KEY)
    if key is not None:
        draft.claim(key.name)
    draft.name(response)
    if isinstance(response, web.Response):
        draft.note_small(response)
    draft.end(ANSWERED if response.status < _LEAST_ERROR else REFUSED)
    return response


async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        refusal = refusal_of(error)
        answer = refusal.response()
        if refusal.status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return _closing(request, answer)
    except web.HTTPMethodNotAllowed as error:
        status, code, headers = 405, "method_not_allowed", {"Allow": ", ".join(sorted(error.allowed_methods))}
        message = f"{request.method} is not a method of this resource"
    except web.HTTPNotFound:
        status, code, headers = 404, None, {}
        message = f"no resource {request.method} {request.path[:100]}"
    answer = GatewayError(status, "invalid_request_error", message, code=code).response()
    answer.headers.update(headers)
    return _closing(request, answer)


def refusal_of(error: RequestError) -> GatewayError:
    """What the table of routes refuses, as OpenAI's clients read it."""
    status, kind, code = _REFUSED.get(error.code, (400, "invalid_request_error", None))
    return GatewayError(status, kind, str(error), code=code, retry_after=error.retry_after)


async def commit(request: web.Request, response: web.StreamResponse) -> None:
    """Commit to the choice of the caller's next request, whatever became of this one: a signal of the application."""
    key = request.get(KEY)
    if key is not None and request.path.startswith("/v1/"):
        response.headers[COMMITMENT_HEADER] = request.app[GATEWAY].terms.commitments.issue(key.name)


async def list_models(request: web.Request) -> web.Response:
    """The models that there is a workload for."""
    if (refused := _refuse_salt(request)) is not None:
        return refused
    data = [_model(name) for name in _models_for(request)]
    return json_answer(200, {"object": "list", "data": data})


async def show_model(request: web.Request) -> web.Response:
    """One of them."""
    if (refused := _refuse_salt(request)) is not None:
        return refused
    name = request.match_info["model"]
    if name not in _models_for(request):
        return GatewayError(404, "invalid_request_error", "no such model", code="model_not_found").response()
    return json_answer(200, _model(name))


def _refuse_salt(request: web.Request) -> web.Response | None:
    draft = request.get(DRAFT)
    try:
        if draft is not None:
            draft.check_salt()
    except GatewayError as error:
        return error.response()
    return None


def _models_for(request: web.Request) -> list[str]:
    key = request[KEY]
    workloads = request.app[GATEWAY].table.workloads.values()
    return sorted({w.model for w in workloads if not key.workloads or w.name in key.workloads})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "touchstone"}


async def serve(operation: Operation, request: web.Request) -> web.StreamResponse:
    """Admit a request, have it handled, and settle it once its answer is on its way."""
    gateway, key = request.app[GATEWAY], request[KEY]
    try:
        admit(gateway, key)
    except GatewayError as error:
        return _closing(request, error.response())
    gateway.in_flight += 1
    draft = request.get(DRAFT)
    if draft is not None:
        draft.claim(key.name)
    handler = Handler(gateway, operation, request, key, draft)
    try:
        response = await handler.answer()
        if draft is not None:
            await _note_answer(draft, response, gateway)
        if isinstance(response, web.Response) and (response.content_length or 0) > _LARGE:
            await _write_large(request, response, gateway.config.write_timeout_s)
    except (ConnectionError, asyncio.CancelledError):
        # The client has gone.
        handler.finish()
        raise
    except Exception:  # noqa: BLE001
        # The outermost of a request: nothing of an internal failure may reach the caller.
        _log.exception("a request failed", path=request.path[:100])
        response = handler.fail()
        if draft is not None:
            await _note_answer(draft, response, gateway)
    # The answer is written in this turn of the loop: the client need not wait for what is recorded.
    gateway.finish_soon(handler)
    return _closing(request, response)


async def _note_answer(draft: Draft, response: web.StreamResponse, gateway: Gateway) -> None:
    """Name the receipt in the head, and digest the answer if that is whole; a stream was digested as it went."""
    draft.name(response)
    if isinstance(response, web.Response):
        await draft.note_whole(response, gateway.aside)


async def _write_large(request: web.Request, response: web.Response, timeout_s: float) -> None:
    """Write a large answer while the request holds its places.  A client that reads too slowly is given up."""
    size = response.content_length or 0
    draft = request.get(DRAFT)
    try:
        async with asyncio.timeout(timeout_s + size / _LEAST_PACE):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        if draft is not None:
            draft.is_complete = False
    except ConnectionError:
        if draft is not None:
            draft.is_complete = False


def _closing(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End the connection with the answer if the request's body was not read."""
    if not request.content.is_eof():
        response.force_close()
    return response


def admit(gateway: Gateway, key: ApiKey) -> None:
    """
    Give a request of *key* a place, until `Keyring.leave`.

    Raises:
        GatewayError: the router is full, or the key is over a limit.
    """
    if gateway.in_flight >= gateway.config.max_in_flight:
        raise GatewayError(503, "service_unavailable", "the router is full", retry_after=1)
    try:
        gateway.keyring.enter(key)
    except LimitError as error:
        is_spent = error.code == "budget_exhausted"
        raise GatewayError(
            429,
            "insufficient_quota" if is_spent else "rate_limit_error",
            str(error),
            code=error.code,
            retry_after=error.retry_after,
            retry=False if is_spent else None,
        ) from None
