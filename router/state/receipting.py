"""All that a router needs for its receipts: the book, what keeps it, and what sends its batches."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from attester.cose import PrivateKey
from router.config import RouterConfig
from router.model.clock import Clock
from router.state.receipt_keeper import Lease, Losses, ReceiptKeeper
from router.state.receipt_sender import ReceiptSender
from router.state.receipts import ReceiptBook
from router.state.registration import Registrar
from verifier.router_receipts import generate_key
from verifier.store.database import Database


@dataclass(frozen=True)
class Receipting:
    """A router's receipts."""

    book: ReceiptBook
    keeper: ReceiptKeeper
    sender: ReceiptSender
    _flush_s: float

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs until the router ends, by name."""
        return {"receipts": self.keeper.run(), "receipt batches": self.sender.run(self._flush_s)}


def make_receipting(
    config: RouterConfig,
    key: PrivateKey | None,
    clock: Clock,
    db: Database,
    lease: Lease,
    *,
    registrar: Registrar,
    to_verifier: aiohttp.ClientSession,
    token: Callable[[], str | None],
) -> Receipting | None:
    """
    Make the parts, and connect them; `None` if answers are to have no receipts.

    Args:
        config: The router's.
        key: The receipt key; `None`: a new one, for this process alone.
        clock: The router's.
        db: The store.
        lease: Of the router's name.
        registrar: Has the identity by which the verifier knows the router.
        to_verifier: A client that trusts the verifier's certificate.
        token: Reads the router's credential of the verifier.
    """
    if not config.receipts.enabled:
        return None
    writes = config.store.is_kept and config.store.keep_decisions > 0
    losses = Losses()
    book = ReceiptBook(key or generate_key(), config.name, writes=writes, lost=losses)
    keeper = ReceiptKeeper(db, book, config.store, clock, lease=lease, losses=losses)
    sender = ReceiptSender(
        to_verifier, config.verifier.url, registrar.identity, keeper, clock=clock, token=token
    )
    return Receipting(book, keeper, sender, config.store.flush_s)
