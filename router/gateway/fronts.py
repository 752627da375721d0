"""
Asks the fronts of nodes what they have signed of answers, and holds it against what the router received.

Over the same kind of connection as work: pinned to the node's key, with the router's own certificate.  A front keeps
what it served for a while only, and older ones keep nothing.
"""

from __future__ import annotations

from typing import Final

import aiohttp
import structlog
from msgspec import Struct
from prometheus_client import Counter

from attester.bounded import read_all
from attester.errors import FrontReceiptError
from attester.front.receipts import MAX_RECEIPT, MEDIA_TYPE, PATH, FrontReceipt, open_receipt
from router.gateway.pinned import check_url, pin_for
from router.model.clock import Clock
from router.receipts.fronts import find_agreement
from router.receipts.payload import Receipt
from router.state.newest import Newest
from router.state.receipt_keeper import ReceiptKeeper
from router.store.receipts import StoredReceipt

_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)
_UNREACHED_S: Final = 15.0
"""A front that could not be asked is left alone for so long: who waits for a receipt asks again and again."""
_MAX_UNREACHED: Final = 1000
_ASKED_FOR_MS: Final = 3_600_000
"""A front is asked about an answer for so long; it keeps what it served for less."""
_MAX_KNOWN: Final = 10_000
"""Receipts of which it is remembered what the front said, or that it keeps none."""
_NONE: Final = ""
_log = structlog.get_logger("router")
_asked = Counter("touchstone_router_front_receipts_total", "Receipts that fronts were asked for.", ["how"])


class FrontWord(Struct, frozen=True):
    """What a front says of an answer."""

    jws: str
    """Signed with the key that the router was pinned to."""
    agrees: bool | None
    """
    Whether it is of the bytes that the router received; `None`: the router did not read the answer to its end.

    TLS protects the bytes between the two, so that a difference is not the network's.  It is the node's word against
    the router's, and both have signed theirs.
    """


class Fronts:
    """
    Asks fronts.

    Args:
        http: A client for nodes, with the router's certificate.
        keeper: Keeps what they have signed.
        clock: For ages.
        allow_private: Whether nodes may have private addresses.
    """

    def __init__(
        self, http: aiohttp.ClientSession, keeper: ReceiptKeeper, clock: Clock, *, allow_private: bool
    ) -> None:
        self._http = http
        self._keeper = keeper
        self._clock = clock
        self._allow_private = allow_private
        self._known: Newest[str] = Newest(_MAX_KNOWN)
        self._unreached: dict[tuple[str, str], float] = {}
        """By endpoint, when it could not be asked."""

    async def ask(
        self, found: StoredReceipt, receipt: Receipt, endpoint: tuple[str, str] | None
    ) -> FrontWord | None:
        """
        What the front of the node that answered has signed of it; `None` if there is no such receipt.

        Args:
            found: The router's receipt, as it is kept.
            receipt: What it says.
            endpoint: Where the node serves now, and the pin of its key.
        """
        node = receipt.node
        if not node or not node.request or not node.spki_sha256:
            return None
        jws = found.front or self._known.get(found.id)
        is_new = jws is None
        if jws is None:
            if not self._may_ask(found, receipt) or endpoint is None:
                return None
            jws = await self._fetch(endpoint, node.request)
        signed = _open(jws, node.request, node.spki_sha256) if jws else None
        word = FrontWord(jws, find_agreement(signed, receipt)) if jws and signed is not None else None
        if is_new and jws is not None:
            await self._keep(found, node.id, word, was_given=bool(jws))
        return word

    def _may_ask(self, found: StoredReceipt, receipt: Receipt) -> bool:
        """A front gives each router what it has served to that one, and not for long."""
        is_own = found.kid == self._keeper.book.public.kid
        return is_own and self._clock.now_ms() - receipt.iat <= _ASKED_FOR_MS

    async def _keep(
        self, found: StoredReceipt, node: str, word: FrontWord | None, *, was_given: bool
    ) -> None:
        """Keep what a front has said, so that it is asked once."""
        if found.id not in self._known:
            self._known.add(found.id, found.caller, _NONE if word is None else word.jws)
        if word is None:
            _asked.labels("refused" if was_given else "none").inc()
            if was_given:
                _log.warning("a front gave something else than its receipt", node=node)
            return
        _asked.labels({True: "agrees", False: "differs", None: "incomparable"}[word.agrees]).inc()
        if word.agrees is False:
            _log.error("the front of a node has signed another answer than came from it", node=node)
        await self._keeper.keep_front(found, word.jws)

    async def _fetch(self, endpoint: tuple[str, str], request_id: str) -> str | None:
        """What the front gives; empty if it keeps none, and `None` if it could not be asked."""
        url, pin = endpoint
        now = self._clock.monotonic()
        if now - self._unreached.get(endpoint, -_UNREACHED_S) < _UNREACHED_S:
            return None
        try:
            place = check_url(url, allow_private=self._allow_private).with_path(PATH + request_id)
            async with self._http.get(
                place, ssl=pin_for(pin), allow_redirects=False, timeout=_TIMEOUT
            ) as response:
                data = await read_all(response.content, MAX_RECEIPT)
                is_receipt = response.status == 200 and response.content_type == MEDIA_TYPE
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            _asked.labels("unreached").inc()
            if len(self._unreached) >= _MAX_UNREACHED:
                self._unreached.clear()
            self._unreached[endpoint] = now
            _log.info("a front cannot be asked for its receipt", why=type(error).__name__)
            return None
        return data.decode("ascii", errors="replace") if is_receipt and data is not None else _NONE


def _open(jws: str, request_id: str, pin: str) -> FrontReceipt | None:
    """A receipt of that request, signed with the pinned key; `None` if it is none."""
    try:
        signed = open_receipt(jws, pin)
    except FrontReceiptError:
        return None
    return signed if signed.jti == request_id else None
