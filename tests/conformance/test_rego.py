"""
Rego as OPA has it: OPA's answers (fixtures/rego/answers.json) against ours, through the worker's own path.

Each case is refused with a reason, ends in an error (which affirms nobody), or has OPA's value.  The
cases in fixtures/rego/differences.toml have another value; docs/rego.md has a row for each kind of them.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import regorus

from fixtures import record_rego
from fixtures.record_rego import Case
from verifier.policy import lint, worker

_ANSWERS: Final = json.loads(record_rego.ANSWERS.read_text())
_LANGUAGE: Final = {case.name: case for case in record_rego.language()}
_CALLS: Final = {case.name: case for case in record_rego.calls()}
_DIFFERENCES: Final = tomllib.loads((record_rego.FOLDER / "differences.toml").read_text())["difference"]
_KNOWN: Final = {name: row["what"] for row in _DIFFERENCES for name in row["cases"]}
_PAGE: Final = Path(__file__).parents[2] / "docs/rego.md"
# The contract's own question, about x. The rules below it are what the contract asks of every policy.
_QUESTION: Final = ("question.rego", 'package touchstone\noutcome := {"x": x}\n')
_OF_THE_CONTRACT: Final = ("entry", "tests-missing")


@dataclass(frozen=True)
class Ours:
    """What we say to a case: the lint rules that refuse it, or a value, or an error."""

    rules: frozenset[str]
    warnings: frozenset[str]
    answer: dict[str, Any]


def _ask(case: Case) -> Ours:
    engine = regorus.Engine()
    try:
        for name, text in case.modules:
            engine.add_policy(name, text)
        findings = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
    except RuntimeError as error:
        return Ours(frozenset(), frozenset(), {"error": str(error)})
    rules = {f.rule for f in findings if f.level == lint.Level.ERROR} - set(_OF_THE_CONTRACT)
    warnings = {f.rule for f in findings if f.level == lint.Level.WARNING}
    return Ours(frozenset(rules), frozenset(warnings), _evaluate(case))


def _evaluate(case: Case) -> dict[str, Any]:
    """Ask the task of a worker, in this process, as its parent asks it."""
    setup = {"modules": [*case.modules, _QUESTION], "tests": [], "data": json.dumps(case.data)}
    source, sink = io.BytesIO(), io.BytesIO()
    worker.send(source, (1).to_bytes(4, "little"))
    worker.send(source, json.dumps(case.policy_input).encode())
    source.seek(0)
    try:
        worker._evaluate(regorus.Engine(), setup, source, sink)
    except RuntimeError as error:
        return {"error": str(error)}
    except BaseException as error:
        # A panic of the engine ends a worker.
        if type(error).__name__ != "PanicException":
            raise
        return {"error": str(error)}
    sink.seek(0)
    worker.receive(sink)
    answer = worker.receive(sink)
    assert answer is not None
    if answer[:1] == worker.OUTCOME:
        return {"value": json.loads(answer[1:])["x"]}
    return (
        {"undefined": True}
        if b"outcome" in answer and len(answer) < 200 and b"-->" not in answer
        else {"error": str(answer)}
    )


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two JSON values are equal, where 1.0 is 1 and true is not."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    return isinstance(ours, bool) == isinstance(theirs, bool) and ours == theirs


def _is_as_in_opa(ours: Ours, theirs: dict[str, Any]) -> bool:
    if ours.rules or "error" in ours.answer:
        return True
    if "value" in theirs:
        return "value" in ours.answer and _same(ours.answer["value"], theirs["value"])
    # OPA's library has strict errors; without them an error of a built-in function is undefined.
    return "undefined" in ours.answer and not theirs.keys() & {"value", "refused"}


@pytest.mark.parametrize("name", _LANGUAGE)
def test_language(name: str) -> None:
    """Every example of OPA's own language reference evaluates to the same value, or is refused with a reason."""
    case, theirs = _LANGUAGE[name], _ANSWERS["language"][name]
    ours = _ask(case)
    if case.lint is not None:
        assert case.lint in ours.rules
    elif case.error:
        assert "error" in ours.answer
        assert not ours.rules
    elif name in _KNOWN:
        assert not _is_as_in_opa(ours, theirs), "this is no difference any more"
    else:
        assert not ours.rules
        assert "error" not in ours.answer, ours.answer
        assert _is_as_in_opa(ours, theirs), (ours, theirs)


@pytest.mark.parametrize("name", _CALLS)
def test_built_in_functions(name: str) -> None:
    """Every built-in function answers as OPA's does, is refused, or is in the table of differences."""
    ours, theirs = _ask(_CALLS[name]), _ANSWERS["calls"][name]
    if name in _KNOWN:
        assert not _is_as_in_opa(ours, theirs), "this is no difference any more"
    else:
        assert _is_as_in_opa(ours, theirs), (ours, theirs)


@pytest.mark.parametrize("row", _DIFFERENCES, ids=[row["what"] for row in _DIFFERENCES])
def test_each_difference_is_in_the_page(row: dict[str, Any]) -> None:
    """The table of differences in the docs has a row for each, and each has a case that shows it."""
    assert row["what"] in _PAGE.read_text()
    assert row["cases"]
    assert set(row["cases"]) <= _LANGUAGE.keys() | _CALLS.keys()


@pytest.mark.parametrize("row", _DIFFERENCES, ids=[row["what"] for row in _DIFFERENCES])
def test_differences_that_depend_on_the_value_are_warned_of(row: dict[str, Any]) -> None:
    """Where a function differs for some values alone, lint warns."""
    if not row.get("warning"):
        pytest.skip("no warning: the value's type decides, which no text shows")
    for name in row["cases"]:
        assert row["warning"] in _ask((_LANGUAGE | _CALLS)[name]).warnings


def test_recorded_answers_are_those_of_opa() -> None:
    """The recording is what the library says now."""
    if importlib.util.find_spec("opa_bindings") is None:
        pytest.skip("OPA's library is not installed; see fixtures/record_rego.py")
    assert {case.name: record_rego.ask(case) for case in record_rego.language()} == _ANSWERS["language"]
