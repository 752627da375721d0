"""Until when something must come of an attempt, and whose fault it is if nothing does.  Its times are given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.progress import Progress
from router.gateway.sse import EventParser
from router.model.allowance import Allowance
from router.model.outcomes import Outcome

ALLOWED = Allowance(first_s=25, base_s=20, extra_s=5, stall_s=20, quiet_s=300, pause_s=290, slowest_s=1)


def begun(**given: Any) -> Progress:
    return Progress(ALLOWED, **{"began": 100, "left_s": 3600, "first_left_s": 65, **given})


def test_the_first_text_must_come_in_the_nodes_own_time() -> None:
    """Which is that of any request, and more for the size of this one."""
    assert begun().first_due == 125


@pytest.mark.parametrize("given_s", [{"left_s": 10}, {"first_left_s": 10}], ids=["callers", "routers"])
def test_it_may_be_less(given_s: dict[str, float]) -> None:
    """The caller has less time, or earlier attempts have used it up."""
    assert begun(**given_s).first_due == 110


def test_a_sign_of_life_moves_the_first_text() -> None:
    """By as much as there may be between two of them."""
    assert begun().note_life(115, due=125) == 135


def test_a_sign_of_life_takes_nothing_away() -> None:
    """An early one leaves the time as it is."""
    assert begun().note_life(101, due=125) == 125


def test_signs_of_life_buy_no_more_than_the_quiet_time() -> None:
    """A node that only pings for ever is stalled in the end."""
    assert begun().note_life(399, due=399) == 400


def test_signs_of_life_do_not_move_the_callers_time() -> None:
    """It is the caller's."""
    assert begun(left_s=30).note_life(125, due=125) == 130


def test_after_a_text_the_next_must_come_before_it_stalls() -> None:
    """And so on with each."""
    progress = begun()
    progress.note_first_text(110)
    assert progress.note_text(110, 1) == 130


def test_after_a_text_signs_of_life_have_a_bound_of_their_own() -> None:
    """From the last text on."""
    progress = begun()
    progress.note_first_text(110)
    progress.note_text(300, 200)
    assert progress.note_life(580, due=585) == 590


def test_a_stream_that_is_behind_its_pace_has_no_more_time() -> None:
    """Ten tokens in three hundred seconds, with a text just now."""
    progress = begun()
    progress.note_first_text(110)
    assert progress.note_text(409, 10) == 410


def test_time_that_the_client_took_to_read_is_not_the_nodes() -> None:
    """The pace is the node's."""
    progress = begun()
    progress.note_first_text(110)
    progress.waited_s = 50
    assert progress.note_text(440, 10) == 460


def late(progress: Progress, now: float) -> Outcome:
    return progress.error_without_text(now, "no text").outcome


def test_a_node_that_had_its_time_is_stalled() -> None:
    """It is slow."""
    assert late(begun(), 125) is Outcome.STALLED


def test_a_node_that_had_half_of_its_time_is_stalled() -> None:
    """What was left of the router's patience was enough to show it."""
    assert late(begun(first_left_s=13), 113) is Outcome.STALLED


def test_a_node_that_had_less_is_not_to_blame() -> None:
    """The attempts before it have used up the time."""
    assert late(begun(first_left_s=12), 112) is Outcome.TIMED_OUT


@pytest.mark.parametrize("left_s", [1, 12, 13, 24.9, 25])
def test_what_the_callers_time_cuts_is_nobodys(left_s: float) -> None:
    """However near it was to the node's own."""
    assert late(begun(left_s=left_s), 100 + left_s) is Outcome.TIMED_OUT


def test_what_the_callers_time_cuts_within_a_stream_is_nobodys() -> None:
    """Also if the node has stalled, or is slow."""
    progress = begun(left_s=400)
    progress.note_first_text(110)
    progress.note_text(120, 1)
    assert progress.error_within_stream(500).outcome is Outcome.TIMED_OUT


def test_a_node_that_is_gone_is_stalled_at_once() -> None:
    """It has answered no probes."""
    progress = begun()
    progress.was_gone = True
    assert late(progress, 121) is Outcome.STALLED


def test_what_a_node_was_lent_is_what_it_has_used() -> None:
    """Beyond the time of any request: for its size, and for its signs of life."""
    assert begun().lent_s(115) == 0
    assert begun().lent_s(124) == 4
    assert begun().lent_s(1000) == 5
    alive = begun()
    alive.note_life(110, 125)
    assert alive.lent_s(1000) == 280


def test_a_node_is_quiet_once_it_has_shown_nothing_for_the_time_of_any_request() -> None:
    """From then on it is looked after."""
    progress = begun()
    assert (progress.is_quiet(119), progress.is_quiet(120)) == (False, True)
    progress.note_life(121, 125)
    assert not progress.is_quiet(140)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=60), st.floats(1, 4000))
def test_no_node_has_time_for_ever(steps: list[tuple[bool, float]], left_s: float) -> None:
    """Whatever it sends: never beyond the caller's time, and never beyond the bounds from the last text on."""
    progress, tokens = begun(left_s=left_s), 0
    now, due = 100.0, progress.first_due
    last_text = now
    for is_text, pause in steps:
        now += pause
        if now > due:
            return
        if is_text:
            progress.note_first_text(now)
            tokens += 1
            due, last_text = progress.note_text(now, tokens), now
        else:
            due = progress.note_life(now, due)
        assert due <= 100 + left_s
        assert due <= last_text + max(ALLOWED.quiet_s, ALLOWED.first_s)


@pytest.mark.parametrize(
    ("data", "blocks"),
    [
        (b"", 0), (b"d", 0), (b"data: x\n", 0), (b": ping\n\n", 1), (b":\r\n\r\n", 1), (b"data: x\n\n: p", 1),
        (b"data: x\n\n: ping\n\n", 2),
    ],
)  # fmt: skip
def test_whole_events_and_comments_are_signs_of_life(data: bytes, blocks: int) -> None:
    """Bytes of one that is not whole are none."""
    parser = EventParser()
    list(parser.feed(data))
    assert parser.blocks == blocks
