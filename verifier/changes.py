"""Verdicts on submodules, and how the verdicts of two appraisals differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from verifier import trust
from verifier.trust import Tier

_WORST_FIRST: Final = (Tier.CONTRAINDICATED, Tier.NONE, Tier.WARNING, Tier.AFFIRMING)
"""No conclusion is less than a warning: what the other policy knew of the node is lost."""
_FAILED: Final = "policy.failed"


class SubmodVerdict(Struct, frozen=True):
    """The verdict on one submodule: its trust vector, and the codes of its reasons in order."""

    vector: dict[str, int]
    reasons: tuple[str, ...]

    @property
    def tier(self) -> Tier:
        """The status that the vector allows."""
        return trust.worst(self.vector)

    @property
    def has_failed(self) -> bool:
        """Whether there is no verdict, because the policy failed."""
        return _FAILED in self.reasons


class Change(Struct, frozen=True):
    """A submodule with two different verdicts; `None` if one appraisal has no verdict on it."""

    submod: str
    before: SubmodVerdict | None
    after: SubmodVerdict | None

    @property
    def direction(self) -> str:
        """``better``, ``worse``, or ``other`` if the status stays the same.  That a policy fails is never better."""
        was_failed, fails = (
            verdict is not None and verdict.has_failed for verdict in (self.before, self.after)
        )
        if fails:
            return "other" if was_failed else "worse"
        before, after = (
            0 if verdict is None else _WORST_FIRST.index(verdict.tier)
            for verdict in (self.before, self.after)
        )
        if before == after:
            return "other"
        return "better" if before < after else "worse"


def compare(before: Mapping[str, SubmodVerdict], after: Mapping[str, SubmodVerdict]) -> list[Change]:
    """The submodules whose verdict differs, by name; the order of reasons does not matter."""
    return [
        Change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if not _are_equal(before.get(name), after.get(name))
    ]


def _are_equal(one: SubmodVerdict | None, other: SubmodVerdict | None) -> bool:
    if one is None or other is None:
        return False
    return one.vector == other.vector and set(one.reasons) == set(other.reasons)


class _Reason(Struct, frozen=True):
    code: str


class _VerifierClaims(Struct, frozen=True):
    reasons: tuple[_Reason, ...] = ()


class _Appraisal(Struct, frozen=True):
    ear_trustworthiness_vector: dict[str, int]
    ear_verifier_claims: _VerifierClaims


class _Claims(Struct, frozen=True):
    submods: dict[str, _Appraisal]


_CLAIMS: Final = msgspec.json.Decoder(_Claims)


def verdicts_of(claims: str) -> dict[str, SubmodVerdict]:
    """The verdict on each submodule of a result, from the result's claims as JSON."""
    return {
        name: SubmodVerdict(
            appraised.ear_trustworthiness_vector,
            tuple(reason.code for reason in appraised.ear_verifier_claims.reasons),
        )
        for name, appraised in _CLAIMS.decode(claims).submods.items()
    }
