"""Calls to all nodes of an operator at one moment, with wide walks: who is called, with what, what is kept."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from typing import Any

import msgspec
import pytest

from attester.client import Session
from attester.cose import PrivateKey
from attester.weights.folder import open_folder
from attester.weights.possession import ModelChallenge
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import WalkParameters
from verifier.schemes.context import WalkRecord
from verifier.service.calls import CallScheduler
from verifier.service.sessions import open_session, wants_for
from verifier.store import nodes, pool, references, sessions, walks
from verifier.store.nodes import Grant

STORES = ("sqlite", "postgres")

OTHER_MODEL = "example/other"
WIDE_ROWS = 40


class Drawn(random.Random):
    """What is drawn is set by the test: the shares in the order they are asked for, the moments apart."""

    def __init__(self, *, together: bool = False, wide: bool = False, walk: bool = False) -> None:
        super().__init__(1)
        self.wanted = [together, wide, walk]
        self.drawn = 0
        self.wait_s = 50.0
        self.model = MODEL

    def random(self) -> float:
        """Below every share, or above."""
        self.drawn += 1
        return 0.0 if self.wanted[(self.drawn - 1) % 3] else 1.0

    def uniform(self, a: float, b: float) -> float:
        return self.wait_s

    def choice(self, seq: Any) -> Any:
        assert self.model in seq
        return self.model

    def randbytes(self, n: int) -> bytes:
        return secrets.token_bytes(n)


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that only the test makes."""
    calls = {"min_interval_s": 3000.0, "max_interval_s": 3600.0, "together_share": 0.5, "wide_share": 0.5}
    return {"calls": calls, "policy": {"workers": 1}}


@pytest.fixture(autouse=True)
async def class_with_arithmetic(verifier):
    """Wide walks are asked of classes whose arithmetic is known."""
    classes = (await verifier.policy()).thresholds.classes
    classes["cpu"] = msgspec.structs.replace(classes["cpu"], int8_ops=10**15)


async def mint_wides(verifier, count: int) -> None:
    opened = open_folder(verifier.model_folder)
    async with transaction(verifier.service.db) as tx:
        row = await references.active(tx, MODEL)
        assert row is not None
        digest = row["digest"]
        batch = await pool.open_batch(tx, MODEL, digest, verifier.clock.ms)
        first = await pool.next_index(tx, MODEL, "wide")
        minter = Minter(
            model=MODEL,
            folder=opened,
            tensors=TensorFiles(opened),
            key=verifier.service.pool_key,
            kernel=kernel("numpy"),
            batch=batch,
        )
        for group in minter.walks(first, count, WalkParameters(WIDE_ROWS), kind="wide"):
            await pool.add(tx, group)


async def stranger(verifier, operator: str, *models: str) -> str:
    """A node that serves other models; it is there to be called or not."""
    async with transaction(verifier.service.db) as tx:
        key = PrivateKey.generate().public
        node = await nodes.enrol(tx, Grant(operator, models), models, key, verifier.clock.ms)
    return node.id


def listening(caller: CallScheduler, *ids: str) -> dict[str, asyncio.Queue[Any]]:
    """Open channels without sockets."""
    queues: dict[str, asyncio.Queue[Any]] = {node_id: asyncio.Queue(maxsize=1) for node_id in ids}
    caller.channels._queues.update(queues)
    return queues


async def ready(
    verifier, rng: Drawn, *ids: str, due: str
) -> tuple[CallScheduler, dict[str, asyncio.Queue[Any]]]:
    """A caller to whom nobody owes a first walk, and for which *due* alone is due; nobody else calls."""
    for task in asyncio.all_tasks():
        if task.get_name() in ("calls", "duties", "sweep"):
            task.cancel()
    caller = CallScheduler(verifier.service, rng=rng)
    queues = listening(caller, *ids)
    await caller.refresh()
    caller.plan.needs_walk.clear()
    caller.plan.set(due, verifier.clock.ticks)
    return caller, queues


def told(queues: dict[str, asyncio.Queue[Any]]) -> dict[str, dict[str, Any]]:
    """What each called node was told of each model by the call; those that were not called are left out."""
    found = {}
    for node_id, queue in queues.items():
        if not queue.empty():
            call = queue.get_nowait()
            found[node_id] = {
                model["model"]: model for model in msgspec.to_builtins(call["challenge"].models)
            }
            found[node_id]["session"] = call
    return found


def rows_of(call: dict[str, Any], model: str = MODEL) -> int | None:
    walk = call[model].get("walk")
    return None if walk is None else walk["rows"]


async def asked_rows(verifier, call: dict[str, Any]) -> int | None:
    """The rows of the walk that a call asks for, whether the node was told of it yet or not."""
    rows = await verifier.rows(
        "SELECT parameters FROM pool WHERE session_id = ? AND kind <> 'read'", call["session"]["session"]
    )
    return json.loads(rows[0]["parameters"])["rows"] if rows else None


async def answer(verifier, node: SimulatedNode, call: dict[str, Any], *, seconds: float = 0.0) -> Any:
    """Answer a call honestly, by HTTP, after some time; the result's claims."""
    (row,) = await verifier.rows("SELECT nonce FROM sessions WHERE id = ?", call["session"]["session"])
    models = msgspec.convert(call["session"]["challenge"].models, list[ModelChallenge])
    session = Session(call["session"]["session"], row["nonce"], tuple(models))
    answers = await node.answer_call(
        verifier.client(node), session, wait=lambda: verifier.clock.forward(seconds)
    )
    return await verifier.submit(
        session, node.evidence(session, iat=verifier.clock.seconds, answers=answers), node
    )


async def records(verifier, node_id: str) -> list[WalkRecord]:
    found = await verifier.rows("SELECT record FROM walks WHERE node_id = ? ORDER BY seq", node_id)
    return [msgspec.json.decode(row["record"], type=WalkRecord) for row in found]


async def test_a_call_together_reaches_all_and_only_the_operators_nodes_that_have_the_model(verifier) -> None:
    """At one moment, with a wide walk each; nobody else, and those only once."""
    await mint_wides(verifier, 5)
    ours = [(await verifier.enrol(operator="acme")).id for _ in range(3)]
    both = await stranger(verifier, "acme", OTHER_MODEL, MODEL)
    others = [
        (await verifier.enrol(operator="other")).id,
        await stranger(verifier, "acme", OTHER_MODEL),
        await stranger(verifier, "acme-2", MODEL),
    ]
    caller, queues = await ready(verifier, Drawn(together=True), *ours, both, *others, due=ours[1])
    await caller.tick()
    calls = told(queues)
    assert calls.keys() == {*ours, both}
    assert {rows_of(call) for call in calls.values()} == {WIDE_ROWS}
    assert all("read" in call[MODEL] for call in calls.values())
    seeds = {call[MODEL]["walk"]["seed"] for call in calls.values()}
    assert len(seeds) == 4
    found = await verifier.rows("SELECT node_id, issued_ms, channel, together FROM sessions")
    assert {row["node_id"] for row in found} == {*ours, both}
    assert {(row["issued_ms"], row["channel"], row["together"]) for row in found} == {
        (verifier.clock.ms, "call", 4)
    }
    # The other model of a node is read and not walked: the clock is for one walk alone.
    assert rows_of({OTHER_MODEL: {}, **calls[both]}, OTHER_MODEL) is None


async def test_nobody_is_called_before_its_moment(verifier) -> None:
    """And whoever was called has its next moment drawn, those called along with it have not."""
    ours = [(await verifier.enrol(operator="acme")).id for _ in range(2)]
    caller, queues = await ready(verifier, Drawn(together=True), *ours, due=ours[0])
    caller.plan.set(ours[0], verifier.clock.ticks + 0.5)
    before = caller.plan.moment(ours[1])
    await caller.tick()
    assert told(queues) == {}
    verifier.clock.forward(0.5)
    await caller.tick()
    assert told(queues).keys() == set(ours)
    assert caller.plan.moments() == {ours[0]: verifier.clock.ticks + 50.0, ours[1]: before}


async def test_a_walk_stands_in_where_the_pool_has_no_wide_ones_left(verifier) -> None:
    """Two wide ones for three nodes: each is walked, and nobody hears that anything ran out."""
    await mint_wides(verifier, 2)
    ours = [(await verifier.enrol(operator="acme")).id for _ in range(3)]
    caller, queues = await ready(verifier, Drawn(together=True), *ours, due=ours[0])
    await caller.tick()
    assert sorted(rows_of(call) or 0 for call in told(queues).values()) == [8, WIDE_ROWS, WIDE_ROWS]
    found = await verifier.rows("SELECT exhausted, together FROM sessions")
    assert [(row["exhausted"], row["together"]) for row in found] == [("{}", 3)] * 3


async def test_a_pool_without_any_wide_walk_asks_for_walks(verifier) -> None:
    """As everywhere where nobody has minted them yet."""
    node = await verifier.enrol()
    caller, queues = await ready(verifier, Drawn(wide=True), node.id, due=node.id)
    await caller.tick()
    assert await asked_rows(verifier, told(queues)[node.id]) == 8


async def test_a_wide_call_to_one_node_leaves_the_others_alone(verifier) -> None:
    """What a walk takes alone is what the simultaneous ones are held against."""
    await mint_wides(verifier, 3)
    ours = [await verifier.enrol(operator="acme") for _ in range(2)]
    caller, queues = await ready(verifier, Drawn(wide=True), *(n.id for n in ours), due=ours[0].id)
    await caller.tick()
    calls = told(queues)
    assert calls.keys() == {ours[0].id}
    assert await asked_rows(verifier, calls[ours[0].id]) == WIDE_ROWS
    await answer(verifier, ours[0], calls[ours[0].id], seconds=2)
    (record,) = await records(verifier, ours[0].id)
    assert (record.wide, record.together, record.rows, record.ms) == (True, False, WIDE_ROWS, 2000)


@pytest.mark.parametrize("walk", [True, False])
async def test_an_ordinary_call_has_no_wide_walk(verifier, *, walk: bool) -> None:
    """However many the pool has."""
    await mint_wides(verifier, 3)
    node = await verifier.enrol()
    caller, queues = await ready(verifier, Drawn(walk=walk), node.id, due=node.id)
    await caller.tick()
    call = told(queues)[node.id]
    assert await asked_rows(verifier, call) == (8 if walk else None)
    # The node is told nothing of it before it has answered the read.
    assert rows_of(call) is None


async def test_that_it_was_together_is_kept_and_reaches_the_record(verifier) -> None:
    """With the time it took by the verifier's clock, for a walk of its own."""
    await mint_wides(verifier, 2)
    ours = [await verifier.enrol(operator="acme") for _ in range(2)]
    caller, queues = await ready(verifier, Drawn(together=True), *(n.id for n in ours), due=ours[0].id)
    await caller.tick()
    calls = told(queues)
    for number, node in enumerate(ours):
        result = await answer(verifier, node, calls[node.id], seconds=1.5)
        assert result["ear_status"] == "affirming"
        (record,) = await records(verifier, node.id)
        assert (record.channel, record.verdict, record.source) == ("call", "right", "engine")
        assert (record.wide, record.together, record.rows) == (True, True, WIDE_ROWS)
        assert record.ms == 1500 * (number + 1)
    assert [row["wide"] for row in await verifier.rows("SELECT wide FROM walks")] == [1, 1]


async def test_a_lone_node_is_not_together(verifier) -> None:
    """Nobody else uses its device at that moment, as far as anyone knows."""
    await mint_wides(verifier, 1)
    node = await verifier.enrol(operator="acme")
    await verifier.enrol(operator="other")
    caller, queues = await ready(verifier, Drawn(together=True, wide=True), node.id, due=node.id)
    await caller.tick()
    await answer(verifier, node, told(queues)[node.id])
    (record,) = await records(verifier, node.id)
    assert (record.wide, record.together) == (True, False)


async def test_a_node_that_is_retired_is_no_longer_called_along(verifier) -> None:
    """Nor counted."""
    ours = [(await verifier.enrol(operator="acme")).id for _ in range(3)]
    async with transaction(verifier.service.db) as tx:
        await nodes.retire(tx, ours[2], verifier.clock.ms)
    caller, queues = await ready(verifier, Drawn(together=True), *ours, due=ours[0])
    await caller.tick()
    assert told(queues).keys() == set(ours[:2])
    found = await verifier.rows("SELECT together FROM sessions WHERE status = 'waiting'")
    assert [row["together"] for row in found] == [2, 2]


async def test_a_moment_of_another_is_not_missed(verifier) -> None:
    """Who holds no channel is not charged with somebody else's moment; the one that is reached is alone."""
    await mint_wides(verifier, 3)
    ours = [(await verifier.enrol(operator="acme")).id for _ in range(2)]
    caller, queues = await ready(verifier, Drawn(together=True), ours[0], due=ours[0])
    await caller.tick()
    assert told(queues).keys() == {ours[0]}
    assert await records(verifier, ours[1]) == []
    assert [row["together"] for row in await verifier.rows("SELECT together FROM sessions")] == [0]
    assert len(await verifier.rows("SELECT 1 FROM pool WHERE session_id IS NOT NULL")) == 2


async def test_a_new_node_owes_an_ordinary_walk_first(verifier) -> None:
    """Of each of its models, before anything is compared."""
    await mint_wides(verifier, 2)
    node = await verifier.enrol()
    rng = Drawn(wide=True)
    caller = CallScheduler(verifier.service, rng=rng)
    queues = listening(caller, node.id)
    await caller.refresh()
    rows = []
    for _ in range(2):
        caller.plan.set(node.id, verifier.clock.ticks)
        await caller.tick()
        call = told(queues)[node.id]
        rows.append(await asked_rows(verifier, call))
        await answer(verifier, node, call)
    assert rows == [8, WIDE_ROWS]


async def test_the_history_keeps_wide_records_apart(verifier) -> None:
    """Neither kind pushes the other out, and each keeps its newest, oldest first."""
    node = await verifier.enrol()
    async with verifier.service.db.read() as tx:
        stored = await nodes.by_id(tx, node.id)
    assert stored is not None
    # Walks of long ago are swept away.
    start = verifier.clock.ms

    async def keep(number: int, **changes: Any) -> None:
        nonce = secrets.token_bytes(32)
        session = await open_session(verifier.service, stored, "call", nonce, wants_for(stored, walk=False))
        record = WalkRecord(channel="call", verdict="right", at_ms=start + number, **changes)
        async with transaction(verifier.service.db) as tx:
            await sessions.drop(tx, session.id, verifier.clock.ms)
            await walks.keep(tx, session.id, node.id, MODEL, record)

    for number in range(3):
        await keep(number, wide=True)
    for number in range(3, 12):
        await keep(number)
    await keep(12, wide=True)
    async with verifier.service.db.read() as tx:
        found = await walks.history(tx, node.id, MODEL, 4)
    assert [(record.at_ms - start, record.wide) for record in found] == [
        (0, True), (1, True), (2, True), (8, False), (9, False), (10, False), (11, False), (12, True),
    ]  # fmt: skip
    async with verifier.service.db.read() as tx:
        found = await walks.history(tx, node.id, MODEL, 2)
    assert [record.at_ms - start for record in found] == [2, 10, 11, 12]


async def test_one_device_behind_two_nodes_is_found_out_by_calls(verifier) -> None:
    """Three calls alone and three together, answered in turns by one device: a warning, with its code."""
    await mint_wides(verifier, 12)
    ours = [await verifier.enrol(operator="acme") for _ in range(2)]
    rng = Drawn()
    caller, queues = await ready(verifier, rng, *(n.id for n in ours), due=ours[0].id)
    results: dict[str, Any] = {}
    for together in (False, True) * 3:
        rng.wanted = [together, not together, False]
        for due in ours[:1] if together else ours:
            caller.plan.set(due.id, verifier.clock.ticks)
            await caller.tick()
            calls = told(queues)
            for node in ours:
                if node.id in calls:
                    # Together: the first of the two answers after two seconds, the other then at once.
                    waits = 2 if together and node is ours[0] else 0 if together else 1
                    results[node.id] = await answer(verifier, node, calls[node.id], seconds=waits)
    for node in ours:
        of_model = results[node.id]["submods"][f"model/{MODEL}"]
        assert of_model["ear_trustworthiness_vector"]["executables"] == -33
        found = [reason["code"] for reason in of_model["ear_verifier_claims"]["reasons"]]
        assert found == ["weights.walk.shared"]
        kept = await records(verifier, node.id)
        assert [(r.together, r.ms) for r in kept] == [(False, 1000), (True, 2000)] * 3
    assert await verifier.rows("SELECT id FROM incidents") == []
