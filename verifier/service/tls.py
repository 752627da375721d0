"""TLS that a service speaks itself, with certificates that are read again while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from attester.errors import ConfigError

_log = structlog.get_logger("service")


class ServerTLS:
    """
    The certificate, its key, and the authorities of clients' certificates.

    `context` is for the next connection: after `reload` it is another one, and connections that are open keep theirs.

    Args:
        certificate: The certificate with its chain, PEM.
        key: Its key, PEM.
        authorities: If there are any, each client must have a certificate of one of them.

    Raises:
        ConfigError: a file cannot be read, or the key is another certificate's.
    """

    def __init__(self, certificate: Path, key: Path, authorities: Path | None) -> None:
        self._files = (certificate, key, authorities)
        self.context = _read(*self._files)

    def reload(self) -> None:
        """Read the files again.  If they cannot be used, what was read before stays in force, and the log says why."""
        try:
            self.context = _read(*self._files)
        except ConfigError as error:
            _log.error("the TLS files are refused; the previous ones stay in force", why=str(error))
        else:
            _log.info("the TLS files were read again")


def _read(certificate: Path, key: Path, authorities: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password that is asked for: a service has nobody to ask.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} and {key} cannot be used for TLS: {_why(error)}") from None
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{authorities} cannot be used for clients' certificates: {_why(error)}"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is not PEM"
    return error.strerror or "it cannot be read" if isinstance(error, OSError) else str(error)
