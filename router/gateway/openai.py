"""The OpenAI-compatible resources: models, embeddings, chat completions without streaming."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import msgspec
from aiohttp import web

from router.config import RouterConfig
from router.errors import AttemptError, PoolEmptyError
from router.gateway.dispatch import Dispatcher, Record
from router.outcomes import Outcome
from verifier.errors import RequestError
from verifier.service.http import read_body

MAX_REQUEST: Final = 16 << 20
DECISION_HEADER: Final = "X-Touchstone-Decision"
EXPLAIN_HEADER: Final = "X-Touchstone-Explain"
_RETRY_AFTER_S: Final = 2
_STATUS: Final = {Outcome.TIMED_OUT: 504, Outcome.STALLED: 504, Outcome.BUSY: 503}
_MAX_NAME: Final = 128

DISPATCHER: web.AppKey[Dispatcher] = web.AppKey("dispatcher", Dispatcher)
CONFIG: web.AppKey[RouterConfig] = web.AppKey("config", RouterConfig)


def _read_request(body: bytes) -> tuple[str, bytes]:
    """
    The model that a request names, and the request as nodes will see it.

    It is parsed whole and written anew, so that no node reads another model, or a wish to
    stream, than the router did: keys stand once, and in one spelling.

    Raises:
        RequestError: not a JSON object, without a model, or with a wish we do not serve.
    """
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(str(error)) from None
    model = document.get("model")
    if not isinstance(model, str) or len(model) > _MAX_NAME:
        raise RequestError("model is not a name")
    for key in document:
        if key.casefold() in ("model", "stream") and key not in ("model", "stream"):
            raise RequestError(f"{key[:40]!r}: keys are in lower case")
    if document.get("stream") not in (None, False):
        raise RequestError("streaming is not supported yet; send stream: false")
    document.pop("stream", None)
    return model, msgspec.json.encode(document)


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/v1/models", models),
        web.post("/v1/embeddings", work),
        web.post("/v1/chat/completions", work),
        web.route("*", "/v1/{rest:.*}", unknown),
    ]


async def unknown(request: web.Request) -> web.Response:
    """Anything else below /v1, refused in the form that OpenAI's clients read."""
    return _error(404, "invalid_request_error", f"no resource {request.method} {request.path[:100]}")


async def models(request: web.Request) -> web.Response:
    """The models there is a workload for."""
    if (refusal := _unauthorised(request)) is not None:
        return refusal
    config = request.app[CONFIG]
    data = [
        {"id": workload.model, "object": "model", "owned_by": name}
        for name, workload in sorted(config.workloads.items())
    ]
    return _json(200, {"object": "list", "data": data})


async def work(request: web.Request) -> web.Response:
    """Decide, send, answer; the decision's id is on every answer that one was made for."""
    if (refusal := _unauthorised(request)) is not None:
        return refusal
    try:
        model, body = _read_request(await read_body(request, MAX_REQUEST))
    except RequestError as error:
        status = 413 if error.code == "request.too-large" else 400
        return _error(status, "invalid_request_error", str(error))
    workload = request.app[CONFIG].workload_for(model)
    if workload is None:
        return _error(404, "invalid_request_error", "no workload for this model", code="model_not_found")
    if request.path.removeprefix("/v1/") not in workload.operations:
        return _error(404, "invalid_request_error", "the model does not have this operation")
    dispatcher = request.app[DISPATCHER]
    record = dispatcher.decide(workload)
    explain = request.headers.get(EXPLAIN_HEADER) == "1"
    try:
        answer = await dispatcher.execute(record, request.path, body)
    except PoolEmptyError:
        counts = ", ".join(f"{n} {code}" for code, n in sorted(record.decision.counts().items()))
        message = f"no node may do this work now: {counts or 'no nodes are known'}"
        return _failed(503, "service_unavailable", message, record, explain=explain)
    except AttemptError as error:
        status = _STATUS.get(error.outcome, 502)
        message = f"no node completed the work; the last: {error.outcome}"
        return _failed(status, "upstream_error", message, record, explain=explain)
    data = answer.body
    if explain and answer.status == 200:
        document = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        data = msgspec.json.encode({**document, "touchstone": record.to_wire()})
    return web.Response(
        status=answer.status,
        body=data,
        content_type="application/json",
        headers={DECISION_HEADER: record.id},
    )


def has_key(request: web.Request) -> bool:
    """Whether the caller has an API key, where one is needed."""
    digests = request.app[CONFIG].gateway.key_digests
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    given = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    # A sum, not any(): how long it takes does not tell which key came near.
    known = sum(hmac.compare_digest(given, digest) for digest in digests) > 0
    return not digests or (scheme == "Bearer" and known)


def _unauthorised(request: web.Request) -> web.Response | None:
    if has_key(request):
        return None
    return _error(401, "invalid_request_error", "a valid API key is needed", code="invalid_api_key")


def _failed(status: int, kind: str, message: str, record: Record, *, explain: bool) -> web.Response:
    document = _error_document(kind, message, None)
    if explain:
        document["touchstone"] = record.to_wire()
    headers = {DECISION_HEADER: record.id}
    if status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    return _json(status, document, headers)


def _error(status: int, kind: str, message: str, *, code: str | None = None) -> web.Response:
    return _json(status, _error_document(kind, message, code))


def _error_document(kind: str, message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=headers
    )
