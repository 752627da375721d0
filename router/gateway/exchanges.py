"""What all exchanges with nodes share: the connections, and the bounds for all together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from router.config import GatewaySection
from router.gateway.aside import Aside
from router.gateway.failures import classify, judge, not_listed
from router.gateway.request import NodeRequest
from router.gateway.sink import ClientGoneError
from router.gateway.upstream import NodeResponse, Upstream
from router.model.allowance import Limits
from router.model.clock import Clock
from router.model.errors import AttemptError
from router.model.outcomes import CERTIFICATE_STATUSES, Failure, Outcome

MAX_READING: Final = 1 << 30
"""Bytes of whole answers that are being read at a time: nodes could agree to fill the router's memory."""

T = TypeVar("T")


class Exchanges:
    """
    Exchanges with nodes, each over TLS pinned to the node's key, within bounds for all together.

    Args:
        judge_refusal: Whose fault it is that a node refuses the router's certificate now.
        digests: Whether what nodes send is digested, for receipts.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        config: GatewaySection,
        clock: Clock,
        *,
        lost_s: Callable[[], float] = lambda: 0.0,
        judge_refusal: Callable[[], Awaitable[Failure]] = not_listed,
        digests: bool = False,
    ) -> None:
        self.config = config
        self.clock = clock
        self.limits = Limits(
            first_s=config.attempt_timeout_s,
            stall_s=config.stall_s,
            quiet_s=config.quiet_s,
            token_s=1 / config.unseen_tokens_per_second,
            prompt_token_s=1 / config.unseen_prompt_tokens_per_second,
        )
        self.lost_s = lost_s
        """How long this process has stood still until now, in seconds."""
        self._judge_refusal = judge_refusal
        self.aside = Aside("answers")
        """Where large answers are read."""
        self.digests = digests
        self.is_stopping = False
        """Whether the router is stopping: then it is not the client that leaves."""
        self._reading: dict[NodeResponse, int] = {}
        self._reading_now = 0
        self._upstream = Upstream(
            http, connect_timeout_s=config.connect_timeout_s, allow_private=config.allow_private
        )

    async def _failed(
        self,
        failure: Failure,
        endpoint: tuple[str, str],
        *,
        was_answered: bool = False,
        is_doubtful: bool = False,
    ) -> AttemptError:
        """The error of an attempt that failed so at an endpoint."""
        if not was_answered:
            failure = await judge(failure, endpoint[1], self._judge_refusal)
        if failure in (Failure.CERTIFICATE_NEW, Failure.NOT_REGISTERED):
            return AttemptError.by(failure)
        # If every node refuses the router's certificate, the list of routers is the cause.
        is_doubtful |= failure in (Failure.NO_CONNECTION_IN_TIME, Failure.CERTIFICATE_REFUSED)
        return AttemptError.by(failure, is_doubtful=is_doubtful)

    async def read_body(self, response: NodeResponse, limit: int) -> bytes:
        """
        Read a whole body, within *limit* and within what all bodies may have together.

        Raises:
            AttemptError: it is larger, or it had to make room for others.
        """
        content = response.content
        if content.is_eof():
            return content.read_nowait()
        parts: list[bytes] = []
        self._reading[response] = 0
        try:
            async for part in content.iter_any():
                parts.append(part)
                self._reading[response] += len(part)
                self._reading_now += len(part)
                if self._reading[response] > limit:
                    raise AttemptError(Outcome.CORRUPTED, f"an answer of more than {limit} bytes")
                if self._reading_now > MAX_READING:
                    # The largest body makes room, whichever came last.  That is not its node's fault.
                    largest = max(self._reading, key=self._reading.__getitem__)
                    largest.was_dropped = True
                    largest.abort()
        except aiohttp.ClientPayloadError:
            if response.was_dropped:
                raise AttemptError.by(Failure.DROPPED_HERE) from None
            raise
        finally:
            self._reading_now -= self._reading.pop(response)
        return b"".join(parts)

    async def post(
        self,
        endpoint: tuple[str, str],
        request: NodeRequest,
        read: Callable[[NodeResponse], Awaitable[T]],
        meanwhile: Callable[[], Awaitable[None]] | None = None,
        *,
        request_id: str,
        on_given: Callable[[], None] | None = None,
    ) -> T:
        """
        Send a request, have its answer read, and give the connection back.

        Args:
            endpoint: The node's URL and the pin of its TLS key.
            request: What it is sent.
            read: Reads the answer; `post` returns what it makes of it.
            meanwhile: Runs while the node works.
            request_id: By which the node knows this attempt.
            on_given: Called when the request goes out.

        Raises:
            AttemptError: there is no answer, or it breaks off.
            TimeoutError: the caller's own timeout, passed on.
        """
        response: NodeResponse | None = None
        went_well = False
        try:
            response = await self._upstream.post(
                endpoint,
                request.operation.path,
                request.body,
                meanwhile,
                request_id=request_id,
                on_given=on_given,
            )
            if response.status in CERTIFICATE_STATUSES:
                raise await self._failed(Failure.CERTIFICATE_REFUSED, endpoint)
            found = await read(response)
            went_well = True
        except ClientGoneError:
            # It is an OSError too, and not the node's.
            raise
        except aiohttp.ClientPayloadError:
            raise AttemptError(Outcome.TRUNCATED, "the answer ended early") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise
            # A node that takes a request and hangs up without a word may do so because of the request.
            was_sent = isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))
            is_doubtful = was_sent and not isinstance(error, aiohttp.ClientConnectorError)
            raise await self._failed(
                classify(error), endpoint, was_answered=response is not None, is_doubtful=is_doubtful
            ) from None
        finally:
            if response is not None:
                response.leave(went_well=went_well)
        return found
