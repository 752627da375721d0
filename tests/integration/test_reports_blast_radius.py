"""How far the word of one router reaches: on both databases."""

from __future__ import annotations

from typing import Any

from fixtures.transactions import transaction
from tests.integration.test_incident_reports import SETTLEMENT, listed, report, shown
from verifier.incidents import BLAST_WINDOW_MS, REPORTS_WINDOW_MS, report_draft
from verifier.service import sweep
from verifier.store import incidents

STORES = ("sqlite", "postgres")
DRAFT = report_draft(**SETTLEMENT)


async def says(verifier, reporter: str, node: Any) -> str:
    async with transaction(verifier.service.db) as tx:
        return await incidents.take_report(tx, DRAFT, node.id, reporter, verifier.clock.ms)


async def states(verifier) -> list[tuple[str, str]]:
    return sorted((each["kind"], each["state"]) for each in await listed(verifier))


async def window_ends(verifier) -> None:
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep.end_expired(verifier.service)


async def test_one_router_token_holds_no_fleet(verifier) -> None:
    """A thief of one router's token reports every node: one review of the router, and nobody is held."""
    nodes = [await verifier.enrol(operator=f"op-{number}") for number in range(4)]
    for node in nodes:
        assert (await report(verifier, node, **SETTLEMENT))[0] == 201
    await window_ends(verifier)
    assert (
        await states(verifier) == [("reporter-suspect", "open")] + [("settlement-mismatch", "suspected")] * 4
    )
    (review,) = [each for each in await listed(verifier) if each["kind"] == "reporter-suspect"]
    assert (review["node"], review["cause"]) == (None, "router.settlement-mismatch@reporter:home-router")


async def test_the_word_of_one_router_about_one_node_holds_it_after_the_window(verifier) -> None:
    """As a finding does that nobody contradicts."""
    node = await verifier.enrol()
    await says(verifier, "first", node)
    await sweep.end_expired(verifier.service)
    assert await states(verifier) == [("settlement-mismatch", "suspected")]
    await window_ends(verifier)
    assert await states(verifier) == [("settlement-mismatch", "open")]


async def test_another_router_confirms_at_once(verifier) -> None:
    """Also what a doubted router has reported; the others stay suspected."""
    nodes = [await verifier.enrol(operator=f"op-{number}") for number in range(3)]
    for node in nodes:
        await says(verifier, "first", node)
    await says(verifier, "second", nodes[1])
    held = [each["node"] for each in await listed(verifier) if each["state"] == "open" and each["node"]]
    assert held == [nodes[1].id]


async def test_reports_of_long_ago_bring_no_router_under_review(verifier) -> None:
    """Three operators' nodes over the months are no attack."""
    for number in range(3):
        await says(verifier, "first", await verifier.enrol(operator=f"op-{number}"))
        await window_ends(verifier)
        verifier.clock.forward(REPORTS_WINDOW_MS / 1000)
    assert await states(verifier) == [("settlement-mismatch", "open")] * 3


async def test_a_person_frees_all_that_one_router_reported(verifier) -> None:
    """In one step, by the cause that is its word."""
    for number in range(3):
        await says(verifier, "first", await verifier.enrol(operator=f"op-{number}"))
    (review,) = [each for each in await listed(verifier) if each["kind"] == "reporter-suspect"]
    async with transaction(verifier.service.db) as tx:
        given = (review["cause"], "ada", "its token was stolen", verifier.clock.ms)
        assert await incidents.release_cause(tx, *given, two_person=False) == (3, 0)
    await window_ends(verifier)
    expected = [("reporter-suspect", "open")] + [("settlement-mismatch", "released")] * 3
    assert await states(verifier) == expected


async def test_an_incident_says_whose_word_it_rests_on(verifier) -> None:
    """So that people see who accuses."""
    node = await verifier.enrol()
    incident = await says(verifier, "first", node)
    await says(verifier, "second", node)
    causes = ["router.settlement-mismatch@reporter:first", "router.settlement-mismatch@reporter:second"]
    assert (await shown(verifier, incident))["causes"] == causes
