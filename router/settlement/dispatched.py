"""
What a relying party reports of work that it has dispatched itself, by a decision of this router.  Pure.

It is a JWS (RFC 7515) with the Ed25519 key that is registered with the party's API key, over canonical JSON.  It is the
party's word: it pays nobody and holds nobody.  If many parties report failures of a node, a person is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attester.cose import PrivateKey
from router.model.errors import SettlementError
from router.model.usage import CLIENTS
from verifier import canonical
from verifier.errors import CanonicalError, RequestError
from verifier.result_keys import b64url
from verifier.router_receipts import ReceiptKey, unb64url

TYPE: Final = "touchstone-dispatch-receipt+jwt"
MAX_RECEIPT: Final = 4096
"""Characters of the JWS."""
_LEAST_REPORTS: Final = 20
"""With fewer reports of a node, nobody is asked."""
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Text = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+\Z")]


class DispatchReceipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payload."""

    v: Annotated[int, Meta(ge=1, le=1)]
    decision: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    """The decision that named the node."""
    node: _Text
    at: _Count
    """When the answer had ended, Unix milliseconds, by the party's clock."""
    outcome: Literal["completed", "failed"]
    prompt: _Count = 0
    completion: _Count = 0
    """Tokens, by the party's count."""


def sign(receipt: DispatchReceipt, key: PrivateKey) -> str:
    """Sign a receipt."""
    signed = f"{_header(ReceiptKey(key.public).kid)}.{b64url(canonical.encode(receipt))}"
    return f"{signed}.{b64url(key.sign(signed.encode()))}"


def open_signed(token: str, key: ReceiptKey) -> DispatchReceipt:
    """
    Verify a receipt and read it.

    Args:
        key: The one that is registered with the party's API key.

    Raises:
        SettlementError: it is too large, malformed, altered, or by another key.
    """
    parts = token.split(".")
    if len(token) > MAX_RECEIPT or len(parts) != 3:
        raise SettlementError("it is no receipt: a compact JWS of at most 4096 characters is needed")
    head, body, tail = parts
    if head != _header(key.kid):
        raise SettlementError("the receipt is by another key than that of the API key, or of another kind")
    try:
        data, signature = unb64url(body), unb64url(tail)
        is_right = key.verify(signature, f"{head}.{body}".encode())
        receipt = canonical.decode(data, DispatchReceipt, max_size=MAX_RECEIPT)
    except (RequestError, CanonicalError) as error:
        raise SettlementError(f"the receipt is malformed: {error}") from None
    if not is_right:
        raise SettlementError("the signature is wrong: the receipt was altered")
    return receipt


def check_decision(receipt: DispatchReceipt, decision: Mapping[str, Any] | None, caller: str) -> None:
    """
    Make sure that a decision of this router has named the node to this caller.

    Args:
        decision: The decision's record, as it is kept; `None`: none is kept.

    Raises:
        SettlementError: it has not.  Whether others have such a decision is not told.
    """
    if decision is None or decision.get("caller") != caller:
        raise SettlementError("no such decision is kept", code="settlement.never-routed")
    ranked = decision.get("ranked")
    if decision.get("attempts"):
        raise SettlementError("the router has sent this work itself", code="settlement.never-routed")
    nodes = (
        [each.get("node") for each in ranked if isinstance(each, dict)] if isinstance(ranked, list) else []
    )
    if receipt.node not in nodes:
        raise SettlementError("the decision has not named this node", code="settlement.never-routed")


class Reports(Struct, frozen=True):
    """What one party has reported of a node."""

    party: str
    """Callers that may act together are one party."""
    completed: int
    failed: int


def asks_for_review(reports: Sequence[Reports]) -> bool:
    """
    Whether a person should look at a node for what was reported of it.

    So many parties as live metering needs must each report more failures than successes, without those of the two that
    report most: one party, or two together, bring nobody to look.
    """
    if sum(each.completed + each.failed for each in reports) < _LEAST_REPORTS:
        return False
    left = sorted(reports, key=lambda each: each.failed - each.completed)[: 1 - CLIENTS]
    return sum(each.failed for each in left) > sum(each.completed for each in left)


def _header(kid: str) -> str:
    return b64url(f'{{"alg":"Ed25519","kid":"{kid}","typ":"{TYPE}"}}'.encode())


def read_key(text: str) -> ReceiptKey:
    """
    Read a party's public key: the 32 bytes of an Ed25519 key in base64url, as ``x`` of a JWK has them.

    Raises:
        SettlementError: it is none.
    """
    try:
        return ReceiptKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": text})
    except (RequestError, msgspec.ValidationError) as error:
        raise SettlementError(f"it is no public key of Ed25519: {error}") from None
