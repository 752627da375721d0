"""
The form of AIR (draft-tsyrulnikov-rats-attested-inference-receipt): a CWT in a COSE_Sign1, by EdDSA.  Pure.

AIR v1 is for workloads in a TEE.  It requires their measurements, their memory and the time that they took, which a
router does not have.  Its profile is closed, so a receipt without these must not carry its name: ours has a profile of
its own, whose claims have AIR's keys and meanings where both say the same (docs/relying-parties.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cbor2

from attester import cbor, cose
from attester.cose import PrivateKey, Sign1
from router.model.errors import ReceiptError
from router.receipts.payload import Receipt

PROFILE: Final = "tag:github.com,2026:touchstone/air-subset#1"
AIR_PROFILE: Final = "https://spec.cyntrisec.com/air/v1"
EDDSA, CWT_CONTENT = -8, 61
"""The algorithm, by its older number, and the content type: the protected header is these and nothing else."""
KEYS: Final[Mapping[str, int]] = {
    "iss": 1, "iat": 6, "cti": 7, "eat_nonce": 10, "eat_profile": 265,
    "model_id": -65537, "model_version": -65538, "model_hash": -65539, "request_hash": -65540,
    "response_hash": -65541, "attestation_doc_hash": -65542, "enclave_measurements": -65543,
    "policy_version": -65544, "sequence_number": -65545, "execution_time_ms": -65546, "memory_peak_mb": -65547,
    "security_mode": -65548, "model_hash_scheme": -65549,
}  # fmt: skip


def sign(claims: Mapping[str, Any], key: PrivateKey) -> bytes:
    """Sign claims, by their names, as AIR §4 does: ``18([protected, {}, payload, signature])``."""
    protected = cbor.encode({cose.ALG: EDDSA, cose.CONTENT_TYPE: CWT_CONTENT})
    payload = cbor.encode({KEYS[name]: value for name, value in claims.items()})
    unsigned = Sign1(protected=protected, header={}, unprotected={}, payload=payload, signature=b"")
    signature = key.sign(unsigned.to_be_signed())
    return cbor.encode(cbor2.CBORTag(cose.TAG_SIGN1, [protected, {}, payload, signature]))


def from_receipt(receipt: Receipt, key: PrivateKey) -> bytes:
    """
    A receipt of ours with the claims that AIR has for it.

    Raises:
        ReceiptError: its digests are salted, which AIR's are not.
    """
    if receipt.request.salted:
        raise ReceiptError(
            "its digests are salted, and those of AIR are not: send requests without a salt for this form"
        )
    node = receipt.node or None
    claims: dict[str, Any] = {
        "iss": receipt.iss,
        "iat": receipt.iat // 1000,
        "cti": bytes.fromhex(receipt.jti),
        "eat_profile": PROFILE,
        "response_hash": bytes.fromhex(receipt.response.sha256),
    }
    if receipt.request.sha256:
        claims["request_hash"] = bytes.fromhex(receipt.request.sha256)
    if receipt.model:
        claims["model_id"] = receipt.model
    if receipt.seq:
        claims["sequence_number"] = receipt.seq
    if node is not None and node.reference:
        claims["model_version"] = node.reference
        claims["model_hash"] = bytes.fromhex(node.reference)
        # The reference value lists the digests of the files.
        claims["model_hash_scheme"] = "sha256-manifest"
    if node is not None and node.result_sha256:
        claims["attestation_doc_hash"] = bytes.fromhex(node.result_sha256)
    if node is not None and node.assurance:
        claims["security_mode"] = node.assurance
    return sign(claims, key)
