"""Whether several nodes share one device, by simultaneous calls against calls alone."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.unit.verifier.test_rates import MODEL, context, reference, walk
from verifier.config import default_policy
from verifier.policy import bundle
from verifier.schemes import weights
from verifier.schemes.context import Submods, WalkRecord
from verifier.schemes.findings import CheckedSubmod
from verifier.schemes.walks import slowdown_permille

SUBMOD = f"model/{MODEL}"


def wide(ms: int | None, *, together: bool, **changes: Any) -> WalkRecord:
    return walk(ms, wide=True, together=together, rows=2048, **changes)


def alone(*times: int) -> list[WalkRecord]:
    return [wide(ms, together=False) for ms in times]


def together(*times: int) -> list[WalkRecord]:
    return [wide(ms, together=True) for ms in times]


def checked(*history: WalkRecord, hardware: str = "cpu", **thresholds: Any) -> CheckedSubmod:
    found = context(*history, weights=reference(1_000_000), hardware=hardware, **thresholds)
    return weights.check(SUBMOD, Submods({SUBMOD: {}}, {}), found)


def standing(*history: WalkRecord, **options: Any) -> str:
    found: str = checked(*history, **options).facts.walk
    return found


def test_two_nodes_in_turns_on_one_device_take_twice_as_long() -> None:
    """Time-sliced: each walk waits for half of the other's slices."""
    history = [*alone(1000, 1010, 990), *together(2000, 2020, 1980)]
    assert slowdown_permille(history) == 1990
    found = checked(*history)
    assert found.facts.walk == "shared"
    (finding,) = [f for f in found.findings if f.code == "weights.walk.shared"]
    assert finding.detail == "called together with others, the node took 2.0 times as long as alone"
    assert "executables" not in found.may_affirm


@pytest.mark.parametrize("calls", [3, 4, 5])
def test_two_nodes_served_one_after_the_other_are_found_out(calls: int) -> None:
    """One answers at once and the other waits; whatever the order, one of the two is told, if not both."""
    for order in product((1000, 2000), repeat=calls):
        one = standing(*alone(1000, 1000, 1000), *together(*order))
        other = standing(*alone(1000, 1000, 1000), *together(*(3000 - ms for ms in order)))
        assert "shared" in (one, other), order


def test_a_device_each_is_no_slower_together() -> None:
    """A little noise is not held against anyone."""
    history = [*alone(1000, 900, 1100), *together(1100, 1000, 1200)]
    assert slowdown_permille(history) == 1050
    found = checked(*history)
    assert found.facts.walk == "called"
    assert found.may_affirm["executables"] == -2
    assert not [f for f in found.findings if f.code.startswith("weights.walk.")]


def test_at_the_threshold_nothing_is_said() -> None:
    """That of the default policy: below it a device may merely be busy; a thousandth more is shared."""
    threshold = bundle.load(default_policy()).thresholds.shared_permille
    history = alone(1000, 1000, 1000)
    assert standing(*history, *together(*[threshold] * 3), shared_permille=threshold) == "called"
    assert standing(*history, *together(*[threshold + 1] * 3), shared_permille=threshold) == "shared"
    # One after the other is half as long again on average, and in turns is twice as long.
    assert 1000 < threshold < 1500


def test_the_threshold_is_the_policys() -> None:
    """In thousandths of the time alone."""
    history = [*alone(1000, 1000, 1000), *together(1700, 1700, 1700)]
    assert standing(*history, shared_permille=1699) == "shared"
    assert standing(*history, shared_permille=1700) == "called"


@pytest.mark.parametrize(("by_itself", "simultaneous"), [(0, 5), (2, 5), (5, 2), (5, 0), (2, 2), (0, 0)])
def test_before_there_are_enough_of_both_nothing_is_said(by_itself: int, simultaneous: int) -> None:
    """Three and three at least."""
    history = [*alone(*[1000] * by_itself), *together(*[9000] * simultaneous)]
    assert slowdown_permille(history) is None
    enough = [*alone(*[1000] * max(by_itself, 3)), *together(*[9000] * max(simultaneous, 3))]
    assert slowdown_permille(enough) == 9000


def test_narrow_walks_tell_nothing() -> None:
    """They are limited by memory, and two go through as fast as one."""
    narrow = [walk(9000, together=True)] * 5
    assert slowdown_permille([*alone(1000, 1000, 1000), *narrow]) is None
    assert slowdown_permille([*narrow, *alone(1000, 1000, 1000), *together(1000, 1000, 1000)]) == 1000


def test_untimed_walks_tell_nothing() -> None:
    """Where several models were asked at once, the time is not that of one walk."""
    untimed = [wide(None, together=True)] * 5
    assert slowdown_permille([*alone(1000, 1000, 1000), *untimed]) is None


def test_only_the_newest_five_of_each_count() -> None:
    """A node that was given a device of its own is believed after five calls."""
    history = [*alone(*[1000] * 5), *together(*[2000] * 9)]
    assert slowdown_permille([*history, *together(*[1000] * 3)]) == 1250
    assert slowdown_permille([*history, *together(*[1000] * 4)]) == 1000
    assert slowdown_permille([*history, *alone(*[2000] * 5)]) == 1000


def test_one_slow_walk_alone_does_not_hide_it() -> None:
    """The median of those alone: a node gains nothing by being slow once."""
    assert slowdown_permille([*alone(1000, 1000, 60_000), *together(2000, 2000, 2000)]) == 2000


def test_one_slow_answer_together_is_not_held_against_a_node() -> None:
    """It may have had a reason of its own."""
    assert slowdown_permille([*alone(1000, 1000, 1000), *together(1000, 1000, 60_000)]) == 1000


def test_walks_of_other_sizes_are_not_compared() -> None:
    """Challenges minted anew with twice the rows take twice as long."""
    larger = [wide(2000, together=True, passes=2)] * 3
    assert slowdown_permille([*alone(1000, 1000, 1000), *larger]) is None


def test_walks_that_are_mostly_network_tell_nothing() -> None:
    """A few milliseconds more are no second device."""
    assert slowdown_permille([*alone(4, 4, 4), *together(9, 9, 9)]) is None


def test_what_was_shown_of_another_reference_is_void() -> None:
    """Other weights take another time."""
    other = [wide(9000, together=True, reference="superseded")] * 5
    assert standing(*alone(1000, 1000, 1000), *other) == "called"


def test_wrong_and_announced_answers_tell_nothing() -> None:
    """Neither stands for time on the device."""
    slow = [wide(9000, together=True, verdict="wrong"), wide(9000, together=True, channel="announced")]
    assert standing(*slow * 5, *alone(1000, 1000, 1000), *together(1000, 1000, 1000)) == "called"


def test_late_is_said_before_shared() -> None:
    """One thing at a time, the plainer one first."""
    late = [
        *(wide(1000, together=False, lateness=1001) for _ in range(5)),
        *(wide(9000, together=True, lateness=1001) for _ in range(5)),
    ]
    assert standing(*late) == "late"


def test_shared_is_said_of_gpus_before_untimed() -> None:
    """That the model is too small to time must not hide that the device is another's too."""
    history = [*alone(1000, 1000, 1000), *together(2000, 2000, 2000)]
    assert standing(*history, hardware="gpu") == "shared"
    assert standing(*alone(1000, 1000, 1000), hardware="gpu") == "untimed"
