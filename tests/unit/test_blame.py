"""The page of blame is the tables of the code, and only what is a node's is an incident of a node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.choose.gates import CODES
from router.model.load import BREAKING
from router.model.outcomes import FAILURES, OUTCOMES
from verifier import incidents
from verifier.blame import WHOSE, Whose, whose
from verifier.reasons import REASONS, Reason
from verifier.schemes.findings import Finding

TEXT = (Path(__file__).parents[2] / "docs" / "blame.md").read_text()


def rows(heading: str) -> list[str]:
    """The rows of the first table after a line."""
    table = TEXT.partition(heading + "\n")[2].partition("|---|")[2].partition("\n\n")[0]
    return table.split("\n")[1:]


def test_the_page_has_every_outcome() -> None:
    """With its blame, and whether a breaker counts it."""
    assert rows("## At the router") == [
        f"| {outcome} | {blame} | {meaning} | {'counts' if outcome in BREAKING else '–'} |"
        for outcome, (blame, meaning) in OUTCOMES.items()
    ]


def test_the_page_has_every_failure() -> None:
    """With its outcome and what a probe shows by it."""
    assert rows("A probe that fails shows silence only if it came as far as the node's address.") == [
        f"| {failure} | {outcome} | {outcome.blame} | {meaning} | {'silence' if failure.is_silence else 'nothing'} |"
        for failure, (outcome, meaning) in FAILURES.items()
    ]


@pytest.mark.parametrize("party", list(Whose))
def test_the_page_has_every_reason_code_under_whose_it_is(party: Whose) -> None:
    """And no code twice."""
    assert [row.rstrip() for row in rows(f"### {party.capitalize()}")] == [
        f"| `{reason.code}` | {reason.incident or ''} |"
        for reason in REASONS.values()
        if whose(reason.code) is party
    ]


@pytest.mark.parametrize(
    "code", re.findall(r"`((?:address|incident)\.[a-z-]+)`", TEXT.partition("## At the verifier")[0])
)
def test_the_gates_that_the_page_names_are_there(code: str) -> None:
    """They are the router's own affair."""
    assert code in CODES


@pytest.mark.parametrize("beginning", WHOSE)
def test_no_row_is_for_nothing(beginning: str) -> None:
    """Each begins some code, or is one."""
    assert any(code == beginning or code.startswith(f"{beginning}.") for code in REASONS)


@pytest.mark.parametrize(
    "reason", [r for r in REASONS.values() if r.incident], ids=lambda reason: reason.code
)
def test_what_makes_an_incident_is_the_nodes(reason: Reason) -> None:
    """What the verifier has to mend never does."""
    assert whose(reason.code) is Whose.NODE


@pytest.mark.parametrize("party", [each for each in Whose if each is not Whose.NODE])
def test_a_finding_that_is_not_the_nodes_makes_no_incident(
    party: Whose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its row in the table of reasons says so by mistake: blame comes first."""
    finding = Finding("weights.manifest.mismatch", "a file differs")
    assert incidents.drafts((finding,))
    monkeypatch.setitem(WHOSE, "weights.manifest.mismatch", party)
    assert incidents.drafts((finding,)) == []
