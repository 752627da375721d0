"""
The proxy on loopback: any client of OpenAI's works if its ``base_url`` is changed, and gets verified answers alone.

What does not verify is answered with 502 in OpenAI's form, and the step that failed.  Of a stream, either all is
verified before the first part goes on, or its last event is held back until all is.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from msgspec import Struct

from attester.bounded import read_all
from attester.settings import is_loopback
from router.client.checking import Checked
from router.client.errors import ClientError, UnreachableError, UnverifiedError
from router.client.session import AsyncClient
from router.client.streams import Stream
from router.gateway.sse import encode_event

VERIFIED_HEADER: Final = "X-Touchstone-Verified"
"""The steps that were taken, or ``at-end`` for a stream whose parts go on as they come."""
LOGGED_HEADER: Final = "X-Touchstone-Logged"
"""Whether the receipt is in the log: ``yes``, ``later`` or ``not-asked``."""
_PATH: Final = re.compile(
    r"/v1(?:/(?!\.+(?:/|\Z))(?:[A-Za-z0-9._~:@!$&'()*+,;=-]|%(?!2[EeFf]|5[Cc]|00)[0-9A-Fa-f]{2})+)+\Z"
)
"""No way out of ``/v1``: the key that the proxy has may open more."""
_METHODS: Final = frozenset({"GET", "POST"})
_PASSED: Final = ("Content-Type", "Retry-After", "Allow")
_OURS: Final = "x-touchstone-"
_LAST_EVENT: Final = b"data: [DONE]"
_EVENT_STREAM: Final = "text/event-stream"
_MAX_HELD: Final = 2 << 20
_SAID_HERE: Final = frozenset({VERIFIED_HEADER.lower(), LOGGED_HEADER.lower()})


class _Wish(Struct, frozen=True):
    stream: bool | None = False


class Proxy:
    """
    The proxy's application.

    Args:
        client: Sends the requests, and verifies.
        caller_key: What callers must present; anyone who reaches the proxy may use it if it is `None`.
        passes_streams: Whether parts of streams go on as they come.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        caller_key: str | None = None,
        passes_streams: bool = False,
        max_in_flight: int = 64,
        max_body: int = 32 << 20,
    ) -> None:
        self._client = client
        self._caller_key = caller_key
        self._passes_streams = passes_streams
        self._max_in_flight, self._max_body = max_in_flight, max_body
        self._in_flight = 0

    def app(self) -> web.Application:
        """An application with all routes."""
        app = web.Application(client_max_size=self._max_body)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        if self._in_flight >= self._max_in_flight:
            return error_answer(503, "the proxy has too many requests under way", code="busy")
        self._in_flight += 1
        try:
            return await self._pass_on(request)
        except UnverifiedError as error:
            return error_answer(
                502, f"the answer was not handed on: {error}", code=f"unverified.{error.step}"
            )
        except UnreachableError as error:
            return error_answer(502, str(error), code="router_unreachable")
        except ClientError as error:
            return error_answer(500, str(error), code="client_error")
        finally:
            self._in_flight -= 1

    def _refuse(self, request: web.Request) -> web.Response | None:
        """Why a request is not passed on, before any of its body is read."""
        if not self._is_addressed(request):
            # A page of the web must not use it: neither by its own name for this address, nor across origins.
            return error_answer(
                403, "the proxy is for programs of this machine, not for web pages", code="origin"
            )
        if self._caller_key is not None:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {self._caller_key}".encode()):
                return error_answer(401, "the proxy needs its own key", code="invalid_api_key")
        if request.method not in _METHODS:
            return error_answer(405, f"{request.method} is not passed on", code="method_not_allowed")
        if not _PATH.match(request.raw_path.partition("?")[0]):
            return error_answer(404, "only what is below /v1 is passed on", code=None)
        return None

    def _is_addressed(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
            return False
        # Whoever has the key is no web page.
        return self._caller_key is not None or is_loopback(_host_of(request.headers.get("Host", "")))

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await read_all(request.content, self._max_body)
        if body is None:
            return error_answer(413, f"the request has more than {self._max_body} bytes", code="too_large")
        headers = dict(request.headers)
        # The server has unpacked it.
        headers.pop("Content-Encoding", None)
        if self._caller_key is not None:
            headers.pop("Authorization", None)
        if self._passes_streams and _wants_stream(body):
            return await self._pass_stream(request, body, headers)
        answer = await self._client.ask(request.method, request.raw_path, body, headers)
        return web.Response(
            status=answer.status, body=answer.body, headers=self._headers(answer.headers, answer.checked)
        )

    async def _pass_stream(
        self, request: web.Request, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        async with self._client.stream(request.method, request.raw_path, body, headers) as stream:
            if not stream.headers.get("Content-Type", "").startswith(_EVENT_STREAM):
                # A refusal, say: it is verified before it goes on.
                whole = await stream.whole()
                return web.Response(
                    status=stream.status, body=whole, headers=self._headers(stream.headers, stream.checked)
                )
            headers_now = {**self._headers(stream.headers, None), VERIFIED_HEADER: "at-end"}
            response = web.StreamResponse(status=stream.status, headers=headers_now)
            await response.prepare(request)
            await self._write(stream, response)
            await response.write_eof()
            return response

    async def _write(self, stream: Stream, response: web.StreamResponse) -> None:
        held = HeldBack()
        try:
            async for part in stream.parts():
                if passed := held.feed(part):
                    await response.write(passed)
        except (UnverifiedError, UnreachableError) as error:
            # The event that would have ended it well is not sent.
            code = f"unverified.{error.step}" if isinstance(error, UnverifiedError) else "router_unreachable"
            await response.write(encode_event(_document(f"the stream must not be used: {error}", code)))
        else:
            await response.write(held.rest())

    def _headers(self, given: Mapping[str, str], checked: Checked | None) -> dict[str, str]:
        headers = {name: given[name] for name in _PASSED if name in given}
        # What was verified, nobody says but this proxy.
        headers |= {
            name: value
            for name, value in given.items()
            if name.lower().startswith(_OURS) and name.lower() not in _SAID_HERE
        }
        if checked is None:
            return {**headers, VERIFIED_HEADER: "nothing"}
        logged = "not-asked" if self._client.trust.require.log == "never" else "later"
        return {
            **headers,
            VERIFIED_HEADER: " ".join(checked.steps),
            LOGGED_HEADER: "yes" if checked.is_logged else logged,
        }


class HeldBack:
    """Lets the bytes of a stream of events through, whole events at a time, up to the last event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What of *data*, and of what was held back, may go on.  Raises `UnreachableError`: an event is too large."""
        whole = self._rest + data
        cut = _end_of(whole)
        self._rest = whole[cut:]
        if len(self._rest) > _MAX_HELD:
            raise UnreachableError(f"the router sends an event of more than {_MAX_HELD} bytes")
        return whole[:cut]

    def rest(self) -> bytes:
        """All that is held back."""
        return self._rest


def _end_of(data: bytes) -> int:
    """Where the last whole event ends that is not the last one of the stream."""
    at = 0
    while True:
        end = data.find(b"\n\n", at)
        if end < 0 or data.startswith(_LAST_EVENT, at):
            return at
        at = end + 2


def _host_of(header: str) -> str:
    return urlsplit(f"//{header}").hostname or ""


def _wants_stream(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Wish).stream)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def error_answer(status: int, message: str, *, code: str | None) -> web.Response:
    """An error in the form that OpenAI's clients read."""
    return web.Response(status=status, body=_document(message, code), content_type="application/json")


def _document(message: str, code: str | None) -> bytes:
    kind = "unverified_answer" if code is not None and code.startswith("unverified.") else "proxy_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return msgspec.json.encode({"error": error})
