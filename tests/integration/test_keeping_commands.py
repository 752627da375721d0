"""The commands that keep challenges from running out, as processes and in this one: `keep`, `mint --days`, `status`."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from attester.authorities import client_context
from attester.cose import PrivateKey
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from fixtures.credentials import administrator
from fixtures.demo import CONFIG
from fixtures.fleet import free_port, get_json, wait_for
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from touchstone import main
from verifier.challenges.demand import AlikeNodes, Rate, demand_of
from verifier.commands.status import _ask
from verifier.config import Home, VerifierConfig
from verifier.references import measured
from verifier.store import nodes, references
from verifier.store.nodes import Grant
from verifier.store.policies import ChangeAuthor
from verifier.store.sqlite import SqliteDatabase

ROOT = Path(__file__).parents[2]
WHO = ChangeAuthor("test", "measured")


def make_home(path: Path, folder: Path) -> Home:
    """A verifier of real processes with one enrolled node, a reference value and nothing minted."""
    listen = f"127.0.0.1:{free_port()}"
    given = {
        "service": {"listen": listen, "url": f"http://{listen}"},
        "calls": CONFIG["calls"],
        "policy": {"workers": 1},
    }
    home = Home(path)
    home.create(msgspec.convert(given, VerifierConfig))
    document = measured.measure_folder(MODEL, open_folder(folder))

    async def begin() -> None:
        async with SqliteDatabase(home.database) as db, transaction(db) as tx:
            await references.add(tx, document, references.Provenance(), WHO, 1, replace=True)
            await nodes.enrol(tx, Grant("acme", (MODEL,)), (MODEL,), PrivateKey.generate().public, 1)

    asyncio.run(begin())
    return home


def stored(home: Home) -> Counter[str]:
    with sqlite3.connect(home.database) as db:
        return Counter(kind for (kind,) in db.execute("SELECT kind FROM pool"))


QUICK = """
import sys
from attester.weights.select import kernel
from verifier.commands import challenges as commands
commands.kernel = lambda **_: kernel("numpy")
commands.best_device = lambda: "cpu"
from touchstone import main
main(sys.argv[1:])
"""
"""The command, with the kernel that needs no time to prove itself."""


def start_keeper(home: Home, folder: Path) -> subprocess.Popen[bytes]:
    command = ("challenges", "keep", "--model", MODEL, "--dir", str(folder), "--hours", "1", "--with-stdin")
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *command, "--home", str(home.path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def test_a_killed_keeper_loses_one_group_at_most(tmp_path: Path, model_folder: Path) -> None:
    """What it had stored is there whole; the next one goes on, and SIGTERM ends it with status 0."""
    home = make_home(tmp_path / "v", model_folder)
    process = start_keeper(home, model_folder)
    try:
        wait_for("a group", lambda: stored(home), 90)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        end(process)
    left = stored(home)
    assert all(count % 64 == 0 for count in left.values())
    process = start_keeper(home, model_folder)
    try:
        wait_for("more groups", lambda: stored(home).total() > left.total(), 90)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    finally:
        end(process)


def test_a_keeper_ends_with_the_process_that_started_it(tmp_path: Path, model_folder: Path) -> None:
    """The pipe closes when that process is gone, however it ended."""
    home = make_home(tmp_path / "v", model_folder)
    process = start_keeper(home, model_folder)
    try:
        wait_for("a group", lambda: stored(home), 90)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(90) == 0
    finally:
        end(process)


def test_a_serving_verifier_keeps_its_pool(tmp_path: Path, model_folder: Path) -> None:
    """In a process of low priority, which is started again if it dies, and is gone when the verifier is killed."""
    home = make_home(tmp_path / "v", model_folder)
    serve = ("verifier", "serve", "--home", str(home.path))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "touchstone",
            *serve,
            "--keep",
            f"{MODEL}={model_folder}",
            "--keep-hours",
            "1",
        ],
        cwd=ROOT,
    )
    try:
        first = wait_for("the keeper", lambda: children(process.pid), 90)[0]
        wait_for("its priority", lambda: os.getpriority(os.PRIO_PROCESS, first) == 10, 90)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        os.kill(first, signal.SIGKILL)
        second = wait_for("another", lambda: [pid for pid in children(process.pid) if pid != first], 90)[0]
        wait_for("challenges", lambda: stored(home), 90)
        url, key = f"{home.config().service.url}/api/v1/challenges", administrator(home)
        assert wait_for("hours", lambda: get_json(url, headers=key)["pools"][0]["hours"], 90) > 0
        process.kill()
        process.wait()
        wait_for("the end of the keeper", lambda: not Path(f"/proc/{second}").exists(), 90)
    finally:
        end(process)


def children(pid: int) -> list[int]:
    """The keepers that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found if b"keep" in Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.commands.challenges.best_device", lambda: "cpu")
    monkeypatch.setattr("verifier.commands.challenges.kernel", lambda **_: kernel("numpy"))


@pytest.mark.usefixtures("quick_kernel")
def test_mint_counts_by_days_and_nodes(tmp_path: Path, model_folder: Path) -> None:
    """What so many nodes use in so many days; and it says how long that lasts the nodes that are enrolled."""
    home = make_home(tmp_path / "v", model_folder)
    mint = ("challenges", "mint", "--model", MODEL, "--dir", str(model_folder), "--home", str(home.path))
    done = command(*mint, "--days", "0.01", "--nodes", "2")
    assert done.exit_code == 0, done.output
    demand = demand_of(home.config().calls, [AlikeNodes("", (MODEL,), "cpu", 2)], ())[MODEL]
    expected = {kind: demand.rate(kind).within(0.24) for kind in ("read", "walk")}
    assert dict(stored(home)) == expected
    alone = demand_of(home.config().calls, [AlikeNodes("acme", (MODEL,), "cpu", 1)], ())[MODEL]
    hours = {kind: alone.rate(kind).hours_of(count) for kind, count in expected.items()}
    sentence = f"there are reads for {hours['read']:.1f} hours, walks for {hours['walk']:.1f} hours."
    assert sentence in done.output


@pytest.mark.usefixtures("quick_kernel")
def test_mint_counts_for_the_enrolled_nodes(tmp_path: Path, model_folder: Path) -> None:
    """If it is not said for how many."""
    home = make_home(tmp_path / "v", model_folder)
    mint = ("challenges", "mint", "--model", MODEL, "--dir", str(model_folder), "--home", str(home.path))
    done = command(*mint, "--days", "0.01")
    assert done.exit_code == 0, done.output
    assert stored(home)["read"] == hour_of(home, "read").within(0.24)


def hour_of(home: Home, kind: str) -> Rate:
    return demand_of(home.config().calls, [AlikeNodes("acme", (MODEL,), "cpu", 1)], ())[MODEL].rate(kind)


@pytest.mark.parametrize(
    "arguments",
    [("--days", "1", "--reads", "1"), ("--days", "1", "--resume"), ("--reads", "1", "--nodes", "2")],
)
def test_days_stand_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What is meant is asked, not guessed."""
    mint = ("challenges", "mint", "--model", MODEL, "--dir", str(tmp_path), "--home", str(tmp_path))
    assert command(*mint, *arguments).exit_code == 2


@pytest.mark.parametrize("text", ["", "m", "m=", "=d"])
def test_what_is_kept_must_name_model_and_folder(tmp_path: Path, text: str) -> None:
    """Before anything is started."""
    done = command("verifier", "serve", "--home", str(tmp_path), "--keep", text)
    assert (done.exit_code, "must be MODEL=DIR" in done.output) == (2, True)


def test_each_model_needs_a_folder(tmp_path: Path) -> None:
    """In the same order."""
    done = command("challenges", "keep", "--model", "a", "--model", "b", "--dir", str(tmp_path))
    assert (done.exit_code, "one --dir for each --model" in done.output) == (2, True)


def test_status_shows_hours_nodes_and_clock(tmp_path: Path, model_folder: Path) -> None:
    """Also where nothing serves."""
    home = make_home(tmp_path / "v", model_folder)
    done = command("verifier", "status", "--home", str(home.path), "--json")
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(done.output)
    assert found["service"]["state"] == "NOT-REACHED"
    assert found["nodes"] == {"total": 1, "live": 0, "quarantined": 0}
    empty = {"model": MODEL, "free": 0, "in_force": 0, "hours": 0.0}
    assert found["pools"] == [{"kind": kind, **empty} for kind in ("read", "walk")]
    assert (found["clock"], found["leases"]) == ({"database_ahead_s": 0.0, "service_ahead_s": None}, [])
    shown = command("verifier", "status", "--home", str(home.path))
    assert (shown.exit_code, "1 enrolled" in shown.output, "hours left" in shown.output) == (0, True, True)


async def test_status_of_a_serving_verifier(verifier) -> None:
    """Its state and its clock, as it says them itself."""
    found = await _ask(verifier.url, client_context(None))
    assert found["state"] == "READY"
    assert found["ahead_s"] == verifier.clock.seconds - int(time.time())
