"""The router's configuration: ``router.toml``, workloads included."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from attester.settings import check_listen
from router.workload import Workload

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]


class ServiceSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[service]``."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8450"

    def __post_init__(self) -> None:
        check_listen(self.listen)


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: its base URL, which is also the issuer of its results."""

    url: _Url
    kids: tuple[str, ...] = ()
    """Thumbprints (RFC 7638) of the keys to trust; any in its JWKS, where empty."""


class GatewaySection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``."""

    allow_private: bool = False
    """Whether nodes may have private or loopback addresses."""
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60
    """For a request as a whole, all its attempts included."""
    attempt_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    connect_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 3
    """For TCP and TLS together: who does not even greet is not waited for."""
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    key_digests: tuple[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")], ...] = ()
    """SHA-256 of each API key that may be used, hex; anyone may, where empty."""


class RouterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``router.toml``."""

    verifier: VerifierSection
    workloads: Annotated[dict[str, Workload], Meta(min_length=1, max_length=1000)]
    service: ServiceSection = ServiceSection()
    gateway: GatewaySection = GatewaySection()

    def __post_init__(self) -> None:
        models = [workload.model for workload in self.workloads.values()]
        if len(set(models)) != len(models):
            raise ValueError("two workloads are for one model; a request would not know which is meant")

    def workload_for(self, model: str) -> Workload | None:
        """The workload that a request for *model* maps to."""
        for workload in self.workloads.values():
            if workload.model == model:
                return workload
        return None
