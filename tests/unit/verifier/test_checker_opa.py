"""What OPA's checker refuses is refused here, and what it accepts is accepted, but for a list of differences."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import regorus
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import checked, record_builtins
from fixtures.checked import CASES, DATA, module
from tests.unit.verifier.test_checker import DATA as BUNDLE_DATA
from tests.unit.verifier.test_checker import TERMS
from verifier.policy import checker
from verifier.policy.checker import builtins
from verifier.policy.lint import Level, LintFinding

ANSWERS: dict[str, str | None] = json.loads(checked.ANSWERS.read_text())
ANY_INPUT = checker.Terms(input={}, reasons=[])
needs_opa = pytest.mark.skipif(
    importlib.util.find_spec("opa_bindings") is None, reason="OPA's library is not installed"
)

# docs/lint-rules.md lists them: each is undefined or wrong whenever it is evaluated, and OPA accepts it.
STRICTER = {
    "in a scalar",
    "every of a number",
    "a set minus a number",
    "a number minus a set",
    "a key that a function's argument may have",
    "data that is not there",
    "a rule that is not there",
    "an import that is not there",
    "a value that an array does not have",
    "compared with each of other types",
    "an empty array and another",
    "a string in an object of other strings",
}


def parse(source: str) -> Any:
    """The tree of a module, or `None` if the engine itself refuses it."""
    engine = regorus.Engine()
    try:
        engine.add_policy("a.rego", source)
    except RuntimeError:
        return None
    return json.loads(engine.get_ast_as_json())


def errors(source: str) -> list[LintFinding] | None:
    """The errors in a module, with any input; `None` if it does not parse."""
    modules = parse(source)
    if modules is None:
        return None
    findings = checker.check(modules, tests=frozenset(), data=DATA, terms=ANY_INPUT)
    return [finding for finding in findings if finding.level is Level.ERROR]


@pytest.mark.parametrize("name", [name for name in CASES if ANSWERS[name] is not None])
def test_what_opa_refuses_is_refused(name: str) -> None:
    """An undefined function, a misspelt one, a wrong arity, wrong types: OPA's checker refuses them."""
    found = errors(module(CASES[name]))
    assert found is None or found


@pytest.mark.parametrize("name", [name for name in CASES if ANSWERS[name] is None and name not in STRICTER])
def test_what_opa_accepts_is_accepted(name: str) -> None:
    """Fragments as in OPA's language reference, and what its checker lets pass."""
    assert [str(finding) for finding in errors(module(CASES[name])) or ()] == []


@pytest.mark.parametrize("name", sorted(STRICTER))
def test_what_is_stricter_than_opa(name: str) -> None:
    assert ANSWERS[name] is None
    assert errors(module(CASES[name]))


def test_every_case_has_an_answer() -> None:
    assert list(ANSWERS) == list(CASES)


@needs_opa
def test_opa_says_so_still() -> None:
    """The library is asked again.  Which of two errors comes first differs each time."""
    answers = checked.answers()
    assert {name for name, answer in answers.items() if answer} == {name for name in CASES if ANSWERS[name]}


@needs_opa
def test_the_table_of_built_in_functions_is_opas() -> None:
    assert record_builtins.rows() == json.loads(record_builtins.TABLE.read_text())["builtins"]


@pytest.mark.parametrize("name", ["startswith", "uri.parse", "object.get", "crypto.sha256", "walk"])
def test_the_table_says_what_the_engine_has(name: str) -> None:
    """The engine is asked."""
    builtin = builtins.table()[name]
    assert record_builtins.is_here(name, len(builtin.arguments)) == builtin.is_here


def test_the_table_has_what_policies_call() -> None:
    table = builtins.table()
    assert len(table) > 180
    assert not table["any"].is_here
    assert table["any"].is_deprecated
    assert table["startswith"].is_here
    assert not table["uri.parse"].is_here
    assert table["print"].takes_more


_TOKENS = sorted({word for source in CASES.values() for word in source.split()})
_MODULES = st.sampled_from([module(source) for source in CASES.values()])


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    """A module with some of its words exchanged, left out or put elsewhere."""
    words = draw(_MODULES).split(" ")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(words) - 1))
        match draw(st.sampled_from(["put", "change", "drop", "again"])):
            case "put":
                words.insert(place, draw(st.sampled_from(_TOKENS)))
            case "change":
                words[place] = draw(st.sampled_from(_TOKENS))
            case "drop" if len(words) > 1:
                del words[place]
            case _:
                words.insert(draw(st.integers(0, len(words))), words[place])
    return " ".join(words)


@given(_mutated(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_module_that_parses_is_checked(source: str, is_test: bool) -> None:  # noqa: FBT001
    """It never fails, and says the same twice."""
    modules = parse(source)
    if modules is None:
        return
    tests = frozenset({"a.rego"} if is_test else ())
    first = checker.check(modules, tests=tests, data=BUNDLE_DATA, terms=TERMS)
    assert checker.check(modules, tests=tests, data=BUNDLE_DATA, terms=TERMS) == first
    for finding in first:
        assert finding.file == "a.rego"
        assert finding.line >= 1
        assert finding.column >= 1
        assert finding.sentence
