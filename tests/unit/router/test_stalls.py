"""How long the loop stood still, by timers that come up late."""

from __future__ import annotations

import pytest

from router.choose.gates import GateVerdict
from router.model.clock import Clock
from router.model.outcomes import Failure
from router.model.workload import Table
from router.state.fleet import Fleet
from router.state.prober import Prober
from router.state.stalls import StallWatch
from tests.unit.router.doubles import Moved
from tests.unit.router.support import WORKLOAD, view


@pytest.fixture
async def watched() -> tuple[Moved, StallWatch, list[float]]:
    clock, stalls = Moved(), list[float]()
    watch = StallWatch(stalls.append, monotonic=lambda: clock.ticks)
    watch.start()
    return clock, watch, stalls


async def test_a_timer_in_time_is_no_stall(watched: tuple[Moved, StallWatch, list[float]]) -> None:
    """Nor is one that is as late as a busy machine makes it."""
    clock, watch, stalls = watched
    for late_s in (0.0, 0.1, 0.24):
        clock.forward(0.1 + late_s)
        watch.tick()
    watch.stop()
    assert (watch.lost_s, stalls) == (0.0, [])


async def test_stalls_add_up(watched: tuple[Moved, StallWatch, list[float]]) -> None:
    """Each is told once it is over."""
    clock, watch, stalls = watched
    for late_s in (1.0, 0.0, 30.0):
        clock.forward(0.1 + late_s)
        watch.tick()
    watch.stop()
    assert (watch.lost_s, stalls) == (pytest.approx(31.0), pytest.approx([1.0, 30.0]))


async def test_a_stall_counts_before_its_timer_has_come_up(
    watched: tuple[Moved, StallWatch, list[float]],
) -> None:
    """A node's time-out may come up first, and asks."""
    clock, watch, _ = watched
    clock.forward(5.1)
    assert watch.lost_s == pytest.approx(5.0)
    watch.stop()
    assert watch.lost_s == 0.0


def known() -> tuple[Moved, Fleet]:
    clock = Moved()
    fleet = Fleet(Table([WORKLOAD]), Clock(lambda: clock.ms, lambda: clock.ticks))
    fleet.put_node(view("a", iat=clock.seconds, exp=clock.seconds + 600))
    fleet.note_probe("a")
    fleet.note_probe_answer("a")
    return clock, fleet


def code(fleet: Fleet) -> str | None:
    fleet.note_verifier_contact()
    verdict = fleet.verdict("a", WORKLOAD)
    return None if verdict is None else verdict.code


@pytest.mark.parametrize(("excused_s", "expected"), [(60, None), (0, "capacity.silent")])
def test_what_nobody_could_hear_is_no_silence(excused_s: float, expected: str | None) -> None:
    """A machine that slept for a minute does not find a fleet of silent nodes."""
    clock, fleet = known()
    clock.forward(60)
    fleet.excuse_silence(excused_s)
    assert code(fleet) == expected


FAILURES = [
    (Failure.NO_SOCKETS, 0.0, None),
    (Failure.NO_ROUTE, 0.0, None),
    (Failure.NO_NAME_SERVER, 0.0, None),
]
FAILURES += [(Failure.SILENT, 0.0, "capacity.silent"), (Failure.SILENT, 0.6, None)]
FAILURES += [
    (Failure.CONNECTION_REFUSED, 0.4, "capacity.silent"),
    (Failure.ANOTHER_KEY, 0.0, "capacity.silent"),
]


@pytest.mark.parametrize(("failure", "lost_s", "expected"), FAILURES)
async def test_a_probe_shows_silence_if_it_came_to_the_node(
    failure: Failure, lost_s: float, expected: str | None
) -> None:
    """For a minute, each probe fails in this way, and the router stands still for so long during each."""
    clock, fleet = known()
    lost = [0.0]

    async def ask(_: tuple[str, str]) -> Failure:
        lost[0] += lost_s
        return failure

    prober = Prober(
        fleet, ask, Clock(lambda: clock.ms, lambda: clock.ticks), every_s=5, lost_s=lambda: lost[0]
    )
    for _ in range(12):
        clock.forward(5)
        assert not await prober.probe("a")
    assert code(fleet) == expected


async def test_silence_that_was_there_is_not_forgotten() -> None:
    """A node cannot wash its silence by one probe that the router could not make."""
    clock, fleet = known()
    failures = [Failure.SILENT] * 6 + [Failure.NO_SOCKETS]

    async def ask(_: tuple[str, str]) -> Failure:
        return failures.pop(0)

    prober = Prober(fleet, ask, Clock(lambda: clock.ms, lambda: clock.ticks), every_s=5)
    while failures:
        clock.forward(5)
        await prober.probe("a")
    assert code(fleet) == "capacity.silent"


# Addresses.


def test_a_verdict_about_another_url_says_nothing() -> None:
    """The node has moved while its name was looked up."""
    _, fleet = known()
    verdict = GateVerdict("address", "address.not-allowed", "")
    fleet.addresses.set_verdict("a", "https://elsewhere", verdict)
    assert code(fleet) is None
    fleet.addresses.set_verdict("a", "https://192.0.2.1", verdict)
    assert code(fleet) == "address.not-allowed"


def test_a_node_that_moves_is_judged_anew() -> None:
    """Its new address says nothing of the old one."""
    clock = Moved()
    refused = GateVerdict("address", "address.not-allowed", "")
    fleet = Fleet(
        Table([WORKLOAD]),
        Clock(lambda: clock.ms, lambda: clock.ticks),
        judge_url=lambda url: refused if "10.0" in url else None,
    )
    for number, (url, expected) in enumerate(
        [
            ("https://10.0.0.1", "address.not-allowed"),
            ("https://8.8.8.8", None),
            ("https://10.0.0.2", "address.not-allowed"),
        ]
    ):
        endpoint = {"url": url, "spki_sha256": "ab" * 32}
        fleet.put_node(view("a", iat=clock.seconds + number, exp=clock.seconds + 600, endpoint=endpoint))
        assert code(fleet) == expected
    assert fleet.addresses.refused_names() == []
