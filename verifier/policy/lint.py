"""
Lint: what a policy must not contain, found before anything of it is evaluated.

A policy judges its input and its data and nothing else: no clock, no random numbers, no network, no
environment.  It ends on every input, and it gives no outcome if it has no reason for one.  `check`
reads regorus' syntax trees (``get_ast_as_json``, decoded) and needs no engine.  A bundle with an
error is refused; a warning only informs its author.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any, Final

from verifier.policy import ar4si, callgraph, dialect, heads, undefined
from verifier.policy.syntax import (
    full_path,
    head_of,
    imports_of,
    kind_of,
    path_of,
    position_of,
    start_of,
    text_of,
)

MAX_RANGE: Final = 100_000
"""One call with constant arguments may make so many numbers, characters or bits at most."""
_MAX_INTEGER: Final = 2**53
"""Readers of JSON disagree about larger integers."""
_ENTRY: Final = "outcome"
"""The name of the rule that the verifier evaluates."""
_PACKAGE: Final = "touchstone"
"""The package of that rule."""
_RESERVED: Final = ("system", "data", "input")
"""Packages that mean something else to an engine, or to a reader."""
_FORMAT_WIDTH: Final = re.compile(r"%[^%a-zA-Z]*?(\d{4,})")


class Level(StrEnum):
    """Whether a bundle is refused for a finding."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class LintFinding:
    """What is wrong, where, and what the author should do."""

    level: Level
    rule: str
    file: str
    line: int
    column: int
    """From 1, in characters.  (The engine's own messages count bytes, and four for a tab.)"""
    sentence: str

    def __str__(self) -> str:
        """``FILE:LINE:COLUMN: sentence (rule)``."""
        return f"{self.file}:{self.line}:{self.column}: {self.sentence} ({self.rule})"


_NONDETERMINISTIC: Final = (
    "nondeterministic",
    "gives another value each time, but equal evidence must get equal outcomes. Judge input instead",
)
_NETWORK: Final = ("network", "uses the network. Put what the policy must know into the bundle's data")
_ABSENT: Final = (
    "builtin",
    "is not in every engine. The verifier checks signatures and digests itself, so judge input.checked",
)
_METADATA: Final = ("builtin", "is not in every engine. Put what the rule needs into the bundle's data")
# By name, or by prefix if the key ends in a dot: the lint rule, and how its sentence goes on after the name.
_BUILTINS: Final[Mapping[str, tuple[str, str]]] = {
    "http.": _NETWORK,
    "net.": _NETWORK,
    "rand.": _NONDETERMINISTIC,
    "uuid.": _NONDETERMINISTIC,
    "opa.runtime": (
        "environment",
        "reads the machine's environment. Put what the policy must know into the bundle's data",
    ),
    "time.now_ns": ("clock", "reads the clock. Use input.date, the date of the appraisal"),
    "yaml.": (
        "builtin",
        "is about YAML, which engines read differently. Put the data into data.json of the bundle",
    ),
    "io.jwt.": _ABSENT,
    "crypto.": _ABSENT,
    "rego.metadata.": _METADATA,
    "rego.parse_module": ("builtin", "reads other policies. Put their rules into this bundle"),
    "trace": ("builtin", "has no effect here. Give reason codes with the outcome"),
    "print": ("print", "has an effect in tests only. Give reason codes with the outcome, or remove it"),
}


def is_forbidden(name: str) -> bool:
    """Whether no policy may call the built-in function *name*."""
    return name in _BUILTINS or _prefix(name) in _BUILTINS


def check(modules: Sequence[Any], *, tests: frozenset[str]) -> tuple[LintFinding, ...]:
    """
    All findings, by file, line and column.

    Args:
        modules: The modules as ``json.loads(engine.get_ast_as_json())`` gives them.
        tests: The names of the files with tests.  Only these may replace input and data, and only
            their tests run.
    """
    found = set(_check_together(modules, tests))
    for module in modules:
        found |= set(_Module(module, is_test=module["source"]["file"] in tests).findings())
    for fault in heads.faults(modules):
        found.add(LintFinding(Level.ERROR, fault.rule, *fault.place, fault.sentence))
    for cycle in callgraph.cycles(modules):
        sentence = (
            f"{cycle} is recursion, and the engine would crash. Repeat over a collection instead "
            f"(some … in, every, a comprehension)"
        )
        found.add(
            LintFinding(
                level=Level.ERROR,
                rule="recursion",
                file=cycle.file,
                line=cycle.line,
                column=cycle.column,
                sentence=sentence,
            )
        )
    rules = [module for module in modules if module["source"]["file"] not in tests]
    found |= {LintFinding(Level.ERROR, *astuple(part)) for part in undefined.check(rules)}
    for unlike in dialect.check(rules):
        *place, is_error = astuple(unlike)
        found.add(LintFinding(Level.ERROR if is_error else Level.WARNING, *place))
    return ordered(found)


def ordered(found: Iterable[LintFinding]) -> tuple[LintFinding, ...]:
    """Findings by file, line and column."""
    return tuple(sorted(found, key=lambda f: (f.file, f.line, f.column, f.rule, f.sentence)))


def _check_together(modules: Sequence[Any], tests: frozenset[str]) -> Iterator[LintFinding]:
    """Check what concerns all modules together: that there is an entry, and that there are tests."""
    rules = [m for m in modules if m["source"]["file"] not in tests]
    if not any(
        [*package, *names][:2] == [_PACKAGE, _ENTRY] and kind != "Default"
        for package, kind, names in _heads(rules)
    ):
        yield _missing(
            rules or modules,
            "entry",
            f"there is no rule {_PACKAGE}.{_ENTRY}, which the verifier evaluates. Give in it the "
            "trust_vector and the reasons of each submodule of input.checked" + _rename_hint(rules),
        )
    heads = _heads([m for m in modules if m["source"]["file"] in tests])
    if not any(names[0].startswith("test_") and kind in ("Compr", "Set") for _, kind, names in heads):
        yield _missing(
            [m for m in modules if m["source"]["file"] in tests] or modules,
            "tests-missing",
            "there is no test. Write rules named test_… in a file *_test.rego",
        )


def _rename_hint(modules: Sequence[Any]) -> str:
    """What an author may have meant who wrote the rule elsewhere, or under the names that OPA's users know."""
    found = [(".".join(package), names[0]) for package, _, names in _heads(modules)]
    for package, name in found:
        if name == _ENTRY and package != _PACKAGE:
            return f". There is {package}.{_ENTRY}: rename package {package} to {_PACKAGE}"
    for package, name in found:
        if name in ("allow", "deny", "violation", "warn"):
            return f". Nothing asks for {package}.{name}"
    return ""


def _heads(modules: Sequence[Any]) -> Iterator[tuple[list[str], str, list[str]]]:
    for module in modules:
        source = module["source"]["contents"].encode()
        package, _ = full_path(module["ast"]["package"]["refr"], source)
        for rule in module["ast"]["rules"]:
            kind, head = head_of(rule)
            yield package, kind, full_path(head["refr"], source)[0]


def _missing(modules: Sequence[Any], rule: str, sentence: str) -> LintFinding:
    if not modules:
        file, line, column = "bundle.json", 1, 1
    else:
        source = modules[0]["source"]
        file = source["file"]
        line, column = position_of(modules[0]["ast"]["package"]["span"], source["contents"].encode())
    return LintFinding(level=Level.ERROR, rule=rule, file=file, line=line, column=column, sentence=sentence)


class _Module:
    """Checks one module."""

    def __init__(self, module: Any, *, is_test: bool) -> None:
        self._file = module["source"]["file"]
        self._source = module["source"]["contents"].encode()
        self._module = module
        self._ast = module["ast"]
        self._is_test = is_test
        self._package, self._computed = full_path(self._ast["package"]["refr"], self._source)
        self._names_values = is_test or self._package == ["ar4si"]

    def _error(self, span: Any, rule: str, sentence: str, level: Level = Level.ERROR) -> LintFinding:
        line, column = position_of(span, self._source)
        return LintFinding(
            level=level, rule=rule, file=self._file, line=line, column=column, sentence=sentence
        )

    def findings(self) -> Iterator[LintFinding]:
        """All findings that need this module alone."""
        yield from self._check_package()
        for span, path, alias in imports_of(self._module, self._source):
            yield from self._check_import(span, path, alias)
        for rule in self._ast["rules"]:
            yield from self._check_rule(rule)
            yield from self._check_inside(rule)

    def _check_package(self) -> Iterator[LintFinding]:
        span, package = self._ast["package"]["span"], self._package
        name = ".".join(package)
        if self._computed:
            yield self._error(span, "package", "the package's name has escapes. Write it without them")
        elif package[0] in _RESERVED:
            sentence = f"{name}: engines keep the package {package[0]} for themselves. Use lib.…, for example"
            yield self._error(span, "package", sentence)

    def _check_import(self, span: Any, path: list[str], alias: str) -> Iterator[LintFinding]:
        name = ".".join(path)
        if alias in ("data", "input"):
            yield self._error(
                span, "import", f"{name} is imported as {alias}, which hides {alias}. Give it another name"
            )
        elif not (
            path == ["rego", "v1"] or path[:2] == ["future", "keywords"] or path[0] in ("data", "input")
        ):
            sentence = f"{name} cannot be imported. Import only rego.v1, future.keywords, data.… and input.…"
            yield self._error(span, "import", sentence)

    def _check_rule(self, rule: Any) -> Iterator[LintFinding]:
        kind, head = head_of(rule)
        span, name = head["span"], full_path(head["refr"], self._source)[0][0]
        if self._package == [_PACKAGE] and name == _ENTRY and not self._is_test:
            if kind == "Func":
                sentence = f"{_ENTRY} is a function, but it must be a rule: {_ENTRY}[name] := … if some name, facts in …"
                yield self._error(span, "entry", sentence)
            elif kind == "Default":
                sentence = (
                    f"{_ENTRY} has a default, and would give an outcome without a reason. Remove the default"
                )
                yield self._error(span, "entry", sentence)
        if name.startswith("test_") and not self._is_test:
            yield self._error(span, "test-outside", f"{name} would never run. Move it to a file *_test.rego")
        if name.startswith("todo_test_"):
            sentence = f"{name} does not run. Finish it and rename it to {name.removeprefix('todo_')}"
            yield self._error(span, "test-todo", sentence, Level.WARNING)
        if self._names_values:
            return
        values = [head["value"]] if kind == "Default" else []
        if kind != "Default":
            assigned = [head.get("assign"), *(body["assign"] for body in rule["Spec"]["bodies"])]
            values = [assign["value"] for assign in assigned if assign]
        for value in values:
            if _integer(value) is not None:
                sentence = f"{name} is a bare number. Use a name of data.ar4si, or put the number into the bundle's data"
                yield self._error(start_of(value), "bare-number", sentence, Level.WARNING)

    def _check_inside(self, rule: Any) -> Iterator[LintFinding]:
        # Without recursion, because the tree may be deep.
        work: list[Any] = [rule]
        while work:
            node = work.pop()
            if isinstance(node, list):
                work += node
                continue
            if not isinstance(node, dict) or "line" in node:
                continue
            work += node.values()
            if "Call" in node:
                yield from self._check_call(node["Call"])
            elif "Number" in node and not self._is_test:
                yield from self._check_number(node["Number"])
            elif "Object" in node and not self._names_values:
                yield from self._check_object(node["Object"])
            elif node.get("with_mods"):
                for changed in node["with_mods"]:
                    yield from self._check_with(changed)

    def _check_call(self, call: Any) -> Iterator[LintFinding]:
        yield from self._check_builtin(call["fcn"], start_of(call["fcn"]))
        size = _size(self._name(call["fcn"]), call["params"])
        if size > MAX_RANGE:
            sentence = (
                f"this makes {size} elements, and at most {MAX_RANGE} are allowed. "
                "Go through a collection of the input instead"
            )
            yield self._error(start_of(call["fcn"]), "unbounded", sentence)

    def _check_with(self, changed: Any) -> Iterator[LintFinding]:
        if not self._is_test:
            sentence = "a policy must not replace its input or data. Use with in tests only"
            yield self._error(changed["span"], "with", sentence)
        for expr in (changed["refr"], changed["as"]):
            yield from self._check_builtin(expr, start_of(expr))

    def _check_builtin(self, refr: Any, span: Any) -> Iterator[LintFinding]:
        name = self._name(refr)
        if is_forbidden(name):
            rule, sentence = _BUILTINS.get(name) or _BUILTINS[_prefix(name)]
            if rule == "print" and self._is_test:
                return
            level = Level.WARNING if rule == "print" else Level.ERROR
            yield self._error(span, rule, f"{name} {sentence}", level)

    def _name(self, refr: Any) -> str:
        base, names, computed = path_of(refr, self._source)
        kind, content = kind_of(base)
        return "" if kind != "Var" or computed else ".".join([content["value"], *names])

    def _check_number(self, number: Any) -> Iterator[LintFinding]:
        # The tree has 1 for 1.0, so only the text shows the difference.
        text = text_of(number["span"], self._source)
        if any(sign in text for sign in ".eE"):
            sentence = f"{text[:40]} is not an integer, and values are integers. Count in smaller units"
            yield self._error(number["span"], "number", sentence)
        elif abs(number["value"]) > _MAX_INTEGER:
            sentence = f"{text[:40]} is beyond 2^53, where readers of JSON disagree. Use a smaller number, or a string"
            yield self._error(number["span"], "number", sentence)

    def _check_object(self, content: Any) -> Iterator[LintFinding]:
        for _, key, value in content["fields"]:
            kind, text = kind_of(key)
            number = _integer(value)
            if kind not in ("String", "RawString") or number is None:
                continue
            claim = str(text["value"]).replace("-", "_")
            if (values := _CLAIMS.get(claim)) is None or text["value"] != claim.replace("_", "-"):
                continue
            name = next((name for name, known in values.items() if known == number), None)
            sentence = (
                f"{number} is a bare number. Write data.ar4si.{claim}.{name}"
                if name
                else f"{number} is not a value of {text['value']}. Use one of data.ar4si.{claim}"
            )
            yield self._error(start_of(value), "bare-number", sentence, Level.WARNING)


_CLAIMS: Final = ar4si.names()


def _prefix(name: str) -> str:
    """The prefix of a builtin: ``io.jwt.`` of ``io.jwt.decode``, because the table has both names, or else one name."""
    parts = name.split(".")
    two = ".".join(parts[:2]) + "."
    return two if len(parts) > 2 and two in _BUILTINS else parts[0] + "." if len(parts) > 1 else ""


def _integer(expr: Any) -> int | None:
    """The value of an integer literal with its sign; `None` for any other expression."""
    kind, content = kind_of(expr)
    sign = 1
    if kind == "UnaryExpr":
        sign = -1
        kind, content = kind_of(content["expr"])
    return sign * content["value"] if kind == "Number" and isinstance(content["value"], int) else None


def _size(name: str, params: Sequence[Any]) -> int:
    """How many elements a call with constant arguments makes; 0 if that is unknown."""
    numbers = [_integer(param) for param in params]
    match name, numbers:
        case "numbers.range", [int(first), int(last), *_]:
            return abs(last - first) + 1
        case "numbers.range_step", [int(first), int(last), int(step), *_] if step > 0:
            return abs(last - first) // step + 1
        case "bits.lsh", [_, int(shift), *_]:
            return shift
        case "sprintf", [_, *_]:
            kind, content = kind_of(params[0])
            if kind in ("String", "RawString"):
                # The first digits are enough: any width of so many digits is far too large.
                return max((int(width[:18]) for width in _FORMAT_WIDTH.findall(content["value"])), default=0)
    return 0
