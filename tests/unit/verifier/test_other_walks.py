"""Walks of published tensors and of tensors as loaded: an answer of the one kind is none to the other."""

from __future__ import annotations

from typing import Any

import pytest

from attester.evidence import WalkAnswer
from attester.weights.possession import commitment
from tests.unit.verifier.test_rates import context, reference, walk
from verifier.schemes import walks
from verifier.schemes.context import IssuedChallenges, IssuedWalk, ModelReference

ANSWER = bytes(range(32))
ISSUED = IssuedChallenges(
    walk=IssuedWalk(seed="00" * 32, rows=1, passes=1, commitments={0: commitment(ANSWER)}, batch=1)
)
AS_LOADED = ModelReference(digest="d", files={}, tensor_bytes=1 << 20, as_loaded=True)


def judge(source: Any, *, as_loaded: bool, answer: bytes = ANSWER) -> tuple[str, list[str]]:
    claim = WalkAnswer(answers=(answer,), source=source, device="cpu", micros=1)
    verdict, findings = walks.check_answers(claim, ISSUED, None, malformed=False, as_loaded=as_loaded)
    return verdict, [finding.code for finding in findings]


@pytest.mark.parametrize("source", ["engine", "file"])
@pytest.mark.parametrize("answer", [ANSWER, bytes(32)], ids=["right", "wrong"])
def test_a_walk_of_the_published_tensors_answers_no_walk_as_loaded(source: str, answer: bytes) -> None:
    """Whatever it says: nobody is blamed for it, and nothing is earned by it."""
    assert judge(source, as_loaded=True, answer=answer) == ("other", ["weights.walk.other"])


@pytest.mark.parametrize("answer", [ANSWER, bytes(32)], ids=["right", "wrong"])
def test_a_walk_as_loaded_answers_no_walk_of_published_tensors(answer: bytes) -> None:
    assert judge("loaded", as_loaded=False, answer=answer) == ("other", ["weights.walk.other"])


def test_a_walk_as_loaded_is_right_or_wrong() -> None:
    assert judge("loaded", as_loaded=True) == ("right", [])
    assert judge("loaded", as_loaded=True, answer=bytes(32)) == ("wrong", ["weights.walk.wrong"])


@pytest.mark.parametrize("channel", ["call", "announced"])
def test_another_walk_is_recorded_as_a_missed_one(channel: str) -> None:
    """Whoever has swapped the weights could otherwise keep what the last right walk showed."""
    right = walk(100, channel="call", reference="d", source="loaded")
    asked = context(hardware="cpu")
    claim = WalkAnswer(answers=(ANSWER,), source="file", device="cpu", micros=1)
    record = walks.record_of("other", claim, ISSUED, AS_LOADED, asked)
    assert record is not None
    assert record.verdict == "missed"
    called = walk(None, channel=channel, reference="d", verdict=record.verdict)
    standing, _ = walks.standing_of([right, called], "other", AS_LOADED, asked)
    assert standing == ("unanswered" if channel == "call" else "called")


def test_no_rate_is_computed_from_a_walk_as_loaded() -> None:
    """The files' bytes are known, and not how many the engine has loaded."""
    record = walk(100, source="loaded")
    asked = context(record, weights=reference(1 << 20))
    assert walks.measured_rates(record, ISSUED, AS_LOADED, asked) == {}
