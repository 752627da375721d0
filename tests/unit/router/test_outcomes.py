"""Outcomes: classified by where an execution failed, and whose fault that is."""

from __future__ import annotations

import pytest

from router.model.outcomes import Blame, Outcome, of_status

STATUSES = [
    (200, Outcome.COMPLETED),
    (400, Outcome.REFUSED),
    (413, Outcome.REFUSED),
    (415, Outcome.REFUSED),
    (422, Outcome.REFUSED),
    (404, Outcome.UNSUPPORTED),
    (405, Outcome.UNSUPPORTED),
    (429, Outcome.BUSY),
    (503, Outcome.BUSY),
    (500, Outcome.CRASHED),
    (502, Outcome.CRASHED),
    (504, Outcome.CRASHED),
    (301, Outcome.CRASHED),
    (302, Outcome.CRASHED),
    (307, Outcome.CRASHED),
    (401, Outcome.CRASHED),
    (403, Outcome.CRASHED),
    (407, Outcome.CRASHED),
    (201, Outcome.CRASHED),
    (204, Outcome.CRASHED),
    (206, Outcome.CRASHED),
    (418, Outcome.CRASHED),
    (599, Outcome.CRASHED),
]


@pytest.mark.parametrize(("status", "outcome"), STATUSES)
def test_a_status_has_one_outcome(status: int, outcome: Outcome) -> None:
    """Every status maps to one outcome, whatever text comes with it."""
    assert of_status(status) is outcome


@pytest.mark.parametrize("status", [*range(100, 200), *range(201, 600)])
def test_only_200_completes(status: int) -> None:
    """No other status is work that was done."""
    assert of_status(status) is not Outcome.COMPLETED


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_a_blame(outcome: Outcome) -> None:
    """None is left out of the table."""
    assert isinstance(outcome.blame, Blame)


BLAMED = {Outcome.CRASHED, Outcome.STALLED, Outcome.TRUNCATED, Outcome.CORRUPTED}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_node_is_blamed_for_its_own_failures_only(outcome: Outcome) -> None:
    """Exactly four outcomes are a node's fault."""
    assert (outcome.blame is Blame.NODE) == (outcome in BLAMED)


def test_an_impostor_is_not_the_node() -> None:
    """Who stands at a node's address with another key must not be able to cost it its standing."""
    assert Outcome.IMPOSTOR.blame is Blame.NETWORK


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.ABANDONED])
def test_the_client_is_to_blame_for_what_it_sent_and_for_leaving(outcome: Outcome) -> None:
    """Neither is held against a node."""
    assert outcome.blame is Blame.CLIENT


FINAL = {Outcome.COMPLETED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.ABANDONED}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_another_node_is_tried_unless_it_is_over(outcome: Outcome) -> None:
    """What another node might do better moves on; what is answered, out of time or unwanted does not."""
    assert outcome.may_move_on == (outcome not in FINAL)


@pytest.mark.parametrize("outcome", [Outcome.EMPTY, Outcome.UNSUPPORTED, Outcome.BUSY])
def test_what_may_be_the_request_blames_nobody_at_once(outcome: Outcome) -> None:
    """Another node is tried, and shows whose fault it was."""
    assert (outcome.blame, outcome.may_move_on) == (Blame.NOBODY, True)
