"""One probe: whether anything answers at a node's endpoint with the node's key, and if not, why."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from attester.bounded import read_all
from router.gateway.failures import classify, judge, not_listed
from router.gateway.pinned import NodeConnector, check_url, pin_for
from router.model.outcomes import CERTIFICATE_STATUSES, Failure

_PATH: Final = "/v1/models"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_MAX_ANSWER: Final = 256 << 10


async def ask(
    http: aiohttp.ClientSession,
    endpoint: tuple[str, str],
    *,
    allow_private: bool,
    judge_refusal: Callable[[], Awaitable[Failure]] = not_listed,
) -> Failure | None:
    """
    Why the node does not answer; `None` if it does.

    Any answer over a connection that is pinned to its key will do.

    Args:
        http: A client for nodes.
        endpoint: The node's URL and pin.
        allow_private: Whether nodes may have private addresses.
        judge_refusal: Whose fault it is that a node refuses the router's certificate now.
    """
    failure = await _ask(http, endpoint, allow_private=allow_private)
    return None if failure is None else await judge(failure, endpoint[1], judge_refusal)


async def _ask(
    http: aiohttp.ClientSession, endpoint: tuple[str, str], *, allow_private: bool
) -> Failure | None:
    url, pin = endpoint
    began = time.monotonic()
    try:
        place = check_url(url, allow_private=allow_private).with_path(_PATH)
        async with http.get(place, ssl=pin_for(pin), allow_redirects=False, timeout=_TIMEOUT) as response:
            # If the answer is read to its end, the connection can serve the next probe.
            await read_all(response.content, _MAX_ANSWER)
            if response.status in CERTIFICATE_STATUSES:
                return Failure.CERTIFICATE_REFUSED
    except TimeoutError as error:
        connector = http.connector
        late = (
            connector.names.late(place.raw_host or "", began)
            if isinstance(connector, NodeConnector)
            else None
        )
        return classify(late or error)
    except (aiohttp.ClientError, OSError, ValueError, RuntimeError, MemoryError) as error:
        return classify(error)
    return None
