"""What counts on while the pool is empty: only what was shown lately, and only if nothing speaks against it since."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.schemes.context import Excuse, IssuedChallenges, IssuedRead, IssuedWalk, WalkRecord
from verifier.schemes.exhaustion import judge_read, judge_walk

NOW_MS = 10_000_000
GRACE_S = 3600
EMPTY = IssuedChallenges(exhausted=("read", "walk"))
READ = IssuedRead(seed="", windows=1, commitment=b"", batch=1)
WALK = IssuedWalk(seed="", rows=4, passes=1, commitments={}, batch=1)


def excuse(**changes: Any) -> Excuse:
    return Excuse(**{"grace_s": GRACE_S, "read_ms": NOW_MS - 1000, "blamed_ms": 0, **changes})


def walk(verdict: Any = "right", at_ms: int = NOW_MS - 1000, channel: str = "call") -> WalkRecord:
    return WalkRecord(channel=channel, verdict=verdict, at_ms=at_ms)


def test_what_was_asked_is_not_exhausted() -> None:
    """The answer is all that counts."""
    assert judge_read(IssuedChallenges(read=READ), excuse(), "right", [], NOW_MS) == "no"
    assert judge_walk(IssuedChallenges(walk=WALK), excuse(), "right", [], NOW_MS) == "no"


def test_what_was_not_due_is_not_exhausted() -> None:
    """A session without a walk says nothing of the pool."""
    assert judge_walk(IssuedChallenges(read=READ), excuse(), "right", [walk()], NOW_MS) == "no"


def test_what_was_shown_lately_counts_on() -> None:
    """Read and walk."""
    assert judge_read(EMPTY, excuse(), "unasked", [walk()], NOW_MS) == "kept"
    assert judge_walk(EMPTY, excuse(), "unasked", [walk()], NOW_MS) == "kept"


@pytest.mark.parametrize(
    ("given_excuse", "history"),
    [
        (None, [walk()]),
        (excuse(grace_s=0), [walk()]),
        (excuse(read_ms=NOW_MS - GRACE_S * 1000 - 1), [walk(at_ms=NOW_MS - GRACE_S * 1000 - 1)]),
        (excuse(blamed_ms=NOW_MS - 1000), [walk()]),
        (excuse(blamed_ms=NOW_MS), [walk()]),
        (excuse(), [walk(), walk("missed", NOW_MS - 1)]),
        (excuse(), [walk(), walk("wrong", NOW_MS - 1, "announced")]),
        (excuse(read_ms=None), []),
        (excuse(read_ms=None), [walk(channel="announced")]),
    ],
    ids=[
        "nothing-known",
        "no-grace",
        "too-old",
        "blamed-then",
        "blamed-since",
        "missed",
        "wrong",
        "new",
        "announced",
    ],
)
def test_anything_else_is_lost(given_excuse: Excuse | None, history: list[WalkRecord]) -> None:
    """Nothing counts on, and that is no verdict about the node."""
    assert judge_read(EMPTY, given_excuse, "unasked", history, NOW_MS) == "lost"
    assert judge_walk(EMPTY, given_excuse, "unasked", history, NOW_MS) == "lost"


@pytest.mark.parametrize("verdict", ["wrong", "missing", "malformed", "differs"])
def test_a_bad_answer_in_the_same_session_ends_it(verdict: str) -> None:
    """The pool may lack one kind and have the other."""
    assert judge_read(EMPTY, excuse(), verdict, [walk()], NOW_MS) == "lost"
    assert judge_walk(EMPTY, excuse(), verdict, [walk()], NOW_MS) == "lost"


@given(
    st.lists(
        st.builds(
            walk,
            st.sampled_from(["right", "wrong", "missed"]),
            st.integers(0, NOW_MS),
            st.sampled_from(["call", "announced"]),
        ),
        max_size=8,
    ),
    st.integers(0, NOW_MS),
    st.integers(0, 2 * GRACE_S),
)
def test_a_walk_counts_on_only_if_it_is_the_last_word(
    history: list[WalkRecord], blamed_ms: int, grace_s: int
) -> None:
    """Whatever came before: the last right call is young enough, and nothing was wrong, missed or blamed after it."""
    history.sort(key=lambda record: record.at_ms)
    found = judge_walk(EMPTY, excuse(blamed_ms=blamed_ms, grace_s=grace_s), "unasked", history, NOW_MS)
    right = [r.at_ms for r in history if r.verdict == "right" and r.channel == "call"]
    may = bool(right) and NOW_MS - right[-1] <= grace_s * 1000 and blamed_ms < right[-1]
    may = may and all(r.verdict == "right" for r in history if r.at_ms > right[-1])
    assert found == ("kept" if may else "lost")
