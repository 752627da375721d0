"""
Which rules can reach themselves: a graph of references over all modules, built from regorus' syntax tree.

Nothing but its stack limits the engine's recursion, so lint refuses a cycle before anything is
evaluated.  A reference that is not known exactly reaches every rule that it might: ``data.a[x]``
reaches all rules below ``data.a``.  Nothing here calls itself, because the tree comes from a
stranger and may be deep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from verifier.policy.syntax import (
    full_path,
    head_of,
    imports_of,
    kind_of,
    path_of,
    position_of,
    text_of,
)

_MAX_SHOWN: Final = 8
"""A message names so many rules of a cycle at most."""

_Work: TypeAlias = list[tuple[str, Any]]


@dataclass(frozen=True)
class Cycle:
    """A rule that reaches itself: the place of its first reference on the way, and the rules on the way."""

    file: str
    line: int
    column: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        """``a → b → a``."""
        names = self.names
        if len(names) > _MAX_SHOWN:
            names = (*names[: _MAX_SHOWN - 2], "…", names[-1])
        return " → ".join(names)


@dataclass
class _Place:
    """A name below ``data``, with the places below it.  It has three vertices in the graph."""

    number: int
    parent: int
    children: dict[str, int] = field(default_factory=dict)
    label: tuple[str, str] | None = None
    """Package and name, if rules are defined here."""


class _Graph:
    """
    Three vertices for each place: its rule; its rule and all below it; its rule and all above it.

    So a reference is two edges, however many rules it reaches, and the size of the graph is linear.
    """

    def __init__(self) -> None:
        self.places = [_Place(0, -1)]
        self.sites: dict[int, dict[int, tuple[str, int, int]]] = {}
        """By rule, the place of its first reference to each vertex."""

    def place(self, path: Sequence[str]) -> _Place:
        at = self.places[0]
        for name in path:
            number = at.children.get(name)
            if number is None:
                number = at.children[name] = len(self.places)
                self.places.append(_Place(number, at.number))
            at = self.places[number]
        return at

    def walk(self, at: _Place, path: Sequence[str]) -> tuple[_Place, bool]:
        """The place at the end of *path*, or the last place that exists on the way; and whether it is the end."""
        for name in path:
            number = at.children.get(name)
            if number is None:
                return at, False
            at = self.places[number]
        return at, True

    def edges(self, vertex: int) -> Iterator[int]:
        number, role = divmod(vertex, 3)
        place = self.places[number]
        if role == _RULE:
            yield from self.sites.get(number, ())
            return
        if place.label is not None:
            yield 3 * number + _RULE
        if role == _BELOW:
            yield from (3 * child + _BELOW for child in place.children.values())
        elif place.parent >= 0:
            yield 3 * place.parent + _ABOVE


_RULE, _BELOW, _ABOVE = range(3)


def cycles(modules: Sequence[Any]) -> Iterator[Cycle]:
    """For each set of rules that reach one another, a shortest cycle through the first of them."""
    graph = _graph_of(modules)
    for component in _components(graph):
        rules = [vertex for vertex in component if vertex % 3 == _RULE]
        if rules:
            # Places are numbered in the order of definition, so the smallest number is the first rule.
            yield _cycle(graph, min(rules), component)


def references_to(
    modules: Sequence[Any], paths: Collection[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], str, int, int]]:
    """Each reference to a rule at one of *paths*, or to all below a place above it; of each rule the first."""
    graph = _graph_of(modules)
    wanted = {graph.place(path).number: [path] for path in paths}
    below: dict[int, list[tuple[str, ...]]] = {}
    for number, found in wanted.items():
        above = graph.places[number].parent
        while above >= 0:
            below.setdefault(above, []).extend(found)
            above = graph.places[above].parent
    for sites in graph.sites.values():
        for vertex, site in sites.items():
            number, role = divmod(vertex, 3)
            for path in below.get(number, ()) if role == _BELOW else ():
                yield path, *site
            while role == _ABOVE and number >= 0:
                for path in wanted.get(number, ()):
                    yield path, *site
                number = graph.places[number].parent


def _graph_of(modules: Sequence[Any]) -> _Graph:
    graph = _Graph()
    readers = [_Reader(graph, module) for module in modules]
    for reader in readers:
        reader.define()
    for reader in readers:
        reader.refer()
    return graph


def _cycle(graph: _Graph, start: int, component: set[int]) -> Cycle:
    reached_from: dict[int, int] = {}
    queue = deque([start])
    while start not in reached_from:
        vertex = queue.popleft()
        for target in graph.edges(vertex):
            if target in component and target not in reached_from:
                reached_from[target] = vertex
                queue.append(target)
    way = [start]
    while len(way) == 1 or way[-1] != start:
        way.append(reached_from[way[-1]])
    way.reverse()
    first = graph.places[start // 3].label
    assert first is not None
    labels = [graph.places[vertex // 3].label for vertex in way if vertex % 3 == _RULE]
    names = [
        name if package == first[0] else f"data.{package}.{name}" for package, name in filter(None, labels)
    ]
    return Cycle(*graph.sites[start // 3][way[1]], names=tuple(names))


def _components(graph: _Graph) -> Iterator[set[int]]:
    """Strongly connected components that hold a cycle (Tarjan 1972), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    for root in [3 * number + _RULE for number in graph.sites]:
        if root in index:
            continue
        stack: list[tuple[int, Iterator[int]]] = []
        enter: int | None = root
        while stack or enter is not None:
            if enter is not None:
                index[enter] = low[enter] = len(index)
                path.append(enter)
                on_path.add(enter)
                stack.append((enter, graph.edges(enter)))
                enter = None
            vertex, targets = stack[-1]
            for target in targets:
                if target not in index:
                    enter = target
                    break
                if target in on_path:
                    low[vertex] = min(low[vertex], index[target])
            if enter is not None:
                continue
            stack.pop()
            if stack:
                low[stack[-1][0]] = min(low[stack[-1][0]], low[vertex])
            if low[vertex] == index[vertex]:
                component: set[int] = set()
                while vertex not in component:
                    component.add(path.pop())
                on_path -= component
                # A component of one vertex is not a cycle: even a rule that refers to itself reaches
                # itself through another vertex of its place.
                if len(component) > 1:
                    yield component


class _Reader:
    """
    Reads the references in one module.

    A name is local from its declaration (arguments, ``some``, ``every``, ``:=``) to the end of its
    query.  Before its declaration, and in calls, the name means the rule.
    """

    def __init__(self, graph: _Graph, module: Any) -> None:
        self._graph = graph
        self._rules = module["ast"]["rules"]
        self._source = module["source"]["contents"].encode()
        self._file = module["source"]["file"]
        self._package, _ = full_path(module["ast"]["package"]["refr"], self._source)
        self._imports = list(imports_of(module, self._source))
        self._aliases: dict[str, tuple[_Place, bool]] = {}
        self._home = graph.places[0]
        self._local: dict[str, int] = {}
        self._scopes: list[list[str]] = []
        self._sites: dict[int, tuple[str, int, int]] = {}

    def define(self) -> None:
        """Add the module's rules to the graph."""
        self._home = self._graph.place(self._package)
        for rule in self._rules:
            path, _ = full_path(head_of(rule)[1]["refr"], self._source)
            place = self._graph.place([*self._package, *path])
            place.label = place.label or (".".join(self._package), ".".join(path))
            self._graph.sites.setdefault(place.number, {})

    def refer(self) -> None:
        """Add the rules' references to the graph.  The rules of all modules must be in it."""
        for _, path, alias in self._imports:
            if path[0] == "data":
                self._aliases[alias] = self._graph.walk(self._graph.places[0], path[1:])
        for rule in self._rules:
            self._add_references(rule)

    def _add_references(self, rule: Any) -> None:
        kind, head = head_of(rule)
        path, computed = full_path(head["refr"], self._source)
        place, _ = self._graph.walk(self._home, path)
        self._sites = self._graph.sites[place.number]
        values = [*computed, *filter(None, [head.get("key"), head.get("value")])]
        if head.get("assign"):
            values.append(head["assign"]["value"])
        self._open()
        self._run([("bind", arg) for arg in head.get("args") or ()])
        common: set[str] | None = None
        for body in () if kind == "Default" else rule["Spec"]["bodies"]:
            self._open()
            self._run([("query", body["query"])])
            if body["assign"]:
                self._run([("expr", body["assign"]["value"])])
            if not body["is_else"]:
                names = set(self._scopes[-1])
                common = names if common is None else common & names
            self._close()
        # The head is evaluated in each of the bodies, so only names that all of them declare are local.
        for name in common or ():
            self._declare(name)
        self._run([("expr", value) for value in values])
        self._close()

    def _open(self) -> None:
        self._scopes.append([])

    def _close(self) -> None:
        for name in self._scopes.pop():
            self._local[name] -= 1

    def _declare(self, name: str) -> None:
        self._local[name] = self._local.get(name, 0) + 1
        self._scopes[-1].append(name)

    def _run(self, work: _Work) -> None:
        """Do all work, the last item first; new work is put on top."""
        while work:
            task, node = work.pop()
            match task:
                case "expr":
                    work += reversed(self._expression(node))
                case "bind":
                    work += reversed(self._pattern(node))
                case "query":
                    work += [("statement", statement) for statement in reversed(node["stmts"])]
                case "statement":
                    work.append(("literal", node["literal"]))
                    work += [("expr", changed["as"]) for changed in node.get("with_mods") or ()]
                case "literal":
                    work += reversed(self._literal(node))
                case "declare":
                    self._declare(node)
                case "open":
                    self._open()
                case "close":
                    self._close()

    def _literal(self, literal: Any) -> _Work:
        kind, content = kind_of(literal)
        match kind:
            case "SomeVars":
                return [("declare", text_of(span, self._source)) for span in content["vars"]]
            case "SomeIn":
                bound = [e for e in (content["key"], content["value"]) if e]
                return [("expr", content["collection"]), *(("bind", e) for e in bound)]
            case "Every":
                names = [text_of(s, self._source) for s in (content["key"], content["value"]) if s]
                declared = [("declare", name) for name in names]
                return [
                    ("expr", content["domain"]),
                    ("open", None),
                    *declared,
                    ("query", content["query"]),
                    ("close", None),
                ]
            case _:
                return [("expr", content["expr"])]

    def _expression(self, expr: Any) -> _Work:
        kind, content = kind_of(expr)
        match kind:
            case "Var" | "RefDot" | "RefBrack":
                return self._reference(expr, is_call=False)
            case "Call":
                return [
                    *self._reference(content["fcn"], is_call=True),
                    *(("expr", e) for e in content["params"]),
                ]
            case "ArrayCompr" | "SetCompr" | "ObjectCompr":
                terms = [content[key] for key in ("term", "key", "value") if content.get(key)]
                return [
                    ("open", None),
                    ("query", content["query"]),
                    *(("expr", e) for e in terms),
                    ("close", None),
                ]
            case "AssignExpr" if content["op"] == "ColEq":
                return [("expr", content["rhs"]), ("bind", content["lhs"])]
            case "Object":
                return [("expr", e) for _, key, value in content["fields"] for e in (key, value)]
            case _:
                # Every other kind of expression has its operands under these names.
                named = [content.get(key) for key in ("lhs", "rhs", "expr", "key", "value", "collection")]
                items = [*named, *content.get("items", ())]
                return [("expr", e) for e in items if isinstance(e, dict)]

    def _pattern(self, expr: Any) -> _Work:
        """A pattern that declares names: a name, or one inside arrays and values of objects."""
        kind, content = kind_of(expr)
        match kind:
            case "Var":
                return [("declare", content["value"])]
            case "Array":
                return [("bind", e) for e in content["items"]]
            case "Object":
                return [w for _, key, value in content["fields"] for w in (("expr", key), ("bind", value))]
            case _:
                return [("expr", expr)]

    def _reference(self, expr: Any, *, is_call: bool) -> _Work:
        base, names, computed = path_of(expr, self._source)
        work: _Work = [("expr", e) for e in computed]
        kind, content = kind_of(base)
        if kind != "Var":
            return [("expr", base), *work]
        name, span = content["value"], content["span"]
        root = self._graph.places[0]
        if name == "data":
            # Lint refuses any other meaning of this name.
            self._reach(*self._graph.walk(root, names), span)
        elif is_call or not self._local.get(name):
            if name in self._home.children:
                self._reach(*self._graph.walk(self._graph.places[self._home.children[name]], names), span)
            if name in self._aliases:
                place, is_end = self._aliases[name]
                self._reach(*(self._graph.walk(place, names) if is_end else (place, False)), span)
        return work

    def _reach(self, place: _Place, is_end: bool, span: Any) -> None:  # noqa: FBT001
        ends = (_ABOVE, _BELOW) if is_end else (_ABOVE,)
        for vertex in (3 * place.number + end for end in ends):
            if vertex not in self._sites:
                self._sites[vertex] = (self._file, *position_of(span, self._source))
