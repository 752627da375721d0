"""A trial over ten thousand recorded appraisals, on the command line: the exact set of changes, and nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fixtures.recorded import Template, fill, node_id
from fixtures.simulator import ENGINE, ENGINE_VERSION
from touchstone import main
from verifier import appraisal
from verifier.config import Home, VerifierConfig
from verifier.policy import bundle as bundles
from verifier.policy.engine import Limits, opened
from verifier.store.sqlite import SqliteDatabase

NOW_MS = 1_795_000_000_000
COUNT, NODES = 10_000, 250
OLD = "0.9"


def is_old(node: int) -> bool:
    return node % 7 == 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Forty appraisals of each of 250 nodes; of the nodes a seventh runs an old engine."""
    home = Home(tmp_path_factory.mktemp("trial") / "home")
    home.create(VerifierConfig())
    approve(home.path / "policy", ENGINE_VERSION, OLD)
    bundle = bundles.load(home.path / "policy")
    template = Template(model_folder, bundle, NOW_MS)

    async def work() -> None:
        outcomes = {}
        async with opened(bundle, Limits(1)) as pool:
            for version in (ENGINE_VERSION, OLD):
                given, record = template.record("n", "0" * 32, version, {})
                outcomes[version] = appraisal.read_outcome(await pool.evaluate(given), record.checked)
        async with SqliteDatabase(home.database) as db:
            await fill(
                db, template, COUNT, NODES, lambda node: OLD if is_old(node) else ENGINE_VERSION,
                outcomes.__getitem__, lambda number: {"build": str(number % 4000)},
            )  # fmt: skip

    asyncio.run(work())
    return home.path


def approve(folder: Path, *versions: str, **thresholds: int) -> None:
    path = folder / "data.json"
    data = json.loads(path.read_text())
    data["approved_engines"] = {ENGINE: {"versions": list(versions), "weak": []}}
    data["thresholds"] |= thresholds
    path.write_bytes(msgspec.json.encode(data))


def touchstone(home: Path, *arguments: object, fails: bool = False) -> str:
    done = CliRunner().invoke(main, ["policy", *(str(a) for a in arguments), "--home", str(home)])
    assert done.exit_code == fails, done.output[:2000]
    return done.output


def trial(home: Path, folder: Path, *options: object, fails: bool = False) -> Any:
    return json.loads(touchstone(home, "trial", folder, "--since", "9999d", "--json", *options, fails=fails))


def test_ten_thousand_recorded_appraisals(home: Path, tmp_path: Path) -> None:
    """Exactly the nodes with the old engine change, each from and to exactly this, forty times."""
    folder = tmp_path / "strict"
    touchstone(home, "new", folder, "--from", "active")
    approve(folder, ENGINE_VERSION)
    report = trial(home, folder)
    old = [node_id(number) for number in range(NODES) if is_old(number)]
    assert (report["appraisals"], report["nodes"], report["nodes_changed"]) == (COUNT, NODES, len(old))
    assert (report["worse"], report["better"], report["other"], report["failures"]) == (len(old), 0, 0, 0)
    expected = {
        "submod": "platform",
        "direction": "worse",
        "from": {"vector": {"instance-identity": 2, "configuration": 2}, "reasons": []},
        "to": {
            "vector": {"instance-identity": 2, "configuration": 96},
            "reasons": ["runtime.engine.unapproved"],
        },
        "count": COUNT // NODES,
    }
    found = [{name: change[name] for name in expected} for change in report["changes"]]
    assert [change["node"] for change in report["changes"]] == old
    assert found == [expected] * len(old)


def test_the_same_policy_changes_nothing(home: Path) -> None:
    """What was decided is decided again."""
    report = trial(home, Path("active"))
    assert (report["appraisals"], report["unchanged"], report["changes"]) == (COUNT, COUNT, [])


def test_other_thresholds_examine_the_evidence_again(home: Path, tmp_path: Path) -> None:
    """And come to the same, where nothing hangs on them; narrowed to a node, newest only."""
    folder = tmp_path / "patient"
    touchstone(home, "new", folder, "--from", "active")
    approve(folder, ENGINE_VERSION, OLD, missed_limit=9)
    report = trial(home, folder, "--node", node_id(3), "--node", node_id(4), "--newest")
    assert (report["appraisals"], report["examined"], report["changes"]) == (2, 2, [])


def test_a_policy_that_always_fails_is_given_up(home: Path, tmp_path: Path) -> None:
    """Said to have failed, not a second for each of ten thousand."""
    folder = tmp_path / "broken"
    touchstone(home, "new", folder, "--from", "active")
    for path in folder.glob("*.rego"):
        path.unlink()
    (folder / "outcome.rego").write_text(
        "package touchstone\n\noutcome := 1 / 0 if count(input.checked) > 0\n"
    )
    report = trial(home, folder, fails=True)
    assert (report["gave_up"], report["failures"] >= 100, report["appraisals"] < COUNT) == (True, True, True)
    assert (report["better"], report["worse"] > 0) == (0, True)
    assert report["failed_sample"]["why"].endswith("divide by zero")
    shown = touchstone(home, "trial", folder, "--since", "9999d", fails=True)
    assert "FAIL  The policy gave no valid outcome for " in shown
    assert {tuple(change["to"]["vector"].values()) for change in report["changes"]} == {(-1, -1)}
