"""``[access]`` of ``verifier.toml``: who may call what (docs/access.md)."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from verifier.roles import GRANTED, Role

_Claim = Annotated[str, Meta(min_length=1, max_length=128)]


class OidcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[access.oidc]``: an OpenID Connect issuer whose tokens are credentials."""

    issuer: Annotated[str, Meta(pattern=r"^https?://[^\s?#@]+\Z", max_length=256)]
    """Exactly as the tokens name it in ``iss``.  Its keys are found by its discovery document."""
    audience: Annotated[str, Meta(min_length=1, max_length=256)]
    """What the tokens name in ``aud`` if they are for this verifier."""
    role_claim: _Claim = "roles"
    """The claim with the groups or roles of the person, or a path to it, such as ``realm_access.roles``."""
    roles: dict[Annotated[str, Meta(max_length=256)], tuple[Role, ...]] = {}
    """What each value of that claim opens.  Other values open nothing."""
    operator_claim: _Claim = "operator"
    """The claim with the operator of nodes to whom the role operator is limited."""
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = ("RS256", "ES256", "EdDSA")

    def __post_init__(self) -> None:
        if not is_secure(self.issuer):
            raise ValueError("issuer must be an https URL, or have a loopback address")
        if wrong := {role for roles in self.roles.values() for role in roles} - set(GRANTED):
            raise ValueError(f"no token can have the role {min(wrong)}")
        if not self.algorithms:
            raise ValueError("algorithms is empty")


class AccessConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[access]``."""

    metrics_on_loopback: bool = False
    """
    Whether clients on this machine may read ``/metrics`` without a credential.

    A request that a proxy has passed on counts as remote.
    """
    per_caller_per_minute: Annotated[int, Meta(ge=1, le=10_000_000)] = 60_000
    """Requests with one key or token."""
    oidc: OidcConfig | None = None


def is_secure(url: str) -> bool:
    """Whether nobody between can change what is fetched from *url*: it is https, or has a loopback address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            return bool(host)
        return parts.scheme == "http" and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
