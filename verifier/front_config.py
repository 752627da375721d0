"""The settings of ``[service]`` that verifier and router share: the socket, TLS, and what one caller may cost there."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from attester.settings import check_listen

_Deadline = Annotated[float, Meta(ge=0.05, le=3600)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_File = Annotated[str, Meta(min_length=1, max_length=4096)]


class FrontConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a service's socket is given.  Names of files are relative to the folder of the configuration."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")]
    trusted_proxies: tuple[Annotated[str, Meta(max_length=64)], ...] = ()
    """Addresses and networks of proxies whose ``Forwarded`` or ``X-Forwarded-For`` is believed."""
    tls_certificate: _File | None = None
    """A certificate with its chain, PEM.  With it the service speaks TLS and nothing else."""
    tls_key: _File | None = None
    """The certificate's key, PEM."""
    client_ca: _File | None = None
    """Certificate authorities, PEM: every client must have a certificate of one of them."""
    head_s: _Deadline = 10
    """From a connection, or from the first byte of a further request, to the end of the request's head."""
    body_s: _Deadline = 30
    """For a body; a large one has a second more for each `body_bytes_per_s` that have come."""
    body_bytes_per_s: Annotated[int, Meta(ge=1, le=1 << 30)] = 32 * 1024
    write_s: _Deadline = 30
    """For a client to read; a large answer has a second more for each `body_bytes_per_s` that are left."""
    idle_s: _Deadline = 75
    """How long a connection is kept without a request; longer than the proxy in front keeps it."""
    connections: _Count = 16_000
    """Connections in all; fewer if the process may not open so many files."""
    stranger_connections: _Count = 4_000
    """Connections of those who have not proven who they are; the rest is kept for those who have."""
    connections_per_address: _Count = 2_000
    """Strangers' connections from one address; trusted proxies have no such limit."""
    stranger_requests: _Count = 16
    """Strangers' requests that are worked on at once; a few hundred more wait for a moment."""
    body_budget_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 256
    """Memory for all bodies that are held at once."""
    body_reserved_percent: Annotated[int, Meta(ge=0, le=95)] = 25
    """The part of it that strangers' bodies cannot have."""

    def __post_init__(self) -> None:
        check_listen(self.listen)
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"trusted_proxies: {error}") from None
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both, or neither")
        if self.client_ca is not None and self.tls_certificate is None:
            raise ValueError("client_ca needs tls_certificate and tls_key")
        if self.stranger_connections >= self.connections:
            raise ValueError(
                "stranger_connections must be less than connections: the rest is for those who are known"
            )

    @property
    def speaks_tls(self) -> bool:
        """Whether the service speaks TLS itself."""
        return self.tls_certificate is not None

    def files(self, folder: Path) -> tuple[Path, Path, Path | None]:
        """Certificate, key and authorities, if the service speaks TLS."""
        assert self.tls_certificate is not None
        assert self.tls_key is not None
        authorities = None if self.client_ca is None else folder / self.client_ca
        return folder / self.tls_certificate, folder / self.tls_key, authorities
