"""
The resources that OpenAI's clients know: models, and the operations of `router.model.operations`.

Any client of OpenAI's works if its ``base_url`` is changed.  Every answer for which a decision
was made carries the decision's id; errors do too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web

from router.config import ApiKey
from router.gateway.errors import GatewayError, json_answer
from router.gateway.handler import Gateway, Handler
from router.gateway.keys import ANONYMOUS, LimitError
from router.model.operations import OPERATIONS, Operation
from verifier.errors import RequestError
from verifier.service.front import note_failure, note_identity

__all__ = [
    "GATEWAY",
    "Gateway",
    "may_review",
    "routes",
]

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)

_LARGE: Final = 64 << 10
_LEAST_PACE: Final = 64 << 10
"""Bytes per second that a client must take of a large answer."""

_log = structlog.get_logger("router")


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/v1/models", list_models),
        web.get("/v1/models/{model:.+}", show_model),
        *(web.post(operation.path, _handler_of(operation)) for operation in OPERATIONS.values()),
        web.route("*", "/v1/{rest:.*}", unknown),
    ]


async def unknown(request: web.Request) -> web.Response:
    """Anything else below /v1, refused in the form that OpenAI's clients read."""
    message = f"no resource {request.method} {request.path[:100]}"
    return GatewayError(404, "invalid_request_error", message).response()


async def list_models(request: web.Request) -> web.Response:
    """The models that there is a workload for."""
    try:
        key = _key_of(request)
    except GatewayError as error:
        return error.response()
    data = [_model(name) for name in _models_for(request, key)]
    return json_answer(200, {"object": "list", "data": data})


async def show_model(request: web.Request) -> web.Response:
    """One of them."""
    try:
        key = _key_of(request)
    except GatewayError as error:
        return error.response()
    name = request.match_info["model"]
    if name not in _models_for(request, key):
        return GatewayError(404, "invalid_request_error", "no such model", code="model_not_found").response()
    return json_answer(200, _model(name))


def _models_for(request: web.Request, key: ApiKey) -> list[str]:
    workloads = request.app[GATEWAY].table.workloads.values()
    return sorted({w.model for w in workloads if not key.workloads or w.name in key.workloads})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "touchstone"}


def _key_of(request: web.Request) -> ApiKey:
    """The caller's API key.  Raises `GatewayError` if it has none that is known."""
    return _find_key(request.app[GATEWAY], request)


def _find_key(gateway: Gateway, request: web.Request) -> ApiKey:
    key = gateway.keyring.find(request.headers.get("Authorization"))
    if key is None:
        try:
            note_failure(request)
        except RequestError as error:
            raise GatewayError(429, "rate_limit_error", str(error), retry_after=error.retry_after) from None
        raise GatewayError(401, "invalid_request_error", "a valid API key is needed", code="invalid_api_key")
    # Where anyone may use the gateway, all its callers are one.
    note_identity(request, f"key:{key.name}")
    return key


def may_review(key: ApiKey) -> bool:
    """Whether a caller may decide about incidents: no caller may if no keys are configured."""
    return key.role == "reviewer" and key is not ANONYMOUS


def _handler_of(operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    return partial(serve, operation)


async def serve(operation: Operation, request: web.Request) -> web.StreamResponse:
    """Admit a request, have it handled, and settle it once its answer is on its way."""
    gateway = request.app[GATEWAY]
    try:
        key = _find_key(gateway, request)
        _admit(gateway, key)
    except GatewayError as error:
        return _closing(request, error.response())
    gateway.in_flight += 1
    handler = Handler(gateway, operation, request, key)
    try:
        response = await handler.answer()
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
    # The answer is written in this turn of the loop: the client need not wait for what is recorded.
    gateway.finish_soon(handler)
    return _closing(request, response)


async def _write_large(request: web.Request, response: web.Response, timeout_s: float) -> None:
    """Write a large answer while the request holds its places.  A client that reads too slowly is given up."""
    size = response.content_length or 0
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
    """End the connection with the answer if the request's body was not read."""
    if not request.content.is_eof():
        response.force_close()
    return response


def _admit(gateway: Gateway, key: ApiKey) -> None:
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
