"""What follows from attempts: pure, so that every case is a line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.attempts import (
    CONTINUE,
    DOUBTFUL,
    Attempt,
    Continue,
    Fail,
    Return,
    StreamSummary,
    decide_next,
    find_blamed,
)
from router.model.outcomes import Outcome
from router.model.tokens import TokenCounter

MOVE_ON = [
    Outcome.CRASHED,
    Outcome.STALLED,
    Outcome.TRUNCATED,
    Outcome.CORRUPTED,
    Outcome.IMPOSTOR,
    Outcome.BUSY,
    Outcome.UNSUPPORTED,
]


def attempt(outcome: Outcome, node: str = "a", **given: Any) -> Attempt:
    return Attempt(node=node, operator="o", outcome=outcome, detail=f"{node} {outcome}", seconds=1.0, **given)


def test_at_first_a_node_is_tried() -> None:
    assert decide_next([]) is CONTINUE


def test_without_a_node_to_try_the_request_fails() -> None:
    """Every node was closed since the decision: the client may come back."""
    assert decide_next([], is_exhausted=True) == Fail(Outcome.BUSY)


@pytest.mark.parametrize("earlier", [[], [attempt(Outcome.CRASHED)]])
def test_a_completed_attempt_is_the_answer(earlier: list[Attempt]) -> None:
    done = attempt(Outcome.COMPLETED, "b")
    assert decide_next([*earlier, done]) == Return(done)


@pytest.mark.parametrize("outcome", MOVE_ON)
def test_a_failure_moves_on_while_nothing_has_gone_out(outcome: Outcome) -> None:
    assert decide_next([attempt(outcome)]) is CONTINUE


@pytest.mark.parametrize("outcome", MOVE_ON)
def test_a_failure_after_the_first_byte_ends_the_request(outcome: Outcome) -> None:
    """An answer is never put together from two nodes."""
    assert decide_next([attempt(outcome, has_begun=True)]) == Fail(outcome)


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.ABANDONED])
def test_no_other_node_is_tried_once_the_callers_time_is_over(outcome: Outcome) -> None:
    assert decide_next([attempt(outcome)]) == Fail(outcome)


@pytest.mark.parametrize("outcome", MOVE_ON)
def test_the_last_failure_is_told(outcome: Outcome) -> None:
    attempts = [attempt(Outcome.BUSY), attempt(outcome, "b")]
    assert decide_next(attempts, is_exhausted=True) == Fail(outcome)


def test_a_refusal_is_the_answer() -> None:
    refusal = attempt(Outcome.REFUSED)
    assert decide_next([refusal]) == Return(refusal)


def test_a_refusal_of_a_node_that_refuses_often_is_the_answer_if_no_other_completes() -> None:
    refusal = attempt(Outcome.REFUSED, is_doubtful=True)
    assert decide_next([refusal]) is CONTINUE
    attempts = [refusal, attempt(Outcome.CRASHED, "b")]
    assert decide_next(attempts, is_exhausted=True) == Return(refusal)


def test_a_doubtful_refusal_is_the_answer_also_when_the_time_is_over() -> None:
    refusal = attempt(Outcome.REFUSED, is_doubtful=True)
    assert decide_next([refusal, attempt(Outcome.TIMED_OUT, "b")]) == Return(refusal)


def test_an_empty_answer_is_the_answer_if_there_is_no_better_one() -> None:
    empty = attempt(Outcome.EMPTY, is_doubtful=True)
    assert decide_next([empty]) is CONTINUE
    assert decide_next([empty, attempt(Outcome.STALLED, "b")], is_exhausted=True) == Return(empty)


def test_a_refusal_is_better_than_an_empty_answer() -> None:
    refusal, empty = attempt(Outcome.REFUSED, is_doubtful=True), attempt(Outcome.EMPTY, "b")
    assert decide_next([refusal, empty], is_exhausted=True) == Return(refusal)


STREAM = StreamSummary(
    events=1,
    text=TokenCounter(None),
    first_token_s=0.1,
    claimed=None,
    usage=None,
    is_done=True,
    unsent=b"",
)


def test_an_answer_that_does_not_keep_to_the_request_moves_on_and_is_the_answer_for_want_of_a_better_one() -> (
    None
):
    """A refusal says more, and an answer with nothing in it less."""
    unhonoured = attempt(Outcome.UNHONOURED, is_doubtful=True)
    assert decide_next([unhonoured]) is CONTINUE
    assert decide_next([unhonoured, attempt(Outcome.EMPTY, "b")], is_exhausted=True) == Return(unhonoured)
    assert decide_next([unhonoured, attempt(Outcome.STALLED, "b")], is_exhausted=True) == Return(unhonoured)
    refusal = attempt(Outcome.REFUSED, "b", is_doubtful=True)
    assert decide_next([unhonoured, refusal], is_exhausted=True) == Return(refusal)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_stream_that_does_not_keep_to_the_request_is_the_answer(*, has_begun: bool) -> None:
    """It is whole, and mostly with the client already."""
    streamed = attempt(Outcome.UNHONOURED, has_begun=has_begun, stream=STREAM)
    assert decide_next([streamed]) == Return(streamed)
    assert (
        find_blamed([attempt(Outcome.CRASHED, is_doubtful=True), streamed], Return(streamed), ranked=2) == []
    )


# Who is blamed.


@pytest.mark.parametrize("outcome", sorted(DOUBTFUL))
def test_a_doubtful_failure_is_the_nodes_if_another_completes(outcome: Outcome) -> None:
    failed, done = attempt(outcome, is_doubtful=True), attempt(Outcome.COMPLETED, "b")
    assert find_blamed([failed, done], Return(done), ranked=2) == [failed]


def test_what_every_node_stumbles_over_is_the_request() -> None:
    attempts = [attempt(Outcome.CRASHED, name, is_doubtful=True) for name in "ab"]
    assert find_blamed(attempts, Fail(Outcome.CRASHED), ranked=2) == []


@pytest.mark.parametrize(
    ("outcome", "is_blamed"),
    [
        (Outcome.CRASHED, True),
        (Outcome.TRUNCATED, True),
        (Outcome.CORRUPTED, True),
        (Outcome.UNSUPPORTED, False),
        (Outcome.UNHONOURED, False),
    ],
)
def test_the_only_node_is_blamed_for_what_it_broke(outcome: Outcome, *, is_blamed: bool) -> None:
    """There is no other node to ask."""
    failed = attempt(outcome, is_doubtful=True)
    assert find_blamed([failed], Fail(outcome), ranked=1) == ([failed] if is_blamed else [])


def test_an_answer_that_is_given_for_want_of_a_better_one_blames_nobody() -> None:
    empty = attempt(Outcome.EMPTY, is_doubtful=True)
    assert find_blamed([empty], Return(empty), ranked=1) == []


ATTEMPTS = st.lists(
    st.builds(
        attempt,
        st.sampled_from(Outcome),
        st.sampled_from("abc"),
        is_doubtful=st.booleans(),
        has_begun=st.booleans(),
    ),
    max_size=4,
)


@given(ATTEMPTS)
def test_an_exhausted_request_ends(attempts: list[Attempt]) -> None:
    """In an answer or a failure, whatever the attempts were; and only doubtful failures are blamed."""
    end = decide_next(attempts, is_exhausted=True)
    assert not isinstance(end, Continue)
    assert all(each.is_doubtful for each in find_blamed(attempts, end, ranked=3))


@given(ATTEMPTS)
def test_nothing_follows_a_begun_stream_but_its_end(attempts: list[Attempt]) -> None:
    begun = [*attempts, attempt(Outcome.TRUNCATED, has_begun=True)]
    assert decide_next(begun) == Fail(Outcome.TRUNCATED)
