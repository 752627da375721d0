"""What there is to say of a comparison: that it is never true, or that a value that it names does not exist."""

from __future__ import annotations

from collections.abc import Iterator

from verifier.policy.checker.near import nearest
from verifier.policy.checker.shapes import Object, Shape, are_written, is_written, meets, strings
from verifier.policy.checker.words import described, shown, types_of


def never_equal(a: Shape, a_text: str, b: Shape, b_text: str) -> str | None:
    """Why ``a == b`` is never true; `None` if it may be."""
    if a.is_any or b.is_any or a.is_never or b.is_never or meets(a, b):
        return None
    if is_written(a) and not is_written(b):
        a, a_text, b, b_text = b, b_text, a, a_text
    if is_written(b) and not is_written(a):
        return _never(a_text, described(b), a, _near(b, a))
    return (
        f"{a_text} is {types_of(a)}, and {b_text} is {types_of(b)}, so they are never equal. "
        "Compare what can be equal"
    )


def unknown_values(a: Shape, a_text: str, b: Shape, b_text: str) -> Iterator[str]:
    """The strings that one side names and that the other, a field of the input, never has."""
    for enumerated, text, named in ((a, a_text, b), (b, b_text, a)):
        known, used = strings(enumerated), strings(named)
        if known is None or used is None or are_written(enumerated) or not are_written(named):
            continue
        for value in sorted(used - known):
            yield _never(text, shown(value), enumerated, nearest(value, known))


def _never(text: str, value: str, shape: Shape, near: str | None) -> str:
    if near is not None:
        return f"{text} is never {value}. Did you mean {shown(near)}?"
    return f"{text} is never {value}. It is {described(shape)}"


def unknown_keys(table: Shape, table_text: str, key: Shape, key_text: str) -> Iterator[str]:
    """The keys of a table in the policy's text that a field of the input never has."""
    known = strings(key)
    if known is None or are_written(key):
        return
    for option in table.options or ():
        if isinstance(option, Object) and option.is_written and option.rest is None:
            for field in option.fields:
                if field.name not in known:
                    yield f"{table_text} has the key {shown(field.name)}. " + _never(
                        key_text, shown(field.name), key, nearest(field.name, known)
                    )


def _near(written: Shape, other: Shape) -> str | None:
    known = strings(other) or frozenset()
    return next((near for name in sorted(strings(written) or ()) if (near := nearest(name, known))), None)
