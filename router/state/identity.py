"""
The router's own key and certificate, by which nodes know it: one file, PEM, that only its owner can read.

Each router has its own, beside its configuration: two routers on one store are two identities.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cose import PrivateKey
from attester.errors import ConfigError, KeyFileError
from attester.identity import key_to_pem, read_private, write_private
from verifier.errors import RequestError
from verifier.router_certificates import RouterCertificate, make_certificate, read_certificate, statement
from verifier.store.api_keys import digest_of

_END: Final = "-identity.pem"
_FINISHED_BYTES: Final = 256
"""More than the end of a handshake has without a certificate, and less than any certificate."""
_NEXT: Final = "Delete it, and the router makes a new one and registers it"


class AskedTLS(ssl.SSLObject):
    """
    TLS to a node that knows whether the node asked for a certificate.

    The library does not tell.  But what the client sends at the end of a handshake of TLS 1.3 is small without one.
    """

    outgoing: ssl.MemoryBIO
    was_asked = False

    def do_handshake(self) -> None:
        """See `ssl.SSLObject`."""
        before = self.outgoing.pending
        super().do_handshake()
        self.was_asked = self.outgoing.pending - before > _FINISHED_BYTES


class _ClientContext(ssl.SSLContext):
    """Makes `AskedTLS`."""

    sslobject_class = AskedTLS

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002  # as the library has it
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See `ssl.SSLContext`."""
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(made, AskedTLS)
        made.outgoing = outgoing
        return made


@dataclass(frozen=True)
class Identity:
    """A router's key and certificate."""

    key: PrivateKey
    certificate: RouterCertificate

    @classmethod
    def make(cls, now: datetime) -> Identity:
        """Make a new one, in memory."""
        native = ec.generate_private_key(ec.SECP256R1())
        return cls(PrivateKey(native), read_certificate(make_certificate(native, now), now))

    @classmethod
    def load(cls, path: Path, now: datetime) -> Identity:
        """
        Read it from its file.

        Raises:
            ConfigError: the file is missing or readable by others, does not hold the key and certificate of a
                router, or its certificate has expired.
        """
        try:
            pem = read_private(path)
            native = serialization.load_pem_private_key(pem, password=None)
            der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
            certificate = read_certificate(der, now)
        except KeyFileError as error:
            raise ConfigError(str(error)) from None
        except RequestError as error:
            raise ConfigError(f"{path}: {error}. {_NEXT}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            raise ConfigError(f"{path} does not hold a key and a certificate of a router. {_NEXT}") from None
        if isinstance(native, ec.EllipticCurvePrivateKey) and isinstance(native.curve, ec.SECP256R1):
            key = PrivateKey(native)
            if key.public == certificate.key:
                return cls(key, certificate)
        raise ConfigError(f"{path}: the certificate is of another key. {_NEXT}")

    @classmethod
    def load_or_make(cls, path: Path, now: datetime) -> Identity:
        """
        Read it, or make it and keep it there.

        Raises:
            ConfigError: see `load`; or a new one cannot be kept.
        """
        if not path.exists():
            made = cls.make(now)
            try:
                write_private(path, made.to_pem())
            except KeyFileError as error:
                # Another process may have made it at the same moment: then that one is read.
                if not path.exists():
                    raise ConfigError(
                        f"{error}. The router keeps its key there: name a file in a folder that it may write to,"
                        " identity_file in [gateway]"
                    ) from None
        return cls.load(path, now)

    def to_pem(self) -> bytes:
        """The key and the certificate."""
        certificate = x509.load_der_x509_certificate(self.certificate.der)
        return key_to_pem(self.key) + certificate.public_bytes(serialization.Encoding.PEM)

    def client_context(self) -> ssl.SSLContext:
        """
        TLS to nodes: it presents the certificate to those that ask for one.

        It believes any certificate, because a pin says which key has to answer (`router.gateway.pinned`).
        """
        context = _ClientContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.options |= ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        # The library reads keys from files alone, and this one is in memory.
        descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.to_pem())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context

    def registration(self, issuer: str, token: str) -> bytes:
        """The body that registers the certificate at *issuer* with the credential *token*, JSON."""
        signature = self.key.sign(statement(issuer, digest_of(token), self.certificate.der))
        return msgspec.json.encode(
            {
                "certificate": base64.b64encode(self.certificate.der).decode(),
                "signature": base64.b64encode(signature).decode(),
            }
        )


def identity_path(config: Path, name: str | None) -> Path:
    """
    Where the identity of the router with this configuration file is.

    Args:
        config: The configuration file.  Two of them in one folder are two routers.
        name: The setting ``identity_file``.
    """
    return config.parent / (name or f"{config.stem}{_END}")


def find_identity(config: Path, name: str | None, *, makes_it: bool) -> Identity | None:
    """Read the identity, if there is one or *makes_it*; see `identity_path` and `Identity.load_or_make`."""
    path = identity_path(config, name)
    if makes_it:
        return Identity.load_or_make(path, now())
    return Identity.load(path, now()) if path.exists() else None


def now() -> datetime:
    """The time, for certificates."""
    return datetime.now(UTC)
