"""A front's receipt against the router's.  Pure."""

from __future__ import annotations

from msgspec import UNSET

from attester.front.receipts import FrontReceipt
from router.model.outcomes import Outcome
from router.receipts.payload import Receipt


def find_agreement(signed: FrontReceipt, receipt: Receipt) -> bool | None:
    """
    Whether a front has signed the bytes that the router received; `None`: they cannot be compared.

    If the router did not read the answer to its end, or the front did not send it, both digests are of a part.
    """
    received = receipt.node.answer_sha256 if receipt.node else UNSET
    if received is UNSET:
        return None
    if received == signed.response.sha256:
        return True
    was_read = receipt.outcome == Outcome.COMPLETED and signed.response.complete
    return False if was_read else None
