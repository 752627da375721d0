"""The pages say what the code does: tables are held against their sources."""

from __future__ import annotations

import re
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
