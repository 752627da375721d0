"""
What a node claims to have done for a router on one day: exchanges and tokens, by model.  Pure.

A claim is a COSE_Sign1 by the node key over deterministic CBOR, so that it has one form: the same claim has the same
bytes.  The day is of UTC by the node's clock, and a claim is made when the day is over.  It is the node's word: a
router pays by what it has metered itself, and holds the claim against that (docs/settlement.md).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from attester import cbor, cose
from attester.errors import CBORError, COSEError, UsageClaimError

DOMAIN: Final = "touchstone/usage-claim/1"
MEDIA_TYPE: Final = "application/touchstone-usage-claim+cose"
MAX_CLAIM: Final = 32 << 10
"""Bytes of a signed claim."""
MAX_LINES: Final = 64
"""Models of one claim."""
UNKNOWN: Final = ""
"""The model of exchanges whose request did not show it."""
_MAX_VALUES: Final = 64
"""CBOR values of the message itself; its payload is one of them."""

_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")]


class Used(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was done with one model."""

    model: Annotated[str, Meta(max_length=128)]
    """As requests named it; `UNKNOWN` if they did not show it."""
    exchanges: _Count
    """Answers that were sent to their end with status 200."""
    prompt: _Count
    completion: _Count
    """Tokens, as the engine told them in those answers."""


class UsageClaim(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The payload of a claim."""

    domain: str
    node: Annotated[str, Meta(min_length=1, max_length=64)]
    """The node's id at the verifier."""
    router: _Name
    """Whose work it was, by the name in the verifier's list of routers."""
    day: Day
    used: Annotated[tuple[Used, ...], Meta(max_length=MAX_LINES)]
    """By model, in the order of their names."""


def make(node: str, router: str, day: str, used: Mapping[str, tuple[int, int, int]]) -> UsageClaim:
    """
    A claim in its one form.

    Args:
        used: By model: exchanges, tokens of prompts, tokens of answers.  If there are too many models, the rest is
            claimed under `UNKNOWN`.

    Raises:
        UsageClaimError: a part is outside what a claim may hold.
    """
    kept = dict(sorted(used.items())[: MAX_LINES - 1])
    for model, counts in used.items():
        if model not in kept:
            before = kept.get(UNKNOWN, (0, 0, 0))
            kept[UNKNOWN] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])
    lines = tuple(
        Used(model=model, exchanges=exchanges, prompt=prompt, completion=completion)
        for model, (exchanges, prompt, completion) in sorted(kept.items())
    )
    return _checked(UsageClaim(domain=DOMAIN, node=node, router=router, day=day, used=lines))


def sign(claim: UsageClaim, key: cose.Signer) -> bytes:
    """The signed claim.  Ed25519 gives the same bytes each time, ES256 another signature over the same payload."""
    return cose.sign(cbor.encode(msgspec.to_builtins(claim)), key, header={cose.TYP: MEDIA_TYPE})


class SignedClaim(Struct, frozen=True):
    """A claim as it came, whose signature has **not** been checked yet."""

    message: cose.Sign1
    claim: UsageClaim

    def verify(self, key: cose.PublicKey) -> None:
        """
        Check that the node with this key has signed it.

        Raises:
            UsageClaimError: it is by another key, or was altered.
        """
        try:
            if self.message.header.get(cose.KID) != key.kid:
                raise UsageClaimError("the usage claim is by another key than the node's", is_forged=True)
            self.message.verify(key)
        except COSEError:
            raise UsageClaimError(
                "the signature of the usage claim is wrong: it was altered", is_forged=True
            ) from None


def read(data: bytes) -> SignedClaim:
    """
    Read a signed claim.

    Raises:
        UsageClaimError: it is too large, malformed, not in its one form, or of another kind.
    """
    try:
        message = cose.Sign1.decode(data, max_size=MAX_CLAIM, max_values=_MAX_VALUES)
        if message.unprotected or message.header.get(cose.TYP) != MEDIA_TYPE:
            raise UsageClaimError("the message is no usage claim")
        claim = msgspec.convert(cbor.decode(message.payload, max_size=MAX_CLAIM), UsageClaim)
    except (CBORError, COSEError, msgspec.ValidationError) as error:
        raise UsageClaimError(f"the usage claim is malformed: {error}") from None
    return SignedClaim(message, _checked(claim))


def _checked(claim: UsageClaim) -> UsageClaim:
    try:
        claim = msgspec.convert(msgspec.to_builtins(claim), UsageClaim)
        dt.date.fromisoformat(claim.day)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageClaimError(f"the usage claim is malformed: {error}") from None
    names = [each.model for each in claim.used]
    if claim.domain != DOMAIN or names != sorted(set(names)):
        raise UsageClaimError("the usage claim is malformed: another domain, or its models are not in order")
    if not all(text.isprintable() for text in (claim.node, claim.router, *names)):
        raise UsageClaimError("the usage claim is malformed: a name has control characters")
    return claim
