"""
What work requires of a node: model tiers and workloads, one table that people edit.

    tiers:
      large:
        hardware_classes: [h100-80gb, h200-141gb]
        min_memory_bytes: 80000000000
        model_claims: [file-system, executables]
        first_token_p90_ms: 800
    workloads:
      chat:
        model: example/large
        tier: large
        operations: [chat/completions]

The table is checked whole before any of it counts, and may be read again while the router
runs.  Standing is kept per tier: good work on small models says nothing about large ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from attester.errors import ConfigError
from router.model.errors import WorkloadError
from verifier.errors import PlainYAMLError
from verifier.plainyaml import Parsed, parse_yaml
from verifier.trust import CLAIM_NAMES

ASSURANCES: Final = ("declared", "challenged", "hardware-rooted", "confidential")
"""In rising order; what each rests on is in docs/limitations.md."""
OPERATIONS: Final = ("embeddings", "chat/completions", "completions")
MAX_TABLE: Final = 4 << 20
"""Bytes."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_ENTRIES: Final = 1000
_Model = Annotated[str, Meta(min_length=1, max_length=128)]
_Texts = tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...]
_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """In millionths of the network's unit of account for a million tokens."""

    input: _Count = 0
    output: _Count = 0


class Typical(Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens of a usual exchange, by which prices and paces are compared."""

    input: Annotated[int, Meta(ge=1, le=10_000_000)] = 1000
    output: Annotated[int, Meta(ge=1, le=10_000_000)] = 250


class Requirements(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    ``tiers.NAME``: what a model tier asks of nodes.

    An empty list of hardware classes, quantisations, features or regions asks nothing, and a
    floor of 0 is none.  An empty list of required claims would let anyone in, so it is an error.
    """

    platform_claims: Annotated[_Texts, Meta(min_length=1)] = ("instance-identity", "configuration")
    model_claims: Annotated[_Texts, Meta(min_length=1)] = ("file-system", "executables")
    platform_assurance: str = "declared"
    model_assurance: str = "challenged"
    max_age_s: Annotated[int, Meta(ge=1, le=86400)] = 300
    """How old a result may be."""

    hardware_classes: _Texts = ()
    quantisations: _Texts = ()
    features: _Texts = ()
    regions: _Texts = ()
    min_memory_bytes: _Count = 0
    min_context: _Count = 0

    min_walk_bytes_per_second: _Count = 0
    """A floor on the verified rate; a node without one does not meet it."""
    min_tokens_per_second: _Count = 0
    """A floor on the pace that routers saw in the last hour; who was not seen enough is not judged."""
    first_token_p90_ms: _Milliseconds = 0
    first_token_p99_ms: _Milliseconds = 0
    token_p90_ms: _Milliseconds = 0
    token_p99_ms: _Milliseconds = 0
    answer_p90_ms: _Milliseconds = 0
    """For whole answers, that are not streamed."""
    answer_p99_ms: _Milliseconds = 0

    prices: dict[Annotated[str, Meta(max_length=128)], Price] = {}
    """By operator; ``"*"`` for all others.  Free, where there is none."""
    price_ceiling: Price | None = None
    """Hard: dearer nodes are out."""
    energy_floor: Price | None = None
    """What the energy alone costs: a lower price asks for an audit."""
    second_is_worth: _Count = 0
    """Millionths of the unit that a second less is worth; 0: only time counts."""
    typical: Typical = Typical()

    concurrency: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Requests that one router gives one node at a time."""
    max_operator_share: Annotated[int, Meta(ge=1, le=100)] = 100
    """Per cent of the work under way that the nodes of one operator may have."""
    probation_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 20
    """Of decisions, how many try a node on probation first, so that evidence can come to be."""
    degraded_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 10
    """Likewise for degraded nodes, so that who is well again is seen."""

    def __post_init__(self) -> None:
        for claim in (*self.platform_claims, *self.model_claims):
            if claim not in CLAIM_NAMES:
                raise ValueError(f"no trust claim {claim!r}")
        for assurance in (self.platform_assurance, self.model_assurance):
            if assurance not in ASSURANCES:
                raise ValueError(f"no assurance {assurance!r}; there are {', '.join(ASSURANCES)}")
        if self.probation_per_mille + self.degraded_per_mille > 1000:
            raise ValueError("more decisions try others first than there are")

    def price_of(self, operator: str) -> Price:
        """What an operator's work costs."""
        return self.prices.get(operator) or self.prices.get("*") or Price()

    def cost_of(self, price: Price) -> float:
        """Millionths of the unit for a usual exchange."""
        return (price.input * self.typical.input + price.output * self.typical.output) / 1e6


class Workload(Requirements, frozen=True, forbid_unknown_fields=True):
    """A model with the requirements of its tier: what a request maps to."""

    model: _Model
    name: str = ""
    tier: str = ""
    operations: Annotated[tuple[str, ...], Meta(min_length=1)] = OPERATIONS
    tokeniser: str | None = None
    """A ``tokenizer.json``, by which the router counts tokens itself."""

    def __post_init__(self) -> None:
        Requirements.__post_init__(self)
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ValueError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")

    @property
    def standing_key(self) -> str:
        """What standings of nodes for this work are kept under."""
        return self.tier or self.model


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """``workloads.NAME``."""

    model: _Model
    tier: Annotated[str, Meta(max_length=64)]
    operations: Annotated[tuple[str, ...], Meta(min_length=1)] = OPERATIONS
    tokeniser: Annotated[str, Meta(max_length=4096)] | None = None
    default: bool = False
    """Taken where several workloads are for one model and the request names none."""


_Part = TypeVar("_Part")


class Table:
    """The workloads, each with its tier's requirements."""

    def __init__(self, workloads: Sequence[Workload], defaults: frozenset[str] = frozenset()) -> None:
        self.workloads: Mapping[str, Workload] = {workload.name: workload for workload in workloads}
        self._defaults = defaults
        self._by_model: dict[str, list[Workload]] = {}
        for workload in workloads:
            self._by_model.setdefault(workload.model, []).append(workload)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models there is a workload for."""
        return tuple(sorted(self._by_model))

    def route(self, model: str, named: str | None = None, allowed: Sequence[str] = ()) -> Workload:
        """
        The workload that a request maps to.

        Args:
            model: What the request asks for.
            named: The workload that it names, if it does.
            allowed: The workloads that its API key may use; any, where empty.

        Raises:
            WorkloadError: none, or several of which none is the default.
        """
        found = self._by_model.get(model)
        if found is None:
            raise WorkloadError("no workload for this model", code="model_not_found")
        if len(found) == 1 and named is None and not allowed:
            return found[0]
        open_to = [w for w in found if (not allowed or w.name in allowed) and named in (None, w.name)]
        if not open_to:
            what = "this model" if named is None else "this model by that name"
            raise WorkloadError(f"no workload for {what} that the key may use", code="model_not_found")
        if len(open_to) > 1:
            open_to = [w for w in open_to if w.name in self._defaults] or open_to
        if len(open_to) > 1:
            names = ", ".join(sorted(w.name for w in open_to))
            raise WorkloadError(f"several workloads are for this model, name one: {names}", code="ambiguous")
        return open_to[0]


def read_table(data: bytes) -> Table:
    """
    Read a table.

    Raises:
        ConfigError: not of the form, or a workload names what is not there; with the place.
    """
    try:
        parsed = parse_yaml(data, max_size=MAX_TABLE)
        tiers = _section(parsed, "tiers", Requirements)
        entries = _section(parsed, "workloads", _Entry)
        if unknown := parsed.value.keys() - {"tiers", "workloads"}:
            raise parsed.error((min(unknown),), "there are tiers and workloads")
        defaults: dict[str, str] = {}
        found = [_workload(parsed, name, entry, tiers, defaults) for name, entry in entries.items()]
    except PlainYAMLError as error:
        raise ConfigError(str(error)) from None
    return Table(found, frozenset(defaults.values()))


def _workload(
    parsed: Parsed,
    name: str,
    entry: _Entry,
    tiers: Mapping[str, Requirements],
    defaults: dict[str, str],
) -> Workload:
    tier = tiers.get(entry.tier)
    path = ("workloads", name)
    if tier is None:
        there = ", ".join(sorted(tiers))
        raise parsed.error((*path, "tier"), f"no tier {entry.tier!r}; there are {there}")
    if entry.default and defaults.setdefault(entry.model, name) != name:
        raise parsed.error(path, f"{defaults[entry.model]} is the default for {entry.model} already")
    required = {key: getattr(tier, key) for key in Requirements.__struct_fields__}
    try:
        return Workload(entry.model, name, entry.tier, entry.operations, entry.tokeniser, **required)
    except ValueError as error:
        raise parsed.error(path, str(error)) from None


def _section(parsed: Parsed, name: str, kind: type[_Part]) -> dict[str, _Part]:
    """The entries of a section, each of *kind*; an error names the place, as near as it can be told."""
    section = parsed.value.get(name) if isinstance(parsed.value, dict) else None
    if not isinstance(section, dict) or not 1 <= len(section) <= _MAX_ENTRIES:
        at: tuple[str, ...] = (name,) if (name,) in parsed.places else ()
        raise parsed.error(at, f"there must be {name}, 1 to {_MAX_ENTRIES}, by name")
    found = {}
    for key, value in section.items():
        if _NAME.fullmatch(key) is None:
            raise parsed.error((name, key), "not a name: letters, digits, dots, dashes")
        try:
            found[key] = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            inner = path.rstrip("`").partition(".")[2].partition("[")[0].partition(".")[0]
            at = (name, key, inner) if (name, key, inner) in parsed.places else (name, key)
            raise parsed.error(at, what) from None
    return found


def load_table(path: Path) -> Table:
    """
    Read a table's file.

    Raises:
        ConfigError: it cannot be read, or is no table; names the file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Next: touchstone router init") from None
    try:
        return read_table(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_table(models: Mapping[str, str]) -> str:
    """A table to begin with: one tier, and a workload of each name for each model."""
    lines = [
        "# What work requires of a node. All settings: docs/routing.md. After a change: touchstone router check.",
        "tiers:",
        "  standard:",
        "    model_claims: [file-system, executables]",
        "    model_assurance: challenged",
        "    max_age_s: 300",
        "workloads:",
    ]
    for name, model in models.items():
        lines += [f"  {_quoted(name)}:", f"    model: {_quoted(model)}", "    tier: standard"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
