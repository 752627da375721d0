"""What there is to say of a part that a value does not have."""

from __future__ import annotations

from verifier.policy.checker.near import nearest
from verifier.policy.checker.shapes import Array, Object, SetOf, Shape, only_string
from verifier.policy.checker.words import described, listed, types_of


def sentence(text: str, shape: Shape, key: Shape) -> str:
    """
    Why ``x[key]`` is never defined, and what to write.

    Args:
        text: x as the policy has it.
        shape: What x is.
        key: What the key is.
    """
    options = shape.options or ()
    objects = [option for option in options if isinstance(option, Object)]
    if not objects:
        if any(isinstance(option, Array) for option in options):
            return f"{text} is an array, and has no item {described(key)}. Use a number, or some … in"
        if any(isinstance(option, SetOf) for option in options):
            return f"{text} is a set, and has no element that is {described(key)}. Ask with in"
        return f"{text} is {types_of(shape)}, which has no parts. Use it as a whole"
    names = sorted({field.name for option in objects for field in option.fields})
    name = only_string(key)
    if name is None:
        return f"{text} has no key that is {described(key)}. It has {listed(names) if names else 'none'}"
    near = nearest(name, names)
    if near is not None:
        return f"{text} has no field {name}. Did you mean {near}?"
    return f"{text} has no field {name}. It has {listed(names)}" if names else f"{text} has no field {name}"
