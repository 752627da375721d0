"""Server-sent events: reading a stream, bounded (WHATWG HTML §9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from attester.errors import VerifierError


@dataclass(frozen=True)
class Event:
    """One event."""

    kind: str
    data: str
    id: str | None


async def read_events(content: aiohttp.StreamReader, *, max_size: int) -> AsyncIterator[Event]:
    """
    The events of a stream until it ends.

    Raises:
        VerifierError: a line or an event of more than *max_size* bytes, or not UTF-8.
    """
    kind = "message"
    event_id: str | None = None
    data: list[str] = []
    size = 0
    pending: list[bytes] = []
    async for chunk in content.iter_any():
        size += len(chunk)
        if size > max_size:
            raise VerifierError(f"an event of more than {max_size} bytes")
        if b"\n" not in chunk:
            # Joined once, at the end of its line: a drip of bytes must not cost a copy each.
            pending.append(chunk)
            continue
        *lines, rest = (b"".join(pending) + chunk).split(b"\n")
        pending = [rest]
        for raw in lines:
            try:
                line = raw.removesuffix(b"\r").decode()
            except UnicodeDecodeError:
                raise VerifierError("an event that is not UTF-8") from None
            if not line:
                if data:
                    yield Event(kind, "\n".join(data), event_id)
                kind, data, size = "message", [], len(rest)
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            elif name == "id":
                event_id = value
