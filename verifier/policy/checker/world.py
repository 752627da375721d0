"""The world that a policy's names are looked up in: its modules, their rules by path, and the bundle's data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from verifier.policy.checker.report import Source
from verifier.policy.syntax import full_path, head_of, imports_of

Path: TypeAlias = tuple[str, ...]

MAX_DEPTH: Final = 300
"""A rule may have so many levels of its syntax tree: the checker calls itself once for each or less."""


@dataclass(frozen=True, slots=True)
class Import:
    """An imported name."""

    alias: str
    path: Path
    span: Any


@dataclass(eq=False)
class Module:
    """A module as the checker reads it."""

    source: Source
    package: Path
    imports: tuple[Import, ...]
    is_test: bool
    definitions: list[Definition] = field(default_factory=list)

    def imported(self, alias: str) -> Import | None:
        """The import that gives a name."""
        return next((i for i in self.imports if i.alias == alias), None)


@dataclass(eq=False)
class Body:
    """One body of a definition, with the parts of the head that are evaluated after it."""

    statements: list[Any] = field(default_factory=list)
    value: Any | None = None
    """The expression of the value; `None` for true."""
    key: Any | None = None
    """What a set gets."""
    indices: list[Any] = field(default_factory=list)
    """The computed parts of the head's reference, between brackets."""

    @property
    def terms(self) -> list[Any]:
        """All expressions of the head that are evaluated with this body."""
        return [*self.indices, *(part for part in (self.key, self.value) if part is not None)]


@dataclass(eq=False)
class Definition:
    """One definition of a rule, with its else branches."""

    module: Module
    path: Path
    span: Any
    kind: str
    """As in the tree: ``Default``, ``Func``, ``Set`` or ``Compr``."""
    arguments: list[Any] | None
    """The patterns of a function's arguments; `None` for a rule that takes none."""
    is_computed: bool
    """Its head has a computed part, so it defines entries of an object."""
    tail: tuple[str, ...] | None
    """The names after the computed part, if that is one key: ``name[key].tail := value``; otherwise `None`."""
    bodies: list[Body]


class World:
    """Rules by path, and the data."""

    def __init__(self, modules: Sequence[Module], data: Any, mocked: Sequence[Path] = ()) -> None:
        """
        Make a world.

        Args:
            modules: All modules whose rules there are.
            data: The bundle's data.
            mocked: What tests put in place below ``data``: nothing is known of what lies there.
        """
        self.modules = modules
        self.data = data
        self._mocked = mocked
        self.rules: dict[Path, list[Definition]] = {}
        self.packages = {module.package for module in modules}
        self.own: dict[Path, set[str]] = {}
        """By package, the first names of its rules."""
        self._inner: dict[Path, set[str]] = {}
        for module in modules:
            self._add(module.package)
            for definition in module.definitions:
                self.rules.setdefault(definition.path, []).append(definition)
                self.own.setdefault(module.package, set()).add(definition.path[len(module.package)])
                self._add(definition.path)

    def _add(self, path: Path) -> None:
        for length in range(len(path)):
            self._inner.setdefault(path[:length], set()).add(path[length])

    def rule_at(self, names: Sequence[str]) -> Path | None:
        """The rule that a path of names leads to or through: the first on the way."""
        return next(
            (tuple(names[:n]) for n in range(1, len(names) + 1) if tuple(names[:n]) in self.rules), None
        )

    def is_above(self, names: Sequence[str]) -> bool:
        """Whether rules or packages lie below a path."""
        return tuple(names) in self._inner or tuple(names) in self.packages

    def is_mocked(self, names: Sequence[str]) -> bool:
        """Whether a test replaces what lies at a path, above it or below it."""
        return any(tuple(names[: len(path)]) == path[: len(names)] for path in self._mocked)

    def below(self, names: Sequence[str]) -> set[str]:
        """The names of what lies directly below a path: rules, packages, and keys of data."""
        found = set(self._inner.get(tuple(names), ()))
        value = self.document(names)
        return found | set(value) if isinstance(value, Mapping) else found

    def document(self, names: Sequence[str]) -> Any:
        """The data at a path; `Absent` if there are none."""
        value = self.data
        for name in names:
            if not isinstance(value, Mapping) or name not in value:
                return Absent
            value = value[name]
        return value


class Absent:
    """There are no data at a path."""


def read(module: Any, *, is_test: bool) -> tuple[Module, list[Any]]:
    """A module of the engine's syntax tree, and the spans of rules that are too deep to be read."""
    source = Source(module)
    package, _ = full_path(module["ast"]["package"]["refr"], source.text)
    imports = tuple(Import(alias, tuple(path), span) for span, path, alias in imports_of(module, source.text))
    result = Module(source, tuple(package), imports, is_test)
    deep = []
    for rule in module["ast"]["rules"]:
        if _depth_of(rule) > MAX_DEPTH:
            deep.append(next(iter(rule.values()))["span"])
        else:
            result.definitions.append(_definition(result, rule))
    return result, deep


def _depth_of(tree: Any) -> int:
    """How deep a tree is, without recursion."""
    depth, level = 0, [tree]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            part
            for node in level
            for part in (node.values() if isinstance(node, dict) else node)
            if isinstance(part, (dict, list))
        ]
    return depth


def _definition(module: Module, rule: Any) -> Definition:
    kind, head = head_of(rule)
    path, computed = full_path(head["refr"], module.source.text)
    arguments = head.get("args") or None
    if kind == "Func":
        arguments = head.get("args", [])
    return Definition(
        module=module,
        path=(*module.package, *path),
        span=head["span"],
        kind=kind,
        arguments=arguments,
        is_computed=bool(computed),
        tail=_tail(head["refr"], computed),
        bodies=list(_bodies(kind, head, rule, computed)),
    )


def _tail(refr: Any, computed: list[Any]) -> tuple[str, ...] | None:
    names: list[str] = []
    while "RefDot" in refr:
        names.insert(0, str(refr["RefDot"]["field"][1]))
        refr = refr["RefDot"]["refr"]
    is_one = len(computed) == 1 and "RefBrack" in refr and refr["RefBrack"]["index"] is computed[0]
    return tuple(names) if is_one else None


def _bodies(kind: str, head: Any, rule: Any, computed: list[Any]) -> Iterator[Body]:
    if kind == "Default":
        yield Body(value=head["value"])
        return
    value = head["assign"]["value"] if head.get("assign") else None
    key = head.get("key")
    bodies = rule["Spec"]["bodies"]
    if not bodies or bodies[0]["is_else"]:
        yield Body(value=value, key=key, indices=computed)
    for number, body in enumerate(bodies):
        statements = body["query"]["stmts"]
        if body["is_else"]:
            yield Body(statements, value=body["assign"]["value"] if body["assign"] else None)
            continue
        if number > 0:
            # A name of the head means another variable in each body.
            value, key, computed = copy.deepcopy((value, key, computed))
        yield Body(statements, value=value, key=key, indices=computed)
