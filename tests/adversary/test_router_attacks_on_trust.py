"""
Attacks on who may work at all: 2, 8, 22, 29 and 30 of the catalogue (reference/routers.md §C.2).

Each test fails where its attack succeeds; the last one takes the defences away and shows that it does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from msgspec import structs

from router.choose import gates
from router.choose.candidates import Lane
from router.choose.ranking import CandidateFacts
from router.gateway import probe
from router.gateway.pinned import open_session
from router.model import liveness
from router.model.liveness import Heartbeat
from router.model.node import NodeView
from router.model.standing import Rating, Standing
from router.model.statistics import NodeStatistics, StatisticsAggregate
from router.model.usage import UsageMismatch
from router.model.workload import Table
from router.service.state import STATE
from router.state import result_reader
from router.state.fleet import Fleet as RouterFleet
from router.state.pool import WorkloadPool
from router.state.prober import Prober
from tests.adversary.defences import Row, names, succeeds_without
from tests.integration.gateway import CHAT, CHATS, Fleet, by, key, opened
from tests.unit.router.doubles import Handler, Moved, answers, result_key, until
from tests.unit.router.support import NOW, WEIGHTS, WORKLOAD, view
from verifier import results
from verifier.results import AttestationResult, encode_jwt
from verifier.roles import Caller


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def code(fleet: Fleet, node: str) -> str | None:
    """The gate that is closed to a node; `None` where it may work."""
    verdict = fleet.router.verdict(node, fleet.router.table.workloads["tiny"])
    return None if verdict is None else verdict.code


def known(fleet: Fleet, node: str) -> tuple[Any, ...]:
    """All that the router goes by about a node."""
    kept = fleet.statistics(node)
    return fleet.router.view(node), kept.own, kept.rating, kept.load.failures_in_a_row, code(fleet, node)


async def settled(fleet: Fleet) -> None:
    """Everything that the verifier has sent was taken in."""
    fleet.verifier.send("node", node="marker", state="retired")
    await until(lambda: fleet.router.view("marker").retired)
    fleet.verifier.results.pop("marker", None)
    fleet.router.drop_node("marker")


async def heartbeat(fleet: Fleet) -> None:
    """The verifier is there, and has nothing to say."""
    fleet.verifier.send_raw(b"event: heartbeat\ndata: {}\n\n")
    await until(lambda: fleet.router.silent_s == 0)


# 2: tampering with what is held of rivals.

KEYS = [key("attacker"), key("person", role="reviewer")]
ACCUSES_B: list[Handler] = [
    answers(500, b'{"error": {"message": "upstream b: quarantined", "node": "b"}}', X_Touchstone_Node="b"),
    answers(400, b'{"node": "b", "outcome": "crashed", "blame": "node"}'),
    answers(302, b"", Location="/api/v1/nodes/b/standing"),
    answers(200, b'{"touchstone": {"attempts": [{"node": "b", "outcome": "crashed", "blame": "node"}]}}'),
    answers(200, b'data: {"error": {"node": "b"}}\n\n', Content_Type="text/event-stream"),
]
WRITES = [
    ("POST", "/api/v1/incidents/{hold}/release"),
    ("POST", "/api/v1/incidents"),
    ("POST", "/api/v1/results"),
    ("POST", "/api/v1/events"),
    ("PUT", "/api/v1/nodes/b"),
    ("DELETE", "/api/v1/nodes/b"),
    ("POST", "/api/v1/nodes/b/standing"),
    ("PATCH", "/api/v1/nodes/b/standing"),
    ("POST", "/api/v1/decisions"),
]
BODIES: list[dict[str, Any]] = [
    {"reason": "it is mine"},
    {"node": "b", "state": "retired", "incident": "i"},
    {"node": "b", "outcome": "crashed", "operator": "rival", "kind": "settlement-mismatch"},
]


async def test_attack_2_writing_over_the_api(fleet: Fleet) -> None:
    """2, tampering with rivals' status: no client and no node writes about another, nor lets one go."""
    a, _ = await fleet.node("a"), await fleet.node("b")
    fleet.verifier.trust("held")
    await fleet.start(sections={"keys": KEYS})
    holds = fleet.app[STATE].holds
    mismatch = UsageMismatch(
        answers=20, what="answers", claimed=1000, allowed=10, is_confirmed=True, router_is_wrong=False
    )
    holds.report_mismatch("held", "attacker", mismatch)
    await until(lambda: holds._known)
    (hold,) = await holds.list_open()
    before = known(fleet, "b")
    for headers in ({}, by("attacker"), by("guessed"), {"Authorization": "Bearer " + KEYS[1]["sha256"]}):
        for method, path in WRITES:
            for body in BODIES:
                async with fleet.http.request(
                    method, fleet.url + path.format(hold=hold.id), json=body, headers=headers
                ):
                    pass
    for a.act in ACCUSES_B:
        given = {"X-Touchstone-Node": "b", "X-Touchstone-Outcome": "crashed", "X-Touchstone-Decision": "b"}
        fleet.router.begin_hold("b", "aside")
        await fleet.post(CHAT | {"node": "b", "touchstone": {"node": "b"}}, CHATS, **given, **by("attacker"))
        fleet.router.end_hold("b", "aside")
    assert known(fleet, "b") == before, "attack 2 succeeds: a rival is another than before"
    assert code(fleet, "held") == "incident.quarantine", "attack 2 succeeds: a held node was let go"


async def test_attack_2_results_that_the_verifier_did_not_sign(fleet: Fleet) -> None:
    """
    2, likewise on the feed: unsigned and foreign-signed results let nobody in and move no standing.

    Who could write there could revoke as well, so a result that is none voids the one before it.
    """
    rival = await fleet.node("b")
    fleet.verifier.trust("bad", weights={**WEIGHTS, "executables": 96})
    await fleet.start()
    fleet.establish("b")
    before = known(fleet, "b")
    good = fleet.verifier.ear("bad", endpoint=rival.endpoint)
    headers = {"kid": fleet.verifier.key.kid, "typ": "eat+jwt"}
    foreign = encode_jwt(good, result_key())
    named = jwt.encode(good.to_claims(), result_key().private, "ES256", headers)
    unsigned = jwt.encode(good.to_claims(), None, "none", headers)
    for token in (foreign, named, unsigned, foreign.rpartition(".")[0] + "."):
        fleet.verifier.send("result", node="bad", token=token)
        fleet.verifier.send("result", node="new", token=token)
    await settled(fleet)
    assert None not in (code(fleet, "bad"), code(fleet, "new")), (
        "attack 2 succeeds: a forged result let it in"
    )
    assert known(fleet, "b") == before, "attack 2 succeeds: a rival is another than before"


def without_reviewers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key may decide about incidents: a shared token."""
    monkeypatch.setattr(Caller, "acting_as", lambda self, _: self)


def without_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are read and not checked."""

    def read(token: str, _: Any, **given: Any) -> AttestationResult:
        return results._accept(jwt.decode(token, options={"verify_signature": False}), leeway=0, **given)

    monkeypatch.setattr(result_reader.results, "decode_jwt", read)


# 8: passing once, and then downgrading.


@pytest.mark.parametrize(("after_s", "why"), [(301, "result.old"), (601, "result.expired")])
async def test_attack_8_validate_once_then_downgrade(fleet: Fleet, after_s: float, why: str) -> None:
    """8, validate once, then downgrade: a result goes stale by itself, whatever the node has earned."""
    node = await fleet.node("a")
    await fleet.start(timeout_s=600)
    fleet.establish("a")
    assert (await fleet.post())[0] == 200
    fleet.clock.forward(after_s)
    await heartbeat(fleet)
    status, document, _ = await fleet.post()
    assert (status, len(node.requests)) == (503, 1), "attack 8 succeeds: work went by an old result"
    assert f"1 {why}" in document["error"]["message"]


def without_freshness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged once stays so until something is said (`!is_validated` only)."""
    monkeypatch.setattr(gates, "changes_in", lambda *_: float("inf"))


# 22: a new name after a quarantine.


async def after_a_quarantine(fleet: Fleet) -> None:
    """Nodes of two operators; one of acme's is quarantined, and acme enrols another after it."""
    await fleet.engine("bad", operator="acme")
    await fleet.engine("other", operator="other")
    await fleet.start()
    fleet.establish("bad", "other")
    opened = fleet.clock.seconds
    fleet.verifier.send("incident", node="bad", incident="i", state="open", operator="acme", opened=opened)
    for node, operator in (("new", "acme"), ("honest-new", "other")):
        await fleet.engine(node, operator=operator, enrolled=opened + 60)
        fleet.verifier.send("result", node=node, token=fleet.verifier.results[node])
    await settled(fleet)


async def test_attack_22_whitewashing(fleet: Fleet) -> None:
    """22, whitewashing: a name enrolled after a quarantine waits for the same review; others' newcomers do not."""
    await after_a_quarantine(fleet)
    assert [code(fleet, node) for node in ("bad", "honest-new", "other")] == [
        "incident.quarantine",
        None,
        None,
    ]
    assert code(fleet, "new") == "incident.operator", "attack 22 succeeds: a new name is worth more"


async def test_attack_22_whitewashing_by_a_release(fleet: Fleet) -> None:
    """22, once a person has let the old one go: both begin as newcomers, and neither as what it was."""
    await after_a_quarantine(fleet)
    fleet.verifier.send("incident", node="bad", incident="i", state="released", operator="acme")
    await settled(fleet)
    workload = fleet.router.table.workloads["tiny"]
    lanes = [fleet.router.lane(node, workload) for node in ("bad", "new", "honest-new", "other")]
    assert lanes == [*[Lane.PROBATION] * 3, Lane.ESTABLISHED], "attack 22 succeeds: it is what it was"
    pool = fleet.router.view_for(workload).pool
    facts = [structs.replace(pool.facts(node), jti="") for node in ("new", "honest-new")]
    assert facts == [CandidateFacts(Rating())] * 2


def without_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks whose the new name is, and since when."""
    monkeypatch.setattr(NodeView, "enrolled", None)


def without_starting_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release gives back what was held."""
    monkeypatch.setattr(NodeStatistics, "forget_completions", lambda *_: None)


# 29: driving the pool empty.


async def test_attack_29_fail_open_extraction(fleet: Fleet) -> None:
    """29, fail-open extraction: with every honest node knocked out, those without trust still get nothing."""
    shut = [await fleet.node(name) for name in ("held", "revoked", "stale", "altered")]
    endpoints = {node.name: node.endpoint for node in shut}
    fleet.verifier.trust("altered", weights={**WEIGHTS, "file-system": 96}, endpoint=endpoints["altered"])
    fleet.verifier.trust("stale", iat=fleet.clock.seconds - 301, endpoint=endpoints["stale"])
    honest = await fleet.node("honest")
    await fleet.start()
    fleet.establish("held", "revoked", "stale", "altered")
    fleet.verifier.send("incident", node="held", incident="i", state="open")
    fleet.verifier.send("revocation", node="revoked")
    await settled(fleet)

    async def dies(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    honest.act = dies
    for _ in range(5):
        status, document, _ = await fleet.post(**{"X-Touchstone-Explain": "1"})
        asked = [node.name for node in shut if node.requests]
        assert asked == [], "attack 29 succeeds: an empty pool let in who may not"
        assert status == 502
    # What is no question of trust does give way, and says so.
    assert document["touchstone"]["opened"] == ["capacity.breaker"]
    fleet.verifier.send("node", node="honest", state="retired")
    await settled(fleet)
    status, document, headers = await fleet.post()
    assert (status, [node.name for node in shut if node.requests]) == (503, [])
    for why in ("retired", "quarantine", "revoked", "old", "not-affirming"):
        assert why in document["error"]["message"]
    assert int(headers["Retry-After"]) > 0


def failing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gate gives way where nobody else is left, as in all routers of §A.3."""
    place = WorkloadPool.place

    def last_resort(self: WorkloadPool, key: Any, statistics: Any, *, lane: Any, **given: Any) -> bool:
        return place(self, key, statistics, lane=lane or Lane.BROKEN, **given)

    monkeypatch.setattr(WorkloadPool, "place", last_resort)


# 30: stretching one's heartbeat.

EVERY_S = 5.0
FOUND_WITHIN_S = 47.0
"""Twice the interval, the pause, and 5.3 deviations of at most the interval."""
STRETCHED: dict[str, list[float]] = {
    "slower and slower": [EVERY_S + 0.5 * n for n in range(31)] * 5,
    "as late as may be": [2 * EVERY_S + liveness.PAUSE_S] * 200,
    "late and early": [2 * EVERY_S + liveness.PAUSE_S, 0.001] * 100,
    "now and then an hour": [EVERY_S] * 3 + [3600.0, EVERY_S] * 90,
}


@pytest.mark.parametrize("intervals", STRETCHED.values(), ids=STRETCHED.keys())
async def test_attack_30_heartbeat_stretch(intervals: list[float]) -> None:
    """30, heartbeat stretch: however late it used to answer, a dead node is found within 47 s."""
    clock = Moved(NOW * 1000)
    fleet = RouterFleet(Table([WORKLOAD]), clock.clock(), probe_every_s=EVERY_S)
    fleet.note_verifier_contact()
    fleet.put_node(view("a", iat=NOW, exp=NOW + 10**9))
    fleet.restore_statistics(
        "a", WORKLOAD.standing_key, StatisticsAggregate(Standing((100.0,) * 2, at=float(NOW)))
    )
    for interval in intervals:
        fleet.note_probe_answer("a")
        clock.forward(interval)
    fleet.note_probe_answer("a")
    fleet.put_node(view("a", iat=clock.seconds, exp=clock.seconds + 10**6))
    assert fleet.lane("a", WORKLOAD) is Lane.ESTABLISHED
    clock.forward(FOUND_WITHIN_S)
    fleet.note_verifier_contact()
    fleet.advance()
    assert fleet.lane("a", WORKLOAD) is Lane.BROKEN, "attack 30 succeeds: its silence seems usual"


async def test_attack_30_heartbeat_never_begun(fleet: Fleet) -> None:
    """30, its cousin: who does its work and never answers a probe is not taken to be there for ever."""
    node = await fleet.node("a")
    await fleet.start()
    fleet.establish("a")
    assert (await fleet.post())[0] == 200

    async def ignores(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    node.act = ignores
    async with open_session(allow_private=True) as http:
        ask = partial(probe.ask, http, allow_private=True)
        prober = Prober(fleet.router, ask, fleet.clock.clock(), every_s=EVERY_S)
        for _ in range(20):
            assert not await prober.probe("a")
            fleet.clock.forward(EVERY_S)
            await heartbeat(fleet)
    workload = fleet.router.table.workloads["tiny"]
    assert fleet.router.verdict("a", workload) is not None, (
        "attack 30 succeeds: it is still taken to be there"
    )


def without_a_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence begins with the first answer."""
    monkeypatch.setattr(RouterFleet, "note_probe", lambda *_: None)


def without_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    """φ as published: whatever the intervals were, they are what is usual."""

    def answered(self: Heartbeat, now: float) -> None:
        if self._last_answer is not None:
            self.intervals.append(now - self._last_answer)
            mean = self._mean = sum(self.intervals) / len(self.intervals)
            spread = sum((x - mean) ** 2 for x in self.intervals) / len(self.intervals)
            self._deviation = max(spread**0.5, liveness.LEAST_DEVIATION_S)
        self._last_answer = now
        self.note_work(now)

    monkeypatch.setattr(Heartbeat, "note_probe_answer", answered)


WITHOUT: list[Row] = [
    (2, test_attack_2_writing_over_the_api, without_reviewers, ()),
    (2, test_attack_2_results_that_the_verifier_did_not_sign, without_signatures, ()),
    (8, test_attack_8_validate_once_then_downgrade, without_freshness, (301, "result.old")),
    (8, test_attack_8_validate_once_then_downgrade, without_freshness, (601, "result.expired")),
    (22, test_attack_22_whitewashing, without_lineage, ()),
    (22, test_attack_22_whitewashing_by_a_release, without_starting_over, ()),
    (29, test_attack_29_fail_open_extraction, failing_open, ()),
    (30, test_attack_30_heartbeat_never_begun, without_a_first_question, ()),
    (30, test_attack_30_heartbeat_stretch, without_caps, (STRETCHED["late and early"],)),
    (30, test_attack_30_heartbeat_stretch, without_caps, (STRETCHED["now and then an hour"],)),
]


@pytest.mark.parametrize("row", WITHOUT, ids=names(WITHOUT))
async def test_without_its_defence_attack_NN_succeeds(  # noqa: N802
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The very test of the attack fails by its success, where the defence is taken away."""
    await succeeds_without(row, fleet, monkeypatch)
