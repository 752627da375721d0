"""
One stream of Envoy's external processing, which is one request: read its head, perhaps its body, name the nodes.

Two ends of a stream mean the opposite of each other.  If it ends with an error, Envoy refuses the request, as long as
its filter does not allow failures.  If it ends cleanly, or if a message comes that Envoy did not ask for, Envoy lets
the request pass unchanged.  So until the nodes are named, everything that goes wrong ends a stream with an error.
After that nothing is lost by a clean end.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from router.config import ApiKey
from router.ext_proc_config import ExtProcSection
from router.gateway.errors import DECISION_HEADER, GatewayError
from router.model.operations import Operation
from router.service.ext_proc import answers
from router.service.ext_proc.api import BodySendMode, ProcessingRequest
from router.service.ext_proc.head import Head, TooMuchError, read_head, read_pairs, spoken_for_us
from router.service.ext_proc.offers import Asked, EmptyOfferError, Offer, Offers
from router.service.ext_proc.picked import read_picked, subset_of

_RESPONSE: Final = "response_"
"""Steps that are of an answer, and not of a request, begin so."""


class Refusal(StrEnum):
    """Why a stream ends with an error; each is a status of gRPC, by its name."""

    MALFORMED = "INVALID_ARGUMENT"
    OUT_OF_ORDER = "FAILED_PRECONDITION"
    TOO_MUCH = "RESOURCE_EXHAUSTED"
    TOO_LATE = "DEADLINE_EXCEEDED"


class StreamError(Exception):
    """A stream must end with an error."""

    def __init__(self, why: Refusal, message: str) -> None:
        super().__init__(message)
        self.why = why


class Wire(Protocol):
    """The stream itself."""

    async def read(self) -> bytes | None:
        """The next message; `None`: there are no more."""

    async def write(self, message: bytes) -> None:
        """Send a message."""


class Stream:
    """
    One request.

    Args:
        wire: Where messages come from and go to.
        offers: Decides for it.
        config: Its limits.
        rest_s: For how long a stream may wait for messages once its nodes are named.
        checks_picked: Whether it comes from behind the picker, to have what was picked checked.
    """

    def __init__(
        self, wire: Wire, offers: Offers, config: ExtProcSection, *, rest_s: float, checks_picked: bool
    ) -> None:
        self._wire = wire
        self._offers = offers
        self._config = config
        self._rest_s = rest_s
        self._checks_picked = checks_picked
        self._within: frozenset[str] | None = None
        """The subset that the gateway itself allows, if it passes one on."""
        self._waiting: asyncio.Timeout | None = None
        self.is_decided = False
        """Whether nothing is lost if it ends, once what is being sent was sent."""
        self._is_let_go = False
        self._charged = 0
        """For how many tokens the caller is charged, whatever becomes of the stream."""
        self.end = "offered"
        """How it ended, for the counter."""

    async def run(self) -> None:
        """
        Serve the request; it returns when the stream may end cleanly.

        Raises:
            StreamError: it must end with an error.
        """
        step, message = await self._next(self._config.message_timeout_s)
        if step.startswith(_RESPONSE):
            await self._pass_reply(step, message)
            return
        if step != "request_headers":
            raise StreamError(Refusal.OUT_OF_ORDER, f"{step} came before request_headers")
        self._check_modes(message)
        self._within = subset_of(message)
        try:
            pairs = read_pairs(message.request_headers.headers.headers)
        except TooMuchError:
            raise StreamError(Refusal.TOO_MUCH, "the headers are too many, or too large") from None
        if self._checks_picked:
            await self._check(pairs, message)
            return
        try:
            head = read_head(pairs)
            key, operation = self._offers.admit(head)
        except GatewayError as error:
            await self._refuse(error)
            return
        try:
            await self._serve(head, key, operation, has_body=not message.request_headers.end_of_stream)
        finally:
            self._offers.leave(key, self._charged)

    def let_go(self) -> None:
        """End cleanly now if the request is decided: its answer may take a while yet, and goes on without us."""
        self._is_let_go = True
        if self.is_decided and self._waiting is not None:
            self._waiting.reschedule(0)

    async def _check(self, pairs: list[tuple[str, bytes]], message: Any) -> None:
        """Check what was picked."""
        try:
            picked = read_picked(pairs, message)
            error = self._offers.recheck(picked.record, picked.endpoints)
        except GatewayError as found:
            error = found
        self.end = "picked" if error is None else "picked_elsewhere"
        await self._send(answers.go_on("request_headers") if error is None else answers.refused(error))

    async def _serve(self, head: Head, key: ApiKey, operation: Operation, *, has_body: bool) -> None:
        """Name the nodes."""
        try:
            step, asked = await self._ask(head, key, operation, has_body=has_body)
            if asked is None:
                return
            offer = await self._offers.decide(asked, key, self._within)
        except GatewayError as error:
            await self._refuse(error)
            return
        except EmptyOfferError as error:
            self.end = "empty"
            await self._send(answers.refused(error.error, error.record))
            return
        self._charged = asked.tokens
        self.is_decided = True
        with self._offers.keeping(offer):
            await self._send(self._offered(step, head, asked, offer))
            await self._finish(offer.record)

    async def _ask(
        self, head: Head, key: ApiKey, operation: Operation, *, has_body: bool
    ) -> tuple[str, Asked | None]:
        """
        What the request is for, and in answer to which step its nodes are named; nothing if Envoy has answered it.

        Raises:
            GatewayError: it is refused.
            StreamError: the stream must end with an error.
        """
        if self._config.model_from == "header":
            return "request_headers", self._offers.read_by_header(head, operation, key)
        if not has_body:
            raise GatewayError(400, "invalid_request_error", "the request has no body")
        await self._send(answers.go_on("request_headers", head.foreign))
        step, message = await self._next(self._config.message_timeout_s)
        if step.startswith(_RESPONSE):
            await self._pass_reply(step, message)
            return step, None
        if step != "request_body":
            raise StreamError(Refusal.OUT_OF_ORDER, f"{step} came, and request_body was due")
        return step, await self._offers.read_by_body(head, operation, key, message.request_body.body)

    def _offered(self, step: str, head: Head, asked: Asked, offer: Offer) -> Any:
        return answers.offered(
            step,
            offer.scores,
            offer.record,
            removed=head.foreign,
            body=asked.body,
            with_scores=self._config.scores,
        )

    async def _pass_reply(self, step: str, message: Any) -> None:
        """Let an answer pass that Envoy has made itself, to a body that is too large, say: no node gets the request."""
        self.end = "answered_by_gateway"
        self.is_decided = True
        await self._send(self._passed(step, message, None))
        await self._finish(None)

    async def _finish(self, record: str | None) -> None:
        """Answer what may still come: the response's headers get the decision's id, the rest goes on as it is."""
        while not self._is_let_go:
            try:
                step, message = await self._next(self._rest_s, or_end=True)
            except StreamError as error:
                if error.why is Refusal.TOO_LATE:
                    # All is decided: Envoy goes on without us.
                    return
                raise
            if not step:
                return
            if step in ("request_headers", "request_body"):
                raise StreamError(Refusal.OUT_OF_ORDER, f"{step} came twice")
            await self._send(self._passed(step, message, record))

    def _passed(self, step: str, message: Any, record: str | None) -> Any:
        if step != "response_headers":
            return answers.go_on(step)
        try:
            foreign = spoken_for_us(read_pairs(message.response_headers.headers.headers))
        except TooMuchError:
            raise StreamError(Refusal.TOO_MUCH, "the node's headers are too many, or too large") from None
        return answers.go_on(step, foreign, {} if record is None else {DECISION_HEADER.lower(): record})

    async def _refuse(self, error: GatewayError) -> None:
        self.end = "refused"
        await self._send(answers.refused(error))

    async def _send(self, message: Any) -> None:
        try:
            async with asyncio.timeout(self._config.message_timeout_s):
                await self._wire.write(message.SerializeToString())
        except TimeoutError:
            raise StreamError(Refusal.TOO_LATE, "what was said was not read in time") from None

    async def _next(self, within_s: float, *, or_end: bool = False) -> tuple[str, Any]:
        """
        The next message and which step it is; an empty step is the end, where that is allowed.

        Raises:
            StreamError: none came in time, the stream ended too early, or it is no message of the API.
        """
        try:
            async with asyncio.timeout(within_s) as self._waiting:
                data = await self._wire.read()
        except TimeoutError:
            raise StreamError(Refusal.TOO_LATE, "the next message did not come in time") from None
        finally:
            self._waiting = None
        if data is None:
            if or_end:
                return "", None
            raise StreamError(Refusal.OUT_OF_ORDER, "the stream ended before the nodes were named")
        try:
            message = ProcessingRequest.FromString(data)
        except DecodeError:
            raise StreamError(Refusal.MALFORMED, "that is no ProcessingRequest") from None
        step = message.WhichOneof("request")
        if step is None:
            raise StreamError(Refusal.MALFORMED, "the ProcessingRequest has no request")
        return step, message

    def _check_modes(self, message: Any) -> None:
        """Refuse a filter whose settings would let requests pass that were not decided.  Raises `StreamError`."""
        if message.observability_mode:
            raise StreamError(Refusal.OUT_OF_ORDER, "observability_mode ignores what is decided here")
        if self._checks_picked or not message.HasField("protocol_config"):
            return
        needed = BodySendMode.NONE if self._config.model_from == "header" else BodySendMode.BUFFERED
        given = message.protocol_config
        if given.request_body_mode != needed:
            raise StreamError(Refusal.OUT_OF_ORDER, f"request_body_mode must be {needed.name}")
        if given.response_body_mode != BodySendMode.NONE:
            raise StreamError(Refusal.OUT_OF_ORDER, "response_body_mode must be NONE")
