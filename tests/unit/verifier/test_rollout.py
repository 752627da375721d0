"""Which policy judges which node: pure steps, and shares that are stable by the node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import RequestError
from verifier.policy import rollout as steps
from verifier.policy.rollout import Rollout

FIRST = Rollout("a")
names = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(names, st.integers(1, 1000), st.integers(1, 1000))
def test_a_larger_share_only_adds_nodes(node: str, one: int, other: int) -> None:
    """A node that is a canary at a small share is one at every larger one."""
    small, large = sorted((one, other))
    under = [replace(FIRST, canary="b", permille=share).policy_for(node) for share in (small, large)]
    assert under in (["a", "a"], ["a", "b"], ["b", "b"])


@pytest.mark.parametrize("permille", [10, 200, 500])
def test_a_share_is_about_that_many(permille: int) -> None:
    """Of ten thousand nodes, within a fifth."""
    rollout = replace(FIRST, canary="b", permille=permille)
    found = sum(rollout.policy_for(f"{number:016x}") == "b" for number in range(10_000))
    assert 0.8 * permille * 10 < found < 1.2 * permille * 10


def test_all_and_none() -> None:
    """A thousand thousandths are all nodes; without a canary it is none."""
    assert {replace(FIRST, canary="b", permille=1000).policy_for(str(n)) for n in range(500)} == {"b"}
    assert {FIRST.policy_for(str(n)) for n in range(500)} == {"a"}


def test_the_way_there_and_back() -> None:
    """Shadow, canary, active; a rollback ends the canary first, and then goes back."""
    shadowed = steps.shadow(FIRST, "b")
    assert (shadowed.active, shadowed.shadow) == ("a", "b")
    canary = steps.canary(shadowed, "b", 50)
    assert (canary.active, canary.canary, canary.permille, canary.shadow) == ("a", "b", 50, None)
    assert steps.rollback(canary, None) == FIRST
    promoted = steps.promote(canary, "b")
    assert promoted == Rollout("b")
    assert steps.rollback(promoted, "a") == FIRST
    assert steps.shadow(shadowed, None) == FIRST


def test_a_shadow_of_another_stays() -> None:
    """Promoting one does not end the look at another."""
    assert steps.promote(steps.shadow(FIRST, "c"), "b").shadow == "c"


@pytest.mark.parametrize(
    "step",
    [
        lambda: steps.promote(FIRST, "a"),
        lambda: steps.canary(FIRST, "a", 10),
        lambda: steps.shadow(FIRST, "a"),
        lambda: steps.canary(FIRST, "b", 0),
        lambda: steps.canary(FIRST, "b", 1001),
        lambda: steps.rollback(FIRST, None),
    ],
    ids=["promote", "canary", "shadow", "no share", "too large a share", "nothing before"],
)
def test_what_is_no_step(step) -> None:
    """Refused, not guessed at."""
    with pytest.raises(RequestError):
        step()
