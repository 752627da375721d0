"""``[ext_proc]`` of ``router.toml``: the service by which other gateways ask which nodes a request may go to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from attester.settings import check_listen, is_loopback

_File = Annotated[str, Meta(min_length=1, max_length=4096)]


class ExtProcSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    ``[ext_proc]``: the service by which Envoy asks which nodes a request may go to (docs/other-gateways.md).

    Names of files are relative to the configuration.
    """

    listen: Annotated[str, Meta(pattern=r"^[^\s/]+:[0-9]{1,5}\Z")]
    """HOST:PORT for gRPC.  Beyond loopback only with the three files below."""
    tls_certificate: _File | None = None
    """A certificate with its chain, PEM.  With it the service speaks TLS and nothing else."""
    tls_key: _File | None = None
    client_ca: _File | None = None
    """Certificate authorities, PEM: whoever asks must have a certificate of one of them.  It should sign no others."""
    open: bool = False
    """Whether requests without a key of ours are taken too: then the gateway in front must know its callers."""
    model_from: Literal["body", "header"] = "body"
    """Where the model of a request is read.  A header only if another filter always writes it from the body."""
    scores: bool = True
    """Whether scores of endpoints are told beside the subset."""
    most: Annotated[int, Meta(ge=1, le=1000)] = 64
    """Nodes that are offered for one request."""
    max_streams: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    """Requests at a time; further ones are refused, which closes them."""
    message_timeout_s: Annotated[float, Meta(ge=0.05, le=600)] = 30
    """For the next message, until the nodes of a request are named."""
    max_body: Annotated[int, Meta(ge=1024, le=16 << 20)] = 4 << 20
    """Bytes of a request's body."""

    def __post_init__(self) -> None:
        check_listen(self.listen)
        files = (self.tls_certificate, self.tls_key, self.client_ca)
        if any(files) and not all(files):
            raise ValueError("tls_certificate, tls_key and client_ca go together: set all of them, or none")
        if not any(files) and not is_loopback(self.listen.rpartition(":")[0]):
            raise ValueError(
                f"{self.listen} is not an address of this machine alone: whoever reaches it learns where nodes are. "
                "Listen on 127.0.0.1, or set tls_certificate, tls_key and client_ca"
            )

    def files(self, folder: Path) -> tuple[Path, Path, Path] | None:
        """Certificate, key and authorities, if the service speaks TLS."""
        if self.tls_certificate is None or self.tls_key is None or self.client_ca is None:
            return None
        return folder / self.tls_certificate, folder / self.tls_key, folder / self.client_ca
