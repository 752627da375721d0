"""Policies: the default bundle's own tests, the sandbox, and outcomes read strictly."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import regorus

from verifier import appraisal
from verifier.config import default_policy
from verifier.errors import PolicyError
from verifier.policy import bundle
from verifier.policy.engine import Limits, opened
from verifier.schemes.facts import ModelFacts
from verifier.schemes.findings import CheckedSubmod

DEFAULT = bundle.load(default_policy())
TESTS = re.findall(r"^(test_\w+)", DEFAULT.tests[0][1], re.MULTILINE)
GIVEN = b'{"checked": {"model/m": {"kind": "model", "manifest": "equal", "read": "right", "walk": "called"}}}'


@pytest.fixture(scope="module")
def engine() -> Any:
    engine = regorus.Engine()
    engine.set_enable_coverage(True)
    for name, source in (*DEFAULT.modules, *DEFAULT.tests):
        engine.add_policy(name, source)
    engine.add_data_json(DEFAULT.data)
    return engine


@pytest.mark.parametrize("rule", TESTS)
def test_default_policy(engine: Any, rule: str) -> None:
    """The bundle's own tests hold."""
    assert engine.eval_rule(f"data.touchstone_test.{rule}") is True


def test_every_line_of_the_default_policy_is_tested() -> None:
    """Full coverage: no rule of it is untried."""
    engine = regorus.Engine()
    engine.set_enable_coverage(True)
    for name, source in (*DEFAULT.modules, *DEFAULT.tests):
        engine.add_policy(name, source)
    engine.add_data_json(DEFAULT.data)
    for rule in TESTS:
        engine.eval_rule(f"data.touchstone_test.{rule}")
    report = json.loads(engine.get_coverage_report_as_json())
    missed = {
        file["path"]: sorted(file["not_covered"])
        for file in report["files"]
        if file["not_covered"] and not file["path"].endswith("_test.rego")
    }
    assert missed == {}


def test_nothing_is_approved_at_first() -> None:
    """Unfavourable until earned: a security team approves engines, we do not."""
    assert json.loads(DEFAULT.data)["approved_engines"] == {}


# Started with nothing to judge, they seem well; it is the evaluation that shows them.
MISBEHAVING = {
    "recursion": "package touchstone\nf(x) := f(x + 1)\noutcome := f(1) if count(input.checked) > 0\n",
    "endless": (
        "package touchstone\n"
        "outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) if "
        "count(input.checked) > 0\n"
    ),
    "memory": "package touchstone\noutcome := numbers.range(1, 1000000000) if count(input.checked) > 0\n",
}


@pytest.mark.parametrize("source", MISBEHAVING.values(), ids=MISBEHAVING)
async def test_a_policy_that_misbehaves_costs_one_appraisal(source: str) -> None:
    """It is a PolicyError, and the engine goes on with a new worker."""
    broken = dataclasses.replace(DEFAULT, modules=(("broken.rego", source),))
    async with opened(broken, Limits(1, 0.5)) as workers:
        for _ in range(2):
            with pytest.raises(PolicyError):
                await workers.evaluate(GIVEN)


async def test_the_engine_still_answers_others_after_a_crash() -> None:
    """A crash takes one worker; the pool is whole again afterwards."""
    source = (
        "package touchstone\nimport rego.v1\nf(x) := f(x + 1)\n"
        "outcome := f(1) if input.crash\noutcome := 7 if not input.crash\n"
    )
    sometimes = dataclasses.replace(DEFAULT, modules=(("a.rego", source),))
    async with opened(sometimes, Limits(1)) as workers:
        with pytest.raises(PolicyError):
            await workers.evaluate(b'{"crash": true}')
        assert await workers.evaluate(b'{"crash": false}') == 7


async def test_a_policy_that_does_not_compile_is_refused_at_start() -> None:
    """With the file and the place."""
    broken = dataclasses.replace(DEFAULT, modules=(("broken.rego", "package touchstone\noutcome := x\n"),))
    async with opened(broken, Limits(1)) as workers:
        with pytest.raises(PolicyError, match=r"broken\.rego:2:12: "):
            await workers.evaluate(GIVEN)


async def test_a_failing_policy_ends_none_and_not_contraindicated(verifier) -> None:
    """A malfunction of ours is −1, and never held against the node."""
    node = await verifier.enrol()

    async def fail(*_: Any) -> Any:
        raise PolicyError("broken")

    object.__setattr__(verifier.service.engine, "evaluate", fail)
    result = await verifier.attest(node)
    assert result["ear_status"] == "none"
    vector = result["submods"]["model/example/tiny"]["ear_trustworthiness_vector"]
    assert vector == {"file-system": -1, "executables": -1}
    assert await verifier.rows("SELECT * FROM incidents") == []


SUBMODS = {"a": CheckedSubmod(ModelFacts(manifest="equal", read="right", walk="called"))}
GOOD = {"trust_vector": {"executables": 2}, "reasons": []}
OUTCOMES: dict[str, Any] = {
    "nothing": None,
    "not a map": [],
    "a submodule left out": {},
    "a submodule invented": {"a": GOOD, "b": GOOD},
    "no vector": {"a": {"reasons": []}},
    "an empty vector": {"a": {"trust_vector": {}, "reasons": []}},
    "an unknown claim": {"a": {"trust_vector": {"goodness": 2}, "reasons": []}},
    "258": {"a": {"trust_vector": {"executables": 258}, "reasons": []}},
    "-129": {"a": {"trust_vector": {"executables": -129}, "reasons": []}},
    "a float": {"a": {"trust_vector": {"executables": 2.0}, "reasons": []}},
    "a boolean": {"a": {"trust_vector": {"executables": True}, "reasons": []}},
    "text": {"a": {"trust_vector": {"executables": "2"}, "reasons": []}},
    "an unknown code": {"a": {**GOOD, "reasons": ["weights.fine"]}},
    "a code that is a list": {"a": {**GOOD, "reasons": [[]]}},
    "too many codes": {"a": {**GOOD, "reasons": ["policy.failed"] * 65}},
    "something more": {"a": {**GOOD, "more": 1}},
}


@pytest.mark.parametrize("raw", OUTCOMES.values(), ids=OUTCOMES)
def test_a_wrong_outcome_is_an_error_of_the_policy(raw: Any) -> None:
    """Never a pass."""
    with pytest.raises(PolicyError):
        appraisal.read_outcome(raw, SUBMODS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: [p.unlink() for p in f.glob("*.rego")], "no rules"),
        (lambda f: (f / "data.json").unlink(), "data.json is missing"),
        (lambda f: (f / "bundle.json").write_text("{"), "bundle.json"),
        (lambda f: (f / "data.json").write_text('{"thresholds": {}}'), "data.json"),
        (lambda f: (f / "bad.rego").write_bytes(b"\xff"), "UTF-8"),
        (lambda f: (f / "big.rego").write_bytes(b" " * (bundle.MAX_REGO + 1)), "more than"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path, damage: Any, message: str) -> None:
    """An empty policy is an error, not a pass."""
    folder = tmp_path / "policy"
    shutil.copytree(default_policy(), folder)
    damage(folder)
    with pytest.raises(PolicyError, match=message):
        bundle.load(folder)


def test_a_bundle_is_known_by_all_of_its_content(tmp_path: Path) -> None:
    """Any change, also of data or tests, is another version."""
    folder = tmp_path / "policy"
    shutil.copytree(default_policy(), folder)
    assert bundle.load(folder).id == DEFAULT.id
    data = json.loads((folder / "data.json").read_text())
    data["forbidden_arguments"]["enforce_eager"] = [False]
    (folder / "data.json").write_text(json.dumps(data))
    assert bundle.load(folder).id != DEFAULT.id
