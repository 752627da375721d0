"""Who may use the pool up: calls first, and each operator its share of the rest."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from attester.errors import VerifierError
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier.service.pools import HourlyCounts

pytestmark = pytest.mark.usefixtures("only_our_calls")

SESSIONS = {"announced_per_hour": 4, "announced_per_operator": 6, "per_node_per_minute": 1000}


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {
        "calls": {"min_interval_s": 400.0, "max_interval_s": 500.0, "wide_share": 0.0, "walk_share": 1.0},
        "policy": {"workers": 1},
        "sessions": SESSIONS,
        "pool": {"reserve_hours": 0.0, "low_water": 5, "low_hours": 1.0},
    }


async def announce(verifier, node: SimulatedNode) -> None:
    """Open a session with challenges, and drop it."""
    session = await verifier.client(node).open_session()
    url = f"{verifier.url}/challenge-response/v1/session/{session.id}"
    async with verifier.http.delete(url) as response:
        assert response.status == 204


async def refused(verifier, node: SimulatedNode) -> tuple[int, str, float]:
    with pytest.raises(VerifierError) as caught:
        await verifier.client(node).open_session()
    error = caught.value
    assert error.retry_after_s is not None
    return error.status or 0, error.code or "", error.retry_after_s


async def enrol(verifier, *operators: str) -> list[SimulatedNode]:
    nodes = [await verifier.enrol(SimulatedNode(verifier.model_folder), operator=each) for each in operators]
    verifier.service.pools._fleet_at = float("-inf")
    await verifier.service.pools.refresh()
    return nodes


async def used(verifier) -> int:
    (row,) = await verifier.rows("SELECT sum(taken) AS n FROM pool_counts")
    return int(row["n"])


async def shrink(verifier, left: int) -> None:
    """Leave so many of each kind in the pool."""
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE pool_counts SET minted = ? + taken", left)
    await verifier.service.pools.refresh()


def keep_hours(verifier, hours: float) -> None:
    config = verifier.service.config
    kept = msgspec.structs.replace(config.pool, reserve_hours=hours)
    verifier.service.pools._config = msgspec.structs.replace(config, pool=kept)


async def test_an_operator_with_many_nodes_has_one_quota(verifier) -> None:
    """Its third node gets nothing after six sessions; another operator does, and nothing was used up for the refusal."""
    *mine, others = await enrol(verifier, "mine", "mine", "mine", "other")
    for node in (mine[0], mine[0], mine[0], mine[1], mine[1], mine[1]):
        await announce(verifier, node)
    before = await used(verifier)
    status, code, wait_s = await refused(verifier, mine[2])
    assert (status, code) == (429, "challenges.quota")
    assert 3540 <= wait_s <= 3661
    assert await used(verifier) == before
    await announce(verifier, others)


async def test_after_the_hour_the_quota_is_free_again(verifier) -> None:
    """When the refusal said."""
    mine = await enrol(verifier, "mine", "mine")
    for node in (*mine, *mine, *mine):
        await announce(verifier, node)
    _, _, wait_s = await refused(verifier, mine[0])
    verifier.clock.forward(wait_s)
    await announce(verifier, mine[0])


async def test_a_session_that_waits_counts_once(verifier) -> None:
    """Asked for again it is the same session: it uses nothing, and is refused to nobody."""
    mine = await enrol(verifier, "mine", "mine")
    await asyncio.gather(*(verifier.client(mine[0]).open_session() for _ in range(20)))
    assert verifier.service.pools._announced.of("mine") == 1
    for _ in range(3):
        await announce(verifier, mine[1])


async def test_what_is_kept_for_calls_is_not_announced(verifier) -> None:
    """429 with its code, and the call gets what was kept."""
    (node,) = await enrol(verifier, "mine")
    keep_hours(verifier, 1.0)
    await shrink(verifier, 12)
    status, code, wait_s = await refused(verifier, node)
    assert (status, code, wait_s) == (429, "challenges.reserved", 600)
    assert await used(verifier) == 0
    session = await verifier.call(node)
    assert session.models[0].walk is not None


async def test_above_the_reserve_announced_sessions_go_on(verifier) -> None:
    """Until it is reached."""
    (node,) = await enrol(verifier, "mine")
    keep_hours(verifier, 1.0)
    rate = verifier.service.pools._demand[MODEL].rate("read")
    await shrink(verifier, rate.within(1.0) + 1)
    await announce(verifier, node)
    await verifier.service.pools.refresh()
    assert (await refused(verifier, node))[1] == "challenges.reserved"


async def test_what_can_be_spared_is_shared_between_operators(verifier) -> None:
    """Three can be spared and there are three operators: each gets one."""
    nodes = await enrol(verifier, "a", "b", "c")
    await shrink(verifier, 3)
    for node in nodes[:2]:
        await announce(verifier, node)
        await verifier.service.pools.refresh()
        assert (await refused(verifier, node))[1] == "challenges.quota"
    await announce(verifier, nodes[2])


async def test_an_empty_pool_refuses_no_session(verifier) -> None:
    """There is nothing to keep, and the session says that it is empty."""
    (node,) = await enrol(verifier, "mine")
    keep_hours(verifier, 1.0)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("DELETE FROM pool")
    await shrink(verifier, 0)
    session = await verifier.client(node).open_session()
    assert session.models == ()


async def test_the_next_session_is_not_opened_from_the_reserve(verifier) -> None:
    """`next=1` brings a result, and no session."""
    (node,) = await enrol(verifier, "mine")
    session = await verifier.client(node).open_session()
    keep_hours(verifier, 1.0)
    await shrink(verifier, 5)
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    token, following = await verifier.client(node).submit_and_go_on(session, evidence)
    assert (bool(token), following) == (True, None)


async def test_low_levels_are_said_once_and_each_hour(verifier) -> None:
    """And that they are well again."""
    await enrol(verifier, "mine")
    pools = verifier.service.pools
    pools._warned.clear()
    await shrink(verifier, 3)
    said = []
    for wait_s in (0, 5, 3600, 5):
        verifier.clock.forward(wait_s)
        with capture_logs() as logs:
            pools.warn()
        said.append([(entry["log_level"], entry["kind"]) for entry in logs])
    both = [("warning", "read"), ("warning", "walk")]
    assert said == [both, [], both, []]
    await shrink(verifier, 1000)
    with capture_logs() as logs:
        pools.warn()
        pools.warn()
    assert [(entry["log_level"], entry["kind"]) for entry in logs] == [("info", "read"), ("info", "walk")]


async def test_hours_are_in_the_api_and_in_the_metrics(verifier) -> None:
    """Of calls to the nodes that are enrolled."""
    await enrol(verifier, "mine")
    _, body = await verifier.get("/api/v1/challenges")
    expected = {
        kind: round(verifier.service.pools._demand[MODEL].rate(kind).hours_of(free), 2)
        for kind, free in (("read", 30), ("walk", 20))
    }
    assert {pool["kind"]: pool["hours"] for pool in body["pools"]} == expected
    async with verifier.http.get(f"{verifier.url}/metrics") as response:
        text = await response.text()
    assert f'touchstone_pool_hours{{kind="read",model="{MODEL}"}} {expected["read"]:.2f}'[:-1] in text


def test_counts_are_forgotten_after_an_hour() -> None:
    """Not before, and one by one."""
    now = [0.0]
    counts = HourlyCounts(lambda: now[0])
    counts.add("a")
    now[0] = 1800.0
    counts.add("a")
    counts.add("b")
    assert (counts.of("a"), counts.of("b"), counts.total(), counts.of("c")) == (2, 1, 3, 0)
    now[0] = 3599.0
    assert counts.of("a") == 2
    now[0] += counts.retry_s("a")
    assert (counts.of("a"), counts.total()) == (1, 2)
    now[0] = 1e6
    assert (counts.total(), counts.retry_s("a")) == (0, 1)
