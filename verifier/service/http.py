"""What every resource needs of HTTP: bounded bodies, JSON, pages, bearer tokens, rates."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from attester.bounded import read_all
from verifier.errors import RequestError

MAX_JSON: Final = 64 * 1024
MAX_PAGE: Final = 500

T = TypeVar("T")


async def read_body(request: web.Request, limit: int) -> bytes:
    """
    The request's body, refused before it is read where it says that it is too long.

    Raises:
        RequestError: longer than *limit* bytes, compressed, or broken off.
    """
    if "Content-Encoding" in request.headers:
        raise RequestError("compressed bodies are not read")
    if request.content_length is not None and request.content_length > limit:
        raise RequestError(f"{request.content_length} bytes, more than {limit}", code="request.too-large")
    try:
        body = await read_all(request.content, limit)
    except web.RequestPayloadError:
        raise RequestError("the body is broken") from None
    if body is None:
        raise RequestError(f"more than {limit} bytes", code="request.too-large")
    return body


def parse_json(data: bytes, kind: type[T]) -> T:
    """
    Parse a JSON body strictly.

    Raises:
        RequestError: not JSON, or not of the form.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(str(error)) from None


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
    """The ``after`` and ``limit`` of a list: pages go by cursor."""
    return request.query.get("after", "")[:128], integer(request, "limit", default=100, low=1, high=MAX_PAGE)


def integer(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    """
    An integer query parameter.

    Raises:
        RequestError: not a plain decimal number between *low* and *high*.
    """
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and low <= int(text) <= high):
        raise RequestError(f"{name} is not a number between {low} and {high}")
    return int(text)


def require_bearer(request: web.Request, token: str) -> None:
    """
    Let only the holder of *token* in.

    Raises:
        RequestError: no bearer token, or another one.
    """
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode()):
        raise RequestError("this needs a bearer token", code="request.unauthorised")


class Rates:
    """
    Token buckets by key, for a bounded number of keys: the longest unused are forgotten.

    Args:
        now: A monotonic clock in seconds.
    """

    def __init__(self, per_minute: int, now: Callable[[], float], *, keys: int = 10_000) -> None:
        self._rate = per_minute / 60
        self._burst = max(per_minute / 6, 3.0)
        self._now = now
        self._keys = keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, key: str) -> None:
        """
        Count a request of *key*.

        Raises:
            RequestError: too often; says after how many seconds to come back.
        """
        now = self._now()
        level, since = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        if level < 1:
            self._buckets[key] = (level, now)
            wait = int((1 - level) / self._rate) + 1
            raise RequestError("too many requests", code="request.too-often", retry_after=wait)
        self._buckets[key] = (level - 1, now)
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
