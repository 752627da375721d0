"""
The trust vector (AR4SI): tiers, and one table of claims, values, names and meanings.

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
        ValueError: not within −128 … 127.
    """
    if not -128 <= value <= 127:
        raise ValueError(f"{value} is not a trust claim's value")
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

    `values` gives for each number the name by which policies use it (``data.ar4si``) and what
    it means here.
    """

    name: str
    label: int
    values: Mapping[int, tuple[str, str]]


ANY_VALUES: Final[Mapping[int, tuple[str, str]]] = {
    -1: ("malfunction", "the verifier malfunctioned"),
    0: ("no_conclusion", "no conclusion"),
    1: ("unevaluable", "the evidence holds elements the verifier cannot evaluate"),
    99: ("unverified", "cryptographic validation failed"),
}
"""What every claim may be, besides its own values."""

TRUST_CLAIMS: Final = (
    TrustClaim("instance-identity", 0, {
        2: ("recognised", "recognised, not known to be compromised"),
        96: ("untrustworthy", "recognised, and not to be trusted"),
        97: ("unrecognised", "not recognised"),
    }),
    TrustClaim("configuration", 1, {
        2: ("approved", "known and approved"),
        3: ("safe", "no known vulnerabilities"),
        32: ("vulnerable", "known vulnerabilities"),
        36: ("unavailable", "essential elements not available to the verifier"),
        96: ("forbidden", "forbidden settings"),
    }),
    TrustClaim("executables", 2, {
        -2: ("walked", "the serving process walked the reference weights when called, in time"),
        2: ("measured", "approved, loading measured by a root of trust"),
        3: ("boot", "approved at boot"),
        -33: ("unshown", "the weights answered, and residence or timing is not shown"),
        32: ("vulnerable", "known bugs"),
        33: ("unrecognised", "unrecognised objects in memory"),
        96: ("other", "other weights"),
    }),
    TrustClaim("file-system", 3, {
        2: ("published", "the published files, within reach now"),
        -33: ("declared", "equal to the reference by the node's word alone"),
        -34: ("superseded", "equal to a reference value that another has replaced, within its grace period"),
        32: ("extra", "files beyond the reference"),
        96: ("other", "other files"),
    }),
    TrustClaim("hardware", 4, {
        2: ("genuine", "genuine by its own report"),
        -33: ("declared", "declared, and measured work agrees"),
        -34: ("boast", "declared, and far above what was verified"),
        32: ("vulnerable", "known vulnerabilities"),
        96: ("contradicted", "contradicted"),
        97: ("unrecognised", "not recognised"),
    }),
    TrustClaim("runtime-opaque", 5, {
        2: ("encrypted", "encrypted, in a TEE"),
        32: ("isolated", "isolated, not encrypted"),
        96: ("visible", "visible"),
    }),
    TrustClaim("storage-opaque", 6, {
        2: ("rooted", "secrets under hardware-held keys"),
        32: ("unrooted", "without hardware keys"),
        96: ("unencrypted", "unencrypted secrets"),
    }),
    TrustClaim("sourced-data", 7, {
        2: ("affirmed", "all from affirming attesters"),
        32: ("unattested", "from unattested sources"),
        96: ("contraindicated", "from contraindicated sources"),
    }),
)  # fmt: skip
CLAIM_NAMES: Final = frozenset(claim.name for claim in TRUST_CLAIMS)


def worst(values: Mapping[str, int]) -> Tier:
    """
    The status a trust vector allows: that of its worst claim.

    A `none` among the claims makes the whole none unless something is worse: what was
    not concluded must not disappear behind what was.  An empty vector is `none`.
    """
    return worst_tier([tier_of(value) for value in values.values()])


def worst_tier(tiers: list[Tier]) -> Tier:
    """The status of a whole result by those of its submodules, ordered as in `worst`."""
    for tier in (Tier.CONTRAINDICATED, Tier.WARNING, Tier.NONE):
        if tier in tiers:
            return tier
    return Tier.AFFIRMING if tiers else Tier.NONE
