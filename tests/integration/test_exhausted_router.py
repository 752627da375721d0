"""The verifier has no challenges left, and the router's clients learn whose fault it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.gateway import Fleet, opened
from tests.unit.router.support import MODEL, WEIGHTS

NONE = {**WEIGHTS, "file-system": 0, "executables": 0}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def test_the_503_names_the_verifier(fleet: Fleet) -> None:
    """In its code and in words, beside the nodes that are out for their own reasons."""
    for name in "abc":
        fleet.verifier.trust(name, weights=NONE, reasons=("challenges.exhausted",))
    fleet.verifier.trust("d", weights={**WEIGHTS, "executables": 96}, reasons=("weights.walk.missed",))
    await fleet.start()
    status, document, headers = await fleet.post()
    message = (
        "no node may do this work now: 1 result.not-affirming, 3 result.verifier-exhausted. "
        "The verifier has no challenges left: its operator must mint more. "
        f"1 node: model/{MODEL} executables is 96 (contraindicated); weights.walk.missed"
    )
    assert (status, document["error"]["message"]) == (503, message)
    assert (document["error"]["code"], int(headers["Retry-After"]) > 0) == ("result.verifier-exhausted", True)


async def test_a_node_whose_last_walk_counts_on_serves(fleet: Fleet) -> None:
    """Its result says that the pool is empty, and affirms."""
    node = await fleet.node("a")
    fleet.verifier.trust("a", endpoint=node.endpoint, reasons=("challenges.exhausted",))
    await fleet.start()
    status, _, _ = await fleet.post()
    assert status == 200
