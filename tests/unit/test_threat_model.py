"""The threat model names tests, modules and pages that are there, and leaves out no attack of the catalogue."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
ATTACKS = range(1, 40)
STATES = ("Closed", "In part", "Not closed yet", "Does not apply")
NEEDS_A_TEST = ("Closed", "In part")


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level = title.partition(" ")[0]
    start = PAGE.index(f"\n{title}\n") + len(title) + 2
    end = re.search(rf"^#{{1,{len(level)}}} ", PAGE[start:], re.MULTILINE)
    return PAGE[start:] if end is None else PAGE[start : start + end.start()]


def cells(row: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def named_tests(text: str) -> list[str]:
    """Every test that a text names, as ``path::name``."""
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", text)


@cache
def written_in(file: Path) -> frozenset[str]:
    """The names of the tests of a file, read and not run."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.parse(file.read_text()).body if isinstance(node, functions))


FLOWS = re.findall(r"^### (.+)$", section("## The flows"), re.MULTILINE)
ROWS = [cells(row) for row in re.findall(r"^\| \d+ \|.*$", section("## The 39 attacks"), re.MULTILINE)]


def test_every_attack_of_the_catalogue_has_one_row() -> None:
    """In order, each once."""
    assert [int(row[0]) for row in ROWS] == list(ATTACKS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_attack_has_its_state_and_what_shows_it(row: list[str]) -> None:
    """What is closed is shown by a test, and what is not says why."""
    _, attack, state, why, tests = row
    assert state in STATES
    assert attack
    assert why
    if state in NEEDS_A_TEST:
        assert named_tests(tests)
    else:
        assert tests == "none" or named_tests(tests)


@pytest.mark.parametrize("test", sorted(set(named_tests(PAGE))))
def test_a_named_test_is_there(test: str) -> None:
    """In that file, under that name."""
    file, _, name = test.partition("::")
    assert name.startswith("test_")
    assert name in written_in(ROOT / file)


def test_tests_are_named_in_one_form() -> None:
    """So that none escapes the check above."""
    assert len(re.findall(r"test_\w+\.py::", PAGE)) == len(named_tests(PAGE))
    assert "??" not in PAGE


@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_is_asked_all_six_questions(flow: str) -> None:
    """STRIDE, in this order; each row says what stops the threat and what shows it."""
    rows = [cells(row) for row in re.findall(r"^\| [STRIDE] \|.*$", section(f"### {flow}"), re.MULTILINE)]
    assert "".join(row[0] for row in rows) == "STRIDE"
    for _, threat, stopped_by, shown_by, remains in rows:
        assert threat
        assert stopped_by
        assert named_tests(shown_by) or (shown_by == "none" and "open" in remains)


@pytest.mark.parametrize("test", [test for row in ROWS for test in named_tests(row[4]) if "attack_" in test])
def test_a_test_that_is_named_after_an_attack_stands_at_its_number(test: str) -> None:
    """`test_attack_9_…` belongs to row 9."""
    numbers = {row[0] for row in ROWS if test in named_tests(row[4])}
    assert test.rsplit("attack_", maxsplit=1)[-1].partition("_")[0] in numbers


def test_every_test_that_is_named_after_an_attack_is_on_the_page() -> None:
    """A new test of an attack belongs into its row."""
    written = {
        f"{file.relative_to(ROOT)}::{name}"
        for file in (ROOT / "tests" / "adversary").glob("test_*.py")
        for name in written_in(file)
        if re.match(r"test_attack_\d+_", name)
    }
    assert written - set(named_tests(PAGE)) == {
        "tests/adversary/test_supply_chain.py::test_attack_38_is_seen"
    }


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:attester|verifier|router|tests)/[\w/.]*)`", PAGE)))
)
def test_a_named_module_is_there(path: str) -> None:
    """Files and folders."""
    assert (ROOT / path).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE))))
def test_a_linked_page_is_there(link: str) -> None:
    """Files, and headings of this page or of others."""
    file, _, anchor = link.partition("#")
    page = ROOT / "docs" / (file or "threat-model.md")
    assert page.exists()
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert not anchor or anchor in anchors
