"""What every resource needs of HTTP: bounded bodies, JSON, pages and rate limits."""

from __future__ import annotations

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
    The request's body.  If its Content-Length is over the limit, it is refused unread.

    Raises:
        RequestError: it is longer than *limit* bytes, compressed, or cut off.
    """
    if "Content-Encoding" in request.headers:
        raise RequestError("the body must not be compressed: send it without Content-Encoding")
    if request.content_length is not None and request.content_length > limit:
        raise RequestError(
            f"the body has {request.content_length} bytes, more than {limit}", code="request.too-large"
        )
    try:
        body = await read_all(request.content, limit)
    except web.RequestPayloadError:
        raise RequestError("the body was cut off") from None
    if body is None:
        raise RequestError(f"the body has more than {limit} bytes", code="request.too-large")
    return body


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


class Rates:
    """
    Token buckets by key.  If there are too many keys, the least recently used are forgotten.

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
            RequestError: there were too many; it says after how many seconds to try again.
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
