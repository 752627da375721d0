"""
Requests to nodes over kept connections: aiohttp's connector and parser, without its client's upper half.

The connector keeps connections by host and pin, resolves and checks addresses and does TLS.  The
parser bounds what it reads.  What aiohttp has between them (cookies, redirects, authentication,
compression, middleware) must not be used with nodes, and takes half of the time that a gateway
adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property, lru_cache
from typing import Any, Final

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection

from attester.front.receipts import REQUEST_HEADER
from router.gateway.pinned import MalformedURLError, NodeConnector, check_url, pin_for

_READ_END_S: Final = 0.2
"""Seconds to wait for the end of an answer that nobody reads."""
_MAX_INTERIM: Final = 8
"""How many answers with status 1xx are passed over."""
_MAX_PREPARED: Final = 100_000
"""Endpoints whose request heads stay prepared."""


class NodeResponse:
    """The head of a node's answer, and its body to read."""

    __slots__ = ("_connection", "_leaving", "content", "content_type", "status", "was_dropped")

    def __init__(
        self, connection: Connection, message: Any, content: aiohttp.StreamReader, leaving: set[Any]
    ) -> None:
        self._connection = connection
        self._leaving = leaving
        self.was_dropped = False
        """Whether the router ended it to make room for others."""
        self.status: int = message.code
        self.content_type = message.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.content = content

    def leave(self, *, went_well: bool) -> None:
        """
        Give the connection back.

        It can be used again once the end of its answer was read, in the background.  If the
        exchange did not go well, the connection is closed.
        """
        transport = self._connection.transport
        if transport is None or transport.get_write_buffer_size():
            # The node answered before it had read the request: the rest would come before the next request.
            self.abort()
            self._connection.close()
        elif self.content.at_eof():
            self._connection.release()
        elif went_well:
            task = asyncio.create_task(self._read_end(), name="the end of an answer")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        else:
            self._connection.close()

    def abort(self) -> None:
        """End the connection.  A reader of the body gets an error."""
        if self._connection.transport is not None:
            self._connection.transport.abort()

    async def _read_end(self) -> None:
        try:
            async with asyncio.timeout(_READ_END_S):
                while not self.content.at_eof() and not await self.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError):
            pass
        finally:
            # If the end has not come, the connector closes the connection.
            self._connection.release()


class _Place(ClientRequest):
    """Where requests of one kind go: all that the connector asks of a request, its key made once."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class Upstream:
    """Posts requests to nodes."""

    def __init__(
        self, session: aiohttp.ClientSession, *, connect_timeout_s: float, allow_private: bool
    ) -> None:
        connector = session.connector
        assert connector is not None
        self._session = session
        self._connector = connector
        self._allow_private = allow_private
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s)
        self._leaving: set[asyncio.Task[None]] = set()
        self._prepared = lru_cache(maxsize=_MAX_PREPARED)(self._prepare)

    async def post(
        self,
        endpoint: tuple[str, str],
        path: str,
        body: bytes,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
        *,
        request_id: str,
        on_given: Callable[[], None] | None = None,
    ) -> NodeResponse:
        """
        Send *body*, which is JSON, and read the head of the answer.  *meanwhile* runs while the node works.

        *request_id* is what the node's front may be asked for its receipt by: every request has one.

        *on_given* is called when there is a connection, and the request goes out.

        Raises:
            AddressError: the node's address is one that nodes must not have.
            LookupFailedError: its name was not found, or not in time.
            aiohttp.ConnectionTimeoutError: no connection in time.
            aiohttp.ClientError, OSError: no answer.
        """
        request, prepared = self._prepared(endpoint, path)
        head = b"%b%b\r\nContent-Length: " % (prepared, request_id.encode())
        is_second = False
        while True:
            began = time.monotonic()
            try:
                connection = await self._connector.connect(request, [], self._timeout)
            except TimeoutError:
                raise self._late(request, began) from None
            protocol = connection.protocol
            assert protocol is not None
            used_before = protocol._parser is not None  # noqa: SLF001  # set for its first answer
            if protocol.should_close or (used_before and is_second):
                # After a failure only a new connection will do; and data that came before a request is not an answer.
                connection.close()
                if not used_before:
                    raise aiohttp.ServerDisconnectedError("the node sent data before it was asked")
                continue
            if on_given is not None:
                on_given()
            try:
                return await self._ask(connection, protocol, head, body, meanwhile)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                connection.close()
                if not used_before:
                    raise
                # It was closed because it was idle, which is not a fault.  A new connection is not tried twice.
                is_second = True
            except BaseException:
                connection.close()
                raise

    def _late(self, request: _Place, began: float) -> OSError:
        """The error if there was no connection in time: the time may have gone to the lookup of the name."""
        late = None
        if isinstance(self._connector, NodeConnector):
            late = self._connector.names.late(request.url.raw_host or "", began)
        return late or aiohttp.ConnectionTimeoutError("no connection in time")

    async def _ask(
        self,
        connection: Connection,
        protocol: ResponseHandler,
        head: bytes,
        body: bytes,
        meanwhile: Callable[[], Awaitable[None]] | None,
    ) -> NodeResponse:
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        transport = protocol.transport
        if transport is None:
            raise aiohttp.ServerDisconnectedError
        transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        if meanwhile is not None:
            await meanwhile()
        for _ in range(_MAX_INTERIM):
            message, content = await protocol.read()
            if not 100 <= message.code <= 199:
                return NodeResponse(connection, message, content, self._leaving)
        raise aiohttp.ClientPayloadError("too many interim answers")

    def _prepare(self, endpoint: tuple[str, str], path: str) -> tuple[_Place, bytes]:
        """The connector's key for a node, and the head of a request up to its id."""
        url, pin = endpoint
        place = check_url(url, allow_private=self._allow_private).with_path(path)
        head = (
            f"POST {place.raw_path} HTTP/1.1\r\nHost: {_authority(place)}\r\n"
            f"Content-Type: application/json\r\nAccept-Encoding: identity\r\n{REQUEST_HEADER}: "
        )
        return _Place("POST", place, ssl=pin_for(pin), session=self._session), head.encode("ascii")


def _authority(url: yarl.URL) -> str:
    host = url.host_port_subcomponent
    if not host or not host.isascii() or not host.isprintable() or " " in host:
        raise MalformedURLError("the host is neither a name nor an address")
    return host
