"""
Where the engine reads a policy otherwise than OPA does, and no error says so.

Each was found by asking both, and each could affirm here what OPA contraindicates: a local variable
that has a rule's name, an object as a pattern, an import of the package itself, a reference as an
argument, a regular expression, a glob or a format with a construct that the two read in two ways.
The table in ``docs/rego.md`` has a test for each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

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

_PATTERNS: Final[Mapping[str, int]] = {
    "regex.match": 0,
    "regex.find_n": 0,
    "regex.find_all_string_submatch_n": 0,
    "regex.split": 0,
    "regex.is_valid": 0,
    "regex.replace": 1,
    "regex.template_match": 0,
}
"""Functions that take a regular expression, and which argument it is."""
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_UNICODE_CLASSES: Final[Mapping[str, str]] = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[0-9A-Za-z_]",
    "W": "[^0-9A-Za-z_]",
    "s": r"[\t\n\f\r ]",
    "S": r"[^\t\n\f\r ]",
    "b": "",
    "B": "",
}
"""Escapes that mean ASCII in OPA and Unicode here, with the class to write instead."""
_OTHER_ESCAPES: Final = frozenset("<>uUQE0")
_SET_OPERATORS: Final = re.compile(r"&&|--|~~")
_FLAGS: Final = re.compile(r"\(\?([A-Za-z-]*)[:)]")
_SAME_FLAGS: Final = frozenset("imsU-")
_DOUBLED: Final = re.compile(r"[*+?}](?:[*+]|\{\d)|[*+}]\?[?*+]")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|[^\]])*\]")
_REPEAT: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_MAX_REPEAT: Final = 1000
_VERB: Final = re.compile(r"%(?:(%)|(0?\d*)(?:\.(\d+))?(.?))", re.DOTALL)
_UNLIKE: Final[Mapping[str, str]] = {
    "strings.count": "counts texts that overlap, and OPA does not; an empty one stops the engine. "
    "Write count(split(text, part)) - 1",
    "strings.replace_n": "replaces again in what it has put in, and OPA does not. "
    "Write replace for one text after the other",
    "regex.split": "gives other parts than OPA where the pattern matches nothing. Write split",
}
"""Functions with another value than in OPA, and what to write instead."""
_PARTLY: Final[Mapping[str, str]] = {
    "lower": "differs from OPA for a few letters beyond ASCII (İ, Σ). Compare what is ASCII, or list the spellings",
    "upper": "differs from OPA for a few letters beyond ASCII (ß). Compare what is ASCII, or list the spellings",
    "to_number": "accepts spaces around the number, which is an error in OPA",
    "time.parse_rfc3339_ns": "accepts a space or a small letter between date and time, which is an error in OPA",
    "urlquery.decode": "keeps an escape that is none, which is an error in OPA",
    "semver.is_valid": "refuses a leading v and leading zeros, which OPA accepts",
    "json.match_schema": "gives null in place of an empty list of errors",
}
"""Functions with another value than in OPA for some arguments."""


@dataclass(frozen=True)
class Unlike:
    """What the engine reads otherwise than OPA does."""

    rule: str
    file: str
    line: int
    column: int
    sentence: str
    is_error: bool
    """Otherwise it concerns only some values, and informs the author."""


def check(modules: Sequence[Any]) -> Iterator[Unlike]:
    """All of it in *modules*, without tests, as ``json.loads(engine.get_ast_as_json())`` gives them."""
    names: dict[str, set[str]] = {}
    for module in modules:
        source = module["source"]["contents"].encode()
        package = ".".join(full_path(module["ast"]["package"]["refr"], source)[0])
        for rule in module["ast"]["rules"]:
            names.setdefault(package, set()).add(full_path(head_of(rule)[1]["refr"], source)[0][0])
    for module in modules:
        yield from _Module(module, names).check()


class _Module:
    def __init__(self, module: Any, names: Mapping[str, set[str]]) -> None:
        self._file = module["source"]["file"]
        self._source = module["source"]["contents"].encode()
        self._ast = module["ast"]
        self._module = module
        self._package = full_path(self._ast["package"]["refr"], self._source)[0]
        self._global = set(names[".".join(self._package)]) if ".".join(self._package) in names else set()
        self._constants: dict[str, list[tuple[str, Any]]] = {}
        """The strings that a name is given somewhere in the module, each with its span."""

    def check(self) -> Iterator[Unlike]:
        for span, path, alias in imports_of(self._module, self._source):
            self._global.add(alias)
            if path[0] == "data" and path[1:] and self._package[: len(path) - 1] == path[1:]:
                yield self._unlike(
                    span,
                    "import-own",
                    f"{'.'.join(path)} holds this module, and such an import is undefined here. "
                    f"Write {'.'.join(path)}.NAME where you use it, or import {'.'.join(path)}.NAME",
                )
        nodes = list(self._nodes())
        for node in nodes:
            self._remember(node)
        for rule in self._ast["rules"]:
            for argument in head_of(rule)[1].get("args") or ():
                yield from self._check_pattern(argument, is_argument=True)
        for node in nodes:
            yield from self._check_node(node)

    def _nodes(self) -> Iterator[Any]:
        """Each node of the tree that is an object with names of its own.  Without recursion: the tree may be deep."""
        work: list[Any] = [self._ast["rules"]]
        while work:
            node = work.pop()
            if isinstance(node, list):
                work += node
            elif isinstance(node, dict) and "line" not in node:
                yield node
                work += node.values()

    def _remember(self, node: Any) -> None:
        pairs = []
        if "AssignExpr" in node:
            pairs.append((node["AssignExpr"]["lhs"], node["AssignExpr"]["rhs"]))
        elif "refr" in node and isinstance(node.get("assign"), dict):
            pairs.append((node["refr"], node["assign"]["value"]))
        for name, value in pairs:
            (kind, content), (value_kind, text) = kind_of(name), kind_of(value)
            if kind == "Var" and value_kind in ("String", "RawString"):
                self._constants.setdefault(content["value"], []).append((text["value"], text["span"]))

    def _check_node(self, node: Any) -> Iterator[Unlike]:
        if "SomeVars" in node:
            for span in node["SomeVars"]["vars"]:
                if (name := text_of(span, self._source)) in self._global:
                    yield self._unlike(
                        span,
                        "shadowed",
                        f"{name} is the name of a rule or an import too. Here the rule wins, and in OPA the variable. "
                        "Give the variable another name",
                    )
        elif "SomeIn" in node:
            for pattern in (node["SomeIn"]["key"], node["SomeIn"]["value"]):
                if pattern:
                    yield from self._check_pattern(pattern)
        elif "AssignExpr" in node:
            yield from self._check_pattern(node["AssignExpr"]["lhs"])
            if node["AssignExpr"]["op"] == "Eq":
                yield from self._check_pattern(node["AssignExpr"]["rhs"])
        elif "Call" in node:
            yield from self._check_call(node["Call"])

    def _check_pattern(self, pattern: Any, *, is_argument: bool = False) -> Iterator[Unlike]:
        work = [pattern]
        while work:
            kind, content = kind_of(work.pop())
            if kind == "Object":
                yield self._unlike(
                    content["span"],
                    "pattern",
                    "an object as a pattern matches objects with more keys here, and in OPA only those with exactly "
                    "these. Take the whole object, and read its fields",
                )
            elif kind == "Array":
                work += content["items"]
            elif is_argument and kind in ("RefDot", "RefBrack", "Call"):
                sentence = (
                    "OPA refuses an argument that is a reference. Take a variable, and compare it in the body"
                )
                yield self._unlike(start_of({kind: content}), "pattern", sentence)

    def _check_call(self, call: Any) -> Iterator[Unlike]:
        base, names, computed = path_of(call["fcn"], self._source)
        kind, content = kind_of(base)
        if kind != "Var" or computed or content["value"] in self._global:
            return
        name, span = ".".join([content["value"], *names]), start_of(call["fcn"])
        if name in _UNLIKE:
            yield self._unlike(span, "builtin-unlike", f"{name} {_UNLIKE[name]}")
        elif name in _PARTLY:
            yield self._unlike(span, "builtin-partly", f"{name} {_PARTLY[name]}", is_error=False)
        if name in _PATTERNS and len(call["params"]) > _PATTERNS[name]:
            for text, place in self._strings(call["params"][_PATTERNS[name]]):
                for sentence in regex_differences(text):
                    yield self._unlike(place, "regex", sentence)
        elif name == "glob.match" and len(call["params"]) > 1:
            for text, place in self._strings(call["params"][0]):
                if glob_differs(text, self._delimiters(call["params"][1])):
                    sentence = (
                        "** inside a part of the name ends at a delimiter here, and not in OPA. "
                        "Let ** be a whole part, or write * for each part"
                    )
                    yield self._unlike(place, "glob", sentence)
        elif name == "sprintf" and call["params"]:
            for text, place in self._strings(call["params"][0]):
                for verb in format_differences(text):
                    sentence = f"{verb} has another text here than in OPA. Write %v, %s or %d without a width, or %.2f"
                    yield self._unlike(place, "format", sentence)

    def _strings(self, expr: Any) -> list[tuple[str, Any]]:
        """The strings that an expression may be, as far as the module shows."""
        kind, content = kind_of(expr)
        if kind in ("String", "RawString"):
            return [(content["value"], content["span"])]
        return self._constants.get(content["value"], []) if kind == "Var" else []

    def _delimiters(self, expr: Any) -> str:
        kind, content = kind_of(expr)
        if kind != "Array":
            return ""
        found = [kind_of(item)[1].get("value") for item in content["items"]]
        return "".join(d for d in found if isinstance(d, str)) or "."

    def _unlike(self, span: Any, rule: str, sentence: str, *, is_error: bool = True) -> Unlike:
        line, column = position_of(span, self._source)
        return Unlike(
            file=self._file, line=line, column=column, rule=rule, sentence=sentence, is_error=is_error
        )


def regex_differences(pattern: str) -> Iterator[str]:
    """What of a regular expression means something else in OPA (RE2 as Go has it), or is refused there."""
    for escape in sorted({match[1] for match in _ESCAPE.finditer(pattern)}):
        if escape in _UNICODE_CLASSES:
            instead = _UNICODE_CLASSES[escape]
            write = f"Write {instead}" if instead else "Write what may stand there"
            yield f"\\{escape} is about Unicode here, and about ASCII in OPA. {write}"
        elif escape in _OTHER_ESCAPES:
            yield f"\\{escape} means something else in OPA. Write it without"
    bare = _ESCAPE.sub("..", pattern)
    classes, outside = "".join(_CLASS.findall(bare)), _CLASS.sub("c", bare)
    if _SET_OPERATORS.search(classes):
        yield "&&, -- and ~~ inside brackets are operators here, and characters in OPA. Escape them"
    for flags in _FLAGS.finditer(outside):
        if set(flags[1]) - _SAME_FLAGS:
            yield f"(?{flags[1]} is not in OPA. Use only the flags i, m, s and U"
    if _DOUBLED.search(outside):
        yield "one repetition follows another, which OPA refuses. Use one, or parentheses"
    if any(int(n) > _MAX_REPEAT for found in _REPEAT.finditer(outside) for n in found.groups() if n):
        yield f"OPA repeats at most {_MAX_REPEAT} times. Use fewer, or compare the length"


def glob_differs(pattern: str, delimiters: str) -> bool:
    """Whether ``**`` of a glob is not a whole part between delimiters, where the engines differ."""
    parts = re.split(f"[{re.escape(delimiters)}]", pattern) if delimiters else [pattern]
    return any("**" in part and part != "**" for part in parts)


def format_differences(text: str) -> Iterator[str]:
    """The verbs of a format whose text differs: widths, flags, and those of which Go's form is another."""
    for match in _VERB.finditer(text):
        percent, width, precision, verb = match.groups()
        if percent or (verb in ("s", "v", "d", "x", "X", "b", "c", "q") and not width and precision is None):
            continue
        if verb == "d" and width.startswith("0") and precision is None:
            continue
        if verb == "f" and not width and precision is not None:
            continue
        yield match[0]
