"""
What counts on while the pool is empty.

That the verifier has no challenges is its own state and nobody's fault.  For a while the last right answer to a call
counts on, if no challenge was held against the node since.  A node that was never called has nothing that could.
"""

from __future__ import annotations

from collections.abc import Sequence

from verifier.schemes.context import Channel, Excuse, IssuedChallenges, WalkRecord
from verifier.schemes.facts import PoolFact

_GOOD = ("unasked", "right")


def judge_read(
    issued: IssuedChallenges,
    excuse: Excuse | None,
    walk_verdict: str,
    history: Sequence[WalkRecord],
    now_ms: int,
) -> PoolFact:
    """
    Judge whether the last right read counts on.

    Args:
        walk_verdict: On this session's walk.
        history: The walks before this session.
    """
    if issued.read is not None or "read" not in issued.exhausted:
        return "no"
    at_ms = None if excuse is None else excuse.read_ms
    is_kept = (
        excuse is not None
        and excuse.keeps(at_ms, now_ms)
        and walk_verdict in _GOOD
        and not _is_blamed(history, at_ms)
    )
    return "kept" if is_kept else "lost"


def judge_walk(
    issued: IssuedChallenges,
    excuse: Excuse | None,
    read_verdict: str,
    history: Sequence[WalkRecord],
    now_ms: int,
) -> PoolFact:
    """
    Judge whether the last right walk counts on.

    Args:
        read_verdict: On this session's read.
        history: The walks before this session, of the reference value in force.
    """
    if issued.walk is not None or "walk" not in issued.exhausted:
        return "no"
    called = [record for record in history if record.channel == Channel.CALLED and record.verdict == "right"]
    at_ms = called[-1].at_ms if called else None
    is_kept = (
        excuse is not None
        and excuse.keeps(at_ms, now_ms)
        and read_verdict in _GOOD
        and not _is_blamed(history, at_ms)
    )
    return "kept" if is_kept else "lost"


def _is_blamed(history: Sequence[WalkRecord], since_ms: int | None) -> bool:
    """Whether a walk was wrong or missed after a moment."""
    return any(record.verdict != "right" and record.at_ms > (since_ms or 0) for record in history)
