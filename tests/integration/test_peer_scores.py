"""Routers report how nodes score other nodes' answers: a review opens, for both, and nothing else follows."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import aiohttp
import msgspec
import pytest

from fixtures.simulator import MODEL, SimulatedNode
from router.config import VerifierSection
from router.gateway.checks import CheckSourceError
from router.service.verifier_checks import VerifierChecks
from tests.integration.revisions import mint, resaved, upgrade
from tests.integration.test_answer_checks import post, serving
from verifier.answers import peering, sequence, tables
from verifier.roles import Role
from verifier.service import sweep
from verifier.store import peer_scores

STORES = ("sqlite", "postgres")
pytestmark = pytest.mark.usefixtures("only_our_calls")
PATH = "/api/v1/answer-checks/peers"
STEPS = sequence.increments(tables.PEER_RATES)
UNTIL_REVIEW = int(sequence.boundary(1.0) / STEPS.differs) + 1
"""Scores above the limit, one after the other, until a review opens."""
HIGH = {"mean_gap": 1.0, "largest_gap": 5.0, "disagreements": 6}


@pytest.fixture
def verifier_settings(verifier_settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **verifier_settings,
        "answers": {"router_per_hour": 8, "router_per_node_hour": 5, "lifetime_s": 600},
    }


class Pair:
    """Two nodes of two operators, each with a live result."""

    def __init__(
        self, verifier: Any, node: SimulatedNode, result: str, by: SimulatedNode, by_result: str
    ) -> None:
        self.verifier = verifier
        self.node = node
        self.by = by
        self.results = {"result": result, "by_result": by_result}

    def report(self, **changed: Any) -> dict[str, Any]:
        numbers = {"tokens": 12, "mean_nll": 0.8, "mean_gap": 0.0, "largest_gap": 0.0, "disagreements": 0}
        names = {"id": secrets.token_hex(16), "model": MODEL, "node": self.node.id, "by": self.by.id}
        return {**names, **self.results, "at_ms": self.verifier.clock.ms, **numbers, **changed}

    async def send(self, *, router: str = "r1", **changed: Any) -> tuple[int, Any]:
        return await post(self.verifier, PATH, self.report(**changed), router)

    async def count(self, times: int, **changed: Any) -> None:
        """As if so many had been reported, by many routers over many hours."""
        report = msgspec.convert(self.report(**changed), peering.PeerReport)
        for _ in range(times):
            each = msgspec.structs.replace(report, id=secrets.token_hex(16))
            await self.verifier.service.db.write(
                lambda tx, each=each: peer_scores.take(
                    tx,
                    each,
                    "r0",
                    b"",
                    sequence.boundary(1.0),
                    tables.PEER_UNMEASURED,
                    self.verifier.clock.ms - 7_200_000,
                )
            )


async def pair(verifier: Any, one: str = "acme", other: str = "blue") -> Pair:
    node, result = await serving(verifier, one)
    by, by_result = await serving(verifier, other)
    return Pair(verifier, node, result, by, by_result)


def code(answer: Any) -> str:
    return str(answer["type"].rpartition("#")[2])


async def kept(verifier: Any) -> int:
    (row,) = await verifier.rows("SELECT count(*) AS n FROM peer_reports")
    return int(row["n"])


async def reviews(verifier: Any) -> Any:
    headers = await verifier.key("rev", Role.REVIEWER)
    async with verifier.stranger.get(verifier.url + "/api/v1/answer-reviews", headers=headers) as response:
        assert response.status == 200
        return (await response.json())["peers"]


async def test_a_score_is_kept_in_numbers(verifier: Any) -> None:
    both = await pair(verifier)
    status, answer = await both.send()
    assert status == 201
    (row,) = await verifier.rows("SELECT * FROM peer_reports")
    assert (row["id"], row["node_id"], row["by_id"], row["router"]) == (
        answer["id"],
        both.node.id,
        both.by.id,
        "r1",
    )
    assert (row["tokens"], row["mean_nll"], row["is_above"]) == (12, 0.8, 0)
    rows = await verifier.rows("SELECT node_id, role, agrees, differs FROM peer_scores ORDER BY role")
    assert [tuple(each.values()) for each in rows] == [
        (both.node.id, "answered", 1, 0),
        (both.by.id, "scored", 1, 0),
    ]


async def test_the_same_report_again_is_counted_once(verifier: Any) -> None:
    both = await pair(verifier)
    report = both.report(**HIGH)
    assert [(await post(verifier, PATH, report))[0] for _ in range(3)] == [201, 200, 200]
    assert await kept(verifier) == 1
    rows = await verifier.rows("SELECT differs FROM peer_scores")
    assert [row["differs"] for row in rows] == [1, 1]


async def test_two_deliveries_at_once_are_counted_once(verifier: Any) -> None:
    both = await pair(verifier)
    report = both.report(**HIGH)
    await verifier.key("r1", Role.ROUTER)
    found = await asyncio.gather(*(post(verifier, PATH, report) for _ in range(3)))
    assert {status for status, _ in found} <= {200, 201}
    rows = await verifier.rows("SELECT differs FROM peer_scores")
    assert [row["differs"] for row in rows] == [1, 1]


async def test_other_bytes_by_one_id_are_refused(verifier: Any) -> None:
    both = await pair(verifier)
    report = both.report()
    await post(verifier, PATH, report)
    status, answer = await post(verifier, PATH, {**report, "tokens": 13})
    assert (status, code(answer)) == (409, "answers.check.reused")
    assert await kept(verifier) == 1


async def test_another_routers_id_is_refused(verifier: Any) -> None:
    both = await pair(verifier)
    report = both.report()
    await post(verifier, PATH, report)
    assert (await post(verifier, PATH, report, "r2"))[0] == 409


async def test_scores_above_the_bound_open_a_review_for_both_and_nothing_else(verifier: Any) -> None:
    both = await pair(verifier)
    await both.count(UNTIL_REVIEW - 1, **HIGH)
    assert await reviews(verifier) == []
    before = await verifier.rows("SELECT seq FROM events ORDER BY seq")
    assert (await both.send(**HIGH))[0] == 201
    found = {(each["node"], each["role"]) for each in await reviews(verifier)}
    assert found == {(both.node.id, "answered"), (both.by.id, "scored")}
    assert await verifier.rows("SELECT * FROM incidents") == []
    assert await verifier.rows("SELECT * FROM suspicions") == []
    assert await verifier.rows("SELECT seq FROM events ORDER BY seq") == before


async def test_scores_below_the_bound_open_none(verifier: Any) -> None:
    both = await pair(verifier)
    await both.count(3 * UNTIL_REVIEW, mean_gap=tables.PEER_UNMEASURED, largest_gap=5.0, disagreements=3)
    await both.send()
    assert await reviews(verifier) == []


async def test_as_many_high_scores_as_true_weights_have_open_none(verifier: Any) -> None:
    both = await pair(verifier)
    for _ in range(12):
        await both.count(1, **HIGH)
        await both.count(11)
    assert await reviews(verifier) == []


async def test_one_that_stands_against_many_is_seen(verifier: Any) -> None:
    """Its peers each have few scores against it: no review of theirs opens."""
    first, others = await pair(verifier), []
    for operator in ("cyan", "dun", "ecru"):
        node, result = await serving(verifier, operator)
        others.append(Pair(verifier, first.node, first.results["result"], node, result))
    each = UNTIL_REVIEW // 4 + 1
    for both in (first, *others):
        await both.count(each, **HIGH)
    assert [(found["node"], found["role"]) for found in await reviews(verifier)] == [
        (first.node.id, "answered")
    ]


async def test_a_person_closes_it(verifier: Any) -> None:
    both = await pair(verifier)
    await both.count(UNTIL_REVIEW, **HIGH)
    headers = await verifier.key("rev", Role.REVIEWER)
    for node in (both.node, both.by):
        url = f"{verifier.url}/api/v1/answer-reviews/{node.id}/clear"
        body = {"model": MODEL, "reason": "texts in French"}
        async with verifier.stranger.post(url, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
    assert await reviews(verifier) == []


async def test_a_reviewer_sees_the_numbers(verifier: Any) -> None:
    both = await pair(verifier)
    await both.send(**HIGH)
    headers = await verifier.key("rev", Role.REVIEWER)
    for node, role in ((both.node, "answered"), (both.by, "scored")):
        url = f"{verifier.url}/api/v1/answer-reviews/{node.id}"
        async with verifier.stranger.get(url, headers=headers) as response:
            found = (await response.json())["peers"]
        (report,) = found[role]
        assert (report["node"], report["by"], report["mean_gap"], report["is_above"]) == (
            both.node.id, both.by.id, 1.0, True,
        )  # fmt: skip
        assert [each["role"] for each in found["scores"]] == [role]


async def refused(verifier: Any, both: Pair, status: int, **changed: Any) -> None:
    found, answer = await both.send(**changed)
    assert found == status, answer
    assert await kept(verifier) == 0
    assert await verifier.rows("SELECT * FROM peer_scores") == []


async def test_two_nodes_of_one_operator_are_refused(verifier: Any) -> None:
    await refused(verifier, await pair(verifier, "acme", "acme"), 400)


async def test_a_result_of_another_node_is_refused(verifier: Any) -> None:
    both = await pair(verifier)
    await refused(verifier, both, 409, result=both.results["by_result"])
    await refused(verifier, both, 409, by_result=both.results["result"])


async def test_a_result_that_there_is_not_is_refused(verifier: Any) -> None:
    await refused(verifier, await pair(verifier), 409, result="none")


async def test_a_node_that_there_is_not_is_refused(verifier: Any) -> None:
    await refused(verifier, await pair(verifier), 404, by="none")


async def test_another_model_is_refused(verifier: Any) -> None:
    await refused(verifier, await pair(verifier), 409, model="example/other")


async def test_a_result_of_long_ago_is_refused(verifier: Any) -> None:
    both = await pair(verifier)
    verifier.clock.forward(verifier.service.config.results.lifetime_s + 3601)
    await refused(verifier, both, 410)


async def test_two_revisions_are_refused(verifier: Any, tmp_path: Any) -> None:
    node, result = await serving(verifier, "acme")
    by, _ = await serving(verifier, "blue")
    folder = resaved(verifier.model_folder, tmp_path / "new")
    await upgrade(verifier, by, folder, await mint(verifier, folder, replace=True))
    later = await verifier.attest(by)
    await refused(verifier, Pair(verifier, node, result, by, later["jti"]), 400)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "x"}, {"id": "A" * 32}, {"tokens": 0}, {"tokens": 1 << 17}, {"tokens": 1.5}, {"tokens": True},
        {"mean_nll": -1}, {"mean_nll": 1e9}, {"mean_nll": "1"}, {"mean_gap": 1.0}, {"largest_gap": 1.0},
        {"disagreements": 13, "largest_gap": 1.0}, {"disagreements": 1}, {"at_ms": -1}, {"model": ""},
        {"prompt": "a secret"}, {"text": "an answer"}, {"node": "x" * 65},
    ],
)  # fmt: skip
async def test_what_is_malformed_leaves_no_trace(verifier: Any, changed: dict[str, Any]) -> None:
    await refused(verifier, await pair(verifier), 400, **changed)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"id":', b"\xff", b'{"mean_nll": NaN}'])
async def test_what_is_no_report_is_refused(verifier: Any, data: bytes) -> None:
    assert (await post(verifier, PATH, data))[0] == 400


async def test_a_node_does_not_score_itself(verifier: Any) -> None:
    both = await pair(verifier)
    await refused(verifier, both, 400, by=both.node.id, by_result=both.results["result"])


async def test_one_router_says_only_so_much_of_one_node(verifier: Any) -> None:
    """Of its answers, and by its scores; other routers go on, and after an hour so does this one."""
    both = await pair(verifier)
    assert [(await both.send())[0] for _ in range(5)] == [201] * 5
    status, answer = await both.send()
    assert (status, code(answer)) == (429, "challenges.quota")
    node, result = await serving(verifier, "cyan")
    by_same = Pair(verifier, node, result, both.by, both.results["by_result"])
    assert (await by_same.send())[0] == 429
    assert (await both.send(router="r2"))[0] == 201
    verifier.clock.forward(3601)
    later = await pair(verifier)
    assert (await later.send())[0] == 201


async def test_one_router_says_only_so_much_of_all_nodes(verifier: Any) -> None:
    first, second = await pair(verifier), await pair(verifier, "cyan", "dun")
    assert [(await first.send())[0] for _ in range(4)] == [201] * 4
    assert [(await second.send())[0] for _ in range(5)] == [201] * 4 + [429]


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.REVIEWER, Role.RELYING_PARTY])
async def test_only_routers_report(verifier: Any, role: Role) -> None:
    both = await pair(verifier)
    headers = await verifier.key("somebody", role)
    async with verifier.stranger.post(verifier.url + PATH, json=both.report(), headers=headers) as response:
        assert response.status == 403
    assert await kept(verifier) == 0


async def test_old_reports_are_deleted_and_what_was_counted_stays(verifier: Any) -> None:
    both = await pair(verifier)
    await both.send(**HIGH)
    verifier.clock.forward(verifier.service.config.results.keep_days * 86400 + 60)
    await sweep.delete_old(verifier.service)
    assert await kept(verifier) == 0
    assert len(await verifier.rows("SELECT * FROM peer_scores")) == 2


async def test_the_router_reports_in_this_form(verifier: Any) -> None:
    """And takes a refusal for the last word, and an outage for none."""
    both = await pair(verifier)
    token = (await verifier.key("r1", Role.ROUTER))["Authorization"].partition(" ")[2]
    async with aiohttp.ClientSession() as http:
        source = VerifierChecks(http, VerifierSection(url=verifier.url), lambda: token)
        report = both.report()
        assert await source.report_score(report)
        assert await source.report_score(report)
        assert not await source.report_score({**report, "tokens": 13})
        with pytest.raises(CheckSourceError):
            await VerifierChecks(http, VerifierSection(url=verifier.url), lambda: "x").report_score(report)
    assert await kept(verifier) == 1
