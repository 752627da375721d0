"""What Envoy is told, as messages of its API (docs/other-gateways.md says what each is for)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from router.gateway.errors import DECISION_HEADER, GatewayError
from router.service.ext_proc.api import OVERWRITE_IF_EXISTS_OR_ADD, ProcessingResponse
from router.service.ext_proc.head import PICKED_NAMESPACE, SCORES_KEY, SUBSET_KEY, SUBSET_NAMESPACE

_DETAILS: Final = "touchstone"
"""How Envoy's access log says who has answered (``%RESPONSE_CODE_DETAILS%``)."""


def go_on(step: str, removed: Iterable[str] = (), added: Mapping[str, str] | None = None) -> Any:
    """Go on with *step*, a member of both messages, without the headers *removed* and with those *added*."""
    answer = ProcessingResponse()
    mutation = _mutation_of(answer, step)
    if mutation is None:
        getattr(answer, step).SetInParent()
        return answer
    mutation.remove_headers.extend(removed)
    _set(mutation, added or {})
    # An empty member says which of the responses this is.
    getattr(answer, step).SetInParent()
    return answer


def _mutation_of(answer: Any, step: str) -> Any:
    if step.endswith("_trailers"):
        return None
    return getattr(answer, step).response.header_mutation


def _set(mutation: Any, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        option = mutation.set_headers.add(append_action=OVERWRITE_IF_EXISTS_OR_ADD)
        option.header.key, option.header.raw_value = name, value.encode()


def offered(
    step: str,
    scores: Mapping[str, float],
    decision: str,
    *,
    removed: Iterable[str],
    body: bytes | None,
    with_scores: bool,
) -> Any:
    """
    Offer endpoints to whoever picks one.

    Args:
        step: What is answered, ``request_headers`` or ``request_body``.
        scores: By endpoint, ``IP:PORT``.
        decision: The id of the record.
        removed: Headers that are taken away.
        body: What the node gets instead of the body, if that differs.
        with_scores: Whether the scores are told too.
    """
    # By the protocol the subset is metadata.  As a header it would reach the node, which must not know the others.
    added = {DECISION_HEADER.lower(): decision}
    if body is not None:
        # Envoy compares the two, and refuses the request if they differ.
        added["content-length"] = str(len(body))
    answer = go_on(step, removed, added)
    if body is not None:
        getattr(answer, step).response.body_mutation.body = body
    answer.dynamic_metadata.update({SUBSET_NAMESPACE: {SUBSET_KEY: list(scores)}})
    if with_scores:
        answer.dynamic_metadata.update({PICKED_NAMESPACE: {SCORES_KEY: dict(scores)}})
    return answer


def refused(error: GatewayError, decision: str | None = None) -> Any:
    """The error as the gateway of the router would answer it."""
    answer = ProcessingResponse()
    immediate = answer.immediate_response
    immediate.status.code = error.status
    immediate.body = msgspec.json.encode(error.document())
    immediate.details = f"{_DETAILS}_{error.code or error.kind}"
    headers = {"content-type": "application/json"}
    if decision is not None:
        headers[DECISION_HEADER.lower()] = decision
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    _set(immediate.headers, headers)
    return answer
