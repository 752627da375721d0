"""
The tree of a batch (RFC 9162 §2.1): its leaves are payloads of receipts, and the log has its root.  Pure.

A batch is kept with the hashes of its leaves, one after the other, from which each path is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from attester.cose import PrivateKey
from router.model.errors import ReceiptError
from verifier.errors import LogError
from verifier.log import tree
from verifier.router_receipts import Batch, ReceiptKey, sign_batch

MAX_PATH: Final = 20
"""Hashes of a path in a batch of a million."""


def close(
    key: PrivateKey, router: str, number: int, leaves: Sequence[bytes], *, prev: str, from_ms: int, to_ms: int
) -> Batch:
    """
    Sign a batch.

    Args:
        key: The receipt key.
        router: The router's name.
        number: Of the batch.
        leaves: The hashes of its leaves (`verifier.log.tree.leaf_hash`), at least one.
        prev: The root of the batch before, hex.
        from_ms: The end of its first answer.
        to_ms: The end of its last.
    """
    return sign_batch(
        Batch(
            router=router,
            number=number,
            size=len(leaves),
            root=tree.root_of(leaves).hex(),
            prev=prev,
            from_ms=from_ms,
            to_ms=to_ms,
            kid=ReceiptKey(key.public).kid,
        ),
        key,
    )


def path(leaves: bytes, index: int) -> list[str]:
    """
    The path of one leaf, hex.

    Args:
        leaves: The hashes of all leaves, one after the other.
        index: Which.

    Raises:
        ReceiptError: there is no such leaf.
    """
    size = len(leaves) // tree.HASH_SIZE
    made: dict[tuple[int, int], bytes] = {}
    grown = tree.CompactRange()
    for at in range(0, len(leaves), tree.HASH_SIZE):
        made.update(grown.append(leaves[at : at + tree.HASH_SIZE]))
    try:
        return [each.hex() for each in tree.inclusion_proof(index, size, lambda *node: made[node])]
    except LogError as error:
        raise ReceiptError(f"the batch has no such receipt: {error}") from None


def check_path(payload: bytes, index: int, batch: Batch, hashes: Sequence[str]) -> None:
    """
    Check that a payload is a leaf of a batch.

    Raises:
        ReceiptError: it is not.
    """
    if len(hashes) > MAX_PATH:
        raise ReceiptError(f"the path in the batch has more than {MAX_PATH} hashes")
    try:
        decoded = [bytes.fromhex(each) for each in hashes]
        tree.verify_inclusion(tree.leaf_hash(payload), index, batch.size, decoded, bytes.fromhex(batch.root))
    except (LogError, ValueError) as error:
        raise ReceiptError(f"the receipt is not in its batch: {error}") from None


def to_wire(batch: Batch) -> dict[str, Any]:
    """A batch as it goes with a receipt."""
    members: dict[str, Any] = msgspec.to_builtins(batch)
    members["from_ms"], members["to_ms"] = members.pop("from"), members.pop("to")
    return members


def from_wire(members: dict[str, Any]) -> Batch:
    """
    Read what `to_wire` gives.

    Raises:
        ReceiptError: it is something else.
    """
    named = {{"from_ms": "from", "to_ms": "to"}.get(name, name): value for name, value in members.items()}
    try:
        if len(named) != len(members) or {"from", "to"} & members.keys():
            raise ReceiptError("the batch is malformed: it has a member under another name")
        return msgspec.convert(named, Batch)
    except msgspec.ValidationError as error:
        raise ReceiptError(f"the batch is malformed: {error}") from None
