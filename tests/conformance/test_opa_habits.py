"""What OPA's users bring means here what it means in OPA: table-driven tests, data by folder, data beside rules."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import regorus

from fixtures import record_opa_habits as samples
from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import bundle as bundles
from verifier.policy import packages, rooted, testing

RECORDED: dict[str, Any] = json.loads(samples.RECORDED.read_text())
DEFAULT = bundles.load(default_policy())


def test_recording_is_what_opa_says() -> None:
    """Where OPA is installed as a library, it is asked again."""
    pytest.importorskip("opa_bindings", reason="OPA as a library is not installed")
    assert samples.record() == RECORDED


async def report() -> dict[str, testing.Test]:
    bundle = dataclasses.replace(
        DEFAULT,
        modules=(("a.rego", "package touchstone\n\noutcome := {}\n"),),
        tests=(("a_test.rego", samples.TESTS),),
    )
    return {test.name.rpartition(".")[2]: test for test in (await testing.run(bundle)).tests}


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
    if isinstance(value, dict):
        return {name: ok for key, item in value.items() for name, ok in flat(item, (*path, key)).items()}
    return {path: value is True}


async def test_cases_that_hold_are_those_of_opa() -> None:
    """The row "A block of OPA habits refused": `test_x[case]` in each form, one case for each value."""
    found = await report()
    assert found.keys() == RECORDED["tests"].keys()
    for name, value in RECORDED["tests"].items():
        holding = {case.name for case in found[name].cases if case.passed}
        assert (name, holding) == (name, {case for case, ok in flat(value).items() if ok})


async def test_cases_that_do_not_hold_are_found() -> None:
    """OPA's value leaves them out, and its runner looks for them too."""
    found = await report()
    failing = {name: [case.name for case in test.cases if not case.passed] for name, test in found.items()}
    assert failing == {
        "test_map": [("off",)],
        "test_note": [("full",)],
        "test_number": [("0",)],
        "test_two": [("y", "q")],
        "test_static": [("no",)],
        "test_dotted": [],
        "test_value": [("off",), ("two",)],
        "test_none": [],
    }
    assert found["test_none"].why == "has no case"
    assert found["test_dotted"].why is None
    assert found["test_two"].why == "1 of 4 cases do not hold: y/q"


@pytest.mark.parametrize("label", sorted(samples.DATA))
def test_data_is_merged_as_in_opa(label: str) -> None:
    """By folder; what OPA refuses is refused, with both files named.  Equal values twice are refused here too."""
    files = {name: json.dumps(value).encode() for name, value in samples.DATA[label].items()}
    expected = RECORDED["merged"][label]
    if isinstance(expected, str) or label == "equal":
        with pytest.raises(BundleError) as error:
            rooted.data_of(files)
        assert all(name in str(error.value) for name in files)
        return
    assert rooted.data_of(files) == expected


@pytest.mark.parametrize("label", sorted(samples.BESIDE))
def test_data_beside_rules_is_refused_as_in_opa(label: str) -> None:
    """Where both say something, OPA refuses the bundle, and regorus would take the data without a word."""
    source, data = samples.BESIDE[label]
    engine = regorus.Engine()
    engine.add_policy("a.rego", source)
    found = packages.check(json.loads(engine.get_ast_as_json()), data, tests=frozenset())
    conflicts = [finding for finding in found if finding.rule == "data-conflict"]
    assert ("conflict" if conflicts else "accepted") == RECORDED["beside"][label]
