"""The commands as a user meets them: sentences, exit status, never a stack trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.simulator import MODEL


def touchstone(*arguments: str | bytes, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "touchstone", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=120,
    )


BAD: dict[str, tuple[str | bytes, ...]] = {
    "no such group": ("nonsense",),
    "no such command": ("verifier", "nonsense"),
    "home missing": ("verifier", "serve", "--home", "/nonexistent/home"),
    "attester not made": ("attester", "run", "--home", "/nonexistent/home"),
    "check without a home": ("attester", "check", "--home", "/nonexistent/home"),
    "model without a folder": ("attester", "init", "--verifier", "http://v", "--model", "x", "--serve", "https://h"),
    "verifier is no URL": ("attester", "init", "--verifier", "v", "--model", "a=b", "--serve", "https://h:1"),
    "serve without https": ("attester", "init", "--verifier", "http://v", "--model", "a=b", "--serve", "http://h:1"),
    "serve with Unicode": ("attester", "init", "--verifier", "http://v", "--model", "a=b", "--serve", "https://exämple.com"),
    "serve with half a bracket": ("attester", "init", "--verifier", "http://v", "--model", "a=b", "--serve", "https://[::1"),
    "model name climbs": ("attester", "init", "--verifier", "http://v", "--model", "../a=b", "--serve", "https://h"),
    "seed not hex": ("attester", "answer", "--model", ".", "--seed", "xyz"),
    "seed too short": ("attester", "answer", "--model", ".", "--seed", "00"),
    "rows not numbers": ("attester", "answer", "--model", ".", "--seed", "00" * 32, "--rows", "a"),
    "answer without weights": ("attester", "answer", "--model", ".", "--seed", "00" * 32, "--rows", "0"),
    "answer for no folder": ("attester", "answer", "--model", "/nonexistent", "--seed", "00" * 32),
    "measure no folder": ("reference", "measure", "/nonexistent", "--model", "m"),
    "measure a bad name": ("reference", "measure", ".", "--model", "a b"),
    "mint nothing": ("challenges", "mint", "--model", "m", "--dir", "."),
    "mint without a home": ("challenges", "mint", "--model", "m", "--dir", ".", "--reads", "1", "--home", "/nonexistent"),
    "listen without a port": ("verifier", "init", "--home", "x", "--listen", "here"),
    "listen on port 99999": ("verifier", "init", "--home", "x", "--listen", "127.0.0.1:99999"),
    "url of another scheme": ("verifier", "init", "--home", "x", "--url", "ftp://x"),
    "router config missing": ("router", "serve", "--config", "/nonexistent.toml"),
    "router is not there": ("router", "explain", "x", "--url", "http://127.0.0.1:1"),
    "operator is no text": ("verifier", "token", "--operator", b"\xff", "--model", "m", "--home", "/nonexistent"),
}  # fmt: skip


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_arguments_are_told_in_a_sentence(tmp_path: Path, arguments: tuple[str | bytes, ...]) -> None:
    """Exit status 1 or 2, a line that says what is wrong, nothing left behind."""
    done = touchstone(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_role() -> None:
    """The door opens groups lazily: a node without the other floors can use it."""
    code = (
        "import sys, touchstone\n"
        "try:\n    touchstone.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('attester', 'verifier', 'router')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_attester_needs_none_of_the_others_dependencies(tmp_path: Path) -> None:
    """Its commands import neither the other floors nor what only they need."""
    code = (
        "import sys, attester.commands, attester.agent, attester.collector, attester.client, attester.engines\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'verifier', 'router', 'aiosqlite', 'jwt', 'regorus', 'prometheus_client', 'torch', 'safetensors'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_answer_prints_what_anyone_can_check(model_folder: Path) -> None:
    """The manifest, the read and the rows asked for, the same on both backends."""
    arguments = ("attester", "answer", "--model", str(model_folder), "--seed", "ab" * 32)
    shown = {}
    for backend in ("numpy", "torch"):
        done = touchstone(
            *arguments, "--windows", "7", "--rows", "0,5", "--passes", "2", "--backend", backend, "--json"
        )
        if backend == "torch" and "torch is not installed" in done.stderr:
            pytest.skip("torch is not installed")
        assert done.returncode == 0, done.stderr
        shown[backend] = json.loads(done.stdout)
    assert shown["numpy"] == shown["torch"]
    assert set(shown["numpy"]["walk"]) == {"0", "5"}
    assert len(bytes.fromhex(shown["numpy"]["read"])) == 32
    assert len(shown["numpy"]["manifest"]["files"]) == 3


def test_a_verifier_from_nothing(tmp_path: Path, model_folder: Path) -> None:
    """init, measure, mint, token, nodes, incidents: the security team's first five minutes."""
    home = str(tmp_path / "v")
    assert touchstone("verifier", "init", "--home", home).returncode == 0
    assert oct((tmp_path / "v").stat().st_mode)[-3:] == "700"
    again = touchstone("verifier", "init", "--home", home)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    done = touchstone("reference", "measure", str(model_folder), "--model", MODEL, "--home", home, "--json")
    assert json.loads(done.stdout)["model"] == MODEL
    mint = ("challenges", "mint", "--model", MODEL, "--dir", str(model_folder), "--home", home)
    done = touchstone(*mint, "--reads", "3", "--walks", "2", "--rows", "8")
    assert "Minted 3 reads and 2 walks" in done.stdout
    token = touchstone("verifier", "token", "--operator", "acme", "--model", MODEL, "--home", home)
    assert len(token.stdout.strip()) == 32
    done = touchstone(
        "verifier",
        "token",
        "--operator",
        "acme",
        "--model",
        MODEL,
        "--home",
        home,
        "--hardware-class",
        "abacus",
    )
    assert (done.returncode, "abacus" in done.stderr) == (1, True)
    assert json.loads(touchstone("verifier", "nodes", "list", "--home", home, "--json").stdout) == []
    assert json.loads(touchstone("verifier", "incidents", "list", "--home", home, "--json").stdout) == []


def test_minting_from_other_weights_is_refused(tmp_path: Path, model_folder: Path) -> None:
    """A pool is minted from the reference value, or not at all."""
    import shutil

    home, other = str(tmp_path / "v"), tmp_path / "other"
    touchstone("verifier", "init", "--home", home)
    touchstone("reference", "measure", str(model_folder), "--model", MODEL, "--home", home)
    shutil.copytree(model_folder, other)
    (other / "config.json").write_text("{}")
    done = touchstone(
        "challenges", "mint", "--model", MODEL, "--dir", str(other), "--home", home, "--reads", "1"
    )
    assert done.returncode == 1
    assert "not the one of the active reference value" in done.stderr


def test_a_corrupt_database_is_told_and_ends(tmp_path: Path) -> None:
    """Neither a trace nor a process that hangs."""
    home = tmp_path / "v"
    touchstone("verifier", "init", "--home", str(home))
    (home / "verifier.db").write_bytes(b"garbage" * 1000)
    done = touchstone("verifier", "nodes", "list", "--home", str(home))
    assert done.returncode == 1
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_key_is_refused(tmp_path: Path) -> None:
    """A world-readable pool key or token may have been copied."""
    home = tmp_path / "v"
    touchstone("verifier", "init", "--home", str(home))
    (home / "pool.key").chmod(0o644)
    done = touchstone("verifier", "serve", "--home", str(home))
    assert done.returncode == 1
    assert "can be read by others" in done.stderr
