"""The lists in CONTRIBUTING.md of what a change touches are complete: no other file of the product knows what they add."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = [
    path for role in ("attester", "verifier", "router") for path in sorted((ROOT / role).rglob("*.py"))
]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def listed(heading: str, name: str) -> set[str]:
    """The files of the numbered list under a heading, with *name* put in."""
    section = PAGE.partition(f"### … {heading}\n")[2].partition("\n##")[0]
    files = re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)
    assert files, heading
    return {file.replace("NAME", name) for file in files}


def texts(path: Path) -> Iterator[str]:
    """The string constants of a module, docstrings left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def knowing(is_about: Callable[[str], bool]) -> set[str]:
    """The files of the product that have such a string constant."""
    return {str(path.relative_to(ROOT)) for path in PRODUCT if any(map(is_about, texts(path)))}


def is_of_the_gpu_kind(text: str) -> bool:
    return text == "gpu" or text.startswith(("gpu/", "gpu."))


def is_of_llama(text: str) -> bool:
    return text == "llama.cpp"


def is_of_embeddings(text: str) -> bool:
    return text in ("embeddings", "/v1/embeddings")


@pytest.mark.parametrize(
    ("heading", "name", "is_about"),
    [
        ("an evidence kind", "gpu", is_of_the_gpu_kind),
        ("an inference engine", "llamacpp", is_of_llama),
        ("an endpoint of the gateway", "embeddings", is_of_embeddings),
    ],
    ids=["kind", "engine", "endpoint"],
)
def test_no_other_file_knows_it(heading: str, name: str, is_about: Callable[[str], bool]) -> None:
    """Take one that is there: whatever names it is in the list."""
    assert knowing(is_about) <= listed(heading, name)


@pytest.mark.parametrize("heading", ["an evidence kind", "an inference engine", "an endpoint of the gateway"])
def test_every_listed_file_exists(heading: str) -> None:
    """For the one that is there."""
    name = {"an evidence kind": "gpu", "an inference engine": "llamacpp"}.get(heading, "")
    assert [file for file in listed(heading, name) if not (ROOT / file).is_file()] == []
