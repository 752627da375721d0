"""Tests of a bundle as CI runs them, its coverage, and two versions compared by meaning."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, diff, testing
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle

BASE = bundles.load(default_policy())
TESTS = """package other_test

default test_default := true

test_holds if 1 == 1

test_is_false if {
\t1 == 2
}

test_gives_something_else := 3

test_fails := 1 / 0

test_prints if {
\tprint("seen", "\\u0007")
}
"""


def policy(**files: str | None) -> Bundle:
    content = dict(BASE.files)
    for name, text in files.items():
        place = name.replace("__", "/").replace("_DOT_", ".")
        if text is None:
            del content[place]
        else:
            content[place] = text.encode()
    return bundles.of_files(content)


async def test_each_test_is_run_and_said_how_it_went() -> None:
    """True holds, and nothing else; a default alone is no test."""
    report = await testing.run(policy(other_test_DOT_rego=TESTS))
    found = {t.name.rpartition(".")[2]: t.why for t in report.tests if t.file == "other_test.rego"}
    assert found == {
        "test_holds": None,
        "test_is_false": 'is "<undefined>", not true',
        "test_gives_something_else": "is 3, not true",
        "test_fails": "other_test.rego:13:17: divide by zero",
        "test_prints": None,
    }
    (printed,) = [t.printed for t in report.tests if t.name.endswith("test_prints")]
    assert len(printed) == 1
    assert printed[0].startswith("other_test.rego:16: seen")


async def test_the_default_policy_is_covered_whole() -> None:
    """Every line of every rule; and a rule that no test reaches is named by its line."""
    assert (await testing.run(BASE)).missed == {}
    text = BASE.files["gpu.rego"].decode() + '\nunreached(facts) if facts.named == "x"\n'
    report = await testing.run(policy(gpu_DOT_rego=text))
    assert report.missed == {"gpu.rego": (text.count("\n"),)}
    assert 90 < report.coverage < 100


async def test_a_junit_file_that_ci_reads() -> None:
    """With what was printed, control characters and all."""
    bundle = policy(other_test_DOT_rego=TESTS)
    report = await testing.run(bundle)
    suite = ET.fromstring(testing.junit(bundle, report))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(report.tests)), "3")
    failed = {case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None}
    assert failed == {"test_is_false", "test_gives_something_else", "test_fails"}


async def test_a_test_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time."""
    monkeypatch.setattr(testing, "TIMEOUT_S", 0.5)
    endless = "count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) == 0"
    with pytest.raises(PolicyError, match="no outcome within"):
        await testing.run(policy(other_test_DOT_rego=f"package other_test\n\ntest_it if {endless}\n"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"gpu_DOT_rego": "package touchstone\n\nx := {\n"}, "gpu.rego:4:1: "),
        ({"more_DOT_rego": "package touchstone\n\nf(x) := f(x)\n"}, "more.rego:3:9: "),
        ({"more_DOT_rego": "package touchstone\n\nx := time.now_ns()\n"}, "more.rego:3:6: "),
        ({"more_DOT_rego": "package touchstone\n\nx := 2.5\n"}, "more.rego:3:6: "),
        ({"policy_test_DOT_rego": None}, "there is no test"),
        ({"other_test_DOT_rego": TESTS}, "other_test.rego:7: data.other_test.test_is_false: "),
    ],
    ids=["a parse error", "recursion", "a clock", "a float", "no tests", "a failing test"],
)
async def test_what_is_not_admitted_is_said_with_its_place(
    files: dict[str, str | None], message: str
) -> None:
    """One line for each reason."""
    with pytest.raises(BundleError) as refused:
        await admission.check(policy(**files))
    assert message in str(refused.value)


async def differences(old: Bundle, new: Bundle) -> list[tuple[str, str, str]]:
    found = diff.compare(old, await admission.inspect(old), new, await admission.inspect(new))
    return [(d.part, d.name, d.change) for d in found]


async def test_layout_comments_and_order_mean_nothing() -> None:
    """Nor does the order of names in JSON."""
    text = BASE.files["gpu.rego"].decode()
    head, _, rest = text.partition("hardware(facts)")
    first, second = "unsaid(facts) if not facts.named\n", 'unsaid(facts) if facts.benchmark == "missing"\n'
    assert first in text
    assert second in text
    swapped = f"hardware(facts){rest}".replace(first, "#\n").replace(second, "").replace("\t", "    ")
    new = policy(
        gpu_DOT_rego=f"{head}# other words\n\n\n{swapped}\n{second}\n{first}",
        data_DOT_json=json.dumps(json.loads(BASE.files["data.json"]), sort_keys=True, indent=7),
    )
    assert new.digest != BASE.digest
    assert await differences(BASE, new) == []


async def test_rules_data_references_and_the_manifest_are_compared() -> None:
    """Each by its own name."""
    data = json.loads(BASE.files["data.json"])
    data["thresholds"]["missed_limit"] = 9
    data["approved_engines"]["vllm"] = {"versions": ["1"], "weak": []}
    manifest = json.loads(BASE.files["bundle.json"])
    text = BASE.files["gpu.rego"].decode()
    new = policy(
        data_DOT_json=json.dumps(data),
        bundle_DOT_json=json.dumps({**manifest, "version": "3"}),
        gpu_DOT_rego=text.replace("facts.memory_fits\n", "") + "\nnovel(facts) if facts.named\n",
        references__m_DOT_yaml="model: acme/m\nfiles:\n  f:\n    sha256: " + "ab" * 32 + "\n",
    )
    assert await differences(BASE, new) == [
        ("manifest", "version", "changed"),
        ("rule", "data.touchstone.consistent", "changed"),
        ("rule", "data.touchstone.novel", "added"),
        ("data", "approved_engines.vllm", "added"),
        ("data", "thresholds.missed_limit", "changed"),
        ("reference", "acme/m", "added"),
    ]
    assert ("rule", "data.touchstone.novel", "removed") in await differences(new, BASE)
