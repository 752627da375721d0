"""
The tests of a bundle, run as ``opa test`` runs them, within the worker process.

A table-driven test is a rule ``test_x[case] if { some case, … in …; … }``: one case for each value
that its first statements find, and each must hold.  For what fails, the first statement that does
not hold is found, and the values on both of its sides.  Both need helper rules.  They go into an
engine of their own, so that what is tested is the text that the author wrote.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from verifier.policy import rules
from verifier.policy.tokens import CLOSE, OPEN, Token, statements, tokens_of

_MAX_EXPLAINED: Final = 20
_MAX_VALUE: Final = 300
_MAX_CASES: Final = 1000
_MAX_SHOWN: Final = 5
_HELPER: Final = "__of_this_run"
_COMPARES: Final = ("==", "!=", "<=", ">=", "<", ">", "=", "in")

_NewEngine: TypeAlias = Callable[[Mapping[str, str]], Any]
"""An engine with the bundle in it, where the sources of some files have other texts."""


@dataclass(frozen=True)
class _Part:
    """One of the rules of a test: its keys, and the statements of its body."""

    keys: tuple[str, ...]
    """The text of each key: ``case`` in ``test_x[case]``."""
    names: tuple[frozenset[str], ...]
    """The names in each key."""
    body: tuple[tuple[Token, ...], ...]
    file: str

    @property
    def known_after(self) -> int:
        """How many statements there are until each key has a value."""
        last = 0
        for name in frozenset().union(*self.names):
            uses = [
                n
                for n, statement in enumerate(self.body, 1)
                if name in _names(statement) and not _declares(statement)
            ]
            last = max(last, uses[0] if uses else 0)
        return last


def run(
    engine: Any,
    new_engine: _NewEngine,
    modules: Sequence[Any],
    files: Sequence[str],
    pattern: str,
    nothing: str,
    message: Callable[[BaseException], str],
) -> Iterator[dict[str, Any]]:
    """
    Run each test whose full name has *pattern* in it.

    Args:
        engine: With all modules and data; it counts the lines that tests reach.
        new_engine: Makes another one.
        modules: The syntax trees.
        files: The names of the files with tests.
        pattern: A regular expression.
        nothing: The input that a test has if it sets none.
        message: The text of an error of the engine.
    """
    wanted = re.compile(pattern)
    explainer = _Explainer(new_engine, modules, nothing, message)
    for file, package, rule, line in rules.tests(modules, files):
        name = f"{package}.{rule}"
        if wanted.search(name) is None:
            continue
        found: dict[str, Any] = {
            "file": file,
            "line": line,
            "name": name,
            "cases": [],
            "detail": [],
            "why": None,
        }
        found |= {"seconds": 0.0, "printed": [], "skipped": rule.startswith("todo_")}
        if not found["skipped"]:
            started = time.perf_counter()
            engine.set_input_json(nothing)
            parts = explainer.parts(package, rule)
            detail = True
            try:
                if any(part.keys for part in parts):
                    value = json.loads(engine.eval_query_as_json(name))["result"]
                    _judge_cases(
                        found, value[0]["expressions"][0]["value"] if value else {}, parts, explainer
                    )
                else:
                    value = engine.eval_rule_as_json(name)
                    found["why"] = None if value == "true" else f"is {value[:200]}, not true"
                    if value.startswith("["):
                        found["why"] += f". For a table of cases write {rule}[case] if …"
            except (RuntimeError, ValueError) as error:
                found["why"], detail = message(error), False
            found |= {"seconds": time.perf_counter() - started, "printed": engine.take_prints()}
            if found["why"] is not None and detail:
                found["detail"] = explainer.explain(parts, [c for c in found["cases"] if not c["passed"]])
            found["cases"] = [{"name": c["name"], "passed": c["passed"]} for c in found["cases"]]
        yield found


def _judge_cases(found: dict[str, Any], value: Any, parts: Sequence[_Part], explainer: _Explainer) -> None:
    passed: dict[tuple[str, ...], bool] = {}
    _flatten(value, (), max(len(part.keys) for part in parts), passed)
    literals: dict[tuple[str, ...], list[str]] = {}
    for names, literal in explainer.attempted(parts):
        passed.setdefault(names, False)
        literals[names] = literal
    found["cases"] = [
        {"name": names, "passed": ok, "literals": literals.get(names)}
        for names, ok in sorted(passed.items())[:_MAX_CASES]
    ]
    failed = [names for names, ok in sorted(passed.items()) if not ok]
    if not passed:
        found["why"] = "has no case"
    elif failed:
        shown = ", ".join("/".join(names) for names in failed[:_MAX_SHOWN]) + "…" * (len(failed) > _MAX_SHOWN)
        found["why"] = f"{len(failed)} of {len(passed)} cases do not hold: {shown}"


def _flatten(value: Any, path: tuple[str, ...], depth: int, into: dict[tuple[str, ...], bool]) -> None:
    if depth and isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, (*path, key), depth - 1, into)
    elif path:
        into[path] = value is True


class _Explainer:
    """Finds the cases of a test, and why one does not hold, with helper rules beside the test's own."""

    def __init__(
        self,
        new_engine: _NewEngine,
        modules: Sequence[Any],
        nothing: str,
        message: Callable[[BaseException], str],
    ) -> None:
        self._new_engine, self._nothing, self._message = new_engine, nothing, message
        self._modules = {module["source"]["file"]: module for module in modules}
        self._tokens: dict[str, list[Token]] = {}
        self._left = _MAX_EXPLAINED

    def _source(self, file: str) -> str:
        return str(self._modules[file]["source"]["contents"])

    def parts(self, package: str, name: str) -> list[_Part]:
        """The rules of a test, wherever they stand."""
        found: list[_Part] = []
        for file, module in self._modules.items():
            if rules.package_of(module) != package:
                continue
            found += [
                self._part(file, rules.span_of(rule))
                for rule in module["ast"]["rules"]
                if "Spec" in rule and rules.test_name_of(rule) == name
            ]
        return found

    def _part(self, file: str, span: Any) -> _Part:
        if file not in self._tokens:
            self._tokens[file] = [t for t in tokens_of(file, self._source(file)) if t.kind != "comment"]
        source = self._source(file).encode()
        start = len(source[: span["start"]].decode(errors="replace"))
        end = len(source[: span["end"] + 1].decode(errors="replace"))
        tokens = [token for token in self._tokens[file] if start <= token.start < end]
        keys, after = _keys(tokens, self._source(file))
        body = _body(tokens[after:])
        return _Part(
            tuple(text for text, _ in keys), tuple(names for _, names in keys), tuple(map(tuple, body)), file
        )

    def attempted(self, parts: Sequence[_Part]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
        """All cases, those that hold and those that do not: their names, and these as Rego."""
        for part in parts:
            if not part.keys:
                continue
            text = _body_of(part.body[: part.known_after], self._source(part.file))
            try:
                found = self._ask(part.file, f"{_HELPER} contains [{', '.join(part.keys)}] if {{\n{text}\n}}")
            except RuntimeError as error:
                raise RuntimeError(f"its cases cannot be listed: {self._message(error)}") from None
            for values in found or ():
                literals = [json.dumps(value, separators=(",", ":")) for value in values]
                yield (
                    tuple(v if isinstance(v, str) else t for v, t in zip(values, literals, strict=True)),
                    literals,
                )

    def explain(self, parts: Sequence[_Part], cases: Sequence[Mapping[str, Any]]) -> list[str]:
        """Lines that say which statement does not hold: of each failing case, or of each rule of the test."""
        lines: list[str] = []
        for part in parts:
            for case in cases if part.keys else [{}]:
                if self._left <= 0:
                    return lines
                self._left -= 1
                try:
                    found = list(self._first_failing(part, case.get("literals") or []))
                except (RuntimeError, ValueError) as error:
                    found = [self._message(error)]
                lines += ([f"case {'/'.join(case['name'])}"] if case and found else []) + found
        return lines

    def _first_failing(self, part: _Part, literals: Sequence[str]) -> Iterator[str]:
        source = self._source(part.file)
        known = part.known_after if part.keys else 0
        pinned = [f"{key} == {literal}" for key, literal in zip(part.keys, literals, strict=False)]

        def holds(count: int, more: str = "1") -> Any:
            head = [_text(statement, source) for statement in part.body[:known]]
            tail = [_text(statement, source) for statement in part.body[known:count]]
            text = "\n".join([*head, *pinned, *tail, f"{_HELPER}_value := {more}"])
            return self._ask(part.file, f"{_HELPER} contains {_HELPER}_value if {{\n{text}\n}}")

        if pinned and not holds(known):
            # The case is of another rule of this test.
            return
        for count in range(known + 1, len(part.body) + 1):
            statement = part.body[count - 1]
            if holds(count):
                continue
            yield f"{part.file}:{statement[0].row + 1}: {_one_line(_text(statement, source))}"
            for text, changed in _sides(statement, source):
                values = holds(count - 1, f"{text} {changed}")
                shown = json.dumps(values[0], ensure_ascii=False) if values else "undefined"
                yield f"    {_one_line(text)} = {shown[:_MAX_VALUE]}"
            return

    def _ask(self, file: str, helper: str) -> Any:
        """The value of a helper rule in the module of a test."""
        engine = self._new_engine({file: f"{self._source(file)}\n{helper}\n"})
        engine.set_input_json(self._nothing)
        package = rules.package_of(self._modules[file])
        return json.loads(engine.eval_rule_as_json(f"{package}.{_HELPER}"))


def _body_of(body: Sequence[Sequence[Token]], source: str) -> str:
    return "\n".join(_text(statement, source) for statement in body) or "true"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_VALUE]


def _keys(tokens: Sequence[Token], source: str) -> tuple[list[tuple[str, frozenset[str]]], int]:
    """The keys behind a rule's name, and the number of tokens of both."""
    keys = []
    place = 1
    while place < len(tokens) and tokens[place].text in ("[", "."):
        if tokens[place].text == ".":
            keys.append((json.dumps(tokens[place + 1].text), frozenset[str]()))
            place += 2
            continue
        end = _closing(tokens, place)
        inside = tokens[place + 1 : end]
        keys.append((_text(inside, source), _names(inside)))
        place = end + 1
    return keys, place


def _body(tokens: Sequence[Token]) -> list[list[Token]]:
    """The statements behind the first `if` that is not in brackets."""
    depth = 0
    for number, token in enumerate(tokens):
        if token.kind == "name" and token.text == "if" and depth == 0:
            rest = tokens[number + 1 :]
            if rest and rest[0].text == "{" and not _is_operand(rest):
                return statements(rest[1 : _closing(rest, 0)])
            return statements(_before_else(rest))[:1]
        if token.kind == "sign":
            depth += (token.text in OPEN) - (token.text in CLOSE)
    return []


def _is_operand(tokens: Sequence[Token]) -> bool:
    """Whether the brackets at the start are an operand: ``{1, 2} == x``."""
    behind = tokens[_closing(tokens, 0) + 1 :]
    return bool(behind) and behind[0].text != "else"


def _before_else(tokens: Sequence[Token]) -> Sequence[Token]:
    depth = 0
    for number, token in enumerate(tokens):
        if token.kind == "name" and token.text == "else" and depth == 0:
            return tokens[:number]
        if token.kind == "sign":
            depth += (token.text in OPEN) - (token.text in CLOSE)
    return tokens


def _closing(tokens: Sequence[Token], opening: int) -> int:
    depth = 0
    for number in range(opening, len(tokens)):
        if tokens[number].kind == "sign":
            depth += (tokens[number].text in OPEN) - (tokens[number].text in CLOSE)
            if depth == 0:
                return number
    return len(tokens)


def _names(tokens: Sequence[Token]) -> frozenset[str]:
    found = set()
    last = ""
    for token in tokens:
        if token.kind == "name" and not token.is_keyword and last != ".":
            found.add(token.text)
        last = token.text
    return frozenset(found)


def _declares(statement: Sequence[Token]) -> bool:
    """Whether a statement only says that names are local: ``some a, b``."""
    return statement[0].text == "some" and all(token.text != "in" for token in statement)


def _text(tokens: Sequence[Token], source: str) -> str:
    return source[tokens[0].start : tokens[-1].start + len(tokens[-1].text)] if tokens else ""


def _sides(statement: Sequence[Token], source: str) -> Iterator[tuple[str, str]]:
    """The expressions of a statement whose values say why it does not hold, and what `with` changes for them."""
    depth = 0
    cuts: list[int] = []
    changes = len(statement)
    for number, token in enumerate(statement):
        if depth == 0 and token.kind in ("sign", "name"):
            if token.text == "with":
                changes = number
                break
            if token.text in ("some", "every", ":="):
                return
            if token.text in _COMPARES:
                cuts.append(number)
        if token.kind == "sign":
            depth += (token.text in OPEN) - (token.text in CLOSE)
    changed = _text(statement[changes:], source)
    start = 1 if statement[0].text == "not" else 0
    places = [start, cuts[0], cuts[0] + 1, changes] if len(cuts) == 1 else [start, changes]
    for first, last in zip(places[::2], places[1::2], strict=True):
        side = statement[first:last]
        if _names(side) - {"true", "false", "null"}:
            yield _text(side, source), changed
