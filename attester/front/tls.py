"""TLS as the front speaks it: version 1.3 and no other, with the attested key, to clients of the list."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from attester.errors import ConfigError


class _Telling(ssl.SSLObject):
    """
    A TLS connection that tells the client why its handshake failed.

    asyncio closes the socket at once, and with it the alert that is written already.  So it is told to wait for more,
    which makes it send what there is; the client closes when it reads that, or the time for the handshake ends.
    """

    failed: Callable[[ssl.SSLError], None]
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """See `ssl.SSLObject`."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failure = error
            type(self).failed(error)
            raise ssl.SSLWantReadError from error


def server_context(
    certificate: Path, key: Path, clients: Iterable[bytes], failed: Callable[[ssl.SSLError], None]
) -> ssl.SSLContext:
    """
    The context of the next connections.

    Args:
        certificate: The endpoint's certificate with its chain, PEM.
        key: Its key, PEM.
        clients: The certificates of those who are served, DER; each is its own trust anchor.
        failed: Is told why a handshake failed.

    Raises:
        ConfigError: a file cannot be read, or the key is another certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    # A session that is taken up again shows no certificate, so nobody may take one up.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        context.load_verify_locations(cadata=b"".join(clients))
    except (OSError, ValueError) as error:
        why = (error.reason or "it is not PEM") if isinstance(error, ssl.SSLError) else str(error)
        raise ConfigError(f"{certificate} and {key} cannot be used for TLS: {why}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    context.sslobject_class = type("Telling", (_Telling,), {"failed": staticmethod(failed)})
    return context


class OtherKeyError(ssl.SSLError):
    """The server has another key than the pinned one."""


class _Pinned(ssl.SSLObject):
    """A TLS connection whose handshake fails unless the server has the pinned key."""

    pin: str

    def do_handshake(self) -> None:
        """See `ssl.SSLObject`."""
        super().do_handshake()
        if spki_sha256(self.getpeercert(binary_form=True)) != self.pin:
            raise OtherKeyError(1, "another key answers than the pinned one")


def spki_sha256(certificate: bytes | None) -> str | None:
    """The pin of a certificate's key (DER): the SHA-256 of its SubjectPublicKeyInfo, hex; `None` if it has none."""
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return None
    return hashlib.sha256(spki).hexdigest()


def client_context(files: tuple[Path, Path] | None, pin: str | None = None) -> ssl.SSLContext:
    """
    TLS of a client, which compares the server's key and asks for no name, date or authority.

    Args:
        files: The client's certificate and its key, PEM, if it presents one.
        pin: What `spki_sha256` must be of the server's certificate; without it any server is accepted.

    Raises:
        ConfigError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    if pin is not None:
        context.sslobject_class = type("Pinned", (_Pinned,), {"pin": pin})
    if files is not None:
        try:
            context.load_cert_chain(*files, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{files[0]} and {files[1]} cannot be used for TLS: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
