"""
What a policy must not hold, found before anything of it is evaluated.

A policy judges what it was given and nothing else: no clock, no chance, no network, no environment.
It ends, on every input; and it says nothing where it has nothing to say.  `check` reads regorus' syntax
trees (``get_ast_as_json``, decoded) and needs no engine.  An error keeps a bundle out, a warning does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from verifier.policy import ar4si, callgraph
from verifier.policy.callgraph import (
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
"""So many numbers, characters or bits may be asked for in one call with constant arguments."""
_MAX_INTEGER: Final = 2**53
"""Beyond it readers of JSON disagree about which number was meant."""
_ENTRY: Final = "outcome"
_HOME: Final = "touchstone"
_WIDTH: Final = re.compile(r"%[^%a-zA-Z]*?(\d{4,})")


class Level(StrEnum):
    """Whether a finding keeps a bundle out."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class LintFinding:
    """What is wrong, where, and what to do instead."""

    level: Level
    rule: str
    file: str
    line: int
    column: int
    """From 1, in characters; the engine's own messages count bytes, and four for a tab."""
    sentence: str

    def __str__(self) -> str:
        """``FILE:LINE:COLUMN: sentence (rule)``."""
        return f"{self.file}:{self.line}:{self.column}: {self.sentence} ({self.rule})"


_CHANCE: Final = (
    "nondeterministic",
    "differs each time; the same evidence must get the same outcome, so judge input",
)
_NETWORK: Final = ("network", "is about the network; give what a policy must know as the bundle's data")
_ABSENT: Final = (
    "builtin",
    "is not in every engine; signatures and digests are checked before: judge input.checked",
)
_METADATA: Final = ("builtin", "is not in every engine; put what the rule needs into the bundle's data")
# By name, or by prefix where it ends in a dot: rule and sentence.
_BUILTINS: Final[Mapping[str, tuple[str, str]]] = {
    "http.": _NETWORK,
    "net.": _NETWORK,
    "rand.": _CHANCE,
    "uuid.": _CHANCE,
    "opa.runtime": ("environment", "shows the machine that evaluates; give it as the bundle's data"),
    "time.now_ns": ("clock", "reads the clock; the date of the appraisal is input.date"),
    "yaml.": ("builtin", "is about YAML, which engines read differently; give it as data.json in the bundle"),
    "io.jwt.": _ABSENT,
    "crypto.": _ABSENT,
    "rego.metadata.": _METADATA,
    "rego.parse_module": ("builtin", "reads other policies; put their rules into this bundle"),
    "trace": ("builtin", "goes nowhere here; give reason codes with the outcome"),
    "print": ("print", "is seen in tests only; give reason codes with the outcome, or take it out"),
}


def check(modules: Sequence[Any], *, tests: frozenset[str]) -> tuple[LintFinding, ...]:
    """
    All findings, by file, line and column.

    Args:
        modules: As ``json.loads(engine.get_ast_as_json())`` has them.
        tests: Which files are tests; they may replace what is given, and only they have tests.
    """
    found = set(_whole(modules, tests))
    for module in modules:
        found |= set(_Module(module, is_test=module["source"]["file"] in tests).findings())
    for cycle in callgraph.cycles(modules):
        sentence = (
            f"{cycle} goes round, and the engine would crash; repeat over a collection that is given "
            f"(some … in, every, a comprehension) instead"
        )
        found.add(LintFinding(Level.ERROR, "recursion", cycle.file, cycle.line, cycle.column, sentence))
    return tuple(sorted(found, key=lambda f: (f.file, f.line, f.column, f.rule, f.sentence)))


def _whole(modules: Sequence[Any], tests: frozenset[str]) -> Iterator[LintFinding]:
    """What concerns all modules together."""
    rules = [m for m in modules if m["source"]["file"] not in tests]
    if not any(
        package == [_HOME] and names[0] == _ENTRY and kind != "Default"
        for package, kind, names in _heads(rules)
    ):
        yield _missing(
            rules or modules,
            "entry",
            f"there is no rule {_HOME}.{_ENTRY}, which is what is asked; say in it for each "
            "submodule of input.checked its trust_vector and reasons",
        )
    heads = _heads([m for m in modules if m["source"]["file"] in tests])
    if not any(names[0].startswith("test_") and kind in ("Compr", "Set") for _, kind, names in heads):
        yield _missing(
            [m for m in modules if m["source"]["file"] in tests] or modules,
            "tests-missing",
            "there is no test; write rules named test_… in a file *_test.rego",
        )


def _heads(modules: Sequence[Any]) -> Iterator[tuple[list[str], str, list[str]]]:
    for module in modules:
        source = module["source"]["contents"].encode()
        package, _ = full_path(module["ast"]["package"]["refr"], source)
        for rule in module["ast"]["rules"]:
            kind, head = head_of(rule)
            yield package, kind, full_path(head["refr"], source)[0]


def _missing(modules: Sequence[Any], rule: str, sentence: str) -> LintFinding:
    if not modules:
        return LintFinding(Level.ERROR, rule, "bundle.json", 1, 1, sentence)
    source = modules[0]["source"]
    place = position_of(modules[0]["ast"]["package"]["span"], source["contents"].encode())
    return LintFinding(Level.ERROR, rule, source["file"], *place, sentence)


class _Module:
    """The findings in one module."""

    def __init__(self, module: Any, *, is_test: bool) -> None:
        self._file = module["source"]["file"]
        self._source = module["source"]["contents"].encode()
        self._module = module
        self._ast = module["ast"]
        self._is_test = is_test
        self._package, self._computed = full_path(self._ast["package"]["refr"], self._source)
        self._names_values = is_test or self._package == ["ar4si"]

    def _error(self, span: Any, rule: str, sentence: str, level: Level = Level.ERROR) -> LintFinding:
        return LintFinding(level, rule, self._file, *position_of(span, self._source), sentence)

    def findings(self) -> Iterator[LintFinding]:
        """All but what takes more than one module."""
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
            yield self._error(span, "package", "the package's name has escapes; write it plainly")
        elif self._is_test:
            if not package[-1].endswith("_test"):
                sentence = f"a test in package {name}; its package must end in _test, such as {_HOME}_test"
                yield self._error(span, "package", sentence)
        elif package[0] != _HOME and package != ["ar4si"]:
            yield self._error(
                span, "package", f"package {name}; rules belong into {_HOME}, {_HOME}.… or ar4si"
            )

    def _check_import(self, span: Any, path: list[str], alias: str) -> Iterator[LintFinding]:
        name = ".".join(path)
        if alias in ("data", "input"):
            yield self._error(
                span, "import", f"{name} would be called {alias}, which hides {alias}; give it another name"
            )
        elif not (
            path == ["rego", "v1"] or path[:2] == ["future", "keywords"] or path[0] in ("data", "input")
        ):
            sentence = f"{name} cannot be imported; only rego.v1, future.keywords, data.… and input.… can"
            yield self._error(span, "import", sentence)

    def _check_rule(self, rule: Any) -> Iterator[LintFinding]:
        kind, head = head_of(rule)
        span, name = head["span"], full_path(head["refr"], self._source)[0][0]
        if self._package == [_HOME] and name == _ENTRY and not self._is_test:
            if kind == "Func":
                sentence = (
                    f"{_ENTRY} is a function; it must be a rule: {_ENTRY}[name] := … if some name, facts in …"
                )
                yield self._error(span, "entry", sentence)
            elif kind == "Default":
                sentence = f"{_ENTRY} has a default, and would conclude where nothing was found; leave it undefined then"
                yield self._error(span, "entry", sentence)
        if name.startswith("test_") and not self._is_test:
            yield self._error(span, "test-outside", f"{name} would never run; move it to a file *_test.rego")
        if name.startswith("todo_test_"):
            sentence = f"{name} does not run; finish it and call it {name.removeprefix('todo_')}"
            yield self._error(span, "test-todo", sentence, Level.WARNING)
        if self._names_values:
            return
        values = [head["value"]] if kind == "Default" else []
        if kind != "Default":
            assigned = [head.get("assign"), *(body["assign"] for body in rule["Spec"]["bodies"])]
            values = [assign["value"] for assign in assigned if assign]
        for value in values:
            if _integer(value) is not None:
                sentence = (
                    f"{name} is a bare number; name it through data.ar4si, or keep it in the bundle's data"
                )
                yield self._error(start_of(value), "bare-number", sentence, Level.WARNING)

    def _check_inside(self, rule: Any) -> Iterator[LintFinding]:
        # Not by calling itself: the tree may be deep.
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
            sentence = f"this makes {size} elements, and at most {MAX_RANGE} may be asked for; go through what is given"
            yield self._error(start_of(call["fcn"]), "unbounded", sentence)

    def _check_with(self, changed: Any) -> Iterator[LintFinding]:
        if not self._is_test:
            sentence = "a policy must judge what it was given, not what it replaced; use with in tests only"
            yield self._error(changed["span"], "with", sentence)
        for expr in (changed["refr"], changed["as"]):
            yield from self._check_builtin(expr, start_of(expr))

    def _check_builtin(self, refr: Any, span: Any) -> Iterator[LintFinding]:
        name = self._name(refr)
        if entry := _BUILTINS.get(name) or _BUILTINS.get(_prefix(name)):
            rule, sentence = entry
            level = Level.WARNING if rule == "print" else Level.ERROR
            yield self._error(span, rule, f"{name} {sentence}", level)

    def _name(self, refr: Any) -> str:
        base, names, computed = path_of(refr, self._source)
        kind, content = kind_of(base)
        return "" if kind != "Var" or computed else ".".join([content["value"], *names])

    def _check_number(self, number: Any) -> Iterator[LintFinding]:
        # The tree has 1 for 1.0: only the text tells.
        text = text_of(number["span"], self._source)
        if any(sign in text for sign in ".eE"):
            sentence = f"{text[:40]} is not an integer; values are integers, so count in smaller units"
            yield self._error(number["span"], "number", sentence)
        elif abs(number["value"]) > _MAX_INTEGER:
            sentence = f"{text[:40]} is beyond 2^53, where readers of JSON disagree; use a smaller number, or a string"
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
                f"{number} is a bare number; write data.ar4si.{claim}.{name}"
                if name
                else f"{number} is no value of {text['value']}; use one of data.ar4si.{claim}"
            )
            yield self._error(start_of(value), "bare-number", sentence, Level.WARNING)


_CLAIMS: Final = ar4si.names()


def _prefix(name: str) -> str:
    """``io.jwt.`` of ``io.jwt.decode``: two names where the table has them, else one."""
    parts = name.split(".")
    two = ".".join(parts[:2]) + "."
    return two if len(parts) > 2 and two in _BUILTINS else parts[0] + "." if len(parts) > 1 else ""


def _integer(expr: Any) -> int | None:
    """What a literal says, with its sign; `None` for anything else."""
    kind, content = kind_of(expr)
    sign = 1
    if kind == "UnaryExpr":
        sign = -1
        kind, content = kind_of(content["expr"])
    return sign * content["value"] if kind == "Number" and isinstance(content["value"], int) else None


def _size(name: str, params: Sequence[Any]) -> int:
    """How much a call with constant arguments makes; 0 where that cannot be told."""
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
                # Leading digits suffice: a width of a thousand digits is as wide as can be.
                return max((int(width[:18]) for width in _WIDTH.findall(content["value"])), default=0)
    return 0
