"""The shapes of the input, from its JSON schema, and of a bundle's data."""

from __future__ import annotations

from collections.abc import Mapping
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
    Shape,
    join,
    type_of,
)

_MAX_DEPTH: Final = 24
_MAX_NODES: Final = 20_000
"""Larger data are any value: to look at all of them would take too long."""
_MAX_NAMED: Final = 64
"""Objects with more keys are tables whose rows have one shape."""


def of_schema(schema: Mapping[str, Any]) -> Shape:
    """The shape of what a JSON schema allows.  What it does not say in a way known here is any value."""
    return _of_schema(schema, schema.get("$defs", {}), _MAX_DEPTH)


def _of_schema(form: Mapping[str, Any], named: Mapping[str, Any], depth: int) -> Shape:
    if depth == 0:
        return ANY
    if "$ref" in form:
        return _of_schema(named[str(form["$ref"]).rpartition("/")[2]], named, depth - 1)
    if "anyOf" in form:
        return join(_of_schema(option, named, depth - 1) for option in form["anyOf"])
    if "enum" in form:
        return join(Shape((Scalar(type_of(value), frozenset([value])),)) for value in form["enum"])
    match form.get("type"):
        case "object":
            return _object_of_schema(form, named, depth)
        case "array":
            return Shape((Array((), _of_schema(form.get("items", {}), named, depth - 1)),))
        case "string":
            return A_STRING
        case "integer" | "number":
            return A_NUMBER
        case "boolean":
            return A_BOOLEAN
        case "null":
            return Shape((Scalar(NULL),))
    return ANY


def _object_of_schema(form: Mapping[str, Any], named: Mapping[str, Any], depth: int) -> Shape:
    required = form.get("required", ())
    fields = tuple(
        Field(name, _of_schema(part, named, depth - 1), is_required=name in required)
        for name, part in form.get("properties", {}).items()
    )
    others = form.get("additionalProperties")
    rest = None
    if isinstance(others, Mapping):
        rest = (A_STRING, _of_schema(others, named, depth - 1))
    elif others or not fields:
        rest = (A_STRING, ANY)
    return Shape((Object(fields, rest),))


def of_data(value: Any) -> Shape:
    """
    The shape of a document of data.

    Scalars have no values here, and rows of a table have the shape of all rows: whoever keeps the
    tables changes them without looking at the rules.  Null stands for a value that is not given.
    """
    return _Data().shape(value, _MAX_DEPTH)


class _Data:
    def __init__(self) -> None:
        self._left = _MAX_NODES

    def shape(self, value: Any, depth: int) -> Shape:
        self._left -= 1
        if self._left < 0 or depth == 0 or value is None:
            return ANY
        match value:
            case dict():
                return self._object(value, depth)
            case list():
                return Shape((Array((), self._together(value, depth) if value else ANY),))
            case bool():
                return A_BOOLEAN
            case str():
                return A_STRING
        return A_NUMBER

    def _object(self, value: Mapping[str, Any], depth: int) -> Shape:
        if not value:
            return Shape((Object((), (ANY, ANY)),))
        if len(value) > _MAX_NAMED:
            return Shape((Object((), (A_STRING, self._together(value.values(), depth))),))
        return Shape((Object(tuple(Field(str(k), self.shape(v, depth - 1)) for k, v in value.items())),))

    def _together(self, values: Any, depth: int) -> Shape:
        found = ANY
        for number, value in enumerate(values):
            shape = self.shape(value, depth - 1)
            found = shape if number == 0 else join([found, shape])
            if found.is_any:
                break
        return found
