"""
Where reference values of one model disagree: to be shown to people, never decided by who came last.

Digests are compared as CoRIM has it (draft-ietf-rats-corim-11, "Comparison for digests"):
at least one common algorithm, and every common one agrees; none in common is not a match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

from msgspec import Struct

from verifier.references.comid import Match, compare_digests
from verifier.schemes.context import ModelReference, ReferenceFile

_SHOWN: Final = 20


class Conflict(Struct, frozen=True):
    """Two values of one model that are not of the same files."""

    model: str
    one: str
    """Digests of the two values."""
    other: str
    differs: tuple[str, ...]
    """Files that both have, with other digests or sizes."""
    incomparable: tuple[str, ...]
    """Files that both have, with no digest algorithm in common."""
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    count: int
    """How many files disagree in all; at most twenty of a kind are named."""


def between(values: Mapping[str, Sequence[ModelReference]]) -> list[Conflict]:
    """Every pair that disagrees, by model."""
    found = []
    for model in sorted(values):
        for one, other in combinations(values[model], 2):
            conflict = _compare(model, one, other)
            if conflict is not None:
                found.append(conflict)
    return found


def _compare(model: str, one: ModelReference, other: ModelReference) -> Conflict | None:
    differs, incomparable = [], []
    for name in sorted(one.files.keys() & other.files.keys()):
        match = _same(one.files[name], other.files[name])
        if match is Match.DIFFERS:
            differs.append(name)
        elif match is Match.INCOMPARABLE:
            incomparable.append(name)
    only_one = sorted(one.files.keys() - other.files.keys())
    only_other = sorted(other.files.keys() - one.files.keys())
    kinds = (differs, incomparable, only_one, only_other)
    count = sum(map(len, kinds))
    if not count:
        return None
    shown = [tuple(names[:_SHOWN]) for names in kinds]
    return Conflict(model, one.digest, other.digest, shown[0], shown[1], shown[2], shown[3], count)


def _same(one: ReferenceFile, other: ReferenceFile) -> Match:
    if one.size is not None and other.size is not None and one.size != other.size:
        return Match.DIFFERS
    ours: dict[int | str, bytes] = dict(one.digests.items())
    theirs: dict[int | str, bytes] = dict(other.digests.items())
    return compare_digests(ours, theirs)
