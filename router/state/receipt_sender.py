"""
Has the verifier's log take the roots of a router's batches, in order, and its receipt key before them.

What the verifier does not take now stays in the store, and is sent again.  A verifier without a log answers 404: then
receipts are signed and chained as ever, and nothing of them is logged.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
import yarl
from msgspec import Meta, Struct
from prometheus_client import Counter, Gauge

from attester.authorities import why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.model.clock import Clock
from router.receipts.payload import Node
from router.state.identity import Identity
from router.state.receipt_keeper import ReceiptKeeper
from verifier.errors import StoreError
from verifier.router_receipts import Batch, key_statement

_RENEW_EVERY_S: Final = 3600.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 2.0, 60.0
_AT_ONCE: Final = 64
"""Batches that are sent in one round."""
_MAX_ANSWER: Final = 256 << 10
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)
_MAX_CACHED: Final = 256
"""Proofs, and results, that are kept at hand."""
_PROOF_S: Final = 10.0
"""How long a proof is."""

_log = structlog.get_logger("router")
_sent = Counter("touchstone_router_receipt_batches_total", "Batches of receipts for the log.", ["how"])
_waiting = Gauge("touchstone_router_receipt_batches_waiting", "Batches that the log has not taken yet.")


class _Taken(Struct, frozen=True):
    entry: Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+\Z")]


class _Shown(Struct, frozen=True):
    token: Annotated[str, Meta(max_length=_MAX_ANSWER)]


class ReceiptSender:
    """
    One router's side of the log.

    Args:
        http: A client that trusts the verifier's certificate.
        issuer: The verifier's URL.
        identity: By which the verifier knows the router.
        keeper: Has the batches.
        clock: For the times between.
        token: Reads the router's credential; raises `ConfigError`.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        issuer: str,
        identity: Identity,
        keeper: ReceiptKeeper,
        *,
        clock: Clock,
        token: Callable[[], str | None],
    ) -> None:
        self._http = http
        self._issuer = issuer
        self._identity = identity
        self._keeper = keeper
        self._clock = clock
        self._token = token
        self._registered_at: float | None = None
        self._failed = 0
        self._next_at = clock.monotonic()
        self._problem = "the verifier was not asked yet"
        self._cache: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def to_wire(self) -> dict[str, Any]:
        """What people are shown."""
        return {
            "kid": self._keeper.book.public.kid,
            "key_registered": self._registered_at is not None,
            "problem": self._problem or None,
        }

    async def run(self, every_s: float) -> None:
        """Send what there is, again and again, until cancelled."""
        while True:
            try:
                await self.send()
            except StoreError as error:
                _log.warning("batches of receipts cannot be read", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nothing would be logged any more, unnoticed.
                _log.exception("sending batches of receipts failed")
            await asyncio.sleep(every_s)

    async def send(self) -> None:
        """Send what there is, if it is time; what went wrong is in the status and in the log of events."""
        if self._clock.monotonic() < self._next_at:
            return
        batches = await self._keeper.unsent(_AT_ONCE)
        _waiting.set(len(batches))
        if not await self._register():
            return
        for batch in batches:
            if not await self._send_batch(batch):
                return
        self._note_success()

    async def _register(self) -> bool:
        """Register the receipt key, unless it was lately; says whether it is."""
        now = self._clock.monotonic()
        if self._registered_at is not None and now - self._registered_at < _RENEW_EVERY_S:
            return True
        try:
            token = self._token()
        except ConfigError as error:
            return self._note_failure(str(error))
        if token is None:
            return self._note_failure("this router has no credential of the verifier")
        book = self._keeper.book
        x = book.public.public.point
        statement = key_statement(self._issuer, hashlib.sha256(token.encode()).digest(), book.router, x)
        body = {
            "x": book.public.x,
            "signature": base64.b64encode(self._identity.key.sign(statement)).decode(),
            "possession": base64.b64encode(book.key.sign(statement)).decode(),
        }
        path = f"/api/v1/routers/{quote(book.router, safe='')}/receipt-key"
        answer = await self._ask("PUT", path, token, msgspec.json.encode(body))
        if isinstance(answer, str):
            return self._note_failure(answer)
        status, data = answer
        if status in (200, 201, 204):
            self._registered_at = now
            return True
        return self._note_refusal("the receipt key", status, data)

    async def _send_batch(self, batch: Batch) -> bool:
        token = self._token()
        answer = await self._ask("POST", "/api/v1/log/receipts", token or "", batch.encode())
        if isinstance(answer, str):
            return self._note_failure(answer)
        status, data = answer
        if status in (200, 201):
            try:
                entry = msgspec.json.decode(data, type=_Taken).entry
            except (msgspec.DecodeError, UnicodeError):
                return self._note_failure("what answers is no verifier with a log")
            await self._keeper.note_sent(batch, entry)
            _sent.labels("taken").inc()
            return True
        # A key that the verifier does not know any more is registered again.
        self._registered_at = None
        return self._note_refusal(f"batch {batch.number}", status, data)

    async def _ask(self, method: str, path: str, token: str, body: bytes | None) -> tuple[int, bytes] | str:
        """The verifier's status and answer, or why there is none."""
        headers = {"Authorization": f"Bearer {token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            url = yarl.URL(self._issuer + path, encoded=True)
            async with self._http.request(
                method, url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
                return response.status, data or b""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"the verifier does not answer: {why_unreached(error)}"

    def _note_success(self) -> None:
        if self._problem:
            _log.info("the verifier's log takes this router's receipts")
        self._problem, self._failed = "", 0
        self._next_at = self._clock.monotonic()

    def _note_refusal(self, what: str, status: int, data: bytes) -> bool:
        if status in (404, 405):
            return self._note_failure(f"{what} is not taken: the verifier keeps no log of receipts")
        if status == 409:
            return self._note_failure(
                f"{what} is refused: the log has another one of its number. This router's store is older than what it"
                " has sent, as after a backup was restored. Delete the file of its receipt key: it makes a new one"
            )
        return self._note_failure(
            f"{what} is refused: the verifier answers {status}: {_detail(data)}".rstrip(": ")
        )

    def _note_failure(self, why: str) -> bool:
        _sent.labels("failed").inc()
        pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failed, 8))
        self._failed += 1
        self._next_at = self._clock.monotonic() + pause_s
        if why != self._problem:
            _log.warning("receipts are not logged now; they wait", why=why)
        self._problem = why
        return False

    # What goes with a receipt.

    async def proof(self, entry: str) -> str | None:
        """The tlog-proof of an entry; `None` if there is none now."""
        path = f"/api/v1/log/proof?kind=receipts&id={quote(entry, safe='')}"
        # Witnesses may cosign later, so it is asked for again.
        return await self._cached(path, lambda data: data.decode("utf-8"), kept_s=_PROOF_S)

    async def result(self, node: Node) -> str | None:
        """The token of the result that a node was asked on; `None` if the verifier does not have that very one."""
        if not isinstance(node.result, str):
            return None
        path = f"/api/v1/results/{quote(node.result, safe='')}"
        read = partial(msgspec.json.decode, type=_Shown)
        token = await self._cached(path, lambda data: read(data).token, kept_s=math.inf)
        if token is None or hashlib.sha256(token.encode()).hexdigest() != node.result_sha256:
            return None
        return token

    async def _cached(self, path: str, read: Callable[[bytes], str], *, kept_s: float) -> str | None:
        now = self._clock.monotonic()
        until, known = self._cache.get(path, (0.0, ""))
        if until > now:
            self._cache.move_to_end(path)
            return known
        try:
            answer = await self._ask("GET", path, self._token() or "", None)
            if isinstance(answer, str) or answer[0] != 200:
                return None
            found = read(answer[1])
        except (ConfigError, msgspec.DecodeError, UnicodeError):
            return None
        self._cache[path] = (now + kept_s, found)
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return found


def _detail(data: bytes) -> str:
    """What the verifier says, in a line."""
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        return ""
    detail = document.get("detail")
    return "".join(c for c in detail[:300] if c.isprintable()) if isinstance(detail, str) else ""
