"""The guide for policy authors is what happens: each command is run, and prints what the page shows."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from verifier.config import Home
from verifier.service.app import activate_home_policy
from verifier.store.opening import open_database

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-policies.md").read_text()


def steps(number: int = 0) -> list[tuple[str, list[str]]]:
    """The commands of the page, each with the lines that follow it."""
    block = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)[number]
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], plain(part.partition("\n")[2])) for part in parts]


def plain(text: str) -> list[str]:
    """What does not differ from run to run or with the contract: without digests, times, counts of inputs and blanks."""
    text = re.sub(r"Asked \d+ inputs", "Asked SOME inputs", text)
    text = re.sub(r"(?<=sha-256;)[0-9a-f]{12,64}|\b[0-9a-f]{12}\b", "DIGEST", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def run(command: str, folder: Path, status: int = 0) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "TOUCHSTONE_VERIFIER_HOME": "practice",
        "LOGNAME": "kim",
    }
    done = subprocess.run(
        command, check=False, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, f"{command}: {done.stderr}"
    return plain(done.stdout)


def test_every_command_of_the_guide_prints_what_it_shows(tmp_path: Path) -> None:
    """From an empty folder to an active policy that blocks one engine version, in ten commands."""
    run("python -m fixtures.practice practice", tmp_path)
    found = steps()
    assert len(found) == 10
    for command, shown in found:
        assert (command, run(command, tmp_path)) == (command, shown)
    (mistake, _), (lint, shown) = steps(1)
    run(mistake, tmp_path)
    assert run(lint, tmp_path, status=1) == shown
    active = run("touchstone policy trial active --newest", tmp_path)
    assert active[-1].endswith("2 worse, 0 better, 0 otherwise.")


def test_a_folder_that_was_changed_is_told_as_it_is_shown(tmp_path: Path) -> None:
    """After a first start."""
    run("touchstone verifier init --home verifier", tmp_path)
    home = Home(tmp_path / "verifier")

    async def start() -> None:
        async with open_database("", home.database) as db:
            await activate_home_policy(db, home, home.config(), 1)

    asyncio.run(start())
    data = home.path / "policy" / "data.json"
    data.write_text(data.read_text().replace('"fp8"', '"fp4"'))
    ((command, shown),) = steps(2)
    assert run(command, tmp_path) == shown


def test_the_template_for_git_names_commands_that_exist(tmp_path: Path) -> None:
    """Each touchstone command of the workflow runs on a new policy."""
    workflow = yaml.safe_load((ROOT / "docs" / "policies-in-git" / "workflow.yml").read_text())
    lines = "\n".join(step.get("run", "") for step in workflow["jobs"]["policy"]["steps"])
    commands = re.findall(r"touchstone policy (?!diff).*", lines)
    assert len(commands) == 3
    run("touchstone policy new policy", tmp_path)
    run("openssl genpkey -algorithm ed25519 -out author.pem && chmod 600 author.pem", tmp_path)
    for command in commands:
        run(command, tmp_path)
    assert {"report.xml", "policy.zip"} <= {path.name for path in tmp_path.iterdir()}
