"""TLS as the front speaks it: version 1.3 and no other, with the attested key, to clients of the list."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

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


def client_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """
    TLS of a client that presents a certificate, and compares the server's key by itself.

    Raises:
        ConfigError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Routers pin the key, and ask for no name, date or authority.
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} and {key} cannot be used for TLS: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
