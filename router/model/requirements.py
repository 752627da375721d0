"""
What a caller itself requires of the node that does its work, beside what the workload requires.

Requirements come with the request, in ``provider.touchstone`` or in a header.  They only ever tighten: whatever is
unknown, malformed, less than the workload requires or impossible beside it is an error that names the member,
and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from attester import kinds, strictjson
from router.model.errors import RequirementsError
from router.model.workload import ASSURANCES, Workload
from verifier.trust import CLAIM_NAMES

MAX_HEADER: Final = 8192
"""Bytes of requirements in a header."""
MODEL: Final = "model"
"""In requirements, the submodule of the model that the work is for."""
_PLATFORM: Final = "platform"
_SHOWN: Final = 60

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Submod = Annotated[str, Meta(min_length=1, max_length=160)]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Names = Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=256)]
_Few = Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=16)]
_Digests = Annotated[tuple[_Digest, ...], Meta(min_length=1, max_length=64)]
_Policies = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(min_length=1, max_length=16)
]
_Claims = Annotated[dict[_Submod, _Few], Meta(min_length=1, max_length=16)]
_Assurances = Annotated[dict[_Submod, str], Meta(min_length=1, max_length=16)]
_MAX_WALK_AGE_S: Final = 30 * 86_400

_T = TypeVar("_T")


class CallerRequirements(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A caller's requirements of one workload, checked against it.

    What asks nothing is left out.  Lists are sorted, and no two entries are equal, so that the same requirements have
    one form.
    """

    claims: dict[str, tuple[str, ...]] = {}
    """By submodule or kind, the trust claims that must be affirming."""
    assurance: dict[str, str] = {}
    """By submodule or kind, the least assurance."""
    max_age_s: int | None = None
    """The greatest age of the node's result."""
    max_walk_age_s: int | None = None
    """The greatest age of the last walk of the model that was right."""
    reference: tuple[str, ...] = ()
    """The reference values of the model, by their digests, of which the node must have one."""
    nodes: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    not_nodes: tuple[str, ...] = ()
    not_operators: tuple[str, ...] = ()
    not_regions: tuple[str, ...] = ()
    spki_sha256: tuple[str, ...] = ()
    """The pins of TLS keys, of which the node's endpoint must have one."""
    kids: tuple[str, ...] = ()
    """The verifier's keys (RFC 7638 thumbprints), of which one must have signed the node's result."""
    policies: tuple[str, ...] = ()
    """The ids of appraisal policies, of which one must have judged the platform, the model and whatever is required."""

    @property
    def key(self) -> bytes:
        """The same for the same requirements."""
        return msgspec.json.encode(self, order="sorted")


_TYPES: Final[Mapping[str, Any]] = {
    "claims": _Claims,
    "assurance": str | _Assurances,
    "max_age_s": Annotated[int, Meta(ge=1, le=86_400)],
    "max_walk_age_s": Annotated[int, Meta(ge=1, le=_MAX_WALK_AGE_S)],
    "reference": _Digests,
    "nodes": _Names,
    "operators": _Names,
    "regions": _Names,
    "not_nodes": _Names,
    "not_operators": _Names,
    "not_regions": _Names,
    "spki_sha256": _Digests,
    "kids": _Few,
    "policies": _Policies,
}
MEMBERS: Final = tuple(_TYPES)
_ALLOWED: Final = ("reference", "nodes", "operators", "regions", "spki_sha256", "kids", "policies")
"""Lists of which one entry must be met."""
_EXCLUDED: Final = ("not_nodes", "not_operators", "not_regions")


def parse_header(text: str) -> Any:
    """
    The requirements in a header, as JSON.

    Raises:
        RequirementsError: it is too long, or not JSON.
    """
    try:
        data = text.encode()
        if len(data) > MAX_HEADER:
            raise RequirementsError("", f"the header may have {MAX_HEADER} bytes")
        return strictjson.loads(data)
    except (ValueError, UnicodeError) as error:
        raise RequirementsError("", f"the header is not JSON: {str(error)[:_SHOWN]}") from None


def read_requirements(given: Any, workload: Workload) -> CallerRequirements:
    """
    Read what a caller requires, and check it against the workload of its request.

    Args:
        given: A decoded JSON object.
        workload: What it may only tighten.

    Raises:
        RequirementsError: it is malformed, or contradicts the workload or itself; the error names the member.
    """
    if not isinstance(given, dict):
        raise RequirementsError("", "requirements must be an object")
    if not given:
        raise RequirementsError("", "no requirement is given: an empty object asks nothing, so leave it out")
    members = {name: _read(name, value) for name, value in given.items()}
    if isinstance(members.get("assurance"), str):
        members["assurance"] = {MODEL: members["assurance"]}
    for name in ("claims", "assurance"):
        if name in members:
            members[name] = _by_submod(name, members[name], workload)
    for name in (*_ALLOWED, *_EXCLUDED):
        if name in members:
            members[name] = tuple(sorted(set(members[name])))
    required = CallerRequirements(**members)
    _check_claims(required)
    _check_contradictions(required, workload)
    return required


def combine(one: CallerRequirements, other: CallerRequirements, workload: Workload) -> CallerRequirements:
    """
    Both requirements together, each checked against the workload.

    Raises:
        RequirementsError: nothing can meet both; the error names the member.
    """
    members: dict[str, Any] = {
        "claims": {
            submod: tuple(sorted({*one.claims.get(submod, ()), *other.claims.get(submod, ())}))
            for submod in sorted({*one.claims, *other.claims})
        },
        "assurance": _merged(one.assurance, other.assurance, lambda both: max(both, key=ASSURANCES.index)),
        "max_age_s": _least(one.max_age_s, other.max_age_s),
        "max_walk_age_s": _least(one.max_walk_age_s, other.max_walk_age_s),
    }
    for name in _ALLOWED:
        mine, others = getattr(one, name), getattr(other, name)
        both = tuple(sorted(set(mine) & set(others))) if mine and others else mine or others
        if mine and others and not both:
            raise _contradiction(name, "the header and the body allow different ones, and none is in both")
        members[name] = both
    for name in _EXCLUDED:
        members[name] = tuple(sorted({*getattr(one, name), *getattr(other, name)}))
    required = CallerRequirements(**members)
    _check_contradictions(required, workload)
    return required


def _read(name: str, value: Any) -> Any:
    if name not in _TYPES:
        # What was not understood may be the very thing that the caller relies on.
        shown = name[:_SHOWN] if name.isprintable() else repr(name[:_SHOWN])
        raise RequirementsError(shown, f"there is no such requirement; there are {', '.join(MEMBERS)}")
    try:
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as error:
        raise RequirementsError(name, str(error)) from None


def _by_submod(name: str, given: Mapping[str, Any], workload: Workload) -> dict[str, Any]:
    """With the submodules' own names, in order."""
    found: dict[str, Any] = {}
    for submod, value in given.items():
        named = kinds.model_submod(workload.model) if submod == MODEL else submod
        if named in found:
            raise _contradiction(name, f"{MODEL} and {named} are the same, and both are given")
        if named not in kinds.KINDS and kinds.kind_of(named) is None:
            known = ", ".join(sorted(kinds.KINDS))
            raise RequirementsError(
                name, f"there is no kind of submodule {submod[:_SHOWN]!r}; there are {known}"
            )
        model = kinds.model_of(named)
        if model is not None and model != workload.model:
            raise _contradiction(name, f"{named[:_SHOWN]} is of another model than {workload.model}")
        found[named] = tuple(sorted(set(value))) if isinstance(value, tuple) else value
    return dict(sorted(found.items()))


def _check_claims(required: CallerRequirements) -> None:
    for claims in required.claims.values():
        for claim in claims:
            if claim not in CLAIM_NAMES:
                raise RequirementsError(
                    "claims",
                    f"there is no trust claim {claim[:_SHOWN]!r}; there are {', '.join(sorted(CLAIM_NAMES))}",
                )
    for assurance in required.assurance.values():
        if assurance not in ASSURANCES:
            raise RequirementsError(
                "assurance",
                f"there is no assurance {assurance[:_SHOWN]!r}; there are {', '.join(ASSURANCES)}",
            )


def _check_contradictions(required: CallerRequirements, workload: Workload) -> None:
    least = {submod: assurance for submod, _, assurance in workload.required_submods()}
    for submod, assurance in required.assurance.items():
        given = least.get(submod)
        if given is not None and ASSURANCES.index(assurance) < ASSURANCES.index(given):
            raise _contradiction("assurance", f"the workload requires {given} of {submod}")
    if required.max_age_s is not None and required.max_age_s > workload.max_age_s:
        raise _contradiction("max_age_s", f"the workload requires {workload.max_age_s} at most")
    _check_within("reference", required.reference, workload.digests)
    _check_within("regions", required.regions, workload.regions)
    for name in _EXCLUDED:
        allowed = getattr(required, name.removeprefix("not_"))
        if both := set(allowed) & set(getattr(required, name)):
            # Nobody knows which of the two was meant.
            raise _contradiction(name, f"{min(both)[:_SHOWN]} is allowed, and excluded")
    if workload.regions and set(workload.regions) <= set(required.not_regions):
        raise _contradiction("not_regions", "it excludes every region that the workload allows")


def _check_within(name: str, required: tuple[str, ...], allowed: Iterable[str]) -> None:
    if allowed and (others := set(required) - set(allowed)):
        raise _contradiction(name, f"the workload does not allow {min(others)[:_SHOWN]}")


def _contradiction(name: str, why: str) -> RequirementsError:
    return RequirementsError(name, why, code="requirements.contradiction")


def _merged(
    one: Mapping[str, _T], other: Mapping[str, _T], choose: Callable[[tuple[_T, _T]], _T]
) -> dict[str, _T]:
    return {
        name: choose((one[name], other[name]))
        if name in one and name in other
        else (one[name] if name in one else other[name])
        for name in sorted({*one, *other})
    }


def _least(one: int | None, other: int | None) -> int | None:
    return min(filter(None, (one, other)), default=None)
