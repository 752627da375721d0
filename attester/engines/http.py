"""Requests to an engine over HTTP on this machine, with limits on size and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from attester.bounded import read_all
from attester.errors import EngineError, EngineRefusalError, EngineSilentError

MAX_ANSWER_BYTES = 1 << 20
T = TypeVar("T")


class EngineHttp:
    """An HTTP client of one engine."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._http = http
        self.url = url
        self._headers = dict(headers or {})

    async def request(
        self, method: str, path: str, answer: type[T], body: object = None, *, timeout_s: float
    ) -> T:
        """
        Send one request, and return its JSON answer as a value of type *answer*.

        Raises:
            EngineSilentError: there is no answer.
            EngineRefusalError: its status is not 200.
            EngineError: it is too large or malformed.
        """
        try:
            async with self._http.request(
                method,
                self.url + path,
                data=None if body is None else msgspec.json.encode(body),
                headers={**self._headers, "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, MAX_ANSWER_BYTES)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineSilentError(
                f"the engine at {self.url} does not answer ({type(error).__name__}). Is it running?"
            ) from None
        if status != 200:
            raise EngineRefusalError(
                f"the engine answers {method} {path} with HTTP status {status}{_reason(data)}", status
            )
        if data is None:
            raise EngineError(f"the engine's answer to {path} is larger than {MAX_ANSWER_BYTES} bytes")
        try:
            return msgspec.json.decode(data, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(
                f"the answer of the engine at {self.url} to {path} is malformed: {error}"
            ) from None


class _ErrorBody(msgspec.Struct):
    error: str


def _reason(data: bytes | None) -> str:
    try:
        reason = msgspec.json.decode(data or b"", type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return ": " + "".join(c if c.isprintable() else "?" for c in reason[:200])
