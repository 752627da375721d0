"""Errors of the gateway in the form that OpenAI's clients read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from router.choose.decision import Decision
from router.choose.gates import EXHAUSTED
from router.gateway.attempts import Fail
from router.model.answers import Answer
from router.model.outcomes import Outcome
from router.state.records import Record

DECISION_HEADER: Final = "X-Touchstone-Decision"
REVISION_HEADER: Final = "X-Touchstone-Revision"
"""Which revision of the model has answered: the digest of its reference value."""
REQUIREMENTS: Final = "provider.touchstone"
UNMET: Final = "requirements.unmet"
_RETRY_AFTER_S: Final = 2
_MAX_SHORTFALLS: Final = 2
"""Of a message: the commonest."""
_STATUS: Final[Mapping[Outcome, int]] = {
    Outcome.TIMED_OUT: 504,
    Outcome.STALLED: 504,
    Outcome.BUSY: 503,
    Outcome.HINDERED: 503,
    Outcome.NOT_ALLOWED: 503,
    Outcome.NOT_ADMITTED: 503,
}


class _Refusal(Struct, frozen=True):
    error: Any = None


class GatewayError(Exception):
    """
    A request cannot be served.

    Args:
        status: Of HTTP.
        kind: The ``type`` that OpenAI's clients know.
        message: For people.
        code: For programs.
        param: The member of the request that is wrong.
        retry_after: Seconds after which the client should try again.
        retry: Whether it should; OpenAI's clients ask this before their own judgement.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.retry = retry

    def document(self) -> dict[str, Any]:
        """The error as JSON-compatible data."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def event_document(self) -> dict[str, Any]:
        """The error as an event of a stream whose status has gone out already: what the head would say is in it."""
        document = self.document()
        document["error"]["status"] = self.status
        if self.retry_after is not None:
            document["error"]["retry_after"] = self.retry_after
        return document

    def response(self, record: Record | None = None, extra: Mapping[str, Any] | None = None) -> web.Response:
        """The error as an answer, with the id of the decision's record if there is one."""
        headers = {} if record is None else {DECISION_HEADER: record.id}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        return json_answer(self.status, {**self.document(), **(extra or {})}, headers)


def nobody_may(decision: Decision, shortfalls: Counter[str], note: str = "") -> GatewayError:
    """
    The error of a decision without nodes, with how many nodes each code keeps out.

    Args:
        decision: The decision.
        shortfalls: What nodes' results lack, and how many nodes lack it.
        note: What is wrong here.
    """
    counts = ", ".join(f"{n} {code}" for code, n in sorted(decision.closed.items()))
    if decision.is_unmet:
        # Nodes might do the work, and to wait for them to change would be to wait for something else.
        message = f"no node meets the requirements of this request: {counts}"
        return GatewayError(
            412, "invalid_request_error", message + _told(shortfalls), code=UNMET, param=REQUIREMENTS
        )
    message = f"no node may do this work now: {counts or 'no nodes are known'}"
    code = None
    if EXHAUSTED in decision.closed:
        # Other nodes may be out for their own reasons.  These would do the work if the verifier could call them.
        code = EXHAUSTED
        message += ". The verifier has no challenges left: its operator must mint more"
    message += _told(shortfalls)
    message += f"; {note}" if note else ""
    return GatewayError(503, "service_unavailable", message, code=code, retry_after=_RETRY_AFTER_S)


def _told(shortfalls: Counter[str]) -> str:
    """The commonest of what nodes lack, in sentences."""
    return "".join(
        f". {count} {'node' if count == 1 else 'nodes'}: {shortfall}"
        for shortfall, count in shortfalls.most_common(_MAX_SHORTFALLS)
    )


def nobody_completed(failure: Fail) -> GatewayError:
    """The error of a request that no node completed."""
    status = _STATUS.get(failure.outcome, 502)
    return GatewayError(
        status,
        "upstream_error",
        f"no node completed the work; the last: {failure.outcome}",
        code=str(failure.outcome),
        retry_after=_RETRY_AFTER_S if status == 503 else None,
    )


def refusal_document(answer: Answer) -> dict[str, Any]:
    """A node's whole answer to who asked for a stream, as an event: a refusal, or an answer with nothing in it."""
    if answer.status != 200:
        try:
            found = msgspec.json.decode(answer.body, type=_Refusal).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        error = found if isinstance(found, dict) else {"message": "the node refused the request"}
        return {"error": {"type": "invalid_request_error", **error, "status": answer.status}}
    return nobody_completed(Fail(answer.outcome)).event_document()


def json_answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=headers
    )
