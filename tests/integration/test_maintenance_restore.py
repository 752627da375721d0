"""A restore never revives: challenges, event numbers, requests, nonces, tokens and results that were used stay used."""

from __future__ import annotations

import asyncio
import base64
import getpass
import secrets
from pathlib import Path
from typing import Any

import pytest

from attester.errors import VerifierError
from attester.proof import Request
from fixtures.minted_answers import chat, put
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from tests.conftest import FakeClock, RunningVerifier
from tests.integration import test_routers as routers
from tests.integration.maintenance import (
    WHY,
    Ended,
    attested,
    fill,
    lose_database,
    other_home,
    place_of,
    real_clock,
    rows,
    serving,
    verifier_does,
)
from tests.integration.test_events import take
from verifier.config import Home
from verifier.store.marks import read_marks
from verifier.store.restoring import CLOCKS_MS

STORES = ("sqlite", "postgres")
TAKEN = "SELECT model, kind, idx FROM pool WHERE session_id IS NOT NULL"
RESTORED_S = CLOCKS_MS / 1000 + 1


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture
async def home(verifier_home: Home, clock: FakeClock, model_folder: Path) -> Home:
    """A home whose verifier has more challenges than a block of the marks."""
    await fill(verifier_home, clock, model_folder, reads=420, walks=400)
    return verifier_home


async def back_up(home: Home, file: Path) -> None:
    done = await verifier_does("backup", home, file)
    assert done.status == 0, done.said


async def restored(home: Home, file: Path, *given: str | Path) -> Ended:
    """Lose the database and restore it."""
    await lose_database(home)
    return await restore(home, file, *given)


async def restore(home: Home, file: Path, *given: str | Path) -> Ended:
    done = await verifier_does("restore", home, file, *(given or ("--all-marks",)), *WHY)
    assert done.status == 0, done.said
    check = await verifier_does("check", home)
    assert check.status == 0, check.said
    return done


async def taken(home: Home) -> set[tuple[Any, ...]]:
    return {tuple(row.values()) for row in await rows(place_of(home), TAKEN)}


async def pass_the_fence(running: RunningVerifier) -> None:
    # The restore read the real clock.
    behind_s = max(real_clock().ms - running.clock.ms, 0) / 1000
    running.clock.forward(behind_s + RESTORED_S + 2 * running.service.config.sessions.skew_s)


async def test_a_used_challenge_is_never_posed_again(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Those taken after the backup are not free, those above the mark are, and new ones have new indexes."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        await back_up(home, file)
        for _ in range(20):
            await running.attest(node)
    used = await taken(home)
    assert len(used) == 42
    await restored(home, file)
    free = await rows(place_of(home), "SELECT model, kind, idx FROM pool WHERE session_id IS NULL")
    assert free
    assert not {tuple(row.values()) for row in free} & used
    async with serving(home, clock, model_folder) as running:
        await pass_the_fence(running)
        node = await running.enrol()
        for _ in range(5):
            await running.attest(node)
        asked = await taken(home) - used
        assert len(asked) == 10
        await publish(running.service.db, running.service.pool_key, model_folder, clock.ms)
    minted = await rows(place_of(home), "SELECT model, kind, idx FROM pool WHERE session_id IS NULL")
    assert not {tuple(row.values()) for row in minted} & (used | asked)


@pytest.mark.parametrize("all_marks", [True, False])
async def test_a_minted_answer_is_never_asked_again(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path, *, all_marks: bool
) -> None:
    """Those taken after the backup are not free; without the marks of every replica none is; open checks have ended."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        (row,) = await rows(place_of(home), "SELECT digest FROM reference_values WHERE state = 'active'")
        answers = [chat(f"Question {number}?") for number in range(300)]
        await put(running.service.db, running.service.pool_key, MODEL, row["digest"], answers)
        before = await ask(running, node)
        await back_up(home, file)
        after = await ask(running, node)
    assert after["checks"][0]["body"] != before["checks"][0]["body"]
    await restored(home, file, "--all-marks" if all_marks else "--discard-challenges")
    free = await rows(place_of(home), "SELECT idx FROM minted_answers WHERE check_id IS NULL ORDER BY idx")
    # A mark is raised in blocks, so some above it were never asked.
    assert (len(free) > 0) == all_marks
    assert all(each["idx"] >= 2 for each in free)
    (check,) = await rows(place_of(home), "SELECT state FROM answer_checks")
    assert check["state"] == "failed"


async def ask(running: RunningVerifier, node: SimulatedNode) -> Any:
    """A check of the node, as a router takes it."""
    body = {"model": MODEL, "node": node.id}
    async with running.http.post(f"{running.url}/api/v1/answer-checks", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_challenges_that_were_minted_after_the_backup_do_not_come_twice(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """A seed follows from its index, so an index that was taken is left out, also if the backup does not know it."""
    file = tmp_path / "b.db"
    await back_up(home, file)
    async with serving(home, clock, model_folder) as running:
        node = await running.enrol()
        db = running.service.db
        await db.write(lambda tx: tx.execute("DELETE FROM pool"))
        await db.write(lambda tx: tx.execute("UPDATE pool_counts SET taken = minted"))
        await publish(db, running.service.pool_key, model_folder, clock.ms)
        for _ in range(3):
            await running.attest(node)
    used = await taken(home)
    assert min(index for _, _, index in used) >= 400
    await restored(home, file)
    async with serving(home, clock, model_folder) as running:
        await publish(running.service.db, running.service.pool_key, model_folder, clock.ms)
    minted = await rows(place_of(home), "SELECT model, kind, idx FROM pool WHERE session_id IS NULL")
    assert len(minted) == 50
    assert not {tuple(row.values()) for row in minted} & used


async def test_marks_that_began_after_the_backup_are_not_enough(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Nor are lost ones: then every challenge must go, and new ones are far above."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        await back_up(home, file)
        for _ in range(3):
            await running.attest(node)
    used = await taken(home)
    await lose_database(home)
    home.high_water.unlink()
    done = await verifier_does("restore", home, file, "--all-marks", *WHY)
    assert (done.status, "does not exist" in done.said) == (1, True)
    clock.forward(3600)
    async with serving(home, clock, model_folder):
        pass
    await lose_database(home)
    done = await verifier_does("restore", home, file, "--all-marks", *WHY)
    assert (done.status, "newer than the backup" in done.said) == (1, True)
    await restored(home, file, "--discard-challenges")
    assert await rows(place_of(home), "SELECT idx FROM pool WHERE session_id IS NULL") == []
    async with serving(home, clock, model_folder) as running:
        await pass_the_fence(running)
        await publish(running.service.db, running.service.pool_key, model_folder, clock.ms)
        node = await running.enrol()
        await running.attest(node)
    again = await taken(home)
    assert max(index for *_, index in used) < 500
    assert min(index for *_, index in again - used) > 1 << 40


async def test_event_numbers_never_come_twice(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Whoever followed is told to take a fresh snapshot, at whatever number it was, and then follows on."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        await back_up(home, file)
        for _ in range(5):
            await running.attest(node)
        shown = await take(running, "/api/v1/events?after=0", 6, kinds={"result"})
    numbers = [int(event.id or 0) for event in shown]
    for _ in range(2):
        await restored(home, file)
        async with serving(home, clock, model_folder) as running:
            for number in (1, numbers[0], numbers[-1]):
                (event,) = await take(running, f"/api/v1/events?after={number}", 1)
                assert event.kind == "reset"
            _, page = await running.get("/api/v1/results")
            assert page["seq"] > numbers[-1]
            numbers.append(page["seq"])
            await pass_the_fence(running)
            node = await running.enrol()
            await running.attest(node)
            (event,) = await take(running, f"/api/v1/events?after={page['seq']}", 1, kinds={"result"})
            numbers.append(int(event.id or 0))
    assert numbers == sorted(set(numbers))


async def test_a_signed_request_is_not_accepted_again(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Also one whose node's clock was ahead.  Newly signed ones are accepted after half a minute."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        node = await running.enrol()
        await back_up(home, file)
        authority = running.url.partition("://")[2]
        path = "/challenge-response/v1/newSession"
        signed = [
            Request("POST", authority, path).authorize(node.key, now=clock.seconds + ahead)
            for ahead in (0, 25)
        ]
        for header in signed:
            assert await post(running, path, header) == 201
        await running.service.db.write(lambda tx: tx.execute("UPDATE sessions SET status = 'failed'"))
    await restored(home, file)
    async with serving(home, clock, model_folder) as running:
        for header in signed:
            assert await post(running, path, header) == 409
        running.clock.forward(20)
        for header in signed:
            assert await post(running, path, header) == 409
        await pass_the_fence(running)
        assert {await post(running, path, header) for header in signed} == {401}
        await running.attest(node)


async def post(running: RunningVerifier, path: str, authorization: str) -> int:
    async with running.http.post(running.url + path, headers={"Authorization": authorization}) as response:
        return response.status


@pytest.mark.parametrize("keep", [False, True])
async def test_enrolment_tokens(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path, *, keep: bool
) -> None:
    """One that was used after the backup enrols nobody, nor does an unused one, unless it is to be kept."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        before, token, unused = [await running.token() for _ in range(3)]
        await running.client(SimulatedNode(model_folder)).enrol(before, [MODEL])
        await back_up(home, file)
        await running.client(SimulatedNode(model_folder)).enrol(token, [MODEL])
    await restored(home, file, "--all-marks", *(("--keep-tokens",) if keep else ()))
    async with serving(home, clock, model_folder) as running:
        await pass_the_fence(running)
        for each in (before, *(() if keep else (token, unused))):
            with pytest.raises(VerifierError, match="unknown, used or expired"):
                await running.client(SimulatedNode(model_folder)).enrol(each, [MODEL])
        if keep:
            await running.client(SimulatedNode(model_folder)).enrol(unused, [MODEL])


async def test_a_session_is_not_given_a_second_result(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Neither one that waited at the backup, nor a stranger's, nor a caller's nonce; and no node missed a call."""
    file = tmp_path / "b.db"
    nonce = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    async with serving(home, clock, model_folder) as running:
        node = await running.enrol()
        called = await running.call(node)
        answers = node.answers(called)
        sealed = await stranger(running)
        callers = await stranger(running, f"?nonce={nonce}")
        await back_up(home, file)
        await running.client(node).answer_call(called, answers)
        evidence = node.evidence(called, iat=clock.seconds, answers=answers)
        await running.submit(called, evidence, node)
        strangers = [(each, node.evidence(each, iat=clock.seconds)) for each in (sealed, callers)]
        for each, data in strangers:
            assert (await running.post(each, data))[0] == 200
    await restored(home, file)
    async with serving(home, clock, model_folder) as running:
        for session, data in ((called, evidence), *strangers):
            status, _ = await running.post(session, data)
            assert status in (404, 410)
        path = "/challenge-response/v1/newSession"
        async with running.http.post(f"{running.url}{path}?nonce={nonce}") as response:
            assert (response.status, int(response.headers["Retry-After"]) > 30) == (409, True)
        await pass_the_fence(running)
        again = await stranger(running, f"?nonce={nonce}")
        status, problem = await running.post(again, strangers[1][1])
        assert status == 422, problem
    assert await rows(place_of(home), "SELECT seq FROM walks WHERE record LIKE '%missed%'") == []
    assert await rows(place_of(home), "SELECT id FROM incidents") == []


async def stranger(running: RunningVerifier, query: str = "") -> Any:
    """A session for anybody."""
    from attester.client import Session

    async with running.http.post(f"{running.url}/challenge-response/v1/newSession{query}") as response:
        assert response.status == 201
        body = await response.json(content_type=None)
        session_id = response.headers["Location"].rpartition("/")[2]
    return Session(session_id, base64.b64decode(body["nonce"]), ())


async def test_live_results_of_the_backup_are_revoked(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """One may have been revoked after the backup; the node gets a new one with its next call."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        await back_up(home, file)
    await restored(home, file)
    async with serving(home, clock, model_folder) as running:
        _, page = await running.get("/api/v1/results")
        assert page["results"] == []
        await pass_the_fence(running)
        await running.attest(node)
        _, page = await running.get("/api/v1/results")
        assert [each["node"] for each in page["results"]] == [node.id]


async def test_a_restore_is_a_change_with_who_and_why(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """The policy that was active still is."""
    async with serving(home, clock, model_folder):
        pass
    await back_up(home, tmp_path / "b.db")
    await restored(home, tmp_path / "b.db")
    changes = await rows(place_of(home), "SELECT * FROM changes ORDER BY seq")
    assert (changes[-1]["action"], changes[-1]["actor"], changes[-1]["reason"]) == (
        "restore",
        f"os:{getpass.getuser()}",
        "a test (on behalf of kim)",
    )
    assert changes[-1]["active"] == changes[-2]["active"]
    assert changes[-1]["generation"] == changes[-2]["generation"]


class TestReplicas:
    """Several replicas on one database, each with marks of its own."""

    @pytest.fixture(autouse=True)
    def only_on_postgres(self, verifier_home: Home) -> None:
        if not verifier_home.config().store.url:
            pytest.skip("a file has one process")

    async def two(
        self, home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
    ) -> tuple[Home, set[Any]]:
        """The second replica's home, and what both took after the backup: the second one takes the most."""
        second = other_home(home, tmp_path / "second")
        async with (
            serving(home, clock, model_folder) as a,
            serving(second, clock, model_folder) as b,
        ):
            node = await a.enrol()
            await a.attest(node)
            await back_up(home, tmp_path / "b.db")
            other = SimulatedNode(model_folder)
            await b.enrol(other)
            for _ in range(280):
                await b.call(other)
                await b.service.db.write(lambda tx: tx.execute("UPDATE sessions SET status = 'failed'"))
        return second, await taken(home)

    async def test_the_marks_of_all_are_needed(
        self, home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
    ) -> None:
        second, used = await self.two(home, clock, model_folder, tmp_path)
        own, others = read_marks(home.high_water), read_marks(second.high_water)
        assert own is not None
        assert others is not None
        highest = max(index for _, kind, index in used if kind == "read")
        assert own.pool[MODEL]["read"] <= highest < others.pool[MODEL]["read"]
        await lose_database(home)
        done = await verifier_does("restore", home, tmp_path / "b.db", *WHY)
        assert (done.status, "--mark" in done.said) == (1, True)
        await restored(home, tmp_path / "b.db", "--all-marks", "--mark", second.high_water)
        free = await rows(place_of(home), "SELECT model, kind, idx FROM pool WHERE session_id IS NULL")
        assert not {tuple(row.values()) for row in free} & used
        merged = read_marks(home.high_water)
        assert merged is not None
        assert merged.pool[MODEL]["read"] >= others.pool[MODEL]["read"]

    async def test_a_lost_mark_costs_all_challenges(
        self, home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
    ) -> None:
        _, used = await self.two(home, clock, model_folder, tmp_path)
        await restored(home, tmp_path / "b.db", "--discard-challenges")
        assert await rows(place_of(home), "SELECT idx FROM pool WHERE session_id IS NULL") == []
        async with serving(home, clock, model_folder) as running:
            await pass_the_fence(running)
            await publish(running.service.db, running.service.pool_key, model_folder, clock.ms)
            await attested(running)
        assert not (await taken(home) - used) & used
        again = max(index for *_, index in await taken(home))
        assert again > 1 << 40

    async def test_what_is_replaced_adds_its_own_marks(
        self, home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
    ) -> None:
        """A database that is still there knows what the other replica took."""
        _, used = await self.two(home, clock, model_folder, tmp_path)
        await restore(home, tmp_path / "b.db", "--all-marks", "--replace", "--yes")
        free = await rows(place_of(home), "SELECT model, kind, idx FROM pool WHERE session_id IS NULL")
        assert not {tuple(row.values()) for row in free} & used


async def test_no_challenge_is_taken_if_its_mark_cannot_be_written(
    home: Home, clock: FakeClock, model_folder: Path
) -> None:
    """The request is refused for now, and the challenge stays free."""
    async with serving(home, clock, model_folder) as running:
        node = await running.enrol()
        home.high_water.unlink()
        home.high_water.mkdir()
        with pytest.raises(VerifierError):
            await running.client(node).open_session()
        assert await taken(home) == set()
        home.high_water.rmdir()
        await running.client(node).open_session()
        marks = read_marks(home.high_water)
        assert marks is not None
        assert marks.pool[MODEL] == {"read": 257, "walk": 257}


async def test_marks_are_written_once_for_many_challenges(
    home: Home, clock: FakeClock, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attestation does not wait for a file."""
    from verifier.store import marks

    written = []
    raised = marks.replace_file
    monkeypatch.setattr(marks, "replace_file", lambda *given: (written.append(1), raised(*given)))
    async with serving(home, clock, model_folder) as running:
        (node,) = await attested(running)
        await asyncio.sleep(0.3)
        written.clear()
        for _ in range(40):
            await running.attest(node)
        assert written == []


async def test_no_router_is_listed_that_may_have_been_removed_meanwhile(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Each registers again; who was removed before the backup stays removed."""
    file = tmp_path / "b.db"
    async with serving(home, clock, model_folder) as running:
        gone, later = routers.made(running), routers.made(running)
        token = await routers.secret(running)
        for router in (gone, later):
            await routers.register(running, router, token)
        spki = gone.certificate.spki_sha256.hex()
        assert (await verifier_does("router", home, "remove", spki, "--reason", "a test")).status == 0
    await back_up(home, file)
    await restored(home, file)
    async with serving(home, clock, model_folder) as running:
        assert await routers.listed(running) == []
        assert await routers.register(running, gone, token) == (403, "registration.removed")
        assert (await routers.register(running, later, token))[1]["registered_for_s"] == 0
