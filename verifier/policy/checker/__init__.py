"""
The checker: names, calls, types, fields and values of a policy, before anything of it is evaluated.

It refuses what OPA's own checker refuses (``opa check --strict``), and what can never be true of
the input, whose schema it knows.  What it does not know, it lets pass.  `lint` has what a policy
must not do; docs/lint-rules.md lists the rules of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from verifier.policy import ar4si
from verifier.policy.checker import conflicts, inference, names, outcome
from verifier.policy.checker.forms import of_schema
from verifier.policy.checker.outcome import ENTRY, Contract
from verifier.policy.checker.report import Source
from verifier.policy.checker.scopes import Reading
from verifier.policy.checker.shapes import ANY, elements, join
from verifier.policy.checker.world import MAX_DEPTH, Definition, Path, World, read
from verifier.policy.lint import LintFinding, ordered
from verifier.policy.syntax import full_path

__all__ = ["Terms", "check"]

_DEEP: Final = f"this rule is nested deeper than {MAX_DEPTH} levels. Give its parts names of their own"


@dataclass(frozen=True)
class Terms:
    """What the verifier gives policies and takes from them."""

    input: Mapping[str, Any]
    """The JSON schema of the input."""
    reasons: Sequence[str]
    """The codes of reasons."""


def check(
    modules: Sequence[Any], *, tests: frozenset[str], data: Any, terms: Terms
) -> tuple[LintFinding, ...]:
    """
    All findings, by file, line and column.

    Args:
        modules: The modules as ``json.loads(engine.get_ast_as_json())`` gives them.
        tests: The names of the files with tests.  Rules cannot use what these define, and these may
            replace input and data.
        data: The bundle's data.
        terms: What the verifier gives and takes.
    """
    found = []
    for module in modules:
        result, deep = read(module, is_test=module["source"]["file"] in tests)
        for span in deep:
            result.source.error(span, "depth", _DEEP)
        found.append(result)
    rules = [module for module in found if not module.is_test]
    readings = _check_rules(World(rules, data), terms)
    _check_tests(World(found, data, list(_mocked(modules, tests))), readings)
    findings = [finding for module in found for finding in module.source.found]
    return ordered(findings)


def _check_rules(world: World, terms: Terms) -> dict[Definition, Reading]:
    """Check the rules without the tests, and return what their names mean."""
    readings: dict[Definition, Reading] = {}
    for module in world.modules:
        readings |= names.check(world, module)
    knowledge = inference.check(world, readings, of_schema(terms.input), tests_only=False)
    claims = [claim.replace("_", "-") for claim in ar4si.names()]
    entries = [path for path in world.rules if path[:-1] == ENTRY]
    values = [elements(knowledge.value(ENTRY))[1]] if ENTRY in world.rules else []
    entry = join([*values, *(knowledge.value(path) for path in entries)])
    outcome.check(world, entry, Contract(claims, terms.reasons))
    return readings


def _check_tests(world: World, readings: dict[Definition, Reading]) -> None:
    """Check the tests, which may give rules any input; *readings* are those of the rules."""
    conflicts.check(world)
    for module in world.modules:
        if module.is_test:
            readings |= names.check(world, module)
    inference.check(world, readings, ANY, tests_only=True)


def _mocked(modules: Sequence[Any], tests: frozenset[str]) -> Iterator[Path]:
    """The paths below ``data`` that tests replace."""
    for module in modules:
        if module["source"]["file"] not in tests:
            continue
        source = Source(module)
        package, _ = full_path(module["ast"]["package"]["refr"], source.text)
        aliases = {}
        for imported in read(module, is_test=True)[0].imports:
            aliases[imported.alias] = imported.path
        work: list[Any] = [module["ast"]["rules"]]
        while work:
            node = work.pop()
            if isinstance(node, list):
                work += node
            elif isinstance(node, dict) and "line" not in node:
                for changed in node.get("with_mods") or ():
                    path, _ = full_path(changed["refr"], source.text)
                    path = [*aliases.get(path[0], (path[0],)), *path[1:]] if path else ["data"]
                    if path[0] == "data":
                        yield tuple(path[1:])
                    elif path[0] != "input":
                        yield (*package, *path)
                work += node.values()
