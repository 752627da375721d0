"""
Conflicts between reference values of one model: they are shown to people, and the newest value does not win.

Digests are compared as CoRIM defines it (draft-ietf-rats-corim-11, "Comparison for digests"):
there must be a common algorithm, and every common algorithm must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

from msgspec import Struct

from verifier.references.digests import Match, compare_digest_lists
from verifier.schemes.context import ModelReference, ReferenceFile

_MAX_SHOWN: Final = 20


class Conflict(Struct, frozen=True, kw_only=True):
    """Two reference values of one model that list different files."""

    model: str
    one: str
    """The digest of one value."""
    other: str
    """The digest of the other value."""
    differs: tuple[str, ...]
    """Files that both have, with different digests or sizes."""
    incomparable: tuple[str, ...]
    """Files that both have, with no common digest algorithm."""
    only_one: tuple[str, ...]
    """Files that only one value has."""
    only_other: tuple[str, ...]
    """Files that only the other value has."""
    count: int
    """The number of all files that disagree; of each kind, at most twenty are named."""


def between(values: Mapping[str, Sequence[ModelReference]]) -> list[Conflict]:
    """Every pair of values that disagree, by model."""
    found = []
    for model in sorted(values):
        for one, other in combinations(values[model], 2):
            conflict = compare(model, one, other)
            if conflict is not None:
                found.append(conflict)
    return found


def compare(model: str, one: ModelReference, other: ModelReference) -> Conflict | None:
    """Where two values disagree; `None` if they do not."""
    differs, incomparable = [], []
    for name in sorted(one.files.keys() & other.files.keys()):
        match = _compare_files(one.files[name], other.files[name])
        if match is Match.DIFFERS:
            differs.append(name)
        elif match is Match.INCOMPARABLE:
            incomparable.append(name)
    only_one = sorted(one.files.keys() - other.files.keys())
    only_other = sorted(other.files.keys() - one.files.keys())
    count = len(differs) + len(incomparable) + len(only_one) + len(only_other)
    if not count:
        return None
    return Conflict(
        model=model,
        one=one.digest,
        other=other.digest,
        differs=tuple(differs[:_MAX_SHOWN]),
        incomparable=tuple(incomparable[:_MAX_SHOWN]),
        only_one=tuple(only_one[:_MAX_SHOWN]),
        only_other=tuple(only_other[:_MAX_SHOWN]),
        count=count,
    )


def _compare_files(one: ReferenceFile, other: ReferenceFile) -> Match:
    if one.size is not None and other.size is not None and one.size != other.size:
        return Match.DIFFERS
    return compare_digest_lists(one.digests.items(), other.digests.items())
