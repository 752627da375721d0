"""
The registry of evidence kinds: how submodules of each are named, and which claims they have.

A token holds one submodule for each thing measured (RFC 9711 §4.2.18).  Its name says its kind:
``platform``, or ``KIND/NAME`` for kinds of which there may be several.  Everything that depends
on the kind is in a registry with an entry for each kind:

    attester.kinds.KINDS               names and claims: how it is read and written
    attester.collectors.COLLECTORS     how a node collects it
    verifier.schemes.registry.SCHEMES  how it is checked, and which claims fail with the policy

A test checks that all of them have the same kinds.  CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from attester.errors import ClaimError
from attester.evidence import (
    TOKEN_CLAIMS,
    Benchmark,
    Capabilities,
    Claim,
    Claims,
    Endpoint,
    Exposure,
    Inventory,
    Manifest,
    ReadAnswer,
    Runtime,
    WalkAnswer,
)

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MAX_MEMBER_LENGTH: Final = 128
_MAX_SHOWN_LENGTH: Final = 40

Submod = Mapping[str, Claims]
"""The claims of one submodule by name."""


@dataclass(frozen=True)
class Kind:
    """A kind of evidence."""

    name: str
    claims: tuple[Claim, ...]
    members: re.Pattern[str] | None = None
    """The form of NAME in ``KIND/NAME``.  `None`: there is one submodule, named as the kind."""

    @cached_property
    def claims_by_key(self) -> Mapping[int, Claim]:
        """The claims by their CBOR key."""
        return {claim.key: claim for claim in self.claims}

    def has_member(self, member: str) -> bool:
        """Whether *member*, the part after the slash, has the form of this kind."""
        return (
            self.members is not None
            and len(member) <= _MAX_MEMBER_LENGTH
            and bool(self.members.fullmatch(member))
        )


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("platform", (
            Claim(-80001, "endpoint", Endpoint, "Where the node serves, signed by its TLS key."),
            Claim(-80002, "runtime", Runtime, "The engine, its arguments, packages, kernel, container and driver."),
            Claim(-80008, "capabilities", Capabilities, "Hardware class, memory, context length, quantisation, features, region."),
            Claim(-80009, "exposure", Exposure, "Which control routes of the engine the node itself reached through its endpoint; absent from older attesters."),
        )),
        Kind("model", (
            Claim(-80003, "manifest", Manifest, "Every file of the model with its size and digests, the bytes of weights by type, and which digests come from a cache."),
            Claim(-80004, "read", ReadAnswer, "The answer to a read challenge."),
            Claim(-80005, "walk", WalkAnswer, "The answers to a walk challenge."),
        ), MODEL_NAME),
        Kind("gpu", (
            Claim(-80006, "inventory", Inventory, "A GPU as its driver's library describes it."),
            Claim(-80007, "benchmark", Benchmark, "A benchmark run on one device; each measure has a unit, repeats, a median and a spread."),
        ), re.compile(r"0|[1-9][0-9]?")),
    )
}  # fmt: skip


def claims_by_place() -> Mapping[str, tuple[Claim, ...]]:
    """The claims of the token, and those of each kind of submodule: the rows of ``docs/evidence-profile.md``."""
    return {"token": TOKEN_CLAIMS, **{kind.name: kind.claims for kind in KINDS.values()}}


def kind_of(submod: str) -> str | None:
    """The kind of a submodule by its name; `None` if this profile has no such kind."""
    name, slash, member = submod.partition("/")
    kind = KINDS.get(name)
    if kind is None:
        return None
    if not slash:
        return name if kind.members is None else None
    return name if kind.has_member(member) else None


def model_submod(model: str) -> str:
    """The submodule's name for *model*."""
    return f"model/{model}"


def model_of(submod: str) -> str | None:
    """The model that a submodule is about; `None` if it is not about a model."""
    return submod.partition("/")[2] if kind_of(submod) == "model" else None


def read_submod(name: str, raw: Any) -> Submod:
    """
    Read the claims of one submodule strictly.

    Raises:
        ClaimError: the submodule or a claim is unknown, or a claim does not have the form of its type.
    """
    kind = kind_of(name)
    if kind is None:
        raise ClaimError(name, "this profile has no such submodule")
    if not isinstance(raw, dict):
        raise ClaimError(name, "it must be a claims-set")
    claims: dict[str, Claims] = {}
    for key, value in raw.items():
        claim = KINDS[kind].claims_by_key.get(key)
        if claim is None:
            raise ClaimError(name, f"unknown claim {str(key)[:_MAX_SHOWN_LENGTH]}")
        try:
            claims[claim.name] = msgspec.convert(value, claim.type, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise ClaimError(claim.name, str(error)) from None
    return claims


def write_submod(claims: Submod) -> dict[int, Any]:
    """The claims-set of a submodule, ready to encode.  No two kinds have a claim of the same name."""
    keys = {claim.name: claim.key for kind in KINDS.values() for claim in kind.claims}
    return {keys[name]: msgspec.to_builtins(value, builtin_types=(bytes,)) for name, value in claims.items()}
