"""Takes nodes' usage claims: each is verified, and a node's day towards this router is kept once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from msgspec import Struct
from prometheus_client import Counter

from attester import usage_claims
from attester.cose import PublicKey
from attester.errors import UsageClaimError
from attester.usage_claims import UsageClaim
from attester.usage_counts import KEPT_DAYS
from router.model.clock import Clock
from router.model.errors import SettlementError
from router.model.node import NodeView
from router.receipts.payload import Node
from router.settlement.periods import day_of, read_period
from router.state.fleet import Fleet
from router.store import settlement as store
from verifier.errors import RequestError, ResultError
from verifier.result_keys import cose_key_of
from verifier.router_receipts import unb64url
from verifier.store.database import Database

SKEW_MS: Final = 3_600_000
"""By how much the clock of a node may be ahead: its day may be over before ours."""

_SHA256: Final = 32

_log = structlog.get_logger("router")
_claims = Counter(
    "touchstone_router_usage_claims_total", "Usage claims of nodes, by what became of them.", ["how"]
)


class _Result(Struct):
    cnf: dict[str, Any]


class ClaimDesk:
    """
    Takes claims towards one router.

    Args:
        db: The store, which routers may share.
        fleet: Knows the nodes and their keys.
        clock: For days.
        router: The router's name in the verifier's list, once it is registered.
        result: Gives the token of the result that a receipt would name, by the verifier; `None` if it gives none.
    """

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        clock: Clock,
        router: Callable[[], str | None],
        result: Callable[[Node], Awaitable[str | None]],
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._clock = clock
        self._router = router
        self._result = result

    @property
    def router(self) -> str | None:
        """Towards whom claims are taken; `None` if the router is not registered."""
        return self._router()

    async def take(self, data: bytes, *, only_operator: str | None = None) -> bool:
        """
        Take a claim.

        Args:
            data: As it was signed.
            only_operator: Whose nodes' claims are taken; `None`: anybody's.

        Returns:
            Whether it is new; `False` if the same claim was taken before.

        Raises:
            SettlementError: it is malformed or altered, by another key, of an unknown node, towards another router, of
                a day that is not over or too long ago, or the day was claimed otherwise.
        """
        try:
            new = await self._take(data, only_operator)
        except SettlementError as error:
            _claims.labels("refused").inc()
            _log.info("a usage claim was refused", why=str(error)[:300])
            raise
        _claims.labels("taken" if new else "known").inc()
        return new

    async def _take(self, data: bytes, only_operator: str | None) -> bool:
        try:
            signed = usage_claims.read(data)
        except UsageClaimError as error:
            raise SettlementError(str(error)) from None
        claim = signed.claim
        view = self._fleet.view(claim.node)
        if claim.node not in self._fleet or view.result is None or only_operator not in (None, view.operator):
            # The same for all: which nodes others have is not told.
            raise SettlementError("this router knows no such node", code="settlement.unknown")
        if claim.router != self._router():
            raise SettlementError(
                "the claim is towards another router, or this one is not registered at the verifier",
                code="settlement.never-routed",
            )
        self._check_day(claim.day)
        try:
            signed.verify(await self._key_of(view))
        except UsageClaimError as error:
            raise SettlementError(str(error), code="settlement.key") from None
        kept = await self._db.write(
            lambda tx: store.add_claim(
                tx,
                node=claim.node,
                router=claim.router,
                day=claim.day,
                operator=view.operator,
                at_ms=self._clock.now_ms(),
                claim=data,
            )
        )
        if kept is not None and _claim_in(kept) != claim:
            raise SettlementError(
                f"the day {claim.day} was claimed already, in other words: the first claim stays",
                code="settlement.conflict",
            )
        return kept is None

    async def _key_of(self, view: NodeView) -> PublicKey:
        """The key of a node, by its result: the router keeps only the digest of its token, and asks for it again."""
        assert view.result is not None
        digest = view.token_digest[:_SHA256].hex()
        token = await self._result(Node(id=view.node, result=view.result.jti, result_sha256=digest))
        if token is None:
            raise SettlementError("the verifier does not give the node's result now", code="store.refused")
        try:
            # It has the digest of the token whose signature was verified when it came.
            found = msgspec.json.decode(unb64url(token.split(".")[1]), type=_Result)
            return cose_key_of(found.cnf)
        except (IndexError, RequestError, ResultError, msgspec.DecodeError, UnicodeError) as error:
            raise SettlementError(f"the node's result has no key: {error}", code="settlement.key") from None

    def _check_day(self, day: str) -> None:
        now_ms = self._clock.now_ms()
        period = read_period(day)
        if period.to_ms > now_ms + SKEW_MS:
            raise SettlementError(f"the day {day} is not over", code="settlement.day")
        if period.from_ms < now_ms - (KEPT_DAYS + 1) * 86_400_000:
            raise SettlementError(f"the day {day} is too long ago", code="settlement.day")

    async def missing(self, node: str, days: list[str]) -> list[str]:
        """Those of *days* that a node has not claimed yet, and that may be claimed now."""
        router, now_ms = self._router(), self._clock.now_ms()
        if router is None:
            return []
        oldest = (dt.date.fromisoformat(day_of(now_ms)) - dt.timedelta(KEPT_DAYS)).isoformat()
        async with self._db.read() as tx:
            known = await store.claimed_days(tx, node, router, oldest)
        return [day for day in days if oldest <= day <= day_of(now_ms) and day not in known]


def _claim_in(data: bytes) -> UsageClaim:
    """ES256 signs the same claim in other bytes each time, so claims are compared by what they say."""
    return usage_claims.read(data).claim
