"""
The names of the trust values for policies, ``data.ar4si``, from the table in `verifier.trust`.

A bundle has its own copy, so that its digest covers what its rules mean and other tools can
evaluate it.  A copy with other numbers than this verifier's is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from verifier.trust import ANY_VALUES, TRUST_CLAIMS


def names() -> dict[str, dict[str, int]]:
    """By claim, with underscores for dashes, the number of each name."""
    return {
        claim.name.replace("-", "_"): {
            name: value for value, (name, _) in {**claim.values, **ANY_VALUES}.items()
        }
        for claim in TRUST_CLAIMS
    }


def to_json() -> bytes:
    """The content of ``ar4si/data.json``."""
    return msgspec.json.format(msgspec.json.encode(names()), indent=2) + b"\n"


def check(content: Any) -> None:
    """
    Check that a bundle's names have this verifier's numbers.  The bundle may have fewer names.

    Raises:
        ValueError: a name has another number, or this verifier does not know it.
    """
    known = names()
    if not isinstance(content, dict):
        raise ValueError("the file is not a JSON object")  # noqa: TRY004
    for claim, values in content.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"{claim} is not a JSON object")  # noqa: TRY004
        for name, value in values.items():
            expected = known.get(claim, {}).get(name)
            if type(value) is not int or value != expected:
                raise ValueError(f"{claim}.{name} is {str(value)[:20]}, but this verifier has {expected}")
