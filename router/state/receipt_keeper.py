"""
Keeps a router's receipts in the store, closes their batches, and signs what somebody asks for.

Whatever is signed is in the store before anybody has it: so no two signed receipts of a key have one number, also if
the router is killed.  What a kill takes was seen by nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Final, Protocol

import structlog
from prometheus_client import Counter

from router.config import StoreSection
from router.model.clock import Clock
from router.receipts import batches, payload, tokens
from router.settlement.reconciling import Gap
from router.state.receipts import Chain, KeptReceipt, OpenBatch, ReceiptBook
from router.store import forgetting, jobs, settlement
from router.store import receipts as store
from router.store.receipts import StoredBatch, StoredReceipt
from verifier.errors import StoreError
from verifier.log.tree import leaf_hash
from verifier.router_receipts import NO_ROOT, Batch, ReceiptKey, read_batch
from verifier.store.database import Database, Tx

_FORGET_EVERY_S: Final = 600.0
_DAY_MS: Final = 86_400_000
_AT_ONCE: Final = 500
"""Rows of one transaction, as in `router.state.persistence`."""
_UNKEPT_MS: Final = 600_000
"""How long batches are kept where nothing of the store outlives the router: longer than receipts in memory usually are."""

_log = structlog.get_logger("router")
receipts_lost = Counter(
    "touchstone_router_receipts_lost_total", "Receipts that were not written, or in no batch."
)


class Losses:
    """Counts receipts that are lost, until that is written: no node answers for them (`router.settlement`)."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        """Count one."""
        receipts_lost.inc()
        self.count += 1


class Lease(Protocol):
    """The right to write under a router's name."""

    async def confirm(self, tx: Tx) -> None:
        """Make sure, in the transaction that writes, that no other router has it.  Raises `StoreError`."""


class ReceiptKeeper:
    """
    One router's receipts in the store.

    Args:
        db: The store.
        book: The router's receipts.
        config: What is kept.
        clock: For ages.
        lease: Of the router's name.
        losses: What the book has lost.
    """

    def __init__(
        self,
        db: Database,
        book: ReceiptBook,
        config: StoreSection,
        clock: Clock,
        *,
        lease: Lease | None = None,
        losses: Losses | None = None,
    ) -> None:
        self.book = book
        self._losses = losses or Losses()
        self._db = db
        self._config = config
        self._clock = clock
        self._lease = lease
        self._last_root = NO_ROOT
        self._written = 0
        """The number of the last batch that is written: receipts of later ones are ahead of theirs."""
        self._closing: deque[tuple[OpenBatch, Batch]] = deque()
        """Batches that are closed and not written."""
        self._writing: list[KeptReceipt] = []
        """Receipts that are being written now."""
        self._one_at_a_time = asyncio.Lock()
        self._forgot_at = clock.monotonic()

    async def load(self) -> None:
        """Go on where this router was before a restart."""
        kid = self.book.public.kid
        await self._db.write(self._load_key)
        async with self._db.read() as tx:
            chains = await store.chains(tx, kid)
            last = await store.last_batch(tx, kid)
            ahead = await store.ahead(tx, kid)
        batch = None if last is None else read_batch(last)
        self._last_root = NO_ROOT if batch is None else batch.root
        self._written = 0 if batch is None else batch.number
        opened = OpenBatch(self._written + 1)
        for each in ahead:
            opened.leaves.append(leaf_hash(each.payload))
        if ahead:
            times = [payload.decode(each.payload).iat for each in ahead]
            opened.from_ms, opened.to_ms = min(times), max(times)

            async def readdress(tx: Tx) -> None:
                for place, each in enumerate(ahead):
                    await store.readdress(tx, each.id, opened.number, place)

            await self._db.write(readdress)
        self.book.restore({key: Chain(key, seq, head) for key, (seq, head) in chains.items()}, opened)

    async def _load_key(self, tx: Tx) -> None:
        key = self.book.public
        await store.add_key(tx, key.kid, self.book.router, key.public.point, self._clock.now_ms())

    async def run(self) -> None:
        """Write and close batches until cancelled."""
        while True:
            await asyncio.sleep(self._config.flush_s)
            try:
                await self.flush()
            except StoreError as error:
                _log.error("receipts could not be written; the next round tries again", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, no receipt would be logged any more, unnoticed.
                _log.exception("receipts failed")

    async def flush(self) -> None:
        """
        Close the open batch, write what is unwritten, and sign what other routers are asked for.

        Raises:
            StoreError: it could not be written.  Nothing is lost: the next call writes it.
        """
        async with self._one_at_a_time:
            opened = None if self._closing else self.book.take_open()
            receipts, chains = self.book.drain()
            if opened is not None:
                self._closing.append((opened, await self._close(opened)))
            await self._write(receipts, chains)
            await self._sign_wanted()
            await self._note_losses()
        await self._forget()

    async def _note_losses(self) -> None:
        """Write how many receipts were lost since the last flush."""
        count, now_ms = self._losses.count, self._clock.now_ms()
        if count:
            from_ms = now_ms - int(self._config.flush_s * 1000)
            why = "the router had too many receipts to write"
            gap = Gap(router=self.book.router, from_ms=from_ms, to_ms=now_ms, lost=count, why=why)
            await self._db.write(partial(settlement.add_gap, gap=gap))
            self._losses.count -= count

    async def write_now(self) -> None:
        """
        Write what is unwritten, ahead of its batch.

        Raises:
            StoreError: it could not be written.  Nothing is lost: the next call writes it.
        """
        async with self._one_at_a_time:
            receipts, chains = self.book.drain()
            await self._write(receipts, chains)

    async def _close(self, opened: OpenBatch) -> Batch:
        batch = await asyncio.to_thread(
            batches.close,
            self.book.key,
            self.book.router,
            opened.number,
            opened.leaves,
            prev=self._last_root,
            from_ms=min(opened.from_ms, opened.to_ms),
            to_ms=opened.to_ms,
        )
        self._last_root = batch.root
        return batch

    async def _write(self, receipts: list[KeptReceipt], chains: dict[str, Chain]) -> None:
        """Write a closed batch first, with the chains: what a kill takes after it leaves a gap, and no second receipt."""
        kid = self.book.public.kid
        left = deque(receipts)
        self._writing = receipts
        try:
            while left or self._closing or chains:
                closed = self._closing[0] if self._closing else None
                until = self._written if closed is None else closed[0].number
                some = [left[i] for i in range(min(_AT_ONCE, len(left)))]
                heads = {key: (chain.seq, chain.head) for key, chain in chains.items()}

                async def write(
                    tx: Tx,
                    closed: tuple[OpenBatch, Batch] | None = closed,
                    until: int = until,
                    some: list[KeptReceipt] = some,
                    heads: dict[str, tuple[int, str]] = heads,
                ) -> set[int]:
                    await self._confirm(tx)
                    await self._write_batch(tx, closed)
                    await store.save_chains(tx, kid, heads)
                    kept, refused = await _write_lines(tx, some)
                    for is_ahead in (False, True):
                        rows = [each[:6] for each in kept if (each.batch > until) is is_ahead]
                        await store.save(tx, kid, rows, is_ahead=is_ahead)
                    return refused

                _tell(some, await self._db.write(write))
                chains = {}
                self._written = until
                if closed is not None:
                    self._closing.popleft()
                for _ in some:
                    left.popleft()
        except BaseException:
            self.book.requeue(list(left), chains)
            raise
        finally:
            self._writing = []

    async def _write_batch(self, tx: Tx, closed: tuple[OpenBatch, Batch] | None) -> None:
        if closed is not None:
            opened, batch = closed
            stored = StoredBatch(batch.encode(), b"".join(opened.leaves), None)
            await store.save_batch(tx, batch.kid, batch.number, batch.to_ms, stored)

    async def _confirm(self, tx: Tx) -> None:
        """Make sure that the rows of this name are this router's."""
        if self._lease is not None:
            await self._lease.confirm(tx)

    async def _sign_wanted(self) -> None:
        """Sign what others are asked for and this router has made."""
        kid = self.book.public.kid
        async with self._db.read() as tx:
            wanted = await store.wanted(tx, kid)
        for each in wanted:
            signature = tokens.sign_bytes(each.payload, self.book.key)
            await self._db.write(partial(store.sign, receipt_id=each.id, signature=signature))

    async def find(self, receipt_id: str) -> StoredReceipt | None:
        """A receipt of any router of the store."""
        kept = self.book.get(receipt_id) or next((r for r in self._writing if r.id == receipt_id), None)
        if kept is not None:
            return StoredReceipt(
                id=kept.id,
                kid=self.book.public.kid,
                caller=kept.caller,
                batch=kept.batch,
                place=kept.place,
                payload=kept.payload,
            )
        async with self._db.read() as tx:
            return await store.find(tx, receipt_id)

    async def token(self, found: StoredReceipt) -> str | None:
        """
        The signed receipt; `None` if another router has to sign it first, which it is asked for.

        Raises:
            StoreError: it cannot be written now, and so must not be signed.
        """
        if found.kid != self.book.public.kid:
            if found.signature is None:
                await self._db.write(lambda tx: store.want(tx, found.id, found.kid))
                return None
            return tokens.join(found.payload, found.kid, found.signature)
        if self.book.writes and found.signature is None and found.caller:
            await self.write_now()
        signature = found.signature or tokens.sign_bytes(found.payload, self.book.key)
        if self.book.writes and found.signature is None:
            await self._db.write(lambda tx: store.sign(tx, found.id, signature))
        return tokens.join(found.payload, found.kid, signature)

    async def keep_front(self, found: StoredReceipt, front: str) -> None:
        """Keep what a node's front has signed of an answer."""
        if self.book.writes:
            await self._db.write(lambda tx: store.keep_front(tx, found.id, front))

    async def find_batch(self, found: StoredReceipt) -> StoredBatch | None:
        """The batch of a receipt; `None` if it is not closed, not kept any more, or there is none."""
        if not found.batch:
            return None
        async with self._db.read() as tx:
            return await store.find_batch(tx, found.kid, found.batch)

    async def unsent(self, limit: int) -> list[Batch]:
        """The oldest batches of this router that the verifier has not taken."""
        async with self._db.read() as tx:
            return [read_batch(each) for each in await store.unsent(tx, self.book.public.kid, limit)]

    async def note_sent(self, batch: Batch, entry: str) -> None:
        """Note as which entry of the log the verifier has taken a batch."""
        await self._db.write(lambda tx: store.note_sent(tx, batch.kid, batch.number, entry))

    async def keys(self) -> list[ReceiptKey]:
        """The receipt keys of all routers of the store; this router's own is the first."""
        async with self._db.read() as tx:
            listed = [ReceiptKey.from_bytes(x) for _, x in await store.keys(tx)]
        own = self.book.public
        return [own, *(each for each in listed if each.kid != own.kid)]

    async def _forget(self) -> None:
        """Delete what is old, from time to time and in small steps."""
        now_ms, now = self._clock.now_ms(), self._clock.monotonic()
        if now - self._forgot_at <= _FORGET_EVERY_S:
            return
        self._forgot_at = now
        config = self._config
        until_ms = now_ms - (config.keep_days * _DAY_MS if config.is_kept else _UNKEPT_MS) - 1
        if config.archive is None:
            # Otherwise they are deleted once they are in a file (`router.state.archiver`).
            while await self._db.write(lambda tx: store.forget(tx, until_ms, limit=_AT_ONCE)):
                pass
            await forgetting.thin(self._db, "receipts", config.keep_decisions, at_once=_AT_ONCE)
        while await self._db.write(lambda tx: store.forget_batches(tx, until_ms, limit=_AT_ONCE)):
            pass


async def _write_lines(tx: Tx, some: list[KeptReceipt]) -> tuple[list[KeptReceipt], set[int]]:
    """
    Write what came of lines of jobs.

    Returns:
        The receipts that may be written, and the places of the others: of lines that another router does.
    """
    places = [place for place, each in enumerate(some) if each.line is not None]
    if not places:
        return some, set()
    lines = [line for each in some if (line := each.line) is not None]
    refused = {places[at] for at in await jobs.write_lines(tx, lines)}
    return [each for place, each in enumerate(some) if place not in refused], refused


def _tell(some: list[KeptReceipt], refused: set[int]) -> None:
    """Tell who waits for lines of jobs what became of them."""
    for place, each in enumerate(some):
        if place in refused:
            # Its leaf is in a batch, and it is nowhere.
            receipts_lost.inc()
        if each.line is not None and not each.line.written.done():
            each.line.written.set_result(place not in refused)
