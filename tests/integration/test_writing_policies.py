"""The guide for policy authors is what happens: each command is run, and prints what the page shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from fixtures import policy_guide as guide

ROOT = guide.ROOT
FAILS = {
    ("Tests", "touchstone policy test acme --run versions"),
    ("Layout", "touchstone policy fmt acme --check"),
    ("What every policy is asked", "touchstone policy lint acme"),
}
"""Commands that the page shows failing, to show what they say."""


def shown(heading: str) -> list[str]:
    return [step.command for step in guide.steps(heading) if step.command]


@pytest.fixture(scope="session")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home that the page practises with; each test has a copy."""
    folder = tmp_path_factory.mktemp("guide")
    guide.practise(folder)
    return folder


@pytest.fixture
def folder(practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to follow the page in."""
    shutil.copytree(practice, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value in guide.VARIABLES.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize("heading", guide.BEFORE)
def test_every_command_of_the_guide_prints_what_it_shows(heading: str, folder: Path) -> None:
    """From an empty folder to a policy that blocks one version, its tests, and taking it back again."""
    for command in guide.BEFORE[heading]:
        assert guide.run_here(command, folder)[0] == 0
    for step in guide.steps(heading):
        code, printed = guide.do(step, folder, guide.run_here)
        if not step.command:
            continue
        assert (step.command, guide.plain(printed)) == (step.command, guide.plain(step.text))
        assert (step.command, code) == (step.command, int((heading, step.command) in FAILS))
    if heading == "Ten commands":
        _, active = guide.run("touchstone policy trial active --newest", folder)
        assert "2 worse, 0 better, 0 otherwise." in active


def test_ten_commands_are_enough() -> None:
    """As the page says."""
    assert len(shown("Ten commands")) == 10
    assert {(heading, command) for heading in guide.BEFORE for command in shown(heading)} >= FAILS


def test_every_command_of_the_page_is_run() -> None:
    """No section has a console that nobody runs, and each command that an author needs is there."""
    page = guide.PAGE.read_text()
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    with_console = [
        h for h in headings if "```console" in page.partition(f"\n## {h}\n")[2].partition("\n## ")[0]
    ]
    assert with_console == list(guide.BEFORE)
    named = {
        command.split()[2]
        for heading in guide.BEFORE
        for command in shown(heading)
        if command.startswith("touchstone policy ")
    }
    assert named >= {
        "new", "lint", "test", "fmt", "diff", "trial", "publish", "shadow", "canary", "promote", "rollback", "block",
        "history", "list",
    }  # fmt: skip


def test_the_template_for_git_names_commands_that_exist(folder: Path) -> None:
    """Each touchstone command of the workflow runs on two new policies that share a library."""
    workflow = yaml.safe_load((ROOT / "docs" / "policies-in-git" / "workflow.yml").read_text())
    lines = "\n".join(step.get("run", "") for step in workflow["jobs"]["policy"]["steps"])
    commands = re.findall(r"touchstone policy (?!diff).*", lines)
    assert len(commands) == 4
    setup = [
        "touchstone policy new policies/eu",
        "touchstone policy new policies/us",
        "mkdir policies/lib && echo 'package lib.names' > policies/lib/names.rego",
        'sed -i \'s|"author"|"include": ["../lib"], "author"|\' policies/*/bundle.json',
        "openssl genpkey -algorithm ed25519 -out author.pem && chmod 600 author.pem",
    ]
    for command in (*setup, *commands):
        runner = guide.run if "$(" in command else guide.run_here
        code, printed = runner(command.replace("$policy", "policies/eu"), folder)
        assert (command, code) == (command, 0), printed
    assert {"report.xml", "eu.zip"} <= {path.name for path in folder.iterdir()}
