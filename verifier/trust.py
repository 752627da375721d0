"""
The trust vector (AR4SI): the tiers, and one table of claims with their values, names and meanings.

The table drives results, ``data.ar4si`` in policies, and ``docs/policy-input.md``
(draft-ietf-rats-ar4si §2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Tier(StrEnum):
    """The trustworthiness tiers of AR4SI §2.3.2."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


def tier_of(value: int) -> Tier:
    """
    The tier of a trust claim's value.

    Raises:
        ValueError: it is not in −128 … 127.
    """
    if not -128 <= value <= 127:
        raise ValueError(f"{value} is not in −128 … 127, the values of trust claims")
    if value in (-1, 0, 1):
        return Tier.NONE
    if -32 <= value < 32:
        return Tier.AFFIRMING
    if -96 <= value < 96:
        return Tier.WARNING
    return Tier.CONTRAINDICATED


@dataclass(frozen=True)
class TrustClaim:
    """
    A row of the trust vector: its name, its CBOR label, and its values.

    `values` gives for each number the name that policies use (``data.ar4si``), and its meaning.
    """

    name: str
    label: int
    values: Mapping[int, tuple[str, str]]


ANY_VALUES: Final[Mapping[int, tuple[str, str]]] = {
    -1: ("malfunction", "the verifier malfunctioned"),
    0: ("no_conclusion", "no conclusion"),
    1: ("unevaluable", "the evidence has elements that the verifier cannot evaluate"),
    99: ("unverified", "cryptographic validation failed"),
}
"""Values that every claim may have, besides its own."""

TRUST_CLAIMS: Final = (
    TrustClaim("instance-identity", 0, {
        2: ("recognised", "recognised, and not known to be compromised"),
        96: ("untrustworthy", "recognised, and must not be trusted"),
        97: ("unrecognised", "not recognised"),
    }),
    TrustClaim("configuration", 1, {
        2: ("approved", "known and approved"),
        3: ("safe", "no known vulnerabilities"),
        32: ("vulnerable", "known vulnerabilities"),
        36: ("unavailable", "the verifier lacks essential elements of it"),
        96: ("forbidden", "forbidden settings"),
    }),
    TrustClaim("executables", 2, {
        -2: ("walked", "the serving process walked the reference weights when called, in time"),
        2: ("measured", "approved, and a root of trust measured the loading"),
        3: ("boot", "approved at boot"),
        -33: ("unshown", "the weights were walked, but not shown to be loaded, or not in time"),
        32: ("vulnerable", "known bugs"),
        33: ("unrecognised", "unrecognised objects in memory"),
        96: ("other", "other weights"),
    }),
    TrustClaim("file-system", 3, {
        2: ("published", "the published files, which the node can read now"),
        -33: ("declared", "equal to the reference, as the node declares; not verified"),
        -34: ("superseded", "equal to a replaced reference value, within its grace period"),
        32: ("extra", "files beyond the reference"),
        96: ("other", "other files"),
    }),
    TrustClaim("hardware", 4, {
        2: ("genuine", "genuine, as the device's own report shows"),
        -33: ("declared", "as the node declares; its measured work does not contradict it"),
        -34: ("boast", "the node declares far more than was verified"),
        32: ("vulnerable", "known vulnerabilities"),
        96: ("contradicted", "measured work contradicts it"),
        97: ("unrecognised", "not recognised"),
    }),
    TrustClaim("runtime-opaque", 5, {
        2: ("encrypted", "memory is encrypted, in a TEE"),
        32: ("isolated", "memory is isolated, and not encrypted"),
        96: ("visible", "memory is visible to others"),
    }),
    TrustClaim("storage-opaque", 6, {
        2: ("rooted", "secrets are encrypted with keys held in hardware"),
        32: ("unrooted", "secrets are encrypted without keys in hardware"),
        96: ("unencrypted", "secrets are not encrypted"),
    }),
    TrustClaim("sourced-data", 7, {
        2: ("affirmed", "all data comes from affirming attesters"),
        32: ("unattested", "some data comes from unattested sources"),
        96: ("contraindicated", "some data comes from contraindicated sources"),
    }),
)  # fmt: skip
CLAIM_NAMES: Final = frozenset(claim.name for claim in TRUST_CLAIMS)


def worst(values: Mapping[str, int]) -> Tier:
    """
    The status of a trust vector: that of its worst claim.

    A claim of `none` makes the status `none` unless another claim is worse: a missing conclusion
    must not be hidden by the others.  The status of an empty vector is `none`.
    """
    return worst_tier([tier_of(value) for value in values.values()])


def worst_tier(tiers: list[Tier]) -> Tier:
    """The status of a whole result, from those of its submodules, in the order of `worst`."""
    for tier in (Tier.CONTRAINDICATED, Tier.WARNING, Tier.NONE):
        if tier in tiers:
            return tier
    return Tier.AFFIRMING if tiers else Tier.NONE
