"""
What a router gives out for a receipt: the receipt, the result that it names, and where it is committed to.  Pure.

``GET /api/v1/receipts/ID`` gives it as JSON.  Nothing of it is believed before `router.client.checking` has verified it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from attester import strictjson
from router.client.errors import Step, UnverifiedError
from router.receipts.tokens import MAX_TOKEN
from verifier.log.tree import MAX_PATH
from verifier.results import MAX_RESULT
from verifier.router_receipts import Hex32

MAX_BUNDLE: Final = 1 << 20
"""Bytes."""
_MAX_PROOF: Final = 400 << 10
_Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class GivenFront(Struct, frozen=True):
    """What the node's own front has signed of its answer."""

    jws: Annotated[str, Meta(max_length=16 << 10)]


class Bundle(Struct, frozen=True):
    """A receipt with all that it takes to verify it.  Members that later routers add are passed over."""

    receipt: Annotated[str, Meta(max_length=MAX_TOKEN)]
    result: Annotated[str, Meta(max_length=MAX_RESULT)] | None = None
    batch: dict[str, Any] | None = None
    """`router.receipts.batches.from_wire` reads it."""
    index: _Count | None = None
    path: Annotated[tuple[Hex32, ...], Meta(max_length=MAX_PATH)] | None = None
    log: Annotated[str, Meta(max_length=_MAX_PROOF)] | None = None
    front: GivenFront | None = None


def parse_bundle(data: bytes) -> Bundle:
    """
    Read what a router gives out, or a file that a client has kept, which has it inside.

    Raises:
        UnverifiedError: it is too large or malformed.
    """
    if len(data) > MAX_BUNDLE:
        raise UnverifiedError(Step.RECEIPT, f"what the router gives has more than {MAX_BUNDLE} bytes")
    try:
        document: Any = strictjson.loads(data)
        if isinstance(document, dict) and isinstance(document.get("bundle"), dict):
            document = document["bundle"]
        return msgspec.convert(document, Bundle)
    except (ValueError, RecursionError) as error:
        # msgspec's errors are such ones too.
        raise UnverifiedError(Step.RECEIPT, f"what the router gives is malformed: {error}") from None
