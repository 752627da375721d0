"""
Holds a receipt against all that somebody has: the bodies, the node's result, the batch, the log.  Pure, and offline.

Each step rests on those before it.  The first that fails ends the check, and says what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import msgspec
from msgspec import UNSET, Struct

from attester import strictjson
from attester.errors import FrontReceiptError
from attester.front.receipts import open_receipt
from router.model.errors import ReceiptError
from router.receipts import batches, tokens
from router.receipts.fronts import find_agreement
from router.receipts.payload import Receipt, digest_body
from router.receipts.tokens import Verified
from verifier import canonical, results
from verifier.errors import LogError, RequestError, ResultError
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.proofs import LogProof
from verifier.result_keys import VerifyingKey
from verifier.router_receipts import Batch, Hex32, ReceiptKey

MAX_DOCUMENT: Final = 2 << 20
"""Bytes."""
_LOGGED: Final = "receipts"


class Front(Struct, frozen=True, forbid_unknown_fields=True):
    """What the node's front has signed itself, and what the router says of it."""

    jws: str
    agrees: bool | None


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``GET /api/v1/receipts/ID`` gives as JSON.  A file may also hold the receipt alone."""

    receipt: str
    result: str | None = None
    batch: dict[str, Any] | None = None
    index: int | None = None
    path: tuple[Hex32, ...] | None = None
    log: str | None = None
    front: Front | None = None


@dataclass(frozen=True, kw_only=True)
class Means:
    """What there is to check with.  What is `None` is not checked."""

    keys: Mapping[str, ReceiptKey]
    """The router's, by kid."""
    log_key: VerifierKey | None = None
    result_keys: Mapping[str, VerifyingKey] | None = None
    """The verifier's, by kid."""
    request: bytes | None = None
    response: bytes | None = None
    salt: bytes = b""


@dataclass(frozen=True)
class Step:
    """A step of the check."""

    number: int
    name: str
    finding: str
    """What was found, or why it was not looked at."""
    is_taken: bool


class FailedCheckError(ReceiptError):
    """A receipt is wrong: *step* says in what, and *taken* what was right before it."""

    def __init__(self, step: Step, taken: Sequence[Step]) -> None:
        super().__init__(f"{step.number}. {step.name}: {step.finding}")
        self.step = step
        self.taken = tuple(taken)


@dataclass
class _Check:
    document: Document
    means: Means
    steps: list[Step] = field(default_factory=list)
    verified: Verified | None = None
    batch: Batch | None = None

    @property
    def receipt(self) -> Receipt:
        assert self.verified is not None
        return self.verified.receipt

    def take(self, name: str, step: Callable[[_Check], str]) -> None:
        number = len(self.steps) + 1
        try:
            self.steps.append(Step(number, name, step(self), is_taken=True))
        except _NotCheckedError as error:
            self.steps.append(Step(number, name, str(error), is_taken=False))
        except (ReceiptError, RequestError, ResultError, LogError, FrontReceiptError, ValueError) as error:
            raise FailedCheckError(Step(number, name, str(error), is_taken=True), self.steps) from None


class _NotCheckedError(Exception):
    """A step has nothing to look at."""


def read_document(data: bytes) -> Document:
    """
    Read a file: a receipt alone, or with all that goes with it.

    Raises:
        ReceiptError: it is too large, or neither of both.
    """
    if len(data) > MAX_DOCUMENT:
        raise ReceiptError(f"the file has more than {MAX_DOCUMENT} bytes")
    text = data.strip(b"\n")
    if not text.startswith(b"{"):
        try:
            return Document(text.decode("ascii"))
        except UnicodeDecodeError:
            raise ReceiptError("the file is neither a receipt nor a document with one") from None
    try:
        return msgspec.convert(strictjson.loads(text), Document)
    except (ValueError, RecursionError) as error:
        # msgspec's errors are such ones too.
        raise ReceiptError(f"the file is no document with a receipt: {error}") from None


def check(document: Document, means: Means) -> tuple[Receipt, list[Step]]:
    """
    Check a receipt.

    Returns:
        What it says, and the steps, of which some may not have been taken.

    Raises:
        FailedCheckError: one of them fails.
    """
    state = _Check(document, means)
    state.take("the router has signed it", _check_signature)
    state.take("it is about this request", _check_request)
    state.take("it is about this answer", _check_response)
    state.take("the node's result is the one that it names", _check_result)
    state.take("the node's front has signed the same answer", _check_front)
    state.take("it is in its batch", _check_batch)
    state.take("the log has the batch", _check_log)
    return state.receipt, state.steps


def _check_signature(state: _Check) -> str:
    state.verified = tokens.verify(state.document.receipt, state.means.keys)
    receipt = state.receipt
    what = f", number {receipt.seq} of its key" if receipt.seq else ""
    what += f"; line {receipt.batch.line} of {receipt.batch.id}" if receipt.batch else ""
    begun = ", ".join(part.node.id for part in receipt.continued or ())
    what += f"; the answer was begun by {begun}" if begun else ""
    return f"{receipt.jti} by {receipt.iss}, key {state.verified.key.kid}{what}"


def _check_salt(state: _Check) -> None:
    if state.receipt.request.salted is not bool(state.means.salt):
        _refuse(
            "it was made with a salt: give it"
            if state.receipt.request.salted
            else "it was made without a salt"
        )


def _check_request(state: _Check) -> str:
    told, body = state.receipt.request, state.means.request
    if body is None:
        _leave("no request is given")
    _check_salt(state)
    if told.sha256 is UNSET:
        _refuse("the router has not read the body of its request")
    if digest_body(state.means.salt, body) != told.sha256:
        _refuse("it is about another request: the digests differ")
    return f"{told.method} {told.path}, {len(body)} bytes"


def _check_response(state: _Check) -> str:
    told, body = state.receipt.response, state.means.response
    if body is None:
        _leave("no answer is given")
    _check_salt(state)
    if len(body) != told.bytes:
        _refuse(f"it is about an answer of {told.bytes} bytes, and this one has {len(body)}")
    if digest_body(state.means.salt, body) != told.sha256:
        _refuse("it is about another answer: the digests differ")
    end = "" if told.complete else "; the client left before its end"
    return f"status {told.status}, {len(body)} bytes{end}"


def _check_result(state: _Check) -> str:
    token, node = state.document.result, state.receipt.node or state.receipt.tried
    if token is None:
        _leave("the file has no result" if node else "no node was asked")
    if not node or node.result_sha256 is UNSET:
        _refuse("the file has a result, and the receipt names none")
    if hashlib.sha256(token.encode()).hexdigest() != node.result_sha256:
        _refuse("the result is another one than the receipt names")
    if state.means.result_keys is None:
        return f"{node.result}; who has signed it was not asked"
    # Its issuer is whose keys these are.
    claims = msgspec.json.decode(tokens.part(token, 1))
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    found = results.decode_jwt(token, state.means.result_keys, issuer=str(issuer), now=None)
    if found.jti != node.result or str(found.ear_status) != node.status:
        _refuse("the result says something else than the receipt says of it")
    return f"{found.jti} by {found.iss}: {found.ear_status}"


def _check_front(state: _Check) -> str:
    given, node = state.document.front, state.receipt.node
    if given is None:
        _leave("the file has nothing of a front")
    if not node or node.spki_sha256 is UNSET or node.request is UNSET:
        _refuse("the file has a front's receipt, and the router's names no node that could have signed it")
    signed = open_receipt(given.jws, node.spki_sha256)
    if signed.jti != node.request:
        _refuse("the front's receipt is of another request")
    agrees = find_agreement(signed, state.receipt)
    if agrees is not given.agrees:
        _refuse("the router says something else of the front's receipt than follows from both")
    if agrees is False:
        _refuse("the front has signed another answer than the router received")
    return (
        "the same bytes"
        if agrees
        else "the router did not read all of its answer, so they cannot be compared"
    )


def _check_batch(state: _Check) -> str:
    document = state.document
    if document.batch is None:
        if document.index is not None or document.path is not None:
            _refuse("there is a place in a batch, and no batch")
        _leave("it was in no batch when it was fetched")
    if document.index is None or document.path is None:
        _refuse("the file has a batch, and not its place there")
    assert state.verified is not None
    batch = state.batch = batches.from_wire(document.batch)
    if batch.router != state.receipt.iss:
        _refuse(f"the batch is of {batch.router}")
    batch.check(state.verified.key)
    batches.check_path(state.verified.payload, document.index, batch, document.path)
    return f"{document.index + 1} of {batch.size} in batch {batch.number}"


def _check_log(state: _Check) -> str:
    text, key = state.document.log, state.means.log_key
    if key is None:
        _leave("no key of a log is given")
    if text is None or state.batch is None:
        _leave("the log did not have the batch when the receipt was fetched")
    proof = LogProof.parse(text.encode())
    if proof.extra is None:
        _refuse("the proof does not have the entry that it is of")
    signed = proof.verify(proof.extra, lambda note: open_checkpoint(note, [key]))
    entry = msgspec.json.decode(proof.extra, type=dict[str, Any])
    if canonical.encode(entry) != proof.extra:
        _refuse("the entry of the log is not in its one form")
    at = entry.pop("at", None)
    if entry.pop("v", None) != 1 or entry.pop("kind", None) != _LOGGED or not isinstance(at, int):
        _refuse("the entry of the log is not about receipts")
    if canonical.encode(entry) != state.batch.encode():
        _refuse("the entry of the log is about another batch")
    return f"entry {proof.index} of {signed.checkpoint.size} in {key.name}, at {at} ms"


def _leave(why: str) -> NoReturn:
    raise _NotCheckedError(why)


def _refuse(why: str) -> NoReturn:
    raise ReceiptError(why)
