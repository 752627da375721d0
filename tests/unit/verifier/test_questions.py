"""Policies that pass lint and their own tests, and fail on what production asks: found, with the smallest input."""

from __future__ import annotations

import json

import pytest

from verifier import appraisal
from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, questions, samples
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits, opened
from verifier.policy.questions import Failure
from verifier.policy.words import Words

DEFAULT = bundles.load(default_policy())
ENGINES = {"vllm": {"versions": ["0.11.0", "0.10.2"], "weak": ["0.10.2"]}}


def changed(*edits: tuple[str, str, str], more: str = "") -> Bundle:
    """The default policy with engines approved, and other text in some files."""
    files = dict(DEFAULT.files)
    data = json.loads(files["data.json"]) | {"approved_engines": ENGINES}
    files["data.json"] = json.dumps(data).encode()
    for file, old, new in edits:
        text = files[file].decode()
        assert old in text
        files[file] = text.replace(old, new).encode()
    if more:
        files["more.rego"] = f"package touchstone\n\n{more}\n".encode()
    return bundles.of_files(files)


def misspelt(code: str, other: str) -> tuple[str, str, str]:
    """An edit that gives one reason code as another: made from texts, because lint reads codes that are written out."""
    codes = "complaints(facts.runtime)"
    return (
        "platform.rego",
        f"sort({codes})",
        f'sort([replace(code, "{code}", "{other}") | some code in {codes}])',
    )


async def failure_of(bundle: Bundle, limits: Limits | None = None) -> Failure:
    """It passes lint, and fails on the smallest input as it says."""
    inspection = await admission.inspect(bundle)
    assert inspection.errors == ()
    found = (await questions.ask(bundle, inspection.words, limits)).failure
    assert found is not None
    given = json.loads(found.input)
    async with opened(bundle, limits or Limits(1)) as pool:
        with pytest.raises(PolicyError) as why:
            appraisal.read_outcome(await pool.evaluate(samples.encode(given)), given["checked"])
    assert str(why.value) == found.why
    return found


def others(found: Failure) -> list[str]:
    """The submodules of the input besides the platform."""
    return [name for name in json.loads(found.input)["checked"] if name != "platform"]


async def test_the_default_policy_has_an_outcome_for_every_sample() -> None:
    """With no engine approved, and with two."""
    for bundle in (DEFAULT, changed()):
        answers = await questions.ask(bundle, (await admission.inspect(bundle)).words)
        assert (answers.failure, answers.is_complete, answers.asked > 1900) == (None, True, True)


# What is wrong: the edit of the default policy, and what is said of it.
WRONG: dict[str, tuple[Bundle, str]] = {
    "a reason code that only a weak engine meets": (
        changed(misspelt("engine.weak", "engine.week")),
        "platform: unknown reason code 'runtime.engine.week'",
    ),
    "a reason code that only a forbidden argument meets": (
        changed(misspelt("argument.forbidden", "argument.forbiden")),
        "platform: unknown reason code 'runtime.argument.forbiden'",
    ),
    "a value for three facts together": (
        changed(("weights.rego", "data.ar4si.file_system.no_conclusion", "300")),
        "file-system is 300; it must be an integer of −128 … 127",
    ),
    "no value if no other rule holds": (
        changed(("weights.rego", "} else := data.ar4si.executables.other", "}")),
        "model/a: the policy gives no outcome for this submodule",
    ),
    "no outcome without a runtime": (
        changed(("platform.rego", "platform_reasons(facts) := [] if facts.runtime == null", "")),
        "platform: the policy gives no outcome for this submodule",
    ),
    "no outcome for an unknown kind": (
        changed(("outcome.rego", 'facts.kind == "unknown"', 'facts.kind == concat("", ["ne", "ver"])')),
        "the policy gives no outcome for this submodule",
    ),
    "kinds told by their names": (
        changed(("outcome.rego", 'facts.kind == "unknown"', 'facts.kind == "unknown"\n\tnot startswith(name, "model/")')),
        "model/: the policy gives no outcome for this submodule",
    ),
    "a version taken for a semantic one": (
        changed(
            ("platform.rego", 'facts.endpoint != "unproven"',
             'facts.endpoint != "unproven"\n\tsemver.compare(facts.runtime.version, "1.0.0") >= 0'),
        ),
        "platform.rego:24:33: invalid semver",
    ),
    "an error for one value": (
        changed(("gpu.rego", "facts.memory_fits\n", "facts.memory_fits\n\t1 / count([1 | facts.named]) == 1\n")),
        "divide by zero",
    ),
    "neither more nor less": (
        changed(
            ("platform.rego", "configuration(facts),\n}", "configuration(facts),\n} if size(facts)"),
            more="size(facts) if facts.capabilities == null\n\nsize(facts) if facts.capabilities.memory_bytes < 80000\n\n"
            "size(facts) if facts.capabilities.memory_bytes > 80000",
        ),
        "platform: the policy gives no outcome for this submodule",
    ),
    "an unknown claim": (
        changed(("gpu.rego", '"hardware": hardware(facts)', 'concat("-", ["hard", "ware"]): hardware(facts)')),
        "unknown trust claim 'hard-ware'",
    ),
    "an invented submodule": (
        changed(more='outcome["tpm/0"] := {"trust_vector": {"hardware": 2}, "reasons": []} if count(input.references) == 0'),
        "'tpm/0': the policy gives an outcome that nobody asked for",
    ),
    "two models only": (
        changed(
            ("weights.rego", 'facts.kind == "model"\n',
             'facts.kind == "model"\n\tcount([1 | input.checked[_].kind == "model"]) < 2\n'),
        ),
        "the policy gives no outcome for this submodule",
    ),
    "an empty vector": (
        changed(("gpu.rego", '{"hardware": hardware(facts)}', '{claim: hardware(facts) | claim := "hardware"; facts.named}')),
        "trust_vector must be an object with at least one claim",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bundle", "why"), WRONG.values(), ids=WRONG)
async def test_what_would_fail_live_is_found(bundle: Bundle, why: str) -> None:
    """Unknown reason codes passed until a bad node met them, which then was none instead of contraindicated."""
    assert why in (await failure_of(bundle)).why


@pytest.mark.parametrize(
    ("name", "left"),
    {
        "a reason code that only a weak engine meets": 0,
        "a value for three facts together": 1,
        "no outcome for an unknown kind": 1,
        "an unknown claim": 1,
        "two models only": 2,
    }.items(),
)
async def test_input_has_nothing_that_is_not_needed(name: str, left: int) -> None:
    """No other submodules, no reference values; facts that do not matter are good or absent."""
    found = await failure_of(WRONG[name][0])
    assert len(others(found)) == left
    assert json.loads(found.input)["references"] == {}


async def test_input_can_be_put_into_a_test() -> None:
    """As it is printed: Rego reads JSON, and no line is longer than the engine takes."""
    bundle, _ = WRONG["a value for three facts together"]
    found = await failure_of(bundle)
    (name,) = others(found)
    test = (
        "package touchstone_test\n\nimport data.touchstone\n\ntest_lost if {\n"
        f'\ttouchstone.outcome["{name}"].trust_vector["file-system"] == 0 with input as {found.input}\n}}\n'
    )
    with pytest.raises(BundleError, match=r"lost_test\.rego:5: .*test_lost"):
        await admission.check(bundles.of_files({**bundle.files, "lost_test.rego": test.encode()}))


LOOPS = "count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) > 3"
STUCK: dict[str, tuple[Bundle, str]] = {
    "loops for one value": (
        changed(
            ("gpu.rego", "consistent(facts)\n\tunsaid(facts)",
             f'consistent(facts)\n\tfacts.benchmark == "boast"\n\t{LOOPS}'),
        ),
        "gave no outcome within 0.3 s",
    ),
    "always loops": (changed(("gpu.rego", "not facts.malformed", LOOPS)), "gave no outcome within 0.3 s"),
}  # fmt: skip


@pytest.mark.parametrize(("bundle", "why"), STUCK.values(), ids=STUCK)
async def test_a_policy_that_loops_is_found_soon(
    bundle: Bundle, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One input costs its time, and not each of all."""
    monkeypatch.setattr(questions, "_SHRINKING_S", 0.5)
    found = (await questions.ask(bundle, Words(), Limits(1, 0.3))).failure
    assert found is not None
    assert why in found.why


async def test_a_policy_that_does_not_start_blames_no_input() -> None:
    """It says where the mistake is."""
    bundle = changed(("outcome.rego", 'facts.kind == "unknown"', 'nobody.kind == "unknown"'))
    with pytest.raises(BundleError, match=r"outcome.rego:\d+:\d+: "):
        await admission.question(bundle, admission.Inspection((), {}))
    found = await questions.find_failure(bundle, Words())
    assert found.failure is not None
    assert found.failure.to_wire()["input"] is None


async def test_a_slow_policy_is_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is said that not everything was asked."""
    monkeypatch.setattr(questions, "_ASKING_S", 0.0)
    bundle = changed(more="another := 1")
    answers = await questions.ask(bundle, Words())
    assert (answers.is_complete, answers.failure) == (False, None)


async def test_what_did_not_fail_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial is made often; and a policy of other limits, rules or data is another."""
    await questions.ask(DEFAULT, Words())
    monkeypatch.setattr(questions, "opened", None)
    assert (await questions.ask(DEFAULT, Words())).failure is None
    with pytest.raises(TypeError):
        await questions.ask(DEFAULT, Words(), Limits(1, 2.0))


async def test_admission_names_the_input() -> None:
    """What publishing says, over the API too."""
    with pytest.raises(BundleError) as refused:
        await admission.question(*await _inspected(WRONG["an unknown claim"][0]))
    lines = str(refused.value).splitlines()
    assert "unknown trust claim 'hard-ware'" in lines[0]
    assert json.loads("\n".join(lines[1:]))["checked"]


async def _inspected(bundle: Bundle) -> tuple[Bundle, admission.Inspection]:
    return bundle, await admission.inspect(bundle)


async def test_finding_of_lint_has_the_place_of_the_engine() -> None:
    """If there is one; otherwise of the word that is wrong, or the first module."""
    bundle, _ = WRONG["a version taken for a semantic one"]
    found = admission.finding_of(bundle, await failure_of(bundle))
    assert str(found) == "platform.rego:24:33: invalid semver (samples)"
    of_word = Failure("platform: unknown reason code 'runtime.engine.weak'", "")
    assert str(admission.finding_of(bundle, of_word)).startswith("platform.rego:49:37: platform: unknown ")
    found = admission.finding_of(
        bundle, Failure("model/a: the policy gives no outcome for this submodule", "")
    )
    assert str(found).startswith("gpu.rego:1:1: model/a: ")
