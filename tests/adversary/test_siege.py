"""A short attack by strangers on real processes: `bench/attack.py` is the long one."""

from __future__ import annotations

from pathlib import Path

from fixtures.siege import Plan, play


async def test_a_siege_by_strangers_harms_nobody_who_is_known(tmp_path: Path) -> None:
    """Nodes keep their results, the client is served, and the load balancer is answered."""
    plan = Plan(nodes=5, seconds=3, quiet_s=0.2, rate=10, min_call_s=0.5, max_call_s=1.5)
    outcome = await play(plan, tmp_path)
    assert not outcome.lost_anything, outcome
    assert len(outcome.attacked.latencies) == 30
    assert outcome.calls["complete"] > 5
    # They did attack.
    assert outcome.strangers["hammer"]["verifier 429"] > 100
    assert outcome.strangers["hold"]["router held"] >= 600
    assert outcome.strangers["forge"]["verifier 429"] > 10
