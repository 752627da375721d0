"""Nodes are asked what a trusted engine has answered already, as users ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.checking import Minter, asks, record, sections, settle
from tests.integration.gateway import Fleet, opened
from tests.unit.router.support import MODEL

REQUESTS = 140


@pytest.fixture
async def fleet(tmp_path: Path) -> Any:
    async with opened(tmp_path) as made:
        yield made


def minted(operation: str) -> dict[str, Any]:
    assert operation == "chat.completions"
    minted.count += 1  # type: ignore[attr-defined]
    content = f"a minted question {minted.count}"  # type: ignore[attr-defined]
    return {"temperature": 0, "messages": [{"content": content, "role": "user"}], "max_tokens": 8}


minted.count = 0  # type: ignore[attr-defined]


async def talk(fleet: Fleet, count: int = REQUESTS, **given: Any) -> None:
    for number in range(count):
        heard = await fleet.ask(asks(f"question {number}", temperature=0, max_tokens=8, **given))
        assert heard.status == 200


async def test_what_a_node_answers_to_a_check_is_reported(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    minter = fleet.verifier.offers = Minter(minted)
    await fleet.start(sections=sections(tmp_path))
    seen = record(node)
    await talk(fleet)
    await settle(fleet)
    reports = [(check, report) for check, all_of in fleet.verifier.given.items() for report in all_of]
    answered = [(check, report) for check, report in reports if "given" in report]
    assert len(answered) >= 5
    questions = {each.document["messages"][0]["content"] for each in seen}
    for check, report in answered:
        assert report["node"] == "a"
        assert report["given"]["outcome"] == "completed"
        assert report["given"]["text"]
        assert report["given"]["completion_tokens"] == 8
        assert minter.offered[check]["body"]["messages"][0]["content"] in questions
    assert all(wanted["model"] == MODEL and wanted["node"] == "a" for wanted in minter.wanted)
