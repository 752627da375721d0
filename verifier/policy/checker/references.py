"""Which rules a definition refers to, and the order in which rules can be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from verifier.policy.checker.scopes import Local, Reading, RuleName, called
from verifier.policy.checker.world import Definition, Import, Path, World
from verifier.policy.syntax import kind_of, path_of

_REFERENCES: Final = ("Var", "RefDot", "RefBrack")


def target(reading: Reading, base: Any, names: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """What the base of a reference means: ``data`` or ``input``, and the names from there; `None` for a variable."""
    name = base["Var"]["value"]
    if name in ("data", "input"):
        return name, tuple(names)
    match reading.meanings.get(id(base)):
        case Import(path=path):
            return path[0], (*path[1:], *names)
        case RuleName(path=path):
            return "data", (*path, *names)
        case Local():
            return None
    return None


def order(world: World, readings: Mapping[Definition, Reading]) -> list[Path]:
    """All rules, each after those that it refers to.  Recursion is reported elsewhere; here any order will do."""
    edges = {
        path: sorted({to for d in definitions if d in readings for to in _references(world, d, readings[d])})
        for path, definitions in world.rules.items()
    }
    done: list[Path] = []
    seen: set[Path] = set()
    for start, first in edges.items():
        stack: list[tuple[Path, Iterator[Path]]] = [] if start in seen else [(start, iter(first))]
        seen.add(start)
        while stack:
            path, waiting = stack[-1]
            following = next((to for to in waiting if to not in seen), None)
            if following is None:
                done.append(path)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(edges[following])))
    return done


def _references(world: World, definition: Definition, reading: Reading) -> Iterator[Path]:
    module = definition.module
    for _, names in reading.calls.values():
        found = called(world, module, names)
        if found is not None and found.path is not None:
            yield found.path
    work: list[Any] = [[body.statements, body.terms] for body in definition.bodies]
    while work:
        node = work.pop()
        if isinstance(node, list):
            work += node
        elif isinstance(node, dict) and "line" not in node:
            if len(node) == 1 and kind_of(node)[0] in _REFERENCES:
                base, names, computed = path_of(node, module.source.text)
                work += computed
                if "Var" not in base:
                    work.append(base)
                else:
                    yield from _rule_of(world, target(reading, base, names))
            else:
                work += node.values()


def _rule_of(world: World, found: tuple[str, tuple[str, ...]] | None) -> Iterator[Path]:
    if found is not None and found[0] == "data" and (path := world.rule_at(found[1])) is not None:
        yield path
