"""Owners of jobs that have a token of the issuer and no key: what is kept of them, so that their lines go on."""

from __future__ import annotations

from typing import Any

import msgspec

from router.config import ApiKey
from verifier.roles import Role

_MEMBERS = (
    "operator",
    "workloads",
    "requests_per_minute",
    "concurrency",
    "tokens_per_minute",
    "tokens_per_day",
)


def write_guest(key: ApiKey) -> bytes:
    """What a job keeps of a person."""
    given = {name: getattr(key, name) for name in _MEMBERS}
    return msgspec.json.encode({"name": key.name, "roles": key.roles, **given})


def read_guest(data: bytes) -> ApiKey:
    """The person as a key.  It has the digest of none."""
    given: dict[str, Any] = msgspec.json.decode(data)
    return ApiKey(
        name=given["name"],
        sha256="",
        roles=tuple(Role(role) for role in given["roles"]),
        workloads=tuple(given["workloads"]),
        **{name: given[name] for name in _MEMBERS if name != "workloads"},
    )
