"""What routers report: the incident it goes into, once under its id, with evidence; and what they are told of incidents."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fixtures.simulator import SimulatedNode
from fixtures.transactions import transaction
from tests.integration.test_events import take
from verifier.store import incidents

SETTLEMENT = {"kind": "settlement-mismatch", "detail": "claims 10 times what was metered"}
SPIKE = {"kind": "latency-spike", "detail": "40 times its median"}


async def report(verifier, node: SimulatedNode | str, **given: Any) -> tuple[int, Any]:
    """A router's report; status and JSON."""
    body = {"node": node if isinstance(node, str) else node.id, **given}
    headers = {"Authorization": f"Bearer {verifier.service.router_token}"}
    async with verifier.http.post(f"{verifier.url}/api/v1/incidents", json=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def shown(verifier, incident: str) -> Any:
    status, body = await verifier.get(f"/api/v1/incidents/{incident}")
    assert status == 200
    return body


async def listed(verifier, query: str = "") -> list[Any]:
    _, body = await verifier.get(f"/api/v1/incidents{query}")
    return body["incidents"]


async def test_a_report_answers_the_incident_that_it_makes(verifier) -> None:
    """Its id and where it stands."""
    node = await verifier.enrol()
    status, answer = await report(verifier, node, **SETTLEMENT)
    assert status == 201
    (incident,) = await listed(verifier)
    assert answer == {"id": incident["id"], "state": "suspected"}


@pytest.mark.parametrize(("given", "state"), [(SETTLEMENT, "suspected"), (SPIKE, "noted")])
async def test_a_report_answers_the_incident_that_it_counts_into(verifier, given: Any, state: str) -> None:
    """A second one of the same kind is the same incident, counted."""
    node = await verifier.enrol()
    first = await report(verifier, node, **given)
    assert first[1]["state"] == state
    assert await report(verifier, node, **given) == first
    assert (await shown(verifier, first[1]["id"]))["count"] == 2


async def test_the_tenth_report_within_the_hour_answers_that_it_is_flagged(verifier) -> None:
    """What it answers is where the incident stands afterwards."""
    node = await verifier.enrol()
    answers = [(await report(verifier, node, **SPIKE))[1] for _ in range(10)]
    assert [answer["state"] for answer in answers] == ["noted"] * 9 + ["flagged"]
    assert len({answer["id"] for answer in answers}) == 1


async def test_a_report_sent_again_counts_nothing(verifier) -> None:
    """The same id answers the same incident, also after a person has ended it."""
    node = await verifier.enrol()
    first = await report(verifier, node, **SETTLEMENT, report="r-1", evidence={"count": 1})
    assert await report(verifier, node, **SETTLEMENT, report="r-1", evidence={"count": 1}) == first
    incident = first[1]["id"]
    assert (await shown(verifier, incident))["count"] == 1
    assert len((await shown(verifier, incident))["reports"]) == 1
    async with transaction(verifier.service.db) as tx:
        await incidents.take_step(
            tx, incident, "release", "ada", "looked", verifier.clock.ms, two_person=False
        )
    status, again = await report(verifier, node, **SETTLEMENT, report="r-1")
    assert (status, again) == (201, {"id": incident, "state": "released"})
    assert len(await listed(verifier)) == 1


async def test_the_same_report_many_times_at_once_counts_once(verifier) -> None:
    """The database decides which of them is the first."""
    node = await verifier.enrol()
    answers = await asyncio.gather(
        *(report(verifier, node, **SPIKE, report="r-1") for _ in range(30)),
        *(report(verifier, node, **SPIKE, report="r-2") for _ in range(30)),
    )
    assert {status for status, _ in answers} == {201}
    assert len({answer["id"] for _, answer in answers}) == 1
    assert [incident["count"] for incident in await listed(verifier)] == [2]


async def test_the_id_of_a_report_is_not_for_another_node_or_kind(verifier) -> None:
    """Answering the old incident would lose the new report."""
    node, other = await verifier.enrol(), await verifier.enrol(operator="other")
    await report(verifier, node, **SPIKE, report="r-1")
    for status, answer in (
        await report(verifier, other, **SPIKE, report="r-1"),
        await report(verifier, node, **SETTLEMENT, report="r-1"),
    ):
        assert (status, answer["type"].rpartition("#")[2]) == (409, "incident.report-reused")
    assert [incident["count"] for incident in await listed(verifier)] == [1]


async def test_a_refused_report_does_not_use_up_its_id(verifier) -> None:
    """Nothing of it is kept."""
    node = await verifier.enrol()
    assert (await report(verifier, node, kind="model-integrity-failure", detail="d", report="r"))[0] == 400
    assert (await report(verifier, "nobody", **SPIKE, report="r"))[0] == 404
    assert (await report(verifier, node, **SPIKE, report="r"))[0] == 201
    assert [incident["count"] for incident in await listed(verifier)] == [1]


async def test_evidence_is_kept_with_the_incident_and_shown(verifier) -> None:
    """As it was given, report by report, with the router's id and the time."""
    node = await verifier.enrol()
    evidence = {
        "claimed": 9000,
        "metered": 900,
        "decisions": ["d1", "d2"],
        "window": {"from": 1, "share": 0.5},
    }
    _, answer = await report(verifier, node, **SETTLEMENT, evidence=evidence)
    first_ms = verifier.clock.ms
    verifier.clock.forward(5)
    await report(verifier, node, **SETTLEMENT, report="r-2", evidence={})
    await report(verifier, node, **SETTLEMENT)
    body = await shown(verifier, answer["id"])
    assert body["reports"] == [
        {"report": None, "at_ms": first_ms, "evidence": evidence},
        {"report": "r-2", "at_ms": first_ms + 5000, "evidence": {}},
    ]


async def test_of_many_reports_the_newest_evidence_is_kept(verifier) -> None:
    """A router that reports for days fills nobody's disk, and its ids go on counting once."""
    node = await verifier.enrol()
    for number in range(40):
        _, answer = await report(verifier, node, **SETTLEMENT, report=f"r-{number}", evidence={"n": number})
    body = await shown(verifier, answer["id"])
    assert [each["evidence"]["n"] for each in body["reports"]] == list(range(8, 40))
    await report(verifier, node, **SETTLEMENT, report="r-0", evidence={"n": 0})
    assert (await shown(verifier, answer["id"]))["count"] == 40


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "given",
    [
        {"evidence": {"text": "x" * 4086}},
        {"evidence": {"text": "ä" * 2043}},
        {"evidence": nested(9)},
        {"evidence": nested(400)},
        {"evidence": [1]},
        {"evidence": "text"},
        {"report": ""},
        {"report": "x" * 65},
        {"report": "a b"},
        {"report": "ä"},
        {"report": "a\n"},
        {"report": 1},
        {"severity": "minor"},
    ],
)
async def test_a_report_out_of_bounds_is_400(verifier, given: dict[str, Any]) -> None:
    """Evidence is an object of at most 4 KiB, an id 1 to 64 plain characters; nothing is kept of others."""
    node = await verifier.enrol()
    status, _ = await report(verifier, node, **SPIKE, **given)
    assert status == 400
    assert await listed(verifier) == []


@pytest.mark.parametrize(
    "given",
    [{"evidence": {"text": "x" * 4085}}, {"evidence": nested(8)}, {"report": "x" * 64}, {"report": "A-z_0"}],
)
async def test_a_report_just_within_bounds_is_taken(verifier, given: dict[str, Any]) -> None:
    """And shown again."""
    node = await verifier.enrol()
    status, answer = await report(verifier, node, **SPIKE, **given)
    assert status == 201
    kept = (await shown(verifier, answer["id"]))["reports"]
    assert [each["evidence"] for each in kept] == [given["evidence"]] if "evidence" in given else kept == []


async def test_the_list_gives_those_of_one_node(verifier) -> None:
    """Page by page, open ones or all."""
    node, other = await verifier.enrol(), await verifier.enrol(operator="other")
    for each in (node, other):
        await report(verifier, each, **SPIKE)
        await report(verifier, each, **SETTLEMENT)
    found = await listed(verifier, f"?node={node.id}")
    assert {(incident["node"], incident["kind"]) for incident in found} == {
        (node.id, "latency-spike"),
        (node.id, "settlement-mismatch"),
    }
    assert [i["kind"] for i in await listed(verifier, f"?node={node.id}&open=1")] == ["settlement-mismatch"]
    pages = [
        await listed(verifier, f"?node={node.id}&limit=1&after={after}") for after in ("", found[0]["id"])
    ]
    assert [page[0]["id"] for page in pages] == [incident["id"] for incident in found]
    assert await listed(verifier, "?node=nobody") == []


async def test_events_and_the_list_say_whose_and_since_when(verifier) -> None:
    """So that a router can hold back what the operator of a node in quarantine enrols next."""
    node = await verifier.enrol(operator="acme")
    opened = verifier.clock.seconds
    _, answer = await report(verifier, node, **SETTLEMENT)
    verifier.clock.forward(60)
    async with transaction(verifier.service.db) as tx:
        for step in ("quarantine", "review"):
            await incidents.take_step(
                tx, answer["id"], step, "ada", "looking", verifier.clock.ms, two_person=False
            )
    found = await take(verifier, "/api/v1/events?after=0", 3, kinds={"incident"})
    told = [json.loads(event.data) for event in found]
    assert [(event["incident"], event["state"]) for event in told] == [
        (answer["id"], "suspected"),
        (answer["id"], "open"),
        (answer["id"], "under-review"),
    ]
    (incident,) = await listed(verifier)
    for each in (*told, incident):
        said = (each["node"], each["operator"], each["kind"], each["opened"])
        assert said == (node.id, "acme", "settlement-mismatch", opened)


async def test_a_call_without_an_answer_is_noted_with_the_operator(verifier) -> None:
    """A person may put the node into quarantine for it, and then routers need to know whose it is."""
    node = await verifier.enrol(operator="acme")
    async with transaction(verifier.service.db) as tx:
        await incidents.note_missed_call(tx, node.id, "s", verifier.clock.ms)
    (incident,) = await listed(verifier)
    assert (incident["kind"], incident["operator"]) == ("challenge-unanswered", "acme")
