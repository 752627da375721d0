"""Digests in CoRIMs: names of algorithms, and how two sets of digests compare (draft-ietf-rats-corim-11)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

Algorithm = int | str

NAMED_INFORMATION: Final[Mapping[int, tuple[str, int]]] = {
    1: ("sha-256", 32), 2: ("sha-256-128", 16), 3: ("sha-256-120", 15), 4: ("sha-256-96", 12),
    5: ("sha-256-64", 8), 6: ("sha-256-32", 4), 7: ("sha-384", 48), 8: ("sha-512", 64),
    9: ("sha3-224", 28), 10: ("sha3-256", 32), 11: ("sha3-384", 48), 12: ("sha3-512", 64),
}  # fmt: skip
"""IANA's registry of Named Information hash algorithms (RFC 6920 §9.4): the name and a digest's size in bytes."""
_IDS: Final = {name: number for number, (name, _) in NAMED_INFORMATION.items()}


class Match(enum.StrEnum):
    """How two sets of digests compare; only `MATCH` is a match."""

    MATCH = "match"
    DIFFERS = "differs"
    INCOMPARABLE = "incomparable"
    """They have no algorithm in common."""


def canonical(algorithm: Algorithm) -> Algorithm:
    """The only name used for an algorithm here: its Named Information id if it has one."""
    return _IDS.get(algorithm, algorithm) if isinstance(algorithm, str) else algorithm


def digest_size(algorithm: Algorithm) -> tuple[str, int] | None:
    """The name of a registered algorithm and the size of its digests in bytes; `None` for any other."""
    number = canonical(algorithm)
    return NAMED_INFORMATION.get(number) if isinstance(number, int) else None


def compare_digests(reference: Mapping[Algorithm, bytes], claimed: Mapping[Algorithm, bytes]) -> Match:
    """
    Compare two sets of digests (§ "Comparison for digests").

    They must have an algorithm in common, and every common algorithm must agree: a weak
    algorithm that agrees does not count if a strong one differs.
    """
    return compare_digest_lists(reference.items(), claimed.items())


def compare_digest_lists(
    reference: Iterable[tuple[Algorithm, bytes]], claimed: Iterable[tuple[Algorithm, bytes]]
) -> Match:
    """As `compare_digests`, over pairs; they differ if one side has an algorithm twice."""
    left, right = _by_algorithm(reference), _by_algorithm(claimed)
    if left is None or right is None:
        return Match.DIFFERS
    common = left.keys() & right.keys()
    if not common:
        return Match.INCOMPARABLE
    return Match.MATCH if all(left[each] == right[each] for each in common) else Match.DIFFERS


def _by_algorithm(pairs: Iterable[tuple[Algorithm, bytes]]) -> dict[Algorithm, bytes] | None:
    """The digests by canonical algorithm; `None` if an algorithm comes twice."""
    digests: dict[Algorithm, bytes] = {}
    for algorithm, digest in pairs:
        if canonical(algorithm) in digests:
            return None
        digests[canonical(algorithm)] = digest
    return digests
