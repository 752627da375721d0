"""
What a node's place is worth, and by how much each improvement would move its share and its income.  Pure.

    requests a day = the smaller of  share × requests a day of the tier  and  what it may have at a time × 86,400 s ÷ latency
    income a day   = requests a day × price of a usual exchange

The share is that of `router.choose.expected_share`; each improvement is made alone, and all else stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from msgspec import Struct, structs

from router.choose.candidates import Key, Lane
from router.choose.expected_share import Crowd, Expected, Member, expect_share
from router.choose.ranking import CandidateFacts, score
from router.choose.trials import stage_of
from router.model.standing import ESTABLISHED_LOWER, PROVEN, Grade, Rating, wilson
from router.model.workload import Price, Workload

DAY_S: Final = 86400.0
QUICKER: Final = 0.8
"""The latency that is tried, as a share of what it is."""
CHEAPER: Final = 0.9
"""The price that is tried, likewise."""
MORE_ROOM: Final = 2
"""How many times what it may have at a time is tried."""
LANE_OF_GRADE: Final = {
    Grade.ESTABLISHED: Lane.ESTABLISHED,
    Grade.PROBATION: Lane.PROBATION,
    Grade.DEGRADED: Lane.DEGRADED,
}
"""Where a node stands with nothing under way."""


@dataclass(frozen=True)
class Place:
    """Where a node stands for a workload, while nothing is under way."""

    key: Key
    rating: Rating
    hardware_class: str
    proven: float
    """Requests completed within the week."""
    crowd: Crowd
    tier_requests_a_day: float
    is_measured: bool = True
    """Whether its latency was ever measured; what it would have as an established node is the average otherwise."""
    lane: Lane | None = None
    """Where it stands instead of where its grade puts it."""
    price: Price | None = None
    """What it costs instead of what the table says."""
    room: int = 1
    """How many times what it may have at a time."""


class Worth(Struct, frozen=True):
    """What a place is worth."""

    lane: Lane
    expected: Expected
    at_a_time: int
    """Requests that one router gives it at a time."""
    most_a_day: float
    """Requests a day that it could do with that."""
    requests_a_day: float
    income_a_day: float
    """Millionths of the unit of account."""


class Improvement(Struct, frozen=True):
    """What something else would bring."""

    what: str
    was: float | str
    would_be: float | str
    worth: Worth


def lane_of(place: Place) -> Lane:
    """The lane in which a node stands by its grade, with nothing under way."""
    return place.lane or LANE_OF_GRADE[place.rating.grade]


def member_of(place: Place, workload: Workload) -> Member:
    """The node as the formula sees it."""
    lane = lane_of(place)
    priced = workload
    if place.price is not None:
        priced = structs.replace(workload, prices={"*": place.price}, prices_by_hardware={})
    facts = CandidateFacts(place.rating, hardware_class=place.hardware_class)
    stage = stage_of(place.rating) if lane is Lane.PROBATION else None
    is_average = lane is Lane.ESTABLISHED and not place.is_measured
    return Member(score(place.key, lane, facts, priced), stage, is_average)


def worth_of(place: Place, workload: Workload) -> Worth:
    """What a place is worth."""
    lane = lane_of(place)
    expected = expect_share(member_of(place, workload), place.crowd, workload)
    at_a_time = workload.concurrency * place.room
    if lane is not Lane.ESTABLISHED:
        at_a_time = max(1, int(at_a_time * min(place.proven, PROVEN) / PROVEN))
    most = at_a_time * DAY_S / place.rating.latency_s if place.rating.latency_s else float("inf")
    requests = min(expected.share * place.tier_requests_a_day, most)
    price = place.price or workload.price_of(place.key[0], place.hardware_class)
    return Worth(
        lane=lane,
        expected=expected,
        at_a_time=at_a_time,
        most_a_day=most,
        requests_a_day=requests,
        income_a_day=requests * workload.cost_of(price),
    )


def improvements_of(place: Place, workload: Workload) -> Iterator[Improvement]:
    """What each improvement would bring, each alone."""
    rating, lane = place.rating, lane_of(place)
    if lane is not Lane.ESTABLISHED:
        yield Improvement("established", lane, Lane.ESTABLISHED, worth_of(_established(place), workload))
    clean = wilson(rating.evidence, rating.evidence)[0]
    if clean > rating.completion:
        better = replace(place, rating=structs.replace(rating, completion=clean))
        if clean >= ESTABLISHED_LOWER:
            better = _established(better)
        yield Improvement("completion", rating.completion, clean, worth_of(better, workload))
    latency_s = rating.latency_s * QUICKER
    quicker = replace(place, rating=structs.replace(rating, latency_s=latency_s))
    yield Improvement("latency", rating.latency_s, latency_s, worth_of(quicker, workload))
    price = workload.price_of(place.key[0], place.hardware_class)
    if workload.second_is_worth and (price.input or price.output):
        lower = Price(int(price.input * CHEAPER), int(price.output * CHEAPER))
        cheaper = worth_of(replace(place, price=lower), workload)
        yield Improvement("price", workload.cost_of(price), workload.cost_of(lower), cheaper)
    now, roomier = worth_of(place, workload), worth_of(replace(place, room=MORE_ROOM), workload)
    yield Improvement("concurrency", float(now.at_a_time), float(roomier.at_a_time), roomier)


def _established(place: Place) -> Place:
    completion = max(place.rating.completion, ESTABLISHED_LOWER)
    rating = structs.replace(place.rating, grade=Grade.ESTABLISHED, completion=completion)
    return replace(place, rating=rating, lane=Lane.ESTABLISHED)
