"""Which result of a node counts: by the verifier's number, in whatever order what it says comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.choose import gates
from router.choose.gates import GateContext
from router.model.node import NodeView
from router.state import succession
from tests.unit.router.support import NOW, PIN, TICKS, WEIGHTS, WORKLOAD, ear
from verifier.results import AttestationResult

SKEW_S = 30
BAD = {**WEIGHTS, "executables": 96}


def result(sequence: int | None, **given: Any) -> AttestationResult:
    made = ear("n", jti=f"{sequence}-{given.get('iat')}", **given)
    return structs.replace(made, ear_touchstone_sequence=sequence)


def is_untimely(given: AttestationResult) -> bool:
    return given.iat > NOW + SKEW_S or given.exp <= NOW


def taken(view: NodeView, given: AttestationResult) -> NodeView:
    """As the feed takes it in."""
    aside = is_untimely(given)
    if succession.is_known(view, given) or not succession.is_newer(view, given, is_untimely=aside):
        return view
    return succession.take(view, given, b"", TICKS, is_untimely=aside)


def code(view: NodeView, *, now_ms: int = NOW * 1000, ticks: float = TICKS) -> str | None:
    verdict = gates.check(view, WORKLOAD, GateContext(now_ms, monotonic=ticks))
    return None if verdict is None else verdict.code


EMPTY = NodeView("n")
GOOD = taken(EMPTY, result(5))


# Results.


def test_a_higher_number_takes_the_place_though_its_time_is_lower() -> None:
    """The verifier's clock was set back in between."""
    view = taken(taken(EMPTY, result(5, iat=NOW)), result(6, iat=NOW - 100, exp=NOW + 60))
    assert view.result is not None
    assert (view.result.ear_touchstone_sequence, code(view)) == (6, None)


def test_a_lower_number_takes_no_place_though_its_time_is_later() -> None:
    """It was issued before."""
    bad = taken(EMPTY, result(6, weights=BAD))
    assert taken(bad, result(5, iat=NOW + 10)) == bad


@pytest.mark.parametrize(("first", "second"), [(None, None), (None, 6), (5, None)])
def test_without_both_numbers_the_later_time_counts(first: int | None, second: int | None) -> None:
    """Results of earlier versions have none."""
    view = taken(taken(EMPTY, result(first, iat=NOW - 10)), result(second, iat=NOW - 5, weights=BAD))
    older = taken(taken(EMPTY, result(first, iat=NOW - 10)), result(second, iat=NOW - 20, weights=BAD))
    assert (code(view), code(older)) == ("result.not-affirming", None)


# Results from the future.


def test_what_was_good_stays_good_beside_a_result_from_the_future() -> None:
    """Until it runs out by either clock."""
    view = taken(GOOD, result(6, iat=NOW + 31))
    assert code(view) is None
    assert code(view, now_ms=(NOW + 600) * 1000) == "result.untimely"
    assert code(view, ticks=TICKS + 600) == "result.untimely"


def test_bad_news_need_no_right_clock() -> None:
    """A result from the future that does not allow the work keeps the node out at once."""
    assert code(taken(GOOD, result(6, iat=NOW + 3600, weights=BAD))) == "result.not-affirming"


def test_a_result_from_the_future_lets_nobody_in() -> None:
    """There is nothing else."""
    assert code(taken(EMPTY, result(6, iat=NOW + 31))) == "result.untimely"


def test_a_node_that_moves_is_not_sought_where_it_was() -> None:
    """Its failures there would be ours."""
    moved = result(6, iat=NOW + 31, endpoint={"url": "https://192.0.2.2", "spki_sha256": PIN})
    assert code(taken(GOOD, moved)) == "result.untimely"


def test_a_result_counts_once_its_time_has_come() -> None:
    """It takes the place of the one before it."""
    view = succession.promote(taken(GOOD, result(6, iat=NOW + 31)))
    assert view.result is not None
    assert (view.result.ear_touchstone_sequence, view.aside) == (6, None)
    assert succession.promote(GOOD) == GOOD


def test_a_result_from_the_future_gives_way_to_a_newer_one() -> None:
    """The verifier's clock is right again."""
    view = taken(taken(GOOD, result(6, iat=NOW + 3600, weights=BAD)), result(7))
    assert (view.aside, code(view)) == (None, None)


def test_the_time_of_a_waiting_result_runs() -> None:
    """When the router's clock gets to where the verifier's had been, nobody is let in by a result of that time."""
    view = succession.promote(taken(EMPTY, result(6, iat=NOW + 3600)))
    assert code(view, now_ms=(NOW + 3600) * 1000, ticks=TICKS + 3600) == "result.expired"


# Revocations.


def test_a_revocation_is_of_what_it_names_and_what_was_before() -> None:
    """Of nothing newer."""
    assert code(succession.void(GOOD, 5)) == "result.revoked"
    assert code(succession.void(GOOD, 9)) == "result.revoked"
    assert code(succession.void(GOOD, 4)) is None


def test_a_revocation_that_comes_first_counts_too() -> None:
    """Its result is revoked when it comes."""
    assert code(taken(succession.void(EMPTY, 5), result(5))) == "result.revoked"
    assert code(taken(succession.void(EMPTY, 5), result(6))) is None


def test_a_revocation_takes_a_waiting_result_along() -> None:
    """If it names it."""
    view = taken(GOOD, result(6, iat=NOW + 31))
    assert succession.void(view, 6).aside is None
    assert succession.void(view, 5).aside is not None
    assert succession.void(view, None).aside is None


def test_a_revocation_without_a_number_is_of_all_that_is_known() -> None:
    """Earlier versions name none."""
    assert code(succession.void(GOOD, None)) == "result.revoked"


# In any order.

SAID = st.lists(
    st.tuples(st.sampled_from(["good", "bad", "early", "early bad"]), st.booleans()), min_size=1, max_size=6
)
"""The results of a node in the verifier's order, and whether each is revoked before the next."""


def said(spoken: list[tuple[str, bool]]) -> list[AttestationResult | int]:
    found: list[AttestationResult | int] = []
    for number, (kind, revoked) in enumerate(spoken, 1):
        iat = NOW + 3600 - number if "early" in kind else NOW - number
        found.append(result(number, iat=iat, exp=iat + 600, weights=BAD if "bad" in kind else None))
        if revoked:
            found.append(number)
    return found


def heard(given: list[AttestationResult | int]) -> NodeView:
    view = EMPTY
    for each in given:
        view = succession.void(view, each) if isinstance(each, int) else taken(view, each)
    return view


@given(SAID, st.randoms(use_true_random=False))
def test_any_order_ends_in_the_same(spoken: list[tuple[str, bool]], order: Any) -> None:
    """And twice is once."""
    told = said(spoken)
    shuffled = [*told, *told]
    order.shuffle(shuffled)
    assert _state(heard(shuffled)) == _state(heard(told))


@given(SAID)
def test_the_highest_number_decides(spoken: list[tuple[str, bool]]) -> None:
    """Work is allowed only by the newest result; by one before it, only if the newest allows the work and must wait."""
    view = heard(said(spoken))
    newest, revoked = spoken[-1]
    if newest == "good":
        assert code(view) == ("result.revoked" if revoked else None)
    elif "bad" in newest or revoked:
        assert code(view) is not None
    else:
        counting = [n for n, (kind, _) in enumerate(spoken, 1) if "early" not in kind]
        void = max((n for n, (_, is_void) in enumerate(spoken, 1) if is_void), default=0)
        allows = bool(counting) and counting[-1] > void and spoken[counting[-1] - 1][0] == "good"
        assert (code(view) is None) == allows


def _state(view: NodeView) -> Any:
    """What is decided by, without what only tells how it came to be."""
    counts = None if view.revoked or view.result is None else view.result.ear_touchstone_sequence
    aside = None if view.aside is None else view.aside.result.ear_touchstone_sequence
    return (
        counts,
        aside,
        view.void,
        structs.replace(view, result=None, aside=None, revoked=False, void=0, issued_at=0),
    )
