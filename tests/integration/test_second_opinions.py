"""A second engine is asked the same: differences are shown with their input, and no result is another for it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.lifecycle import smuggle
from tests.unit.verifier.test_engine import policy
from verifier.commands.rollout import policy as commands
from verifier.config import SecondOpinionConfig, default_policy
from verifier.errors import NoOutcomeError, PolicyError
from verifier.policy import bundle as bundles
from verifier.policy import opinions, samples, second_engines
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits, opened
from verifier.service.second_opinions import SecondOpinions

ROOT = Path(__file__).parents[2]
HAS_REGOPY = importlib.util.find_spec("regopy") is not None
needs_regopy = pytest.mark.skipif(
    not HAS_REGOPY, reason="regopy is not installed: touchstone-attestation[second-opinion]"
)
needs_opa = pytest.mark.skipif(
    importlib.util.find_spec("opa_bindings") is None,
    reason="OPA's library is not installed; see fixtures/record_rego.py",
)
# The negation of undefined: true here, undefined in OPA. Lint refuses it, so it comes past lint.
NEGATED = """package touchstone

outcome[name] := {"trust_vector": {"configuration": value(facts)}, "reasons": []} if some name, facts in input.checked

value(facts) := 2 if not startswith(facts.absent, "bad")

default value(_) := 96
"""
# rego-cpp takes letters and numbers in another order than the engine and OPA.
MIXED = NEGATED.replace('not startswith(facts.absent, "bad")', '"a" < 1; facts.kind')
GIVEN = b'{"checked": {"platform": {"kind": "platform"}}, "references": {}, "node": {}, "date": "2026-11-30"}'


def executable(folder: Path, text: str) -> Path:
    """A program of the test's own."""
    path = folder / "opa"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def opa(tmp_path) -> Path:
    """OPA as a library, behind the arguments of its executable (fixtures/opa_executable.py)."""
    path = ":".join(filter(None, [str(ROOT), *sys.path]))
    return executable(
        tmp_path,
        f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" -m fixtures.opa_executable "$@"\n',
    )


async def opinion(bundle: Bundle, name: str, opa: Path | None = None) -> opinions.Comparison:
    """Both engines about one input."""
    async with (
        opened(bundle, Limits(1, 20.0)) as first,
        second_engines.open_engine(name, bundle, opa) as second,
    ):
        return await opinions.compare(first, second, [GIVEN], 60.0)


@needs_opa
async def test_the_negation_of_undefined_differs_in_opa(opa) -> None:
    """The same bundle and input affirm here and are contraindicated there: shown with the input and both outcomes."""
    found = await opinion(policy(NEGATED), "opa", opa)
    assert (found.asked, found.differing) == (1, 1)
    (shown,) = found.disagreements
    assert json.loads(shown.here)["platform"]["trust_vector"] == {"configuration": 2}
    assert json.loads(shown.there)["platform"]["trust_vector"] == {"configuration": 96}
    assert json.loads(shown.policy_input)["checked"].keys() == {"platform"}


@needs_opa
async def test_the_input_is_made_small(opa) -> None:
    """What the difference does not need is left out."""
    large = max(samples.of_types(), key=len)
    bundle = policy(NEGATED)
    async with (
        opened(bundle, Limits(1, 20.0)) as first,
        second_engines.open_engine("opa", bundle, opa) as second,
    ):
        found = await opinions.compare(first, second, [large], 60.0)
    (shown,) = found.disagreements
    assert len(shown.policy_input) < len(large) / 4
    assert json.loads(shown.here) != json.loads(shown.there)


@needs_opa
async def test_a_policy_that_means_the_same_has_no_differences(opa) -> None:
    """The default policy on some samples."""
    bundle = bundles.load(default_policy())
    async with (
        opened(bundle, Limits(1, 20.0)) as first,
        second_engines.open_engine("opa", bundle, opa) as second,
    ):
        found = await opinions.compare(first, second, samples.of_types()[:4], 60.0)
    assert (found.asked, found.differing, found.unanswered) == (4, 0, 0)


@needs_regopy
async def test_rego_cpp_is_asked_in_a_process_of_its_own() -> None:
    """Where it is wrong it differs, and that is all that follows."""
    assert (await opinion(policy(MIXED), "regopy")).differing == 1
    assert (await opinion(bundles.load(default_policy()), "regopy")).differing == 0


@needs_regopy
async def test_rego_cpp_does_not_judge_what_it_cannot_read() -> None:
    """It takes a text to its first NUL, which would be another input."""
    async with second_engines.open_engine("regopy", policy(NEGATED)) as engine:
        with pytest.raises(PolicyError, match="NUL"):
            await engine.ask(GIVEN.replace(b"2026-11-30", b"\\u0000"))


@needs_regopy
async def test_what_rego_cpp_refuses_is_said_at_once() -> None:
    """A bundle that it cannot compile is no difference in each input."""
    with pytest.raises(PolicyError):
        async with second_engines.open_engine("regopy", policy("package touchstone\n\nx := \n")):
            pass


async def test_an_executable_that_is_not_there_gives_no_opinion(tmp_path) -> None:
    """Nothing is said of the policy."""
    async with second_engines.open_engine("opa", policy(NEGATED), tmp_path / "none") as engine:
        with pytest.raises(NoOutcomeError, match="cannot be started"):
            await engine.ask(GIVEN)


@pytest.mark.parametrize("text", ["", "[]", "x", '{"result": [{}]}'])
async def test_answers_that_are_none(tmp_path, text) -> None:
    """What is no answer of OPA is an error, and never an outcome."""
    path = executable(tmp_path, f"#!/bin/sh\ncat > /dev/null\nprintf '%s' '{text}'\n")
    async with second_engines.open_engine("opa", policy(NEGATED), path) as engine:
        with pytest.raises(PolicyError):
            await engine.ask(GIVEN)


async def test_an_executable_that_hangs_is_ended(tmp_path, monkeypatch) -> None:
    """It gets its time, and no more."""
    monkeypatch.setattr(second_engines, "TIMEOUT_S", 0.2)
    path = executable(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    async with second_engines.open_engine("opa", policy(NEGATED), path) as engine:
        with pytest.raises(NoOutcomeError, match="within"):
            await engine.ask(GIVEN)


async def test_the_executable_sees_nothing_of_the_environment(tmp_path, monkeypatch) -> None:
    """A policy can ask OPA for all variables, and the service's may hold secrets."""
    monkeypatch.setenv("SECRET", "hush")
    path = executable(tmp_path, f"#!/bin/sh\ncat > /dev/null\nenv > {tmp_path}/env\nprintf '{{}}'\n")
    async with second_engines.open_engine("opa", policy(NEGATED), path) as engine:
        with pytest.raises(PolicyError):
            await engine.ask(GIVEN)
    assert "hush" not in (tmp_path / "env").read_text()


@needs_regopy
def test_policy_test_asks_a_second_engine(monkeypatch) -> None:
    """Differences end the command with 1; a policy that means the same passes."""
    few = samples.of_types()[:3]
    monkeypatch.setattr(samples, "of_types", lambda: few)
    monkeypatch.setattr(samples, "of_words", lambda *_: iter(()))
    done = CliRunner().invoke(commands, ["test", str(default_policy()), "--second", "regopy"])
    assert done.exit_code == 0, done.output
    assert "NOTE: regopy could not run the tests" in done.output
    assert "Asked regopy too, about 3 inputs: 0 differ." in done.output


@needs_opa
def test_tests_are_run_in_the_second_engine_too(tmp_path, opa, monkeypatch) -> None:
    """A test that passes here alone is named, and the command ends with 1."""
    few = samples.of_types()[:1]
    monkeypatch.setattr(samples, "of_types", lambda: few)
    monkeypatch.setattr(samples, "of_words", lambda *_: iter(()))
    folder = tmp_path / "bundle"
    shutil.copytree(default_policy(), folder)
    text = 'package other_test\n\ntest_absent if not startswith(input.absent, "a")\n\ntest_plain if 1 == 1\n'
    (folder / "other_test.rego").write_text(text)
    done = CliRunner().invoke(commands, ["test", str(folder), "--second", "opa", "--opa", str(opa)])
    assert "DIFFERS  data.other_test.test_absent passes here, and not in opa" in done.output
    assert "Ran 38 tests in opa too: 1 differ." in done.output
    assert done.exit_code == 1


def test_opa_needs_its_path() -> None:
    """The command says what is missing."""
    done = CliRunner().invoke(commands, ["test", str(default_policy()), "--second", "opa"])
    assert done.exit_code == 1
    assert "--opa PATH" in done.output


class TestLive:
    """On a verifier: a share of what is judged, without any effect."""

    @pytest.fixture
    def verifier_settings(self, tmp_path, opa) -> dict[str, Any]:
        """Everything is asked about; the test says when."""
        return {
            "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
            "second_opinion": {"engine": "opa", "opa": str(opa), "share": 1.0},
        }

    @needs_opa
    async def test_differences_are_kept_with_their_input(self, verifier) -> None:
        """By engine and policy; the API and the command show them; the result is what the policy gave."""
        node = await verifier.enrol()
        await smuggle(verifier, await negated(verifier))
        result = await verifier.attest(node)
        assert result["submods"]["platform"]["ear_status"] == "affirming"
        report: list[Any] = []
        deadline = time.monotonic() + 20
        while not report:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
            status, body = await verifier.get("/api/v1/policies/opinions")
            assert status == 200
            report = body["opinions"]
        (found,) = report
        assert (found["engine"], found["asked"], found["differing"]) == ("opa", 1, 1)
        (kept,) = found["differences"]
        assert "platform" in json.loads(kept["input"])["checked"]
        assert json.loads(kept["here"])["platform"]["trust_vector"] == {"configuration": 2}
        assert json.loads(kept["there"])["platform"]["trust_vector"] == {"configuration": 96}
        assert await verifier.rows("SELECT * FROM incidents") == []
        done = await asyncio.to_thread(
            CliRunner().invoke, commands, ["opinions", "--home", str(verifier.home.path)]
        )
        assert "DIFFERS" in done.output
        assert "opa was asked about 1 evaluations of negated@1" in done.output

    async def test_what_is_like_the_last_is_asked_about_once(self, verifier) -> None:
        """Nodes that are alike give equal inputs."""
        second = SecondOpinions(verifier.service, draw=lambda: 0.0)
        bundle = await verifier.policy()
        for _ in range(3):
            second.offer(bundle, GIVEN, {})
        assert second._waiting.qsize() == 1

    async def test_what_there_is_no_time_for_is_skipped(self, verifier) -> None:
        """Nothing waits for the second engine, and nothing piles up."""
        second = SecondOpinions(verifier.service, draw=lambda: 0.0)
        bundle = await verifier.policy()
        for number in range(200):
            second.offer(bundle, GIVEN.replace(b"2026", str(1000 + number).encode()), {})
        assert second._waiting.qsize() == 100
        assert second._skipped == 100


class TestShare:
    """Which evaluations are asked about."""

    @pytest.fixture
    def verifier_settings(self) -> dict[str, Any]:
        """A quarter."""
        return {"second_opinion": {"engine": "regopy", "share": 0.25}}

    async def test_a_share_is_taken(self, verifier) -> None:
        """The others are not."""
        bundle = await verifier.policy()
        second = SecondOpinions(verifier.service, draw=iter((0.24, 0.25, 0.9, 0.0)).__next__)
        for number in range(4):
            second.offer(bundle, GIVEN.replace(b"2026", str(1000 + number).encode()), {})
        assert second._waiting.qsize() == 2


async def test_nobody_is_asked_unless_it_is_set(verifier) -> None:
    """It is off by default."""
    second = SecondOpinions(verifier.service, draw=lambda: 0.0)
    second.offer(await verifier.policy(), GIVEN, {})
    assert second._waiting.qsize() == 0
    assert await verifier.get("/api/v1/policies/opinions") == (200, {"opinions": []})


async def test_a_missing_engine_costs_a_line_in_the_log(verifier) -> None:
    """And a count; results go on."""
    settings = SecondOpinionConfig(engine="opa", opa="/nowhere/opa", share=1.0)
    second = SecondOpinions(verifier.service, draw=lambda: 0.0)
    second._settings = settings
    second.offer(await verifier.policy(), GIVEN, {})
    await second.ask_next()
    await second._close()
    _, body = await verifier.get("/api/v1/policies/opinions")
    assert [(o["asked"], o["unanswered"]) for o in body["opinions"]] == [(0, 1)]


async def test_it_rests_nine_times_as_long_as_it_took(verifier) -> None:
    """So it costs a tenth of a processor at most."""
    now_s = [5.0]

    class Slow:
        async def ask(self, _: bytes) -> bytes:
            now_s[0] += 2
            return b"{}"

    clock = dataclasses.replace(verifier.service.clock, monotonic=lambda: now_s[0])
    second = SecondOpinions(dataclasses.replace(verifier.service, clock=clock), draw=lambda: 0.0)
    second._settings = SecondOpinionConfig(engine="regopy", share=1.0)
    bundle = await verifier.policy()
    second._engine = (bundle.digest, Slow())
    second.offer(bundle, GIVEN, {})
    assert await second.ask_next() == 18.0


def test_opa_without_a_path_is_refused_in_the_settings() -> None:
    """Before the service starts."""
    with pytest.raises(ValueError, match="path of its executable"):
        SecondOpinionConfig(engine="opa")


async def negated(verifier: Any) -> Bundle:
    """A policy that negates undefined."""
    base = await verifier.policy()
    files = {name: data for name, data in base.files.items() if not name.endswith(".rego")}
    manifest = json.loads(files["bundle.json"])
    files["bundle.json"] = json.dumps({**manifest, "name": "negated", "version": "1"}).encode()
    return bundles.of_files({**files, "outcome.rego": NEGATED.encode()})
