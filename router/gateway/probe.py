"""One probe: whether anything answers at a node's endpoint with the node's key."""

from __future__ import annotations

from typing import Final

import aiohttp

from attester.bounded import read_all
from router.gateway.pinned import AddressError, check_url, pin_for

_PATH: Final = "/v1/models"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_MAX_ANSWER: Final = 256 << 10


async def ask(http: aiohttp.ClientSession, endpoint: tuple[str, str], *, allow_private: bool) -> bool:
    """Whether the node answers.  Any answer over a connection that is pinned to its key will do."""
    url, pin = endpoint
    try:
        place = check_url(url, allow_private=allow_private).with_path(_PATH)
        async with http.get(place, ssl=pin_for(pin), allow_redirects=False, timeout=_TIMEOUT) as response:
            # If the answer is read to its end, the connection can serve the next probe.
            await read_all(response.content, _MAX_ANSWER)
    except (aiohttp.ClientError, TimeoutError, AddressError, OSError, ValueError):
        return False
    return True
