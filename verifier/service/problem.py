"""
Errors as HTTP: the only place that knows the status code of an error (RFC 9457).

The `type` of a problem is stable and ends in a code of `verifier.reasons`.  `title`, `detail` and
`hint` each end as a sentence does, so that they can be shown one after the other.  The cause of an
internal failure is logged and never sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import Counter

from attester.errors import AttesterError
from verifier.errors import RequestError, VerifierError
from verifier.log.witnessing import Refusal
from verifier.reasons import REASONS
from verifier.store.database import RETRY_AFTER_S, UnavailableError

TYPE: Final = "tag:github.com,2026:touchstone/problem#"
MEDIA_TYPE: Final = "application/problem+json"

_STATUS: Final = {
    "evidence.media-type": 415,
    "evidence.size": 413,
    "evidence.malformed": 400,
    "evidence.profile": 400,
    "evidence.key": 403,
    "evidence.algorithm": 403,
    "evidence.signature": 403,
    "evidence.nonce": 422,
    "evidence.time": 422,
    "evidence.audience": 422,
    "evidence.ueid": 422,
    "request.malformed": 400,
    "request.too-large": 413,
    "request.too-slow": 408,
    "request.head-too-large": 431,
    "request.unauthorised": 401,
    "request.replayed": 409,
    "request.forbidden": 403,
    "request.issuer-unavailable": 503,
    "request.too-often": 429,
    "service.busy": 503,
    "request.not-found": 404,
    "receipt.unknown": 404,
    "receipt.not-yet": 425,
    "settlement.malformed": 400,
    "settlement.key": 403,
    "settlement.never-routed": 409,
    "settlement.conflict": 409,
    "settlement.unknown": 404,
    "settlement.day": 422,
    "request.method": 405,
    "request.not-acceptable": 406,
    "challenges.exhausted": 409,
    "challenges.reserved": 429,
    "challenges.quota": 429,
    "answers.check.expired": 410,
    "answers.check.reused": 409,
    "answers.drift.few": 409,
    "answers.node.not-serving": 409,
    "answers.result.unknown": 409,
    "session.expired": 410,
    "session.closed": 409,
    "token.unusable": 403,
    "key.exists": 409,
    "node.exists": 409,
    "registration.certificate": 422,
    "registration.signature": 403,
    "registration.removed": 403,
    "registration.full": 503,
    "incident.state": 409,
    "change.state": 409,
    "incident.report-reused": 409,
    "log.unacceptable": 422,
    "log.unreadable": 502,
    "reference.unusable": 422,
    "rollout.state": 409,
    "revision.unknown": 409,
    "revision.model": 422,
    "policy.unusable": 422,
    "policy.state": 409,
    "policy.block.misses": 409,
    "policy.version": 409,
    "log.pending": 425,
    "receipts.forked": 409,
    "receipts.key": 403,
    "store.refused": 503,
    "store.unavailable": 503,
}

WITNESS_STATUS: Final = {
    Refusal.MALFORMED: 400,
    Refusal.UNKNOWN: 404,
    Refusal.UNSIGNED: 403,
    Refusal.STALE: 409,
    Refusal.FORKED: 409,
    Refusal.INCONSISTENT: 422,
}
"""What a witness answers (c2sp.org/tlog-witness)."""

INTERNAL: Final = "The log of the service says why."

_log = structlog.get_logger("verifier")
_refused = Counter("touchstone_refused_total", "Requests refused, by code.", ["code"])


def status_of(code: str) -> int:
    """The HTTP status of a code."""
    return _STATUS.get(code, 500)


def response(code: str, detail: str, *, retry_after: int | None = None) -> web.Response:
    """A problem document; *detail* gets a full stop if it has none."""
    reason = REASONS[code]
    status = status_of(code)
    document = {
        "type": TYPE + code,
        "title": reason.sentence,
        "status": status,
        "detail": detail if detail.endswith((".", "!", "?")) else f"{detail}.",
        "hint": reason.hint,
    }
    _refused.labels(code).inc()
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Touchstone-Node, Bearer"
    return web.Response(
        status=status, body=msgspec.json.encode(document), content_type=MEDIA_TYPE, headers=headers
    )


@web.middleware
async def middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn what a handler raises into a problem document."""
    try:
        return await handler(request)
    except RequestError as error:
        answer = response(error.code, str(error), retry_after=error.retry_after)
    except VerifierError as error:
        if status_of(error.code) >= 500:
            _log.error("request failed", path=_place(request), error=str(error))
            retry_after = RETRY_AFTER_S if isinstance(error, UnavailableError) else None
            answer = response(error.code, INTERNAL, retry_after=retry_after)
        else:
            answer = response(error.code, str(error))
    except AttesterError as error:
        # A signed request that could not be read or verified.
        answer = response("request.unauthorised", str(error))
    except web.HTTPException as error:
        answer = from_aiohttp(error)
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001
        # No handler is above this one: nothing of an internal failure may reach the caller.
        _log.exception("request failed", path=_place(request))
        answer = response("verifier.internal", INTERNAL)
    if not request.content.at_eof():
        # The rest of the body need not be read: the connection ends with the response.
        answer.force_close()
    return answer


def _place(request: web.Request) -> str:
    """The path with the names of its parts: the id of a session opens it, and must not be in a log."""
    resource = request.match_info.route.resource
    return "an unknown path" if resource is None else resource.canonical


def from_aiohttp(error: web.HTTPException) -> web.Response:
    """A problem document in place of an error of aiohttp's."""
    match error:
        case web.HTTPNotFound():
            return response("request.not-found", "there is no such resource")
        case web.HTTPMethodNotAllowed():
            answer = response("request.method", f"{error.method} is not a method of this resource")
            answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return answer
        case web.HTTPRequestEntityTooLarge():
            return response("request.too-large", "the body is too large")
        case _ if error.status >= 500:
            return response("verifier.internal", INTERNAL)
        case _:
            return response("request.malformed", error.reason)
