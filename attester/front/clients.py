"""
Who may use the endpoint: the routers of the list in the home, and the node itself.

The node has a key of its own for that (`check.key`), with which `check` and each attestation round look at the served
endpoint from outside, as a router would.  It opens nothing that a router's would not.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester import client_certificate, cose, identity, router_list
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
    native = key.native
    if not isinstance(native, ec.EllipticCurvePrivateKey):
        raise TypeError("the key of a client must be on a curve")
    made = client_certificate.make(native, name, dt.datetime.now(dt.UTC))
    return made.public_bytes(serialization.Encoding.PEM)


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


@dataclass(frozen=True)
class KeptList:
    """The list as the home has it."""

    fetched: int = 0
    """Seconds since 1970."""
    routers: tuple[KnownRouter, ...] = ()

    def believed(self, *, max_age_s: int, now: float) -> tuple[KnownRouter, ...]:
        """Its routers; none if it is too old."""
        # A list of the future was written under a wrong clock, and would never grow old.
        return self.routers if abs(now - self.fetched) <= max_age_s else ()


def read_kept(home: Home) -> KeptList:
    """
    The list in the home; an empty one if there is none.

    Raises:
        VerifierError: the list is damaged.
        ConfigError: it cannot be read.
    """
    try:
        with open(home.path / LIST, "rb") as file:
            data = file.read(router_list.MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        return KeptList()
    except OSError as error:
        raise ConfigError(f"{home.path / LIST} cannot be read: {error.strerror}") from None
    return KeptList(*router_list.read(data))


def kept_routers(home: Home, *, max_age_s: int, now: float) -> tuple[KnownRouter, ...]:
    """The routers of the list in the home that are believed now.  Raises as `read_kept`."""
    return read_kept(home).believed(max_age_s=max_age_s, now=now)


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
        self._kept = KeptList()
        """The last list that could be read."""
        self.names: Mapping[bytes, str] = {}
        """By certificate (DER): whose it is."""

    def refresh(self, now: float) -> bool:
        """Look at the files again; returns whether others are accepted than before."""
        try:
            self._kept, self._trouble = read_kept(self._home), ""
        except AttesterError as error:
            # What was read before is believed on, but for no longer than if it had stayed.
            if isinstance(error, VerifierError) and self._trouble != str(error):
                _log.error("the list of routers in the home cannot be used", why=str(error))
            self._trouble = str(error)
        routers = self._kept.believed(max_age_s=self._max_age_s, now=now)
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
