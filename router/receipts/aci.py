"""
The form of ACI (``aci/1``, Dstack-TEE/private-ai-gateway, spec/aci.md §3, §7, §8): receipt, keyset, session.  Pure.

ACI signs canonical JSON of RFC 8785.  Ours is the same for text of ASCII, whole numbers, true, false and null, and a
document of ACI has nothing else (`canonical`).

Of ACI is here what a router can say truly: it runs in no TEE, so nobody attests its keyset, and a session says of a
node what the verifier found: `model_weights_provenance` by possession, and nothing of a TEE.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from attester.cose import PrivateKey
from router.model.errors import ReceiptError
from router.receipts.payload import Node, Receipt
from verifier.router_receipts import ReceiptKey

API_VERSION: Final = "aci/1"
VERIFIER_ID: Final = "touchstone/1"
_CLAIMS: Final = (
    "tee_attested",
    "gpu_attested",
    "tcb_up_to_date",
    "os_known_good",
    "serving_software_known_good",
    "model_weights_provenance",
)
_AFFIRMING: Final = "affirming"
_CHALLENGED: Final = frozenset({"challenged", "hardware-rooted", "confidential"})


def canonical(value: Any) -> bytes:
    """
    The form of RFC 8785, for a document of ACI.

    Raises:
        ReceiptError: it holds what this encoder does not write as RFC 8785 does: a float, or text beyond ASCII.
    """
    _check(value)
    return msgspec.json.encode(value, order="sorted")


def _check(value: Any) -> None:
    match value:
        case None | bool():
            return
        case int() if abs(value) < 1 << 53:
            return
        case str() if value.isascii() and (value.isprintable() or not value):
            return
        case dict():
            for name, part in value.items():
                _check(name)
                _check(part)
        case list():
            for part in value:
                _check(part)
        case _:
            raise ReceiptError(f"a document of ACI cannot hold {repr(value)[:40]} here")


def digest(document: Any) -> str:
    """``sha256:`` and the SHA-256 of a document, hex: `workload_keyset_digest` of a keyset."""
    return f"sha256:{hashlib.sha256(canonical(document)).hexdigest()}"


def session_id(session: Any) -> str:
    """The id of a session: the SHA-256 of its document, bare hex (§8)."""
    return hashlib.sha256(canonical(session)).hexdigest()


def statement(keyset_digest: str, nonce: str | None) -> bytes:
    """What a TEE would attest of a keyset, for a nonce of 64 hex digits (§3.2)."""
    return canonical({"keyset_digest": keyset_digest, "nonce": nonce, "purpose": "aci.report_data.v1"})


def sign(receipt: dict[str, Any], key: PrivateKey) -> dict[str, Any]:
    """The receipt with its signature, hex (§7.2)."""
    return {**receipt, "signature": key.sign(canonical(receipt)).hex()}


def verify(receipt: dict[str, Any], keyset: dict[str, Any]) -> None:
    """
    Verify a receipt against the keyset that it names (§9.3, steps 1 and 2).

    Raises:
        ReceiptError: it is of another version or keyset, or its signature is wrong.
    """
    if receipt.get("api_version") != API_VERSION:
        raise ReceiptError(f"the receipt is not one of {API_VERSION}")
    if receipt.get("workload_keyset_digest") != digest(keyset):
        raise ReceiptError("the receipt names another keyset")
    unsigned = {name: value for name, value in receipt.items() if name != "signature"}
    for each in keyset.get("receipt_signing_keys", ()):
        if each.get("key_id") == receipt.get("key_id") and each.get("algo") == "ed25519":
            key = ReceiptKey.from_bytes(bytes.fromhex(each["public_key"]))
            if key.verify(bytes.fromhex(str(receipt.get("signature"))), canonical(unsigned)):
                return
    raise ReceiptError(
        "the signature is wrong: the receipt was altered, or no key of the keyset has signed it"
    )


def keyset_of(receipt: Receipt, key: ReceiptKey) -> dict[str, Any]:
    """The router's keyset.  It is the same for a year."""
    year = datetime.fromtimestamp(receipt.iat // 1000, UTC).year + 2
    signing = {"algo": "ed25519", "key_id": key.kid, "public_key": key.public.point.hex()}
    return {
        "e2ee_public_keys": [],
        "not_after": int(datetime(year, 1, 1, tzinfo=UTC).timestamp()),
        "receipt_signing_keys": [signing],
        "subject": f"touchstone-router:{receipt.iss}",
        "tls_public_keys": [],
    }


def from_receipt(receipt: Receipt, key: PrivateKey, result: str | None = None) -> dict[str, Any]:
    """
    A receipt of ours in ACI's form, with the keyset and the session that it names.

    Args:
        receipt: Ours.
        key: The key that has signed it.
        result: The token of the node's result, if it is at hand.

    Raises:
        ReceiptError: its digests are salted, which ACI's are not.
    """
    if receipt.request.salted:
        raise ReceiptError(
            "its digests are salted, and those of ACI are not: send requests without a salt for this form"
        )
    keyset = keyset_of(receipt, ReceiptKey(key.public))
    session = None if not receipt.node else _session(receipt, receipt.node, result)
    events: list[dict[str, Any]] = [{"type": "request.received", **_hash(receipt.request.sha256 or None)}]
    events.append(_verified(receipt, session))
    events.append({"type": "response.returned", **_hash(receipt.response.sha256)})
    unsigned = {
        "api_version": API_VERSION,
        "chat_id": None,
        "endpoint": receipt.request.path,
        "event_log": events,
        "key_id": ReceiptKey(key.public).kid,
        "method": receipt.request.method,
        "model": receipt.model or None,
        "receipt_id": receipt.jti,
        "served_at": receipt.iat // 1000,
        "workload_keyset_digest": digest(keyset),
    }
    return {"receipt": sign(unsigned, key), "workload_keyset": keyset, "session": session}


def _hash(sha256: str | None) -> dict[str, Any]:
    return {} if sha256 is None else {"body_hash": f"sha256:{sha256}"}


def _verified(receipt: Receipt, session: dict[str, Any] | None) -> dict[str, Any]:
    event = {"type": "upstream.verified", "required": True, "model_id": receipt.model or None}
    if session is None:
        return {**event, "result": "failed", "reason": receipt.outcome}
    return {**event, "result": "verified", "session_id": session_id(session)}


def _session(receipt: Receipt, node: Node, result: str | None) -> dict[str, Any]:
    """What the verifier found of a node (§8.2)."""
    issued, expires = _times(result, receipt.iat // 1000)
    claims: dict[str, Any] = {name: {"status": "unknown"} for name in _CLAIMS}
    if node.reference and node.status == _AFFIRMING and node.assurance in _CHALLENGED:
        claims["model_weights_provenance"] = {
            "reason": f"{node.assurance}: the node answered challenges that need the weights of the reference value",
            "source": "verifier_derived",
            "status": "asserted",
        }
    extra = {
        "assurance": node.assurance or None,
        "ear_status": node.status or None,
        "reference_sha256": node.reference or None,
        "result": node.result or None,
        "walk_at_ms": node.walk_at or None,
    }
    claims["extra"] = {name: value for name, value in extra.items() if value is not None}
    evidence = {} if not node.result_sha256 else {"digest": f"sha256:{node.result_sha256}"}
    if result is not None:
        evidence["data"] = f"data:application/eat+jwt;base64,{base64.b64encode(result.encode()).decode()}"
    binding = [] if not node.spki_sha256 else [{"spki_sha256": node.spki_sha256, "type": "tls_spki_sha256"}]
    return {
        "api_version": API_VERSION,
        "channel_binding": binding,
        "claims": claims,
        # Where nodes serve is told to who may dispatch alone.
        "endpoint": None,
        "established_at": issued,
        "evidence": evidence,
        "expires_at": expires,
        "upstream_name": node.id,
        "verifier_id": VERIFIER_ID,
    }


def _times(result: str | None, served_at: int) -> tuple[int, int]:
    """When a result was issued, and when it expires; when the answer was served, if it is not at hand."""
    try:
        part = (result or "").split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return int(claims["iat"]), int(claims["exp"])
    except (IndexError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return served_at, served_at
