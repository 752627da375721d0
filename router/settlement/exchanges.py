"""
One exchange as settlement sees it: what of a receipt says who is owed what.  Pure.

Everything of a statement follows from receipts, so that anybody who has them can compute it again.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct

from router.model.usage import Usage
from router.model.workload import Price
from router.receipts import payload
from router.receipts.payload import Claimed, Receipt
from verifier.log.tree import leaf_hash

FREE: Final = Price()


class Passing(Struct, frozen=True, gc=False):
    """Work of a node that was not taken, and is not paid."""

    node: str
    claimed: Usage


class Exchange(Struct, frozen=True, kw_only=True, gc=False):
    """What one receipt says."""

    id: str
    at_ms: int
    """When the answer had ended."""
    client: str
    """Who asked, as this store calls it, or as the receipt does."""
    node: str = ""
    """The node that is paid; empty: nobody is."""
    operator: str = ""
    model: str = ""
    workload: str = ""
    tier: str = ""
    price: Price = FREE
    counted: Usage = Usage(0, 0)
    """By the router: this is paid."""
    template: int = 0
    is_exact: bool = False
    claimed: Usage | None = None
    """What the node told in its answer."""
    passed: tuple[Passing, ...] = ()
    leaf: bytes = b""
    """The hash of the receipt, as in its batch."""

    @property
    def amount(self) -> int:
        """What it earns, in millionths of a millionth of the unit of account."""
        return self.price.charge(self.counted)


def read(data: bytes, client: str = "") -> Exchange | None:
    """
    Read the payload of a receipt; `None` if no node was given the request, or the receipt is of an earlier version.

    Raises:
        ReceiptError: it is no payload.
    """
    receipt = payload.decode(data)
    who = client or (receipt.key if receipt.key is not UNSET else "")
    exchange = of_receipt(receipt, who, leaf_hash(data))
    return exchange if exchange.node or exchange.passed else None


def of_receipt(receipt: Receipt, client: str, leaf: bytes = b"") -> Exchange:
    """What a receipt says."""
    passed = tuple(Passing(each.node, _usage(each.claimed)) for each in receipt.passed)
    model = _or_empty(receipt.model)
    metered, paid = receipt.metered, receipt.node if receipt.node is not UNSET else receipt.tried
    if metered is UNSET or paid is UNSET:
        return Exchange(
            id=receipt.jti, at_ms=receipt.iat, client=client, model=model, passed=passed, leaf=leaf
        )
    workload, price = _or_empty(receipt.workload), receipt.price
    return Exchange(
        id=receipt.jti,
        at_ms=receipt.iat,
        client=client,
        node=paid.id,
        operator=_or_empty(metered.operator),
        model=model,
        workload=workload,
        tier=workload if metered.tier is UNSET else metered.tier,
        price=FREE if price is UNSET else Price(price.input, price.output),
        counted=Usage(metered.prompt, metered.completion),
        template=metered.template,
        is_exact=metered.exact,
        claimed=None if metered.claimed is UNSET else _usage(metered.claimed),
        passed=passed,
        leaf=leaf,
    )


def _usage(claimed: Claimed) -> Usage:
    return Usage(claimed.prompt, claimed.completion)


def _or_empty(text: object) -> str:
    return text if isinstance(text, str) else ""
