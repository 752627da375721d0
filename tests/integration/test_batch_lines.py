"""Lines of batches: done once, charged once, below live traffic, through failures, ends and several routers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from router.config import ApiKey
from router.gateway.jobs.guests import write_guest
from router.gateway.openai import GATEWAY
from router.model.job_lines import LineSplitter, RangeMaker
from router.model.workload import Table, Workload
from router.service.state import STATE
from router.store import jobs
from tests.integration.batching import (
    KEYS,
    OTHER,
    OWNER,
    STAFF,
    batching,
    begin,
    client,
    ended,
    eventually,
    files_of,
    jsonl,
    line,
    results,
)
from tests.integration.gateway import CHAT, CHATS, Fleet, Running, by, key, opened
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from verifier.roles import Role
from verifier.store.database import UnavailableError

STORES = ("sqlite", "postgres")
WIDE = {"places_per_node": 16}


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> dict[str, Any]:
    return {"url": store_url} if store_url else {"path": str(tmp_path / "router.db")}


async def rows(fleet: Fleet, sql: str, *parameters: Any) -> Any:
    async with fleet.app[STATE].jobs.db.read() as tx:
        return await tx.all(sql, *parameters)


async def charged(fleet: Fleet, name: str = OWNER) -> int:
    """Tokens of lines of a key's budget."""
    return sum(
        each["tokens"]
        for each in await rows(fleet, "SELECT tokens FROM budgets WHERE router = ' lines' AND name = ?", name)
    )


async def receipts(fleet: Fleet) -> list[Any]:
    """The payloads of all receipts of lines in the store."""
    found = [json.loads(bytes(row["payload"])) for row in await rows(fleet, "SELECT payload FROM receipts")]
    return [each for each in found if "batch" in each]


async def check(fleet: Fleet, caller: openai.AsyncOpenAI, batch: str, count: int) -> None:
    """Each line has one answer, one receipt and one charge: all lines are alike, so each costs the same."""
    done = await ended(caller, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", count, 0)
    found = await results(caller, done.output_file_id)
    assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(count)]
    made = [each for each in await receipts(fleet) if each["batch"]["id"] == batch]
    assert Counter(each["batch"]["line"] for each in made) == Counter(range(1, count + 1))
    assert {each["jti"] for each in made} == {each["response"]["request_id"] for each in found}
    told = sum(each["usage"]["prompt"] + each["usage"]["completion"] for each in made)
    assert told == done.usage.total_tokens
    tokens = await charged(fleet)
    assert tokens > 0
    assert tokens % count == 0


def alike(count: int) -> list[Any]:
    """Lines that cost the same."""
    return [{**line("same"), "custom_id": f"id-{number}"} for number in range(count)]


def hold(fleet: Fleet, nodes: list[Any], *, held: bool) -> None:
    for node in nodes:
        node.gate.clear() if held else node.gate.set()


async def test_two_routers_share_the_lines_of_a_store(tmp_path, store) -> None:
    """One of them ends in the middle; the other does the rest."""
    sections = {"batches": {"max_in_flight": 8, "places_per_node": 16}, "receipts": {}}
    async with opened(tmp_path, Running()) as first:
        nodes = [await first.engine(f"node-{number}") for number in range(2)]
        given = {"keys": KEYS, "store": {**store, "flush_s": 0.2}, **sections}
        await first.start(sections={**given, "service": {"name": "one"}})
        second = first.another()
        await second.start(sections={**given, "service": {"name": "two"}})
        caller = client(first)
        hold(first, nodes, held=True)
        batch = await begin(caller, alike(200))
        await until(lambda: all(each.app[STATE].jobs.runner.in_flight for each in (first, second)))
        hold(first, nodes, held=False)
        await until(lambda: nodes[0].engine.requests + nodes[1].engine.requests > 60)
        await second.stop()
        await check(first, caller, batch.id, 200)
        makers = {each["iss"] for each in await receipts(first)}
        assert makers == {"one", "two"}


async def test_a_router_that_lost_its_lease_writes_nothing(tmp_path, store) -> None:
    """The line is done by who has the lease, and charged once, although two nodes have answered."""
    async with opened(tmp_path, Running()) as fleet:
        nodes = [await fleet.engine("node-0")]
        await fleet.start(sections={"keys": KEYS, "store": {**store, "flush_s": 0.2}, "batches": WIDE})
        fleet.establish("node-0")
        hold(fleet, nodes, held=True)
        caller = client(fleet)
        batch = await begin(caller, alike(3))
        await until(lambda: nodes[0].waiting == 3)
        # Another router takes the range over, as it may once the lease has ended.
        db = fleet.app[STATE].jobs.db
        await db.write(lambda tx: tx.execute("UPDATE job_ranges SET holder = 'another', until_ms = 0"))
        hold(fleet, nodes, held=False)
        await check(fleet, caller, batch.id, 3)
        assert nodes[0].engine.requests == 6


async def test_results_that_cannot_be_written_are_written_later(tmp_path, store, monkeypatch) -> None:
    """Each with its receipt, and once."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        await fleet.start(sections={"keys": KEYS, "store": {**store, "flush_s": 0.1}, "batches": WIDE})
        fleet.establish("node-0")
        hold(fleet, [node], held=True)
        caller = client(fleet)
        batch = await begin(caller, alike(5))
        await until(lambda: node.waiting == 5)
        original, refused = jobs.write_lines, []

        async def write_lines(tx, lines):
            if len(refused) < 3:
                refused.append(len(lines))
                raise UnavailableError("the disk is full")
            return await original(tx, lines)

        monkeypatch.setattr(jobs, "write_lines", write_lines)
        hold(fleet, [node], held=False)
        await check(fleet, caller, batch.id, 5)
        assert len(refused) == 3
        assert node.engine.requests == 5


async def test_a_batch_goes_on_after_a_restart(tmp_path, store) -> None:
    """Lines that have a result are not done again."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        sections = {"keys": KEYS, "store": {**store, "flush_s": 0.1}, "batches": {"max_in_flight": 4}}
        await fleet.start(sections=sections)
        caller = client(fleet)
        batch = await begin(caller, alike(100))
        await until(lambda: node.engine.completed > 30)
        await fleet.stop()
        done = node.engine.completed
        await fleet.start(sections=sections)
        await check(fleet, client(fleet), batch.id, 100)
        # What was under way when it ended is done again, and nothing else.
        assert node.engine.completed <= 100 + 4
        assert done < 100


async def test_a_node_that_fails_is_no_end(tmp_path) -> None:
    """The line goes to another node, or waits for a better time."""
    async with batching(tmp_path, clock=Running(), nodes=1) as fleet:
        bad = await fleet.engine("node-9")
        bad.behave("resets")
        batch = await begin(client(fleet), alike(40))
        await check(fleet, client(fleet), batch.id, 40)


async def test_a_line_that_no_node_completes_is_an_error_after_some_tries(tmp_path) -> None:
    """It is charged nothing, and its receipt says so."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        node.behave("garbage")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.2}
        await fleet.start(sections={"keys": KEYS, "store": kept, "batches": {"tries": 2}})
        caller = client(fleet)
        done = await ended(caller, (await begin(caller, alike(2))).id)
        assert (done.status, done.request_counts.failed, done.output_file_id) == ("completed", 2, None)
        found = await results(caller, done.error_file_id)
        assert {each["response"]["status_code"] for each in found} == {502}
        assert {each["response"]["body"]["error"]["type"] for each in found} == {"upstream_error"}
        assert await charged(fleet) == 0
        assert all("usage" not in each for each in await receipts(fleet))
        assert len(await receipts(fleet)) == 2
        assert done.usage.total_tokens == 0


async def test_lines_wait_while_no_node_may_do_them(tmp_path) -> None:
    """Nobody was asked, so it is no try."""
    clock = Running()
    async with batching(tmp_path, clock=clock, nodes=0, batches={"tries": 1}) as fleet:
        caller = client(fleet)
        batch = await begin(caller, alike(2))
        await eventually(
            lambda: caller.batches.retrieve(batch.id), lambda found: found.status == "in_progress"
        )
        node = await fleet.engine("node-0")
        token = fleet.verifier.token("node-0", endpoint=node.endpoint)
        fleet.verifier.send("result", node="node-0", token=token)
        await check(fleet, caller, batch.id, 2)


async def test_a_batch_whose_time_is_over_expires(tmp_path) -> None:
    """What is done stays; the other lines stand in the errors, and are charged nothing."""
    clock = Running()
    async with opened(tmp_path, clock) as fleet:
        node = await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        limits = {"max_in_flight": 1}
        await fleet.start(sections={"keys": KEYS, "store": kept, "batches": limits})
        caller = client(fleet)
        batch = await begin(caller, alike(150))
        await until(lambda: node.engine.completed > 5)
        hold(fleet, [node], held=True)
        await until(lambda: node.waiting == 1)
        clock.forward(86_401)
        fleet.verifier.beat()
        await asyncio.sleep(0)
        hold(fleet, [node], held=False)
        done = await ended(caller, batch.id)
        assert done.status == "expired"
        assert done.expired_at is not None
        good, bad = await results(caller, done.output_file_id), await results(caller, done.error_file_id)
        assert sorted(each["custom_id"] for each in good + bad) == sorted(
            f"id-{number}" for number in range(150)
        )
        assert {each["error"]["code"] for each in bad} == {"batch_expired"}
        assert {each["response"] for each in bad} == {None}
        assert (done.request_counts.completed, done.request_counts.failed) == (len(good), len(bad))
        assert len(await receipts(fleet)) == len(good) == node.engine.completed


async def test_a_cancelled_batch_begins_no_further_line(tmp_path) -> None:
    """Lines that are under way may end; administrators may cancel it too."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        await fleet.start(sections={"keys": KEYS, "store": kept, "batches": {"max_in_flight": 2}})
        fleet.establish("node-0")
        hold(fleet, [node], held=True)
        caller = client(fleet)
        batch = await begin(caller, alike(100))
        await until(lambda: node.waiting == 2)
        async with fleet.http.post(
            f"{fleet.url}/api/v1/batches/{batch.id}/cancel", headers=by("kim")
        ) as response:
            assert (await response.json())["status"] == "cancelling"
        assert (await caller.batches.cancel(batch.id)).status == "cancelling"
        hold(fleet, [node], held=False)
        done = await ended(caller, batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == (
            "cancelled",
            2,
            98,
        )
        assert {each["error"]["code"] for each in await results(caller, done.error_file_id)} == {
            "batch_cancelled"
        }
        assert node.engine.requests == 2
        assert done.cancelled_at >= done.cancelling_at


@pytest.mark.parametrize("at_once", [1, 4])
async def test_keys_have_equal_shares(tmp_path, at_once: int) -> None:
    """A small batch of one key does not wait for a large one of another, and does not stop it either."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        limits = {**WIDE, "max_in_flight": at_once}
        await fleet.start(sections={"keys": KEYS, "store": kept, "batches": limits})
        large, small = client(fleet), client(fleet, OTHER)
        many = await begin(large, alike(400))
        await until(lambda: node.engine.completed > 40)
        few = await begin(small, alike(30))
        await eventually(lambda: small.batches.retrieve(few.id), lambda found: found.status == "in_progress")
        before = node.engine.completed
        await ended(small, few.id)
        others = node.engine.completed - before - 30
        assert others >= 15
        assert (await large.batches.retrieve(many.id)).status == "in_progress"


async def test_live_requests_come_first(tmp_path) -> None:
    """While they take the places that nodes have, no line begins."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        fleet_sections = {
            "keys": KEYS,
            "store": {"path": str(tmp_path / "router.db"), "flush_s": 0.1},
            "batches": {"places_per_node": 3},
        }
        await fleet.start(sections=fleet_sections)
        fleet.establish("node-0")
        hold(fleet, [node], held=True)
        live = [asyncio.create_task(fleet.post(CHAT, CHATS, **by(OTHER))) for _ in range(2)]
        await until(lambda: node.waiting == 2)
        caller = client(fleet)
        batch = await begin(caller, alike(10))
        await until(lambda: node.waiting == 3)
        live.append(asyncio.create_task(fleet.post(CHAT, CHATS, **by(OTHER))))
        await until(lambda: node.waiting == 4)
        runner = fleet.app[STATE].jobs.runner
        assert runner.in_flight == 1
        hold(fleet, [node], held=False)
        assert [status for status, _, _ in await asyncio.gather(*live)] == [200] * 3
        await check(fleet, caller, batch.id, 10)


@pytest.mark.parametrize(
    ("limit", "most"), [({"concurrency": 4}, 2), ({"concurrency": 1}, 1), ({"requests_per_minute": 60}, 6)]
)
async def test_lines_keep_to_half_of_what_their_key_may_do_at_a_time(tmp_path, limit: Any, most: int) -> None:
    """The other half is for live requests of the same key."""
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        await fleet.start(sections={"keys": [key(OWNER, **limit), *STAFF], "store": kept, "batches": WIDE})
        fleet.establish("node-0")
        hold(fleet, [node], held=True)
        caller = client(fleet)
        batch = await begin(caller, alike(12))
        await until(lambda: node.waiting == most)
        await asyncio.sleep(0.3)
        assert node.waiting == most
        if limit != {"concurrency": 1}:
            live = asyncio.create_task(fleet.post(CHAT, CHATS, **by(OWNER)))
            await until(lambda: node.waiting == most + 1)
            hold(fleet, [node], held=False)
            assert (await live)[0] == 200
        await caller.batches.cancel(batch.id)
        hold(fleet, [node], held=False)


async def test_a_budget_that_is_used_up_stops_the_lines(tmp_path) -> None:
    """And live requests of the key too: what lines use is of the same budget.  On the next day they go on."""
    clock = Running()
    async with opened(tmp_path, clock) as fleet:
        await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        keys = [key(OWNER, tokens_per_day=150), *STAFF]
        await fleet.start(sections={"keys": keys, "store": kept, "batches": {"max_in_flight": 1}})
        caller = client(fleet)
        batch = await begin(caller, alike(20))
        keyring = fleet.app[GATEWAY].keyring
        owner = keyring.named(OWNER)
        assert owner is not None
        await until(lambda: keyring.used(owner)[1] >= 150)
        await asyncio.sleep(0.3)
        assert (await caller.batches.retrieve(batch.id)).status == "in_progress"
        status, answer, _ = await fleet.post(CHAT, CHATS, **by(OWNER))
        assert (status, answer["error"]["code"]) == (429, "budget_exhausted")
        assert keyring.used(owner)[1] == await charged(fleet) < 250


async def test_a_revoked_key_has_no_further_line_done(tmp_path) -> None:
    async with opened(tmp_path, Running()) as fleet:
        node = await fleet.engine("node-0")
        kept = {"path": str(tmp_path / "router.db"), "flush_s": 0.1}
        await fleet.start(sections={"keys": KEYS, "store": kept, "batches": {"max_in_flight": 1}})
        caller = client(fleet)
        batch = await begin(caller, alike(200))
        await until(lambda: node.engine.completed > 3)
        fleet.app[GATEWAY].keyring.set_stored([], [key(OWNER)["sha256"]])
        await until(lambda: not fleet.app[STATE].jobs.runner.in_flight)
        before = node.engine.requests
        await asyncio.sleep(0.3)
        assert node.engine.requests == before < 200
        assert (await fleet.get(f"/api/v1/batches/{batch.id}", **by("kim")))[1]["status"] == "in_progress"


async def test_what_is_old_is_deleted(tmp_path) -> None:
    """Files after the days of the configuration, and what was begun to be written and never came."""
    clock = Running()
    async with batching(tmp_path, clock=clock, batches={"keep_days": 2}) as fleet:
        caller = client(fleet)
        done = await ended(caller, (await begin(caller, alike(3))).id)
        db = fleet.app[STATE].jobs.db
        await db.write(
            lambda tx: tx.execute(
                "INSERT INTO files (id, owner, purpose, name, bytes, created_ms, state) VALUES"
                " ('file-half', 'owner', 'batch', 'x', 1, ?, 0)", clock.ms,
            )
        )  # fmt: skip
        await db.write(lambda tx: tx.execute("INSERT INTO file_parts VALUES ('file-half', 0, x'00')"))
        assert len(await files_of(caller)) == 2
        clock.forward(2 * 86_400 + 1)
        with pytest.raises(openai.NotFoundError):
            await caller.files.content(done.output_file_id)
        await fleet.app[STATE].jobs.duties.sweep()
        for table in ("files", "file_parts", "jobs", "job_ranges", "job_lines"):
            assert await rows(fleet, f"SELECT * FROM {table}") == [], table


async def test_a_file_that_a_batch_reads_is_not_deleted(tmp_path) -> None:
    clock = Running()
    async with batching(tmp_path, clock=clock, nodes=0, batches={"keep_days": 1}) as fleet:
        caller = client(fleet)
        batch = await begin(caller, alike(1), window="48h")
        with pytest.raises(openai.ConflictError) as caught:
            await caller.files.delete(batch.input_file_id)
        assert caught.value.code == "file_in_use"
        clock.forward(86_401)
        await fleet.app[STATE].jobs.duties.sweep()
        assert len(await rows(fleet, "SELECT id FROM files")) == 1


@pytest.mark.parametrize("how", ["open", "without a store", "switched off"])
async def test_where_there_are_no_batches_it_is_said(tmp_path, how: str) -> None:
    sections: dict[str, Any] = {"store": {"path": str(tmp_path / "router.db")}, "keys": KEYS}
    if how == "open":
        del sections["keys"]
    if how == "without a store":
        del sections["store"]
    if how == "switched off":
        sections["batches"] = {"enabled": False}
    async with opened(tmp_path) as fleet:
        await fleet.start(sections=sections)
        headers = {} if how == "open" else by(OWNER)
        status, answer = await fleet.get(
            "/v1/files", Authorization=headers.get("Authorization", "Bearer none")
        )
        assert status == (403 if how == "open" else 501)
        assert answer["error"]["message"]


async def test_too_many_open_batches_are_refused(tmp_path) -> None:
    async with batching(tmp_path, nodes=0, batches={"max_open": 2}) as fleet:
        caller = client(fleet)
        file = await caller.files.create(file=jsonl(alike(1)), purpose="batch")
        made = [
            await caller.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")
            for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError) as caught:
            await caller.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")
        assert caught.value.code == "too_many_batches"
        await caller.batches.cancel(made[0].id)


async def test_lines_wait_while_their_key_has_too_much_stored(tmp_path) -> None:
    """Results count too; when some files are deleted, the lines go on."""
    async with batching(tmp_path, clock=Running(), batches={"max_stored_bytes": 60_000}) as fleet:
        caller = client(fleet)
        few = await caller.files.create(file=jsonl(alike(2)), purpose="batch")
        first = await ended(caller, (await begin(caller, alike(80))).id)
        duties, runner = fleet.app[STATE].jobs.duties, fleet.app[STATE].jobs.runner
        await duties._count([jobs_like(first)])
        assert runner.full == {OWNER}
        second = await caller.batches.create(input_file_id=few.id, endpoint=CHATS, completion_window="24h")
        await eventually(
            lambda: caller.batches.retrieve(second.id), lambda found: found.status == "in_progress"
        )
        await duties.look()
        await runner._step()
        assert not runner.ranges.held
        for file in await files_of(caller):
            if file != second.input_file_id:
                await caller.files.delete(file)
        await duties.delete()
        await duties._count([jobs_like(first)])
        assert runner.full == set()
        assert (await ended(caller, second.id)).status == "completed"


def jobs_like(batch: Any) -> jobs.Job:
    """An open job of the owner."""
    return jobs.Job(
        id=batch.id, owner=OWNER, endpoint=CHATS, input_file="x", completion_window="24h", created_ms=0, expires_ms=1
    )  # fmt: skip


async def test_another_table_counts_for_the_lines_that_wait(tmp_path) -> None:
    """A line whose model is gone from it stands in the errors, as a live request would be refused."""
    async with batching(tmp_path, clock=Running(), nodes=0) as fleet:
        caller = client(fleet)
        batch = await begin(caller, alike(3))
        work = fleet.app[STATE].jobs.runner.ranges.held
        await until(lambda: any(line.request for each in work.values() for line in each.waiting))
        fleet.router.use_table(
            Table([msgspec.convert({"model": "another", "name": "x", "tier": "small"}, Workload)])
        )
        done = await ended(caller, batch.id)
        assert (done.status, done.request_counts.failed) == ("completed", 3)
        found = await results(caller, done.error_file_id)
        assert {each["response"]["body"]["error"]["code"] for each in found} == {"model_not_found"}
        assert {each["response"]["status_code"] for each in found} == {404}


async def test_a_person_with_a_token_has_batches_too(tmp_path) -> None:
    """Their lines go on after a restart, when nobody has shown a token again."""
    person = ApiKey(
        name="https://issuer.example#kim", sha256="", roles=(Role.RELYING_PARTY,), concurrency=3, workloads=("tiny",)
    )  # fmt: skip
    async with batching(tmp_path, clock=Running(), nodes=0) as fleet:
        runner = fleet.app[STATE].jobs.runner
        job = jobs.Job(
            id="batch_1", owner=person.name, guest=write_guest(person), endpoint=CHATS, input_file="x",
            completion_window="24h", created_ms=0, expires_ms=1,
        )  # fmt: skip
        assert fleet.app[GATEWAY].keyring.named(person.name) is None
        assert runner.key_of(job) == person
        assert fleet.app[GATEWAY].keyring.named(person.name) == person


async def test_the_head_of_a_file_is_told_without_it(tmp_path) -> None:
    async with batching(tmp_path, nodes=0) as fleet:
        file = await client(fleet).files.create(file=b"{}\n", purpose="batch")
        async with fleet.http.head(f"{fleet.url}/v1/files/{file.id}/content", headers=by(OWNER)) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, "3")
        assert not fleet.app[GATEWAY].receipts._running


@pytest.mark.parametrize(
    "path", ["/v1/files/%00", "/v1/files?after=%00", "/v1/batches/a%20b", "/v1/batches?after=%FF"]
)
async def test_ids_that_can_be_none(tmp_path, path: str) -> None:
    """No database is asked for them."""
    async with batching(tmp_path, nodes=0) as fleet:
        status, _ = await fleet.get(path, **by(OWNER))
        assert status == (400 if "?" in path else 404)


async def test_lines_of_a_router_that_died_are_done_by_another(tmp_path, store) -> None:
    """Once its leases have ended, and not before."""
    clock = Running()
    async with batching(tmp_path, clock=clock, nodes=1, store=store) as fleet:
        duties, db = fleet.app[STATE].jobs.duties, fleet.app[STATE].jobs.db
        ranges = fleet.app[STATE].jobs.runner.ranges
        caller = client(fleet)
        file = await caller.files.create(file=jsonl(alike(2)), purpose="batch")
        now_ms = ranges.now_ms()
        job = jobs.Job(
            id="batch_1", owner=OWNER, endpoint=CHATS, input_file=file.id, completion_window="24h",
            created_ms=now_ms, expires_ms=now_ms + 86_400_000,
        )  # fmt: skip

        async def leave(tx) -> None:
            """What the other router has left."""
            await jobs.add(tx, job)
            await jobs.hold(tx, job.id, "dead", "dead", now_ms, now_ms + 15_000)
            made = RangeMaker()
            for read in LineSplitter(1 << 20, 9).feed(jsonl(alike(2))):
                made.add(read)
            await jobs.add_ranges(tx, job.id, made.end())
            await jobs.begin(tx, job, 2, MODEL, now_ms, "dead")
            assert await jobs.claim(tx, job.id, "dead", "dead", now_ms, now_ms + 15_000) is not None

        await db.write(leave)
        await duties.look()
        await fleet.app[STATE].jobs.runner._step()
        assert not ranges.held
        clock.forward(15.1)
        fleet.verifier.beat()
        await check(fleet, caller, job.id, 2)
