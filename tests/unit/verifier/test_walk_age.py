"""When the last right walk was: what a result says of it, for those who want it to be recent."""

from __future__ import annotations

import pytest

from tests.unit.verifier.test_rates import reference
from verifier.schemes import walks
from verifier.schemes.context import Channel, WalkRecord

REFERENCE = reference(1 << 20)


def walk(at_ms: int, verdict: str = "right", channel: Channel = Channel.CALLED) -> WalkRecord:
    return WalkRecord(
        channel=channel, verdict=verdict, at_ms=at_ms, source="engine", lateness=100, passes=1,
        reference=REFERENCE.digest, rows=32, ms=100,
    )  # fmt: skip


def test_it_is_the_newest_that_was_right_and_called_for() -> None:
    """A walk that the node announced shows only that it can get the weights."""
    announced = next(each for each in Channel if each is not Channel.CALLED)
    history = [walk(1000), walk(2000), walk(3000, channel=announced), walk(4000, "missed")]
    assert walks.last_right_ms(history, "unanswered") == 2000


@pytest.mark.parametrize("standing", ["called", "stale", "late", "from-file", "untimed", "superseded"])
def test_its_age_is_told_whatever_else_is_wrong_with_it(standing: str) -> None:
    assert walks.last_right_ms([walk(1000)], standing) == 1000


@pytest.mark.parametrize("standing", ["wrong", "unredeemed", "missed", "announced", "none"])
def test_what_counts_no_more_is_not_told(standing: str) -> None:
    """A wrong answer after it, or too many that were missed."""
    assert walks.last_right_ms([walk(1000)], standing) is None


def test_without_any_there_is_none() -> None:
    assert walks.last_right_ms([walk(1, "wrong"), walk(2, "missed")], "unanswered") is None
