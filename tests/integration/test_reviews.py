"""The queue of reviews at the verifier: what is first, what people found before, who sees it, and its metrics."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fixtures.simulator import SimulatedNode
from fixtures.transactions import transaction
from tests.integration.test_incident_reports import shown
from tests.integration.test_suspicions import WRONG, take
from touchstone import main
from verifier.incidents import REVIEW_TARGET_MS, report_draft
from verifier.roles import Role
from verifier.store import incidents, reviews
from verifier.store.reviews import KEPT_MS
from verifier.triage import Fault

_BOTH = ("sqlite", "postgres")
ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yml"


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that come too seldom to disturb."""
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}, "policy": {"workers": 1}}


async def hold(verifier: Any, operator: str = "acme") -> tuple[SimulatedNode, str]:
    """A node in quarantine, and its incident."""
    node = await verifier.enrol(operator=operator)
    async with transaction(verifier.service.db) as tx:
        draft = report_draft("settlement-mismatch", "far too many tokens")
        incident = await incidents.take_finding(tx, draft, node.id, None, verifier.clock.ms)
    return node, incident


async def queue(verifier: Any) -> list[dict[str, Any]]:
    headers = await verifier.key("rae", Role.REVIEWER)
    async with verifier.http.get(f"{verifier.url}/api/v1/reviews", headers=headers) as response:
        assert response.status == 200
        return list((await response.json())["reviews"])


async def decide(verifier: Any, incident: str, step: str = "release", **body: Any) -> int:
    headers = await verifier.key("rae", Role.REVIEWER)
    url = f"{verifier.url}/api/v1/incidents/{incident}/{step}"
    async with verifier.http.post(url, json={"reason": "looked", **body}, headers=headers) as response:
        return int(response.status)


@pytest.mark.parametrize("store_url", _BOTH, indirect=True)
async def test_what_waits_is_shown_with_what_its_place_follows_from(verifier: Any) -> None:
    """A node that is held, and one whose answers are suspected and that goes on: the latter costs more."""
    _, incident = await hold(verifier)
    other = await verifier.enrol()
    await take(verifier, other, WRONG, times=8)
    first, second = await queue(verifier)
    assert (first["kind"], first["held"], first["id"].split("/")[1]) == (
        "answers-suspected",
        False,
        other.id,
    )
    assert (second["id"], second["kind"], second["held"], second["nodes"]) == (
        incident, "settlement-mismatch", True, 1,
    )  # fmt: skip
    assert 0 < second["review_due_in_s"] <= REVIEW_TARGET_MS // 1000


@pytest.mark.parametrize("store_url", _BOTH, indirect=True)
@pytest.mark.parametrize(
    ("step", "said", "counted"),
    [
        ("release", {"fault": "ours"}, {"at_fault": 0, "not_at_fault": 1}),
        ("release", {"fault": "node"}, {"at_fault": 1, "not_at_fault": 0}),
        ("release", {}, {"at_fault": 0, "not_at_fault": 0}),
        ("retire", {}, {"at_fault": 1, "not_at_fault": 0}),
        ("retire", {"fault": "unclear"}, {"at_fault": 0, "not_at_fault": 0}),
    ],
)
async def test_what_a_person_found_moves_the_next_of_the_same_code(
    verifier: Any, step: str, said: dict[str, str], counted: dict[str, int]
) -> None:
    """A release alone says nothing: a node may have been at fault, and was repaired."""
    _, incident = await hold(verifier)
    assert await decide(verifier, incident, step, **said) == 200
    await hold(verifier, "other")
    (waiting,) = await queue(verifier)
    assert waiting["found_before"] == counted


async def test_an_operator_counts_once(verifier: Any) -> None:
    """One with many nodes does not decide what is believed of all."""
    for _ in range(3):
        _, incident = await hold(verifier)
        await decide(verifier, incident, fault="ours")
    await hold(verifier)
    (waiting,) = await queue(verifier)
    assert waiting["found_before"] == {"at_fault": 0, "not_at_fault": 1}


async def test_another_word_for_the_fault_is_refused(verifier: Any) -> None:
    """And decides nothing."""
    _, incident = await hold(verifier)
    assert await decide(verifier, incident, fault="mine") == 400
    assert len(await queue(verifier)) == 1


async def test_what_nobody_decided_says_so(verifier: Any) -> None:
    """The history has why it was done, and that no person did it."""
    _, incident = await hold(verifier)
    await decide(verifier, incident, "review")
    history = (await shown(verifier, incident))["history"]
    assert [(each["actor"], each["automatic"], each["reason"]) for each in history] == [
        ("verifier", True, "far too many tokens"),
        ("rae", False, "looked"),
    ]


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.ROUTER, Role.RELYING_PARTY])
async def test_the_queue_is_for_reviewers(verifier: Any, role: Role) -> None:
    """It tells what is suspected."""
    of = {"operator": "acme"} if role is Role.OPERATOR else {}
    headers = await verifier.key("x", role, **of)
    async with verifier.http.get(f"{verifier.url}/api/v1/reviews", headers=headers) as response:
        assert response.status == 403


async def metrics(verifier: Any) -> dict[str, float]:
    verifier.clock.forward(11)
    async with verifier.http.get(
        f"{verifier.url}/metrics", headers=await verifier.key("aud", Role.AUDITOR)
    ) as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith("touchstone_review"))
    return {name: float(value) for name, _, value in pairs}


@pytest.mark.parametrize("store_url", _BOTH, indirect=True)
async def test_how_much_waits_and_how_long_it_took_are_metrics(verifier: Any) -> None:
    """Depth, age, what is late; how long until somebody looked and until it was decided."""
    kind = 'kind="settlement-mismatch"'
    _, first = await hold(verifier)
    await hold(verifier)
    verifier.clock.forward(3600)
    await decide(verifier, first, "review")
    verifier.clock.forward(3600)
    await decide(verifier, first, fault="node")
    found = await metrics(verifier)
    assert found[f"touchstone_reviews_waiting{{{kind}}}"] == 1
    assert found[f"touchstone_reviews_overdue{{{kind}}}"] == 0
    assert found[f"touchstone_reviews_oldest_seconds{{{kind}}}"] >= 7200
    assert found[f'touchstone_review_seconds{{{kind},quantile="0.5",until="looked"}}'] == 3600
    assert found[f'touchstone_review_seconds{{{kind},quantile="0.9",until="decided"}}'] == 7200
    verifier.clock.forward(REVIEW_TARGET_MS / 1000)
    assert (await metrics(verifier))[f"touchstone_reviews_overdue{{{kind}}}"] == 1


async def test_old_decisions_are_deleted(verifier: Any) -> None:
    """Nothing grows for ever."""
    _, incident = await hold(verifier)
    await decide(verifier, incident, fault="ours")
    async with transaction(verifier.service.db) as tx:
        assert await reviews.prune(tx, verifier.clock.ms + KEPT_MS, 10) == 0
        assert await reviews.prune(tx, verifier.clock.ms + KEPT_MS + 60_000, 10) == 1


async def test_a_cause_of_ours_speaks_for_its_nodes(verifier: Any) -> None:
    """Who releases all that rests on it says that no node was at fault."""
    _, incident = await hold(verifier)
    async with transaction(verifier.service.db) as tx:
        await tx.execute(
            "INSERT INTO incident_causes (incident_id, cause) VALUES (?, ?)",
            incident,
            "router.settlement-mismatch@batch:1",
        )
        await incidents.release_cause(
            tx,
            "router.settlement-mismatch@batch:1",
            "rae",
            "a bad batch",
            verifier.clock.ms,
            two_person=False,
        )
        row = await tx.one("SELECT fault FROM review_decisions WHERE id = ?", incident)
    assert row == {"fault": Fault.OURS}


def run(verifier: Any, *arguments: str) -> str:
    home = ["--home", str(verifier.home.path)]
    result = CliRunner().invoke(main, ["verifier", *arguments, *home], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


async def test_the_command_lists_and_takes_the_fault(verifier: Any) -> None:
    """What is first, whether its nodes go on, and the step with the fault."""
    _, incident = await hold(verifier)
    listed = await asyncio.to_thread(run, verifier, "reviews")
    assert incident in listed
    assert "get no work meanwhile" in listed
    step = ("incidents", "step", incident, "release", "--reason", "checked", "--fault", "ours")
    await asyncio.to_thread(run, verifier, *step)
    assert "Nothing waits" in await asyncio.to_thread(run, verifier, "reviews")


def test_each_alert_is_of_a_metric_that_exists() -> None:
    """A rule on a name that nobody sets never fires."""
    root = ALERTS.parents[1]
    source = "\n".join(
        p.read_text() for folder in ("verifier", "router") for p in sorted((root / folder).rglob("*.py"))
    )
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert rules
    for rule in rules:
        names = re.findall(r"touchstone_\w+", rule["expr"])
        assert names
        assert rule["annotations"]["summary"]
        for name in names:
            assert f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source, name
