"""What comes with the code: package metadata, licence, pages and their form."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from attester import version
from verifier import results

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GENERATED = {"docs/policy-input.md"}
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the licence's text as apache.org publishes it."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page, without fenced and indented code."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = [
        re.sub(r"[`*]|\]\([^)]*\)", "", line.lstrip("# ")) for _, line in prose(page) if line.startswith("#")
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_distribution_has_one_name() -> None:
    """In the metadata, in what asks for the version, and in the command."""
    assert PROJECT["project"]["name"] == version.DISTRIBUTION == "touchstone-attestation"
    assert f'package_name="{version.DISTRIBUTION}"' in (ROOT / "touchstone.py").read_text()
    assert list(PROJECT["project"]["scripts"]) == ["touchstone"]


def test_the_version_stands_once() -> None:
    """In pyproject.toml; the code reads it from the installed package."""
    assert version.installed_version() == PROJECT["project"]["version"]
    assert f"touchstone {PROJECT['project']['version']}" == results.BUILD
    sources = [path for role in ("attester", "verifier", "router") for path in (ROOT / role).rglob("*.py")]
    assert [name(p) for p in sources if f'"{PROJECT["project"]["version"]}"' in p.read_text()] == []


def test_nobody_is_told_to_install_another_package() -> None:
    """The bare name belongs to somebody else where packages are published."""
    texts = [*PAGES, ROOT / "docs/policies-in-git/workflow.yml", ROOT / ".ci/run"]
    texts += [path for role in ("attester", "verifier", "router") for path in (ROOT / role).rglob("*.py")]
    wrong = re.compile(r"pip install[^\n`]*\btouchstone(?!-attestation)\b[\[' ]")
    assert [name(path) for path in texts if wrong.search(path.read_text())] == []


def test_the_licence_is_there_unchanged() -> None:
    """Its text as published, named in the metadata, so that the wheel carries it."""
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE"]


@pytest.mark.parametrize("role", ["attester", "verifier", "router"])
def test_type_checkers_may_read_our_types(role: str) -> None:
    """PEP 561, in the folder that the wheel takes whole."""
    assert (ROOT / role / "py.typed").is_file()
    assert role in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]


@pytest.mark.parametrize("file", ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"])
def test_a_project_has_these_files(file: str) -> None:
    """Where people and tools look for them."""
    assert (ROOT / file).is_file()


def test_the_changelog_has_a_place_for_what_comes() -> None:
    """And the version that is developed was begun or released."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert PROJECT["project"]["version"] in headings


def test_the_readme_fits_two_screens() -> None:
    """Everything else is a page of its own."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_pages_end_in_time(page: Path) -> None:
    """By column 120, except for tables, code and links that are longer."""
    if name(page) in GENERATED:
        pytest.skip("written by the code")
    long = [number for number, line in prose(page) if len(line) > 120 and not re.match(r"\||.*\]\(", line)]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_a_heading_that_is_there(page: Path) -> None:
    """File and anchor of every relative link."""
    missing = []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", "\n".join(line for _, line in prose(page))):
        file, _, anchor = link.partition("#")
        target = page if not file else (page.parent / file)
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name[:4])
def test_a_decision_has_date_and_status(page: Path) -> None:
    """As in the template, and the index says the same."""
    head = page.read_text().splitlines()[:4]
    title = re.fullmatch(r"# (\d{4}) (.+)", head[0])
    date = re.fullmatch(r"- Date: (\d{4}-\d\d-\d\d)", head[2])
    status = re.fullmatch(r"- Status: ((?:proposed|accepted|superseded by \[\d{4}\]).*)", head[3])
    assert title is not None
    assert title[1] == page.name[:4]
    assert date is not None
    assert status is not None
    row = f"| [{title[1]}]({page.name}) | {title[2]} | {date[1]} | {status[1]} |"
    assert row in (ROOT / "docs" / "adr" / "README.md").read_text().splitlines()


def test_a_decision_and_the_one_that_replaced_it_name_each_other() -> None:
    """Whoever reads the old one learns of the new one."""
    texts = {page.name[:4]: page.read_text() for page in DECISIONS}
    for number, text in texts.items():
        for other in re.findall(r"superseded by \[(\d{4})\]", text):
            assert f"supersedes [{number}]" in texts[other]


def test_the_glossary_is_in_order() -> None:
    """Each term once."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = [term.casefold() for term in re.findall(r"^- \*\*(.+?)\*\*:", text, re.MULTILINE)]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_the_map_names_what_is_there(page: str) -> None:
    """Every file and folder, by its path or by the end of it."""
    text = (ROOT / "docs" / page).read_text()
    folders = ("attester", "verifier", "router", "policies", "fixtures", "tests", "bench")
    found = [ROOT / "touchstone.py", *(ROOT / folder for folder in folders)]
    found += [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths = [f"/{name(path)}" + "/" * path.is_dir() for path in found]
    named = re.findall(r"`((?:[\w-]+/)*(?:[\w-]+\.(?:py|json)|[\w-]+/))`", text)
    assert [end for end in named if not any(path.endswith(f"/{end}") for path in paths)] == []


def test_every_benchmark_is_on_the_page() -> None:
    """`make bench` runs those, and no other, whose rows are on the page."""
    run = re.findall(r"-m bench\.(\w+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    rows = re.findall(r"`bench/(\w+)\.py` \|", (ROOT / "docs" / "benchmarks.md").read_text())
    assert sorted(run) == sorted(set(rows))
