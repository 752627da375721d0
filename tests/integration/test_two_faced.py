"""The node that attests the published weights and serves a rounded copy, with real processes: only its answers show it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fixtures import two_faced
from fixtures.demo import CONFIG
from fixtures.fleet import Fleet, Node, wait_for
from fixtures.minilm import MODEL
from fixtures.published import publish
from verifier.config import Home
from verifier.store.sqlite import SqliteDatabase


@pytest.fixture
def fleet(tmp_path: Path, minilm: Path) -> Iterator[Fleet]:
    """A verifier with minted answers, a router, an honest node and one with two faces."""
    settings = {
        **CONFIG,
        "answers": two_faced.ANSWERS,
        "calls": {"min_interval_s": 1.0, "max_interval_s": 3.0},
    }
    fleet = Fleet(tmp_path, settings, {"walk_max_age_s": 120}, checks=two_faced.CHECKS)
    try:
        fleet.make_verifier()
        engine = two_faced.start_trusted_engine(fleet, minilm)
        asyncio.run(publish_into(fleet, minilm))
        # The demo lets the engine show its weights first, and so does test_minting_answers.
        two_faced.mint(fleet, engine, 60, walks=False)
        fleet.start_verifier()
        fleet.start_router()
        for name, options in (("honest", ()), ("two-faced", two_faced.SERVES_ROUNDED)):
            node = fleet.add_node(name, f"of-{name}", minilm, engine_options=options)
            fleet.enrol(node)
            fleet.start_attester(node)
        yield fleet
    finally:
        fleet.stop()


async def publish_into(fleet: Fleet, folder: Path) -> None:
    home = Home(fleet.verifier_home)
    async with SqliteDatabase(home.database) as db:
        await publish(
            db, home.pool_key(), folder, time.time_ns() // 1_000_000, model=MODEL, reads=60, walks=64
        )


def is_affirming(fleet: Fleet, node: Node) -> bool:
    result = fleet.result(node)
    return result is not None and result["ear_status"] == "affirming"


@pytest.mark.timeout(240)
def test_a_node_that_attests_one_engine_and_serves_another_is_caught(fleet: Fleet) -> None:
    """It is affirming all the time; its answers are suspected, the honest node's are not, and work goes to that."""
    honest, double = fleet.nodes
    for node in (honest, double):
        wait_for(f"{node.name} to be affirming", partial(is_affirming, fleet, node), 90)
    sent = two_faced.send_until(fleet, lambda: two_faced.suspected(fleet), 90)
    assert sent.failures == []
    assert two_faced.suspected(fleet) == {"two-faced"}
    assert sent.served_by(fleet)["two-faced"] > 0
    agreed, differed = two_faced.scores(fleet, double)
    assert (agreed, differed >= 1) == (0, True)
    assert is_affirming(fleet, double)
    assert fleet.quarantine(double) is None
    shown = two_faced.side_by_side(fleet, double)
    assert "answers.vector.differs" in shown
    later = two_faced.send_until(fleet, lambda: two_faced.scores(fleet, honest)[0] >= 1, 90)
    assert later.failures == []
    assert two_faced.scores(fleet, honest)[1] == 0
    assert two_faced.suspected(fleet) == {"two-faced"}
    (lane,) = {
        lane for lane, size in fleet.router_status()["workloads"]["embeddings"]["lanes"].items() if size
    } - {"degraded"}
    assert lane in ("established", "probation")
    two_faced.quarantine(fleet, double)
    wait_for("the quarantine", lambda: fleet.quarantine(double), 30)
