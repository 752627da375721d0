"""One line of a job, done as a request is: decided, tried at nodes, counted; and what comes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from router.config import ApiKey
from router.gateway.attempts import Attempt, Fail
from router.gateway.body import is_large
from router.gateway.dispatch import Run
from router.gateway.errors import GatewayError, nobody_completed, nobody_may
from router.gateway.handler import Gateway
from router.gateway.receipting import FAILED, REFUSED, members_of
from router.gateway.request import NodeRequest, read_request
from router.gateway.told import tell_whole
from router.model.job_lines import LineRequest, in_one_line
from router.model.operations import OPERATIONS, Operation
from router.model.usage import Usage
from router.receipts import payload
from router.receipts.payload import Batch, Request, Response


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the owner gets for a line."""

    status: int
    body: bytes
    outcome: str
    members: dict[str, Any]
    """What the receipt says of the decision."""
    usage: Usage | None = None
    """What the owner is charged for."""


@dataclass(frozen=True)
class Again:
    """The line is to be tried again."""

    why: GatewayError
    counts: bool
    """Whether it is one of the tries that a line has: not if no node could be asked."""


def endpoints() -> tuple[str, ...]:
    """Where lines may go."""
    return tuple(operation.path for operation in OPERATIONS.values() if operation.in_batches)


def operation_of(endpoint: str) -> Operation:
    """The operation of an endpoint."""
    return OPERATIONS[endpoint.removeprefix("/v1/")]


async def prepare(gateway: Gateway, endpoint: str, line: LineRequest, key: ApiKey) -> NodeRequest:
    """
    Read a line's request by the function that reads live ones.

    Raises:
        GatewayError: it is refused.
    """
    operation, data = operation_of(endpoint), bytes(line.body)

    def read() -> NodeRequest:
        request = read_request(
            data, operation, gateway.table, key, workload=None, is_asked=gateway.checks.asks
        )
        if request.is_streamed:
            raise GatewayError(
                400, "invalid_request_error", "a line of a batch is not streamed", param="stream"
            )
        return request

    return await gateway.aside.run(read) if is_large(data) else read()


async def do_line(gateway: Gateway, request: NodeRequest, key: ApiKey) -> Answered | Again:
    """Do a line once."""
    dispatcher, clock = gateway.dispatcher, gateway.clock
    try:
        narrowed = await gateway.terms.narrow(request.workload, request.required, key.name)
    except GatewayError as error:
        return Again(error, counts=False)
    record = dispatcher.decide(
        request.workload,
        key.name,
        has_tools=request.has_tools,
        narrowed=narrowed,
        affinity=dispatcher.salts.affinity_of(request),
    )
    decision = record.decision
    if not decision.ranked:
        dispatcher.records.finish(record)
        note = clock.describe_difference(gateway.skew_s)
        return Again(nobody_may(decision, dispatcher.shortfalls(decision), note), counts=False)
    gateway.checks.note(request, decision)
    now = clock.monotonic()
    run = Run(
        record=record,
        request=request,
        deadline=now + gateway.config.longest_s,
        first_by=now + gateway.config.timeout_s,
    )
    try:
        end = await dispatcher.run(run)
        if isinstance(end, Fail):
            return Again(nobody_completed(end), counts=True)
        return await _answered(gateway, run, end.attempt)
    finally:
        dispatcher.finish(run)


async def _answered(gateway: Gateway, run: Run, found: Attempt) -> Answered:
    assert found.answer is not None
    dispatcher = gateway.dispatcher
    status, body = found.answer.status, found.answer.body
    if status == 200:
        body, _ = await tell_whole(run.request, found, dispatcher.metering, gateway.aside)
    if run.unsettled is not None:
        unsettled, run.unsettled = run.unsettled, None
        dispatcher.settle(run, unsettled)
    outcome, members = members_of(run, found, dispatcher.metering)
    body = await gateway.aside.run_on(body, in_one_line)
    return Answered(status=status, body=body, outcome=outcome, members=members, usage=run.usage)


def refused(error: GatewayError) -> Answered:
    """What the owner gets for a line that the router itself refuses."""
    return _of_error(error, REFUSED)


def failed(error: GatewayError) -> Answered:
    """What the owner gets for a line that no node has completed."""
    return _of_error(error, error.code or FAILED)


def _of_error(error: GatewayError, outcome: str) -> Answered:
    body = in_one_line(msgspec.json.encode(error.document()))
    return Answered(status=error.status, body=body, outcome=outcome, members={})


def receipt_members(
    answered: Answered, endpoint: str, job: str, number: int, line: LineRequest
) -> dict[str, Any]:
    """The payload of a line's receipt, without the chain."""
    return {
        **answered.members,
        "batch": Batch(id=job, line=number),
        "outcome": answered.outcome,
        "request": Request(
            method="POST", path=endpoint, salted=False, sha256=payload.digest_body(b"", bytes(line.body))
        ),
        "response": Response(
            bytes=len(answered.body),
            complete=True,
            sha256=hashlib.sha256(answered.body).hexdigest(),
            status=answered.status,
            streamed=False,
        ),
    }
