"""
Variables that never get a value: OPA calls them unsafe, and refuses them.

A statement needs some variables, and gives values to others: ``:=``, ``some … in``, one side of
``=``, and an index of a reference (``x[i]``) give.  Whatever ``not`` and functions have must have a
value already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from verifier.policy.checker import builtins
from verifier.policy.checker.near import suggestion
from verifier.policy.checker.report import Source
from verifier.policy.checker.scopes import (
    CLOSURES,
    WILD,
    Local,
    Reading,
    operands,
    pattern_names,
    pattern_values,
)
from verifier.policy.checker.world import Definition
from verifier.policy.syntax import kind_of

_OPERATIONS: Final = ("Call", "ArithExpr", "BinExpr", "BoolExpr", "Membership", "UnaryExpr")
_MAX_ROUNDS: Final = 40
"""A query in so odd an order is not looked at any longer, and nothing is said of it."""
_LITERALS: Final = ("Array", "Set", "Object")


@dataclass
class _Flow:
    """What an expression needs and gives, with the node of each variable that it needs."""

    needs: dict[Local | None, Any] = field(default_factory=dict)
    """By variable, a node; `None` is the wildcard, which has no value anywhere."""
    gives: set[Local] = field(default_factory=set)
    indices: set[Local] = field(default_factory=set)
    """What it gives by going through keys.  The same expression may use that: ``count(x[i]) > i``."""
    wild: Any = None
    """A wildcard that is an index."""


def check(definition: Definition, reading: Reading, known: Sequence[str]) -> None:
    """
    Report each variable of a definition that never gets a value.

    Args:
        definition: What to check.
        reading: What its names mean.
        known: The names that the module has, to suggest one for a name that means nothing.
    """
    checker = _Safety(definition.module.source, reading, known)
    for body in definition.bodies:
        checker.query(body.statements, body.terms, set(reading.arguments), 1)


class _Safety:
    def __init__(self, source: Source, reading: Reading, known: Sequence[str]) -> None:
        self._source = source
        self._reading = reading
        self._known = known
        self._told: set[Local | None] = set()
        self._depth = 0

    def query(self, statements: list[Any], terms: list[Any], safe: set[Local], depth: int) -> None:
        """Find an order in which each statement has what it needs, and report what none of them gives."""
        around, self._depth = self._depth, depth
        safe = set(safe)
        waiting: list[tuple[Any, list[Any]]] = [(statement, []) for statement in statements]
        waiting += [(None, [term]) for term in terms]
        for _ in range(_MAX_ROUNDS):
            still = []
            for item in waiting:
                flow = self._flow(item, safe)
                if flow.needs.keys() <= safe | flow.indices:
                    safe |= flow.gives | flow.indices
                else:
                    still.append(item)
            if len(still) == len(waiting):
                break
            # The other way round, because statements may stand in the reverse of their order.
            waiting = still[::-1]
        else:
            waiting = []
        for item in waiting:
            for local, node in self._flow(item, safe).needs.items():
                if local not in safe:
                    self._tell(local, node)
        # What was missing was told once.
        safe |= {local for item in waiting for local in self._flow(item, safe).needs if local is not None}
        for statement in statements:
            self._inside(statement, safe)
        self._closures([*terms], safe)
        self._depth = around

    def _tell(self, local: Local | None, node: Any) -> None:
        content = node["Var"]
        if (local in self._told and local is not None) or self._source.is_full:
            return
        self._told.add(local)
        if local is None:
            sentence = "_ has no value here. Give what is meant a name, and let some … in bind it"
        elif local.how == "free":
            self._source.error(content["span"], "undefined", self._undefined(local.name))
            return
        else:
            sentence = f"{local.name} never gets a value. Give it one with := or some … in"
        self._source.error(content["span"], "unsafe", sentence)

    def _undefined(self, name: str) -> str:
        if name in builtins.table():
            return f"{name} is a function. Write {name}(…)"
        names = {*self._known, *(other.name for other in self._reading.locals if other.how != "free")}
        near = suggestion(name, names) or " Define it, or bind it with := or some … in"
        return f"there is no rule, variable or import {name}.{near}"

    def _inside(self, statement: Any, safe: set[Local]) -> None:
        """Check the queries within a statement."""
        kind, content = kind_of(statement["literal"])
        self._closures([*self._reading.replacements[id(statement)]], safe)
        match kind:
            case "SomeVars":
                return
            case "SomeIn":
                self._closures([content["collection"]], safe)
            case "Every":
                self._closures([content["domain"]], safe)
                declared = set(self._reading.declared[id(content)])
                self.query(content["query"]["stmts"], [], safe | declared, self._depth + 2)
            case _:
                self._closures([content["expr"]], safe)

    def _closures(self, work: list[Any], safe: set[Local]) -> None:
        while work:
            expr = work.pop()
            kind, content = kind_of(expr)
            if kind in CLOSURES:
                terms = [content[key] for key in ("key", "value", "term") if content.get(key)]
                self.query(content["query"]["stmts"], terms, safe, self._depth + 1)
            else:
                work += operands(expr)

    def _flow(self, item: tuple[Any, list[Any]], safe: set[Local]) -> _Flow:
        statement, terms = item
        flow = _Flow()
        for term in terms:
            self._value(term, flow)
        if statement is None:
            return flow
        kind, content = kind_of(statement["literal"])
        for expr in self._reading.replacements[id(statement)]:
            self._value(expr, flow)
        match kind:
            case "SomeVars":
                pass
            case "SomeIn":
                self._value(content["collection"], flow)
                for pattern in (content["key"], content["value"]):
                    if pattern is not None:
                        self._pattern(pattern, flow)
            case "Every":
                self._value(content["domain"], flow)
                flow.needs |= self._captured(content["query"]["stmts"], [])
            case "NotExpr":
                self._negated(content["expr"], flow, is_whole=True)
            case _:
                self._statement(content["expr"], flow, safe)
        return flow

    def _negated(self, expr: Any, flow: _Flow, *, is_whole: bool) -> None:
        """
        What ``not`` stands before: it needs all its variables.

        As in OPA, calls and operators within it are evaluated before it, and so may go through keys.
        """
        kind, _ = kind_of(expr)
        if kind in _LITERALS or (is_whole and kind in _OPERATIONS):
            for part in operands(expr):
                self._negated(part, flow, is_whole=False)
            return
        if kind in _OPERATIONS:
            self._value(expr, flow)
            return
        inner = _Flow()
        self._value(expr, inner)
        flow.needs |= inner.needs
        flow.needs |= {local: self._node_of(local, expr) for local in inner.indices}
        if inner.wild is not None:
            flow.needs[None] = inner.wild

    def _statement(self, expr: Any, flow: _Flow, safe: set[Local]) -> None:
        kind, content = kind_of(expr)
        if kind == "AssignExpr" and content["op"] == "ColEq":
            self._value(content["rhs"], flow)
            self._pattern(content["lhs"], flow)
        elif kind == "AssignExpr":
            self._unify(content["lhs"], content["rhs"], flow, safe)
        elif kind == "Call" and len(content["params"]) > 1:
            # The last one may be the result: walk(x, [path, value]).
            for param in content["params"][:-1]:
                self._value(param, flow)
            last = _Flow()
            self._pattern(content["params"][-1], last)
            if self._has_result(expr):
                self._merge(flow, last)
            else:
                self._value(content["params"][-1], flow)
        else:
            self._value(expr, flow)

    def _has_result(self, call: Any) -> bool:
        return id(call) in self._reading.with_result

    @staticmethod
    def _merge(flow: _Flow, other: _Flow) -> None:
        flow.needs |= other.needs
        flow.gives |= other.gives
        flow.indices |= other.indices

    def _unify(self, a: Any, b: Any, flow: _Flow, safe: set[Local]) -> None:
        (kind_a, content_a), (kind_b, content_b) = kind_of(a), kind_of(b)
        if kind_a == kind_b == "Array" and len(content_a["items"]) == len(content_b["items"]):
            for x, y in zip(content_a["items"], content_b["items"], strict=True):
                self._unify(x, y, flow, safe | flow.gives | flow.indices)
            return
        left, right = _Flow(), _Flow()
        self._pattern(a, left)
        self._pattern(b, right)
        self._merge(flow, left)
        self._merge(flow, right)
        bound_a, bound_b = self._bound_by(a), self._bound_by(b)
        if not bound_a <= safe and not bound_b <= safe:
            # Neither side has a value that the other could take.
            flow.needs |= {local: self._node_of(local, a) for local in bound_a}
            flow.needs |= {local: self._node_of(local, b) for local in bound_b}

    def _bound_by(self, pattern: Any) -> set[Local]:
        """The variables that a side of ``=`` takes from the other side."""
        found = (self._reading.meanings.get(id(node)) for node in pattern_names(pattern))
        return {local for local in found if isinstance(local, Local)}

    def _pattern(self, expr: Any, flow: _Flow) -> None:
        """A pattern: its variables get values, and its other parts are evaluated."""
        kind, content = kind_of(expr)
        match kind:
            case "Var":
                local = self._reading.meanings.get(id(expr))
                if isinstance(local, Local):
                    flow.gives.add(local)
            case "Array":
                for item in content["items"]:
                    self._pattern(item, flow)
            case "Object":
                for _, key, value in content["fields"]:
                    self._value(key, flow)
                    self._pattern(value, flow)
            case _:
                self._value(expr, flow)

    def _value(self, expr: Any, flow: _Flow) -> None:
        """An expression whose value is needed."""
        kind, content = kind_of(expr)
        match kind:
            case "Var":
                if content["value"] == WILD:
                    flow.needs.setdefault(None, expr)
                elif isinstance(local := self._reading.meanings.get(id(expr)), Local):
                    flow.needs.setdefault(local, expr)
            case "RefBrack":
                self._value(content["refr"], flow)
                index = content["index"]
                if kind_of(index)[0] == "Var" and index["Var"]["value"] == WILD:
                    flow.wild = index
                else:
                    inside = _Flow()
                    self._pattern(index, inside)
                    flow.needs |= inside.needs
                    flow.indices |= inside.gives | inside.indices
            case "ArrayCompr" | "SetCompr" | "ObjectCompr":
                terms = [content[key] for key in ("key", "value", "term") if content.get(key)]
                flow.needs |= self._captured(content["query"]["stmts"], terms)
            case "AssignExpr":
                # Only whole statements assign.
                for expr_ in (*pattern_values(content["lhs"]), content["rhs"]):
                    self._value(expr_, flow)
            case _:
                for part in operands(expr):
                    self._value(part, flow)

    def _captured(self, statements: Iterable[Any], terms: Iterable[Any]) -> dict[Local | None, Any]:
        """The variables of the queries around it that a query uses."""
        found: dict[Local | None, Any] = {}
        for node in all_names([*statements, *terms]):
            local = self._reading.meanings.get(id(node))
            if isinstance(local, Local) and local.depth <= self._depth:
                found.setdefault(local, node)
        return found

    def _node_of(self, local: Local, expr: Any) -> Any:
        return next(n for n in all_names([expr]) if self._reading.meanings.get(id(n)) is local)


def all_names(work: list[Any]) -> Iterator[Any]:
    """The nodes of all variables in parts of a tree."""
    while work:
        node = work.pop()
        if isinstance(node, list):
            work += node
        elif isinstance(node, dict):
            if "Var" in node:
                yield node
            elif "line" not in node:
                work += node.values()
