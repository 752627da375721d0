"""Who sees suspicions and the sides of answers, what people decide, and the commands for it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from fixtures.simulator import MODEL, SimulatedNode
from tests.integration.test_suspicions import WRONG, suspected, take
from touchstone import main
from verifier.roles import Role

SECRET = "How is the sea?"


async def asked(
    verifier: Any, role: Role, path: str, body: dict[str, Any] | None = None, operator: str | None = None
) -> tuple[int, Any]:
    headers = await verifier.key(f"a-{role}", role, **({} if operator is None else {"operator": operator}))
    async with aiohttp.ClientSession(headers=headers) as http:
        method = "GET" if body is None else "POST"
        async with http.request(method, f"{verifier.url}/api/v1/{path}", json=body) as response:
            return response.status, await response.json(content_type=None)


@pytest.fixture
async def node(verifier) -> SimulatedNode:
    """A node whose answers are wrong."""
    found: SimulatedNode = await verifier.enrol()
    await take(verifier, found, WRONG, times=8)
    return found


async def test_a_router_loads_who_is_suspected(verifier, node: SimulatedNode) -> None:
    """Node, model, level and since when; nothing of why."""
    status, found = await asked(verifier, Role.ROUTER, "suspicions?limit=500")
    assert status == 200
    (each,) = found["suspicions"]
    assert (each["node"], each["model"], each["level"]) == (node.id, MODEL, "suspected")
    assert (set(each), found["next"]) == ({"node", "model", "level", "since_ms"}, None)


@pytest.mark.parametrize("role", [Role.ROUTER, Role.RELYING_PARTY, Role.OPERATOR])
@pytest.mark.parametrize("path", ["answer-reviews", "answer-reviews/x"])
async def test_sides_are_for_reviewers_alone(verifier, node: SimulatedNode, role: Role, path: str) -> None:
    """They show what is asked."""
    of = "acme" if role is Role.OPERATOR else None
    status, _ = await asked(verifier, role, path.replace("x", node.id), operator=of)
    assert status == 403


async def test_an_operator_does_not_see_that_its_node_is_suspected(verifier, node: SimulatedNode) -> None:
    """It could answer right until the suspicion ends."""
    for path in ("suspicions", "events"):
        assert (await asked(verifier, Role.OPERATOR, path, operator="acme"))[0] == 403
    for path in (f"nodes/{node.id}", "incidents", "incident-causes"):
        status, found = await asked(verifier, Role.OPERATOR, path, operator="acme")
        assert status == 200
        assert "answer" not in str(found)


async def test_an_incident_tells_its_operator_nothing_of_what_was_asked(
    verifier, node: SimulatedNode
) -> None:
    """That its answers differ, it may know then."""
    body = {"model": MODEL, "reason": "a 4-bit copy"}
    status, made = await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}/quarantine", body)
    assert status == 200
    status, found = await asked(verifier, Role.OPERATOR, f"incidents/{made['incident']}", operator="acme")
    assert (status, found["code"], found["state"]) == (200, "answers.text.differs", "open")
    assert SECRET not in str(found)
    assert "green" not in str(found)


async def test_a_reviewer_sees_both_sides(verifier, node: SimulatedNode) -> None:
    """Asked, expected, found."""
    status, found = await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}")
    assert status == 200
    sides = found["differences"][0]["sides"]
    assert SECRET in sides["asked"]
    assert (sides["expected"]["text"], sides["found"]["text"]) == (
        "The sea is calm and blue.", "The sea is calm and green.",
    )  # fmt: skip
    _, every = await asked(verifier, Role.REVIEWER, "answer-reviews")
    assert [each["node"] for each in every["nodes"]] == [node.id]


async def test_a_reviewer_clears(verifier, node: SimulatedNode) -> None:
    """The suspicion ends."""
    body = {"model": MODEL, "reason": "the engine was updated"}
    status, _ = await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}/clear", body)
    assert (status, await suspected(verifier)) == (200, [])


async def test_there_is_no_third_step(verifier, node: SimulatedNode) -> None:
    """400, and nothing changes."""
    body = {"model": MODEL, "reason": "x"}
    status, _ = await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}/retire", body)
    assert (status, await suspected(verifier)) == (400, [node.id])


async def test_sides_of_no_node_are_404(verifier) -> None:
    """As if there were none."""
    assert (await asked(verifier, Role.REVIEWER, "answer-reviews/nobody"))[0] == 404


def run(verifier: Any, *arguments: str) -> str:
    result = CliRunner().invoke(
        main, ["verifier", "answers", *arguments, "--home", str(verifier.home.path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


async def test_commands_list_show_and_decide(verifier, node: SimulatedNode) -> None:
    """The same as the resources, on the verifier's own machine."""
    import asyncio

    assert node.id in await asyncio.to_thread(run, verifier, "list")
    shown = await asyncio.to_thread(run, verifier, "show", node.id)
    assert "expected  The sea is calm and blue." in shown
    assert "found     The sea is calm and green." in shown
    step = ("step", node.id, "clear", "--model", MODEL, "--reason", "seen")
    assert "not suspected" in await asyncio.to_thread(run, verifier, *step)
    assert "Nobody is suspected." in await asyncio.to_thread(run, verifier, "list")
    assert '"nodes":[]' in await asyncio.to_thread(run, verifier, "list", "--json")
