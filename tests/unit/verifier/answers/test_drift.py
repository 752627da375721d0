"""Shifts: what of a check counts, the stated rates of false alarms, and who can make all nodes of a version shift."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import judged as checks
from verifier.answers import days, drift
from verifier.answers.days import Counts
from verifier.answers.drift import OperatorScores, Scores, Seen, Usual
from verifier.answers.judge import judge
from verifier.answers.tables import Rates, Table, table_for

LLAMA = checks.engine("llama.cpp")
TABLE = table_for(LLAMA, "llama.cpp")
RATES = json.loads((Path(__file__).parents[4] / "fixtures" / "answer_rates.json").read_text())["pairs"]


def seen(ours: Any, theirs: Any, table: Table = TABLE) -> Seen:
    return drift.look(ours, theirs, judge(ours, theirs, table), table)


# What of a check counts.

MINTED = checks.minted()
NEAR = checks.minted(tokens=tuple(checks.token(word, 0.1) for word in checks.WORDS))


def test_an_answer_that_agrees() -> None:
    """It does not differ, nor part; without numbers it says nothing of distances."""
    assert seen(MINTED, checks.given(MINTED.text)) == Seen(differs=False, parts=False, far=None)


def test_an_answer_that_differs_parts_too() -> None:
    """Beyond the tolerance."""
    assert seen(MINTED, checks.given("The sea is green.")) == Seen(differs=True, parts=True, far=None)


def test_an_answer_that_may_part_parts() -> None:
    """It is no difference, and yet it is seen: a share of them that grows is a shift."""
    assert seen(NEAR, checks.given("The sea is calm other")) == Seen(differs=None, parts=True, far=None)


def test_a_failed_exchange_says_nothing() -> None:
    """It is the router's to book."""
    assert seen(MINTED, checks.given("", outcome="crashed")) == Seen(None, None, None)


def test_drawn_answers_do_not_part() -> None:
    """True weights draw others beside other requests."""
    assert seen(checks.minted(seeded=True), checks.given("The sky")).parts is None


@pytest.mark.parametrize(("distance", "is_far"), [(0.009, False), (0.0125, True), (0.03, True)])
def test_vectors_near_the_limit_are_seen_before_it(distance: float, *, is_far: bool) -> None:
    """The limit of bfloat16 is 0.0155."""
    ours = checks.minted(
        operation="embeddings", text=None, tokens=None, vectors=checks.vectors(), finish_reason=None
    )
    assert seen(ours, checks.given(None, vectors=checks.vectors(distance))).far is is_far


def test_the_distance_of_distributions_is_known_where_they_agree() -> None:
    """What is within the limit moves too."""
    theirs = checks.given(MINTED.text, tokens=MINTED.tokens)
    verdict = judge(MINTED, theirs, TABLE)
    assert (verdict.kind, verdict.distance) == ("agrees", 0.0)
    assert seen(MINTED, theirs).far is False


# The scores.


@pytest.mark.parametrize("usual", [0.05, 0.1, 0.29, 0.57, 0.66, 0.8, 0.9])
def test_a_score_is_a_fair_bet_at_the_usual_rate(usual: float) -> None:
    """The exponential of a step has a mean of 1: this is what the rate of false alarms rests on."""
    down, up = drift.steps(usual)
    assert (1 - usual) * math.exp(down) + usual * math.exp(up) == pytest.approx(1.0)
    assert down < 0 < up
    assert usual < drift.least_seen(usual) < usual + drift.DESIGN * (1 - usual)


@pytest.mark.parametrize("pair", [each for each in RATES if each["honest"]], ids=lambda each: each["run"])
def test_the_table_is_above_what_honest_engines_did(pair: dict[str, Any]) -> None:
    """In the recordings of real engines: parting is below the upper limit, and hardly a distance is near the limit."""
    if pair["reference"]["temperature"]:
        pytest.skip("drawn answers are not watched for parting")
    kind = {"bf16": "bfloat16", "smollm2": "bfloat16"}.get(
        pair["reference"]["file"], pair["reference"]["file"]
    )
    table = table_for(checks.engine(pair["reference"]["engine"], dtype=kind), pair["node"]["engine"])
    assert table.measured
    assert pair["parted"]["high"] <= drift.usual_of(table).parts + 0.005
    assert pair["distance"]["median"] < drift.NEAR * (table.distribution_limit or 0)


@pytest.mark.parametrize("run", ["q8_0-4", "q4_0-4", "pruned-4"])
def test_other_weights_are_above_what_is_found(run: str) -> None:
    """llama.cpp with 8 bits: it parts more often, and its distances are near the limit or above."""
    (pair,) = [each for each in RATES if each["run"] == run and each["reference"]["file"] == "bf16"
               and each["reference"]["engine"] == "llama.cpp" and not each["reference"]["temperature"]]  # fmt: skip
    assert pair["parted"]["low"] > drift.least_seen(TABLE.parted)
    assert pair["distance"]["least"] > drift.NEAR * (TABLE.distribution_limit or 0)


def checks_until(usual: Usual, parts: float, limit: float, rng: np.random.Generator, most: int = 5000) -> int:
    scores = Scores()
    for number in range(1, most):
        saw = Seen(None, bool(rng.random() < parts), None)
        scores = drift.advance_scores(scores, saw, usual, None)
        if scores.parts >= limit:
            return number
    return most


def test_a_shift_is_found_and_what_is_usual_is_not() -> None:
    """llama.cpp at 8 bits parts in 3 of 4 answers; at its usual rate nobody is found in 5,000 checks."""
    rng = np.random.default_rng(17)
    usual = drift.usual_of(TABLE)
    assert max(checks_until(usual, 0.75, drift.NODE_LIMIT, rng) for _ in range(10)) < 120
    assert checks_until(usual, usual.parts, drift.NODE_LIMIT, rng) == 5000


def test_a_slow_shift_is_found_as_a_sudden_one() -> None:
    """What is usual does not move along: steps of 1 % come to the same."""
    rng = np.random.default_rng(18)
    usual, scores, rate = drift.usual_of(TABLE), Scores(), 0.2
    for number in range(4000):
        rate = min(0.75, 0.2 + 0.01 * (number // 50))
        scores = drift.advance_scores(scores, Seen(None, bool(rng.random() < rate), None), usual, None)
        if drift.shifted_channels(scores):
            break
    assert drift.shifted_channels(scores) == ("parts",)
    assert rate < 0.6


def test_a_score_comes_down_again() -> None:
    """It has a ceiling, and answers as usual bring it to 0."""
    usual, scores = Usual(0.29, 0.1), Scores()
    for _ in range(500):
        scores = drift.advance_scores(scores, Seen(None, True, True), usual, None)
    assert scores == Scores(0.0, drift.HIGHEST, drift.HIGHEST)
    for _ in range(100):
        scores = drift.advance_scores(scores, Seen(None, False, False), usual, None)
    assert scores == Scores()


def test_the_score_of_differences_goes_by_the_table_alone() -> None:
    """What a person accepts as usual does not touch it."""
    rates = Rates(0.004, 0.9)
    for usual in (Usual(0.05, 0.1), Usual(0.9, 0.9)):
        scores = drift.advance_scores(Scores(), Seen(True, None, None), usual, rates)
        assert scores.differs == pytest.approx(math.log((0.004 + 0.05 * 0.896) / 0.004))


# All nodes of a version.


def operators(*found: tuple[float, int, int]) -> list[OperatorScores]:
    return [
        OperatorScores(operator=f"op-{number}", scores=Scores(parts=score), checks=checked, nodes=nodes)
        for number, (score, checked, nodes) in enumerate(found)
    ]


HIGH = 12.0


def test_most_operators_make_a_shift() -> None:
    """Of most of the nodes."""
    found = drift.find_shift(operators((HIGH, 50, 2), (HIGH, 50, 2), (HIGH, 50, 2), (0.0, 50, 2)))
    assert found == drift.Shift("parts", 3, 4, 6, 8)


NO_SHIFT = {
    "one operator with many nodes": [(HIGH, 5000, 500), (0.0, 50, 1), (0.0, 50, 1)],
    "two operators, who are all": [(HIGH, 500, 50), (HIGH, 500, 50)],
    "two of three": [(HIGH, 500, 50), (HIGH, 500, 50), (0.0, 50, 1)],
    "two of four": [(HIGH, 500, 50), (HIGH, 500, 50), (0.0, 50, 1), (0.0, 50, 1)],
    "one operator alone with a version": [(HIGH, 500, 50)],
    "three of seven": [(HIGH, 50, 9)] * 3 + [(0.0, 50, 1)] * 4,
    "most operators, and few of the nodes": [(HIGH, 50, 1)] * 3 + [(0.0, 50, 10)],
    "scores that chance may give": [(4.9, 50, 1)] * 3,
    "nobody": [],
}


@pytest.mark.parametrize("name", NO_SHIFT)
def test_it_is_no_shift_of_all(name: str) -> None:
    """Then each node is judged by itself."""
    assert drift.find_shift(operators(*NO_SHIFT[name])) is None


@pytest.mark.parametrize("count", [*range(3, 13), 20, 63, 64, 65, 100, 400])
def test_the_limit_keeps_the_chance_of_a_false_shift(count: int) -> None:
    """By the exact tail, whatever the number of operators; and each of them must show something."""
    limit = drift.version_limit(count)
    assert limit is not None
    least, chance = drift.most_of(count), math.exp(-limit)
    tail = math.fsum(
        math.comb(count, n) * chance**n * (1 - chance) ** (count - n) for n in range(least, count + 1)
    )
    assert tail <= drift.VERSION_ALARMS / 3 * 1.0001
    assert limit >= drift.LEAST_LIMIT
    assert 2 * least > count
    assert drift.version_limit(100_000) == drift.LEAST_LIMIT


def test_honest_operators_are_below_the_bound_by_simulation() -> None:
    """The bound on one operator: at the usual rate its score is at b or above in at most exp(-b) of all moments."""
    rng = np.random.default_rng(19)
    down, up = drift.steps(0.29)
    scores, above = np.zeros(4000), 0
    for number in range(400):
        scores = np.maximum(scores + np.where(rng.random(4000) < 0.29, up, down), 0.0)
        above += int((scores >= 3.0).sum()) if number >= 200 else 0
    assert 0 < above / (200 * 4000) <= math.exp(-3.0)


# What a person accepts.


def test_the_median_operator_says_what_is_usual() -> None:
    """One operator moves nothing, however much it does."""
    honest = {f"op-{n}": Counts(parts=30, parts_of=100, far=2, far_of=100) for n in range(4)}
    alone = {"cheat": Counts(parts=100_000, parts_of=100_000, far=100_000, far_of=100_000)}
    usual = drift.accept({**honest, **alone})
    assert usual == drift.accept({**honest, "other": honest["op-0"]})
    assert usual is not None
    assert usual.parts is not None
    assert 0.3 < usual.parts < 0.45
    assert usual.far == drift.USUAL_FAR


def test_two_operators_say_nothing() -> None:
    """Nor do many that were hardly checked."""
    some = Counts(parts=30, parts_of=100)
    assert drift.accept({"a": some, "b": some}) is None
    assert drift.accept({f"op-{n}": Counts(parts=5, parts_of=19) for n in range(9)}) is None


def test_what_is_usual_leaves_room_for_a_shift() -> None:
    """Also where nearly every answer parts."""
    found = drift.accept({f"op-{n}": Counts(parts=100, parts_of=100) for n in range(3)})
    assert found is not None
    assert found == drift.Accepted(drift.MOST_USUAL, None)
    usual = drift.usual_of(TABLE, found)
    assert usual == Usual(drift.MOST_USUAL, drift.USUAL_FAR)
    assert drift.least_seen(usual.parts) < 1


# Counts.


@given(st.lists(st.floats(0, 1e12, allow_nan=False), max_size=40))
def test_a_distance_is_below_the_end_of_its_bucket(found: list[float]) -> None:
    """And the median is one of theirs, to a quarter of a decade."""
    buckets: dict[int, int] = {}
    for distance in found:
        number = days.bucket(distance)
        buckets[number] = buckets.get(number, 0) + 1
        assert distance <= days.top_of(number) * 1.0001 or distance > 90
    assert days.decode(days.encode(buckets)) == buckets
    median = days.quantile(buckets, 0.5)
    assert (median is None) == (not found)


def test_counts_of_days_are_put_together() -> None:
    """Every count, and every bucket."""
    one = Counts(agrees=1, parts_of=2, distances={3: 1})
    two = Counts(agrees=2, differs=1, distances={3: 2, 9: 1})
    assert days.merge([one, two]) == Counts(agrees=3, differs=1, parts_of=2, distances={3: 3, 9: 1})


def test_what_people_see_is_counts_with_intervals() -> None:
    """A rate without its count says nothing."""
    said = days.shown(Counts(agrees=3, differs=1, censored=4, parts=5, parts_of=8))
    assert said["differs"] == {"count": 1, "of": 4, "rate": 0.25, "low": 0.04559, "high": 0.69936}
    assert (said["censored"]["count"], said["censored"]["of"], said["parts"]["rate"]) == (4, 8, 0.625)
    assert said["far"] == {"count": 0, "of": 0, "rate": None, "low": 0.0, "high": 1.0}


# What the pages say.

DOCS = Path(__file__).parents[4] / "docs"


def test_the_page_has_the_rates_of_the_tables() -> None:
    """Of what is usual, and from where on a score rises."""
    pairs = (("llama.cpp", "llama.cpp"), ("vllm", "vllm"), ("llama.cpp", "vllm"), ("sglang", "sglang"))
    usual = [drift.usual_of(table_for(checks.engine(ours), theirs)).parts for ours, theirs in pairs]
    said = "{:.0%} llama.cpp, {:.0%} vLLM, {:.0%} between the two, {:.0%} others".format(*usual).replace(
        "%", " %"
    )
    assert said in (DOCS / "drift.md").read_text()
    rises = [f"{drift.least_seen(rate):.0%}".replace("%", " %") for rate in (usual[0], usual[1], usual[3])]
    flat = " ".join((DOCS / "limitations.md").read_text().split())
    assert f"a score begins to rise at {rises[0]}, {rises[1]} and {rises[2]}" in flat


def test_the_page_has_the_bounds_of_false_alarms() -> None:
    """As the formula gives them; what was simulated is not above."""
    text = (
        (DOCS / "drift.md").read_text().partition("<!-- FALSE -->")[2].partition("<!-- end of FALSE -->")[0]
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.strip().splitlines()[2:]]
    assert len(rows) == 9
    for who, _, _, most, simulated in rows:
        count = int("".join(filter(str.isdigit, who.rpartition(",")[2])) or 0)
        if not count:
            expected = math.exp(-drift.NODE_LIMIT) * 1e6
        else:
            limit = 1.5 if "boundary" in who else drift.version_limit(count) or 0.0
            expected = drift.tail(count, math.exp(-limit)) * 1e6
        assert float(most.replace(",", "")) == pytest.approx(expected, rel=0.1)
        assert float(simulated.replace(",", "")) <= float(most.replace(",", ""))
