"""A bounded reader of server-sent events (WHATWG HTML §9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from attester.errors import VerifierError


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    kind: str
    data: str
    id: str | None


async def read_events(content: aiohttp.StreamReader, *, max_size: int) -> AsyncIterator[Event]:
    """
    Yield the events of a stream until it ends; lines end in LF or CR LF.

    Raises:
        VerifierError: a line or an event has more than *max_size* bytes, or is not UTF-8.
    """
    kind = ""
    event_id: str | None = None
    data: list[str] = []
    size = 0
    first = True
    async for raw in _lines(content, max_size):
        try:
            line = raw.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise VerifierError("the verifier sent an event that is not UTF-8") from None
        if first:
            line, first = line.removeprefix("\ufeff"), False
        if not line:
            if data:
                yield Event(kind or "message", "\n".join(data), event_id)
            kind, data, size = "", [], 0
            continue
        name, _, value = line.partition(":")
        if not name:
            continue
        size += len(raw)
        if size > max_size:
            raise VerifierError(f"the verifier sent an event of more than {max_size} bytes")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            event_id = value


async def _lines(content: aiohttp.StreamReader, max_size: int) -> AsyncIterator[bytes]:
    pending: list[bytes] = []
    held = 0
    async for chunk in content.iter_any():
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if held + len(line) > max_size:
                raise VerifierError(f"the verifier sent an event of more than {max_size} bytes")
            # A line is joined once, at its end: many small chunks must not cost a copy each.
            yield b"".join([*pending, line])
            pending, held = [], 0
        held += len(rest)
        if held > max_size:
            raise VerifierError(f"the verifier sent an event of more than {max_size} bytes")
        pending.append(rest)
