"""
The table of model tiers and workloads, as people write it: ``workloads.yaml``.

    tiers:
      large:
        hardware_classes: [h100-80gb, h200-141gb]
        min_memory_bytes: 80000000000
        model_claims: [file-system, executables]
        submods:
          gpu: {claims: [hardware]}
        first_token_p90_ms: 800
    workloads:
      chat:
        model: example/large
        tier: large
        operations: [chat/completions]
        digests: [8fad…]

The whole table is checked before any of it counts, and it may be read again while the router runs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from attester.errors import ConfigError
from router.model.operations import OPERATIONS
from router.model.workload import CheckSettings, Digests, GoesOn, ModelName, Requirements, Table, Workload
from verifier.errors import PlainYAMLError
from verifier.plainyaml import Parsed, parse_yaml

MAX_TABLE: Final = 4 << 20
"""Bytes."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_ENTRIES: Final = 1000

_Part = TypeVar("_Part")


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """``workloads.NAME``."""

    model: ModelName
    tier: Annotated[str, Meta(max_length=64)]
    operations: Annotated[tuple[str, ...], Meta(min_length=1)] = tuple(OPERATIONS)
    tokeniser: Annotated[str, Meta(max_length=4096)] | None = None
    digests: Digests = ()
    """As `Workload.digests`."""
    checks: CheckSettings = CheckSettings()
    continuing: GoesOn = GoesOn.NEVER
    """As `Workload.continuing`."""
    affinity_per_cent: Annotated[int, Meta(ge=0, le=1000)] = 0
    """As `Workload.affinity_per_cent`."""
    cache_salt: bool = True
    """As `Workload.cache_salt`."""
    default: bool = False
    """Whether it is taken if several workloads are for the model and the request names none."""


def read_table(data: bytes) -> Table:
    """
    Read a table.

    Raises:
        ConfigError: the table does not have the form, or a workload names a tier or an operation
            that does not exist; the message has line and column.
    """
    try:
        parsed = parse_yaml(data, max_size=MAX_TABLE)
        tiers = _section(parsed, "tiers", Requirements)
        entries = _section(parsed, "workloads", _Entry)
        if unknown := parsed.value.keys() - {"tiers", "workloads"}:
            raise parsed.error((min(unknown),), "the only sections are tiers and workloads")
        defaults: dict[str, str] = {}
        found = [_workload(parsed, name, entry, tiers, defaults) for name, entry in entries.items()]
    except PlainYAMLError as error:
        raise ConfigError(str(error)) from None
    return Table(found, frozenset(defaults.values()), digest_document(parsed.value))


def digest_document(document: object) -> str:
    """The digest of a table as it was read: of its JSON with sorted members, so that only what it says counts."""
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


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
        return Workload(
            entry.model,
            name=name,
            tier=entry.tier,
            operations=entry.operations,
            tokeniser=entry.tokeniser,
            digests=entry.digests,
            checks=entry.checks,
            continuing=entry.continuing,
            affinity_per_cent=entry.affinity_per_cent,
            cache_salt=entry.cache_salt,
            **required,
        )
    except ValueError as error:
        raise parsed.error(path, str(error)) from None


def _section(parsed: Parsed, name: str, kind: type[_Part]) -> dict[str, _Part]:
    """The entries of a section, each of *kind*.  An error names the nearest place that is known."""
    section = parsed.value.get(name) if isinstance(parsed.value, dict) else None
    if not isinstance(section, dict) or not 1 <= len(section) <= _MAX_ENTRIES:
        at: tuple[str, ...] = (name,) if (name,) in parsed.places else ()
        raise parsed.error(at, f"{name} must have 1 to {_MAX_ENTRIES} entries, by name")
    found = {}
    for key, value in section.items():
        if _NAME.fullmatch(key) is None:
            raise parsed.error((name, key), "a name must have letters, digits, dots and dashes only")
        try:
            found[key] = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            inner = path.rstrip("`").partition(".")[2].partition("[")[0].partition(".")[0]
            at = (name, key, inner) if (name, key, inner) in parsed.places else (name, key)
            raise parsed.error(at, what) from None
    return found


def write_table(models: Mapping[str, str], model_claims: Sequence[str]) -> str:
    """A first table: one tier that asks for *model_claims*, and one workload for each model, by name."""
    lines = [
        "# What work requires of a node. All settings: docs/routing.md. After a change: touchstone router check.",
        "tiers:",
        "  standard:",
        f"    model_claims: [{', '.join(model_claims)}]",
        "    model_assurance: challenged",
        "    max_age_s: 300",
        "workloads:",
    ]
    for name, model in models.items():
        lines += [f"  {_quoted(name)}:", f"    model: {_quoted(model)}", "    tier: standard"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
