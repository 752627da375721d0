"""
What each name means: a local variable, a rule, an import, `input` or `data`.

As in OPA, a variable is local from its declaration (arguments, ``some``, ``every``, ``:=``) to the
end of its query; before it, the name means something else, and OPA refuses that.  A name that means
nothing else is a variable of the outermost query that has it outside comprehensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from verifier.policy.checker import builtins
from verifier.policy.checker.builtins import Builtin
from verifier.policy.checker.world import Body, Definition, Import, Module, Path, World
from verifier.policy.syntax import kind_of, path_of, start_of, text_of

How: TypeAlias = Literal["argument", "some", "member", "every", "assigned", "free"]
ROOTS: Final = ("input", "data")
WILD: Final = "_"
CLOSURES: Final = ("ArrayCompr", "SetCompr", "ObjectCompr")


@dataclass(eq=False, slots=True)
class Local:
    """A local variable."""

    name: str
    how: How
    span: Any
    depth: int
    """How many queries are around it."""
    uses: int = 0


@dataclass(frozen=True, slots=True)
class RuleName:
    """A name of the package's own rules."""

    path: Path


Meaning: TypeAlias = Local | RuleName | Import


@dataclass(eq=False)
class _Scope:
    depth: int
    above: _Scope | None
    names: dict[str, Local] = field(default_factory=dict)
    used_before: set[str] = field(default_factory=set)


@dataclass
class Reading:
    """What was read in one definition."""

    meanings: dict[int, Meaning] = field(default_factory=dict)
    """By the `id` of a variable's node.  Names that are not in it are roots, or mean nothing."""
    declared: dict[int, list[Local]] = field(default_factory=dict)
    """By the `id` of ``some`` or ``every``, what it declares by name."""
    locals: list[Local] = field(default_factory=list)
    arguments: list[Local] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    calls: dict[int, tuple[Any, list[str]]] = field(default_factory=dict)
    """By the `id` of a call, its node and the name of what it calls as it is written."""
    statements: set[int] = field(default_factory=set)
    """The `id` of each call that is a whole statement."""
    with_result: set[int] = field(default_factory=set)
    """The `id` of each call whose last argument is its result."""
    replacements: dict[int, list[Any]] = field(default_factory=dict)
    """By the `id` of a statement, what ``with`` puts in place, but for functions."""


@dataclass(frozen=True, slots=True)
class Called:
    """What a call calls: a rule by its path, or a built-in function."""

    path: Path | None = None
    builtin: Builtin | None = None


def called(world: World, module: Module, names: list[str]) -> Called | None:
    """What a name calls: a rule of the package, then an import, then a built-in function, as in OPA."""
    own = (*module.package, *names)
    if names[0] == "data":
        return Called(path=tuple(names[1:])) if tuple(names[1:]) in world.rules else None
    if own in world.rules:
        return Called(path=own)
    if (imported := module.imported(names[0])) is not None and imported.path[0] == "data":
        path = (*imported.path[1:], *names[1:])
        if path in world.rules:
            return Called(path=path)
        return None
    builtin = builtins.table().get(".".join(names))
    return Called(builtin=builtin) if builtin is not None else None


def operands(expr: Any) -> list[Any]:
    """The expressions within an expression, without what stands in comprehensions, and without its patterns."""
    kind, content = kind_of(expr)
    match kind:
        case "RefDot":
            return [content["refr"]]
        case "RefBrack":
            return [content["refr"], content["index"]]
        case "Call":
            return list(content["params"])
        case "Object":
            return [part for _, key, value in content["fields"] for part in (key, value)]
        case "ArrayCompr" | "SetCompr" | "ObjectCompr":
            return []
        case _:
            named = [content.get(key) for key in ("lhs", "rhs", "expr", "key", "value", "collection")]
            return [part for part in [*named, *content.get("items", ())] if isinstance(part, dict)]


def pattern_names(expr: Any) -> Iterator[Any]:
    """The nodes of variables that a pattern declares."""
    kind, content = kind_of(expr)
    match kind:
        case "Var":
            if content["value"] != WILD:
                yield expr
        case "Array":
            for item in content["items"]:
                yield from pattern_names(item)
        case "Object":
            for _, _, value in content["fields"]:
                yield from pattern_names(value)


def pattern_values(expr: Any) -> Iterator[Any]:
    """The expressions in a pattern that declare nothing."""
    kind, content = kind_of(expr)
    match kind:
        case "Var":
            return
        case "Array":
            for item in content["items"]:
                yield from pattern_values(item)
        case "Object":
            for _, key, value in content["fields"]:
                yield key
                yield from pattern_values(value)
        case _:
            yield expr


class Reader:
    """Reads the definitions of one module."""

    def __init__(self, world: World, module: Module) -> None:
        self._world = world
        self._module = module
        self._source = module.source
        self._reading = Reading()

    def read(self, definition: Definition) -> Reading:
        """Read one definition, and report names that are declared twice or hide roots."""
        self._reading = reading = Reading()
        arguments = _Scope(0, None)
        for pattern in definition.arguments or ():
            for node in pattern_names(pattern):
                self._argument(node, arguments)
            for expr in pattern_values(pattern):
                self._expression(expr, arguments)
        reading.arguments = list(arguments.names.values())
        for body in definition.bodies:
            self._body(body, arguments)
        return reading

    def _argument(self, node: Any, scope: _Scope) -> None:
        content = node["Var"]
        known = scope.names.get(content["value"])
        if known is not None:
            known.uses += 1
            self._reading.meanings[id(node)] = known
            return
        self._declare(content["value"], content["span"], "argument", scope, node)

    def _body(self, body: Body, arguments: _Scope) -> None:
        self._query(body.statements, body.terms, _Scope(1, arguments))

    def _query(self, statements: list[Any], terms: list[Any], scope: _Scope) -> None:
        for statement in statements:
            self._reading.replacements[id(statement)] = [
                changed["as"]
                for changed in statement.get("with_mods") or ()
                if not self._is_function(changed["as"])
            ]
        self._declare_free(statements, terms, scope)
        for statement in statements:
            self._statement(statement, scope)
        for term in terms:
            self._expression(term, scope)

    def _statement(self, statement: Any, scope: _Scope) -> None:
        for changed in statement.get("with_mods") or ():
            self._target(changed["refr"], scope)
            if self._is_function(changed["as"]):
                self._target(changed["as"], scope)
        for expr in self._reading.replacements[id(statement)]:
            self._expression(expr, scope)
        literal = statement["literal"]
        kind, content = kind_of(literal)
        match kind:
            case "SomeVars":
                self._reading.declared[id(content)] = [
                    self._declare(text_of(span, self._source.text), span, "some", scope)
                    for span in content["vars"]
                ]
            case "SomeIn":
                self._expression(content["collection"], scope)
                for pattern in (content["key"], content["value"]):
                    if pattern is not None:
                        self._pattern(pattern, "member", scope)
            case "Every":
                self._expression(content["domain"], scope)
                inner = _Scope(scope.depth + 1, scope)
                self._reading.declared[id(content)] = [
                    self._declare(name, span, "every", inner)
                    for span in (content["key"], content["value"])
                    if span and (name := text_of(span, self._source.text)) != WILD
                ]
                self._query(content["query"]["stmts"], [], _Scope(scope.depth + 2, inner))
            case _:
                if "Call" in content["expr"]:
                    self._reading.statements.add(id(content["expr"]))
                self._expression(content["expr"], scope)

    def _is_function(self, expr: Any) -> bool:
        """Whether an expression is the bare name of a function."""
        base, names, computed = path_of(expr, self._source.text)
        kind, content = kind_of(base)
        return (
            kind == "Var"
            and not computed
            and bool(called(self._world, self._module, [content["value"], *names]))
        )

    def _target(self, refr: Any, scope: _Scope) -> None:
        """The target of ``with``: its base is no variable, and what it names is used."""
        base, _, computed = path_of(refr, self._source.text)
        kind, content = kind_of(base)
        if kind == "Var":
            self._global(base, content["value"])
            is_known = content["value"] in ROOTS or id(base) in self._reading.meanings
            if not is_known and not self._is_function(refr):
                sentence = f"{content['value']} cannot be replaced. Replace input, data or a function"
                self._source.error(content["span"], "undefined", sentence)
        for expr in computed:
            self._expression(expr, scope)

    def _pattern(self, pattern: Any, how: How, scope: _Scope) -> None:
        for expr in pattern_values(pattern):
            self._expression(expr, scope)
        for node in pattern_names(pattern):
            self._declare(node["Var"]["value"], node["Var"]["span"], how, scope, node)

    def _expression(self, expr: Any, scope: _Scope) -> None:
        kind, content = kind_of(expr)
        match kind:
            case "Var":
                self._use(expr, content["value"], scope)
            case "AssignExpr" if content["op"] == "ColEq":
                self._expression(content["rhs"], scope)
                if kind_of(content["lhs"])[0] not in ("Var", "Array", "Object"):
                    sentence = ":= gives a value to variables, and this is none. Compare with == instead"
                    self._source.error(start_of(content["lhs"]), "assign", sentence)
                self._pattern(content["lhs"], "assigned", scope)
            case "ArrayCompr" | "SetCompr" | "ObjectCompr":
                terms = [content[key] for key in ("key", "value", "term") if content.get(key)]
                self._query(content["query"]["stmts"], terms, _Scope(scope.depth + 1, scope))
            case "Call":
                self._call(expr, content, scope)
            case _:
                for part in operands(expr):
                    self._expression(part, scope)

    def _call(self, expr: Any, content: Any, scope: _Scope) -> None:
        base, names, computed = path_of(content["fcn"], self._source.text)
        kind, var = kind_of(base)
        if kind == "Var" and not computed:
            self._global(base, var["value"])
            self._reading.calls[id(expr)] = (expr, [var["value"], *names])
        else:
            self._expression(content["fcn"], scope)
        for param in content["params"]:
            self._expression(param, scope)

    def _use(self, node: Any, name: str, scope: _Scope) -> None:
        if name in ROOTS or name == WILD:
            return
        at: _Scope | None = scope
        while at is not None:
            if (local := at.names.get(name)) is not None:
                local.uses += 1
                self._reading.meanings[id(node)] = local
                return
            if at.depth == scope.depth:
                at.used_before.add(name)
            at = at.above
        self._global(node, name)

    def _global(self, node: Any, name: str) -> None:
        if (imported := self._module.imported(name)) is not None:
            self._reading.imports.add(name)
            self._reading.meanings[id(node)] = imported
        elif self._is_rule(name):
            self._reading.meanings[id(node)] = RuleName((*self._module.package, name))

    def _is_rule(self, name: str) -> bool:
        return name in self._world.own.get(self._module.package, ())

    def _declare(self, name: str, span: Any, how: How, scope: _Scope, node: Any = None) -> Local:
        local = Local(name, how, span, scope.depth)
        self._reading.locals.append(local)
        if node is not None:
            self._reading.meanings[id(node)] = local
        if name in ROOTS and how in ("argument", "assigned"):
            self._source.error(
                span, "shadow", f"{name} is also the name of the root {name}. Take another name"
            )
        elif how not in ("free", "argument"):
            self._check_again(local, scope)
        scope.names[name] = local
        return local

    def _check_again(self, local: Local, scope: _Scope) -> None:
        name = local.name
        is_argument = scope.depth == 1 and scope.above is not None and name in scope.above.names
        if name in scope.names or is_argument:
            sentence = f"{name} has a value already. Take another name, or compare with =="
            self._source.error(local.span, "shadow", sentence)
        elif name in scope.used_before:
            sentence = f"{name} is used above its declaration. Declare it first, or take another name"
            self._source.error(local.span, "shadow", sentence)

    def _declare_free(self, statements: list[Any], terms: list[Any], scope: _Scope) -> None:
        """Declare the variables that nothing declares and that mean nothing else."""
        declared = set(_declared(statements, self._source.text))
        replaced = [expr for s in statements for expr in self._reading.replacements[id(s)]]
        for node in _outside_closures(statements, [*replaced, *terms]):
            name = node["Var"]["value"]
            if name in declared or name in ROOTS or name == WILD or self._is_known(name, scope):
                continue
            self._declare(name, node["Var"]["span"], "free", scope)
            if name in builtins.table():
                self._source.error(node["Var"]["span"], "undefined", f"{name} is a function. Write {name}(…)")

    def _is_known(self, name: str, scope: _Scope) -> bool:
        at: _Scope | None = scope
        while at is not None:
            if name in at.names:
                return True
            at = at.above
        return self._module.imported(name) is not None or self._is_rule(name)


def _declared(statements: Iterable[Any], source: bytes) -> Iterator[str]:
    """The names that statements declare in their own query."""
    for statement in statements:
        kind, content = kind_of(statement["literal"])
        match kind:
            case "SomeVars":
                yield from (text_of(span, source) for span in content["vars"])
            case "SomeIn":
                for pattern in (content["key"], content["value"]):
                    if pattern is not None:
                        yield from (node["Var"]["value"] for node in pattern_names(pattern))
            case "Expr":
                kind, assigned = kind_of(content["expr"])
                if kind == "AssignExpr" and assigned["op"] == "ColEq":
                    yield from (node["Var"]["value"] for node in pattern_names(assigned["lhs"]))


def _outside_closures(statements: Iterable[Any], terms: Iterable[Any]) -> Iterator[Any]:
    """The nodes of variables that are not within a comprehension or the body of ``every``."""
    work = [*terms]
    for statement in statements:
        _, content = kind_of(statement["literal"])
        work += [
            content[key] for key in ("collection", "domain", "expr") if isinstance(content.get(key), dict)
        ]
        for key in ("key", "value"):
            if "collection" in content and content[key] is not None:
                work += pattern_values(content[key])
    work.reverse()
    while work:
        expr = work.pop()
        kind, _ = kind_of(expr)
        if kind == "Var":
            yield expr
        else:
            work += reversed(operands(expr))
