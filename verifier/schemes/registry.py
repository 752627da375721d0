"""
The registry of schemes: for each kind of evidence, how it is checked and what depends on that.

The appraisal, recordings and the policy contract use this table.  `attester.kinds` lists the other
registries of kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final

import msgspec

from attester import kinds
from verifier.schemes import gpu, platform, unknown, weights
from verifier.schemes.context import Context, Submods
from verifier.schemes.facts import Facts, GpuFacts, ModelFacts, PlatformFacts, UnknownFacts
from verifier.schemes.findings import CheckedSubmod


def _expect_none(_: Context) -> Iterable[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one kind of evidence is appraised."""

    check: Callable[[str, Submods, Context], CheckedSubmod]
    """Says what is true of a submodule, given its name."""
    facts: type[Facts]
    """What it tells policies."""
    malfunction: tuple[str, ...]
    """The trust claims that depend on this kind: they are −1 if the policy fails."""
    expected: Callable[[Context], Iterable[str]] = _expect_none
    """The names of submodules that are checked even if the evidence does not have them."""


def _expect_models(context: Context) -> Iterable[str]:
    return map(kinds.model_submod, {*context.node.models, *context.session.asked})


SCHEMES: Final[dict[str, Scheme]] = {
    "platform": Scheme(
        check=platform.check,
        facts=PlatformFacts,
        malfunction=("instance-identity", "configuration"),
        expected=lambda _: (platform.SUBMOD,),
    ),
    "model": Scheme(
        check=weights.check,
        facts=ModelFacts,
        malfunction=("file-system", "executables"),
        expected=_expect_models,
    ),
    "gpu": Scheme(check=gpu.check, facts=GpuFacts, malfunction=("hardware",)),
}
"""By kind.  Those that are expected of a node are checked first, in this order."""

UNKNOWN: Final = Scheme(check=unknown.check, facts=UnknownFacts, malfunction=("configuration",))
"""For submodules of any other kind."""


def scheme_of(submod: str) -> Scheme:
    """The scheme of a submodule, by its name."""
    return SCHEMES.get(kinds.kind_of(submod) or "", UNKNOWN)


def submods_to_check(present: Iterable[str], context: Context) -> list[str]:
    """Every submodule that is present or expected: first the expected kinds, in their order; then the others by name."""
    names = {*present, *(name for scheme in SCHEMES.values() for name in scheme.expected(context))}
    first = [scheme for scheme in SCHEMES.values() if scheme.expected is not _expect_none]

    def place(name: str) -> tuple[int, str]:
        scheme = scheme_of(name)
        return (first.index(scheme) if scheme in first else len(first)), name

    return sorted(names, key=place)


def facts_types() -> tuple[type[Facts], ...]:
    """The facts of every kind, and those of unknown submodules."""
    return (*(scheme.facts for scheme in SCHEMES.values()), UNKNOWN.facts)


def facts_union() -> Any:
    """The union of `facts_types`, as `msgspec` takes it."""
    return reduce(or_, facts_types())


def read_facts(kind: type, value: Any) -> Any:
    """
    Decode facts: a ``dec_hook`` for `msgspec`.

    Raises:
        NotImplementedError: *kind* is another type than `Facts`.
        msgspec.ValidationError: the value is not facts of a kind that is registered.
    """
    if kind is not Facts:
        raise NotImplementedError(f"a {kind.__name__} cannot be read")
    return msgspec.convert(value, facts_union())


def malfunction(submods: Iterable[str]) -> Mapping[str, Mapping[str, int]]:
    """By submodule, the trust vector if the policy failed."""
    return {name: dict.fromkeys(scheme_of(name).malfunction, -1) for name in submods}
