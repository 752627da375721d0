"""
Connections to the engine, kept between requests.

aiohttp's client does more for each request than all of the rest here (redirects, cookies, proxies, tracing), so its
protocol and its parser are used without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_writer import StreamWriter

IDLE_S: Final = 4.0
"""Connections are kept for less time than engines keep theirs: uvicorn and llama.cpp, 5 s."""
_CONNECT_S: Final = 5.0
_BUFFER: Final = 64 * 1024
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 128


class Exchange:
    """
    One request to the engine, and its answer.

    Args:
        protocol: The connection.
        message: The answer's head.
        content: Its body.
        upload: What still sends the request's body.
    """

    def __init__(
        self,
        protocol: ResponseHandler,
        message: RawResponseMessage,
        content: aiohttp.StreamReader,
        upload: asyncio.Task[None] | None,
    ) -> None:
        self.protocol = protocol
        self.status = message.code
        # It stands in the head of our answer.
        self.reason = "".join(c for c in message.reason if c.isprintable())
        self.headers = message.headers
        self.content = content
        self._upload = upload
        self._must_close = message.should_close

    def is_over(self) -> bool:
        """Whether the connection can carry another request."""
        is_sent = self._upload is None or (self._upload.done() and not self._upload.cancelled())
        return is_sent and not self._must_close and self.content.is_eof() and not self.protocol.should_close

    async def stop_upload(self) -> None:
        """End what still sends."""
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait([self._upload])


class EnginePool:
    """
    Connections to one engine.

    Args:
        url: Its base URL.
        answer_s: Seconds in which it must send something.
    """

    def __init__(self, url: str, answer_s: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._authority = parts.netloc
        self._answer_s = answer_s
        self._idle: deque[tuple[float, ResponseHandler]] = deque()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop()[1].close()

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> Exchange:
        """
        Send a request; the answer's head, with its body still to be read.  `give_back` ends it.

        Args:
            body: All of it, or its parts as they come: with a ``Content-Length`` among the headers, or in chunks.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: there is no answer, or it is not HTTP.
        """
        if body is None or isinstance(body, bytes):
            protocol = self._take()
            # A queue that is empty counts as false.
            if protocol is not None:
                # If the engine closed it meanwhile because it was idle, nothing is wrong.
                with contextlib.suppress(aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    return await self._ask_over(protocol, method, path, headers, body)
        # Parts that come cannot be sent again.
        return await self._ask_over(await self._connect(), method, path, headers, body)

    async def _ask_over(
        self,
        protocol: ResponseHandler,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> Exchange:
        upload = None
        try:
            protocol.set_response_params(
                auto_decompress=False, read_timeout=self._answer_s, read_bufsize=_BUFFER, read_until_eof=True,
                max_line_size=_MAX_LINE, max_field_size=_MAX_LINE, max_headers=_MAX_HEADERS,
            )  # fmt: skip
            head = f"{method} {path} HTTP/1.1\r\nHost: {self._authority}\r\n" + "".join(
                f"{name}: {value}\r\n" for name, value in headers.items()
            )
            upload = self._send(protocol, head, headers, body)
            protocol.start_timeout()
            while True:
                message, content = await protocol.read()
                # 100 and 103 announce the answer.
                if not 100 <= message.code < 200:
                    return Exchange(protocol, message, content, upload)
        except BaseException:
            if upload is not None:
                upload.cancel()
            protocol.abort()
            raise

    async def give_back(self, exchange: Exchange) -> None:
        """Keep the connection if the answer was read to its end; otherwise close it, and so end the engine's work."""
        if exchange.is_over() and exchange.protocol.is_connected():
            now = time.monotonic()
            self._idle.append((now, exchange.protocol))
            while now - self._idle[0][0] >= IDLE_S:
                self._idle.popleft()[1].close()
            return
        await exchange.stop_upload()
        exchange.protocol.abort()

    def _take(self) -> ResponseHandler | None:
        # The last one used first: the others grow old and are closed.
        while self._idle:
            since, protocol = self._idle.pop()
            if time.monotonic() - since < IDLE_S and protocol.is_connected() and not protocol.should_close:
                return protocol
            protocol.close()
        return None

    async def _connect(self) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, protocol = await loop.create_connection(
                lambda: ResponseHandler(loop), self._host, self._port, ssl=self._tls
            )
        return protocol

    def _send(
        self,
        protocol: ResponseHandler,
        head: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> asyncio.Task[None] | None:
        """Send the request; if its body is still coming, by a task."""
        transport = protocol.transport
        if transport is None:
            raise aiohttp.ServerDisconnectedError
        if body is None or isinstance(body, bytes):
            length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
            transport.write(f"{head}{length}\r\n".encode("utf-8", "surrogateescape") + (body or b""))
            return None
        in_chunks = "Content-Length" not in headers
        coding = "Transfer-Encoding: chunked\r\n" if in_chunks else ""
        transport.write(f"{head}{coding}\r\n".encode("utf-8", "surrogateescape"))
        return asyncio.create_task(_upload(protocol, body, in_chunks=in_chunks))


async def _upload(protocol: ResponseHandler, body: AsyncIterator[bytes], *, in_chunks: bool) -> None:
    """Send the body as it comes; what is wrong with it ends the connection, so that the engine does not take it for whole."""
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    if in_chunks:
        writer.enable_chunking()
    try:
        async for part in body:
            await writer.write(part)
        await writer.write_eof()
    except (aiohttp.ClientError, OSError) as error:
        protocol.set_exception(aiohttp.ClientPayloadError(str(error)))
        if protocol.transport is not None:
            protocol.transport.abort()
