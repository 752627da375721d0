"""The pages say what the code does: tables are held against their sources."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from attester.evidence import MEDIA_TYPE, PROFILE
from attester.kinds import claims_by_place
from router.choose.gates import CODES
from router.model.outcomes import OUTCOMES
from router.model.workload import Requirements
from verifier.policy import contract
from verifier.reasons import REASONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_evidence_profile_lists_every_claim() -> None:
    """Key, name, place and meaning of each, in order."""
    text = (ROOT / "docs" / "evidence-profile.md").read_text()
    rows = [
        f"| {c.key} | `{c.name}` | {place} | {c.meaning} |"
        for place, claims in claims_by_place().items()
        for c in claims
    ]
    assert re.findall(r"^\| -?\d+ \| `.*$", text, re.MULTILINE) == rows
    assert PROFILE in text
    assert MEDIA_TYPE in text


def test_the_reason_codes_page_is_the_table() -> None:
    """Every code with its sentence and hint, and no other."""
    text = (ROOT / "docs" / "reason-codes.md").read_text()
    rows = [f"| `{r.code}` | {r.sentence} | {r.hint} | {r.incident or ''} |" for r in REASONS.values()]
    assert re.findall(r"^\| `.*$", text, re.MULTILINE) == rows


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("policy-input.md", contract.page().encode()),
        ("policy-input.schema.json", contract.to_json(contract.input_schema())),
        ("policy-outcome.schema.json", contract.to_json(contract.outcome_schema())),
    ],
)
def test_the_contract_of_policies_is_generated_from_the_types(name: str, expected: bytes) -> None:
    """Written by `python -m verifier.policy.contract docs`, so that they cannot drift."""
    assert (ROOT / "docs" / name).read_bytes() == expected


def test_the_routing_page_has_the_gates_and_outcomes() -> None:
    """Every code and every outcome with its sentence and blame, in order, and no other."""
    text = (ROOT / "docs" / "routing.md").read_text()
    gates = [f"| `{code}` | {sentence} |" for code, sentence in CODES.items()]
    assert re.findall(r"^\| `[a-z]+\.[a-z-]+` \| .*$", text, re.MULTILINE) == gates
    table = text.partition("| outcome | blame | |\n|---|---|---|\n")[2]
    ends = [f"| {outcome} | {blame} | {meaning} |" for outcome, (blame, meaning) in OUTCOMES.items()]
    assert re.findall(r"^\| [a-z-]+ \| [a-z]+ \| .*$", table, re.MULTILINE) == ends


def test_the_routing_page_names_every_setting_of_a_tier() -> None:
    """Nobody has to read the code to learn what may be asked of nodes."""
    text = (ROOT / "docs" / "routing.md").read_text()
    listed = re.search(r"A tier may have: (.*?)\.$", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert re.findall(r"`([a-z0-9_]+)`", listed[1]) == list(Requirements.__struct_fields__)


@pytest.mark.parametrize("code", REASONS)
def test_codes_have_their_form(code: str) -> None:
    """subject.part.finding or subject.finding, lower case."""
    assert re.fullmatch(r"[a-z]+(\.[a-z-]+){1,2}", code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file of the project."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def tracked() -> list[Path]:
    """All files of this checkout that are in version control; all pages, where there is no repository."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    named = [ROOT / name for name in found.stdout.decode().split("\0") if name]
    return [path for path in named if path.is_file()] or PAGES


def left_by_a_merge(text: bytes) -> list[str]:
    """The lines with which a merge marks what it could not join."""
    return [
        line.decode(errors="replace")
        for line in text.splitlines()
        if line == b"=======" or re.match(rb"(<<<<<<<|\|\|\|\|\|\|\||>>>>>>>)( |$)", line)
    ]


def test_nothing_is_left_of_a_merge() -> None:
    """Neither in the code nor on a page."""
    found = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if (lines := left_by_a_merge(path.read_bytes()))
    }
    assert found == {}


def test_what_a_merge_leaves_is_seen() -> None:
    text = b"a\n<<<<<<< ours\nb\n||||||| base\n=======\nc\n>>>>>>> theirs\n<<<<<<<< a heading\n========\n"
    assert left_by_a_merge(text) == ["<<<<<<< ours", "||||||| base", "=======", ">>>>>>> theirs"]


def named_twice(text: str) -> list[str]:
    """What the first cells of a table name more than once."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [row.split("|")[1].strip() for row in table.splitlines()]
        names = Counter(name for cell in cells for name in set(re.findall(r"`([^`]+)`", cell) or [cell]))
        found += [name for name, count in names.items() if count > 1]
    return found


def test_the_map_names_no_room_twice() -> None:
    """Each table of the architecture says once what is where."""
    assert named_twice((ROOT / "docs" / "architecture.md").read_text()) == []


def test_a_room_that_is_named_twice_is_seen() -> None:
    assert named_twice("| `a.py`, `b/` | x |\n| `b/` | y |\n\n| `a.py` | z |\n") == ["b/"]
