"""
Shapes: which values an expression may have, as far as a policy's text, the schema and the data tell.

A shape always covers every value that can occur, and often more.  So what a shape excludes is
certain, and only that becomes a finding.  Types are those of OPA's checker; scalars may also list
their values, which is how a comparison with a misspelt one is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

STRING: Final = "string"
NUMBER: Final = "number"
BOOLEAN: Final = "boolean"
NULL: Final = "null"

Value: TypeAlias = str | int | float | bool | None
"""A value of JSON that has no parts."""

_MAX_VALUES: Final = 256
"""A shape lists so many values of a scalar at most; with more it only has their type."""
_MAX_OPTIONS: Final = 24
"""A shape has so many options at most; with more it is any value."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string, number, boolean or null."""

    type: str
    values: frozenset[Value] | None = None
    """The values that it may have; `None` for all of the type."""
    is_written: bool = False
    """Each of the values is written in the policy's own text."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array: the shapes of its first items, and of the others if there may be others."""

    first: tuple[Shape, ...]
    rest: Shape | None = None

    def at(self, index: int) -> Shape | None:
        """The shape of an item; `None` if there is none."""
        return self.first[index] if 0 <= index < len(self.first) else self.rest


@dataclass(frozen=True, slots=True)
class SetOf:
    """A set."""

    item: Shape


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object."""

    name: str
    shape: Shape
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Object:
    """An object: its known fields, and the shapes of other keys and their values if there may be others."""

    fields: tuple[Field, ...]
    rest: tuple[Shape, Shape] | None = None
    is_written: bool = False
    """It stands in the policy's own text."""

    def field(self, name: str) -> Field | None:
        """The field of this name."""
        return next((f for f in self.fields if f.name == name), None)

    def at(self, name: str) -> Shape | None:
        """The shape of the value below a string; `None` if there is none."""
        if (known := self.field(name)) is not None:
            return known.shape
        return self.rest[1] if self.rest and meets(self.rest[0], written(name)) else None


Option: TypeAlias = Scalar | Array | SetOf | Object


@dataclass(frozen=True, slots=True)
class Shape:
    """Any of the options; `None` means any value at all."""

    options: tuple[Option, ...] | None

    @property
    def is_any(self) -> bool:
        """Whether nothing is known."""
        return self.options is None

    @property
    def is_never(self) -> bool:
        """Whether there is no such value."""
        return self.options == ()


ANY: Final = Shape(None)
NEVER: Final = Shape(())
A_STRING: Final = Shape((Scalar(STRING),))
A_NUMBER: Final = Shape((Scalar(NUMBER),))
A_BOOLEAN: Final = Shape((Scalar(BOOLEAN),))


def written(value: Value) -> Shape:
    """The shape of a literal."""
    return Shape((Scalar(type_of(value), frozenset([value]), is_written=True),))


def type_of(value: Value) -> str:
    """The name of a scalar's type."""
    match value:
        case None:
            return NULL
        case bool():
            return BOOLEAN
        case str():
            return STRING
        case _:
            return NUMBER


def join(shapes: Iterable[Shape]) -> Shape:
    """The shape of values that have one of *shapes*."""
    scalars: dict[str, Scalar] = {}
    others: dict[Option, None] = {}
    for shape in shapes:
        if shape.options is None:
            return ANY
        for option in shape.options:
            if isinstance(option, Scalar):
                known = scalars.get(option.type)
                scalars[option.type] = option if known is None else _both(known, option)
            else:
                others[option] = None
    if len(others) > _MAX_OPTIONS:
        return ANY
    return Shape((*(scalars[name] for name in sorted(scalars)), *others))


def _both(a: Scalar, b: Scalar) -> Scalar:
    values = None if a.values is None or b.values is None else a.values | b.values
    if values is not None and len(values) > _MAX_VALUES:
        values = None
    return Scalar(a.type, values, a.is_written and b.is_written)


def meets(a: Shape, b: Shape) -> bool:
    """Whether a value can have both shapes."""
    if a.options is None or b.options is None:
        return a.options != () and b.options != ()
    return any(_options_meet(x, y) for x in a.options for y in b.options)


def _options_meet(a: Option, b: Option) -> bool:
    match a, b:
        case Scalar(), Scalar():
            if a.type != b.type:
                return False
            # Constants of the policy are its switches: that one is off now is no mistake.
            return (
                (a.is_written and b.is_written)
                or a.values is None
                or b.values is None
                or not a.values.isdisjoint(b.values)
            )
        case Array(), Array():
            for index in range(max(len(a.first), len(b.first))):
                x, y = a.at(index), b.at(index)
                if x is None or y is None or not meets(x, y):
                    return False
            return True
        case SetOf(), SetOf():
            return meets(a.item, b.item)
        case Object(), Object():
            return _fields_meet(a, b) and _fields_meet(b, a)
    return False


def _fields_meet(a: Object, b: Object) -> bool:
    for field in a.fields:
        other = b.at(field.name)
        if field.is_required and (other is None or not meets(field.shape, other)):
            return False
    return True


def select(shape: Shape, key: Shape) -> Shape:
    """The shape of ``x[key]``; `NEVER` if it has no value whatever x is."""
    if shape.options is None:
        return ANY
    return join(found for option in shape.options for found in _select(option, key))


def _select(option: Option, key: Shape) -> Iterable[Shape]:
    match option:
        case Array():
            if key.options is None or any(isinstance(k, Scalar) and k.type == NUMBER for k in key.options):
                yield from _items_at(option, key)
        case SetOf():
            if meets(option.item, key):
                yield key if option.item.is_any else option.item
        case Object():
            if (name := only_string(key)) is not None:
                if (found := option.at(name)) is not None:
                    yield found
                return
            for field in option.fields:
                if meets(key, written(field.name)):
                    yield field.shape
            if option.rest and meets(option.rest[0], key):
                yield option.rest[1]


def _items_at(array: Array, key: Shape) -> Iterable[Shape]:
    index = only_value(key, NUMBER)
    if isinstance(index, int):
        if (found := array.at(index)) is not None:
            yield found
        return
    yield from array.first
    if array.rest is not None:
        yield array.rest


def only_value(shape: Shape, type_: str) -> Value:
    """The only value of a shape, if it has one of this type; otherwise `None`."""
    match shape.options:
        case (Scalar() as only,) if only.type == type_ and only.values is not None and len(only.values) == 1:
            return next(iter(only.values))
    return None


def only_string(shape: Shape) -> str | None:
    """The only string that a shape may be."""
    value = only_value(shape, STRING)
    return value if isinstance(value, str) else None


def elements(shape: Shape) -> tuple[Shape, Shape]:
    """The shapes of key and value that ``some key, value in x`` binds; both `NEVER` if x is no collection."""
    if shape.options is None:
        return ANY, ANY
    keys: list[Shape] = []
    values: list[Shape] = []
    for option in shape.options:
        match option:
            case Array(first, rest):
                keys.append(A_NUMBER)
                values += [*first, *([rest] if rest is not None else [])]
            case SetOf(item):
                keys.append(item)
                values.append(item)
            case Object(fields, other, is_written):
                keys += [
                    written(f.name) if is_written else Shape((Scalar(STRING, frozenset([f.name])),))
                    for f in fields
                ]
                values += [f.shape for f in fields]
                if other is not None:
                    keys.append(other[0])
                    values.append(other[1])
    return join(keys), join(values)


def filtered(shape: Shape, path: tuple[str, ...], wanted: Shape) -> Shape:
    """The options of a shape whose part below *path* can have the shape *wanted*."""
    if shape.options is None:
        return shape
    kept = []
    for option in shape.options:
        part = Shape((option,))
        for name in path:
            part = select(part, written(name))
        if meets(part, wanted):
            kept.append(option)
    return Shape(tuple(kept))


def without(shape: Shape, path: tuple[str, ...], value: Value) -> Shape:
    """The options of a shape whose part below *path* can be absent or have another value than *value*."""
    if shape.options is None:
        return shape
    return Shape(tuple(option for option in shape.options if not _is_only(_sure(option, path), value)))


def _sure(option: Option, path: tuple[str, ...]) -> Shape:
    """The shape below a path, if something is there for certain; otherwise any value."""
    part = Shape((option,))
    for name in path:
        match part.options:
            case (Object() as known,) if (found := known.field(name)) is not None and found.is_required:
                part = found.shape
            case _:
                return ANY
    return part


def _is_only(shape: Shape, value: Value) -> bool:
    match shape.options:
        case (Scalar() as only,):
            return only.type == type_of(value) and only.values == frozenset([value])
    return False


def strings(shape: Shape) -> frozenset[str] | None:
    """The strings that a shape may be, if they are all known."""
    for option in shape.options or ():
        if isinstance(option, Scalar) and option.type == STRING:
            return (
                None if option.values is None else frozenset(v for v in option.values if isinstance(v, str))
            )
    return None


def are_written(shape: Shape) -> bool:
    """Whether the strings of a shape stand in the policy's own text."""
    return any(
        isinstance(option, Scalar) and option.type == STRING and option.is_written
        for option in shape.options or ()
    )


def is_written(shape: Shape) -> bool:
    """Whether a shape has only values that stand in the policy's own text."""
    return shape.options is not None and all(
        isinstance(option, Scalar) and option.is_written for option in shape.options
    )
