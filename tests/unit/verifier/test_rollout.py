"""Rollouts: each step as it is meant, what is refused, and the same nodes under a canary each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import RequestError
from verifier.policy import rollout
from verifier.policy.rollout import Rollout

START = Rollout("a", generation=7)
FULL = Rollout("a", shadow="s", canary="c", permille=250, generation=7)
PLACES = [193, 939, 372]
NODES = [f"{number:016x}" for number in range(20_000)]


def refusal(call: object, *args: object) -> RequestError:
    assert callable(call)
    with pytest.raises(RequestError) as error:
        call(*args)
    return error.value


# Steps.


def test_shadow_is_asked_beside() -> None:
    """And judges nobody."""
    found = rollout.shadow(START, "b")
    assert found == Rollout("a", shadow="b", generation=7)
    assert {found.policy_for(node) for node in NODES[:100]} == {"a"}


def test_shadow_ends() -> None:
    """Where nobody is to be asked."""
    assert rollout.shadow(FULL, None) == Rollout("a", canary="c", permille=250, generation=7)


def test_shadow_is_replaced() -> None:
    """There is one."""
    assert rollout.shadow(FULL, "b").shadow == "b"


def test_shadow_leaves_the_canary() -> None:
    """It goes on judging."""
    found = rollout.shadow(FULL, "b")
    assert (found.canary, found.permille) == ("c", 250)


def test_canary_judges_a_share() -> None:
    """And the active policy the others."""
    found = rollout.canary(START, "b", 100)
    assert found == Rollout("a", canary="b", permille=100, generation=7)
    assert {found.policy_for(node) for node in NODES[:100]} == {"a", "b"}


def test_shadow_that_becomes_the_canary_is_no_longer_asked_beside() -> None:
    """It would be compared with itself."""
    found = rollout.canary(Rollout("a", shadow="b"), "b", 100)
    assert (found.canary, found.shadow) == ("b", None)


def test_canary_leaves_another_shadow() -> None:
    """Both go on."""
    assert rollout.canary(FULL, "b", 100).shadow == "s"


def test_canary_grows_and_shrinks() -> None:
    """A step to another share of the same policy."""
    assert rollout.canary(FULL, "c", 500).permille == 500
    assert rollout.canary(FULL, "c", 1).permille == 1


def test_canary_is_replaced() -> None:
    """There is one."""
    found = rollout.canary(FULL, "d", 10)
    assert (found.canary, found.permille) == ("d", 10)


def test_canary_of_all_judges_all() -> None:
    """1000 thousandths leave nobody out."""
    found = rollout.canary(START, "b", 1000)
    assert {found.policy_for(node) for node in NODES} == {"b"}


def test_promoted_canary_judges_all() -> None:
    """And is no longer a canary."""
    assert rollout.promote(FULL, "c") == Rollout("c", shadow="s", generation=7)


def test_promoted_policy_need_not_be_the_canary() -> None:
    """The canary ends with it all the same."""
    assert rollout.promote(FULL, "d") == Rollout("d", shadow="s", generation=7)


def test_promoted_shadow_is_no_longer_asked_beside() -> None:
    """It would be compared with itself."""
    assert rollout.promote(Rollout("a", shadow="b"), "b") == Rollout("b")


def test_rollback_ends_the_canary_first() -> None:
    """Whatever was active before: all nodes are under the active policy again."""
    assert rollout.rollback(FULL, "z") == Rollout("a", shadow="s", generation=7)


def test_rollback_ends_the_canary_of_a_first_policy() -> None:
    """Nothing need have been active before."""
    assert rollout.rollback(FULL, None).canary is None


def test_rollback_goes_back_to_what_was_before() -> None:
    """Where there is no canary."""
    assert rollout.rollback(START, "z") == Rollout("z", generation=7)


def test_rollback_to_the_shadow_asks_it_no_longer() -> None:
    """It judges instead."""
    assert rollout.rollback(Rollout("b", shadow="a"), "a") == Rollout("a")


def test_rollback_leaves_another_shadow() -> None:
    """It is asked beside whatever judges."""
    assert rollout.rollback(Rollout("b", shadow="s"), "a").shadow == "s"


def test_rollback_undoes_a_canary_exactly() -> None:
    """In one call."""
    assert rollout.rollback(rollout.canary(START, "b", 400), None) == START


def test_rollback_undoes_a_promotion_exactly() -> None:
    """In one call."""
    assert rollout.rollback(rollout.promote(START, "b"), "a") == START


# Refusals.


def test_active_policy_is_no_shadow() -> None:
    """It would be compared with itself."""
    assert refusal(rollout.shadow, START, "a").code == "policy.state"


def test_active_policy_is_no_canary() -> None:
    """It judges everybody already."""
    assert refusal(rollout.canary, START, "a", 10).code == "policy.state"


def test_active_policy_is_not_promoted() -> None:
    """Also not to end another's canary by the way."""
    assert refusal(rollout.promote, FULL, "a").code == "policy.state"


def test_nothing_before_is_nothing_to_go_back_to() -> None:
    """The first policy stays."""
    error = refusal(rollout.rollback, START, None)
    assert error.code == "policy.state"
    assert "no other policy was active before" in str(error)


@pytest.mark.parametrize("permille", [0, -1, 1001, 100_000])
def test_share_beyond_its_bounds_is_refused(permille: int) -> None:
    """None is said by a rollback, and more than all is a mistake."""
    error = refusal(rollout.canary, START, "b", permille)
    assert error.code == "request.malformed"
    assert "between 1 and 1000 thousandths" in str(error)


@pytest.mark.parametrize("permille", [1, 1000])
def test_share_at_its_bounds_is_taken(permille: int) -> None:
    """The bounds still pass."""
    assert rollout.canary(START, "b", permille).permille == permille


def test_steps_change_nothing_in_place() -> None:
    """They are pure: what stands is kept until it is replaced."""
    before = (FULL.active, FULL.shadow, FULL.canary, FULL.permille)
    rollout.shadow(FULL, None)
    rollout.canary(FULL, "d", 1)
    rollout.promote(FULL, "d")
    rollout.rollback(FULL, "z")
    assert (FULL.active, FULL.shadow, FULL.canary, FULL.permille) == before


# Shares.


def test_without_a_canary_all_are_under_the_active_policy() -> None:
    """Whatever share is left over."""
    assert {Rollout("a", permille=1000).policy_for(node) for node in NODES[:100]} == {"a"}


@given(st.text(max_size=40), st.integers(1, 1000), st.integers(1, 1000))
def test_larger_share_only_adds_nodes(node: str, one: int, other: int) -> None:
    """A node under the canary stays there while it grows."""
    less, more = (rollout.canary(START, "b", permille) for permille in sorted((one, other)))
    if less.policy_for(node) == "b":
        assert more.policy_for(node) == "b"


@given(st.text(max_size=40), st.integers(1, 1000))
def test_share_is_the_same_for_each_policy(node: str, permille: int) -> None:
    """The nodes that go first are the node's doing, not the policy's."""
    found = [rollout.canary(START, policy, permille).policy_for(node) == policy for policy in ("b", "c")]
    assert found[0] == found[1]


@given(st.text(max_size=40))
def test_place_is_within_thousandths(node: str) -> None:
    """And the same each time it is asked."""
    assert 0 <= rollout.bucket(node) <= 999
    assert rollout.bucket(node) == rollout.bucket(node)


def test_places_are_those_of_the_versions_before() -> None:
    """A restart or an update moves nobody between policies."""
    assert [rollout.bucket(node) for node in ("", "n1", "0123456789abcdef")] == PLACES


@pytest.mark.parametrize("permille", [10, 50, 250, 500, 900])
def test_share_is_about_what_was_asked_for(permille: int) -> None:
    """Over many nodes, within five standard deviations."""
    found = rollout.canary(START, "b", permille)
    under = sum(found.policy_for(node) == "b" for node in NODES)
    share = permille / 1000
    allowed = 5 * (len(NODES) * share * (1 - share)) ** 0.5
    assert abs(under - len(NODES) * share) < allowed


def test_first_thousandth_takes_some_node() -> None:
    """The smallest share is not nobody."""
    found = rollout.canary(START, "b", 1)
    assert 0 < sum(found.policy_for(node) == "b" for node in NODES) < 60
