"""A new endpoint of the gateway is one value: `/v1/moderations` is served, judged, metered and recorded by it alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router.model.answers import AnswerFormatError, Content
from router.model.operations import OPERATIONS, Operation
from tests.integration.gateway import Fleet, opened
from tests.unit.router.support import MODEL

WORK = {"model": MODEL, "input": ["a cold day", "a warm day"]}


def read_moderation(body: bytes) -> Content:
    """Read the body of an answer: results with a verdict each."""
    try:
        verdicts = [each["flagged"] for each in json.loads(body)["results"]]
    except (ValueError, LookupError, TypeError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None
    return Content(is_empty=not verdicts)


def input_text(document: Mapping[str, Any]) -> str:
    """The texts."""
    return "\n".join(document["input"])


MODERATIONS = Operation(
    name="moderations", read_whole=read_moderation, prompt_text=input_text, is_metered=False
)


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setitem(OPERATIONS, "moderations", MODERATIONS)
    async with opened(tmp_path) as fleet:
        yield fleet


def answering(body: Any) -> Any:
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/v1/moderations"
        return web.json_response(body)

    return answer


async def start(fleet: Fleet, *bodies: Any) -> None:
    for name, body in zip("ab", bodies, strict=False):
        (await fleet.node(name)).act = answering(body)
    await fleet.start({"operations": ["moderations"]})


async def test_it_is_served(fleet: Fleet) -> None:
    """The client gets the node's answer, and the decision's record has the attempt."""
    body = {"results": [{"flagged": False}]}
    await start(fleet, body)
    status, answer, headers = await fleet.post(WORK, "/v1/moderations")
    assert (status, answer) == (200, body)
    _, record = await fleet.get(f"/api/v1/decisions/{headers['X-Touchstone-Decision']}")
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["completed"]


async def test_its_answers_are_judged_by_its_own_rule(fleet: Fleet) -> None:
    """A 200 that is no moderation is the node's fault, and no answer."""
    await start(fleet, {"choices": []})
    status, answer, _ = await fleet.post(WORK, "/v1/moderations")
    assert (status, answer["error"]["code"]) == (502, "corrupted")


async def test_it_cannot_be_streamed(fleet: Fleet) -> None:
    """It has no reader of streams."""
    await start(fleet, {"results": []})
    status, answer, _ = await fleet.post({**WORK, "stream": True}, "/v1/moderations")
    assert (status, answer["error"]["message"]) == (400, "moderations cannot be streamed")


async def test_other_operations_of_the_workload_stay_closed(fleet: Fleet) -> None:
    """The workload lists the new one alone."""
    await start(fleet, {"results": []})
    status, _, _ = await fleet.post({"model": MODEL, "input": "x"}, "/v1/embeddings")
    assert status == 404
