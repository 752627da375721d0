"""Shapes and values in words."""

from __future__ import annotations

from typing import Final

from verifier.policy.checker.shapes import NULL, Array, Object, Scalar, SetOf, Shape, Value, join

_MAX_SHOWN: Final = 14
_MAX_LENGTH: Final = 60


def described(shape: Shape) -> str:
    """A shape in words: ``"called", "late" or null``."""
    return _in_words(shape, with_values=True)


def types_of(shape: Shape) -> str:
    """The types of a shape in words: ``a string or an array of numbers``."""
    return _in_words(shape, with_values=False)


def _in_words(shape: Shape, *, with_values: bool) -> str:
    if shape.options is None:
        return "any value"
    words: dict[str, None] = {}
    for option in shape.options:
        match option:
            case Array(first, rest):
                words[f"an array{_of(join([*first, *([rest] if rest is not None else [])]))}"] = None
            case SetOf(item):
                words[f"a set{_of(item)}"] = None
            case Object():
                words["an object"] = None
            case Scalar(type="null"):
                words["null"] = None
            case Scalar(name, values) if values is None or not with_values:
                words[f"a {name}"] = None
            case Scalar(_, values):
                words |= dict.fromkeys(sorted(shown(value) for value in values or ()))
    return listed(list(words))


def _of(item: Shape) -> str:
    """`` of strings``, if all items have one known type."""
    match item.options:
        case (Scalar(type=name),) if name != NULL:
            return f" of {name}s"
    return ""


def listed(words: list[str]) -> str:
    """Words with commas, and `or` before the last."""
    if len(words) > _MAX_SHOWN:
        words = [*words[: _MAX_SHOWN - 1], "…"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "nothing"


def shown(value: Value) -> str:
    """A value as Rego writes it, in bounded length."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value[:_MAX_LENGTH]}"'
        case _:
            return str(value)[:_MAX_LENGTH]
