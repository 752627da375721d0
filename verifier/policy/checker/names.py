"""Names: every rule, function, import and variable is there, is used, and is called as it is defined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from verifier.policy import lint
from verifier.policy.checker import builtins, safety
from verifier.policy.checker.near import suggestion
from verifier.policy.checker.scopes import ROOTS, Called, Local, Reader, Reading, called
from verifier.policy.checker.words import types_of
from verifier.policy.checker.world import Absent, Definition, Module, World
from verifier.policy.lint import Level
from verifier.policy.syntax import start_of

# What to write instead of a function that OPA refuses as deprecated.
_INSTEAD: Final = {
    "any": "Write true in …, or some x in …",
    "all": "Write every x in … { … }",
    "re_match": "Write regex.match",
    "set_diff": "Write a - b",
    "net.cidr_overlap": "Compare the addresses that the bundle's data lists",
}
_LANGUAGE: Final = ("rego", "future")


def check(world: World, module: Module) -> dict[Definition, Reading]:
    """Report what is wrong with the names of a module, and return what each means."""
    reader = Reader(world, module)
    readings = {definition: reader.read(definition) for definition in module.definitions}
    known = [*world.own.get(module.package, ()), *(i.alias for i in module.imports)]
    used: set[str] = set()
    for definition, reading in readings.items():
        for call, names in reading.calls.values() if not module.source.is_full else ():
            _check_call(world, module, reading, call, names)
        safety.check(definition, reading, known)
        _check_unused(module, reading.locals)
        used |= reading.imports
    _check_imports(world, module, used)
    return readings


def _check_call(world: World, module: Module, reading: Reading, call: Any, names: list[str]) -> None:
    source, content, name = module.source, call["Call"], ".".join(names)
    span, given = start_of(content["fcn"]), len(content["params"])
    found = called(world, module, names)
    if found is None:
        if not lint.is_forbidden(name):
            source.error(span, "undefined", _no_function(world, module, names))
        return
    if found.builtin is not None:
        _check_builtin(module, found.builtin, span)
    least, most = _arity(world, found)
    is_statement = id(call) in reading.statements
    if given == least + 1 and is_statement and most is not None and not _is_value(world, found):
        reading.with_result.add(id(call))
    elif given < least or (most is not None and given > most) or _is_value(world, found):
        source.error(span, "arity", _arity_sentence(world, found, name, given))


def _check_builtin(module: Module, builtin: builtins.Builtin, span: Any) -> None:
    name = builtin.name
    if builtin.is_deprecated:
        instead = _INSTEAD.get(name, "Compare the value itself")
        module.source.error(span, "deprecated", f"{name} is deprecated, and OPA refuses it. {instead}")
    elif not builtin.is_here and not lint.is_forbidden(name):
        sentence = f"{name} is a function of OPA that this engine does not have. Put the result into the bundle's data"
        module.source.error(span, "undefined", sentence)


def _no_function(world: World, module: Module, names: list[str]) -> str:
    name = ".".join(names)
    path = tuple(names[1:]) if names[0] == "data" else (*module.package, *names)
    if world.rule_at(path) is not None:
        return f"{name} is not a function. Write it without brackets"
    if len(names) > 1 and names[0] == "data":
        below = world.below(path[:-1])
        prefix = ".".join(["data", *path[:-1]])
        near = suggestion(f"{prefix}.{path[-1]}", (f"{prefix}.{other}" for other in below))
        return f"there is no function {name}.{near}"
    here = (
        builtin.name
        for builtin in builtins.table().values()
        if builtin.is_here and not lint.is_forbidden(builtin.name)
    )
    own = (
        ".".join(path[len(module.package) :])
        for path, definitions in world.rules.items()
        if definitions[0].module.package == module.package and definitions[0].arguments is not None
    )
    imported = (
        f"{i.alias}.{p[-1]}" for i in module.imports for p in _functions(world) if ("data", *p[:-1]) == i.path
    )
    near = suggestion(name, [*own, *imported, *here])
    if not near and (others := [p for p in _functions(world) if p[-1] == names[-1]]):
        near = f" There is data.{'.'.join(min(others))}"
    near = near or " Define it, or use a built-in function"
    return f"there is no function {name}.{near}"


def _functions(world: World) -> Iterable[tuple[str, ...]]:
    return (path for path, found in world.rules.items() if found[0].arguments is not None)


def _arity(world: World, found: Called) -> tuple[int, int | None]:
    """How many arguments a function takes at least and at most; no function takes none."""
    if found.builtin is not None:
        count = len(found.builtin.arguments)
        return count, None if found.builtin.takes_more else count
    assert found.path is not None
    count = len(world.rules[found.path][0].arguments or ())
    return count, count


def _is_value(world: World, found: Called) -> bool:
    return found.path is not None and world.rules[found.path][0].arguments is None


def _arity_sentence(world: World, found: Called, name: str, given: int) -> str:
    count, _ = _arity(world, found)
    if _is_value(world, found):
        return f"{name} is not a function. Write it without brackets"
    types = ""
    if found.builtin is not None:
        types = f" ({'; '.join(types_of(argument) for argument in found.builtin.arguments)})"
    are = "is" if given == 1 else "are"
    plural = "" if count == 1 else "s"
    return f"{name} takes {count} argument{plural}{types}, but {given} {are} given"


def _check_unused(module: Module, found: list[Local]) -> None:
    for local in found:
        if local.uses or local.name in ROOTS:
            continue
        if local.how in ("some", "every"):
            sentence = f"{local.name} is declared and not used. Remove it, or write _"
            module.source.error(local.span, "unused", sentence)
        elif local.how == "assigned":
            _strict(module, local.span, f"{local.name} is not used. Remove it, or write what it is for")
        elif local.how == "argument":
            _strict(module, local.span, f"the argument {local.name} is not used. Write _ in its place")


def _strict(module: Module, span: Any, sentence: str) -> None:
    """What only OPA's strict mode refuses: in tests it is a warning, because they judge nobody."""
    module.source.error(span, "unused", sentence, Level.WARNING if module.is_test else Level.ERROR)


def _check_imports(world: World, module: Module, used: set[str]) -> None:
    for imported in module.imports:
        path, name = imported.path, ".".join(imported.path)
        if path[0] in _LANGUAGE:
            continue
        if imported.alias not in used:
            _strict(module, imported.span, f"the import {name} is not used. Remove it")
        if path[0] == "data" and not is_there(world, path[1:]):
            near = suggestion(path[-1], world.below(path[1:-1])) if len(path) > 1 else ""
            module.source.error(imported.span, "undefined", f"there is nothing at {name}.{near}")


def is_there(world: World, path: tuple[str, ...]) -> bool:
    """Whether a path below ``data`` leads to a rule, a package or data."""
    return (
        world.rule_at(path) is not None
        or world.is_above(path)
        or world.document(path) is not Absent
        or world.is_mocked(path)
    )
