"""
Who may use the endpoint: the routers of the list in the home, and the node itself.

The node has a key of its own for that (`check.key`), with which `check` and each attestation round look at the served
endpoint from outside, as a router would.  It opens nothing that a router's would not.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attester import cose, identity, router_list
from attester.config import Home
from attester.errors import AttesterError, ConfigError, VerifierError
from attester.router_list import KnownRouter

SELF: Final = "this node"
"""Whose the connections of `check` and of the node's own probes are."""
LIST: Final = "routers.json"
ANCHORS: Final = "routers.pem"
"""The certificates of the list and the node's own, for a proxy of the operator's."""
CADDY_ANCHORS: Final = "routers.caddy"
"""The same for Caddy, which reads the first certificate of a file only."""
ASKED: Final = "routers.asked"
"""Touched by the front when somebody came whom it does not know: the list may be newer than its copy."""

_log = structlog.get_logger("front")


def create_client_certificate(key: cose.PrivateKey, name: str) -> bytes:
    """A self-signed certificate of *key* for a client of TLS, PEM, in the form that routers have too."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key.native.public_key()
    now = dt.datetime.now(dt.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
            "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    ski = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .sign(key.native, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def own_certificate(home: Home) -> tuple[Path, Path]:
    """
    The files of the node's own client certificate and its key; they are made if they are not there.

    Raises:
        KeyFileError, ConfigError: they cannot be read or made.
    """
    certificate, key_file = home.path / "check.crt", home.path / "check.key"
    if not key_file.exists():
        identity.create_key(key_file, cose.ES256)
    key = identity.load_key(key_file)
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        is_fitting = loaded.public_key() == key.native.public_key()
    except (OSError, ValueError):
        is_fitting = False
    if not is_fitting:
        replace_file(certificate, create_client_certificate(key, "touchstone check"))
    return certificate, key_file


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that readers find whole at any time.  Raises `ConfigError`."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def kept_routers(home: Home, *, max_age_s: int, now: float) -> tuple[KnownRouter, ...]:
    """
    The routers of the list in the home; none if there is no list, or if it is too old.

    Raises:
        VerifierError: the list is damaged.
        ConfigError: it cannot be read.
    """
    try:
        with open(home.path / LIST, "rb") as file:
            data = file.read(router_list.MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{home.path / LIST} cannot be read: {error.strerror}") from None
    fetched, routers = router_list.read(data)
    # A list of the future was written under a wrong clock, and would never grow old.
    return routers if abs(now - fetched) <= max_age_s else ()


class Clients:
    """
    Whose certificates are accepted now.

    Args:
        home: The attester's home.
        max_age_s: For how long the list is believed.
    """

    def __init__(self, home: Home, max_age_s: int) -> None:
        self._home = home
        self._max_age_s = max_age_s
        self._own = own_certificate(home)
        self._trouble = ""
        self.names: Mapping[bytes, str] = {}
        """By certificate (DER): whose it is."""

    def refresh(self, now: float) -> bool:
        """Look at the files again; returns whether others are accepted than before."""
        routers: Iterable[KnownRouter]
        try:
            routers = kept_routers(self._home, max_age_s=self._max_age_s, now=now)
            self._trouble = ""
        except AttesterError as error:
            if isinstance(error, VerifierError) and self._trouble != str(error):
                _log.error("the list of routers in the home cannot be used", why=str(error))
            self._trouble = str(error)
            return False
        own = x509.load_pem_x509_certificate(self._own[0].read_bytes())
        names = {own.public_bytes(serialization.Encoding.DER): SELF}
        names.update({each.certificate: each.name for each in routers})
        is_another = names != self.names
        self.names = names
        return is_another

    @property
    def routers(self) -> int:
        """How many routers are accepted."""
        return len(self.names) - 1


def write_anchors(home: Home, routers: Iterable[KnownRouter]) -> bool:
    """
    Write the trust anchors for proxies: the node's own certificate, and each router's.  Returns whether they are others.

    Raises:
        KeyFileError, ConfigError: the node's own certificate cannot be read, or the files cannot be written.
    """
    own = x509.load_pem_x509_certificate(own_certificate(home)[0].read_bytes())
    anchors = [own, *(x509.load_der_x509_certificate(each.certificate) for each in routers)]
    pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in anchors)
    der = [base64.b64encode(each.public_bytes(serialization.Encoding.DER)) for each in anchors]
    path, for_caddy = home.path / ANCHORS, home.path / CADDY_ANCHORS
    try:
        if path.read_bytes() == pem and for_caddy.exists():
            return False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    # First the one that nobody watches.
    replace_file(for_caddy, b"".join(b"trusted_ca_cert " + each + b"\n" for each in der))
    replace_file(path, pem)
    return True
