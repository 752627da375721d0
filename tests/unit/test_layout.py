"""
The layout of the product holds: no import circles, bounded sizes, few rooms in the router, records built by keywords.

Every import counts, also those inside functions and those for type checkers only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = ("attester", "verifier", "router")
ALSO = ("bench", "fixtures")
"""No product, but no circles either."""
MAX_ROUTER_ROOMS = 12
MAX_MODULE, MAX_FUNCTION, MAX_CLASS = 450, 60, 300
MAX_POSITIONAL = 4

Graph = Mapping[str, frozenset[str]]


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the product, by its dotted name."""
    found = {}
    for role in (*ROLES, *ALSO):
        for path in sorted((ROOT / role).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def imports(module: str) -> Iterator[str]:
    """The product's modules that a module imports."""
    for node in ast.walk(tree(module)):
        match node:
            case ast.Import(names=names):
                targets = [name.name for name in names]
            case ast.ImportFrom(module=str(source), names=names):
                targets = [f"{source}.{name.name}" for name in names]
            case _:
                continue
        for target in targets:
            name = target
            while name and name not in modules():
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


@cache
def module_graph() -> Graph:
    return {module: frozenset(imports(module)) for module in modules()}


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def rooms_of(package: str) -> dict[str, set[str]]:
    """The direct children of a package, files and folders, each with the siblings that it imports."""
    depth = package.count(".") + 1

    def room(module: str) -> str | None:
        parts = module.split(".")
        return (
            ".".join(parts[: depth + 1]) if len(parts) > depth and module.startswith(f"{package}.") else None
        )

    graph: dict[str, set[str]] = {name: set() for name in map(room, modules()) if name is not None}
    for module, targets in module_graph().items():
        source = room(module)
        if source is not None:
            graph[source] |= {t for t in map(room, targets) if t is not None and t != source}
    return graph


PACKAGES = sorted({name.rpartition(".")[0] for name in modules() if "." in name})


def test_no_module_is_in_an_import_circle() -> None:
    """Modules that import each other can be neither read nor changed alone."""
    assert circles(module_graph()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_is_in_an_import_circle(package: str) -> None:
    """Nor are the files and folders directly in a folder, each folder taken as one."""
    graph = {room: frozenset(targets) for room, targets in rooms_of(package).items()}
    assert circles(graph) == []


def test_the_checker_sees_a_circle() -> None:
    """The checker itself can fail."""
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert circles(graph) == [["a", "b", "c"]]


def test_the_router_has_few_rooms() -> None:
    """A stranger can take in at most a dozen files and folders at once."""
    assert len(rooms_of("router")) <= MAX_ROUTER_ROOMS


@pytest.mark.parametrize("role", ROLES)
def test_no_module_is_too_long(role: str) -> None:
    """A module is read in one sitting."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    too_long = {n: length for n, length in lengths.items() if n.startswith(role) and length > MAX_MODULE}
    assert too_long == {}


@pytest.mark.parametrize("role", ROLES)
def test_no_function_or_class_is_too_long(role: str) -> None:
    """A function does one thing, and a class has one subject."""
    too_long = {}
    for module in modules():
        if not module.startswith(role):
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
                if length > limit:
                    too_long[f"{module}.{node.name}"] = length
    assert too_long == {}


def records() -> Iterator[str]:
    """The names of the product's dataclasses and structs."""
    for module in modules():
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.ClassDef):
                continue
            is_struct = any(
                "Struct" in ast.unparse(base) or "Claims" in ast.unparse(base) for base in node.bases
            )
            if is_struct or any("dataclass" in ast.unparse(each) for each in node.decorator_list):
                yield node.name


@pytest.mark.parametrize("role", ROLES)
def test_records_are_built_by_keywords(role: str) -> None:
    """A call with more than four positional values cannot be checked by reading it."""
    names = set(records())
    found = []
    for module in modules():
        if not module.startswith(role):
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                is_cls = name == "cls"
                if (name in names or is_cls) and len(node.args) > MAX_POSITIONAL:
                    found.append(f"{module}:{node.lineno} {name}")
    assert found == []
