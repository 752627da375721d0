"""What the routes of the log give, and what they refuse."""

from __future__ import annotations

import pytest

from fixtures.transactions import transaction
from tests.integration.test_log import fetch, fill, settle
from verifier.log.proofs import LogProof
from verifier.store import log


async def test_what_waits_is_not_in_the_log_yet(verifier) -> None:
    """A proof is asked for again after a second."""
    await verifier.service.sequencer.round()
    async with transaction(verifier.service.db) as tx:
        await log.append(tx, verifier.clock.ms, "key", {"change": "made", "kid": "soon", "use": "test"})
    url = f"{verifier.url}/api/v1/log/proof?kind=key&id=soon"
    async with verifier.stranger.get(url) as response:
        assert (response.status, response.headers["Retry-After"]) == (425, "1")
    await settle(verifier)
    assert LogProof.parse(await fetch(verifier, "/api/v1/log/proof?kind=key&id=soon"))


@pytest.mark.parametrize(
    "path",
    [
        "/log/tile/0/000.p/9999",
        "/log/tile/0/000.p/200",
        "/log/tile/0/000",
        "/log/tile/0/001",
        "/log/tile/00/000.p/1",
        "/log/tile/8/000.p/1",
        "/log/tile/entries/x000/000.p/1",
        "/log/tile/entries/999",
        "/log/1/checkpoint",
        "/log/2/checkpoint",
        "/log/99999999999/checkpoint",
        "/log/data",
        "/api/v1/log/proof?kind=key&id=nobody",
        "/api/v1/log/proof?place=99999",
        "/api/v1/log/proof?place=0&log=7",
    ],
)
async def test_what_the_log_does_not_have_is_404(verifier, path: str) -> None:
    await settle(verifier)
    async with verifier.stranger.get(verifier.url + path) as response:
        assert response.status == 404, await response.text()


@pytest.mark.parametrize(
    "query",
    ["", "kind=nothing&id=1", "kind=key", "kind=key&id=", f"kind=key&id={'x' * 600}", "place=x", "place=-1", "kind=key%00&id=1"],
)  # fmt: skip
async def test_a_proof_of_nothing_is_refused(verifier, query: str) -> None:
    async with verifier.stranger.get(f"{verifier.url}/api/v1/log/proof?{query}") as response:
        assert response.status == 400, await response.text()


async def test_a_part_of_a_tile_stays_there_when_it_has_grown(verifier) -> None:
    """Whoever has an older checkpoint reads what belongs to it."""
    await fill(verifier, 3)
    await settle(verifier)
    first = await fetch(verifier, "/log/tile/0/000.p/2")
    await fill(verifier, 300)
    await settle(verifier)
    assert await fetch(verifier, "/log/tile/0/000.p/2") == first
    assert (await fetch(verifier, "/log/tile/0/000"))[: len(first)] == first


async def test_tiles_are_kept_by_caches_and_checkpoints_are_not(verifier) -> None:
    await fill(verifier, 300)
    await settle(verifier)
    async with verifier.stranger.get(f"{verifier.url}/log/tile/0/000") as response:
        assert "immutable" in response.headers["Cache-Control"]
    async with verifier.stranger.get(f"{verifier.url}/log/checkpoint") as response:
        assert response.headers["Cache-Control"] == "no-store"
