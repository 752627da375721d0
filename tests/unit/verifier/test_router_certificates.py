"""A router's certificate has one form, and everything else is refused before it is listed."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from fixtures.router_identities import AT, certificate, identity, usage
from verifier.errors import RequestError
from verifier.router_certificates import MAX_CERTIFICATE, read_certificate, statement

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
GOOD = certificate(KEY)
DAY = timedelta(days=1)
DIGEST = bytes(range(32))


def refused(der: bytes) -> str:
    with pytest.raises(RequestError) as error:
        read_certificate(der, AT)
    assert error.value.code == "registration.certificate"
    return str(error.value)


def test_a_routers_own_certificate_is_read() -> None:
    """It names the key and the day on which it ends."""
    made = identity()
    read = read_certificate(made.certificate.der, AT)
    assert read == made.certificate
    assert len(read.spki_sha256) == 32
    assert read.key == made.key.public
    assert timedelta(days=3640) < read.ends - AT < timedelta(days=3660)
    assert len(read.der) < 600


def test_the_certificate_that_the_tests_below_change_is_good() -> None:
    """So each of them fails for what it changes."""
    assert read_certificate(GOOD, AT).der == GOOD


def test_an_rsa_key_is_refused() -> None:
    """Whatever its size."""
    assert "P-256" in refused(certificate(rsa.generate_private_key(65537, 2048)))


def test_a_p384_key_is_refused() -> None:
    """Also with SHA-256."""
    assert "P-256" in refused(certificate(ec.generate_private_key(ec.SECP384R1())))


def test_an_authority_is_refused() -> None:
    """As a trust anchor it would let in whom it signs."""
    ca = x509.BasicConstraints(ca=True, path_length=0)
    assert "CA:FALSE" in refused(certificate(KEY, extensions={"constraints": ca}))


def test_one_that_may_sign_certificates_is_refused() -> None:
    """Even if it says CA:FALSE."""
    refused(certificate(KEY, extensions={"usage": usage("digital_signature", "key_cert_sign")}))


PURPOSES: dict[str, dict[str, Any]] = {
    "of a server": {"purpose": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])},
    "of both": {
        "purpose": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    },
    "without purpose": {"purpose": None},
    "without usage": {"usage": None},
    "without constraints": {"constraints": None},
    "without subject identifier": {"subject": None},
    "without authority identifier": {"authority": None},
    "with the identifier of another key": {
        "subject": x509.SubjectKeyIdentifier.from_public_key(OTHER.public_key())
    },
}


@pytest.mark.parametrize("name", PURPOSES)
def test_other_extensions_are_refused(name: str) -> None:
    """One more, one less, or another value."""
    refused(certificate(KEY, extensions=PURPOSES[name]))


def test_an_extension_more_is_refused() -> None:
    """Names in it would be read by somebody, one day."""
    refused(certificate(KEY, more=[x509.SubjectAlternativeName([x509.DNSName("x.example")])]))


def test_one_signed_by_another_key_is_refused() -> None:
    """Also if it names itself as its issuer."""
    assert "own key" in refused(certificate(KEY, signer=OTHER))


def test_one_issued_by_somebody_else_is_refused() -> None:
    """It is not its own trust anchor."""
    assert "self-signed" in refused(certificate(KEY, issuer="somebody"))


def test_another_digest_than_sha256_is_refused() -> None:
    """One algorithm, fixed."""
    assert "SHA-256" in refused(certificate(KEY, digest=hashes.SHA384()))


@pytest.mark.parametrize(
    ("begins", "ends"), [(AT + DAY, AT + 9 * DAY), (AT - 9 * DAY, AT - DAY), (AT - DAY, AT + 4000 * DAY)]
)
def test_one_of_another_time_is_refused(begins: Any, ends: Any) -> None:
    """Not yet, not any more, or for longer than any router's."""
    assert "valid from" in refused(certificate(KEY, begins=begins, ends=ends))


def test_a_large_one_is_refused_unread() -> None:
    """Before it is parsed."""
    assert "bytes" in refused(GOOD + bytes(MAX_CERTIFICATE))


@given(st.binary(max_size=MAX_CERTIFICATE + 2))
def test_any_bytes_are_refused(data: bytes) -> None:
    """And nothing else happens."""
    refused(data)


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_one_wrong_bit_is_refused(place: int) -> None:
    """Wherever it is: all of it is signed, or is the signature."""
    data = bytearray(GOOD)
    data[place // 8] ^= 1 << place % 8
    refused(bytes(data))


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=8))
def test_a_part_of_it_with_something_after_it_is_refused(size: int, rest: bytes) -> None:
    """It has no second spelling."""
    refused(GOOD[:size] + rest)


@given(st.text(max_size=60), st.text(max_size=60))
def test_statements_of_two_verifiers_are_two(one: str, other: str) -> None:
    """So what was signed for one is of no use at the other."""
    same = statement(one, DIGEST, GOOD) == statement(other, DIGEST, GOOD)
    assert same is (one == other)


def test_openssl_takes_it_as_its_own_trust_anchor(tmp_path: Path) -> None:
    """Strictly, as Python 3.13 does by default, and as the only certificate of a client."""
    made = identity()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "server.pem").write_bytes(made.to_pem())
    server.load_cert_chain(tmp_path / "server.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_verify_locations(cadata=made.certificate.der)
    assert greet(server, made.client_context()) == made.certificate.der
    with pytest.raises(ssl.SSLError):
        greet(server, identity().client_context())


def greet(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """The certificate that the server gets, over no socket."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(to_client, to_server)
    right = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (left, right):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return right.getpeercert(binary_form=True)
