"""
Settles a period: reads receipts, claims and gaps, and writes a signed statement for each operator.

A period is settled once.  What is found later comes into a correction, which a person makes and which says why.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Struct

from attester import usage_claims
from attester.cose import PrivateKey
from attester.errors import UsageClaimError
from attester.usage_claims import UsageClaim
from router.config import ReviewSection, RouterConfig, SettlementSection
from router.model.errors import ReceiptError, SettlementError
from router.settlement import exchanges, statements
from router.settlement.accounts import Accounts, key_of
from router.settlement.periods import DAY_MS, Period, read_period
from router.settlement.reconciling import Gap, Judgement, Metering, Verdict, reconcile
from router.settlement.statements import Adjustment, Statement
from router.state import holds as kinds
from router.store import holds, receipts
from router.store import settlement as store
from router.store.holds import Hold
from router.store.settlement import StoredStatement
from verifier.archive import parquet
from verifier.archive.rows import RECEIPTS
from verifier.router_receipts import ReceiptKey, read_batch
from verifier.store.database import Database, Tx

MINOR: Final = "settlement-minor"
_PAGE: Final = 1000
_BEFORE_MS: Final = 2 * DAY_MS
"""An id begins with when the request came, which is up to a day before its answer ended; and the day before counts."""


class Settled(Struct, frozen=True, kw_only=True):
    """What settling a period has made."""

    period: Period
    statements: tuple[StoredStatement, ...]
    known: int
    """Operators whose statement was there already."""
    judgements: tuple[Judgement, ...]
    unreadable: int
    missing: int
    """Receipts that were in batches of the period, and are kept no longer."""
    is_short: bool
    """Whether receipts of the period may have been dropped before it was settled."""


class KeptReceipt(NamedTuple):
    """A receipt, from the store or from the archive."""

    id: str
    caller: str
    kid: str
    batch: int
    place: int
    payload: bytes


class _Read(Struct, frozen=True, kw_only=True):
    """What was read of a period."""

    metering: Metering
    accounts: Accounts
    claims: list[tuple[str, UsageClaim]]
    gaps: list[Gap]
    is_short: bool


class Settler:
    """
    Settles periods of one store.

    Args:
        db: The store.
        config: The router's.
        folder: Of the configuration.
        key: The router's receipt key.
        now_ms: The time.
    """

    def __init__(
        self, db: Database, config: RouterConfig, folder: Path, key: PrivateKey, now_ms: int
    ) -> None:
        self._db = db
        self._config = config
        self._settings: SettlementSection = config.settlement
        self._review: ReviewSection = config.review
        self._archive = (
            None if config.store.archive is None else folder / config.store.archive / RECEIPTS.name
        )
        self._key = key
        self._now_ms = now_ms

    async def run(self, period: Period) -> Settled:
        """
        Settle a period: a statement for each operator that has none, and incidents for what was claimed too high.

        Raises:
            SettlementError: the period is not over for long enough.
            StoreError, AuditError: the store or the archive cannot be read.
        """
        due_ms = period.to_ms + self._settings.grace_hours * 3_600_000
        if self._now_ms < due_ms:
            raise SettlementError(
                f"{period.name} is settled {self._settings.grace_hours} hours after its end:"
                " claims and receipts of it may still come",
                code="settlement.day",
            )
        read = await self._read(period)
        judged = self._judge(read)
        operators = sorted({*read.accounts.operators, *(each.operator for each in judged)})
        made, known = [], 0
        for operator in operators:
            found = await self._close(read, operator, judged)
            known += found is None
            made += [] if found is None else [found]
        return Settled(
            period=period,
            statements=tuple(made),
            known=known,
            judgements=tuple(judged),
            unreadable=read.accounts.unreadable,
            missing=read.accounts.missing,
            is_short=read.is_short,
        )

    async def correct(
        self,
        statement_id: str,
        *,
        actor: str,
        reason: str,
        adjustment: tuple[int, int] | None = None,
        dispute: str = "",
    ) -> StoredStatement:
        """
        Make a new statement in the place of one, from the receipts that there are now.

        Args:
            statement_id: The newest statement of its operator and period.
            actor: Who corrects it.
            reason: Why.
            adjustment: The number of a line, and what is added to its amount.
            dispute: The id of the dispute that it follows from.

        Raises:
            SettlementError: there is no such statement, it was corrected already, or there is no such line.
        """
        if not reason.strip() or len(reason) > statements.MAX_REASON:
            raise SettlementError(f"a correction needs a reason of up to {statements.MAX_REASON} characters")
        async with self._db.read() as tx:
            old = await store.find_statement(tx, statement_id)
            newest = None if old is None else await store.newest_statement(tx, old.operator, old.period)
        if old is None or newest is None:
            raise SettlementError("there is no such statement", code="settlement.unknown")
        if newest.id != old.id:
            raise SettlementError(
                f"it was corrected already: by number {newest.number}, {newest.id}",
                code="settlement.conflict",
            )
        data, before = statements.open_signed(old.token, await self._keys())
        read = await self._read(read_period(old.period))
        added = []
        if adjustment is not None:
            line, amount = adjustment
            text = statements.plain(reason)
            added = [Adjustment(line=line, amount=str(amount), actor=actor, reason=text, dispute=dispute)]
        made = self._make(
            read, old.operator, self._judge(read),
            previous=(statements.digest(data), before),
            adjustments=[*_moved(before, read.accounts), *added],
            correction=f"{actor}: {reason}",
        )  # fmt: skip
        stored = await self._write(read, old.operator, made)
        if stored is None:
            raise SettlementError("somebody else has corrected it meanwhile", code="settlement.conflict")
        return stored

    async def _keys(self) -> Mapping[str, ReceiptKey]:
        async with self._db.read() as tx:
            found = [ReceiptKey.from_bytes(x) for _, x in await receipts.keys(tx)]
        own = ReceiptKey(self._key.public)
        return {each.kid: each for each in (own, *found)}

    def _judge(self, read: _Read) -> list[Judgement]:
        settings = self._settings
        return reconcile(read.metering, read.claims, read.gaps, settings.tolerance, settings.least_exchanges)

    async def _read(self, period: Period) -> _Read:
        metering, accounts = Metering(period), Accounts(period)
        found: Counter[tuple[str, int]] = Counter()
        async for row in self.receipts(period):
            found[row.kid, row.batch] += 1
            try:
                found_in = exchanges.read(row.payload, row.caller)
            except ReceiptError:
                accounts.unreadable += 1
                continue
            for exchange in found_in:
                accounts.add(exchange)
                metering.add(exchange)
        async with self._db.scan() as tx:
            rows = await store.claims(tx, period.day_before, period.day_after)
            gaps = await store.gaps(tx, period.from_ms, period.to_ms)
            closed = [read_batch(each) for each in await receipts.closed(tx, period.from_ms, period.to_ms)]
        accounts.missing = sum(
            max(each.size - found[each.kid, each.number], 0)
            for each in closed
            if each.from_ms >= period.from_ms and each.to_ms < period.to_ms
        )
        claims = [(row.operator, claim) for row in rows if (claim := _claim(row.claim)) is not None]
        kept_ms = self._config.store.keep_days * DAY_MS
        is_short = self._archive is None and self._now_ms - period.from_ms > kept_ms
        return _Read(metering=metering, accounts=accounts, claims=claims, gaps=gaps, is_short=is_short)

    async def receipts(self, period: Period) -> AsyncIterator[KeptReceipt]:
        """The receipts that may be of a period or of the days around it, each once."""
        from_ms, to_ms = period.from_ms - _BEFORE_MS, period.to_ms + DAY_MS
        archived: set[str] = set()
        if self._archive is not None:
            for path in sorted(self._archive.glob("*.parquet")):
                for row in parquet.read(path)[1]:
                    if from_ms <= row["at_ms"] < to_ms and row["id"] not in archived:
                        archived.add(row["id"])
                        yield _kept(row)
        after, until = f"{max(from_ms, 0):012x}", f"{to_ms:012x}"
        while True:
            async with self._db.scan() as tx:
                rows = await store.page_of_receipts(tx, after, until, _PAGE)
            for each in rows:
                if each["id"] not in archived:
                    yield _kept(each)
            if len(rows) < _PAGE:
                return
            after = rows[-1]["id"]

    async def _close(self, read: _Read, operator: str, judged: Sequence[Judgement]) -> StoredStatement | None:
        async with self._db.read() as tx:
            known = await store.newest_statement(tx, operator, read.accounts.period.name)
        if known is not None:
            return None
        own = [each for each in judged if each.operator == operator]
        incidents = partial(self._open_incidents, read.accounts.period, own)
        return await self._write(read, operator, self._make(read, operator, judged), incidents)

    def _make(
        self,
        read: _Read,
        operator: str,
        judged: Sequence[Judgement],
        *,
        previous: tuple[str, Statement] | None = None,
        adjustments: Sequence[Adjustment] = (),
        correction: str = "",
    ) -> Statement:
        return statements.make(
            read.accounts,
            operator,
            judged,
            made_ms=self._now_ms,
            router=self._config.name,
            unit=self._settings.unit,
            decimals=self._settings.decimals,
            gaps=read.gaps,
            previous=previous,
            adjustments=adjustments,
            correction=correction,
        )

    async def _write(
        self,
        read: _Read,
        operator: str,
        made: Statement,
        also: Callable[[Tx], Awaitable[None]] | None = None,
    ) -> StoredStatement | None:
        """Write a statement and, in the same transaction, what follows from it; `None` if there is one already."""
        data = statements.encode(made)
        stored = StoredStatement(
            statements.digest(data), operator, made.period, made.number, made.made_ms,
            statements.sign(data, self._key),
        )  # fmt: skip
        behind = read.accounts.receipts(operator)

        async def write(tx: Tx) -> bool:
            added = await store.add_statement(tx, stored, behind)
            if added and also is not None:
                await also(tx)
            return added

        return stored if await self._db.write(write) else None

    async def _open_incidents(self, period: Period, judged: Sequence[Judgement], tx: Tx) -> None:
        """An incident for each node of an operator whose claims are too high: once, when its statement is made."""
        if any(each.verdict is Verdict.ROUTER_SUSPECT for each in judged):
            detail = f"as many operators claim too much for {period.name} as do not"
            await self._open(tx, None, "", kinds.OUR_COUNT, detail, {"period": period.name}, holding=False)
        for each in judged:
            kind = _KINDS.get(each.verdict)
            if kind is None:
                continue
            evidence = statements.evidence_of(each, self._settings.tolerance, period.name)
            detail = (
                f"for {period.name} the node claims {evidence['claimed_tokens']} tokens of {evidence['of']};"
                f" {evidence['metered_tokens']} were metered, and at most {evidence['allowed_tokens']} expected"
            )
            is_serious = each.verdict is Verdict.SERIOUS
            await self._open(tx, each.node, each.operator, kind, detail, evidence, holding=is_serious)

    async def _open(
        self,
        tx: Tx,
        node: str | None,
        operator: str,
        kind: str,
        detail: str,
        evidence: dict[str, object],
        *,
        holding: bool,
    ) -> None:
        hold = Hold(
            id=f"r-{secrets.token_hex(8)}", node=node, operator=operator, kind=kind, code=f"router.{kind}",
            detail=detail, evidence=evidence, holding=holding, opened_ms=self._now_ms,
            due_ms=self._now_ms + self._review.target_hours * 3_600_000,
        )  # fmt: skip
        await holds.add(tx, hold)


_KINDS: Final = {
    Verdict.SERIOUS: kinds.SETTLEMENT,
    Verdict.MINOR: MINOR,
    Verdict.UNCONFIRMED: kinds.UNCONFIRMED,
}


def _kept(row: Mapping[str, Any]) -> KeptReceipt:
    return KeptReceipt(
        row["id"], row["caller"], row["kid"], row["batch"], row["place"], bytes(row["payload"])
    )


def _claim(data: bytes) -> UsageClaim | None:
    try:
        # It was verified when it was taken.
        return usage_claims.read(data).claim
    except UsageClaimError:
        return None


def _moved(before: Statement, accounts: Accounts) -> list[Adjustment]:
    """The adjustments of the statement before, on the lines as they are numbered now."""
    numbers = accounts.line_numbers(before.operator)
    lines = {line.number: key_of(line) for line in before.lines}
    return [
        statements.renumbered(each, numbers[lines[each.line]])
        for each in before.adjustments
        if lines[each.line] in numbers
    ]
