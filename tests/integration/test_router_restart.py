"""A router as a process: what survives its end, what several share, and its commands."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from fixtures.replies import count_tokens
from fixtures.streaming import HONEST, Behaviour
from router.config import load_tokeniser
from router.gateway.openai import GATEWAY
from router.model.usage import ANSWERS
from router.service.state import STATE
from tests.integration.gateway import (
    CHAT,
    PROMPT,
    STREAM,
    TABLE,
    EngineNode,
    Fleet,
    Heard,
    RouterProcess,
    Running,
    ask,
    by,
    key,
    opened,
)
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL

KEYS = [key("ada"), key("rae", role="reviewer"), key("sam", role="reviewer")]
FLUSH_S = 0.3


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


class Place:
    """A verifier and nodes in this process, whose clock is the real one; routers are their own processes."""

    def __init__(self, fleet: Fleet, stack: AsyncExitStack, folder: Path) -> None:
        self.fleet = fleet
        self._stack = stack
        self.folder = folder

    async def node(self, name: str = "a", behaviour: Behaviour = HONEST, **given: Any) -> EngineNode:
        return await self.fleet.engine(name, behaviour, **given)

    def router(self, name: str = "router", **sections: Any) -> RouterProcess:
        """A router over the store of this place, not started yet."""
        given = {
            "store": {"path": str(self.folder / "shared.db"), "flush_s": FLUSH_S},
            **sections,
            "keys": [key("auditor", roles=["auditor"]), *sections.get("keys", KEYS)],
        }
        given["service"] = {"name": name}
        made = RouterProcess(self.folder / name, self.fleet.verifier, **given)
        self._stack.push_async_callback(made.end, signal.SIGKILL)
        return made

    async def chat(
        self, router: RouterProcess, body: Any = CHAT, by_whom: str = "ada", **headers: str
    ) -> Heard:
        return await ask(self.fleet.http, router.url, body, **by(by_whom), **headers)

    async def get(self, router: RouterProcess, path: str, name: str = "auditor") -> Any:
        async with self.fleet.http.get(router.url + path, headers=by(name)) as response:
            return await response.json(content_type=None)

    async def completed(self, router: RouterProcess, node: str = "a", *, here: bool = True) -> float:
        """How many requests a router says that a node has completed."""
        tiers = (await self.get(router, f"/api/v1/nodes/{node}/standing")).get("tiers", {})
        if "small" not in tiers:
            return 0.0
        seen = [tiers["small"]["seen_here"]] if here else list(tiers["small"]["seen_by_others"].values())
        return sum(
            each["completed"][1] if isinstance(each["completed"], list) else each["completed"]["week"]
            for each in seen
        )


@asynccontextmanager
async def at(folder: Path) -> AsyncIterator[Place]:
    async with opened(folder, Running()) as fleet, AsyncExitStack() as stack:
        # What routers do with a hold themselves; reports are tested elsewhere.
        fleet.verifier.bodies["reports"] = lambda: web.Response(status=503)
        yield Place(fleet, stack, folder)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with at(tmp_path) as place:
        yield place


async def eventually(what: Any, seconds: float = 10.0) -> None:
    """Until *what*, which is asked again and again, holds."""
    async with asyncio.timeout(seconds):
        while not await what():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# Its end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
async def test_what_was_seen_survives(place: Place, number: int) -> None:
    """But for what a killed router had not written yet, which is of the last flush."""
    await place.node()
    router = place.router()
    await router.start()
    for _ in range(5):
        await place.chat(router)
    await asyncio.sleep(2 * FLUSH_S)
    for _ in range(3):
        await place.chat(router)
    await router.end(number)
    await router.start()
    least = 8 if number == signal.SIGTERM else 5
    assert least <= round(await place.completed(router), 1) <= 8


async def test_a_router_that_was_killed_does_not_count_twice(place: Place) -> None:
    """What it had written is what it goes on from."""
    await place.node()
    router = place.router()
    for _ in range(3):
        await router.start()
        await place.chat(router)
        await asyncio.sleep(2 * FLUSH_S)
        await router.end(signal.SIGKILL)
    await router.start()
    assert round(await place.completed(router)) == 3


TOKENISER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
}  # fmt: skip
"""Counts words."""


def with_tokeniser(router: RouterProcess) -> None:
    (router.folder / "tokenizer.json").write_bytes(msgspec.json.encode(TOKENISER))
    table = {**TABLE, "workloads": {"tiny": {"model": MODEL, "tier": "small", "tokeniser": "tokenizer.json"}}}
    router.write_table(table)


async def held(place: Place, router: RouterProcess) -> dict[str, Any]:
    """The router's hold of a node that claims too much, as soon as it is shown."""
    for number in range(ANSWERS):
        assert (await place.chat(router, by_whom=("ada", "rae", "sam")[number % 3])).status == 200

    async def shown() -> Any:
        return (await place.get(router, "/api/v1/incidents", "rae"))["incidents"]

    await eventually(shown)
    (hold,) = await shown()
    return dict(hold)


async def test_a_hold_survives_a_kill(place: Place) -> None:
    """From the moment it can be seen."""
    await place.node(behaviour=Behaviour("usage", factor=10), operator="acme")
    router = place.router(store={"path": str(place.folder / "shared.db"), "flush_s": 600})
    with_tokeniser(router)
    await router.start()
    hold = await held(place, router)
    await router.end(signal.SIGKILL)
    await router.start()
    heard = await place.chat(router)
    assert (heard.status, "1 incident.quarantine" in heard.error["message"]) == (503, True)
    (again,) = (await place.get(router, "/api/v1/incidents", "rae"))["incidents"]
    assert (again["id"], again["evidence"]) == (hold["id"], hold["evidence"])


async def test_a_released_node_is_free_after_a_kill(place: Place) -> None:
    """A release is as lasting as a hold."""
    node = await place.node(behaviour=Behaviour("usage", factor=10), operator="acme")
    router = place.router()
    with_tokeniser(router)
    await router.start()
    hold = await held(place, router)
    status, _ = await router.touchstone(
        "incidents", "release", hold["id"], "--reason", "looked", "--key", "sk-rae"
    )
    await router.end(signal.SIGKILL)
    await router.start()
    node.behave()
    heard = await place.chat(router)
    assert (status, heard.status) == (0, 200), heard.error


async def test_a_budget_survives_a_kill(place: Place) -> None:
    """But for what is of the last flush."""
    await place.node()
    router = place.router(keys=[key("ada", tokens_per_day=20)])
    await router.start()
    await place.chat(router)
    await asyncio.sleep(2 * FLUSH_S)
    await router.end(signal.SIGKILL)
    await router.start()
    assert (await place.chat(router)).error["code"] == "budget_exhausted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
async def test_a_decision_survives(place: Place, number: int) -> None:
    """With all that became of it."""
    await place.node()
    router = place.router()
    await router.start()
    which = (await place.chat(router)).headers["X-Touchstone-Decision"]
    before = await place.get(router, f"/api/v1/decisions/{which}")
    await asyncio.sleep(2 * FLUSH_S)
    await router.end(number)
    await router.start()
    after = await place.get(router, f"/api/v1/decisions/{which}")
    before.pop("excluded", None)
    assert after == before


# Several.


async def two(place: Place) -> tuple[RouterProcess, RouterProcess]:
    routers = place.router("first"), place.router("second")
    for router in routers:
        with_tokeniser(router)
    await asyncio.gather(*(router.start() for router in routers))
    return routers


async def test_routers_see_what_the_others_have_seen(place: Place) -> None:
    """Beside what is their own, within some flushes."""
    await place.node()
    first, second = await two(place)
    for _ in range(4):
        await place.chat(first)

    async def heard() -> bool:
        return round(await place.completed(second, here=False), 1) == 4

    await eventually(heard)
    assert (await place.completed(second), await place.completed(first, here=False)) == (0, 0)


async def test_a_standing_is_of_all_routers_together(place: Place) -> None:
    """What ranking goes by is the sum."""
    await place.node()
    first, second = await two(place)
    for router in (first, second, first, second, first):
        await place.chat(router)

    async def summed() -> bool:
        tiers = [(await place.get(r, "/api/v1/nodes/a/standing"))["tiers"]["small"] for r in (first, second)]
        return all(tier["evidence"] == 5.0 for tier in tiers)

    await eventually(summed)


async def test_routers_hold_what_the_others_hold(place: Place) -> None:
    """The second turns the node away, too, and shows the same hold."""
    await place.node(behaviour=Behaviour("usage", factor=10), operator="acme")
    first, second = await two(place)
    hold = await held(place, first)

    async def turned_away() -> bool:
        return (await place.chat(second)).status == 503

    await eventually(turned_away, 15)
    # Until it is told, the second may have asked for a review because of the one client here.
    shown = (await place.get(second, "/api/v1/incidents", "rae"))["incidents"]
    assert [each["id"] for each in shown if each["holding"]] == [hold["id"]]


async def test_routers_let_go_what_is_released_at_another(place: Place) -> None:
    """Whoever of them was asked."""
    node = await place.node(behaviour=Behaviour("usage", factor=10), operator="acme")
    first, second = await two(place)
    hold = await held(place, first)

    async def turned_away() -> bool:
        return (await place.chat(second)).status == 503

    await eventually(turned_away, 15)
    node.behave()
    status, said = await second.touchstone(
        "incidents", "release", hold["id"], "--reason", "looked", "--key", "sk-rae"
    )
    assert (status, said) == (0, f"{hold['id']} is released.\n")

    async def free() -> bool:
        return [(await place.chat(router)).status for router in (first, second)] == [200, 200]

    await eventually(free, 15)


async def test_routers_share_a_budget(place: Place) -> None:
    """What is spent at one is spent at the other."""
    await place.node()
    keys = [key("ada", tokens_per_day=20)]
    first, second = place.router("first", keys=keys), place.router("second", keys=keys)
    await asyncio.gather(first.start(), second.start())
    await place.chat(first)

    async def spent() -> bool:
        return (await place.chat(second, {**CHAT, "model": "unknown"})).status == 429

    await eventually(spent)


# Its table.


async def reloaded(place: Place, router: RouterProcess, table: Any, word: str) -> None:
    router.write_table(table)
    router.send(signal.SIGHUP)
    await until(lambda: word in router.logged())


async def models(place: Place, router: RouterProcess) -> list[str]:
    return [model["id"] for model in (await place.get(router, "/v1/models"))["data"]]


async def test_a_table_is_read_again_at_sighup(place: Place) -> None:
    """Without a restart, and without losing what was seen."""
    await place.node()
    router = place.router()
    await router.start()
    await place.chat(router)
    table = {
        **TABLE,
        "workloads": {**TABLE["workloads"], "other": {"model": "example/other", "tier": "small"}},
    }
    await reloaded(place, router, table, "another table of workloads is in force")
    assert (await models(place, router), await place.completed(router)) == (["example/other", MODEL], 1)
    assert (await place.chat(router)).status == 200


BAD = {
    "no YAML": b"{",
    "no table": [],
    "no workloads": {"tiers": {"small": {}}},
    "no such tier": {**TABLE, "workloads": {"tiny": {"model": MODEL, "tier": "large"}}},
    "no such setting": {**TABLE, "tiers": {"small": {"max_agee_s": 1}}},
    "no such claim": {**TABLE, "tiers": {"small": {"model_claims": ["x"]}}},
    "no tokeniser": {
        **TABLE,
        "workloads": {"tiny": {"model": MODEL, "tier": "small", "tokeniser": "none.json"}},
    },
}


async def test_a_table_that_is_refused_leaves_the_old_one_in_force(place: Place) -> None:
    """Whatever is wrong with it; the log says what."""
    await place.node()
    router = place.router()
    await router.start()
    for number, table in enumerate(BAD.values(), 1):
        router.write_table(table)
        router.send(signal.SIGHUP)
        await until(lambda number=number: router.logged().count("the table is refused") == number)
        assert (await models(place, router), (await place.chat(router)).status) == ([MODEL], 200)


async def test_streams_go_on_while_the_table_is_read(place: Place) -> None:
    """A reload ends nobody's answer."""
    node = await place.node(behaviour=Behaviour("slow", token_s=0.05))
    router = place.router()
    await router.start()
    asked = asyncio.create_task(place.chat(router, STREAM))
    await until(lambda: node.engine.open)
    await reloaded(place, router, TABLE, "another table of workloads is in force")
    heard = await asked
    assert (heard.done, len(heard.text.split())) == (True, HONEST.tokens)


# Its commands.


async def test_the_commands_say_what_the_router_knows(place: Place) -> None:
    """A decision explained and made again, from its id and from its record in a file; a node's standing."""
    await place.node()
    router = place.router()
    await router.start()
    which = (await place.chat(router)).headers["X-Touchstone-Decision"]
    status, text = await router.touchstone("explain", which, "--key", "sk-ada")
    lines = text.splitlines()
    assert (status, lines[0].startswith(f"Decision {which} for {MODEL}")) == (0, True)
    assert any(line.startswith("  1. a  probation:") for line in lines)
    assert any(line.startswith("  → a  completed in ") for line in lines)
    status, record = await router.touchstone("explain", which, "--json", "--key", "sk-ada")
    assert (status, msgspec.json.decode(record)["id"]) == (0, which)
    (place.folder / "record.json").write_text(record)
    for decision in (which, str(place.folder / "record.json")):
        status, said = await router.touchstone("replay", decision, "--key", "sk-ada")
        assert (status, said.startswith("The same decision: a, by seed ")) == (0, True)
    status, standing = await router.touchstone("standing", "a", "--key", "sk-auditor")
    assert (status, msgspec.json.decode(standing)["tiers"]["small"]["standing"]) == (0, "probation")


async def test_a_decision_from_before_a_restart_is_made_again(place: Place) -> None:
    """From the store, and it is the same."""
    for name in "abc":
        await place.node(name)
    router = place.router()
    await router.start()
    which = (await place.chat(router)).headers["X-Touchstone-Decision"]
    await router.end()
    await router.start()
    status, said = await router.touchstone("replay", which, "--key", "sk-ada")
    chosen = (await place.get(router, f"/api/v1/decisions/{which}"))["chosen"]
    assert (status, said.startswith(f"The same decision: {chosen}, ")) == (0, True)


async def test_a_record_that_was_changed_is_not_the_same_decision(place: Place) -> None:
    """Replay says so, and ends with 1."""
    for name in "ab":
        await place.node(name)
    router = place.router()
    await router.start()
    which = (await place.chat(router)).headers["X-Touchstone-Decision"]
    record = await place.get(router, f"/api/v1/decisions/{which}")
    record["ranked"].reverse()
    (place.folder / "record.json").write_bytes(msgspec.json.encode(record))
    status, said = await router.touchstone("replay", str(place.folder / "record.json"))
    assert (status, said.startswith("Error: ")) == (1, True)


async def test_the_commands_review_a_hold(place: Place) -> None:
    """List, show and release, each as a reviewer reads it."""
    await place.node(behaviour=Behaviour("usage", factor=10), operator="acme")
    router = place.router()
    with_tokeniser(router)
    await router.start()
    status, said = await router.touchstone("incidents", "list", "--key", "sk-rae")
    assert (status, said) == (0, "Nothing waits for review.\n")
    hold = await held(place, router)
    status, said = await router.touchstone("incidents", "list", "--key", "sk-rae")
    lines = said.splitlines()
    assert (status, lines[0]) == (0, f"{hold['id']}  open  settlement-mismatch  (by the router)")
    assert lines[1] == "    node a of acme; review is due within 23 h"
    status, said = await router.touchstone("incidents", "show", hold["id"], "--key", "sk-rae")
    assert (status, msgspec.json.decode(said)["seen"]["node"]) == (0, "a")
    status, said = await router.touchstone(
        "incidents", "release", hold["id"], "--reason", "x", "--key", "sk-ada"
    )
    assert (status, "403" in said, "Traceback" in said) == (1, True, False)
    status, said = await router.touchstone(
        "incidents", "release", hold["id"], "--reason", "x", "--key", "sk-rae"
    )
    assert (status, said) == (0, f"{hold['id']} is released.\n")


async def test_the_commands_say_what_is_wrong_in_a_sentence(place: Place) -> None:
    """Without a key, for what is not there, for what is no record."""
    router = place.router()
    await router.start()
    (place.folder / "nonsense.json").write_text("[]")
    for arguments in (
        ("explain", "0" * 32, "--key", "sk-ada"),
        ("explain", "0" * 32),
        ("replay", "0" * 32, "--key", "sk-ada"),
        ("replay", str(place.folder / "nonsense.json")),
        ("standing", "nobody", "--key", "sk-auditor"),
        ("incidents", "show", "r-0", "--key", "sk-rae"),
        ("incidents", "list", "--key", "sk-ada"),
        ("incidents", "release", "r-0", "--reason", "x", "--key", "sk-rae"),
    ):
        status, said = await router.touchstone(*arguments)
        assert (status, said.startswith("Error: "), said.count("\n")) == (1, True, 1), said


# Probes.


async def probed(fleet: Fleet) -> EngineNode:
    node = await fleet.engine("a")
    await fleet.start(probe_every_s=0.1)
    heartbeat = fleet.router.heartbeat("a")
    assert heartbeat is not None
    await until(lambda: len(heartbeat.intervals) > 2)
    return node


async def place_of(fleet: Fleet) -> Any:
    _, standing = await fleet.get("/api/v1/nodes/a/standing")
    return standing["workloads"]["tiny"]


async def test_a_node_that_stops_answering_is_silent_without_any_traffic(fleet: Fleet) -> None:
    """The router asks on a schedule of its own."""
    node = await probed(fleet)
    node.engine.kill()
    asked = node.handshakes
    await until(lambda: node.handshakes > asked + 1)
    fleet.clock.forward(30)
    assert (await place_of(fleet))["closed"]["code"] == "capacity.silent"


async def test_a_node_that_answers_again_is_no_more_silent(fleet: Fleet) -> None:
    """By the next probe."""
    node = await probed(fleet)
    node.engine.kill()
    asked = node.handshakes
    await until(lambda: node.handshakes > asked + 1)
    fleet.clock.forward(30)
    closed = (await place_of(fleet))["closed"]
    node.engine.revive()

    async def back() -> bool:
        return (await place_of(fleet))["closed"] is None

    await eventually(back)
    assert closed is not None


async def test_a_silent_node_is_asked_last(fleet: Fleet) -> None:
    """Work goes to whoever answers probes; nobody is blamed for silence."""
    node = await probed(fleet)
    node.engine.kill()
    asked = node.handshakes
    await until(lambda: node.handshakes > asked + 1)
    fleet.clock.forward(30)
    await fleet.engine("b")
    fleet.verifier.send("result", node="b", token=fleet.verifier.results["b"])
    await until(lambda: "b" in fleet.router)
    heard = await fleet.ask(CHAT)
    assert [attempt["node"] for attempt in await fleet.record(heard.headers)] == ["b"]
    assert fleet.failed("a") == 0.0


async def test_probes_ask_for_nothing_but_the_models(fleet: Fleet) -> None:
    """No work, and no key of a caller's."""
    node = await fleet.node("a")
    await fleet.start(probe_every_s=0.1)
    await until(lambda: len(node.requests) > 2)
    seen = {(request.method, request.path, "Authorization" in request.headers) for request in node.requests}
    assert seen == {("GET", "/v1/models", False)}


async def test_another_key_answers_no_probe(fleet: Fleet) -> None:
    """Whoever serves at a node's address is not the node: it comes to be silent."""
    node = await fleet.node("a")
    fleet.verifier.trust("a", endpoint={**node.endpoint, "spki_sha256": "cd" * 32})
    await fleet.start(probe_every_s=0.1)
    heartbeat = fleet.router.heartbeat("a")
    assert heartbeat is not None
    await until(lambda: heartbeat.last_contact is not None)
    fleet.clock.forward(30)
    await asyncio.sleep(0.3)
    closed = (await place_of(fleet))["closed"]
    assert (node.requests, list(heartbeat.intervals), closed["code"]) == ([], [], "capacity.silent")


# In one process: what is counted when the store is written.


async def test_a_store_counts_words_as_the_router_does(fleet: Fleet, tmp_path: Path) -> None:
    """The stand-in tokeniser of this file's processes and the one of the fixtures agree."""
    (tmp_path / "tokenizer.json").write_bytes(msgspec.json.encode(TOKENISER))
    assert load_tokeniser(tmp_path / "tokenizer.json").count(PROMPT) == count_tokens(PROMPT)


async def test_a_flush_that_fails_loses_nothing(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is written the next time."""
    from router.state import persistence

    await fleet.engine("a")
    await fleet.start(sections={"store": {"path": str(tmp_path / "router.db"), "flush_s": 600}})
    which = (await fleet.ask(CHAT)).headers["X-Touchstone-Decision"]
    save = persistence.decisions.save

    async def broken(*_: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(persistence.decisions, "save", broken)
    with pytest.raises(RuntimeError):
        await fleet.app[STATE].persistence.flush()
    monkeypatch.setattr(persistence.decisions, "save", save)
    await fleet.stop()
    await fleet.start(sections={"store": {"path": str(tmp_path / "router.db"), "flush_s": 600}})
    status, record = await fleet.get(f"/api/v1/decisions/{which}")
    assert (status, record["chosen"], fleet.standing("a").completed[1]) == (200, "a", 1.0)
    assert fleet.app[GATEWAY].in_flight == 0
