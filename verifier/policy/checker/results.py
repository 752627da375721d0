"""What built-in functions and operators give, where it depends on their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from verifier.policy.checker.builtins import Builtin
from verifier.policy.checker.shapes import (
    A_NUMBER,
    ANY,
    Array,
    SetOf,
    Shape,
    elements,
    join,
    only_string,
    select,
)


def of_call(builtin: Builtin, arguments: Sequence[Shape]) -> Shape:
    """The shape of a call's result."""
    match builtin.name, arguments:
        case "sort" | "array.reverse", [values]:
            return _array(elements(values)[1])
        case "array.slice", [values, _, _]:
            return _array(elements(values)[1])
        case "array.concat", [a, b]:
            return _array(join([elements(a)[1], elements(b)[1]]))
        case "object.keys", [of]:
            keys, _ = elements(of)
            return Shape((SetOf(ANY if keys.is_never else keys),))
        case "object.get", [of, key, default] if only_string(key) is not None:
            found = select(of, key)
            return ANY if found.is_never else join([found, default])
        case "max" | "min", [values]:
            value = elements(values)[1]
            return ANY if value.is_never else value
    return builtin.result


def of_operator(name: str, a: Shape, b: Shape) -> Shape:
    """The shape of what an operator gives."""
    match name:
        case "or":
            return _set(join([elements(a)[1], elements(b)[1]]))
        case "and":
            return _set(elements(a)[1])
        case "minus":
            are_sets = _only_sets(a) and _only_sets(b)
            are_numbers = not a.is_any and not b.is_any and not _sets(a) and not _sets(b)
            return _set(elements(a)[1]) if are_sets else A_NUMBER if are_numbers else ANY
    return A_NUMBER


def never_subtracts(a: Shape, b: Shape) -> bool:
    """Whether one is a set and the other a number."""
    if a.is_any or b.is_any:
        return False
    return (_only_sets(a) and not _sets(b)) or (_only_sets(b) and not _sets(a))


def _sets(shape: Shape) -> bool:
    return any(isinstance(option, SetOf) for option in shape.options or ())


def _only_sets(shape: Shape) -> bool:
    return shape.options is not None and all(isinstance(option, SetOf) for option in shape.options)


def _array(item: Shape) -> Shape:
    return Shape((Array((), ANY if item.is_never else item),))


def _set(item: Shape) -> Shape:
    return Shape((SetOf(ANY if item.is_never else item),))
