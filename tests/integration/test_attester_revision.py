"""`touchstone attester revision` and `check`: which revision a folder is, asked of a real verifier, without claiming it."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attester.commands import attester as commands
from tests.conftest import FakeClock
from tests.integration.test_running_attester import RealClock, enrol


@pytest.fixture
def clock() -> FakeClock:
    """The commands read the real one."""
    return RealClock(ms=time.time_ns() // 1_000_000)


@pytest.fixture
async def home(verifier: Any, tmp_path: Path) -> Any:
    async with AsyncExitStack() as stack:
        yield (await enrol(stack, verifier, tmp_path)).home.path


async def run(*arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(CliRunner().invoke, commands, arguments)
    return done.exit_code, done.output


async def test_the_configured_folder_is_what_is_in_force(verifier: Any, home: Path) -> None:
    """It is told, and nothing is claimed."""
    code, said = await run("revision", "--home", str(home))
    assert (code, said.strip().endswith("…, in force")) == (0, True)
    assert await verifier.rows("SELECT * FROM node_revisions") == []


async def test_a_folder_that_is_none_is_told_with_the_files_that_differ(
    verifier: Any, home: Path, tmp_path: Path
) -> None:
    """Before an engine is started on it."""
    other = tmp_path / "other"
    shutil.copytree(verifier.model_folder, other)
    name = next(path.name for path in sorted(other.iterdir()) if path.suffix == ".json")
    (other / name).write_text('{"other": 1}')
    code, said = await run("revision", str(other), "--home", str(home))
    assert code == 1
    assert f"(in force) 1 files are missing or differ: {name}" in said
    assert "does not claim this folder" in said
    assert await verifier.rows("SELECT * FROM node_revisions") == []


async def test_check_says_which_revision_the_folder_is(home: Path) -> None:
    """Beside the practice challenge of that revision."""
    _, said = await run("check", "--home", str(home))
    (line,) = [line for line in said.splitlines() if "revision of" in line]
    assert line.startswith("ok ")
    assert line.endswith("…, in force")


async def test_a_model_that_the_node_does_not_have_is_refused(home: Path) -> None:
    """By the configuration, before anybody is asked."""
    code, said = await run("revision", "--model", "no/such", "--home", str(home))
    assert code == 1
    assert "there is no model no/such" in said
