"""What is not published, not promoted and not in force, and that people are told: over the API and by commands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fixtures.transactions import transaction
from tests.integration.lifecycle import WHO, archive, changed, post, publish, smuggle, strict
from touchstone import main
from verifier.config import Home, VerifierConfig
from verifier.errors import BundleError, RequestError
from verifier.policy.bundle import Bundle
from verifier.service.app import activate_home_policy
from verifier.service.home_folder import look
from verifier.store import policies
from verifier.store.opening import open_database

PUBLISH = "/api/v1/policies?actor=kim&reason=because"
WHY = {"actor": "kim", "reason": "because"}
STORES = ("sqlite", "postgres")


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that only the test makes."""
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}}


def mistaken(base: Bundle) -> Bundle:
    """A policy that passes its tests, and gives an unknown code to a node with a forbidden package."""
    text = (
        base.files["platform.rego"].decode().replace("runtime.package.forbidden", "runtime.package.forbiden")
    )
    tests = (
        base.files["policy_test.rego"]
        .decode()
        .replace("runtime.package.forbidden", "runtime.package.forbiden")
    )
    return changed(base, "mistaken", platform_rego=text, policy_test_rego=tests)


# Published.


async def test_a_policy_that_fails_on_a_sample_is_not_published(verifier) -> None:
    """Unknown reason codes passed until a bad node met them, which then was none instead of contraindicated."""
    bundle = mistaken(await verifier.policy())
    status, body = await post(verifier, PUBLISH, archive(verifier, bundle))
    assert (status, body["type"].rpartition("#")[2]) == (422, "policy.unusable")
    why, _, given = body["detail"].partition("\n")
    assert "unknown reason code 'runtime.package.forbiden'" in why
    document, _ = json.JSONDecoder().raw_decode(given)
    assert document["checked"]["platform"]["runtime"]["packages"] == {"litellm": "1.82.7"}
    assert await verifier.rows("SELECT * FROM policies WHERE name = 'mistaken'") == []


async def test_publishing_says_how_much_was_asked(verifier) -> None:
    """Beside the number of tests."""
    status, body = await post(verifier, PUBLISH, archive(verifier, await strict(verifier)))
    assert (status, body["samples"] > 1900) == (201, True)


async def test_an_outcome_in_parts_is_published_and_judges_nodes(verifier) -> None:
    """`outcome[name].trust_vector := … if …`: lint, tests, publish and promote accepted it, and every appraisal failed."""
    base = await verifier.policy()
    parts = base.files["gpu.rego"].decode().replace(
        'outcome[name] := {"trust_vector": {"hardware": hardware(facts)}, "reasons": []} if {',
        'outcome[name].reasons := [] if {\n\tsome name, facts in input.checked\n\tfacts.kind == "gpu"\n}\n\n'
        "outcome[name].trust_vector.hardware := hardware(facts) if {",
    )  # fmt: skip
    models = base.files["weights.rego"].decode().replace(
        'outcome[name] := {"trust_vector": model_vector(facts), "reasons": []} if {',
        'outcome[name].reasons := [] if {\n\tsome name, facts in input.checked\n\tfacts.kind == "model"\n}\n\n'
        "outcome[name].trust_vector := model_vector(facts) if {",
    )  # fmt: skip
    others = base.files["platform.rego"].decode().replace(
        'outcome[name] := {"trust_vector": platform_vector(facts), "reasons": platform_reasons(facts)} if {',
        'outcome[name].reasons := platform_reasons(facts) if {\n\tsome name, facts in input.checked\n'
        '\tfacts.kind == "platform"\n}\n\noutcome[name].trust_vector := platform_vector(facts) if {',
    )  # fmt: skip
    unknown = (
        "package touchstone\n\noutcome[name].trust_vector.configuration := data.ar4si.configuration.forbidden if {\n"
        '\tsome name, facts in input.checked\n\tfacts.kind == "unknown"\n}\n\noutcome[name].reasons := [] if {\n'
        '\tsome name, facts in input.checked\n\tfacts.kind == "unknown"\n}\n'
    )
    bundle = changed(
        base, "parts", gpu_rego=parts, weights_rego=models, platform_rego=others, outcome_rego=unknown
    )
    await publish(verifier, bundle)
    status, _ = await post(verifier, f"/api/v1/policies/{bundle.digest}/promote", WHY)
    assert status == 200
    node = await verifier.enrol()
    assert (await verifier.attest(node))["ear_status"] == "affirming"


# Names and versions.


async def test_a_name_and_a_version_are_given_once(verifier) -> None:
    """The edit published twice made two default@2.  The message names the next that is free."""
    base = await verifier.policy()
    first, second = changed(base, "acme"), changed(base, "acme", README_DOT_md="other")
    await publish(verifier, first)
    status, body = await post(verifier, PUBLISH, archive(verifier, second))
    assert (status, body["type"].rpartition("#")[2]) == (409, "policy.version")
    assert '"version": "2"' in body["detail"]
    assert len(await verifier.rows("SELECT * FROM policies WHERE name = 'acme'")) == 1
    assert (await post(verifier, PUBLISH, archive(verifier, first)))[0] == 200


@pytest.mark.parametrize(
    ("version", "taken", "free"),
    [
        ("2", {"1", "2"}, "3"), ("2", {"2", "3", "4"}, "5"), ("1.9", {"1.9"}, "1.10"), ("v3-beta", {"v3-beta"}, "v4-beta"),
        ("first", {"first"}, "first.1"), ("first", {"first", "first.1"}, "first.2"),
    ],
)  # fmt: skip
def test_next_version_is_the_first_that_is_free(version: str, taken: set[str], free: str) -> None:
    """Its last number counts on."""
    assert policies.next_version(version, taken) == free


async def test_two_of_one_version_from_before_are_kept(verifier) -> None:
    """Databases of earlier versions open, each of the two can be named by its digest, and no third comes."""
    base = await verifier.policy()
    bundle = changed(base, "twice")
    async with transaction(verifier.service.db) as tx:
        for digest in ("a" * 64, "b" * 64):
            await tx.execute(
                "INSERT INTO policies (digest, id, name, version, author, description, archive, signer, added_ms)"
                " SELECT ?, ?, 'twice', '1', author, description, archive, signer, added_ms FROM policies"
                " WHERE digest = ?", digest, f"twice@1#sha-256;{digest}", base.digest,
            )  # fmt: skip
        assert (await policies.find(tx, "a" * 12))["digest"] == "a" * 64
        with pytest.raises(RequestError, match='"version": "2"'):
            await policies.publish(tx, bundle, b"{}", "home", WHO, verifier.clock.ms)


# Steps after a failure.


async def failed_trial(verifier) -> Bundle:
    bundle = mistaken(await verifier.policy())
    async with transaction(verifier.service.db) as tx:
        await policies.publish(tx, bundle, b"{}", "home", WHO, verifier.clock.ms)
    status, report = await post(verifier, f"/api/v1/policies/{bundle.digest}/trial", WHY)
    assert (status, "forbiden" in report["failed_sample"]["why"]) == (200, True)
    return bundle


@pytest.mark.parametrize(("action", "more"), [("promote", {}), ("canary", {"permille": 5})])
async def test_a_policy_that_failed_in_its_trial_judges_nobody_unasked(
    verifier, action: str, more: Any
) -> None:
    """Unless somebody says so; and that is kept."""
    bundle = await failed_trial(verifier)
    path = f"/api/v1/policies/{bundle.digest}/{action}"
    status, body = await post(verifier, path, {**WHY, **more})
    assert (status, body["type"].rpartition("#")[2]) == (409, "policy.state")
    assert "on an input that the contract allows" in body["detail"]
    assert (await post(verifier, path, {**WHY, **more, "anyway": True}))[0] == 200
    _, history = await verifier.get("/api/v1/policies/history?limit=1")
    assert "its newest trial" in history["changes"][0]["detail"]["despite"][0]


async def test_a_policy_that_failed_as_the_shadow_judges_nobody_unasked(verifier) -> None:
    """The numbers are said."""
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    await post(verifier, f"/api/v1/policies/{bundle.digest}/shadow", WHY)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE shadow_counts SET appraised = 40, failed = 2")
    status, body = await post(verifier, f"/api/v1/policies/{bundle.digest}/promote", WHY)
    assert (status, "on 2 of 40 appraisals as the shadow" in body["detail"]) == (409, True)


async def test_a_rollback_is_never_refused_for_that(verifier) -> None:
    """It is the way out."""
    base = await verifier.policy()
    await smuggle(verifier, await strict(verifier))
    async with transaction(verifier.service.db) as tx:
        await policies.note(
            tx, "trial", base.digest, WHO, verifier.clock.ms, {"failures": 3, "appraisals": 9}
        )
    status, body = await post(verifier, "/api/v1/policies/rollback", WHY)
    assert (status, body["active"]) == (200, base.id)


async def test_a_later_trial_that_does_not_fail_clears_it(verifier) -> None:
    """A failure may have been the machine's."""
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    async with transaction(verifier.service.db) as tx:
        for failures in (3, 0):
            await policies.note(tx, "trial", bundle.digest, WHO, verifier.clock.ms, {"failures": failures})
    assert (await post(verifier, f"/api/v1/policies/{bundle.digest}/promote", WHY))[0] == 200


# The folder in the home.


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """As ``verifier init`` makes it."""
    home = Home(tmp_path / "home")
    home.create(VerifierConfig())
    return home


def touchstone(home: Home, *arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*map(str, arguments), "--home", str(home.path)], terminal_width=300)
    return done.exit_code, done.output


async def start(home: Home) -> None:
    async with open_database("", home.database) as db:
        await activate_home_policy(db, home, VerifierConfig(), 1)


def edit(home: Home, file: str, old: str, new: str) -> None:
    path = home.path / "policy" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


async def told(home: Home) -> Any:
    async with open_database("", home.database) as db, db.read() as tx:
        return (await look(tx, home.path, home.path / "policy")).to_wire()


async def test_an_edit_before_the_first_start_is_taken(home: Home) -> None:
    """`verifier init` says so."""
    edit(home, "data.json", '"fp8"', '"fp4"')
    assert (await told(home))["why"] == "is taken when the verifier first starts"
    await start(home)
    now = await told(home)
    assert (now["ignored"], now["why"]) == (False, "is default@5, active")


async def test_an_edit_after_the_first_start_is_told_with_what_to_do(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was ignored without a word.  The commands that it names put it in force."""
    await start(home)
    edit(home, "data.json", '"fp8"', '"fp4"')
    await start(home)
    assert "the policy in the home's folder is not in force" in capsys.readouterr().out
    now = await told(home)
    assert (now["ignored"], now["steps"][0]) == (
        True,
        f'write "version": "6" into {home.path}/policy/bundle.json, then',
    )


def test_status_and_list_tell_it_until_it_is_in_force(home: Home) -> None:
    """Each command as it is printed, with a reason."""
    asyncio.run(start(home))
    note = "NOTE: "
    assert note not in touchstone(home, "policy", "list")[1]
    edit(home, "data.json", '"fp8"', '"fp4"')
    for shown in (touchstone(home, "policy", "list"), touchstone(home, "verifier", "status")):
        assert (shown[0], note in shown[1]) == (0, True)
    edit(home, "bundle.json", '"5"', '"6"')
    lines = [line.strip() for line in touchstone(home, "policy", "list")[1].splitlines()]
    steps = [line for line in lines if line.startswith("touchstone ")]
    assert len(steps) == 2
    for step in steps:
        words = step.replace("REASON", "because").split()[1:]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    assert "default@6" in touchstone(home, "policy", "list")[1]
    assert note not in touchstone(home, "policy", "list")[1]
    found = json.loads(touchstone(home, "verifier", "status", "--json")[1])["policy"]
    assert (found["folder"]["ignored"], found["active"].partition("#")[0]) == (False, "default@6")


async def test_a_folder_that_is_no_policy_is_told(home: Home) -> None:
    """And the verifier starts all the same."""
    await start(home)
    (home.path / "policy" / "data.json").write_text("{")
    await start(home)
    now = await told(home)
    assert (now["ignored"], "is not a policy that can be published: data.json" in now["why"]) == (True, True)


async def test_a_folder_that_is_gone_is_not_missed(home: Home) -> None:
    """Nothing is read from it."""
    await start(home)
    (home.path / "policy").rename(home.path / "elsewhere")
    await start(home)
    assert (await told(home))["ignored"] is False


async def test_a_folder_that_fails_on_a_sample_is_not_started_with(home: Home) -> None:
    """The first start is a publication."""
    edit(home, "outcome.rego", 'facts.kind == "unknown"', 'facts.kind == "never"')
    edit(
        home,
        "policy_test.rego",
        "test_unknown_submodule_is_contraindicated if {",
        "test_unknown if {\n\ttrue\n}\n\nx if {",
    )
    with pytest.raises(BundleError, match="gives no outcome for this submodule"):
        await start(home)


# Commands.


def broken_folder(home: Home) -> Path:
    edit(home, "platform.rego", "runtime.package.forbidden", "runtime.package.forbiden")
    edit(home, "policy_test.rego", "runtime.package.forbidden", "runtime.package.forbiden")
    return home.path / "policy"


@pytest.mark.parametrize("command", ["lint", "test"])
def test_lint_and_test_show_the_input(home: Home, command: str) -> None:
    """All tests pass, and every line is reached."""
    done = CliRunner().invoke(main, ["policy", command, str(broken_folder(home))])
    assert done.exit_code == 1
    assert "unknown reason code 'runtime.package.forbiden'" in done.output
    assert '"litellm": "1.82.7"' in done.output


@pytest.mark.parametrize("command", ["lint", "test"])
def test_lint_and_test_say_how_much_was_asked(home: Home, command: str) -> None:
    """The default policy."""
    done = CliRunner().invoke(main, ["policy", command, str(home.path / "policy")])
    assert done.exit_code == 0, done.output
    assert "inputs that the contract allows: each has a valid outcome." in done.output


def test_a_trial_of_a_folder_that_fails_on_a_sample_ends_with_1(home: Home) -> None:
    """Though nothing was recorded yet."""
    asyncio.run(start(home))
    status, shown = touchstone(home, "policy", "trial", broken_folder(home))
    assert (status, "FAIL  platform: unknown reason code" in shown) == (1, True)
