"""Reads an HTTP body up to a limit."""

from __future__ import annotations

import aiohttp


async def read_all(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """The whole stream; `None` if it is longer than *limit* bytes, and the rest is not read."""
    if content.is_eof():
        # The usual case: the whole body has arrived already.
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
