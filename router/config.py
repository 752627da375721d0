"""The router's configuration: ``router.toml``.  What work requires is in a table of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from attester.errors import ConfigError
from attester.settings import check_listen
from router.choose.ranking import WIDTH
from router.gateway.keys import Key

_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)]
_File = Annotated[str, Meta(min_length=1, max_length=4096)]


class ServiceSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[service]``."""

    listen: Annotated[str, Meta(pattern=r"^[^\s]+:[0-9]{1,5}\Z")] = "127.0.0.1:8450"
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]{1,64}\Z")] | None = None
    """What it is called among the routers that share a store; its address, where it is not named."""

    def __post_init__(self) -> None:
        check_listen(self.listen)


class VerifierSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[verifier]``: its base URL, which is also the issuer of its results."""

    url: _Url
    kids: tuple[str, ...] = ()
    """Thumbprints (RFC 7638) of the keys to trust; any in its JWKS, where empty."""
    router_token_file: _File | None = None
    """With it the router reports what it has seen."""
    admin_token_file: _File | None = None
    """With it people release the verifier's incidents at the router."""


class GatewaySection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[gateway]``."""

    allow_private: bool = False
    """Whether nodes may have private or loopback addresses."""
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60
    """For a request as a whole, all its attempts included; callers may ask for less."""
    attempt_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """For a whole answer, and for the first text of a stream."""
    stall_s: Annotated[float, Meta(ge=0.1, le=3600)] = 20
    """Between one text of a stream and the next."""
    write_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30
    """A client that takes nothing for so long has gone."""
    connect_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 3
    """For TCP and TLS together: who does not even greet is not waited for."""
    attempts: Annotated[int, Meta(ge=1, le=WIDTH)] = WIDTH
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] = 4000
    """Requests under way; more are told to come back."""
    probe_every_s: Annotated[float, Meta(ge=0, le=3600)] = 5
    """How often each node is asked whether it is there; 0: never.  Large fleets are asked less often."""


class StoreSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[store]``: what survives a restart, and what routers share.  Nothing, without a path."""

    path: _File | None = None
    flush_s: Annotated[float, Meta(ge=0.1, le=600)] = 2
    keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long records of decisions are kept."""
    keep_decisions: Annotated[int, Meta(ge=0, le=1 << 40)] = 1_000_000
    """And how many; 0: none is written down."""


class ReviewSection(Struct, frozen=True, forbid_unknown_fields=True):
    """``[review]``: of what the router itself holds."""

    two_person: bool = False
    """Whether a release takes two."""
    target_hours: Annotated[int, Meta(ge=1, le=8760)] = 24


class RouterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``router.toml``.  Files are found from its folder."""

    verifier: VerifierSection
    workloads: _File = "workloads.yaml"
    """The table of tiers and workloads."""
    service: ServiceSection = ServiceSection()
    gateway: GatewaySection = GatewaySection()
    store: StoreSection = StoreSection()
    review: ReviewSection = ReviewSection()
    keys: tuple[Key, ...] = ()
    """API keys; anyone may send work, where there are none."""

    def __post_init__(self) -> None:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) != len(values):
                raise ValueError(f"two keys have one {what}")

    @property
    def name(self) -> str:
        """What the router is called."""
        return self.service.name or self.service.listen


def read_token(folder: Path, name: str | None) -> str | None:
    """
    The token in a file, if one is configured.

    Raises:
        ConfigError: it cannot be read, or holds no token.
    """
    if name is None:
        return None
    path = folder / name
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: no token can be read there") from None
    if not token or len(token) > 4096 or not token.isprintable():
        raise ConfigError(f"{path} holds no token")
    return token
