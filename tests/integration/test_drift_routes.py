"""Who sees how answers move, and by what: resources, metrics and commands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from click.testing import CliRunner

from fixtures.simulator import ENGINE, MODEL
from fixtures.transactions import transaction
from tests.integration.test_answer_reviews import asked
from tests.integration.test_drift import FAR, NEAR, REFERENCE, VERSION, bring, fleet
from tests.integration.test_suspicions import attested
from touchstone import main
from verifier.roles import Role
from verifier.service import drift as service
from verifier.store import node_prompting

# Who sees it.


@pytest.mark.parametrize("role", [Role.ROUTER, Role.RELYING_PARTY, Role.OPERATOR])
async def test_it_is_for_reviewers_alone(verifier, role: Role) -> None:
    """An operator could learn from it how much is seen of its nodes."""
    of = "acme" if role is Role.OPERATOR else None
    for path in ("answer-drift", "answer-drift/nodes/x", "answer-drift/templates?model=m"):
        assert (await asked(verifier, role, path, operator=of))[0] == 403


async def test_an_auditor_reads_and_accepts_nothing(verifier) -> None:
    """Reading is reading."""
    assert (await asked(verifier, Role.AUDITOR, "answer-drift?days=30"))[0] == 200
    body = {"model": MODEL, "reference": REFERENCE, "family": ENGINE, "reason": "x"}
    assert (await asked(verifier, Role.AUDITOR, "answer-drift/accept", body))[0] == 403


async def test_days_are_bounded(verifier) -> None:
    """And read strictly."""
    for query in ("0", "367", "-1", "1e2", "99999", "", "%C2%B2"):
        assert (await asked(verifier, Role.REVIEWER, f"answer-drift?days={query}"))[0] == 400, query


async def test_a_node_is_shown_day_by_day(verifier) -> None:
    """One that is not there is 404."""
    node, result = await attested(verifier)
    await bring(verifier, (node, result), FAR, times=3)
    status, found = await asked(verifier, Role.REVIEWER, f"answer-drift/nodes/{node.id}")
    assert (status, found["operator"], found["versions"][0]["far"]["count"]) == (200, "acme", 3)
    assert found["scores"][0]["far"] > 3
    assert (await asked(verifier, Role.REVIEWER, "answer-drift/nodes/none"))[0] == 404


async def test_metrics_say_the_shares_by_version(verifier) -> None:
    """And how many wait for a person."""
    found = await fleet(verifier, 4)
    for each in found[1:]:
        await bring(verifier, each, NEAR, times=5)
    await bring(verifier, found[0], FAR, times=15)
    await service.measure(verifier.service)
    labels = {"model": MODEL, "engine": VERSION}
    assert service._checks.labels(**labels)._value.get() == 30
    assert service._share.labels(**labels, what="far")._value.get() == 0.5
    assert (service._reviews._value.get(), service._suspect._value.get()) == (1, 0)
    for each in found[1:3]:
        await bring(verifier, each, FAR)
    await bring(verifier, found[0], FAR)
    await service.measure(verifier.service)
    assert (service._reviews._value.get(), service._suspect._value.get()) == (0, 1)


def run(verifier: Any, *arguments: str) -> str:
    found = CliRunner().invoke(main, ["verifier", "drift", *arguments, "--home", str(verifier.home.path)])
    assert found.exit_code == 0, found.output
    return found.output


async def test_commands_show_versions_nodes_and_templates(verifier) -> None:
    """The same as the resources, on the verifier's own machine."""
    assert "No answer was checked since" in await asyncio.to_thread(run, verifier, "list")
    found = await fleet(verifier)
    for each in found:
        await bring(verifier, each, FAR)
    async with transaction(verifier.service.db) as tx:
        for said in ("a", "b"):
            await node_prompting.note(tx, found[0][0].id, MODEL, REFERENCE, (said, ""), verifier.clock.ms)
    said = await asyncio.to_thread(run, verifier, "list", "--days", "300")
    assert f"{MODEL}  {VERSION}  revision {REFERENCE[:12]}: 3 nodes" in said
    assert "SUSPECT: all its nodes have moved, so nobody is held." in said
    shown = await asyncio.to_thread(run, verifier, "show", found[0][0].id, "--days", "300")
    assert "CHANGED without a new revision" in shown
    arguments = (MODEL, "--reference", REFERENCE, "--engine", ENGINE, "--reason", "larger batches")
    said = await asyncio.to_thread(run, verifier, "accept", *arguments)
    assert f"With {ENGINE}, the table says what share of the answers may part." in said
    assert f"With {ENGINE}, up to 90.0% of the distances may be near the limit." in said
    assert "renders by a" in await asyncio.to_thread(run, verifier, "templates", MODEL)
    assert f'"engine":"{VERSION}"' in await asyncio.to_thread(
        run, verifier, "list", "--json", "--days", "300"
    )
