"""A request as it was sent, and its answer: in parts as they come, or whole once it is verified."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from attester.authorities import why_unreached
from router.client.checking import Checked
from router.client.choices import Stake
from router.client.errors import UnreachableError
from router.client.exchanges import Digest, Exchange, model_of

MAX_ANSWER: Final = 64 << 20
"""Bytes of an answer that is kept until it is verified."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    checked: Checked | None
    """What was verified; `None` only where the trust file says that the router gives no receipts."""


@dataclass(frozen=True)
class Sent:
    """A request as it was sent."""

    method: str
    path: str
    body: bytes
    salt: bytes
    at_ms: int
    headers: Mapping[str, str]
    stake: Stake | None
    is_repeatable: bool = False

    def exchange(self, status: int, got: Digest, ended_ms: int) -> Exchange:
        """The request with its answer, as digests."""
        asked = Digest(self.salt)
        asked.add(self.body)
        return Exchange(
            method=self.method,
            path=self.path,
            status=status,
            request_sha256=asked.hex(),
            request_bytes=asked.size,
            response_sha256=got.hex(),
            response_bytes=got.size,
            is_salted=bool(self.salt),
            sent_ms=self.at_ms,
            ended_ms=ended_ms,
            model=model_of(self.body),
            is_repeatable=self.is_repeatable,
        )


def value_of(headers: Mapping[str, str], name: str) -> str | None:
    """The value of a header, however its name is written; `None` if it is not there."""
    return next((value for given, value in headers.items() if given.lower() == name.lower()), None)


class Stream:
    """
    An answer whose parts are given out as they come.

    They are unverified until the iteration has ended without an error.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        salt: bytes,
        finish: Callable[[Digest], Awaitable[Checked | None]],
    ) -> None:
        self._response = response
        self._digest = Digest(salt)
        self._finish = finish
        self._whole: bytes | None = None
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.checked: Checked | None = None
        """What was verified, once the iteration has ended."""

    async def parts(self) -> AsyncIterator[bytes]:
        """
        Yield the parts.

        Raises:
            UnreachableError: the router ended the connection.
            UnverifiedError: what came is not what the receipt is about.
        """
        if self._whole is not None:
            yield self._whole
            return
        try:
            async for part in self._response.content.iter_any():
                self._digest.add(part)
                yield part
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the answer broke off: {why_unreached(error)}") from None
        self.checked = await self._finish(self._digest)

    async def whole(self) -> bytes:
        """
        All of it, verified.

        Raises:
            UnreachableError: the router ended the connection, or it is too large.
            UnverifiedError: what came is not what the receipt is about.
        """
        parts, size = [], 0
        async for part in self.parts():
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER:
                raise UnreachableError(f"the answer has more than {MAX_ANSWER} bytes")
        self._whole = b"".join(parts)
        return self._whole
