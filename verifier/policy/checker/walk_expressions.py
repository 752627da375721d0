"""The shapes of expressions, and what can never be true of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from verifier.policy.checker import comparisons, parts, results
from verifier.policy.checker.builtins import Builtin, table
from verifier.policy.checker.environment import Environment
from verifier.policy.checker.scopes import Local, called
from verifier.policy.checker.shapes import (
    A_BOOLEAN,
    A_NUMBER,
    ANY,
    Array,
    Field,
    Object,
    SetOf,
    Shape,
    elements,
    is_written,
    join,
    meets,
    only_string,
    select,
    written,
)
from verifier.policy.checker.walk_references import References
from verifier.policy.checker.words import types_of
from verifier.policy.syntax import kind_of, start_of

_OPERATORS: Final = {
    "Add": "plus", "Sub": "minus", "Mul": "mul", "Div": "div", "Mod": "rem",
    "Union": "or", "Intersection": "and",
}  # fmt: skip
_SIGNS: Final = {"plus": "+", "minus": "-", "mul": "*", "div": "/", "rem": "%", "or": "|", "and": "&"}
_ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth")


class Expressions(References):
    """Reads expressions, in one module."""

    @abstractmethod
    def query(self, statements: Sequence[Any], env: Environment) -> None:
        """Read a query, and put what is known after it into *env*."""

    def shape(self, expr: Any, env: Environment) -> Shape:
        """The shape of an expression."""
        kind, content = kind_of(expr)
        match kind:
            case "String" | "RawString" | "Number" | "Bool" | "Null":
                return written(content["value"])
            case "Var" | "RefDot" | "RefBrack":
                return self._reference(expr, env)
            case "Call":
                return self._call(expr, content["params"], env)
            case "Array":
                return Shape((Array(tuple(self.shape(item, env) for item in content["items"])),))
            case "Set":
                items = [self.shape(item, env) for item in content["items"]]
                return Shape((SetOf(join(items) if items else ANY),))
            case "Object":
                return self._object(content, env)
            case "ArrayCompr" | "SetCompr" | "ObjectCompr":
                return self._comprehension(kind, content, env)
            case "BoolExpr":
                self._comparison(content, env)
                return A_BOOLEAN
            case "Membership":
                self._membership(content, env)
                return A_BOOLEAN
            case "ArithExpr" | "BinExpr":
                return self._operation(expr, content, env)
            case "UnaryExpr":
                negated = self.shape(content["expr"], env)
                self._check_operand("minus", content["expr"], negated, A_NUMBER)
                return A_NUMBER
        return ANY

    def _silently(self, expr: Any, env: Environment) -> Shape:
        reports, self._reports = self._reports, False
        try:
            return self.shape(expr, env.copy())
        finally:
            self._reports = reports

    def _object(self, content: Any, env: Environment) -> Shape:
        fields: dict[str, Shape] = {}
        rest: list[tuple[Shape, Shape]] = []
        for _, key, value in content["fields"]:
            key_shape, value_shape = self.shape(key, env), self.shape(value, env)
            if (name := only_string(key_shape)) is not None and kind_of(key)[0] in ("String", "RawString"):
                fields[name] = value_shape
            else:
                rest.append((key_shape, value_shape))
        others = (join(k for k, _ in rest), join(v for _, v in rest)) if rest else None
        return Shape((Object(tuple(Field(k, v) for k, v in fields.items()), others, is_written=True),))

    def _comprehension(self, kind: str, content: Any, env: Environment) -> Shape:
        inner, is_inner = env.copy(), self._is_inner
        self._is_inner = True
        self.query(content["query"]["stmts"], inner)
        terms = [self.shape(content[key], inner) for key in ("key", "value", "term") if content.get(key)]
        self._is_inner = is_inner
        if kind == "ObjectCompr":
            return Shape((Object((), (terms[0], terms[1])),))
        term = terms[0]
        return Shape((SetOf(term) if kind == "SetCompr" else Array((), term),))

    def _comparison(self, content: Any, env: Environment) -> None:
        if content["op"] == "Eq":
            self._compare(content["lhs"], content["rhs"], env)
            return
        self.shape(content["lhs"], env)
        self.shape(content["rhs"], env)
        if content["op"] == "Ne":
            # That it is always true may well be meant; that a value does not exist may not.
            self._unknown_values(content["lhs"], content["rhs"], env)

    def _compare(self, a: Any, b: Any, env: Environment) -> None:
        shapes = self.shape(a, env), self.shape(b, env)
        if self._is_negated:
            shapes = self._at_first(a, env), self._at_first(b, env)
        sentence = comparisons.never_equal(shapes[0], self._text(a), shapes[1], self._text(b))
        if sentence is not None:
            self._error(start_of(a), "never", sentence)
        else:
            self._unknown_values(a, b, env)

    def _unknown_values(self, a: Any, b: Any, env: Environment) -> None:
        """Report values that do not exist at all; others may be excluded twice."""
        if self._reports:
            found = comparisons.unknown_values(
                self._at_first(a, env), self._text(a), self._at_first(b, env), self._text(b)
            )
            for sentence in found:
                self._error(start_of(a), "never", sentence)

    def _at_first(self, expr: Any, env: Environment) -> Shape:
        return self._silently(expr, env.before_conditions())

    def _membership(self, content: Any, env: Environment) -> None:
        item, collection = content["value"], content["collection"]
        shape = self.shape(item, env)
        if content["key"] is not None:
            self.shape(content["key"], env)
        _, values = self._members(collection, env)
        kind, inside = kind_of(collection)
        is_told = False
        first = self._at_first(item, env) if self._reports else ANY
        for other in inside["items"] if kind in ("Array", "Set") and not is_written(first) else ():
            sentence = comparisons.never_equal(
                first, self._text(item), self._at_first(other, env), self._text(other)
            )
            if sentence is not None:
                is_told = True
                self._error(start_of(other), "never", sentence)
        if is_told:
            return
        if self._is_negated:
            shape, values = self._at_first(item, env), elements(self._at_first(collection, env))[1]
        text = f"each element of {self._text(collection)}"
        sentence = comparisons.never_equal(shape, self._text(item), values, text)
        if sentence is not None:
            self._error(start_of(item), "never", sentence)
        elif self._reports:
            first = elements(self._at_first(collection, env))[1]
            for sentence in comparisons.unknown_values(
                self._at_first(item, env), self._text(item), first, text
            ):
                self._error(start_of(item), "never", sentence)

    def _operation(self, expr: Any, content: Any, env: Environment) -> Shape:
        name = _OPERATORS[content["op"]]
        a, b = self.shape(content["lhs"], env), self.shape(content["rhs"], env)
        declared = table()[name].arguments
        for side, shape, wanted in ((content["lhs"], a, declared[0]), (content["rhs"], b, declared[1])):
            self._want(side, wanted)
            if not self._check_operand(name, side, shape, wanted):
                return ANY
        if name == "minus" and results.never_subtracts(a, b):
            sentence = "- needs two numbers or two sets, but this is one of each. Use another value"
            self._error(start_of(expr), "type", sentence)
            return ANY
        return results.of_operator(name, a, b)

    def _check_operand(self, name: str, side: Any, shape: Shape, wanted: Shape) -> bool:
        if shape.is_never or meets(shape, wanted):
            return True
        sentence = f"{_SIGNS[name]} needs {types_of(wanted)}, but {self._text(side)} is {types_of(shape)}"
        if not self._chooses(side):
            self._error(start_of(side), "type", f"{sentence}. Use another value or function")
        return False

    def _chooses(self, expr: Any) -> bool:
        """Whether a value of the wrong type chooses another definition of the function at hand."""
        local = self._reading.meanings.get(id(expr))
        return self.has_others and isinstance(local, Local) and local.how == "argument"

    def _call(self, expr: Any, params: Sequence[Any], env: Environment) -> Shape:
        arguments = [self.shape(param, env) for param in params]
        call = self._reading.calls.get(id(expr))
        found = called(self._knowledge.world, self._module, call[1]) if call is not None else None
        if found is None:
            return ANY
        if found.builtin is not None:
            return self._call_builtin(found.builtin, params, arguments)
        assert found.path is not None
        if self._reports:
            self._knowledge.add_call(found.path, arguments)
            for number, (shape, wanted) in enumerate(
                zip(arguments, self._knowledge.wanted(found.path), strict=False)
            ):
                self._check_argument(".".join(call[1]) if call else "", number, params[number], shape, wanted)
        return self._knowledge.value(found.path)

    def _call_builtin(self, builtin: Builtin, params: Sequence[Any], arguments: Sequence[Shape]) -> Shape:
        for number, (shape, wanted) in enumerate(zip(arguments, builtin.arguments, strict=False)):
            self._want(params[number], wanted)
            if not self._check_argument(builtin.name, number, params[number], shape, wanted):
                return ANY
        if builtin.name == "object.get" and len(params) == 3:
            self._check_get(params, arguments)
        return results.of_call(builtin, arguments)

    def _check_argument(self, name: str, number: int, param: Any, shape: Shape, wanted: Shape) -> bool:
        if shape.is_never or meets(shape, wanted):
            return True
        sentence = (
            f"the {_ORDINALS[number]} argument of {name} must be {types_of(wanted)}, "
            f"but {self._text(param)} is {types_of(shape)}. Use another value or function"
        )
        if not self._chooses(param):
            self._error(start_of(param), "type", sentence)
        return False

    def _want(self, expr: Any, wanted: Shape) -> None:
        """If an expression is an argument of the function at hand, its callers must give it what is wanted."""
        local = self._reading.meanings.get(id(expr))
        if isinstance(local, Local) and local.how == "argument" and not self._is_inner:
            self.wanted.setdefault(local, wanted)

    def _check_get(self, params: Sequence[Any], arguments: Sequence[Shape]) -> None:
        of, key = arguments[0], arguments[1]
        if not of.is_never and only_string(key) is not None and select(of, key).is_never:
            self._error(start_of(params[1]), "field", parts.sentence(self._text(params[0]), of, key))

    def _members(self, expr: Any, env: Environment) -> tuple[Shape, Shape]:
        """The shapes of keys and values of a collection."""
        shape = self.shape(expr, env)
        keys, values = elements(shape)
        if (
            not shape.is_any
            and not shape.is_never
            and not any(isinstance(option, (Array, SetOf, Object)) for option in shape.options or ())
        ):
            sentence = f"{self._text(expr)} is {types_of(shape)}, which has no elements. Use an array, a set or an object"
            self._error(start_of(expr), "type", sentence)
            return ANY, ANY
        return keys, values
