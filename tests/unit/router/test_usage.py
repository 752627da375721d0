"""What nodes claim to have used, against what was counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.usage import (
    ANSWERS,
    CLIENTS,
    OPERATORS,
    WINDOW_S,
    Usage,
    UsageMeter,
    UsageMismatch,
    is_true,
)

COUNTED = Usage(1000, 400)
HONEST = Usage(1040, 402)
DOUBLE = Usage(2200, 900)


def claims(
    meter: UsageMeter,
    claimed: Usage,
    count: int,
    node: str = "n",
    operator: str = "acme",
    now: float = 0.0,
    clients: Sequence[str] = ("ada", "bob", "cy"),
) -> list[UsageMismatch]:
    """What comes of so many answers to *clients* in turn."""
    found = [
        meter.add(node, operator, clients[number % len(clients)], claimed, COUNTED, now)
        for number in range(count)
    ]
    return [mismatch for mismatch in found if mismatch is not None]


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (COUNTED, True),
        (HONEST, True),
        (Usage(0, 0), True),
        (Usage(1000, 508), True),
        (Usage(1000, 509), False),
        (Usage(1314, 400), True),
        (Usage(1315, 400), False),
    ],
)
def test_a_claim_is_true_within_the_tolerance(claimed: Usage, expected: bool) -> None:  # noqa: FBT001
    """A quarter, and a few tokens: special ones of the answer, the template of the prompt."""
    assert is_true(claimed, COUNTED) is expected


def test_a_prompt_that_was_saved_does_not_pay_for_an_answer_that_was_inflated() -> None:
    """Each is held against its own count."""
    assert not is_true(Usage(0, 900), COUNTED)


def test_one_large_claim_holds_nobody() -> None:
    """Fewer than twenty answers say nothing of a node."""
    assert claims(UsageMeter(), DOUBLE, ANSWERS - 1) == []


def test_who_claims_half_as_much_again_over_many_answers_is_a_mismatch() -> None:
    """With the sums, for the person who reviews it."""
    assert claims(UsageMeter(), DOUBLE, ANSWERS) == [
        UsageMismatch(
            answers=20,
            what="answers",
            claimed=20 * 900,
            allowed=20 * (400 + 8),
            is_confirmed=True,
            router_is_wrong=False,
        )
    ]


@pytest.mark.parametrize("claimed", [HONEST, Usage(1300, 520), Usage(1590, 610)])
def test_a_claim_below_the_threshold_holds_nobody(claimed: Usage) -> None:
    """However often: beyond the tolerance it costs the clean share, and no more."""
    assert claims(UsageMeter(), claimed, 500) == []


@pytest.mark.parametrize("claimed", [Usage(1000, 620), Usage(1600, 400)], ids=["answers", "prompts"])
def test_prompts_and_answers_are_each_held_against_their_own_count(claimed: Usage) -> None:
    """Long prompts do not hide what is claimed for answers."""
    assert len(claims(UsageMeter(), claimed, ANSWERS)) == 1


def test_a_crowd_of_inflating_operators_is_not_ours_where_more_are_honest() -> None:
    """Three who agree with each other, against four who agree with us."""
    meter = UsageMeter()
    for honest in "abcd":
        claims(meter, HONEST, ANSWERS, honest, honest)
    found = [claims(meter, DOUBLE, ANSWERS, cheat, cheat)[0].router_is_wrong for cheat in "xyz"]
    assert found == [False, False, False]


def test_short_answers_have_the_tolerance_of_each() -> None:
    """A template of thirty tokens on prompts of five is no fraud."""
    meter = UsageMeter()
    found = [meter.add("n", "acme", "ada", Usage(35, 4), Usage(5, 2), 0.0) for _ in range(200)]
    assert found == [None] * 200


def test_a_mismatch_is_told_once() -> None:
    """Then the count begins anew."""
    meter = UsageMeter()
    assert [len(claims(meter, DOUBLE, count)) for count in (ANSWERS, ANSWERS - 1, 1)] == [1, 0, 1]


@pytest.mark.parametrize(("waited", "expected"), [(WINDOW_S, 1), (WINDOW_S + 1, 0)])
def test_what_is_older_than_the_window_is_forgotten(waited: float, expected: int) -> None:
    """Nineteen answers of an hour ago and one of now are no twenty."""
    meter = UsageMeter()
    claims(meter, DOUBLE, ANSWERS - 1)
    assert len(claims(meter, DOUBLE, 1, now=waited)) == expected


def test_a_node_is_not_held_for_what_another_claims() -> None:
    """Not even of its own operator."""
    meter = UsageMeter()
    claims(meter, DOUBLE, ANSWERS - 1, node="a")
    assert claims(meter, HONEST, ANSWERS, node="b") == []


@pytest.mark.parametrize("clients", ["a", "ab"], ids=["one client", "two"])
def test_fewer_than_three_clients_confirm_nothing(clients: str) -> None:
    """However many answers: it is told once, for a person, and holds nobody."""
    found = claims(UsageMeter(), DOUBLE, 50 * ANSWERS, clients=clients)
    assert ([each.is_confirmed for each in found], CLIENTS) == ([False], 3)


def test_what_two_clients_cause_is_not_confirmed_by_the_answers_to_others() -> None:
    """A huge mismatch of two drowns the true claims towards thirty, and does not become theirs."""
    meter = UsageMeter()
    others = [f"c-{number}" for number in range(30)]
    claims(meter, HONEST, 30, clients=others)
    found = claims(meter, Usage(10**7, 10**7), 100, clients="ab") + claims(meter, HONEST, 300, clients=others)
    assert [each.is_confirmed for each in found] == [False]


def test_many_clients_with_an_answer_each_confirm_it() -> None:
    """Without any two of them it is as large."""
    clients = [f"c-{number}" for number in range(ANSWERS)]
    assert [each.is_confirmed for each in claims(UsageMeter(), DOUBLE, ANSWERS, clients=clients)] == [True]


def test_a_mismatch_is_confirmed_when_further_clients_see_it() -> None:
    """What one client was told of first, others hold the node for."""
    meter = UsageMeter()
    found = claims(meter, DOUBLE, ANSWERS, clients="a") + claims(meter, DOUBLE, ANSWERS, clients="bc")
    assert [each.is_confirmed for each in found] == [False, True]


def test_one_answer_to_a_third_client_confirms_nothing() -> None:
    """It may be an accident."""
    meter = UsageMeter()
    claims(meter, DOUBLE, 10 * ANSWERS, clients="ab")
    assert claims(meter, DOUBLE, 4, clients="c") == []


def test_what_is_not_confirmed_makes_no_count_of_ours_wrong() -> None:
    """Else one client shields all liars."""
    meter = UsageMeter()
    for operator in "abc":
        claims(meter, DOUBLE, ANSWERS, node=operator, operator=operator, clients="a")
    (found,) = claims(meter, DOUBLE, ANSWERS, node="liar", operator="d")
    assert (found.is_confirmed, found.router_is_wrong) == (True, False)


def test_the_clients_of_a_node_are_bounded() -> None:
    """Names cost memory."""
    meter = UsageMeter()
    claims(meter, HONEST, 1000, clients=[f"c-{number}" for number in range(1000)])
    assert len(meter._sums["n"].clients) == 64


def ours(meter: UsageMeter, operators: list[str], now: float = 0.0) -> list[bool]:
    return [
        mismatch.router_is_wrong
        for number, operator in enumerate(operators)
        for mismatch in claims(meter, DOUBLE, ANSWERS, node=f"n-{number}", operator=operator, now=now)
    ]


def test_where_nodes_of_several_operators_are_so_it_is_our_count_that_is_wrong() -> None:
    """From the third on, and nobody is held for our tokeniser."""
    assert ours(UsageMeter(), ["a", "b", "c", "d"]) == [False, False, True, True]
    assert OPERATORS == 3


def test_many_nodes_of_one_operator_do_not_make_it_ours() -> None:
    """Else whoever cheats with three nodes goes free."""
    assert ours(UsageMeter(), ["a"] * 10) == [False] * 10


def test_mismatches_of_long_ago_do_not_make_it_ours() -> None:
    """Three operators at once are our fault; three over the months are theirs."""
    meter = UsageMeter()
    ours(meter, ["a", "b"])
    assert ours(meter, ["c"], now=WINDOW_S + 1) == [False]


usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))


@given(st.lists(usages, min_size=1, max_size=60))
def test_who_claims_what_was_counted_is_never_a_mismatch(counted: list[Usage]) -> None:
    """Whatever the sizes."""
    meter = UsageMeter()
    assert [meter.add("n", "acme", "ada", usage, usage, 0.0) for usage in counted] == [None] * len(counted)


@given(usages, usages)
def test_what_is_true_is_never_a_mismatch(claimed: Usage, counted: Usage) -> None:
    """The tolerance for one answer is within the threshold for many."""
    if is_true(claimed, counted):
        meter = UsageMeter()
        assert [meter.add("n", "acme", "ada", claimed, counted, 0.0) for _ in range(40)] == [None] * 40
