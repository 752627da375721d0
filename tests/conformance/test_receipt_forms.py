"""The forms of others: ACI's own vectors byte for byte, and a receipt of AIR's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attester import cbor, cose
from attester.cose import PrivateKey, Sign1
from router.model.errors import ReceiptError
from router.receipts import aci, air
from tests.unit.router.test_receipts import KEY, RECEIPT


@pytest.fixture
def vectors(samples: Path) -> dict[str, Any]:
    path = samples / "aci" / "vectors.json"
    if not path.is_file():
        pytest.skip("the samples of ACI are not on this machine")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def seed(vectors: dict[str, Any]) -> PrivateKey:
    given = vectors["seeds"]["receipt-1 (Ed25519)"]
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(given)))


def test_the_digest_of_a_keyset(vectors: dict[str, Any]) -> None:
    keyset = json.loads(vectors["keyset_jcs"])
    assert aci.canonical(keyset).decode() == vectors["keyset_jcs"]
    assert aci.digest(keyset) == vectors["workload_keyset_digest"]


def test_the_statement(vectors: dict[str, Any]) -> None:
    nonce = json.loads(vectors["statement_jcs"])["nonce"]
    statement = aci.statement(vectors["workload_keyset_digest"], nonce)
    assert statement.decode() == vectors["statement_jcs"]
    assert hashlib.sha256(statement).hexdigest() == vectors["statement_sha256"]
    assert (
        aci.statement(vectors["workload_keyset_digest"], None).decode()
        == vectors["statement_without_nonce_jcs"]
    )


def test_the_id_of_a_session(vectors: dict[str, Any]) -> None:
    session = json.loads(vectors["session_jcs"])
    assert aci.canonical(session).decode() == vectors["session_jcs"]
    assert aci.session_id(session) == vectors["session_id"]


def test_the_signature_of_a_receipt(vectors: dict[str, Any]) -> None:
    unsigned = {name: value for name, value in vectors["receipt"].items() if name != "signature"}
    assert aci.canonical(unsigned).decode() == vectors["receipt_signing_input_jcs"]
    assert hashlib.sha256(aci.canonical(unsigned)).hexdigest() == vectors["receipt_signing_input_sha256"]
    signed = aci.sign(unsigned, seed(vectors))
    assert signed["signature"] == vectors["receipt_signature"]
    assert signed == vectors["receipt"]


def test_the_vector_verifies_and_an_altered_one_does_not(vectors: dict[str, Any]) -> None:
    keyset = json.loads(vectors["keyset_jcs"])
    aci.verify(vectors["receipt"], keyset)
    for name in ("model", "served_at", "method", "key_id", "workload_keyset_digest", "api_version"):
        with pytest.raises(ReceiptError):
            aci.verify({**vectors["receipt"], name: "other"}, keyset)


@pytest.mark.parametrize("value", [1.5, "é", {"a": ["\n"]}, 1 << 53])
def test_what_plain_json_writes_otherwise_than_rfc_8785_is_refused(value: Any) -> None:
    with pytest.raises(ReceiptError):
        aci.canonical(value)


AIR_CLAIMS = {
    "iss": "cyntrisec.com", "iat": 1740500100, "cti": bytes(range(0x11, 0x21)), "eat_nonce": bytes.fromhex("deadbeefcafebabe"),
    "eat_profile": air.AIR_PROFILE, "model_id": "llama-7b", "model_version": "2.0.0", "model_hash": b"\x55" * 32,
    "request_hash": b"\x66" * 32, "response_hash": b"\x77" * 32, "attestation_doc_hash": b"\x88" * 32,
    "enclave_measurements": {
        "pcr0": b"\x10" * 48, "pcr1": b"\x20" * 48, "pcr2": b"\x30" * 48, "measurement_type": "tdx-mrtd-rtmr",
    },
    "policy_version": "policy-2026.03", "sequence_number": 1, "execution_time_ms": 2500, "memory_peak_mb": 8192,
    "security_mode": "production",
}  # fmt: skip
"""cyntrisec/air-v1, vectors/valid/v1-tdx-with-nonce.json: its values."""
AIR_SIGNATURE = (
    "da9697770b22450d3a61234e84e330e3829e4c5a51bc6f897964a83de1c86cd2"
    "ae1049a050681ec37f33f7fc380a0463ca45bbb51b8beb75ea57f80b66442b03"
)


def test_the_envelope_is_that_of_air() -> None:
    """Its own vector comes out: the same length, the same signature."""
    key = PrivateKey(Ed25519PrivateKey.from_private_bytes(b"\x2a" * 32))
    made = air.sign(AIR_CLAIMS, key)
    assert len(made) == 608
    assert made[-64:].hex() == AIR_SIGNATURE


def test_a_receipt_in_the_form_of_air() -> None:
    """It verifies, says what it can, and does not bear the name of a profile that it does not keep."""
    from msgspec import structs

    plain = structs.replace(RECEIPT, request=structs.replace(RECEIPT.request, salted=False))
    message = Sign1.decode(air.from_receipt(plain, KEY), max_size=4096)
    message.verify(KEY.public)
    assert message.header == {cose.ALG: -8, cose.CONTENT_TYPE: 61}
    claims = cbor.decode(message.payload, max_size=4096)
    assert claims[air.KEYS["eat_profile"]] == air.PROFILE != air.AIR_PROFILE
    assert claims[air.KEYS["response_hash"]].hex() == plain.response.sha256
    assert air.KEYS["enclave_measurements"] not in claims
