"""
Where the engine and OPA disagree about undefined: below ``not``, and about the value of ``in``.

OPA takes calls, and references inside them, out of a negated expression and evaluates them before it:
if one is undefined, so is the whole body.  The engine evaluates them inside, so the negation holds.
``not startswith(facts.name, "a")`` is true here and undefined in OPA if there is no name.  ``x in y``
as a value is false here and undefined in OPA if one side is undefined.  `check` finds each such
expression whose parts are not surely defined.  What OPA does was seen by running it; the table in
``docs/rego.md`` has a test for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from verifier.policy.syntax import full_path, head_of, imports_of, kind_of, position_of, start_of, text_of

_CONSTANTS: Final = ("Number", "String", "RawString", "Bool", "Null")
_COMPREHENSIONS: Final = ("ArrayCompr", "SetCompr", "ObjectCompr")
_ALWAYS: Final = ("input", "data")
_MAX_SHOWN: Final = 60
_MAX_DEPTH: Final = 100
"""A rule with `not` or `in` may be nested so deep at most: what is below it is read by functions that call themselves."""
_LOOKED_FOR: Final = ("NotExpr", "Membership")

_Definitions: TypeAlias = dict[str, bool]
"""The rules of a package by name, and whether each has a value whatever the input is."""


@dataclass(frozen=True)
class Undecided:
    """An expression that may be undefined where the engines disagree about that."""

    rule: str
    file: str
    line: int
    column: int
    sentence: str


@dataclass
class _Scope:
    """What a query knows: its local variables, and the references without which it is undefined anyway."""

    local: set[str] = field(default_factory=set)
    needed: set[str] = field(default_factory=set)

    def inner(self) -> _Scope:
        return _Scope(set(self.local), set(self.needed))


def check(modules: Sequence[Any]) -> Iterator[Undecided]:
    """
    All such expressions in *modules*.

    Args:
        modules: The modules as ``json.loads(engine.get_ast_as_json())`` gives them, without tests.
    """
    packages: dict[str, _Definitions] = {}
    for module in modules:
        _define(module, packages)
    for module in modules:
        yield from _Module(module, packages).check()


def _define(module: Any, packages: dict[str, _Definitions]) -> None:
    source = module["source"]["contents"].encode()
    definitions = packages.setdefault(".".join(full_path(module["ast"]["package"]["refr"], source)[0]), {})
    for rule in module["ast"]["rules"]:
        kind, head = head_of(rule)
        path, computed = full_path(head["refr"], source)
        always = len(path) == 1 and (kind in ("Default", "Set") or bool(computed) or _is_total(rule, head))
        definitions[path[0]] = definitions.get(path[0], False) or always


def _is_total(rule: Any, head: Any) -> bool:
    """Whether one definition has a value for all arguments: it has no condition, or its last ``else`` has none."""
    arguments = set()
    for argument in head.get("args") or ():
        kind, content = kind_of(argument)
        if kind != "Var":
            return False
        arguments.add(content["value"])
    bodies = rule["Spec"]["bodies"]
    assign = bodies[-1]["assign"] if bodies and bodies[-1]["is_else"] else head.get("assign")
    if bodies and bodies[-1]["query"]["stmts"]:
        return False
    return assign is None or _is_plain(assign["value"], arguments)


def _is_plain(expr: Any, arguments: set[str]) -> bool:
    kind, content = kind_of(expr)
    match kind:
        case "Var":
            return content["value"] in arguments
        case "Array" | "Set":
            return all(_is_plain(item, arguments) for item in content["items"])
        case "Object":
            return all(_is_plain(e, arguments) for _, key, value in content["fields"] for e in (key, value))
        case _:
            return kind in _CONSTANTS or kind in _COMPREHENSIONS


class _Module:
    def __init__(self, module: Any, packages: dict[str, _Definitions]) -> None:
        self._file = module["source"]["file"]
        self._source = module["source"]["contents"].encode()
        self._rules = module["ast"]["rules"]
        self._package = ".".join(full_path(module["ast"]["package"]["refr"], self._source)[0])
        self._packages = packages
        self._own = packages[self._package]
        self._imports = {alias: path for _, path, alias in imports_of(module, self._source)}
        self._found: list[Undecided] = []

    def check(self) -> Iterator[Undecided]:
        for rule in self._rules:
            kind, head = head_of(rule)
            depth, has_any = _measure(rule)
            if kind == "Default" or not has_any:
                continue
            if depth > _MAX_DEPTH:
                sentence = f"this rule is nested more than {_MAX_DEPTH} levels deep. Give its parts rules of their own"
                self._report_at(head["span"], "undefined-negated", sentence)
                continue
            self._check_rule(rule, head)
        yield from self._found

    def _check_rule(self, rule: Any, head: Any) -> None:
        arguments = _Scope()
        for argument in head.get("args") or ():
            self._bind(argument, arguments)
        parts = [e for e in (head.get("key"), head.get("value")) if isinstance(e, dict)]
        if head.get("assign"):
            parts.append(head["assign"]["value"])
        bodies = rule["Spec"]["bodies"]
        if not any(body["is_else"] for body in bodies):
            # A body that is true gives nothing either if the head is undefined.
            for value in parts:
                self._need_only(value, arguments)
        for body in bodies:
            scope = self._query(body["query"], arguments)
            values = [body["assign"]["value"]] if body["assign"] else [] if body["is_else"] else parts
            for value in values:
                self._visit(value, scope)
        if not bodies:
            for value in parts:
                self._visit(value, arguments)

    def _query(self, query: Any, outer: _Scope) -> _Scope:
        """Check a query, and return what it knows when it is true."""
        scope = outer.inner()
        literals = [kind_of(statement["literal"]) for statement in query["stmts"]]
        for kind, content in literals:
            self._learn(kind, content, scope)
        for kind, content in literals:
            match kind:
                case "NotExpr":
                    self._negated(content["expr"], scope)
                case "Every":
                    self._visit(content["domain"], scope)
                    inner = scope.inner()
                    inner.local |= {text_of(s, self._source) for s in (content["key"], content["value"]) if s}
                    self._query(content["query"], inner)
                case "SomeIn":
                    self._visit(content["collection"], scope)
                case "Expr":
                    self._visit(content["expr"], scope, is_literal=True)
        return scope

    def _learn(self, kind: str, content: Any, scope: _Scope) -> None:
        match kind:
            case "SomeVars":
                scope.local |= {text_of(span, self._source) for span in content["vars"]}
            case "SomeIn":
                for pattern in (content["key"], content["value"]):
                    if pattern:
                        self._bind(pattern, scope)
                self._need(content["collection"], scope)
            case "Every":
                self._need(content["domain"], scope)
            case "Expr":
                self._need(content["expr"], scope)

    def _bind(self, pattern: Any, scope: _Scope) -> None:
        """Add the variables of a pattern."""
        kind, content = kind_of(pattern)
        if kind == "Var":
            scope.local.add(content["value"])
        for part in _parts(kind, content):
            self._bind(part, scope)

    def _need_only(self, expr: Any, scope: _Scope) -> None:
        """As `_need`, of an expression that gives no variable a value."""
        found = _Scope()
        self._need(expr, found)
        scope.needed |= found.needed

    def _need(self, expr: Any, scope: _Scope) -> None:
        """Add what must be defined for an expression to be true, and the variables that get a value in it."""
        kind, content = kind_of(expr)
        if kind in _COMPREHENSIONS:
            return
        if kind == "AssignExpr" and content["op"] == "ColEq":
            self._bind(content["lhs"], scope)
            self._need(content["rhs"], scope)
            return
        if kind == "Var":
            name = content["value"]
            if name in self._own or name in self._imports:
                scope.needed.add(name)
            elif name not in _ALWAYS and name != "_":
                scope.local.add(name)
        elif (path := _canonical(expr)) is not None:
            scope.needed.add(path)
        if kind == "Call":
            for param in content["params"]:
                self._need(param, scope)
        elif kind == "Membership":
            # As a value it is false for what is undefined, so only the literal as a whole needs its parts.
            return
        else:
            for part in _parts(kind, content):
                self._need(part, scope)

    def _visit(self, expr: Any, scope: _Scope, *, is_literal: bool = False) -> None:
        """Look for queries and for values of ``in`` inside an expression."""
        kind, content = kind_of(expr)
        if kind in _COMPREHENSIONS:
            inner = self._query(content["query"], scope)
            for term in (content.get(name) for name in ("term", "key", "value")):
                if isinstance(term, dict):
                    self._visit(term, inner)
            return
        if kind == "Membership" and not is_literal:
            for operand in _parts(kind, content):
                if (part := self._unsure(operand, scope)) is not None:
                    self._report_membership(expr, part)
                    break
        for part in content["params"] if kind == "Call" else _parts(kind, content):
            self._visit(part, scope)

    def _negated(self, expr: Any, scope: _Scope) -> None:
        self._visit(expr, scope, is_literal=True)
        kind, content = kind_of(expr)
        if (kind == "BoolExpr" and content["op"] == "Eq") or (kind == "AssignExpr"):
            operands = [content["lhs"], content["rhs"]]
        else:
            operands = [expr]
        for operand in operands:
            is_call = "Call" in operand and operand is not expr
            part = self._unsure(operand, scope) if is_call else self._unsure_inside(operand, scope)
            if part is not None:
                self._report_negation(expr, part, scope)
                return

    def _unsure_inside(self, expr: Any, scope: _Scope) -> Any:
        """What of an expression OPA evaluates outside the negation and may be undefined; `None` if nothing."""
        kind, content = kind_of(expr)
        match kind:
            case "Var":
                return None if self._is_known(content["value"], scope) else expr
            case "RefDot" | "RefBrack":
                base, keys = content["refr"], [content["index"]] if kind == "RefBrack" else []
                within = self._unsure(base, scope) if "Call" in base else self._unsure_inside(base, scope)
                return self._first_unsure(keys, scope) or within
            case "Call":
                return self._first_unsure(content["params"], scope)
            case _:
                return self._first_unsure(_parts(kind, content), scope)

    def _first_unsure(self, exprs: Sequence[Any], scope: _Scope) -> Any:
        return next(filter(None, (self._unsure(e, scope) for e in exprs)), None)

    def _unsure(self, expr: Any, scope: _Scope) -> Any:
        """The first part of an expression that may be undefined; `None` if all of it is surely defined."""
        kind, content = kind_of(expr)
        if kind in _COMPREHENSIONS or kind in _CONSTANTS:
            return None
        if kind == "Var":
            name = content["value"]
            if name in scope.local or name in scope.needed or name in _ALWAYS or self._own.get(name):
                return None
            return expr
        if kind in ("RefDot", "RefBrack"):
            path = _canonical(expr)
            return None if path is not None and (path in scope.needed or self._is_rule(path)) else expr
        if kind == "Call":
            name = _canonical(content["fcn"]) or ""
            return (None if self._is_total(name) else expr) or self._first_unsure(content["params"], scope)
        return self._first_unsure(_parts(kind, content), scope)

    def _is_known(self, name: str, scope: _Scope) -> bool:
        return name in scope.local or name in self._own or name in self._imports or name in _ALWAYS

    def _is_rule(self, path: str) -> bool:
        """Whether a path names a rule that is always defined."""
        parts = path.split(".")
        if parts[0] in self._imports:
            parts = [*self._imports[parts[0]], *parts[1:]]
        if parts[0] != "data":
            return False
        return self._packages.get(".".join(parts[1:-1]), {}).get(parts[-1], False)

    def _is_total(self, name: str) -> bool:
        """Whether a function has a value for all arguments.  A built-in function has one, or ends the evaluation."""
        if name in self._own:
            return self._own[name]
        first = name.partition(".")[0]
        return self._is_rule(name) if first == "data" or first in self._imports else True

    def _report_negation(self, expr: Any, part: Any, scope: _Scope) -> None:
        shown, whole = self._text(part), self._text(expr)
        kind, content = kind_of(part)
        if kind == "Var" and not self._is_known(content["value"], scope):
            sentence = (
                f"{shown} gets no value outside of not. OPA refuses that. Give it a value first (some {shown} in …), "
                f"or put the condition into a rule of its own and negate that rule"
            )
        else:
            sentence = (
                f"{shown} may be undefined below not. Then the negation is true here, and in OPA the whole body is "
                f"undefined. Write value := {shown} before it, or give {whole} a rule of its own and negate that rule: "
                f"each means the same in both"
            )
        self._report(expr, "undefined-negated", sentence)

    def _report_membership(self, expr: Any, part: Any) -> None:
        shown = self._text(part)
        sentence = (
            f"{shown} may be undefined. Then the value of in is false here and undefined in OPA. "
            f"Write value := {shown} before it"
        )
        self._report(expr, "undefined-membership", sentence)

    def _report(self, expr: Any, rule: str, sentence: str) -> None:
        self._report_at(_first_span(expr), rule, sentence)

    def _report_at(self, span: Any, rule: str, sentence: str) -> None:
        line, column = position_of(span, self._source)
        self._found.append(Undecided(file=self._file, line=line, column=column, rule=rule, sentence=sentence))

    def _text(self, expr: Any) -> str:
        """The source of an expression in one line of bounded length."""
        _, content = kind_of(expr)
        span = {"start": _first_span(expr)["start"], "end": content["span"]["end"]}
        text = " ".join(text_of(span, self._source).split())
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _measure(rule: Any) -> tuple[int, bool]:
    """How deep a rule is nested, and whether it has anything to look at.  Without recursion: it may be deep."""
    depth, has_any = 0, False
    work: list[tuple[Any, int]] = [(rule, 0)]
    while work:
        node, level = work.pop()
        if isinstance(node, list):
            work += [(part, level) for part in node]
        elif isinstance(node, dict) and "line" not in node:
            depth = max(depth, level)
            has_any = has_any or any(kind in node for kind in _LOOKED_FOR)
            below = level + (len(node) == 1)
            work += [(part, below) for part in node.values()]
    return depth, has_any


def _first_span(expr: Any) -> Any:
    """The span of an expression's leftmost part."""
    kind, content = kind_of(expr)
    while kind in ("BoolExpr", "ArithExpr", "BinExpr", "AssignExpr"):
        expr = content["lhs"]
        kind, content = kind_of(expr)
    return content["span"] if kind == "Membership" else start_of(expr)


def _parts(kind: str, content: Any) -> list[Any]:
    """The parts of an expression that are expressions, without those of comprehensions and the name of a call."""
    if kind in _COMPREHENSIONS or kind == "Call":
        return []
    if kind == "Object":
        return [e for _, key, value in content["fields"] for e in (key, value)]
    named = [
        content.get(name) for name in ("refr", "index", "lhs", "rhs", "expr", "key", "value", "collection")
    ]
    return [e for e in [*named, *content.get("items", ())] if isinstance(e, dict) and "line" not in e]


def _canonical(expr: Any) -> str | None:
    """A reference as text, the same for ``a["b"]`` and ``a.b``; `None` if it is none, or if a key is computed."""
    kind, content = kind_of(expr)
    if kind == "Var":
        return str(content["value"])
    if kind == "RefDot":
        base = _canonical(content["refr"])
        return None if base is None else f"{base}.{content['field'][1]}"
    if kind == "RefBrack":
        base, (key_kind, key) = _canonical(content["refr"]), kind_of(content["index"])
        if base is None:
            return None
        if key_kind in ("String", "RawString"):
            return f"{base}.{key['value']}"
        if key_kind in ("Number", "Var") and key["value"] != "_":
            return f"{base}[{key['value']}]"
        inner = _canonical(content["index"]) if key_kind in ("RefDot", "RefBrack") else None
        return None if inner is None else f"{base}[{inner}]"
    return None
