"""
Verifying a receipt with nothing but files: what a client has kept, or what somebody hands over.  Pure.

`router/client/receipt.html` takes the same steps in a browser, and `fixtures/receipts` holds both to the same vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET

from attester import strictjson
from router.client import checking
from router.client.bundles import parse_bundle
from router.client.checking import Checked
from router.client.errors import Step, UnverifiedError
from router.client.trust import Trust
from router.model.errors import ReceiptError
from router.receipts.payload import digest_body, read_salt
from verifier.errors import ResultError
from verifier.result_keys import unb64url

MAX_KEPT: Final = 200 << 20
"""Bytes of a kept file, with its request and its answer."""


@dataclass(frozen=True)
class Material:
    """What there is to verify a receipt with."""

    bundle: bytes
    """As the router gives it, or a kept file."""
    salt: bytes = b""
    request: bytes | None = None
    """The body as it was sent."""
    response: bytes | None = None
    """The body as it came."""


@dataclass(frozen=True)
class Outcome:
    """A receipt that is right, and what could not be looked at."""

    checked: Checked
    missing: dict[Step, str]
    """The steps that were not taken, each with the reason."""


def read_material(data: bytes) -> Material:
    """
    Read a kept file, or what a router gives for a receipt.

    Raises:
        UnverifiedError: it is too large or malformed.
    """
    if len(data) > MAX_KEPT:
        raise UnverifiedError(Step.RECEIPT, f"the file has more than {MAX_KEPT} bytes")
    try:
        document: Any = strictjson.loads(data)
        kept = document if isinstance(document, dict) else {}
        return Material(data, salt_of(kept.get("salt", "")), _body(kept, "request"), _body(kept, "response"))
    except (ValueError, ResultError, ReceiptError) as error:
        raise UnverifiedError(Step.RECEIPT, f"the file is malformed: {error}") from None


def salt_of(text: Any) -> bytes:
    """Read a salt; an empty text is none.  Raises `ReceiptError`, `ValueError`."""
    if not isinstance(text, str):
        raise ValueError("the salt is not text")  # noqa: TRY004  # what is wrong is the file
    return read_salt(text) if text else b""


def _body(kept: dict[str, Any], name: str) -> bytes | None:
    text = kept.get(name)
    return unb64url(text.rstrip("=").replace("+", "-").replace("/", "_")) if isinstance(text, str) else None


def verify_offline(material: Material, trust: Trust) -> Outcome:
    """
    Verify a receipt as far as there is something to verify it with.

    Raises:
        UnverifiedError: a step failed.
    """
    missing: dict[Step, str] = {}
    bundle = parse_bundle(material.bundle)
    checked = checking.verify(bundle, trust, None)
    found = _check_bodies(material, checked, missing)
    if checked.receipt.node and bundle.front is None:
        missing[Step.FRONT] = "the node has no front that signs"
    if bundle.batch is None:
        missing[Step.BATCH] = "the receipt was in no batch yet when it was fetched"
    else:
        found[Step.BATCH] = checking.check_batch(bundle, checked, trust)
    if trust.log is None:
        missing[Step.LOG] = "the trust file names no log"
    elif bundle.log is None:
        missing[Step.LOG] = "the batch was not in the log yet when the receipt was fetched"
    else:
        found[Step.LOG] = checking.check_log(bundle, trust)
        checked.is_logged = True
    steps = {**checked.steps, **found}
    checked.steps = {step: steps[step] for step in Step if step in steps}
    return Outcome(checked, missing)


def _check_bodies(material: Material, checked: Checked, missing: dict[Step, str]) -> dict[Step, str]:
    found: dict[Step, str] = {}
    receipt, salt = checked.receipt, material.salt
    for step, body, told in (
        (Step.REQUEST, material.request, receipt.request.sha256),
        (Step.RESPONSE, material.response, receipt.response.sha256),
    ):
        what = "request" if step is Step.REQUEST else "answer"
        if body is None:
            missing[step] = f"there is no {what} to hold it against"
        elif told is UNSET and (not body or receipt.response.status >= 400):
            missing[step] = "the router has not read it"
        elif receipt.request.salted is not bool(salt):
            raise UnverifiedError(
                step, "the request was salted, and the salt is missing" if not salt else "no salt was sent"
            )
        elif digest_body(salt, body) != told:
            raise UnverifiedError(step, f"it is about another {what}")
        else:
            found[step] = f"{len(body)} bytes, digest {told}"
    if Step.RESPONSE in found and not receipt.response.complete:
        found[Step.RESPONSE] += "; the router did not send all of its answer"
    return found
