"""
Attack 38 of the catalogue (reference/routers.md §C.2): somebody else's package, or a package of that name.

LiteLLM 1.82.7 and 1.82.8 on PyPI stole credentials by a `.pth` file at each start of Python.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / ".ci" / "locks").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def unpinned(lock: str) -> list[str]:
    """The requirements of a lock that another file could satisfy: without an exact version, or without a digest."""
    requirements = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", lock).strip())
    exact = r"[A-Za-z0-9][\w.\-]*(\[[\w,.\-]+\])?==[\w.+!]+( ; [^\n]+?)? \\\n(\s+--hash=sha256:[0-9a-f]{64}( \\)?\n?)+\Z"
    return [each.partition("\n")[0] for each in requirements if not re.match(exact, each)]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_attack_38_another_file_under_a_known_name(lock: Path) -> None:
    """Every package has one version, and its files are known by their SHA-256."""
    assert unpinned(lock.read_text()) == [], "attack 38 succeeds: a package is taken by its name"


@pytest.mark.parametrize(
    "line", ["litellm>=1.80", "litellm==1.82.7", "litellm==1.82.* \\\n    --hash=sha256:" + "0" * 64]
)
def test_attack_38_is_seen(line: str) -> None:
    """A lock with such a line would be found."""
    assert unpinned(LOCKS[0].read_text() + line + "\n") != []


def test_attack_38_an_installation_without_digests() -> None:
    """Nothing is installed by us from an index unless its digest is asked for; our own wheel brings nothing along."""
    for file in ("Makefile", ".ci/run"):
        for line in (ROOT / file).read_text().splitlines():
            if re.search(r"\bpip\b.*\binstall\b", line) and not line.lstrip().startswith(("#", "grep")):
                assert "--require-hashes" in line or "--no-deps" in line, f"{file}: {line}"


def test_attack_38_a_dependency_that_nobody_argued_for() -> None:
    """Each package of the running services has its row in docs/dependencies.md."""
    page = (ROOT / "docs" / "dependencies.md").read_text()
    extras = PROJECT["project"]["optional-dependencies"]
    names = ("verifier", "router", "postgres", "tokens", "torch", "gpu", "sigstore")
    asked = [*PROJECT["project"]["dependencies"], *(line for name in names for line in extras[name])]
    needed = {re.split(r"[^A-Za-z0-9_.\-]", line)[0] for line in asked}
    argued = {row.split(" ")[0] for row in re.findall(r"^\| `?([^`|]+?)`? \|", page, re.MULTILINE)}
    assert needed - argued == set()


def test_attack_38_code_at_the_start_of_python() -> None:
    """The wheel takes folders and one file, and none of them has a `.pth`."""
    taken = [ROOT / name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]]
    assert [path for folder in taken for path in folder.rglob("*.pth")] == []


def test_attack_38_no_private_key_in_the_router() -> None:
    """
    The process that clients and nodes reach loads no key that signs results: a theft there forges none.

    Of the two keys that it has, one opens nodes to it and signs that the key is its own.  The other signs receipts, and
    statements by a command.  What relying parties sign, they sign with keys of their own.
    """
    names = ("identity", "receipt_key", "receipting", "receipts", "settling")
    own = {ROOT / "router" / "state" / f"{name}.py" for name in names}
    own |= {ROOT / "router" / "service" / "setup.py"}
    own |= {path for room in ("receipts", "settlement") for path in (ROOT / "router" / room).glob("*.py")}
    for path in sorted(set((ROOT / "router").rglob("*.py")) - own):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                taken = {f"{node.module}.{alias.name}" for alias in node.names}
                assert not taken & {
                    "attester.identity",
                    "attester.cose.PrivateKey",
                    "verifier.config.Home",
                }, path
