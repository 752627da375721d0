"""
The checks of an answer, in numbered steps.  Pure: bytes, keys and times are arguments.

Each step gives a sentence about what it found, or raises `UnverifiedError` with its name.  No step rests on one that
has not been taken: what the router says is believed if its key has signed it, what the verifier says if its key has,
and neither for the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from attester.errors import FrontReceiptError
from attester.front.receipts import open_receipt
from router.client.bundles import Bundle
from router.client.errors import Step, UncosignedError, UnverifiedError
from router.client.exchanges import Exchange
from router.client.trust import Required, Trust
from router.model.errors import ReceiptError
from router.model.workload import ASSURANCES
from router.receipts import batches, tokens
from router.receipts.payload import Continued, Node, Receipt
from verifier import canonical, results
from verifier.errors import CanonicalError, LogError, LogQuorumError, RequestError, ResultError
from verifier.log.proofs import LogProof
from verifier.results import Appraisal, AttestationResult
from verifier.router_receipts import Batch, Hex32, Ms
from verifier.trust import Tier, tier_of

SKEW_MS: Final = 60_000
"""By how much two clocks may differ."""
REPEATED_MS: Final = 660_000
"""For so long a router gives the same answer to the same ``Idempotency-Key``."""
LONGEST_ANSWER_MS: Final = 3_600_000
"""
No answer takes longer.

A receipt has the time of the end, and a result must not have expired before the beginning: where the client did not
see that itself, it is so long before the end at most.
"""
_WALK_AT: Final = "walk_at_ms"
"""In what the verifier has measured of a model: its newest right walk that counts."""
_MAX_ENTRY: Final = 4096
_GET: Final = "GET"
_OK: Final = range(200, 300)
_REFUSED: Final = 400


@dataclass
class Checked:
    """A receipt, as far as it has been verified."""

    receipt: Receipt
    payload: bytes
    """Its bytes, in their one form."""
    result: AttestationResult | None = None
    """Of the node that has answered; `None` if none has."""
    is_logged: bool = False
    steps: dict[Step, str] = field(default_factory=dict)
    """What was found, in the order of the steps."""


def verify(bundle: Bundle, trust: Trust, exchange: Exchange | None) -> Checked:
    """
    Verify a receipt, but for its chain and its place in the log.

    Args:
        exchange: What the client saw; `None` if there is only the receipt.

    Raises:
        UnverifiedError: a step failed.
    """
    checked = check_receipt(bundle, trust)
    receipt = checked.receipt
    if exchange is not None:
        _check_clock(receipt, exchange)
        checked.steps[Step.REQUEST] = check_request(receipt, exchange)
        checked.steps[Step.RESPONSE] = check_response(receipt, exchange)
    node = _node_of(receipt)
    if node is None:
        checked.steps[Step.RESULT] = "no node has answered"
        return checked
    is_live = exchange is not None and not exchange.is_repeatable
    began_ms = exchange.sent_ms if exchange is not None and is_live else receipt.iat - LONGEST_ANSWER_MS
    result = check_result(bundle, node, trust, began_ms=began_ms, ended_ms=receipt.iat)
    checked.result = result
    checked.steps[Step.RESULT] = f"node {node.id}, by {result.iss}"
    checked.steps[Step.MODEL] = check_model(receipt, node, result, trust.require)
    at_ms = receipt.iat if exchange is None else exchange.began_ms(receipt.iat)
    checked.steps[Step.AGE] = check_age(receipt, result, trust.require, at_ms=at_ms)
    if receipt.continued is not UNSET:
        checked.steps[Step.CONTINUED] = check_continued(receipt.continued, node, trust.require)
    if bundle.front is not None or trust.require.has_front:
        checked.steps[Step.FRONT] = check_front(bundle, node, receipt)
    return checked


def check_receipt(bundle: Bundle, trust: Trust) -> Checked:
    """Step 1: the router has signed it, in its one form.  Raises `UnverifiedError`."""
    try:
        verified = tokens.verify(bundle.receipt, trust.receipt_keys)
    except ReceiptError as error:
        raise UnverifiedError(Step.RECEIPT, str(error)) from None
    receipt, name = verified.receipt, trust.router.name
    if name is not None and receipt.iss != name:
        raise UnverifiedError(Step.RECEIPT, f"it is from {receipt.iss}, not from {name}")
    checked = Checked(receipt, verified.payload)
    checked.steps[Step.RECEIPT] = f"{receipt.jti}, by {receipt.iss}"
    return checked


def _check_clock(receipt: Receipt, exchange: Exchange) -> None:
    """What is said of ages rests on the router's clock, so it must agree with the client's."""
    earliest_ms = exchange.sent_ms - SKEW_MS - (REPEATED_MS if exchange.is_repeatable else 0)
    if not earliest_ms <= receipt.iat <= exchange.ended_ms + SKEW_MS:
        off_s = (receipt.iat - exchange.ended_ms) // 1000
        raise UnverifiedError(Step.AGE, f"the router's clock and this one differ by {off_s} s")


def check_request(receipt: Receipt, exchange: Exchange) -> str:
    """Step 2: it is about the request as it was sent.  Raises `UnverifiedError`."""
    told = receipt.request
    if (told.method, told.path) != (exchange.method, exchange.path):
        raise UnverifiedError(Step.REQUEST, f"it is about {told.method} {told.path}")
    # Without the salt of this request, an old receipt of the same question would do.
    if told.salted is not exchange.is_salted:
        raise UnverifiedError(Step.REQUEST, "it is about a request with another salt, or without one")
    # A router may refuse a request unread.  Then the salt in the digest of its answer ties the two.
    is_unread = told.sha256 is UNSET and (exchange.request_bytes == 0 or exchange.status >= _REFUSED)
    if told.sha256 != exchange.request_sha256 and not is_unread:
        raise UnverifiedError(Step.REQUEST, "it is about another request")
    if exchange.model and receipt.model is not UNSET and receipt.model != exchange.model:
        raise UnverifiedError(Step.REQUEST, f"it is about the model {receipt.model}")
    return f"{told.method} {told.path}"


def check_response(receipt: Receipt, exchange: Exchange) -> str:
    """Step 3: it is about the answer as it came.  Raises `UnverifiedError`."""
    told = receipt.response
    if told.status != exchange.status:
        raise UnverifiedError(Step.RESPONSE, f"it is about an answer of status {told.status}")
    if not told.complete:
        raise UnverifiedError(Step.RESPONSE, "the router says that it did not send all of it")
    if told.bytes != exchange.response_bytes or told.sha256 != exchange.response_sha256:
        raise UnverifiedError(Step.RESPONSE, "it is about another answer")
    return f"status {told.status}, {told.bytes} bytes"


def _node_of(receipt: Receipt) -> Node | None:
    """The node that has answered; `None` for refusals and failures, and for lists, which are the router's own."""
    if receipt.node is not UNSET:
        return receipt.node
    if receipt.response.status in _OK and receipt.request.method != _GET:
        raise UnverifiedError(Step.RESULT, "the router names no node that has answered")
    return None


def check_result(
    bundle: Bundle, node: Node, trust: Trust, *, began_ms: int, ended_ms: int
) -> AttestationResult:
    """
    Step 5: the verifier has signed the result that the receipt names, and it was live.

    Args:
        began_ms: It had not expired then.
        ended_ms: It had been issued by then.

    Raises:
        UnverifiedError: it is missing, another one, or wrong.
    """
    token = bundle.result
    if token is None:
        raise UnverifiedError(Step.RESULT, "the result that the receipt names is missing")
    if hashlib.sha256(token.encode()).hexdigest() != node.result_sha256:
        raise UnverifiedError(Step.RESULT, "it is not the one that the receipt names")
    try:
        result = results.decode_jwt(token, trust.result_keys, issuer=trust.verifier.issuer, now=None)
    except ResultError as error:
        raise UnverifiedError(Step.RESULT, str(error)) from None
    if result.jti != node.result:
        raise UnverifiedError(Step.RESULT, "it is another one than the receipt names")
    if result.exp * 1000 <= began_ms - SKEW_MS:
        raise UnverifiedError(Step.RESULT, "it had expired before the answer")
    if result.iat * 1000 > ended_ms + SKEW_MS:
        raise UnverifiedError(Step.RESULT, "it is younger than the answer")
    return result


def check_model(receipt: Receipt, node: Node, result: AttestationResult, required: Required) -> str:
    """Step 6: the result affirms what is required, and the receipt says the same of it.  Raises `UnverifiedError`."""
    if receipt.model is UNSET:
        raise UnverifiedError(Step.MODEL, "the receipt names no model")
    model = check_affirmed(result, receipt.model, required)
    claims = model.ear_verifier_claims
    endpoint = endpoint_of(result)
    told = (node.status, node.assurance, node.reference, node.spki_sha256)
    found = (
        model.ear_status,
        claims.assurance,
        claims.reference,
        None if endpoint is None else endpoint.spki_sha256,
    )
    if any(mine is not UNSET and mine != theirs for mine, theirs in zip(told, found, strict=True)):
        raise UnverifiedError(Step.MODEL, "the receipt says something else of the node than its result")
    return f"{receipt.model} {model.ear_status}, {claims.assurance}, reference {claims.reference or 'none'}"


def check_affirmed(result: AttestationResult, model: str, required: Required) -> Appraisal:
    """What the result says of a model, if it affirms what is required.  Raises `UnverifiedError`."""
    name = f"model/{model}"
    _affirmed(result, "platform", required.platform_claims)
    appraisal = _affirmed(result, name, required.model_claims)
    claims = appraisal.ear_verifier_claims
    rank = ASSURANCES.index(claims.assurance) if claims.assurance in ASSURANCES else -1
    if rank < ASSURANCES.index(required.assurance):
        raise UnverifiedError(
            Step.MODEL, f"the result of {name} is {claims.assurance}, and {required.assurance} is asked"
        )
    if required.references and claims.reference not in required.references:
        raise UnverifiedError(Step.MODEL, f"{name} was compared with another reference value than is asked")
    return appraisal


class Endpoint(Struct, frozen=True):
    """Where a node serves, as its evidence has it and its result repeats it."""

    url: Annotated[str, Meta(max_length=256)]
    spki_sha256: Hex32


def endpoint_of(result: AttestationResult) -> Endpoint | None:
    """Where the node of a result serves; `None` if the result does not say."""
    platform = result.submods.get("platform")
    try:
        found = None if platform is None else platform.ear_attester_claims.get("endpoint")
        return msgspec.convert(found, Endpoint | None)
    except msgspec.ValidationError:
        return None


def _affirmed(result: AttestationResult, submod: str, claims: tuple[str, ...]) -> Appraisal:
    appraisal = result.submods.get(submod)
    if appraisal is None:
        raise UnverifiedError(Step.MODEL, f"the result says nothing of {submod}")
    for claim in claims:
        # Absent, 0, 1 and -1 are no conclusion, and satisfy nothing (AR4SI §2.3.3).
        if tier_of(appraisal.ear_trustworthiness_vector.get(claim, 0)) is not Tier.AFFIRMING:
            raise UnverifiedError(Step.MODEL, f"the result does not affirm {claim} of {submod}")
    return appraisal


def check_age(receipt: Receipt, result: AttestationResult, required: Required, *, at_ms: int) -> str:
    """
    Step 7: result and walk are young enough.  The time of the walk is the verifier's word.

    Args:
        at_ms: When the node was chosen, as far as that is known.

    Raises:
        UnverifiedError: one of them is too old, or the receipt gives another time of the walk than the result.
    """
    model = "" if receipt.model is UNSET else receipt.model
    told = UNSET if receipt.node is UNSET else receipt.node.walk_at
    walk_at = _walk_at(result, model)
    if told is not UNSET and walk_at is not None and told != walk_at:
        raise UnverifiedError(Step.AGE, "the receipt gives another time of the last walk than the result")
    return check_ages(result, model, required, at_ms=at_ms)


def check_ages(result: AttestationResult, model: str, required: Required, *, at_ms: int) -> str:
    """How old a result and its walk are at a moment, if that is young enough.  Raises `UnverifiedError`."""
    age_s = at_ms // 1000 - result.iat
    if age_s > required.max_age_s:
        raise UnverifiedError(
            Step.AGE, f"the result is {age_s} s old, and {required.max_age_s} s are allowed"
        )
    walk_at, allowed_s = _walk_at(result, model), required.max_walk_age_s
    if walk_at is None:
        if allowed_s is not None:
            raise UnverifiedError(Step.AGE, "the result tells of no right walk of the model")
        return f"the result is {max(0, age_s)} s old"
    walk_s = max(0, at_ms - walk_at) // 1000
    if allowed_s is not None and walk_s > allowed_s:
        raise UnverifiedError(
            Step.AGE, f"the last right walk is {walk_s} s old, and {allowed_s} s are allowed"
        )
    return f"the result is {max(0, age_s)} s old, the last right walk {walk_s} s"


def _walk_at(result: AttestationResult, model: str) -> int | None:
    appraisal = result.submods.get(f"model/{model}")
    found = None if appraisal is None else appraisal.ear_verifier_claims.measured.get(_WALK_AT)
    return found if isinstance(found, int) else None


def check_continued(parts: tuple[Continued, ...], node: Node, required: Required) -> str:
    """
    Step 8: the client takes an answer of several nodes, all of the same revision.  Raises `UnverifiedError`.

    Their results are not here: what the receipt says of them is the router's word.
    """
    names = ", ".join(part.node.id for part in parts)
    if not required.continued:
        raise UnverifiedError(Step.CONTINUED, f"parts of it are of other nodes: {names}")
    if required.has_front:
        raise UnverifiedError(Step.CONTINUED, f"no front has signed the parts of {names}")
    for part in parts:
        if part.node.reference is UNSET or part.node.reference != node.reference:
            raise UnverifiedError(Step.CONTINUED, f"{part.node.id} had another revision of the model")
        rank = ASSURANCES.index(part.node.assurance) if part.node.assurance in ASSURANCES else -1
        if rank < ASSURANCES.index(required.assurance):
            raise UnverifiedError(Step.CONTINUED, f"{part.node.id} had less assurance than is asked")
    tokens = sum(part.completion for part in parts)
    return f"its first {tokens} tokens are of {names}; of their results there is the router's word alone"


def check_front(bundle: Bundle, node: Node, receipt: Receipt) -> str:
    """Step 9: the node's front has signed what the router got, with the endpoint's key.  Raises `UnverifiedError`."""
    if bundle.front is None:
        raise UnverifiedError(Step.FRONT, "the node's front has signed nothing of this answer")
    pin = "" if node.spki_sha256 is UNSET else node.spki_sha256
    try:
        signed = open_receipt(bundle.front.jws, pin)
    except FrontReceiptError as error:
        raise UnverifiedError(Step.FRONT, str(error)) from None
    if signed.jti != node.request:
        raise UnverifiedError(Step.FRONT, "the front's receipt is of another request")
    if signed.response.sha256 != node.answer_sha256 and receipt.response.status in _OK:
        raise UnverifiedError(Step.FRONT, "the front has sent another answer than the router got")
    return f"{signed.response.bytes} bytes, signed by the key of the node's endpoint"


def check_batch(bundle: Bundle, checked: Checked, trust: Trust) -> str:
    """Step 10: the receipt is in the batch that the router names, and has signed.  Raises `UnverifiedError`."""
    if bundle.batch is None or bundle.index is None or bundle.path is None:
        raise UnverifiedError(Step.BATCH, "the receipt is in no batch yet")
    try:
        batch = batches.from_wire(bundle.batch)
        if batch.router != checked.receipt.iss:
            raise UnverifiedError(Step.BATCH, f"the batch is of {batch.router}")
        batches.check_path(checked.payload, bundle.index, batch, bundle.path)
        _signer(batch, trust, Step.BATCH)
    except ReceiptError as error:
        raise UnverifiedError(Step.BATCH, str(error)) from None
    return f"receipt {bundle.index + 1} of {batch.size} in batch {batch.number}"


def _signer(batch: Batch, trust: Trust, step: Step) -> None:
    key = trust.receipt_keys.get(batch.kid)
    if key is None:
        raise UnverifiedError(step, "the batch is signed by a key that is not trusted")
    try:
        batch.check(key)
    except RequestError as error:
        raise UnverifiedError(step, str(error)) from None


def check_log(bundle: Bundle, trust: Trust) -> str:
    """
    Step 11: the log has the batch, as the router has signed it, and the witnesses that are asked for have seen that.

    Raises:
        UnverifiedError: it does not, or they have not.
    """
    if trust.log is None:
        raise UnverifiedError(Step.LOG, "the trust file names no log")
    if bundle.log is None or bundle.batch is None:
        raise UnverifiedError(Step.LOG, "the batch is not in the log yet")
    try:
        proof = LogProof.parse(bundle.log.encode())
        if proof.extra is None:
            raise UnverifiedError(Step.LOG, "the proof lacks the entry")
        signed = proof.verify(proof.extra, trust.log.accept)
        _check_entry(proof.extra, batches.from_wire(bundle.batch), trust)
    except ReceiptError as error:
        raise UnverifiedError(Step.BATCH, str(error)) from None
    except LogQuorumError as error:
        raise UncosignedError(Step.LOG, str(error)) from None
    except (LogError, UnicodeEncodeError) as error:
        raise UnverifiedError(Step.LOG, str(error)) from None
    found = signed.checkpoint
    return f"entry {proof.index} of {found.origin}, which has {found.size}"


class _Entry(Batch, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log's entry of a batch."""

    at: Ms
    kind: Literal["receipts"]
    v: Literal[1]


def _check_entry(data: bytes, batch: Batch, trust: Trust) -> None:
    try:
        entry = canonical.decode(data, _Entry, max_size=_MAX_ENTRY)
    except CanonicalError as error:
        raise UnverifiedError(Step.LOG, f"the entry is not one of receipts: {error}") from None
    logged = Batch(**{name: getattr(entry, name) for name in Batch.__struct_fields__})
    if logged != batch:
        raise UnverifiedError(Step.LOG, "the entry is of another batch")
    _signer(logged, trust, Step.LOG)
