"""Faster than a device can read the weights."""

from __future__ import annotations

import msgspec
import pytest

from fixtures.judged import given, minted
from verifier.answers import speed
from verifier.answers.checks import Verdict
from verifier.schemes.context import AnswerBoundaries, HardwareClass, Thresholds

MODEL = "example/large"
GPU = HardwareClass(bandwidth=4_300_000_000_000, host_link=55_000_000_000, allowance_ms=500)
CPU = HardwareClass(bandwidth=1_000_000_000, host_link=None, allowance_ms=10_000)
ANSWERS = AnswerBoundaries(active_bytes={MODEL: 140_000_000_000}, accepted_tokens=1)
TABLE = Thresholds(
    walk_max_age_s=3600,
    missed_limit=3,
    classes={"gpu": GPU, "cpu": CPU},
    excess_permille=1000,
    answers=ANSWERS,
)
OURS = minted(tuple(f" w{number}" for number in range(64)))
RIGHT = Verdict(kind="agrees", matched=64)


def test_the_bound_is_bandwidth_by_active_bytes() -> None:
    """140 GB in bfloat16 at 4.3 TB/s: 31 tokens a second; four times that with drafted tokens."""
    assert speed.fastest(TABLE, "gpu", MODEL) == pytest.approx(30.7, abs=0.1)
    drafted = msgspec.structs.replace(TABLE, answers=msgspec.structs.replace(ANSWERS, accepted_tokens=4))
    assert speed.fastest(drafted, "gpu", MODEL) == pytest.approx(122.9, abs=0.1)


@pytest.mark.parametrize(
    ("hardware", "model"), [("cpu", MODEL), ("unknown", MODEL), ("gpu", "example/other")]
)
def test_nothing_is_bound_that_is_not_known(hardware: str, model: str) -> None:
    """A floor of bandwidth is no ceiling; and what nobody has measured has no bound."""
    assert speed.fastest(TABLE, hardware, model) is None


def test_too_fast() -> None:
    """64 tokens that agree, within a second, where 31 are possible."""
    assert speed.too_fast(OURS, given("x", seconds=3.0), RIGHT, 31.0) is None
    assert "64 tokens" in str(speed.too_fast(OURS, given("x", seconds=1.0), RIGHT, 31.0))


@pytest.mark.parametrize(
    ("theirs", "verdict", "limit"),
    [
        (given("x", seconds=None), RIGHT, 31.0),
        (given("x", seconds=0.0), RIGHT, 31.0),
        (given("x", seconds=1.0), RIGHT, None),
        (given("x", seconds=0.01), Verdict(kind="differs", matched=15, code="c"), 31.0),
        (given("x", seconds=0.01, outcome="crashed"), RIGHT, 31.0),
    ],
    ids=["no time", "no time at all", "no bound", "few tokens", "failed"],
)
def test_nothing_is_said_without_ground(theirs, verdict: Verdict, limit: float | None) -> None:
    """No time, no bound, too few tokens that agree, or no answer."""
    assert speed.too_fast(OURS, theirs, verdict, limit) is None


def test_claimed_tokens_are_not_believed() -> None:
    """Only those that agree with the minted ones count; characters do not."""
    assert speed.too_fast(OURS, given("x", seconds=1.0, completion_tokens=10_000), RIGHT, 70.0) is None
    assert speed.too_fast(minted(tokens=None), given("x", seconds=0.1), RIGHT, 31.0) is None
