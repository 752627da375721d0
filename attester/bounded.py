"""Reading what somebody else sends, up to a limit."""

from __future__ import annotations

import aiohttp


async def read_all(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """The whole of a stream, or `None` where it is longer than *limit* bytes; no more is then read."""
    if content.is_eof():
        # It is all here already, as most are.
        data = content.read_nowait()
        return data if len(data) <= limit else None
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)
