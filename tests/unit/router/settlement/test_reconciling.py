"""The rule for claims: what is ours is never held against a node, and what is claimed too much always is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from attester.usage_claims import UNKNOWN, UsageClaim, make
from router.model.usage import Tolerance, Usage
from router.settlement.exchanges import Exchange, Passing
from router.settlement.periods import DAY_MS, read_period
from router.settlement.reconciling import Gap, Judgement, Metering, Verdict, reconcile

WEEK = read_period("2026-W49")
NOON = DAY_MS // 2


def exchange(number: int, at_ms: int, **how: Any) -> Exchange:
    given = {
        "id": f"{number:032x}", "at_ms": at_ms, "client": f"c{number % 9}", "node": "n", "operator": "o", "model": "m",
        "counted": Usage(1000, 100), "is_exact": True, "claimed": Usage(1000, 100),
    }  # fmt: skip
    return Exchange(**{**given, **how})


def spread(many: int = 70, **how: Any) -> list[Exchange]:
    """At noon of each day in turn."""
    return [exchange(n, WEEK.from_ms + n % 7 * DAY_MS + NOON, **how) for n in range(many)]


def claim(exchanges: int, usage: Usage, day: str = WEEK.days[0], **how: Any) -> tuple[str, UsageClaim]:
    given = {"node": "n", "model": "m", "operator": "o", **how}
    used = {given["model"]: (exchanges, usage.prompt, usage.completion)}
    return given["operator"], make(given["node"], "r", day, used)


def judge(exchanges: list[Exchange], *claims: tuple[str, UsageClaim], **how: Any) -> list[Judgement]:
    metering = Metering(WEEK)
    for each in exchanges:
        metering.add(each)
    return reconcile(metering, claims, **how)


def verdict(exchanges: list[Exchange], *claims: tuple[str, UsageClaim], **how: Any) -> Verdict:
    found = judge(exchanges, *claims, **how)
    assert len(found) == 1
    return found[0].verdict


TRUE = Usage(70_000, 7000)


def test_what_was_told_in_the_answers_may_be_claimed() -> None:
    assert verdict(spread(), claim(70, TRUE)) is Verdict.WITHIN


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # 70 answers: a quarter of 7000 and 8 for each; half of 7560.
        (7000 * 125 // 100 + 560, Verdict.WITHIN),
        (7000 * 125 // 100 + 561, Verdict.MINOR),
        ((7000 + 560) * 150 // 100, Verdict.MINOR),
        ((7000 + 560) * 150 // 100 + 1, Verdict.SERIOUS),
    ],
)
def test_the_thresholds_are_exact(completion: int, expected: Verdict) -> None:
    assert verdict(spread(), claim(70, Usage(70_000, completion))) is expected


def test_thresholds_come_from_the_configuration() -> None:
    strict = Tolerance(percent=1, large_percent=2, answer_tokens=0, prompt_tokens=0)
    assert verdict(spread(), claim(70, Usage(70_000, 7071)), tolerance=strict) is Verdict.MINOR
    assert verdict(spread(), claim(70, Usage(70_000, 7141)), tolerance=strict) is Verdict.SERIOUS


def test_prompts_are_judged_as_answers_are() -> None:
    found = judge(spread(), claim(70, Usage(500_000, 7000)))[0]
    assert (found.verdict, found.part) == (Verdict.SERIOUS, "prompt")


def test_work_that_was_never_routed_is_claimed_in_vain() -> None:
    assert verdict([], claim(70, TRUE)) is Verdict.SERIOUS


def test_a_model_that_was_never_routed_does_not_hide_behind_another() -> None:
    claims = make("n", "r", WEEK.days[0], {"m": (70, 70_000, 7000), "x": (70, 70_000, 7000)})
    found = judge(spread(), ("o", claims))
    assert [(each.model, each.verdict) for each in found] == [("m", Verdict.WITHIN), ("x", Verdict.SERIOUS)]


def test_a_node_that_claims_nothing_is_not_judged() -> None:
    assert verdict(spread()) is Verdict.UNCLAIMED


def test_few_exchanges_are_not_judged() -> None:
    assert verdict(spread(19), claim(19, Usage(10**9, 10**9))) is Verdict.TOO_FEW


@pytest.mark.parametrize("edge", ["before", "after"])
def test_a_clock_that_is_wrong_by_hours_moves_work_over_the_edge(edge: str) -> None:
    """All work was done within an hour of the edge, on the other side by the router's clock."""
    at = WEEK.from_ms - 3_600_000 if edge == "before" else WEEK.to_ms + 3_600_000
    moved = [exchange(n, at) for n in range(100, 170)]
    day = WEEK.days[0] if edge == "before" else WEEK.days[-1]
    assert verdict([*spread(), *moved], claim(140, Usage(140_000, 14_000), day)) is Verdict.WITHIN


def test_what_is_claimed_on_both_sides_of_the_edge_is_claimed_twice() -> None:
    moved = [exchange(n, WEEK.to_ms + 3_600_000) for n in range(100, 170)]
    both = [
        claim(140, Usage(140_000, 14_000), WEEK.days[-1]),
        claim(70, Usage(70_000, 7000), WEEK.day_after),
    ]
    assert verdict([*spread(), *moved], *both) is Verdict.SERIOUS


def test_an_exchange_at_the_very_edge_belongs_to_the_next_period() -> None:
    last, first = exchange(1, WEEK.to_ms - 1), exchange(2, WEEK.to_ms)
    metering = Metering(WEEK)
    metering.add(last)
    metering.add(first)
    assert metering.within["n", "m"].total.exchanges == 1


def test_as_many_as_a_router_can_have_lost_may_be_claimed() -> None:
    gap = Gap("r", WEEK.from_ms, WEEK.from_ms + 1, 70, "killed")
    claims = claim(140, Usage(140_000, 14_000))
    assert verdict(spread(), claims, gaps=[gap]) is Verdict.WITHIN
    assert verdict(spread(), claims, gaps=[structs.replace(gap, lost=10)]) is Verdict.SERIOUS
    assert verdict(spread(), claims) is Verdict.SERIOUS


def test_lost_receipts_excuse_no_longer_answers() -> None:
    gap = Gap("r", WEEK.from_ms, WEEK.from_ms + 1, 1000, "killed")
    assert verdict(spread(), claim(70, Usage(70_000, 14_000)), gaps=[gap]) is Verdict.SERIOUS


def test_if_all_receipts_are_lost_nothing_is_judged() -> None:
    gap = Gap("r", WEEK.from_ms, WEEK.from_ms + 1, 70, "killed")
    assert verdict([], claim(70, TRUE), gaps=[gap]) is Verdict.UNJUDGED


def test_a_gap_of_another_time_excuses_nothing() -> None:
    gap = Gap("r", WEEK.to_ms, WEEK.to_ms + 1, 70, "killed")
    assert verdict([], claim(70, TRUE), gaps=[gap]) is Verdict.SERIOUS


def test_what_the_router_cannot_count_may_be_claimed_as_it_was_told() -> None:
    told = Usage(1000, 900)
    assert verdict(spread(claimed=told, is_exact=False), claim(70, Usage(70_000, 63_000))) is Verdict.WITHIN
    assert verdict(spread(claimed=told), claim(70, Usage(70_000, 63_000))) is Verdict.SERIOUS


def test_tokens_of_a_chat_template_may_be_claimed() -> None:
    claims = claim(70, Usage(70_000 * 3, 7000))
    assert verdict(spread(template=2000), claims) is Verdict.WITHIN
    assert verdict(spread(), claims) is Verdict.SERIOUS


def test_an_answer_that_was_not_taken_may_be_claimed_and_is_not_paid() -> None:
    """Else two clients could ask for what a node does not do, and have it held."""
    passed = [
        structs.replace(each, node="other", passed=(Passing("n", Usage(1000, 100)),)) for each in spread()
    ]
    found = {each.node: each for each in judge(passed, claim(70, TRUE))}
    assert found["n"].verdict is Verdict.WITHIN
    assert found["n"].operator == "o"


@pytest.mark.parametrize(("liars", "expected"), [(2, Verdict.UNCONFIRMED), (6, Verdict.SERIOUS)])
def test_two_clients_hold_no_node(liars: int, expected: Verdict) -> None:
    """What they ask is counted wrongly: the node tells, and claims, ten times what was counted."""
    exchanges = [
        structs.replace(each, claimed=Usage(1000, 1000)) if int(each.id, 16) % 9 < liars else each
        for each in spread(90)
    ]
    told = sum(each.claimed.completion for each in exchanges if each.claimed)
    assert verdict(exchanges, claim(90, Usage(90_000, told))) is expected


def test_one_client_alone_does_not_hide_what_was_never_told() -> None:
    assert verdict(spread(client="one"), claim(70, Usage(70_000, 70_000))) is Verdict.SERIOUS


def test_if_as_many_operators_mismatch_as_match_the_router_is_suspect() -> None:
    exchanges, claims = [], []
    for place in range(6):
        name = f"n{place}"
        exchanges += [structs.replace(each, node=name, operator=name) for each in spread()]
        much = Usage(70_000, 70_000) if place < 3 else TRUE
        claims.append(claim(70, much, node=name, operator=name))
    found = [each.verdict for each in judge(exchanges, *claims)]
    assert found == [Verdict.ROUTER_SUSPECT] * 3 + [Verdict.WITHIN] * 3


def test_many_names_of_one_operator_do_not_make_the_router_suspect() -> None:
    exchanges, claims = [], []
    for place in range(6):
        name, operator = f"n{place}", "cheat" if place < 5 else "honest"
        exchanges += [structs.replace(each, node=name, operator=operator) for each in spread()]
        claims.append(claim(70, Usage(70_000, 70_000) if place < 5 else TRUE, node=name, operator=operator))
    assert [each.verdict for each in judge(exchanges, *claims)] == [Verdict.SERIOUS] * 5 + [Verdict.WITHIN]


def test_models_that_a_front_has_not_seen_are_judged_together() -> None:
    exchanges = [structs.replace(each, model=f"m{int(each.id, 16) % 2}") for each in spread()]
    claims = make("n", "r", WEEK.days[0], {UNKNOWN: (35, 35_000, 3500), "m0": (35, 35_000, 3500)})
    found = judge(exchanges, ("o", claims))
    assert [(each.model, each.verdict) for each in found] == [(UNKNOWN, Verdict.WITHIN)]


@given(
    st.lists(st.tuples(st.integers(0, 9 * DAY_MS), st.integers(0, 5000), st.integers(0, 500)), max_size=60)
)
def test_who_claims_what_was_counted_is_always_within(drawn: list[tuple[int, int, int]]) -> None:
    """Whatever the times, by day of UTC, with a clock that is right."""
    from router.settlement.periods import day_of

    exchanges, by_day = [], {}
    for number, (after, prompt, completion) in enumerate(drawn):
        at = WEEK.from_ms - DAY_MS + after
        usage = Usage(prompt, completion)
        exchanges.append(exchange(number, at, counted=usage, claimed=usage))
        n, p, c = by_day.get(day_of(at), (0, 0, 0))
        by_day[day_of(at)] = (n + 1, p + prompt, c + completion)
    claims = [("o", make("n", "r", day, {"m": counts})) for day, counts in by_day.items()]
    found = judge(exchanges, *claims, least=1)
    assert {each.verdict for each in found} <= {Verdict.WITHIN, Verdict.UNCLAIMED}
