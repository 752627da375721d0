"""
The trust values by name, for policies: ``data.ar4si``, from the one table of `verifier.results`.

A bundle carries its own copy, so that its digest covers what its rules mean and other tools
can evaluate it; a copy whose numbers are not this verifier's is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from verifier.trust import ANY_VALUES, TRUST_CLAIMS


def names() -> dict[str, dict[str, int]]:
    """By claim, dashes as underscores, the number of each name."""
    return {
        claim.name.replace("-", "_"): {
            name: value for value, (name, _) in {**claim.values, **ANY_VALUES}.items()
        }
        for claim in TRUST_CLAIMS
    }


def to_json() -> bytes:
    """``ar4si/data.json`` as this verifier has it."""
    return msgspec.json.format(msgspec.json.encode(names()), indent=2) + b"\n"


def check(given: Any) -> None:
    """
    That names of a bundle have this verifier's numbers; it may have fewer of them.

    Raises:
        ValueError: another number, or a name that this verifier does not know.
    """
    known = names()
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004
    for claim, values in given.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"{claim}: not a JSON object")  # noqa: TRY004
        for name, value in values.items():
            expected = known.get(claim, {}).get(name)
            if type(value) is not int or value != expected:
                raise ValueError(f"{claim}.{name} is {str(value)[:20]}, and this verifier has {expected}")
