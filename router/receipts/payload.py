"""
The payload of a receipt, in its one form: canonical JSON (`verifier.canonical`).  Pure.

It has digests, ids and counts, and nothing of a request or of an answer.  A request is digested with a salt that the
caller chooses, so that who sees a receipt cannot try out what may have been asked.

The members of each struct stand in the order of their names: so the encoder need not sort them for every request.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from router.model import workload
from router.model.errors import ReceiptError
from verifier import canonical
from verifier.errors import CanonicalError, RequestError
from verifier.router_receipts import Hex32, Ms, RouterName, unb64url

VERSION: Final = 1
MAX_PAYLOAD: Final = 8192
"""Bytes; all that a router writes has less than half of it."""
MIN_SALT, MAX_SALT = 16, 64
"""Bytes of a salt."""
_MAX_SALT_TEXT: Final = 86
MOST_PASSED: Final = 16
"""Nodes whose answers were not taken."""
_FREE: Final = workload.Price()
MOST: Final = (1 << 53) - 1
"""The largest count."""

Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[\x20-\x7e]+\Z")]
Count = Annotated[int, Meta(ge=0, le=MOST)]


class _Part(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Part of a payload: what is not known is left out."""


class Request(_Part, frozen=True, kw_only=True):
    """What was asked."""

    method: Text
    path: Text
    """As it came, without what follows a question mark."""
    salted: bool
    sha256: Hex32 | UnsetType = UNSET
    """Of the salt and the body; absent if the body was not read."""


class Response(_Part, frozen=True, kw_only=True):
    """What was answered."""

    bytes: Count
    complete: bool
    """Whether all of it was handed to the connection; otherwise the digest is of as many bytes as were."""
    sha256: Hex32
    """Of the salt and the body, of a stream every byte."""
    status: Annotated[int, Meta(ge=100, le=599)]
    streamed: bool


class Node(_Part, frozen=True, kw_only=True):
    """Who answered, and what was known of it."""

    answer_sha256: Hex32 | UnsetType = UNSET
    """Of the bytes that the node sent, without a salt, as far as they were read."""
    assurance: Text | UnsetType = UNSET
    """Of the model, by the result."""
    id: Text
    reference: Hex32 | UnsetType = UNSET
    """The reference value that the node's weights were compared with."""
    request: Id | UnsetType = UNSET
    """By which the node knows this request: its front signs what it answered to it."""
    result: Text | UnsetType = UNSET
    """The ``jti`` of its attestation result."""
    result_sha256: Hex32 | UnsetType = UNSET
    """Of the result's token."""
    spki_sha256: Hex32 | UnsetType = UNSET
    """Of the TLS key that the router was pinned to."""
    status: Text | UnsetType = UNSET
    """The ``ear_status`` of the result."""
    walk_at: Ms | UnsetType = UNSET
    """When the last walk of the model was that was right, by the result: milliseconds since 1970, by the verifier's clock."""


class Usage(_Part, frozen=True, kw_only=True):
    """What the caller was charged for."""

    by: Literal["node", "router"]
    """Whose count it is."""
    completion: Count
    prompt: Count


class Price(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """What the work of the node costs, by the decision: millionths of the unit of account for a million tokens."""

    input: Count
    output: Count


class Claimed(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """The tokens that a node told in its answer: its own word at that time."""

    completion: Count
    prompt: Count


class Metered(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """The router's own count of what the node has done, by which it is paid (docs/settlement.md)."""

    claimed: Claimed | UnsetType = UNSET
    completion: Count
    exact: bool
    """Whether the count may be held against what the node claims."""
    operator: Text | UnsetType = UNSET
    """The node's operator, by its result."""
    own: bool = False
    """Whether the caller belongs to that operator: who asks its own nodes would pay itself."""
    prompt: Count
    template: Count = 0
    """Tokens that the node's chat template may add to the prompt; they are not paid."""
    tier: Text | UnsetType = UNSET
    """The tier of the workload, if it has another name."""


class Passed(_Part, frozen=True, kw_only=True):
    """A node that was given the request too, and whose answer was not taken."""

    claimed: Claimed
    node: Text


class Continued(_Part, frozen=True, kw_only=True):
    """A part of the answer, from a node whose stream broke: another node went on with it (docs/longer-work.md)."""

    completion: Count
    """Its tokens, by the router's tokeniser; they are in the usage of the whole answer."""
    node: Node
    operator: Text | UnsetType = UNSET
    outcome: Text
    """How it ended at this node."""
    own: bool = False
    """As in `Metered`."""
    price: Price | UnsetType = UNSET
    """Of this node's work, by the decision.  It is paid for these tokens; the prompt is paid to the last node."""


class Choice(_Part, frozen=True, kw_only=True):
    """Where the seed of the decision comes from, if the caller had a part in it (`router.choose.choice`)."""

    commitment: Text
    nonce_sha256: Hex32 | UnsetType = UNSET
    reveal: Text | UnsetType = UNSET


class Batch(_Part, frozen=True, kw_only=True):
    """Of which line of which batch of requests the answer is (docs/batches.md)."""

    id: Text
    line: Annotated[int, Meta(ge=1, le=MOST)]
    """Of the input file, from 1."""


class Receipt(_Part, frozen=True, kw_only=True):
    """A payload."""

    arm: Literal["candidate"] | UnsetType = UNSET
    """If a table decided that was tried beside the one in force (docs/changing-the-routing.md)."""
    batch: Batch | UnsetType = UNSET
    choice: Choice | UnsetType = UNSET
    continued: Annotated[tuple[Continued, ...], Meta(min_length=1, max_length=8)] | UnsetType = UNSET
    """The parts before the one of `node`, in order, if the answer is of several nodes."""
    decision: Id | UnsetType = UNSET
    iat: Ms
    """When the answer had ended, milliseconds since 1970, by the router's clock."""
    iss: RouterName
    """The router's name."""
    jti: Id
    """As in ``X-Touchstone-Receipt``."""
    key: Hex32 | UnsetType = UNSET
    """A pseudonym of the caller's API key, of this router alone."""
    metered: Metered | UnsetType = UNSET
    """Absent if nobody was charged."""
    model: Text | UnsetType = UNSET
    node: Node | UnsetType = UNSET
    outcome: Text
    passed: Annotated[tuple[Passed, ...], Meta(max_length=MOST_PASSED)] = ()
    """Their work is not paid; that they claim it is not held against them."""
    prev: Hex32 | UnsetType = UNSET
    """SHA-256 of the payload before this one of the same key."""
    price: Price | UnsetType = UNSET
    """Absent if the workload has no table of prices."""
    request: Request
    response: Response
    seq: Annotated[int, Meta(ge=1, le=MOST)] | UnsetType = UNSET
    """Which answer it is of this key at this router."""
    table: Hex32 | UnsetType = UNSET
    """The digest of the table of workloads that decided."""
    tried: Node | UnsetType = UNSET
    """The last node that was asked, if none has answered."""
    usage: Usage | UnsetType = UNSET
    v: Literal[1]
    workload: Text | UnsetType = UNSET


_encoder: Final = msgspec.json.Encoder()


def encode(receipt: Receipt) -> bytes:
    """
    The one form of a payload.

    It is fast, and right for what `decode` takes: who makes a payload makes sure of its texts.
    """
    return _encoder.encode(receipt)


def decode(payload: bytes) -> Receipt:
    """
    Read a payload in its one form.

    Raises:
        ReceiptError: it is no payload of this version, or not in its one form.
    """
    try:
        receipt = canonical.decode(payload, Receipt, max_size=MAX_PAYLOAD)
    except CanonicalError as error:
        raise ReceiptError(f"the payload is refused: {error}") from None
    if (receipt.seq is UNSET) != (receipt.key is UNSET):
        raise ReceiptError("the payload is refused: key and seq come together")
    if (receipt.prev is UNSET) != (receipt.seq is UNSET or receipt.seq == 1):
        raise ReceiptError("the payload is refused: each receipt of a key but its first has prev")
    if receipt.node is not UNSET and receipt.tried is not UNSET:
        raise ReceiptError("the payload is refused: one node answered, or the last one tried is named")
    if receipt.continued is not UNSET and receipt.node is UNSET:
        raise ReceiptError(
            "the payload is refused: parts of an answer come before that of the node that answered"
        )
    return receipt


def price_paid(price: Price | UnsetType, *, is_own: bool) -> workload.Price:
    """What a node is paid: work for its operator's own keys is free, or it would earn by asking itself."""
    return _FREE if price is UNSET or is_own else workload.Price(price.input, price.output)


def digest_payload(payload: bytes) -> str:
    """What the next receipt of the key has in ``prev``."""
    return hashlib.sha256(payload).hexdigest()


def digest_body(salt: bytes, body: bytes) -> str:
    """The digest of a body."""
    return hashlib.sha256(salt + body).hexdigest()


def read_salt(text: str) -> bytes:
    """
    Read the value of ``X-Touchstone-Salt``.

    Raises:
        ReceiptError: it is not 16 to 64 bytes in base64url without padding.
    """
    try:
        salt = unb64url(text) if len(text) <= _MAX_SALT_TEXT else b""
    except RequestError:
        salt = b""
    if not MIN_SALT <= len(salt) <= MAX_SALT:
        raise ReceiptError(
            f"a salt is {MIN_SALT} to {MAX_SALT} bytes in base64url, without padding and in one spelling"
        )
    return salt
