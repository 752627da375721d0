"""Answers say which revision of the model they are of, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.commands.router import router as commands
from router.gateway.errors import REVISION_HEADER
from tests.integration.gateway import Fleet, by, opened
from tests.unit.router.doubles import FakeNode, answers
from tests.unit.router.support import MODEL

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def node(fleet: Fleet, name: str, revision: str | None) -> FakeNode:
    made = await fleet.node(name)
    fleet.verifier.trust(name, endpoint=made.endpoint, revision=revision)
    return made


async def test_a_whole_answer_names_the_revision(fleet: Fleet) -> None:
    """And the record of its attempt, whatever becomes of the node later."""
    await node(fleet, "a", ONE)
    await fleet.start()
    status, _, headers = await fleet.post()
    assert (status, headers[REVISION_HEADER]) == (200, ONE)
    (attempt,) = await fleet.record(headers)
    assert attempt["revision"] == ONE


async def test_an_answer_of_a_node_whose_result_names_none_has_no_header(fleet: Fleet) -> None:
    """Nothing is guessed."""
    await node(fleet, "a", None)
    await fleet.start()
    _, _, headers = await fleet.post()
    assert REVISION_HEADER not in headers


async def test_it_is_the_node_that_answered(fleet: Fleet) -> None:
    """The first one failed, and had another revision."""
    (await node(fleet, "a", ONE)).act = answers(500)
    await node(fleet, "b", TWO)
    await fleet.start()
    _, _, headers = await fleet.post()
    assert headers[REVISION_HEADER] == TWO


async def test_a_stream_names_the_revision(fleet: Fleet) -> None:
    """In its head, with the first text."""
    await fleet.engine("a", revision=ONE)
    await fleet.start()
    heard = await fleet.ask()
    assert heard.headers[REVISION_HEADER] == ONE


async def test_a_stream_that_another_node_takes_over_names_that_ones(fleet: Fleet) -> None:
    """The head was prepared while the first node was asked."""
    first = await fleet.engine("a", revision=ONE)
    first.behave("status")
    await fleet.engine("b", revision=TWO)
    await fleet.start()
    heard = await fleet.ask()
    assert (heard.status, heard.headers[REVISION_HEADER], heard.done) == (200, TWO, True)


async def test_a_comment_that_opens_a_stream_names_none(fleet: Fleet) -> None:
    """Another node may take over yet; the record of the decision tells."""
    engine = await fleet.engine("a", revision=ONE)
    engine.behave(first_token_s=0.5)
    await fleet.start(keep_alive_s=0.1)
    heard = await fleet.ask()
    assert heard.body.startswith(b": keep-alive")
    assert heard.body.rstrip().endswith(b"data: [DONE]")
    assert REVISION_HEADER not in heard.headers
    (attempt,) = await fleet.record(heard.headers)
    assert attempt["revision"] == ONE


async def test_a_workload_with_digests_sends_no_work_elsewhere(fleet: Fleet) -> None:
    """However good the other node is."""
    await node(fleet, "a", ONE)
    await node(fleet, "b", TWO)
    await fleet.start({"digests": [TWO]})
    assert [n for n, _ in await fleet.attempts()] == ["b"]


async def test_an_error_says_which_revision_nodes_have_and_which_is_asked_for(fleet: Fleet) -> None:
    """No live node has it."""
    await node(fleet, "a", ONE)
    await fleet.start({"digests": [TWO]})
    status, answer, _ = await fleet.post()
    assert status == 503
    assert (
        f"1 node: {MODEL} is of revision 111111111111…, and 222222222222… is asked for"
        in answer["error"]["message"]
    )


async def test_the_status_has_the_revisions_and_the_command_draws_them(fleet: Fleet) -> None:
    """Also one that is asked for and that no live node has."""
    await node(fleet, "a", ONE)
    await fleet.start({"digests": [TWO]})
    _, status = await fleet.get("/api/v1/status")
    assert status["workloads"]["tiny"]["model"] == MODEL
    assert status["workloads"]["tiny"]["revisions"] == {
        TWO: {"nodes": 0, "may_work": 0, "allowed": True, "required": True},
        ONE: {"nodes": 1, "may_work": 0, "allowed": False, "required": False},
    }
    done = await asyncio.to_thread(
        CliRunner().invoke,
        commands,
        ["revisions", "--url", fleet.url, "--key", by("auditor")["Authorization"][7:]],
    )
    assert done.output.splitlines() == [
        f"tiny: {MODEL}",
        f"  {ONE}  {'█' * 20}  1 of 1 nodes, 0 may work; the workload asks for other revisions",
        f"  {TWO}  asked for, and no live node has it",
    ]
