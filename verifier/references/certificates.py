"""
Verify a chain of certificates, from the signer of a model to a trusted authority (RFC 5280 §6).

It does little on purpose: leaves that sign code, authorities that sign certificates, no names
but issuer and subject, no revocation.  A critical extension that is not understood is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from verifier.errors import ReferenceValueError
from verifier.schemes.findings import to_printable

MAX_CHAIN: Final = 8
_UNREADABLE: Final = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
_OTHER_PURPOSES: Final = frozenset(
    {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.EMAIL_PROTECTION,
        ExtendedKeyUsageOID.TIME_STAMPING,
        ExtendedKeyUsageOID.OCSP_SIGNING,
    }
)
"""What certificates are for that nobody gets to sign reference values."""
_UNDERSTOOD: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
    x509.SubjectAlternativeName,
)


def verify_chain(chain: Sequence[bytes], roots: Sequence[bytes], at: datetime) -> x509.Certificate:
    """
    Verify a chain and return its leaf.

    Args:
        chain: DER, the leaf first.  A root in the chain is not trusted for being there.
        roots: PEM files of the trusted authorities.
        at: The moment of evaluation, with a time zone.

    Raises:
        ReferenceValueError: the chain is refused; the message names the certificate and says why.
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
    except _UNREADABLE:
        raise ReferenceValueError("a certificate of the chain cannot be read") from None
    if not certificates:
        raise ReferenceValueError("the chain is empty")
    trusted = [anchor for pem in roots for anchor in _load(pem)]
    _check_leaf(certificates[0])
    return _follow(certificates, trusted, at)


def verify_signer(chain: Sequence[bytes], root: x509.Certificate, at: datetime) -> x509.Certificate:
    """
    Verify the chain of a CoRIM's signer, up to one trusted authority, and return its leaf.

    Neither the CoRIM draft nor RFC 5280 asks for a purpose or for a key usage: what a certificate does say counts.

    Args:
        chain: DER, the leaf first.
        root: The authority.
        at: The moment of evaluation, with a time zone.

    Raises:
        ReferenceValueError: the chain is refused; the message names the certificate and says why.
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
    except _UNREADABLE:
        raise ReferenceValueError("a certificate of x5chain cannot be read") from None
    if is_authority(certificates[0]):
        raise ReferenceValueError(f"{_name(certificates[0])} is that of an authority, and not of a signer")
    check_anchor(certificates[0])
    return _follow(certificates, [root], at, needs_usage=False)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it may issue others."""
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether the key of a certificate may sign anything but certificates."""
    usage = _extension(certificate, x509.KeyUsage)
    return usage is None or usage.digital_signature


def check_anchor(certificate: x509.Certificate) -> None:
    """
    Check that a certificate can stand for reference values at all, whatever the time is.

    Raises:
        ReferenceValueError: it is for something else, or has a critical extension that is not understood.
    """
    _check_extensions(certificate)
    if is_authority(certificate):
        return
    if not may_sign(certificate):
        raise ReferenceValueError(f"{_name(certificate)} does not allow signatures")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and set(purposes) <= _OTHER_PURPOSES:
        raise ReferenceValueError(
            f"{_name(certificate)} is for something else than signing, such as TLS or mail"
        )


def check_time(certificate: x509.Certificate, at: datetime) -> None:
    """Raise `ReferenceValueError` if a certificate is not valid at *at*."""
    _check_time(certificate, at)


E = TypeVar("E", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ReferenceValueError(f"{_name(certificate)} has extensions that cannot be read") from None


def _follow(
    certificates: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    at: datetime,
    *,
    needs_usage: bool = True,
) -> x509.Certificate:
    """Go from the leaf up to a trusted authority."""
    leaf, *rest = certificates
    current = leaf
    for depth in range(MAX_CHAIN + 1):
        _check_time(current, at)
        _check_extensions(current)
        anchors = [each for each in trusted if _issued(each, current)]
        if anchors:
            # A renewed root comes twice with one name and key, and one good certificate is enough.
            _check_any(anchors, depth, at, needs_usage=needs_usage)
            return leaf
        issuer = next((each for each in rest if _issued(each, current)), None)
        if issuer is None:
            raise ReferenceValueError(f"{_name(current)} was not issued by a trusted authority")
        _check_authority(issuer, depth, needs_usage=needs_usage)
        rest.remove(issuer)
        current = issuer
    raise ReferenceValueError("the chain is too long")


def _check_any(anchors: Sequence[x509.Certificate], depth: int, at: datetime, *, needs_usage: bool) -> None:
    refused: ReferenceValueError | None = None
    for anchor in anchors:
        try:
            _check_authority(anchor, depth, needs_usage=needs_usage)
            _check_time(anchor, at)
        except ReferenceValueError as error:
            refused = error
        else:
            return
    assert refused is not None
    raise refused


def _load(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE:
        raise ReferenceValueError("a root is not a PEM certificate") from None


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_time(certificate: x509.Certificate, at: datetime) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise ReferenceValueError(
            f"{_name(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not at {at:%Y-%m-%d}"
        )


def _check_extensions(certificate: x509.Certificate) -> None:
    try:
        extensions = list(certificate.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ReferenceValueError(f"{_name(certificate)} has extensions that cannot be read") from None
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            oid = extension.oid.dotted_string
            raise ReferenceValueError(
                f"{_name(certificate)} has the critical extension {oid}, which is not understood"
            )


def _check_leaf(leaf: x509.Certificate) -> None:
    _check_extensions(leaf)
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.digital_signature:
            raise ReferenceValueError(f"{_name(leaf)} does not allow signatures")
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise ReferenceValueError(f"{_name(leaf)} lacks the extension {error.oid.dotted_string}") from None
    if ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise ReferenceValueError(f"{_name(leaf)} is not for signing code")


def _check_authority(issuer: x509.Certificate, below: int, *, needs_usage: bool) -> None:
    """Check that *issuer* may issue a certificate with *below* authorities between itself and the leaf."""
    _check_extensions(issuer)
    constraints = _extension(issuer, x509.BasicConstraints)
    usage = _extension(issuer, x509.KeyUsage)
    for found, kind in ((constraints, x509.BasicConstraints), (usage, x509.KeyUsage)):
        # RFC 5280 §6.1.4 (n): a key usage counts if there is one.
        if found is None and (needs_usage or kind is x509.BasicConstraints):
            raise ReferenceValueError(f"{_name(issuer)} lacks the extension {kind.oid.dotted_string}")
    if (constraints is not None and not constraints.ca) or (usage is not None and not usage.key_cert_sign):
        raise ReferenceValueError(f"{_name(issuer)} is not that of an authority")
    length = None if constraints is None else constraints.path_length
    if length is not None and below > length:
        raise ReferenceValueError(f"{_name(issuer)} does not allow {below} authorities below it")


def _name(certificate: x509.Certificate) -> str:
    return f"the certificate of {subject_of(certificate)}"


def subject_of(certificate: x509.Certificate) -> str:
    """A certificate's subject (RFC 4514), in printable form and bounded length."""
    try:
        return to_printable(certificate.subject.rfc4514_string(), 120) or "nobody"
    except ValueError:
        return "somebody whose name cannot be read"
