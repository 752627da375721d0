"""Rules that cannot be defined together."""

from __future__ import annotations

from collections.abc import Sequence

from verifier.policy.checker.scopes import CLOSURES, operands
from verifier.policy.checker.world import Definition, Path, World
from verifier.policy.syntax import kind_of


def check(world: World) -> None:
    """Report rules that contradict each other, or the bundle's data, in what they are."""
    for path, definitions in world.rules.items():
        _check_together(path, definitions)
        _check_path(world, path, definitions)
        for definition in definitions:
            if definition.kind == "Default":
                _check_default(definition)


def _check_together(path: Path, definitions: Sequence[Definition]) -> None:
    first = definitions[0]
    defaults = [d for d in definitions if d.kind == "Default"]
    for other in defaults[1:]:
        _report(other, f"{path[-1]} has two defaults. Remove one")
    for other in definitions[1:]:
        if (first.arguments is None) != (other.arguments is None):
            sentence = f"{path[-1]} is a function and a rule. Give one of them another name"
        elif len(first.arguments or ()) != len(other.arguments or ()):
            sentence = (
                f"{path[-1]} takes {_count(first)} in line {first.span['line']}, and {_count(other)} here"
            )
        elif "Default" not in (first.kind, other.kind) and _form(first) != _form(other):
            sentence = f"{path[-1]} is {_form(first)} in line {first.span['line']}, and {_form(other)} here"
        elif "Default" in (first.kind, other.kind) and "a set" in (_form(first), _form(other)):
            sentence = f"{path[-1]} is a set, and a set has no default. Remove the default"
        else:
            continue
        _report(other, sentence)


def _count(definition: Definition) -> str:
    count = len(definition.arguments or ())
    return f"{count} argument{'' if count == 1 else 's'}"


def _form(definition: Definition) -> str:
    if definition.kind == "Set":
        return "a set" if not definition.is_computed else "an object"
    return "an object" if definition.is_computed else "a value"


def _check_path(world: World, path: Path, definitions: Sequence[Definition]) -> None:
    if path[-1] in ("input", "data") and len(path) == len(definitions[0].module.package) + 1:
        _report(definitions[0], f"{path[-1]} is the name of a root. Give the rule another name")
    for length in range(1, len(path)):
        above = world.rules.get(path[:length])
        if above and any(d.kind != "Default" and _form(d) != "an object" for d in above):
            sentence = (
                f"{'.'.join(path[length - 1 :])} lies in {path[length - 1]}, which is {_form(above[0])}. "
                "Give one of them another name"
            )
            _report(definitions[0], sentence)
    if path in world.packages:
        _report(
            definitions[0], f"there is a package data.{'.'.join(path)} too. Give one of them another name"
        )


def _check_default(definition: Definition) -> None:
    work = [value for body in definition.bodies for value in [body.value] if value is not None]
    while work:
        expr = work.pop()
        kind, _ = kind_of(expr)
        if kind in ("Var", "RefDot", "RefBrack", "Call"):
            _report(
                definition,
                f"the default of {definition.path[-1]} must be a constant. Use else, or another rule",
            )
            return
        if kind not in CLOSURES:
            work += operands(expr)


def _report(definition: Definition, sentence: str) -> None:
    definition.module.source.error(definition.span, "conflict", sentence)
