"""
Rows of choices that together have every pair: a covering array of strength two.  Pure, and always the same.

A place is one thing to choose, with a number of options.  Some places exist only if another place
has a certain option: the version of a runtime, if there is a runtime.

Source: D. M. Cohen and others, "The AETG system", IEEE Transactions on Software Engineering 23(7), 1997:
each row begins with a pair that no row has yet, and is filled with the options that cover most others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias


@dataclass(frozen=True)
class Place:
    """One thing to choose."""

    options: int
    """How many options it has."""
    needs: tuple[int, int] | None = None
    """The place before it, and the option there, without which this place does not exist."""


Row: TypeAlias = dict[int, int]
"""By place, the option.  Places that do not exist in the row are not in it."""


def pairs(places: Sequence[Place]) -> list[Row]:
    """Rows that have every pair of options that can occur together."""
    return _Pairs(places).rows()


def products(places: Sequence[Place]) -> Iterator[Row]:
    """Every row there is, for places that all exist always."""
    for options in product(*(range(place.options) for place in places)):
        yield dict(enumerate(options))


class _Pairs:
    """The pairs that no row has yet.  Each option has a number, and a set of options is an integer of bits."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._first: list[int] = []
        """By place, the number of its first option."""
        self._place_of: list[int] = []
        for place, given in enumerate(places):
            self._first.append(len(self._place_of))
            self._place_of += [place] * given.options
        self._missing = [self._partners(number) for number in range(len(self._place_of))]
        """By option, the options that no row has together with it yet."""

    def rows(self) -> list[Row]:
        """As `pairs`."""
        rows = []
        for number in range(len(self._place_of)):
            while missing := self._missing[number]:
                row = self._fill(number, (missing & -missing).bit_length() - 1)
                self._cross_off(row)
                rows.append(row)
        return rows or [self._fill()]

    def _required(self, number: int) -> Row:
        """What an option needs, with the option itself."""
        place = self._place_of[number]
        found = {place: number - self._first[place]}
        while (needs := self._places[place].needs) is not None:
            place, option = needs
            found[place] = option
        return found

    def _partners(self, number: int) -> int:
        """The options of other places that can stand in a row with this one."""
        mine, bits = self._required(number), 0
        for other in range(len(self._place_of)):
            theirs = self._required(other)
            together = all(theirs.get(place, option) == option for place, option in mine.items())
            if self._place_of[other] != self._place_of[number] and together:
                bits |= 1 << other
        return bits

    def _fill(self, *numbers: int) -> Row:
        """A row with these options, and at each other place the one that covers most."""
        fixed: Row = {}
        for number in numbers:
            fixed |= self._required(number)
        row: Row = {}
        bits = sum(1 << (self._first[place] + option) for place, option in fixed.items())
        for place, given in enumerate(self._places):
            if given.needs is not None and row.get(given.needs[0]) != given.needs[1]:
                continue
            if place in fixed:
                row[place] = fixed[place]
                continue
            first = self._first[place]
            covered = [(self._missing[first + option] & bits).bit_count() for option in range(given.options)]
            row[place] = covered.index(max(covered))
            bits |= 1 << (first + row[place])
        return row

    def _cross_off(self, row: Row) -> None:
        numbers = [self._first[place] + option for place, option in row.items()]
        rest = ~sum(1 << number for number in numbers)
        for number in numbers:
            self._missing[number] &= rest
