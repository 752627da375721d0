"""
The built-in functions of Rego: their arguments and results, from OPA's own table, and which the engine has.

``fixtures/record_builtins.py`` writes ``builtins.json``, which says where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from verifier.policy.checker.shapes import (
    A_BOOLEAN,
    A_NUMBER,
    A_STRING,
    ANY,
    NULL,
    Array,
    Field,
    Object,
    Scalar,
    SetOf,
    Shape,
    join,
)

_TABLE: Final = Path(__file__).with_name("builtins.json")
_SCALARS: Final = {
    "string": A_STRING,
    "number": A_NUMBER,
    "boolean": A_BOOLEAN,
    "null": Shape((Scalar(NULL),)),
}


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in function."""

    name: str
    arguments: tuple[Shape, ...]
    result: Shape
    takes_more: bool
    """It takes any number of arguments."""
    is_here: bool
    """The engine has it."""
    is_deprecated: bool
    """OPA refuses it."""


@cache
def table() -> Mapping[str, Builtin]:
    """All functions that OPA has, by name."""
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))["builtins"]
    return {
        name: Builtin(
            name=name,
            arguments=tuple(_shape(argument) for argument in row["args"]),
            result=_shape(row["result"]),
            takes_more="variadic" in row,
            is_here=row.get("here", False),
            is_deprecated=row.get("deprecated", False),
        )
        for name, row in rows.items()
    }


def _shape(declared: Mapping[str, Any]) -> Shape:
    """The shape of one of OPA's types."""
    match declared["type"]:
        case "any" if "of" in declared:
            return join(_shape(option) for option in declared["of"])
        case "any":
            return ANY
        case "array":
            first = tuple(_shape(item) for item in declared.get("static", ()))
            return Shape((Array(first, _shape(declared["dynamic"]) if "dynamic" in declared else None),))
        case "set":
            return Shape((SetOf(_shape(declared["of"])),))
        case "object":
            fields = tuple(Field(f["key"], _shape(f["value"])) for f in declared.get("static", ()))
            rest = declared.get("dynamic")
            return Shape((Object(fields, (_shape(rest["key"]), _shape(rest["value"])) if rest else None),))
        case name:
            return _SCALARS[name]
