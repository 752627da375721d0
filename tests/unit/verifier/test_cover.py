"""Rows that together have every pair of options."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.policy.cover import Place, Row, pairs, products


@st.composite
def places(draw: st.DrawFn) -> list[Place]:
    """Places of which some need an option of an earlier one."""
    made: list[Place] = []
    for number in range(draw(st.integers(1, 7))):
        needs = None
        if number and draw(st.booleans()):
            before = draw(st.integers(0, number - 1))
            needs = (before, draw(st.integers(0, made[before].options - 1)))
        made.append(Place(draw(st.integers(1, 4)), needs))
    return made


def exists(given_places: list[Place], row: Row, place: int) -> bool:
    needs = given_places[place].needs
    return needs is None or (exists(given_places, row, needs[0]) and row.get(needs[0]) == needs[1])


def every_row(given_places: list[Place]) -> list[Row]:
    found = []
    for options in product(*(range(place.options) for place in given_places)):
        whole = dict(enumerate(options))
        found.append({n: option for n, option in whole.items() if exists(given_places, whole, n)})
    return found


def pairs_in(rows: list[Row]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return {pair for row in rows for pair in combinations(sorted(row.items()), 2)}


@given(places())
def test_rows_have_every_pair_that_can_be(given_places: list[Place]) -> None:
    """And no place that does not exist."""
    rows = pairs(given_places)
    assert pairs_in(rows) == pairs_in(every_row(given_places))
    assert all(
        set(row) == {n for n in range(len(given_places)) if exists(given_places, row, n)} for row in rows
    )


def test_rows_are_far_fewer_than_all() -> None:
    """Twenty places with three options: 3.5 thousand million rows, or some tens."""
    assert len(pairs([Place(3)] * 20)) < 40


def test_rows_are_always_the_same() -> None:
    """A policy is not refused by chance."""
    given_places = [Place(4), Place(2, (0, 1)), Place(3)]
    assert pairs(given_places) == pairs(given_places)


@pytest.mark.parametrize("options", [(2, 3), (1,), ()])
def test_products_are_all_rows(options: tuple[int, ...]) -> None:
    """Each once."""
    found = [tuple(row.values()) for row in products([Place(n) for n in options])]
    assert found == list(product(*map(range, options)))
