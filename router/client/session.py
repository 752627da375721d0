"""
Requests to a router whose answers are verified before they are handed on.

A whole answer is given out after its receipt was verified.  A stream is kept until then too, unless the caller says
that it wants the parts as they come: then the end of the stream is where it learns whether to believe them.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Self

import aiohttp
import msgspec
import yarl
from msgspec import UNSET, Meta, Struct

from attester.authorities import client_context, why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.client import checking
from router.client.awaiting import LogWatch
from router.client.bundles import MAX_BUNDLE, Bundle, parse_bundle
from router.client.chain import Chain
from router.client.checking import Checked
from router.client.choices import HeldCommitments, Stake, check_choice, check_decision, is_void
from router.client.errors import Step, TrustError, UnreachableError, UnverifiedError
from router.client.exchanges import Digest, Exchange
from router.client.kept import KeptFolder
from router.client.streams import Answer, Sent, Stream, value_of
from router.client.trust import Trust, load_trust
from router.client.wanted import check_wanted
from router.receipts.payload import Receipt
from verifier.result_keys import b64url

RECEIPT_HEADER: Final = "X-Touchstone-Receipt"
SALT_HEADER: Final = "X-Touchstone-Salt"
CONTINUE_HEADER: Final = "X-Touchstone-Continue"
_SALT: Final = 32
"""Bytes."""
_PAUSES_S: Final = (0.02, 0.1, 0.3, 1.0, 2.0, 4.0)
"""A receipt is there once its answer has ended: within moments."""
COMMITMENT_HEADER: Final = "X-Touchstone-Commitment"
NONCE_HEADER: Final = "X-Touchstone-Nonce"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
REQUIRE_HEADER: Final = "X-Touchstone-Require"
MAX_DECISION: Final = 64 << 20
"""Bytes of the record of a decision."""
_COMMITMENTS: Final = 16
"""How many commitments are fetched at a time."""
_MAY_BE_VOID: Final = (400, 409)
_GET: Final = "GET"
_NOT_YET: Final = (409, 425)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=660)
"""A router answers within ten minutes, and streams show signs of life."""
_OWN: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "accept-encoding",
        "expect",
        "upgrade",
        "te",
    }
)
"""Headers that a request of ours has of its own."""


class _Commitments(Struct, frozen=True):
    commitments: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=256)]


class AsyncClient:
    """
    A client of one router that verifies each answer.

    It is used within ``async with``, in one event loop.

    Args:
        url: The router's base URL; that of the trust file if it is `None`.
        key: An API key of the router.
        trust: A trust file.
        ca_file: Whose certificates are believed over https, PEM; those of the system if it is `None`.
        kept: Where receipts are kept.
        now: Seconds since 1970.

    Raises:
        TrustError: the trust file cannot be used, or is about another router.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        trust: Trust | str | Path,
        key: str | None = None,
        ca_file: Path | None = None,
        kept: KeptFolder | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.trust = trust if isinstance(trust, Trust) else load_trust(Path(trust))
        if url is not None and url.rstrip("/") != self.trust.router_url:
            raise TrustError(f"the trust file is about {self.trust.router_url}, not about {url}")
        self._key = key
        self._ca_file = ca_file
        self._kept = kept
        self._now, self._sleep = now, sleep
        self._chain = Chain()
        self._secret = secrets.token_bytes(_SALT)
        self._commitments = HeldCommitments()
        self._http: aiohttp.ClientSession | None = None
        self.watch = LogWatch(self.trust, self.fetch, kept, now=now, sleep=sleep)
        """The receipts that must still get into the log."""

    async def __aenter__(self) -> Self:
        try:
            connector = aiohttp.TCPConnector(ssl=client_context(self._ca_file), limit=0)
        except ConfigError as error:
            raise TrustError(str(error)) from None
        jar: Any = aiohttp.DummyCookieJar()
        # What is digested is what was sent: nothing may be unpacked on its way.
        self._http = aiohttp.ClientSession(
            connector=connector, cookie_jar=jar, trust_env=False, auto_decompress=False, timeout=_TIMEOUT
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.watch.close()
        assert self._http is not None
        await self._http.close()

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """
        Send a request, and give its answer once it is verified; errors of the router are such answers too.

        Raises:
            UnreachableError: the router does not answer, or its answer is too large.
            UnverifiedError: the answer does not verify, or an earlier one is not in the log in time.
        """
        async with self.stream(method, path, body, headers) as stream:
            whole = await stream.whole()
        answer = Answer(stream.status, stream.headers, whole, stream.checked)
        if answer.checked is not None and self._kept is not None and self._kept.has_bodies:
            await self._kept.add_bodies(answer.checked, body, answer.body)
        return answer

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """
        Send a request, and give the parts of its answer as they come: unverified, until all have come.

        Raises:
            UnreachableError: the router does not answer.
            UnverifiedError: an earlier answer is not in the log in time.
        """
        self.watch.check()
        # An answer that is given again has the choice that it had.
        stake = None if value_of(headers or {}, IDEMPOTENCY_HEADER) is not None else await self._stake(method)
        async with self._exchange(method, path, body, headers or {}, stake) as stream:
            if stake is None or stream.status not in _MAY_BE_VOID:
                yield stream
                return
            whole = await stream.whole()
            if not is_void(whole):
                yield stream
                return
        # The router was started again, say: what it had committed to before is gone.
        self._commitments.clear()
        async with self._exchange(method, path, body, headers or {}, await self._stake(method)) as stream:
            yield stream

    async def _stake(self, method: str) -> Stake | None:
        if method == _GET or self.trust.require.choice == "never" or not self.trust.router.gives_receipts:
            return None
        held = self._commitments.stake(self._now())
        if held is None and self.trust.require.choice == "replayed":
            for each in await self._fetch_commitments():
                self._commitments.put(each, self._now())
            held = self._commitments.stake(self._now())
            if held is None:
                raise UnverifiedError(Step.CHOICE, "the router gives out no commitments")
        return held

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], stake: Stake | None
    ) -> AsyncIterator[Stream]:
        assert self._http is not None
        again = value_of(headers, IDEMPOTENCY_HEADER)
        salt = self._salt(again) if self.trust.router.gives_receipts else b""
        target = yarl.URL(self.trust.router_url + path, encoded=True)
        given = self._headers(headers, salt, stake)
        if self.trust.require.tells_router and method != _GET and value_of(given, REQUIRE_HEADER) is None:
            given[REQUIRE_HEADER] = self.trust.require.for_router()
        if not self.trust.require.continued and method != _GET and value_of(given, CONTINUE_HEADER) is None:
            # An answer of several nodes would be refused here: better that it ends where it broke.
            given[CONTINUE_HEADER] = "0"
        sent = Sent(
            method,
            target.raw_path,
            body,
            salt=salt,
            at_ms=self._now_ms(),
            headers=given,
            stake=stake,
            is_repeatable=again is not None,
        )
        try:
            request = self._http.request(
                method, target, data=body or None, headers=given, allow_redirects=False
            )
            async with request as response:

                async def finish(got: Digest) -> Checked | None:
                    if not self.trust.router.gives_receipts:
                        return None
                    seen = sent.exchange(response.status, got, self._now_ms())
                    return await self._verify(response.headers.get(RECEIPT_HEADER), sent, seen)

                self._commitments.put(response.headers.get(COMMITMENT_HEADER), self._now())
                yield Stream(response, salt, finish)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the router does not answer: {why_unreached(error)}") from None

    def _salt(self, idempotency_key: str | None) -> bytes:
        """Fresh; for an ``Idempotency-Key`` the same each time, because the router gives its answer for the same salt."""
        if idempotency_key is None:
            return secrets.token_bytes(_SALT)
        return hmac.digest(self._secret, idempotency_key.encode(), "sha256")

    def _headers(self, given: Mapping[str, str], salt: bytes, stake: Stake | None = None) -> dict[str, str]:
        ours = {"Accept-Encoding": "identity"}
        if self._key is not None:
            ours["Authorization"] = f"Bearer {self._key}"
        if salt:
            ours[SALT_HEADER] = b64url(salt)
        if stake is not None:
            ours[NONCE_HEADER] = stake.header
        names = _OWN | {name.lower() for name in ours} | {SALT_HEADER.lower(), NONCE_HEADER.lower()}
        return {name: value for name, value in given.items() if name.lower() not in names} | ours

    async def _verify(self, receipt_id: str | None, sent: Sent, seen: Exchange) -> Checked:
        if receipt_id is None:
            raise UnverifiedError(Step.RECEIPT, "the router gave none with its answer")
        bundle, raw = await self._fetch_ended(receipt_id)
        checked = checking.verify(bundle, self.trust, seen)
        receipt, steps = checked.receipt, checked.steps
        if receipt.jti != receipt_id:
            raise UnverifiedError(Step.RECEIPT, "it is another one than the answer names")
        steps[Step.CHAIN] = self._chain.add(receipt, checked.payload, may_repeat=seen.is_repeatable)
        if checked.result is not None and bundle.result is not None:
            wanted = value_of(sent.headers, REQUIRE_HEADER)
            at_ms = seen.began_ms(receipt.iat)
            met = check_wanted(sent.body, wanted, receipt, checked.result, bundle.result, at_ms=at_ms)
            steps |= {} if met is None else {Step.REQUIREMENTS: met}
        if sent.stake is not None:
            steps[Step.CHOICE] = await self._check_choice(receipt, sent.stake)
        if self._kept is not None:
            await self._kept.keep(checked, raw, sent.salt, seen)
        await self.watch.take(checked)
        return checked

    async def _check_choice(self, receipt: Receipt, stake: Stake) -> str:
        found = check_choice(receipt, stake)
        if self.trust.require.choice != "replayed" or receipt.choice is UNSET or receipt.decision is UNSET:
            return found
        status, data = await self._get(f"/api/v1/decisions/{receipt.decision}", MAX_DECISION)
        if status != 200:
            raise UnverifiedError(Step.CHOICE, f"the router does not give the decision: it answers {status}")
        try:
            record = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise UnverifiedError(Step.CHOICE, "the record of the decision is not JSON") from None
        return check_decision(record, receipt, stake)

    async def _fetch_commitments(self) -> tuple[str, ...]:
        status, data = await self._get(f"/api/v1/commitments?count={_COMMITMENTS}", MAX_BUNDLE)
        try:
            return msgspec.json.decode(data, type=_Commitments).commitments if status == 200 else ()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return ()

    async def _fetch_ended(self, receipt_id: str) -> tuple[Bundle, bytes]:
        for pause_s in _PAUSES_S:
            found = await self.fetch(receipt_id)
            if found is not None:
                return found
            await self._sleep(pause_s)
        raise UnverifiedError(Step.RECEIPT, "the router does not give it, although its answer has ended")

    async def fetch(self, receipt_id: str) -> tuple[Bundle, bytes] | None:
        """
        A receipt as the router gives it now, and its bytes; `None` if it says that it is too early.

        Raises:
            UnreachableError: the router does not answer.
            UnverifiedError: it gives none, or something malformed.
        """
        if not (receipt_id.isascii() and receipt_id.isalnum() and len(receipt_id) <= 64):
            raise UnverifiedError(Step.RECEIPT, "its id is malformed")
        status, data = await self._get(f"/api/v1/receipts/{receipt_id}", MAX_BUNDLE)
        if status in _NOT_YET:
            return None
        if status != 200:
            raise UnverifiedError(Step.RECEIPT, f"the router does not give it: it answers {status}")
        return parse_bundle(data), data

    async def _get(self, path: str, limit: int) -> tuple[int, bytes]:
        """A resource of the router's own API.  Raises `UnreachableError`."""
        assert self._http is not None
        headers, url = self._headers({"Accept": "application/json"}, b""), self.trust.router_url + path
        try:
            async with self._http.get(url, headers=headers, allow_redirects=False) as response:
                data = await read_all(response.content, limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the router does not answer: {why_unreached(error)}") from None
        if data is None:
            raise UnreachableError(f"the router gives more than {limit} bytes at {path}")
        return response.status, data

    def _now_ms(self) -> int:
        return int(self._now() * 1000)
