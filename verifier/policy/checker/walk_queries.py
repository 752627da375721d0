"""
The shapes of a query's variables, statement by statement.

Each query is read twice: once to learn what its conditions exclude, in whatever order they stand,
and once more to report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verifier.policy.checker.comparisons import never_equal
from verifier.policy.checker.environment import Environment, Place
from verifier.policy.checker.scopes import WILD, Local, Reading
from verifier.policy.checker.shapes import (
    ANY,
    Array,
    Field,
    Object,
    Scalar,
    Shape,
    Value,
    elements,
    meets,
    only_string,
    select,
    type_of,
    written,
)
from verifier.policy.checker.walk_expressions import Expressions
from verifier.policy.checker.words import described
from verifier.policy.syntax import kind_of, start_of


class Walker(Expressions):
    """Reads the queries of one module's definitions."""

    def use(self, reading: Reading) -> None:
        """Go on with another definition."""
        self._reading = reading

    def query(self, statements: Sequence[Any], env: Environment) -> None:
        """Read a query, and put what is known after it into *env*."""
        if self._reports:
            self._reports = False
            for statement in statements:
                self._statement(statement, env)
            self._reports = True
        for statement in statements:
            self._statement(statement, env)

    def _statement(self, statement: Any, env: Environment) -> None:
        for expr in self._reading.replacements[id(statement)]:
            self.shape(expr, env)
        kind, content = kind_of(statement["literal"])
        match kind:
            case "SomeVars":
                return
            case "SomeIn":
                keys, values = self._members(content["collection"], env)
                for pattern, shape in ((content["key"], keys), (content["value"], values)):
                    if pattern is not None:
                        self.bind(pattern, shape, env)
            case "Every":
                self._every(content, env)
            case "NotExpr":
                is_inner, self._is_inner = self._is_inner, True
                self._is_negated = True
                self._condition(content["expr"], env.copy())
                self._is_negated, self._is_inner = False, is_inner
                if (found := self._equality(content["expr"], env)) is not None:
                    env.exclude(*found)
            case _:
                self._condition(content["expr"], env)

    def _every(self, content: Any, env: Environment) -> None:
        found = self._members(content["domain"], env)
        inner = env.copy()
        declared = {local.span["start"]: local for local in self._reading.declared[id(content)]}
        for span, shape in zip((content["key"], content["value"]), found, strict=True):
            if span and (local := declared.get(span["start"])) is not None:
                inner.bind(local, shape)
        is_inner, self._is_inner = self._is_inner, True
        self.query(content["query"]["stmts"], inner)
        self._is_inner = is_inner

    def _condition(self, expr: Any, env: Environment) -> None:
        """Read a statement that must hold."""
        kind, content = kind_of(expr)
        match kind:
            case "AssignExpr" if content["op"] == "ColEq":
                place = self._place(content["rhs"], env)
                shape = self.shape(content["rhs"], env)
                self.bind(content["lhs"], shape, env, place)
            case "AssignExpr":
                self._unify(content["lhs"], content["rhs"], env)
            case "BoolExpr":
                self.shape(expr, env)
                self._learn(content, env)
            case "Membership":
                self.shape(expr, env)
                _, values = elements(self._silently(content["collection"], env))
                env.keep(self._place(content["value"], env), values)
            case "Call" if id(expr) in self._reading.with_result:
                result = self._call(expr, content["params"][:-1], env)
                self.bind(content["params"][-1], result, env)
            case "Call":
                self.shape(expr, env)
            case _:
                self.shape(expr, env)
                env.keep(self._place(expr, env), ANY)

    def _learn(self, content: Any, env: Environment) -> None:
        sides = (content["lhs"], content["rhs"])
        for one, other in (sides, sides[::-1]):
            shape = self._silently(other, env)
            env.keep(self._place(one, env), shape if content["op"] == "Eq" else ANY)
            if content["op"] == "Ne" and (value := _literal(other)) is not None:
                env.exclude(self._place(one, env), *value)

    def _equality(self, expr: Any, env: Environment) -> tuple[Place | None, Any] | None:
        """The place and the literal of ``x == literal``."""
        kind, content = kind_of(expr)
        if kind not in ("BoolExpr", "AssignExpr") or content["op"] != "Eq":
            return None
        for one, other in ((content["lhs"], content["rhs"]), (content["rhs"], content["lhs"])):
            if (value := _literal(other)) is not None:
                return self._place(one, env), *value
        return None

    def _unify(self, a: Any, b: Any, env: Environment) -> None:
        (kind_a, content_a), (kind_b, content_b) = kind_of(a), kind_of(b)
        if kind_a == kind_b == "Array" and len(content_a["items"]) == len(content_b["items"]):
            for x, y in zip(content_a["items"], content_b["items"], strict=True):
                self._unify(x, y, env)
            return
        for pattern, expr in ((a, b), (b, a)):
            if self._binds(pattern, env):
                self.bind(pattern, self.shape(expr, env), env, self._place(expr, env))
                return
        self._compare(a, b, env)
        env.keep(self._place(a, env), self._silently(b, env))
        env.keep(self._place(b, env), self._silently(a, env))

    def _binds(self, pattern: Any, env: Environment) -> bool:
        """Whether a side of ``=`` is a pattern with variables that have no shape yet."""
        kind, content = kind_of(pattern)
        match kind:
            case "Var":
                local = self._reading.meanings.get(id(pattern))
                return content["value"] == WILD or (isinstance(local, Local) and local not in env.shapes)
            case "Array":
                return any(self._binds(item, env) for item in content["items"])
            case "Object":
                return any(self._binds(value, env) for _, _, value in content["fields"])
        return False

    def bind(self, pattern: Any, shape: Shape, env: Environment, place: Place | None = None) -> None:
        """Give the variables of a pattern their shapes."""
        kind, content = kind_of(pattern)
        match kind:
            case "Var":
                local = self._reading.meanings.get(id(pattern))
                if isinstance(local, Local):
                    env.bind(local, shape, place)
            case "Array":
                self._check_fit(pattern, Shape((Array((ANY,) * len(content["items"])),)), shape)
                for index, item in enumerate(content["items"]):
                    self.bind(item, select(shape, written(index)), env)
            case "Object":
                names = [only_string(self.shape(key, env)) for _, key, _ in content["fields"]]
                if None not in names:
                    fields = tuple(Field(name, ANY) for name in names if name is not None)
                    self._check_fit(pattern, Shape((Object(fields),)), shape)
                for _, key, value in content["fields"]:
                    self.bind(value, select(shape, self.shape(key, env)), env)
            case _:
                if (
                    sentence := never_equal(shape, "the value", self.shape(pattern, env), self._text(pattern))
                ) is not None:
                    self._error(start_of(pattern), "never", sentence)

    def _check_fit(self, pattern: Any, wanted: Shape, shape: Shape) -> None:
        if not shape.is_never and not meets(shape, wanted):
            sentence = (
                f"{self._text(pattern)} never fits a value that is {described(shape)}. Write one like it"
            )
            self._error(start_of(pattern), "never", sentence)

    def bind_arguments(self, patterns: Sequence[Any], shapes: Sequence[Shape], env: Environment) -> None:
        """
        Give the arguments of a function their shapes.

        An argument that is a literal chooses among definitions, so nothing is said of it.
        """
        for pattern, shape in zip(patterns, shapes, strict=True):
            if kind_of(pattern)[0] in ("Var", "Array", "Object"):
                reports, self._reports = self._reports, False
                self.bind(pattern, shape, env)
                self._reports = reports

    def wanted_of(self, argument: Any) -> Shape:
        """What an argument must be, as far as its pattern and the conditions read so far say."""
        if "Var" in argument:
            local = self._reading.meanings.get(id(argument))
            return self.wanted.get(local, ANY) if isinstance(local, Local) else ANY
        value = _literal(argument)
        return Shape((Scalar(type_of(*value)),)) if value is not None else ANY


def _literal(expr: Any) -> tuple[Value] | None:
    """The value of a literal."""
    kind, content = kind_of(expr)
    return (content["value"],) if kind in ("String", "RawString", "Number", "Bool", "Null") else None
