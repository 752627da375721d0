"""The verifier's clock is set at each point of a session and of a result's life: nobody is blamed, and all is well again."""

from __future__ import annotations

from typing import Any

import pytest

from attester.client import VerifierClient
from attester.errors import VerifierError
from fixtures.simulator import SimulatedNode
from fixtures.transactions import transaction
from tests.conftest import RunningVerifier
from verifier.schemes.context import Channel, WalkRecord
from verifier.service import sweep
from verifier.service.after_steps import AfterSteps
from verifier.service.calls import CALL_SCHEDULER
from verifier.store import early, revocations, sessions
from verifier.store.leases import drop_early, take

HOUR_S, DAY_S = 3600, 86400
STEPS = [HOUR_S, -HOUR_S, DAY_S, -DAY_S]
POINTS = ["before the call", "called", "answered", "attested"]
LIFE_S = 300


class Place:
    """A verifier whose clock a test sets, and a node whose clock is right."""

    def __init__(self, verifier: RunningVerifier, node: SimulatedNode) -> None:
        self.verifier, self.node = verifier, node
        self.off_s = 0
        self.after = AfterSteps(verifier.service)

    @property
    def now(self) -> int:
        """The time that it is."""
        return self.verifier.clock.seconds - self.off_s

    @property
    def client(self) -> VerifierClient:
        return VerifierClient(self.verifier.http, self.verifier.url, self.node.key, now=lambda: self.now)

    async def set_clock(self, seconds: int) -> None:
        """Set the verifier's clock ahead or back."""
        self.verifier.clock.ms += seconds * 1000
        self.off_s += seconds
        await self.round()

    async def round(self) -> None:
        """What the verifier does every second."""
        await self.after.round()
        await sweep.end_expired(self.verifier.service)
        await self.verifier.app[CALL_SCHEDULER].tick()

    async def forward(self, seconds: int) -> None:
        """Time passes, and the verifier works meanwhile."""
        for _ in range(0, seconds, 20):
            self.verifier.clock.forward(min(20, seconds))
            await self.round()

    async def proceed(self, point: str) -> None:
        """Come to a point of a session."""
        if point == "before the call":
            return
        session = await self.verifier.call(self.node)
        if point == "called":
            return
        answers = self.node.answers(session)
        await self.client.answer_call(session, answers)
        if point == "attested":
            await self.client.submit(session, self.node.evidence(session, iat=self.now, answers=answers))

    async def attempt(self) -> None:
        """A whole call, by a node whose clock is right; while the verifier's is wrong, it may be refused."""
        session = await self.verifier.call(self.node)
        answers = self.node.answers(session)
        try:
            await self.client.answer_call(session, answers)
            await self.client.submit(session, self.node.evidence(session, iat=self.now, answers=answers))
        except VerifierError:
            pass

    async def blame(self) -> list[Any]:
        """All that is held against the node."""
        missed = await self.verifier.rows("SELECT record FROM walks WHERE record LIKE '%missed%'")
        return missed + await self.verifier.rows("SELECT kind, code, detail FROM incidents")

    def is_called_soon(self) -> bool:
        caller = self.verifier.app[CALL_SCHEDULER]
        return caller.plan.moment(self.node.id) - self.verifier.clock.ticks <= 60

    async def newest(self) -> Any:
        return (await self.verifier.rows("SELECT * FROM appraisals ORDER BY seq"))[-1]


@pytest.fixture
async def place(verifier: RunningVerifier) -> Place:
    node = await verifier.enrol()
    await verifier.attest(node)
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    caller.plan.set(node.id, verifier.clock.ticks + 100_000)
    return Place(verifier, node)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step_s", STEPS)
async def test_a_clock_that_is_wrong_for_a_while_blames_nobody(place: Place, point: str, step_s: int) -> None:
    """Within a minute of the clock being right, the node attests, and its result is the newest."""
    before = await place.newest()
    await place.proceed(point)
    await place.set_clock(step_s)
    await place.attempt()
    await place.forward(400)
    await place.set_clock(-step_s)
    await place.forward(20)
    claims = await place.verifier.attest(place.node)
    newest = await place.newest()
    assert await place.blame() == []
    assert claims["ear_status"] == "affirming"
    assert newest["sequence"] > before["sequence"]
    assert claims["ear_touchstone_sequence"] == newest["sequence"]
    assert not place.verifier.service.duties.doubt


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step_s", STEPS)
async def test_a_clock_that_was_wrong_from_the_start_and_is_set_right_blames_nobody(
    place: Place, point: str, step_s: int
) -> None:
    """Verifier and node were wrong together, and are right together."""
    await place.proceed(point)
    before = await place.newest()
    await place.set_clock(step_s)
    place.off_s = 0
    assert place.is_called_soon()
    # The next request of the node tells that the clock is right now.
    await place.client.open_session()
    await place.forward(20)
    claims = await place.verifier.attest(place.node)
    newest = await place.newest()
    assert (await place.blame(), claims["ear_status"]) == ([], "affirming")
    assert newest["sequence"] > before["sequence"]
    assert (newest["issued_ms"] > before["issued_ms"]) == (step_s > 0)


@pytest.mark.parametrize("step_s", [-HOUR_S, -DAY_S])
async def test_a_result_from_the_future_is_not_live_and_never_will_be(place: Place, step_s: int) -> None:
    """The node is silent from now on."""
    newest = await place.newest()
    await place.set_clock(step_s)

    async def state() -> tuple[int, str]:
        status, _ = await place.verifier.get(f"/api/v1/nodes/{place.node.id}/result")
        _, shown = await place.verifier.get(f"/api/v1/results/{newest['id']}")
        return status, shown["state"]

    assert await state() == (404, "early")
    await place.forward(LIFE_S)
    assert await state() == (404, "revoked")
    place.verifier.clock.forward(-step_s - LIFE_S)
    assert await state() == (404, "revoked")
    events = await place.verifier.rows("SELECT data FROM events WHERE type = 'revocation'")
    assert [f'"sequence":{newest["sequence"]}' in row["data"] for row in events] == [True]


async def test_a_result_that_has_run_out_by_a_fast_clock_is_revoked_all_the_same(place: Place) -> None:
    """A router whose clock is right would go by it."""
    newest = await place.newest()
    await place.set_clock(HOUR_S)
    async with transaction(place.verifier.service.db) as tx:
        await revocations.revoke_results(tx, place.node.id, place.verifier.clock.ms, "retired")
    events = await place.verifier.rows("SELECT data FROM events WHERE type = 'revocation'")
    assert [f'"result":"{newest["id"]}"' in row["data"] for row in events] == [True]


async def test_a_node_that_misses_calls_is_blamed_again_once_the_clock_is_settled(place: Place) -> None:
    """The doubt ends with the clock's being right, and is no excuse for ever."""
    await place.set_clock(HOUR_S)
    await place.set_clock(-HOUR_S)
    await place.verifier.call(place.node)
    await place.forward(160)
    assert len(await place.blame()) > 0


async def test_nothing_is_deleted_for_its_age_right_after_the_clock_was_set_ahead(place: Place) -> None:
    """It may have been set wrongly, and what is gone is gone."""
    service = place.verifier.service
    days = service.config.results.keep_days + 1
    await place.set_clock(days * DAY_S)
    await sweep.delete_old(service)
    kept = len(await place.verifier.rows("SELECT id FROM appraisals"))
    place.verifier.clock.forward(HOUR_S)
    await sweep.delete_old(service)
    assert (kept, len(await place.verifier.rows("SELECT id FROM appraisals"))) == (1, 0)


async def test_a_walk_from_the_future_is_as_old_as_it_is(place: Place) -> None:
    """After the clock was set back, its time is told anew; a verifier that was started again does not know it."""
    duties = place.verifier.service.duties
    now_ms = place.verifier.clock.ms
    walk = WalkRecord(channel=Channel.CALLED, verdict="right", at_ms=now_ms - 60_000)
    assert duties.redate([walk]) == (walk,)
    await place.set_clock(-HOUR_S)
    (told,) = duties.redate([walk])
    assert place.verifier.clock.ms - told.at_ms == 60_000


async def test_what_a_fast_clock_has_used_up_of_a_quota_is_free_again(place: Place) -> None:
    """Sessions from the future are not of the last hour."""
    arguments: dict[str, Any] = {
        "node_id": place.node.id, "channel": Channel.ANNOUNCED, "nonce": b"n" * 32, "lifetime_ms": 1,
        "wants": (), "references": {}, "hourly": 1,
    }  # fmt: skip
    now_ms = place.verifier.clock.ms
    async with transaction(place.verifier.service.db) as tx:
        await sessions.open_session(tx, now_ms=now_ms + HOUR_S * 1000, **arguments)
        await early.end_sessions(tx, now_ms)
    async with transaction(place.verifier.service.db) as tx:
        await sessions.open_session(tx, now_ms=now_ms, **{**arguments, "nonce": b"m" * 32})


async def test_leases_from_the_future_go(place: Place) -> None:
    """Otherwise a dead replica would look alive until then."""
    now_ms = place.verifier.clock.ms
    async with transaction(place.verifier.service.db) as tx:
        await take(tx, "duties", "dead", now_ms + HOUR_S * 1000, now_ms + HOUR_S * 1000 + 10_000)
        await drop_early(tx, now_ms)
        assert await take(tx, "duties", "alive", now_ms, now_ms + 10_000)


async def test_the_discovery_says_that_the_clock_was_set(place: Place) -> None:
    """And whether it is known to be right."""
    _, before = await place.verifier.get("/.well-known/veraison/verification")
    await place.set_clock(HOUR_S)
    _, after = await place.verifier.get("/.well-known/veraison/verification")
    assert before["clock"]["stepped_s"] is None
    assert (after["clock"]["stepped_s"], after["clock"]["in_doubt"]) == (3600.0, True)
