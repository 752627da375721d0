"""One check on its way: its request, which the code of users' requests makes, and its answer, which nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from router.choose.decision import Decision
from router.config import ApiKey, GatewaySection
from router.gateway.attempts import Attempt
from router.gateway.dispatch import Dispatcher, Run
from router.gateway.errors import GatewayError
from router.gateway.request import NodeRequest, read_request
from router.gateway.sink import ClientGoneError
from router.gateway.sse import EventParser
from router.model import given
from router.model.operations import OPERATIONS, Operation
from router.model.outcomes import Outcome
from router.model.traffic import Kind, describe
from router.model.uniform import NOTHING
from router.model.workload import Table, Workload
from router.state.records import Record
from verifier.answers.checks import Given

NOBODY: Final = ApiKey(name="", sha256="")
"""Whose key checks have: no caller's."""
MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer that are read."""
_ANSWERED: Final = (Outcome.COMPLETED, Outcome.EMPTY, Outcome.UNHONOURED)
"""After these there is an answer that can be judged."""


class Offered(Struct, frozen=True):
    """A check as the verifier gives it."""

    id: str
    operation: str
    body: dict[str, Any]
    streamed: bool = False


class CheckSink:
    """A `Sink` that keeps what a stream brings."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._size = 0
        self._parser = EventParser()
        self.has_begun = self.is_open = False

    async def prepare(self) -> None:
        """See `Sink`."""

    def name_revision(self, revision: str) -> None:
        """See `Sink`."""

    def may_block(self, size: int) -> bool:
        """See `Sink`."""
        return size > MAX_ANSWER

    async def send(self, data: bytes) -> None:
        """See `Sink`."""
        self.has_begun = self.is_open = True
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise ClientGoneError("no check has so long an answer")
        self._events += [event.data for event in self._parser.feed(data)]

    def all_events(self, unsent: bytes) -> list[bytes]:
        """The data of all events, those that were not sent on included."""
        return [*self._events, *(event.data for event in self._parser.feed(unsent))]


def operation_of(checked_as: str) -> Operation | None:
    """The operation that the verifier calls so."""
    return next((each for each in OPERATIONS.values() if each.checked_as == checked_as != ""), None)


def make_request(
    offered: Offered, workload: Workload, table: Table, *, encoding: str, is_asked: Callable[[Workload], bool]
) -> tuple[NodeRequest, Kind | None]:
    """
    The request of a check, by the same function that reads those of users.

    Args:
        encoding: Of vectors; empty if the request names none.

    Returns:
        The request, and what a node sees of it at a glance; `None` if no request can be like it.

    Raises:
        GatewayError: the gateway would not take such a request from anybody.
    """
    operation = operation_of(offered.operation)
    if operation is None or operation.name not in workload.operations:
        raise GatewayError(404, "invalid_request_error", "the workload does not have this operation")
    document = {**offered.body, "model": workload.model}
    if offered.streamed and operation.read_stream is not None:
        document["stream"] = True
    if encoding:
        document["encoding_format"] = encoding
    data = msgspec.json.encode(document)
    request = read_request(data, operation, table, NOBODY, workload=workload.name, is_asked=is_asked)
    found = describe(request.document, operation.checked_as, request.added)
    # Nobody asked for less than the node gives.
    return structs.replace(request, added=NOTHING), None if found is None else found[1]


async def send(
    dispatcher: Dispatcher, request: NodeRequest, decision: Decision, config: GatewaySection, now: float
) -> tuple[Attempt | None, Given | None]:
    """
    Send a check as work is sent: to the first node of a decision, and if that fails to the next ones.

    Returns:
        What came of it at the first node; and what that has answered, if it has.
    """
    sink = CheckSink() if request.is_streamed else None
    run = Run(
        record=Record(decision),
        request=request,
        deadline=now + config.longest_s,
        first_by=now + config.timeout_s,
        sink=sink,
        is_check=True,
    )
    try:
        await dispatcher.run(run)
    finally:
        unsettled, run.unsettled = run.unsettled, None
        if unsettled is not None:
            dispatcher.settle(run, unsettled)
        # The nodes are paid for it.
        dispatcher.metering.on_check_end(run)
    node = decision.ranked[0].node
    attempt = run.attempts[0] if run.attempts and run.attempts[0].node == node else None
    return attempt, None if attempt is None else _given(attempt, sink)


def _given(attempt: Attempt, sink: CheckSink | None) -> Given | None:
    if attempt.outcome not in _ANSWERED:
        return None
    stream = attempt.stream
    timing = given.Timing(
        outcome=str(attempt.outcome),
        seconds=attempt.seconds,
        first_token_s=None if stream is None else stream.first_token_s,
        claimed=attempt.claimed,
        streamed=stream is not None,
    )
    if stream is not None and sink is not None:
        return given.of_events(sink.all_events(stream.unsent), timing)
    if attempt.answer is None or attempt.answer.status != 200 or len(attempt.answer.body) > MAX_ANSWER:
        return None
    return given.of_whole(attempt.answer.body, timing)
