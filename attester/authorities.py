"""Whose certificates are believed where a service is asked over https."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp

from attester.errors import ConfigError


def client_context(authorities: Path | None) -> ssl.SSLContext:
    """
    TLS for a client.

    Args:
        authorities: A PEM file.  Only what its certificates have signed is believed, and they themselves;
            without one the system's authorities are.

    Raises:
        ConfigError: the file cannot be read, or has no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ValueError) as error:
        reason = "it has no certificate in PEM" if isinstance(error, ssl.SSLError) else "it cannot be read"
        raise ConfigError(f"{authorities} cannot be used as ca_file: {reason}") from None
    # So that the file may also name the one certificate of the service.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def open_session(authorities: Path | None) -> aiohttp.ClientSession:
    """A client session that believes `client_context`.  Raises `ConfigError`."""
    connector = aiohttp.TCPConnector(ssl=client_context(authorities))
    return aiohttp.ClientSession(connector=connector, trust_env=False)


def distrust(error: BaseException) -> str | None:
    """Why a certificate is not believed, if *error* says that."""
    if not isinstance(error, aiohttp.ClientConnectorCertificateError):
        return None
    cause = error.certificate_error
    why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)
    return f"its certificate is not believed ({why})"


def why_unreached(error: BaseException) -> str:
    """Why there is no answer, in a line."""
    if (why := distrust(error)) is not None:
        return why
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        return f"no connection to {error.host}:{error.port} ({cause.strerror or type(cause).__name__})"
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:300]
