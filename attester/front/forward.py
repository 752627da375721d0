"""
One request on its way to the engine, and the answer on its way back.

Neither is held back: each part goes on as it comes, and a side that does not read holds up the other one.
Of the headers go on those that the two tables name.  What a client says about itself, about who sent it, or about
this connection, stays here; the engine's own key is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import structlog
from aiohttp import StreamReader
from aiohttp.http import HttpVersion11
from aiohttp.http_parser import RawRequestMessage, RawResponseMessage

from attester.front.claims import CLAIMS_PATH, ClaimAnswer
from attester.front.engine import EngineConnection, EnginePool
from attester.front.ledger import Ledger, ReceiptAnswer
from attester.front.protocol import Answerer, FrontProtocol, refusal_body, whole_answer
from attester.front.receipts import PATH
from attester.front_config import FrontSection

REQUEST_HEADERS: Final = (
    "Content-Type", "Content-Encoding", "Accept", "X-Request-Id", "Traceparent", "Tracestate",
    "Anthropic-Version", "Anthropic-Beta", "OpenAI-Beta",
)  # fmt: skip
"""What the engine may see of a request."""
ANSWER_HEADERS: Final = (
    "Content-Type", "Content-Encoding", "Cache-Control", "Retry-After", "X-Request-Id", "OpenAI-Processing-Ms",
)  # fmt: skip
"""What the client may see of an answer."""
_SERVER_ERROR: Final = "server_error"
_log = structlog.get_logger("front")


class Forwarder:
    """
    Passes requests on to one engine.

    Args:
        engine: The engine.
        methods: The paths that are passed on, each with its method.
        config: The limits.
        key: The engine's own key, if it has one.
        ledger: Keeps what was served, for receipts; `None`: nothing is kept.
        usage: The folder with signed claims of what was served; `None`: there are none.
    """

    def __init__(
        self,
        engine: EnginePool,
        *,
        methods: Mapping[str, str],
        config: FrontSection,
        key: str | None,
        ledger: Ledger | None = None,
        usage: Path | None = None,
    ) -> None:
        self.usage = usage
        self.engine = engine
        self.config = config
        self.ledger = ledger
        added = "" if key is None else f"Authorization: Bearer {key}\r\n"
        self._heads = {
            (method, path): f"{method} {path} HTTP/1.1\r\nHost: {engine.authority}\r\n{added}"
            for path, method in methods.items()
        }
        self._is_gone = False

    def take(self, client: FrontProtocol, message: RawRequestMessage, body: StreamReader) -> Answerer:
        """See `Answers`."""
        if self.ledger is not None and message.path.startswith(PATH):
            return ReceiptAnswer(self.ledger, client, message, body)
        if self.usage is not None and message.path.startswith(CLAIMS_PATH):
            return ClaimAnswer(self.usage, client, message, body)
        return Exchange(self, client, message, body)

    def head(self, message: RawRequestMessage) -> str | None:
        """The begin of the request to the engine; `None` if it is not passed on."""
        # As it was sent: nothing is decoded or normalised before it is compared.
        found = self._heads.get((message.method, message.path))
        return None if found is None else found + _lines(message.headers, REQUEST_HEADERS)

    def note_engine(self, *, is_gone: bool, why: str = "") -> None:
        """Log when the engine goes and comes."""
        if is_gone and not self._is_gone:
            _log.error("the engine does not answer", why=why)
        elif self._is_gone and not is_gone:
            _log.info("the engine answers again")
        self._is_gone = is_gone


class Exchange:
    """
    One request and its answer.

    Args:
        forwarder: What it has in common with others.
        client: The connection that it came over.
        message: Its head.
        body: Its body, which may still be coming.
    """

    def __init__(
        self, forwarder: Forwarder, client: FrontProtocol, message: RawRequestMessage, body: StreamReader
    ) -> None:
        self._engine = forwarder.engine
        self._forwarder = forwarder
        self._config = forwarder.config
        self._client = client
        self._message = message
        self._body = body
        self._connection: EngineConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._request = b""
        """What is sent at once: all of it, or the head if the body is still coming."""
        self._is_sent = True
        self._is_retried = True
        self._is_begun = False
        self._in_chunks = False
        self._is_kept = not message.should_close and message.version >= HttpVersion11
        self._is_body_chunked = False
        self._taken = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        ledger = forwarder.ledger
        self._account = None if ledger is None else ledger.open(message)
        self._status = 0

    # What the client's connection tells.

    def begin(self) -> None:
        """See `Answerer`."""
        head = self._forwarder.head(self._message)
        if head is None:
            self._end(404, "unknown_url", "this node has no such operation")
            return
        size = self._message.headers.get("Content-Length")
        if size is not None and int(size) > self._config.max_body:
            self._refuse_size()
            return
        if self._body.is_eof():
            # The usual case: the whole body has arrived with its head.
            self._send_whole(head, has_body=size is not None or self._message.chunked)
            return
        self._is_sent = False
        self._is_body_chunked = size is None
        length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        self._request = f"{head}{length}\r\n\r\n".encode("utf-8", "surrogateescape")
        self._give_time()
        self._timer = self._client.loop.call_at(self._due, self._look)
        # Parts that come cannot be sent again, so they get a connection that the engine does not just close.
        self.hold_request(is_held=True)
        self._connect()

    def body_received(self) -> None:
        """See `Answerer`."""
        if self._is_sent or self._connection is None:
            return
        part = self._body.read_nowait()
        self._taken += len(part)
        if self._account is not None:
            self._account.take_request(part)
        self._due += len(part) / self._config.body_bytes_per_s
        if self._taken > self._config.max_body:
            self._refuse_size()
            return
        self._is_sent = self._body.is_eof()
        if self._is_body_chunked:
            part = _chunk(part, is_over=self._is_sent)
        if part:
            self._connection.write(part)

    def refuse(self, status: int, code: str, message: str) -> None:
        """See `Answerer`."""
        self._drop_engine()
        if self._is_begun:
            # The client must not take what came so far for the whole answer.
            self._close_account(is_complete=False)
            self._client.abort()
        else:
            self._is_kept = False
            self._end(status, code, message)

    def hold_answer(self, *, is_held: bool) -> None:
        """See `Answerer`."""
        if self._connection is not None:
            self._connection.hold(is_held=is_held)

    def client_lost(self) -> None:
        """See `Answerer`."""
        self._close_account(is_complete=False)
        self._drop_engine()

    # What the engine's connection tells.

    def received(self, head: RawResponseMessage | None, part: bytes, *, is_over: bool) -> None:
        """See `Receiver`."""
        if head is not None:
            self._forwarder.note_engine(is_gone=False)
            self._is_begun = True
            self._status = head.code
            data = self._answer_head(head, len(part) if is_over else None)
        else:
            data = b""
        if self._account is not None:
            self._account.take_answer(part)
        data += _chunk(part, is_over=is_over) if self._in_chunks else part
        if is_over and self._connection is not None:
            self._engine.give_back(self._connection, is_sent=self._is_sent)
            self._connection = None
        if data:
            self._client.transport.write(data)
        if is_over:
            self._close_account(is_complete=True)
            self._stop_timer()
            self._client.done(is_last=not self._is_kept)

    def failed(self, error: Exception) -> None:
        """See `Receiver`."""
        self._connection = None
        if self._is_begun:
            _log.warning("the engine broke off an answer", why=type(error).__name__)
            self._close_account(is_complete=False)
            self._drop_engine()
            self._client.abort()
        elif not self._is_retried and not isinstance(error, TimeoutError):
            # If the engine closed it meanwhile because it was idle, nothing is wrong.
            self._is_retried = True
            self._connect()
        else:
            self._engine_failed(error)

    def hold_request(self, *, is_held: bool) -> None:
        """See `Receiver`."""
        if is_held:
            self._client.transport.pause_reading()
        else:
            # The client has not been slow meanwhile.
            self._give_time()
            self._client.transport.resume_reading()

    def _send_whole(self, head: str, *, has_body: bool) -> None:
        body = self._body.read_nowait()
        if len(body) > self._config.max_body:
            self._refuse_size()
            return
        if self._account is not None:
            self._account.take_request(body, is_whole=True)
        length = f"Content-Length: {len(body)}\r\n" if has_body else ""
        self._request = f"{head}{length}\r\n".encode("utf-8", "surrogateescape") + body
        connection = self._engine.take()
        if connection is None:
            self._connect()
        else:
            self._is_retried = False
            self._ask(connection)

    def _ask(self, connection: EngineConnection) -> None:
        if not connection.is_open:
            # It has ended before anybody had it.
            self.failed(aiohttp.ServerDisconnectedError())
            return
        self._connection = connection
        connection.ask(self, self._request)
        if self._client.is_full:
            # With the answers to requests before this one.
            connection.hold(is_held=True)

    def _connect(self) -> None:
        self._opening = self._client.loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            connection = await self._engine.connect()
        except OSError as error:
            self._engine_failed(error)
            return
        self._ask(connection)
        if self._connection is not None and not self._is_sent:
            self.hold_request(is_held=False)
            self.body_received()

    def _answer_head(self, head: RawResponseMessage, size: int | None) -> bytes:
        """The head of the answer, whose body is *size* bytes if it has come whole."""
        length = head.headers.get("Content-Length") if size is None else str(size)
        if not self._is_sent:
            # What still comes of the body is not read as a request.
            self._is_kept = False
        if length is not None:
            body = f"Content-Length: {length}\r\n"
        elif self._message.version >= HttpVersion11:
            self._in_chunks = True
            body = "Transfer-Encoding: chunked\r\n"
        else:
            # Its end is that of the connection, which does not serve another request.
            body = ""
        close = "" if self._is_kept else "Connection: close\r\n"
        # The reason is the engine's own word, and stands in the head of our answer.
        reason = head.reason if head.reason.isprintable() else ""
        lines = _lines(head.headers, ANSWER_HEADERS)
        return f"HTTP/1.1 {head.code} {reason}\r\nServer: touchstone\r\n{lines}{body}{close}\r\n".encode(
            "utf-8", "surrogateescape"
        )

    def _give_time(self) -> None:
        self._due = self._client.loop.time() + self._config.body_s

    def _look(self) -> None:
        """Whether the body comes fast enough."""
        if self._is_sent:
            return
        is_held = self._connection is None or self._connection.is_full
        if not is_held and self._client.loop.time() >= self._due:
            self.refuse(408, "too_slow", "the body of the request came too slowly")
            return
        if is_held:
            self._give_time()
        self._timer = self._client.loop.call_at(self._due, self._look)

    def _engine_failed(self, error: Exception) -> None:
        self._forwarder.note_engine(is_gone=True, why=type(error).__name__)
        if isinstance(error, TimeoutError):
            self._end(504, "engine_timeout", "the engine did not answer in time", kind=_SERVER_ERROR)
        else:
            self._end(502, "engine_unreachable", "the engine does not answer", kind=_SERVER_ERROR)

    def _refuse_size(self) -> None:
        self.refuse(413, "body_too_large", f"a body may have {self._config.max_body} bytes here")

    def _end(self, status: int, code: str, message: str, **kind: str) -> None:
        """Answer with an error of the front's own."""
        self._stop_timer()
        # What is not read of the body is not a request, and an answer to HEAD has no body.
        is_last = not (self._is_kept and self._body.is_eof()) or self._message.method == "HEAD"
        body = refusal_body(code, message, **kind)
        self._client.transport.write(whole_answer(status, body, is_last=is_last))
        self._status = status
        if self._account is not None:
            self._account.take_answer(body)
        self._close_account(is_complete=True)
        self._client.done(is_last=is_last)

    def _close_account(self, *, is_complete: bool) -> None:
        """The answer has ended, or broken off after it had begun."""
        account, self._account = self._account, None
        if account is not None and self._status and self._forwarder.ledger is not None:
            self._forwarder.ledger.close(self._client.name, account, self._status, is_complete=is_complete)

    def _drop_engine(self) -> None:
        """End the engine's work."""
        self._stop_timer()
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _chunk(part: bytes, *, is_over: bool) -> bytes:
    """A part as a chunk, and the last chunk after it if that is all."""
    data = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
    return data + b"0\r\n\r\n" if is_over else data


def _lines(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Those of the headers that are named, as they are sent."""
    found = ""
    for name in names:
        value = headers.get(name)
        # The engine's parser is lenient, and ours must not be.
        if value is not None and not ("\r" in value or "\n" in value or "\0" in value):
            found += f"{name}: {value}\r\n"
    return found
