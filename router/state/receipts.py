"""
The receipts that a router has made: the newest at hand, each caller's chain, and the batch that is open.

Nothing is signed here for a request.  A payload is hashed into its caller's chain and into the open batch; it is signed
when somebody asks for it (`router.state.receipt_keeper`), and each batch is signed when it is closed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attester.cose import PrivateKey
from router.config import ANYONE
from router.receipts import costs, payload
from router.receipts.payload import VERSION, Receipt
from router.state.newest import Newest, Waiting
from router.state.random_bytes import random_bytes
from router.store.jobs import LineResult
from verifier.log.tree import leaf_hash
from verifier.router_receipts import ReceiptKey

STRANGER: Final = ""
"""In place of the name of a caller that showed no key that is known."""
_IN_MEMORY: Final = 10_000
"""Receipts that are kept at hand, because they are not written."""
_MAX_UNWRITTEN: Final = 20_000
"""Receipts that wait to be written; further ones are counted, and lost."""
_MAX_OPEN: Final = 200_000
"""Receipts of one batch.  While the store takes none, later ones are in none, and are counted as lost."""
_CHAINLESS: Final = frozenset({STRANGER, ANYONE})
"""Where no key is known, there is no chain."""
_SECRET: Final = b"touchstone/receipt-pseudonym/1\n"


class KeptReceipt(NamedTuple):
    """A receipt as it is stored."""

    id: str
    at_ms: int
    caller: str
    batch: int
    """The number of its batch; 0 if it is in none."""
    place: int
    """Its place there."""
    payload: bytes
    line: LineResult | None = None
    """What came of a line of a job, which is written with it or not at all."""


@dataclass(slots=True)
class Chain:
    """Where a caller's receipts are."""

    key: str
    """The caller's pseudonym."""
    seq: int = 0
    head: str = ""
    """SHA-256 of the last payload."""


@dataclass(slots=True)
class OpenBatch:
    """A batch that grows."""

    number: int
    leaves: list[bytes] = field(default_factory=list)
    from_ms: int = 0
    to_ms: int = 0


class ReceiptBook:
    """
    One router's receipts.

    Args:
        key: The receipt key.
        router: The router's name.
        writes: Whether receipts are to be written.
        lost: Called for each receipt that should have been written or batched, and is not.
        in_memory: How many of those that are not written are kept at hand.
        max_unwritten: How many may wait to be written.
        max_open: How many a batch has at most.
    """

    def __init__(
        self,
        key: PrivateKey,
        router: str,
        *,
        writes: bool,
        lost: Callable[[], None] = lambda: None,
        in_memory: int = _IN_MEMORY,
        max_unwritten: int = _MAX_UNWRITTEN,
        max_open: int = _MAX_OPEN,
    ) -> None:
        self.key = key
        self.public = ReceiptKey(key.public)
        self.router = router
        assert isinstance(key.native, Ed25519PrivateKey)
        self._secret = hashlib.sha256(_SECRET + key.native.private_bytes_raw()).digest()
        self._newest: Newest[KeptReceipt] = Newest(in_memory)
        self._running: dict[str, str] = {}
        self.writes = writes
        self._lost = lost
        self._unwritten: Waiting[KeptReceipt] = Waiting(max_unwritten, lost)
        self._chains: dict[str, Chain] = {}
        self._heads: dict[str, Chain] = {}
        """By pseudonym, the chains that were read from the store and not gone on with yet."""
        self._moved: dict[str, Chain] = {}
        """By pseudonym, the chains that have grown since they were written."""
        self._max_open = max_open
        self.open = OpenBatch(1)

    def new_id(self, now_ms: int) -> str:
        """
        An id for a receipt that nobody can guess.

        It begins with the time, as in a UUID of version 7 (RFC 9562 §5.7): so the store's index grows at its end.
        """
        return f"{now_ms:012x}{random_bytes(10).hex()}"

    def begin(self, receipt_id: str, caller: str) -> None:
        """Note that an answer to *caller* has begun."""
        self._running[receipt_id] = caller

    def whose(self, receipt_id: str) -> str | None:
        """Say whose answer with this id has not ended yet; `None` if there is none."""
        return self._running.get(receipt_id)

    def abandon(self, receipt_id: str) -> None:
        """Note that there will be no receipt: the answer is one that has a receipt already."""
        self._running.pop(receipt_id, None)

    def end(
        self,
        receipt_id: str,
        caller: str,
        now_ms: int,
        members: dict[str, Any],
        line: LineResult | None = None,
    ) -> None:
        """
        Make the receipt of an answer that has ended.

        A stranger's is kept at hand alone, for some time: strangers must not fill the store.

        Args:
            receipt_id: From `new_id`.
            caller: The name of the key; `STRANGER` if none is known.
            now_ms: The time.
            members: What the payload has besides the chain, which is added here.
            line: What came of a line of a job, if it is of one.
        """
        self._running.pop(receipt_id, None)
        costs.count(members)
        chain = None if caller in _CHAINLESS else self._chain(caller)
        if chain is not None:
            chain.seq += 1
            members["key"], members["seq"] = chain.key, chain.seq
            if chain.seq > 1:
                members["prev"] = chain.head
        data = payload.encode(Receipt(v=VERSION, iss=self.router, jti=receipt_id, iat=now_ms, **members))
        if chain is not None:
            chain.head = hashlib.sha256(data).hexdigest()
            self._moved[chain.key] = chain
        batch, place = (0, 0) if caller == STRANGER else self._add_leaf(data, now_ms)
        kept = KeptReceipt(receipt_id, now_ms, caller, batch, place, data, line)
        if self.writes and caller != STRANGER:
            self._unwritten.add(receipt_id, caller, kept)
        else:
            self._newest.add(receipt_id, caller, kept)

    def _chain(self, caller: str) -> Chain:
        chain = self._chains.get(caller)
        if chain is None:
            key = self.pseudonym(caller)
            chain = self._chains[caller] = self._heads.pop(key) if key in self._heads else Chain(key)
        return chain

    def pseudonym(self, caller: str) -> str:
        """What receipts have in place of a caller's name: only this router can tell whose it is."""
        return hashlib.sha256(caller.encode() + b"\x00" + self._secret).hexdigest()

    def _add_leaf(self, data: bytes, now_ms: int) -> tuple[int, int]:
        batch = self.open
        place = len(batch.leaves)
        if place >= self._max_open:
            self._lost()
            return 0, 0
        batch.leaves.append(leaf_hash(data))
        if not place:
            batch.from_ms = now_ms
        batch.to_ms = max(batch.to_ms, now_ms)
        return batch.number, place

    def get(self, receipt_id: str) -> KeptReceipt | None:
        """One that is not written."""
        return self._newest.get(receipt_id) or self._unwritten.get(receipt_id)

    def restore(self, chains: Mapping[str, Chain], batch: OpenBatch) -> None:
        """Go on where the router was before a restart."""
        self._heads.update(chains)
        self.open = batch

    def take_open(self) -> OpenBatch | None:
        """Take the open batch, and open the next one; `None` if nothing is in it."""
        batch = self.open
        if not batch.leaves:
            return None
        self.open = OpenBatch(batch.number + 1)
        return batch

    def drain(self) -> tuple[list[KeptReceipt], dict[str, Chain]]:
        """Take what is to be written: receipts, and the chains as they are after them, by pseudonym."""
        moved, self._moved = self._moved, {}
        heads = {key: Chain(chain.key, chain.seq, chain.head) for key, chain in moved.items()}
        return self._unwritten.drain(), heads

    def requeue(self, receipts: list[KeptReceipt], chains: Mapping[str, Chain]) -> None:
        """Give back what could not be written.  A chain that has grown since stays as it is now."""
        since = self._unwritten.drain()
        for each in (*receipts, *since):
            self._unwritten.add(each.id, each.caller, each)
        self._moved = {**chains, **self._moved}
