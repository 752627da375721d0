"""Chains with one defect each: an authority is trusted because it was given, and for nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import ReferenceValueError
from verifier.references import certificates

START, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def usage(*, signature: bool = False, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


AUTHORITY: tuple[x509.ExtensionType, ...] = (x509.BasicConstraints(True, None), usage(certificates=True))
CODE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
LEAF: tuple[x509.ExtensionType, ...] = (usage(signature=True), CODE)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def issue(
    name: str,
    by: Issued | None = None,
    extensions: Sequence[x509.ExtensionType] = AUTHORITY,
    *,
    critical: Sequence[type] = (x509.BasicConstraints, x509.KeyUsage),
    key: PrivateKey | None = None,
    start: datetime = START,
    end: datetime = END,
) -> Issued:
    """A certificate issued by another, or by itself."""
    key = key or new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key if by is None else by.key
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=subject if by is None else by.certificate.subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=start,
        not_valid_after=end,
    )
    for extension in extensions:
        builder = builder.add_extension(extension, isinstance(extension, tuple(critical)))
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signer, digest), key)


def pem_of(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def der_value(tag: int, content: bytes) -> bytes:
    """An ASN.1 value of up to 64 KiB, definite length."""
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes(2, "big").lstrip(b"\0")
    return bytes([tag, 0x80 | len(size)]) + size + content


ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """Bytes with the last occurrence of some replaced: the subject stands after the issuer."""
    assert len(old) == len(new)
    before, found, after = data.rpartition(old)
    assert found
    return before + new + after


def reissued(leaf: Issued, by: Issued, old: bytes, new: bytes) -> bytes:
    """A certificate as no library writes one, under a signature that fits."""
    assert isinstance(by.key, ec.EllipticCurvePrivateKey)
    body = replaced(leaf.certificate.tbs_certificate_bytes, old, new)
    signature = by.key.sign(body, ec.ECDSA(hashes.SHA256()))
    return der_value(0x30, body + ECDSA_SHA256 + der_value(0x03, b"\0" + signature))


ROOT = issue("root")
MIDDLE = issue("middle", ROOT)
SIGNER = issue("signer", MIDDLE, LEAF)


def verify(
    chain: Sequence[Issued], roots: Sequence[Issued] = (ROOT,), at: datetime = NOW
) -> x509.Certificate:
    return certificates.verify_chain([each.der for each in chain], [each.pem for each in roots], at)


def refused(chain: Sequence[Issued], reason: str, roots: Sequence[Issued] = (ROOT,)) -> None:
    with pytest.raises(ReferenceValueError, match=reason):
        verify(chain, roots)


def test_a_chain_to_a_trusted_root_gives_its_leaf() -> None:
    """Leaf, one authority between, root; the leaf is what comes back."""
    assert verify([SIGNER, MIDDLE]) == SIGNER.certificate


def test_the_root_may_stand_in_the_chain_too() -> None:
    """Some send it along; it is trusted because it was given, not for that."""
    assert verify([SIGNER, MIDDLE, ROOT]) == SIGNER.certificate


def test_a_leaf_of_the_root_itself() -> None:
    """No authority between."""
    leaf = issue("short", ROOT, LEAF)
    assert verify([leaf]) == leaf.certificate


def test_an_authority_between_may_be_what_is_trusted() -> None:
    """Whoever trusts it need not know who issued it."""
    assert verify([SIGNER], [MIDDLE]) == SIGNER.certificate
    assert verify([SIGNER, MIDDLE], [MIDDLE]) == SIGNER.certificate


def test_one_of_several_roots_is_enough() -> None:
    """In one file or in several."""
    other = issue("other")
    assert verify([SIGNER, MIDDLE], [other, ROOT]) == SIGNER.certificate
    both = certificates.verify_chain([SIGNER.der, MIDDLE.der], [other.pem + ROOT.pem], NOW)
    assert both == SIGNER.certificate


@pytest.mark.parametrize("order", ["as issued", "reversed"])
def test_authorities_in_any_order(order: str) -> None:
    """The leaf stands first; what follows is found by who issued whom."""
    lower = issue("lower", MIDDLE)
    leaf = issue("leaf", lower, LEAF)
    rest = [lower, MIDDLE] if order == "as issued" else [MIDDLE, lower]
    assert verify([leaf, *rest]) == leaf.certificate


def test_a_leaf_that_does_not_stand_first_is_refused() -> None:
    """Then an authority would be the signer."""
    refused([MIDDLE, SIGNER], "does not allow signatures")


def test_others_in_the_chain_do_not_disturb() -> None:
    """What issued nobody is passed over."""
    assert verify([SIGNER, issue("stranger"), MIDDLE, issue("other", MIDDLE, LEAF)]) == SIGNER.certificate


@pytest.mark.parametrize("at", [START, END], ids=["first second", "last second"])
def test_validity_includes_both_ends(at: datetime) -> None:
    """RFC 5280 §4.1.2.5."""
    assert verify([SIGNER, MIDDLE], at=at) == SIGNER.certificate


def test_moments_are_compared_across_time_zones() -> None:
    """One second before the start elsewhere is one second before it here."""
    zone = timezone(timedelta(hours=5))
    assert verify([SIGNER, MIDDLE], at=START.astimezone(zone)) == SIGNER.certificate
    with pytest.raises(ReferenceValueError, match="is valid from 2025-01-01 to 2035-01-01, not at"):
        verify([SIGNER, MIDDLE], at=(START - timedelta(seconds=1)).astimezone(zone))


PAST, FUTURE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
OUTDATED = {"expired": (START, PAST), "not yet valid": (FUTURE, END)}


@pytest.mark.parametrize("which", ["leaf", "intermediate", "root"])
@pytest.mark.parametrize("span", OUTDATED.values(), ids=OUTDATED)
def test_outdated(which: str, span: tuple[datetime, datetime]) -> None:
    """Expired or not yet valid, wherever it stands in the chain."""
    spans = dict.fromkeys(("root", "intermediate", "leaf"), (START, END)) | {which: span}
    root = issue("root", start=spans["root"][0], end=spans["root"][1])
    middle = issue("intermediate", root, start=spans["intermediate"][0], end=spans["intermediate"][1])
    leaf = issue("leaf", middle, LEAF, start=spans["leaf"][0], end=spans["leaf"][1])
    refused([leaf, middle], f"CN={which} is valid from", [root])
    assert verify([leaf, middle], [root], at=span[0] + timedelta(days=1)) == leaf.certificate


LEAF_DEFECTS: dict[str, tuple[tuple[x509.ExtensionType, ...], str]] = {
    "no key usage": ((CODE,), r"lacks the extension 2\.5\.29\.15"),
    "key usage without signatures": ((usage(certificates=True), CODE), "does not allow signatures"),
    "no extended key usage": ((usage(signature=True),), r"lacks the extension 2\.5\.29\.37"),
    "for servers": (
        (usage(signature=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        "is not for signing code",
    ),
    "for anything": (
        (usage(signature=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])),
        "is not for signing code",
    ),
    "no extension at all": ((), "lacks the extension"),
}


@pytest.mark.parametrize(("extensions", "reason"), LEAF_DEFECTS.values(), ids=LEAF_DEFECTS)
def test_a_leaf_that_may_not_sign_models(extensions: tuple[x509.ExtensionType, ...], reason: str) -> None:
    """Digital signatures and code signing, both said."""
    refused([issue("leaf", MIDDLE, extensions), MIDDLE], reason)


def test_a_leaf_for_more_than_code() -> None:
    """Code signing among other purposes is code signing."""
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]
    leaf = issue("leaf", MIDDLE, (usage(signature=True), x509.ExtendedKeyUsage(purposes)))
    assert verify([leaf, MIDDLE]) == leaf.certificate


AUTHORITY_DEFECTS: dict[str, tuple[tuple[x509.ExtensionType, ...], str]] = {
    "no basic constraints": ((usage(certificates=True),), r"lacks the extension 2\.5\.29\.19"),
    "no authority": (
        (x509.BasicConstraints(False, None), usage(certificates=True)),
        "is not that of an authority",
    ),
    "no key usage": ((x509.BasicConstraints(True, None),), r"lacks the extension 2\.5\.29\.15"),
    "signs no certificates": (
        (x509.BasicConstraints(True, None), usage(signature=True)),
        "is not that of an authority",
    ),
}


@pytest.mark.parametrize("which", ["root", "intermediate"])
@pytest.mark.parametrize(("extensions", "reason"), AUTHORITY_DEFECTS.values(), ids=AUTHORITY_DEFECTS)
def test_an_issuer_that_is_no_authority(
    which: str, extensions: tuple[x509.ExtensionType, ...], reason: str
) -> None:
    """Being trusted does not make it one, nor does being issued by one."""
    root = issue("root", extensions=extensions if which == "root" else AUTHORITY)
    middle = issue("intermediate", root, extensions if which == "intermediate" else AUTHORITY)
    leaf = issue("leaf", middle, LEAF)
    refused([leaf, middle], f"CN={which} .*{reason}|CN={which} {reason}", [root])


def test_a_leaf_issues_nobody() -> None:
    """Somebody with a signing certificate cannot make another one."""
    refused([issue("forged", SIGNER, LEAF), SIGNER, MIDDLE], "CN=signer lacks the extension")


def limited(length: int | None) -> tuple[x509.ExtensionType, ...]:
    return (x509.BasicConstraints(True, length), usage(certificates=True))


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("which", ["root", "upper"])
def test_path_lengths(which: str, length: int) -> None:
    """Root, upper, lower, leaf: the root has two authorities below it, upper has one."""
    root = issue("root", extensions=limited(length + 1 if which == "root" else None))
    upper = issue("upper", root, limited(length if which == "upper" else None))
    lower = issue("lower", upper)
    leaf = issue("leaf", lower, LEAF)
    if length == 0:
        below = 2 if which == "root" else 1
        refused([leaf, lower, upper], f"CN={which} does not allow {below} authorities below it", [root])
    else:
        assert verify([leaf, lower, upper], [root]) == leaf.certificate


@pytest.mark.parametrize("length", [0, 1])
def test_a_path_length_of_the_lowest_authority(length: int) -> None:
    """Zero allows leaves."""
    lower = issue("lower", ROOT, limited(length))
    leaf = issue("leaf", lower, LEAF)
    assert verify([leaf, lower]) == leaf.certificate


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


@pytest.mark.parametrize("which", ["root", "intermediate", "leaf"])
def test_a_critical_extension_that_is_not_understood(which: str) -> None:
    """It closes the chain where it is critical, wherever it stands, and only there."""
    for critical in (True, False):
        kinds = (x509.BasicConstraints, x509.UnrecognizedExtension) if critical else (x509.BasicConstraints,)
        root = issue("root", None, (*AUTHORITY, UNKNOWN)[: 3 if which == "root" else 2], critical=kinds)
        middle = issue(
            "intermediate", root, (*AUTHORITY, UNKNOWN)[: 3 if which == "intermediate" else 2], critical=kinds
        )
        leaf = issue("leaf", middle, (*LEAF, UNKNOWN)[: 3 if which == "leaf" else 2], critical=kinds)
        if critical:
            refused([leaf, middle], rf"CN={which} has the critical extension 1\.2\.3\.4\.5", [root])
        else:
            assert verify([leaf, middle], [root]) == leaf.certificate


def test_critical_name_constraints_close_a_chain() -> None:
    """A known extension that is not looked at is not understood either."""
    constraints = x509.NameConstraints([x509.DNSName("example.com")], None)
    middle = issue("middle", ROOT, (*AUTHORITY, constraints), critical=(x509.NameConstraints,))
    refused([issue("leaf", middle, LEAF), middle], r"CN=middle has the critical extension 2\.5\.29\.30")


def test_a_missing_intermediate() -> None:
    """The root did not issue the leaf, whoever it trusts."""
    refused([SIGNER], "CN=signer was not issued by a trusted authority")


def test_a_missing_authority_further_up() -> None:
    """The sentence names the place where the chain breaks."""
    lower = issue("lower", MIDDLE)
    refused([issue("leaf", lower, LEAF), lower], "CN=lower was not issued by a trusted authority")


def test_a_root_within_the_chain_is_not_trusted_for_being_there() -> None:
    """Anybody can send one along."""
    own = issue("own root")
    refused([issue("leaf", own, LEAF), own], "CN=own root was not issued by a trusted authority")


def test_no_root_trusts_nobody() -> None:
    """An empty list of roots is no reason to trust what came along."""
    refused([SIGNER, MIDDLE, ROOT], "CN=root was not issued by a trusted authority", [])


def test_a_self_signed_leaf() -> None:
    """It vouches for itself."""
    refused([issue("alone", None, LEAF)], "CN=alone was not issued by a trusted authority")


def test_a_leaf_given_as_a_root() -> None:
    """A root is an authority; a leaf is not, and is not trusted as one."""
    refused([SIGNER, MIDDLE], "CN=middle was not issued by a trusted authority", [SIGNER])
    alone = issue("alone", None, LEAF)
    refused([alone], "CN=alone lacks the extension", [alone])


def test_two_authorities_that_issued_each_other() -> None:
    """A loop ends, refused."""
    first = issue("first")
    second = issue("second", first)
    again = issue("first", second, key=first.key)
    leaf = issue("leaf", second, LEAF)
    refused([leaf, second, again], "CN=first was not issued by a trusted authority")
    refused([leaf, second, again, second, again], "was not issued by a trusted authority")


def test_a_chain_that_is_too_long() -> None:
    """A bound on the work, not only on the list."""
    chain = [ROOT]
    for number in range(12):
        chain.insert(0, issue(f"authority {number}", chain[0]))
    refused([issue("leaf", chain[0], LEAF), *chain], "the chain is too long")


def test_a_root_of_the_same_name_with_another_key() -> None:
    """Names are not keys."""
    middle = issue("middle", issue("root"))
    refused([issue("leaf", middle, LEAF), middle], "CN=middle was not issued by a trusted authority")


def test_an_intermediate_of_the_same_name_with_another_key() -> None:
    """The false one is passed over; alone, it is refused."""
    false = issue("middle", ROOT)
    refused([SIGNER, false], "CN=signer was not issued by a trusted authority")
    assert verify([SIGNER, false, MIDDLE]) == SIGNER.certificate


def test_a_leaf_whose_signature_was_changed() -> None:
    """The last bit is enough."""
    changed = SIGNER.der[:-1] + bytes([SIGNER.der[-1] ^ 1])
    with pytest.raises(ReferenceValueError, match="CN=signer was not issued by a trusted authority"):
        certificates.verify_chain([changed, MIDDLE.der], [ROOT.pem], NOW)


@pytest.mark.parametrize("renewed_first", [True, False], ids=["renewed first", "expired first"])
def test_a_root_that_was_renewed_with_its_key(*, renewed_first: bool) -> None:
    """Both are given while one replaces the other: one of them is valid, so the chain is."""
    key = new_key()
    expired, renewed = issue("root", key=key, end=PAST), issue("root", key=key)
    leaf = issue("leaf", renewed, LEAF)
    roots = [renewed, expired] if renewed_first else [expired, renewed]
    assert verify([leaf], roots) == leaf.certificate


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()])
def test_authorities_with_other_keys(key: PrivateKey) -> None:
    """Only who signs models must be on a curve of the specification."""
    root = issue("root", key=key)
    leaf = issue("leaf", root, LEAF)
    assert verify([leaf], [root]) == leaf.certificate


UNREADABLE = {
    "nothing": b"",
    "no DER": b"certificate",
    "cut short": SIGNER.der[:-1],
    "more": SIGNER.der + b"0",
}


@pytest.mark.parametrize("der", UNREADABLE.values(), ids=UNREADABLE)
def test_a_certificate_that_cannot_be_read(der: bytes) -> None:
    """Wherever it stands."""
    for chain in ([der, MIDDLE.der], [SIGNER.der, der]):
        with pytest.raises(ReferenceValueError, match="a certificate of the chain cannot be read"):
            certificates.verify_chain(chain, [ROOT.pem], NOW)


BAD_ROOTS = {
    "nothing": b"",
    "no PEM": b"root",
    "DER": ROOT.der,
    "PEM of nothing": b"-----BEGIN CERTIFICATE-----",
}


@pytest.mark.parametrize("pem", BAD_ROOTS.values(), ids=BAD_ROOTS)
def test_a_root_that_cannot_be_read(pem: bytes) -> None:
    """Refused, also where another root would do."""
    with pytest.raises(ReferenceValueError, match="a root is not a PEM certificate"):
        certificates.verify_chain([SIGNER.der, MIDDLE.der], [ROOT.pem, pem], NOW)


VERSION = bytes.fromhex("a003020102")


def test_a_version_that_there_is_not() -> None:
    """X.509 has versions 1 and 3 in use; another one is a sentence, not a stack trace."""
    der = replaced(SIGNER.der, VERSION, VERSION[:-1] + b"\x09")
    with pytest.raises(ReferenceValueError, match="cannot be read"):
        certificates.verify_chain([der, MIDDLE.der], [ROOT.pem], NOW)


def test_a_root_of_a_version_that_there_is_not() -> None:
    """As for the chain."""
    der = replaced(ROOT.der, VERSION, VERSION[:-1] + b"\x09")
    pem = pem_of(der)
    with pytest.raises(ReferenceValueError, match="a root is not a PEM certificate"):
        certificates.verify_chain([SIGNER.der, MIDDLE.der], [pem], NOW)


def test_a_subject_that_is_no_text() -> None:
    """Names are read late, when a sentence wants to name them."""
    der = replaced(SIGNER.der, b"signer", b"\xff\xffgner")
    with pytest.raises(ReferenceValueError):
        certificates.verify_chain([der, MIDDLE.der], [ROOT.pem], NOW)


def test_a_subject_that_is_no_text_under_a_signature_that_fits() -> None:
    """An authority that signs anything brings nobody down, whose certificate ever is named."""
    der = reissued(issue("signer", MIDDLE, LEAF, end=PAST), MIDDLE, b"signer", b"\xff\xffgner")
    with pytest.raises(ReferenceValueError):
        certificates.verify_chain([der, MIDDLE.der], [ROOT.pem], NOW)


def test_a_reissued_certificate_verifies() -> None:
    """What the tests around this one sign by hand is otherwise right."""
    der = reissued(SIGNER, MIDDLE, b"signer", b"Signer")
    assert (
        certificates.verify_chain([der, MIDDLE.der], [ROOT.pem], NOW).subject.rfc4514_string() == "CN=Signer"
    )


def test_an_extension_that_stands_twice() -> None:
    """Which of the two would count?"""
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x03\x02\x07\x80")
    leaf = issue("leaf", MIDDLE, (*LEAF, other))
    der = reissued(leaf, MIDDLE, bytes.fromhex("0603551d63"), bytes.fromhex("0603551d0f"))
    with pytest.raises(ReferenceValueError, match="CN=leaf has extensions that cannot be read"):
        certificates.verify_chain([der, MIDDLE.der], [ROOT.pem], NOW)


MALFORMED = {
    "no ASN.1": b"\xff",
    "a bit string cut short": b"\x03\x02\x07",
    "a name of a kind that nobody reads": b"\x30\x04\xa5\x02\x30\x00",
    "a name that is no text": b"\x30\x03\x82\x01\xff",
}


@pytest.mark.parametrize("oid", ["subject alternative name", "issuer's key"])
@pytest.mark.parametrize("which", ["leaf", "intermediate"])
@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_an_extension_that_cannot_be_read(value: bytes, which: str, oid: str) -> None:
    """Extensions that are understood must be readable, wherever they stand."""
    kind = (
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        if oid.startswith("subject")
        else ExtensionOID.AUTHORITY_KEY_IDENTIFIER
    )
    odd = x509.UnrecognizedExtension(kind, value)
    middle = issue("intermediate", ROOT, (*AUTHORITY, odd) if which == "intermediate" else AUTHORITY)
    leaf = issue("leaf", middle, (*LEAF, odd) if which == "leaf" else LEAF)
    refused([leaf, middle], f"CN={which} has extensions that cannot be read")


def test_a_leaf_for_a_curve_that_nobody_knows_is_the_callers_to_refuse() -> None:
    """The chain holds; whose key it is, is looked at where the signature is."""
    leaf = issue("leaf", MIDDLE, LEAF, key=ec.generate_private_key(ec.SECP256K1()))
    assert verify([leaf, MIDDLE]) == leaf.certificate


mutations = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3)


def mutated(data: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


@given(st.sampled_from([0, 1, 2]), mutations)
def test_a_changed_certificate_is_refused_in_a_sentence(which: int, changes: list[tuple[int, int]]) -> None:
    """Leaf, intermediate or root, some bytes changed: never another error, never a leaf that says something else."""
    ders = [SIGNER.der, MIDDLE.der, ROOT.der]
    ders[which] = mutated(ders[which], changes)
    try:
        leaf = certificates.verify_chain(ders[:2], [pem_of(ders[2])], NOW)
    except ReferenceValueError:
        return
    # What is not covered by a signature that counts may differ: the signature of a root, which is trusted
    # because it was given, and how many bits at the end of a signature are unused.
    assert leaf.tbs_certificate_bytes == SIGNER.certificate.tbs_certificate_bytes
    assert leaf.signature == SIGNER.certificate.signature


def test_unused_bits_of_a_signature_change_nothing_that_is_signed() -> None:
    """If its last bit is 0, a signature may be said to be a bit shorter, and the leaf says the same."""
    leaf = next(
        leaf for leaf in iter(lambda: issue("leaf", MIDDLE, LEAF), None) if ends_with_0(leaf.certificate)
    )
    changed = mutated(leaf.der, [(len(leaf.der) - len(leaf.certificate.signature) - 1, 1)])
    assert changed != leaf.der
    found = certificates.verify_chain([changed, MIDDLE.der], [ROOT.pem], NOW)
    assert found.tbs_certificate_bytes == leaf.certificate.tbs_certificate_bytes
    assert found.signature == leaf.certificate.signature


def ends_with_0(certificate: x509.Certificate) -> bool:
    return certificate.signature[-1] % 2 == 0


@pytest.mark.parametrize("which", ["leaf", "intermediate"])
def test_every_byte_of_a_chain_counts(which: str) -> None:
    """One bit changed anywhere, and the chain is refused, in a sentence."""
    der = SIGNER.der if which == "leaf" else MIDDLE.der
    # How many bits of the signature's BIT STRING are unused says nothing where its last bit is 0.
    unused_bits = len(der) - len(x509.load_der_x509_certificate(der).signature) - 1
    for place in sorted({*range(len(der))} - {unused_bits}):
        changed = mutated(der, [(place, der[place] ^ 1)])
        chain = [changed, MIDDLE.der] if which == "leaf" else [SIGNER.der, changed]
        with pytest.raises(ReferenceValueError):
            certificates.verify_chain(chain, [ROOT.pem], NOW)
