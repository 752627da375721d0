"""What every resource needs of HTTP: bounded bodies, JSON and pages."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from verifier.errors import RequestError
from verifier.service.front import visit_of

MAX_JSON: Final = 64 * 1024
MAX_PAGE: Final = 500

T = TypeVar("T")


async def read_body(request: web.Request, limit: int) -> bytes:
    """
    The request's body.  If its Content-Length is over the limit, it is refused unread.

    Its bytes are of the process's budget until the answer is written, and it has to come in time.

    Raises:
        RequestError: it is longer than *limit* bytes, compressed, cut off or too slow, or there is no room for it now.
    """
    if not _is_plain(request):
        raise RequestError("the body must not be compressed: send it without Content-Encoding")
    if request.content_length is not None and request.content_length > limit:
        raise RequestError(
            f"the body has {request.content_length} bytes, more than {limit}", code="request.too-large"
        )
    if not request.body_exists:
        return b""
    try:
        body = await _read(request, limit)
    except web.RequestPayloadError:
        raise RequestError("the body was cut off") from None
    if body is None:
        raise RequestError(f"the body has more than {limit} bytes", code="request.too-large")
    return body


def _is_plain(request: web.Request) -> bool:
    """Whether the body is not compressed; ``identity`` means so, though nobody should send it (RFC 9110 §8.4)."""
    codings = ",".join(request.headers.getall("Content-Encoding", ())).split(",")
    return all(coding.strip(" \t").lower() in ("", "identity") for coding in codings)


async def _read(request: web.Request, limit: int) -> bytes | None:
    """The body; `None` if it is longer than *limit* bytes, and the rest is not read."""
    content, visit = request.content, visit_of(request)
    if content.is_eof():
        # The usual case: the whole body has arrived already.
        data = content.read_nowait()
        visit.take(request, len(data))
        return data if len(data) <= limit else None
    try:
        with visit.reading(request):
            return await _read_in_time(request, limit)
    except TimeoutError:
        visit.front.refusals.note("body")
        raise RequestError("the body did not come in time", code="request.too-slow") from None


async def _read_in_time(request: web.Request, limit: int) -> bytes | None:
    visit = visit_of(request)
    config = visit.front.config
    began = asyncio.get_running_loop().time()
    body = bytearray()
    async with asyncio.timeout_at(began + config.body_s) as deadline:
        async for part in request.content.iter_any():
            if len(body) + len(part) > limit:
                return None
            visit.take(request, len(part))
            body += part
            deadline.reschedule(began + config.body_s + len(body) / config.body_bytes_per_s)
    return bytes(body)


def parse_json(data: bytes, kind: type[T]) -> T:
    """
    Parse a JSON body strictly.

    Raises:
        RequestError: it is not JSON, or does not have the form of *kind*.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(str(error)) from None


def base64_bytes(text: str, name: str) -> bytes:
    """
    The bytes of base64, in its one spelling.

    Raises:
        RequestError: *text* is something else; the message has *name*.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise RequestError(f"{name} is not base64 in its one spelling")
    return data


def json_response(
    value: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """A JSON answer."""
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type=content_type, headers=headers
    )


def page_of(request: web.Request) -> tuple[str, int]:
    """The ``after`` and ``limit`` of a list, which is read in pages."""
    return request.query.get("after", "")[:128], integer(request, "limit", default=100, low=1, high=MAX_PAGE)


def integer(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    """
    An integer query parameter.

    Raises:
        RequestError: it is not a decimal integer from *low* to *high*.
    """
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and low <= int(text) <= high):
        raise RequestError(f"{name} must be an integer from {low} to {high}")
    return int(text)
