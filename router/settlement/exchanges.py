"""
One exchange as settlement sees it: what of a receipt says who is owed what.  Pure.

Everything of a statement follows from receipts, so that anybody who has them can compute it again.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct, structs

from router.model.outcomes import Outcome
from router.model.usage import Usage
from router.model.workload import Price
from router.receipts import payload
from router.receipts.payload import Claimed, Continued, Receipt, price_paid
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
    is_completed: bool = False
    """Whether the caller has got its answer, from this node last."""
    passed: tuple[Passing, ...] = ()
    leaf: bytes = b""
    """The hash of the receipt, as in its batch."""

    @property
    def amount(self) -> int:
        """What it earns, in millionths of a millionth of the unit of account."""
        return self.price.charge(self.counted)


def read(data: bytes, client: str = "") -> tuple[Exchange, ...]:
    """
    Read the payload of a receipt.

    Returns:
        One for each node that is paid for a part of the answer, the last part first; none if no node was given the
        request, or the receipt is of an earlier version.

    Raises:
        ReceiptError: it is no payload.
    """
    receipt = payload.decode(data)
    who = client or (receipt.key if receipt.key is not UNSET else "")
    return of_receipt(receipt, who, leaf_hash(data))


def of_receipt(receipt: Receipt, client: str, leaf: bytes = b"") -> tuple[Exchange, ...]:
    """What a receipt says."""
    passed = tuple(Passing(each.node, _usage(each.claimed)) for each in receipt.passed)
    model, workload = _or_empty(receipt.model), _or_empty(receipt.workload)
    metered, paid = receipt.metered, receipt.node if receipt.node is not UNSET else receipt.tried
    common = Exchange(
        id=receipt.jti, at_ms=receipt.iat, client=client, model=model, workload=workload, leaf=leaf
    )
    if metered is UNSET or paid is UNSET:
        return (structs.replace(common, passed=passed),) if passed else ()
    common = structs.replace(common, tier=workload if metered.tier is UNSET else metered.tier)
    last = structs.replace(
        common,
        node=paid.id,
        operator=_or_empty(metered.operator),
        price=price_paid(receipt.price, is_own=metered.own),
        counted=Usage(metered.prompt, metered.completion),
        template=metered.template,
        is_exact=metered.exact,
        claimed=None if metered.claimed is UNSET else _usage(metered.claimed),
        is_completed=receipt.outcome == Outcome.COMPLETED,
        passed=passed,
    )
    parts = () if receipt.continued is UNSET else receipt.continued
    return (last, *(_part(common, each) for each in parts))


def _part(common: Exchange, part: Continued) -> Exchange:
    """A part before the last: its tokens are paid, and its prompt is not, which the last node has read too."""
    return structs.replace(
        common,
        node=part.node.id,
        operator=_or_empty(part.operator),
        price=price_paid(part.price, is_own=part.own),
        counted=Usage(0, part.completion),
    )


def _usage(claimed: Claimed) -> Usage:
    return Usage(claimed.prompt, claimed.completion)


def _or_empty(text: object) -> str:
    return text if isinstance(text, str) else ""
