"""Asking an engine over HTTP on this machine: bounded, timed, and refused in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from attester.bounded import read_all
from attester.errors import EngineError

MAX_ANSWER = 1 << 20
T = TypeVar("T")


class EngineHttp:
    """One engine's base URL."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._http = http
        self.url = url
        self._headers = dict(headers or {})

    async def ask(
        self, method: str, path: str, answer: type[T], body: object = None, *, timeout_s: float
    ) -> T:
        """
        One request, and its JSON answer as *answer*.

        Raises:
            EngineError: no answer, not 200, too large, or not of the type.
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
                data = await read_all(response.content, MAX_ANSWER)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EngineError(
                f"the engine at {self.url} does not answer ({type(error).__name__}): is it running?"
            ) from None
        if status != 200:
            raise EngineError(f"the engine answers {status} to {method} {path}{_why(data)}")
        if data is None:
            raise EngineError(f"the engine's answer to {path} is larger than {MAX_ANSWER} bytes")
        try:
            return msgspec.json.decode(data, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"the engine at {self.url} answers {path} wrongly: {error}") from None


class _Refusal(msgspec.Struct):
    error: str


def _why(data: bytes | None) -> str:
    try:
        why = msgspec.json.decode(data or b"", type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return ": " + "".join(c if c.isprintable() else "?" for c in why[:200])
