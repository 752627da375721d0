"""What is counted of a score, and at which rates."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from verifier.answers import peering, sequence, tables

REPORT = {
    "id": "ab" * 16, "model": "m", "node": "a", "result": "r", "by": "b", "by_result": "s", "at_ms": 1, "tokens": 10,
    "mean_nll": 1.0, "mean_gap": 0.0, "largest_gap": 0.0, "disagreements": 0,
}  # fmt: skip


def report(mean_gap: float) -> peering.PeerReport:
    numbers = {"mean_gap": mean_gap, "largest_gap": 9.0, "disagreements": 3}
    return msgspec.convert({**REPORT, **numbers}, peering.PeerReport)


@pytest.mark.parametrize("families", [("vllm", "vllm"), ("llama.cpp", "vLLM")])
def test_engines_that_were_measured_have_the_measured_limit(families: tuple[str, str]) -> None:
    assert tables.peer_limit(*families) == tables.PEER_LIMIT


@pytest.mark.parametrize(
    "families", [("", ""), ("vllm", ""), ("", "vllm"), ("sglang", "vllm"), ("vllm", "llama.cpp")]
)
def test_other_engines_have_four_times_as_much(families: tuple[str, str]) -> None:
    assert tables.peer_limit(*families) == 4 * tables.PEER_LIMIT


def test_at_the_limit_it_agrees() -> None:
    assert not peering.is_above(report(tables.PEER_LIMIT), tables.PEER_LIMIT)
    assert peering.is_above(report(tables.PEER_LIMIT * 1.01), tables.PEER_LIMIT)


GAPS: dict[str, list[float]] = msgspec.json.decode(
    (Path(__file__).parents[4] / "fixtures" / "peer_scores.json").read_bytes()
)["mean gaps"]


def above(run: str) -> tuple[int, int]:
    return sum(gap > tables.PEER_LIMIT for gap in GAPS[run]), len(GAPS[run])


@pytest.mark.parametrize("run", ["vllm-bf16", "vllm-bf16-4", "bf16-4", "f32-4"])
def test_the_rate_of_true_weights_is_not_above_the_tables(run: str) -> None:
    """By the upper 95 % limit of what was measured: at the rate of the table, so few or fewer would be rare."""
    high, count = above(run)
    rate = tables.PEER_RATES.honest
    as_few = math.fsum(math.comb(count, n) * rate**n * (1 - rate) ** (count - n) for n in range(high + 1))
    assert as_few < 0.05


@pytest.mark.parametrize("run", ["q4_0-4", "pruned-4"])
def test_the_rate_of_other_weights_is_not_below_the_tables(run: str) -> None:
    high, count = above(run)
    assert high / count >= tables.PEER_RATES.cheating


@pytest.mark.parametrize("rate", [0.0, 12 / 240, 14 / 240, tables.PEER_RATES.honest])
def test_true_weights_open_hardly_a_review(rate: float) -> None:
    """Up to the upper limit of the worst measured run: the mean of the step's exponential is at most 1 (Lorden)."""
    steps = sequence.increments(tables.PEER_RATES)
    assert rate * math.exp(steps.differs) + (1 - rate) * math.exp(steps.agrees) <= 1 + 1e-12


def test_a_full_swap_opens_one_within_fifty_scores() -> None:
    limit = sequence.boundary(1.0)
    assert sequence.checks_to_alarm(tables.PEER_RATES, limit, 235 / 240, alarms_rather=False) < 50
