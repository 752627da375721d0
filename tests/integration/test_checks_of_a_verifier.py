"""The router takes checks of the real verifier, and brings what nodes answered in the form that it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from fixtures.minted_answers import WORDS, chat
from fixtures.simulator import MODEL
from router.config import VerifierSection
from router.gateway.checks import CheckSourceError, NoChecksError, _report_of
from router.model.given import Timing, of_whole
from router.model.usage import Usage
from router.service.verifier_checks import VerifierChecks
from router.state.feed_source import FeedSource
from tests.integration.test_answer_checks import OTHER, fill, serving, states
from verifier.roles import Role


@pytest.fixture
async def source(verifier: Any) -> AsyncIterator[VerifierChecks]:
    token = (await verifier.key("r1", Role.ROUTER))["Authorization"].partition(" ")[2]
    async with aiohttp.ClientSession() as http:
        yield VerifierChecks(http, VerifierSection(url=verifier.url), lambda: token)


def answered(text: str) -> Any:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "length"}
    body = msgspec.json.encode({"choices": [choice]})
    return of_whole(body, Timing("completed", 0.5, claimed=Usage(9, 8)))


async def test_an_answer_is_judged(verifier: Any, source: VerifierChecks) -> None:
    await fill(verifier, chat("What is a harbour?", engine=OTHER))
    node, jti = await serving(verifier)
    offered = await source.take(MODEL, node.id, "chat.completions")
    assert (offered.operation, offered.body) == ("chat.completions", chat("What is a harbour?").body)
    report = _report_of(node.id, jti, verifier.clock.ms, answered("".join(WORDS)))
    await source.report(offered.id, report)
    # An answer of the verifier's that was lost is fetched again.
    await source.report(offered.id, report)
    assert await states(verifier) == [("judged", "agrees")]


async def test_what_failed_is_no_verdict(verifier: Any, source: VerifierChecks) -> None:
    await fill(verifier)
    node, _ = await serving(verifier)
    offered = await source.take(MODEL, node.id, "chat.completions")
    await source.report(offered.id, {"node": node.id, "failed": "unlike"})
    ((state, verdict),) = await states(verifier)
    assert (state, verdict) == ("failed", None)


async def test_where_there_is_none_nothing_is_asked(verifier: Any, source: VerifierChecks) -> None:
    node, _ = await serving(verifier)
    with pytest.raises(NoChecksError):
        await source.take(MODEL, node.id, "chat.completions")
    with pytest.raises(NoChecksError):
        await source.take("example/other", node.id, "chat.completions")


async def test_a_key_that_is_no_routers_gets_none(verifier: Any) -> None:
    token = (await verifier.key("op", Role.AUDITOR))["Authorization"].partition(" ")[2]
    node, _ = await serving(verifier)
    async with aiohttp.ClientSession() as http:
        source = VerifierChecks(http, VerifierSection(url=verifier.url), lambda: token)
        with pytest.raises(CheckSourceError):
            await source.take(MODEL, node.id, "chat.completions")


async def test_suspicions_are_read_as_the_verifier_lists_them(verifier: Any) -> None:
    """None, here: what matters is that the page can be read."""
    token = (await verifier.key("r1", Role.ROUTER))["Authorization"].partition(" ")[2]
    async with aiohttp.ClientSession() as http:
        source = FeedSource(http, VerifierSection(url=verifier.url), lambda: token)
        assert await source.suspicions() == {}
