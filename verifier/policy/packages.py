"""
Lint: what concerns the packages of a bundle together.

Any package may hold rules, as in OPA, and tests may stand in the package that they test.  So three
things are refused here.  A rule and data at the same place: OPA refuses the bundle, and regorus
takes the data.  A test file that adds to a rule of the policy: the tests would judge another policy
than the verifier does.  A rule that needs one of a test file: the verifier does not load those.
A package that nothing refers to is a warning, and an error if its rule was meant to be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from verifier.policy import callgraph
from verifier.policy.lint import Level, LintFinding
from verifier.policy.syntax import full_path, head_of, position_of

_ASKED: Final = (("touchstone",), ("ar4si",))
"""The package that the verifier asks, and one whose names stand for trust values."""
_TESTS: Final = ("test_", "todo_test_")

_Rule: TypeAlias = tuple[tuple[str, ...], str, int, int]
"""The path of a rule below ``data``, as far as it is known, and its file, line and column."""


def check(
    modules: Sequence[Any], data: Mapping[str, Any], *, tests: frozenset[str]
) -> tuple[LintFinding, ...]:
    """
    All findings.

    Args:
        modules: As for `verifier.policy.lint.check`.
        data: The bundle's data.
        tests: The names of the files with tests.
    """
    rules = [rule for module in modules for rule in _rules(module)]
    own = {path for path, file, _, _ in rules if file not in tests}
    helpers = [rule for rule in rules if rule[1] in tests and not rule[0][-1].startswith(_TESTS)]
    found = {
        *(_error("data-conflict", rule, sentence) for rule, sentence in _conflicts(rules, data)),
        *(
            _error(
                "test-adds",
                rule,
                f"{'.'.join(rule[0])} is a rule of the policy, and a test must not add to it. Give the helper "
                "another name, or put it into a package of its own",
            )
            for rule in helpers
            if any(_overlap(rule[0], path) for path in own)
        ),
    }
    only = {path for path, file, _, _ in rules if file in tests} - own
    for path, file, line, column in callgraph.references_to(modules, only):
        if file not in tests:
            sentence = (
                f"{'.'.join(path)} is defined in a test alone, and the verifier does not load tests. Move it to "
                "a file that is not a test"
            )
            found.add(_error("test-only", (path, file, line, column), sentence))
    found |= set(_unused(modules, rules, tests))
    return tuple(sorted(found, key=lambda f: (f.file, f.line, f.column, f.rule, f.sentence)))


def _unused(modules: Sequence[Any], rules: Sequence[_Rule], tests: frozenset[str]) -> Iterator[LintFinding]:
    """A misspelt package is refused nowhere else: its rules would be left out without a word."""
    packages: dict[tuple[str, ...], list[tuple[str, int, int]]] = {}
    for module in modules:
        file, source = module["source"]["file"], module["source"]["contents"].encode()
        path = tuple(full_path(module["ast"]["package"]["refr"], source)[0])
        if file not in tests and path not in _ASKED:
            packages.setdefault(path, []).append(
                (file, *position_of(module["ast"]["package"]["span"], source))
            )
    if not packages:
        return
    own = {path for path, file, _, _ in rules if file not in tests}
    homes = {file: package for package, places in packages.items() for file, *_ in places}
    used = {
        (path, homes.get(file))
        for path, file, *_ in callgraph.references_to(modules, own)
        if file not in tests
    }
    for package, places in packages.items():
        if any(path[: len(package)] == package != home for path, home in used):
            continue
        name, entry = ".".join(package), (*package, "outcome")
        for file, line, column in places:
            if entry in own:
                sentence = f"{name}.outcome is not asked for. Rename package {name} to touchstone"
                yield _error("package", ((), file, line, column), sentence)
            else:
                sentence = f"no rule outside refers to package {name}, so it has no effect"
                yield _error("package-unused", ((), file, line, column), sentence, Level.WARNING)


def _error(rule: str, at: _Rule, sentence: str, level: Level = Level.ERROR) -> LintFinding:
    _, file, line, column = at
    return LintFinding(level=level, rule=rule, file=file, line=line, column=column, sentence=sentence)


def _rules(module: Any) -> Iterator[_Rule]:
    source = module["source"]["contents"].encode()
    package, _ = full_path(module["ast"]["package"]["refr"], source)
    for rule in module["ast"]["rules"]:
        _, head = head_of(rule)
        names, _ = full_path(head["refr"], source)
        yield (*package, *names), module["source"]["file"], *position_of(head["span"], source)


def _conflicts(rules: Sequence[_Rule], data: Mapping[str, Any]) -> Iterator[tuple[_Rule, str]]:
    for rule in rules:
        value: Any = data
        for depth, part in enumerate(rule[0]):
            if not isinstance(value, dict):
                yield rule, _sentence(rule[0][:depth])
                break
            if part not in value:
                break
            value = value[part]
        else:
            yield rule, _sentence(rule[0])


def _sentence(path: Sequence[str]) -> str:
    name = ".".join(path)
    return f"data.{name} is in the bundle's data too, and engines disagree about which counts. Rename one of the two"


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
