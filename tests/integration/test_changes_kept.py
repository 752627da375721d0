"""Changes of the table of workloads: who may, what survives, what routers share, and how they end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from router.commands.router import router as router_commands
from router.gateway.openai import GATEWAY
from router.model.table import read_table
from router.service.state import STATE
from router.state import changes as state_changes
from router.store import changes as store_changes
from tests.integration.gateway import CHATS, Fleet, RouterProcess, Running, by, opened
from tests.integration.test_change_store import change as of
from tests.integration.test_changes import (
    ACTIVE,
    KEYS,
    begin,
    canary,
    code,
    do,
    propose,
    said,
    send,
    share,
    show,
    start,
    stopped,
    table,
    text,
)
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from verifier.errors import StoreError
from verifier.store.opening import open_database

OTHER = table(hardware_classes=["other"])
DIGESTS = {
    name: read_table(text(each).encode()).digest for name, each in (("active", ACTIVE), ("other", OTHER))
}


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which conversations are in a share is the same each time."""
    monkeypatch.setattr("router.state.change_steps.token_bytes", bytes)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def promote(fleet: Fleet, change: str, **given: Any) -> tuple[int, Any]:
    return await do(fleet, f"/{change}/promote", {"reason": "it is good", **given})


async def abort(fleet: Fleet, change: str) -> tuple[int, Any]:
    return await do(fleet, f"/{change}/abort", {"reason": "it is not"})


def in_force(fleet: Fleet) -> str:
    return fleet.router.table.digest


async def test_back_by_one_call_at_once(fleet: Fleet) -> None:
    _, other = await begin(fleet)
    change = await canary(fleet, OTHER, 100)
    assert set(await send(fleet, 4)) == {200}
    assert other.engine.requests == 4
    status, found = await abort(fleet, change)
    assert (status, found["stage"]) == (200, "aborted")
    assert set(await send(fleet, 4, 10)) == {200}
    assert other.engine.requests == 4


async def test_promoted_and_taken_back(fleet: Fleet, tmp_path: Path) -> None:
    _, other = await begin(fleet, tmp_path)
    change = await canary(fleet, OTHER, 100)
    status, found = await promote(fleet, change)
    assert (status, found["stage"], in_force(fleet)) == (200, "promoted", DIGESTS["other"])
    assert set(await send(fleet, 3)) == {200}
    assert other.engine.requests == 3
    status, found = await abort(fleet, change)
    assert (status, found["stage"], in_force(fleet)) == (200, "aborted", DIGESTS["active"])
    assert [step["step"] for step in found["steps"]] == ["propose", "share 100 %", "promote", "abort"]
    assert {step["actor"] for step in found["steps"]} == {"root"}
    assert set(await send(fleet, 3, 10)) == {200}
    assert other.engine.requests == 3


async def test_a_restart_goes_on_where_it_was(fleet: Fleet, tmp_path: Path) -> None:
    await begin(fleet, tmp_path)
    change = await canary(fleet, OTHER, 40)
    await send(fleet, 10)
    before = await show(fleet, change)
    await fleet.stop()
    await start(fleet, tmp_path)
    after = await show(fleet, change)
    for member in ("stage", "share_percent", "arms", "tests", "steps"):
        assert after[member] == before[member]
    assert after["decides_here"]


async def test_a_promoted_table_stands_on_the_file_until_that_is_another(
    fleet: Fleet, tmp_path: Path
) -> None:
    await begin(fleet, tmp_path)
    change = await canary(fleet, OTHER)
    assert (await promote(fleet, change))[0] == 200
    await fleet.stop()
    await start(fleet, tmp_path)
    assert in_force(fleet) == DIGESTS["other"]
    # Another file was written since: who wrote it decides.
    newer = table(hardware_classes=["good", "other"])
    state = fleet.app[STATE].changes
    state.use_file(read_table(text(newer).encode()))
    assert in_force(fleet) == read_table(text(newer).encode()).digest
    state.use_file(read_table(text(ACTIVE).encode()))
    assert in_force(fleet) == DIGESTS["other"]
    await fleet.stop()
    await start(fleet, tmp_path, newer)
    assert in_force(fleet) == read_table(text(newer).encode()).digest


async def test_one_promotion_stands_on_the_other(fleet: Fleet, tmp_path: Path) -> None:
    await begin(fleet, tmp_path)
    first = await canary(fleet, OTHER)
    await promote(fleet, first)
    second = await canary(fleet, table(hardware_classes=["good", "other"]))
    await promote(fleet, second)
    status, refused = await abort(fleet, first)
    assert (status, code(refused)) == (409, "change.state")
    await abort(fleet, second)
    assert in_force(fleet) == DIGESTS["other"]
    await abort(fleet, first)
    assert in_force(fleet) == DIGESTS["active"]


async def test_without_a_store_that_is_kept_nothing_is_promoted(fleet: Fleet) -> None:
    await begin(fleet)
    change = await canary(fleet, OTHER)
    status, refused = await promote(fleet, change)
    assert (status, "workloads" in refused["detail"] or "SIGHUP" in refused["detail"]) == (409, True)


async def test_what_never_had_a_share_is_promoted_only_if_that_is_said(fleet: Fleet, tmp_path: Path) -> None:
    await begin(fleet, tmp_path)
    change = await propose(fleet, OTHER)
    assert (await promote(fleet, change))[0] == 409
    assert (await promote(fleet, change, anyway=True))[0] == 200


async def test_one_at_a_time(fleet: Fleet) -> None:
    await begin(fleet)
    await propose(fleet, OTHER)
    status, refused = await do(fleet, "", {"table": text(table(regions=["x"])), "reason": "x"})
    assert (status, code(refused)) == (409, "change.state")
    assert len((await fleet.get("/api/v1/changes", **by("auditor")))[1]["changes"]) == 1


@pytest.mark.parametrize("step", ["share", "promote", "abort"])
async def test_what_is_over_takes_no_step(fleet: Fleet, tmp_path: Path, step: str) -> None:
    await begin(fleet, tmp_path)
    change = await propose(fleet, OTHER)
    await abort(fleet, change)
    body = {"reason": "x", **({"percent": 5} if step == "share" else {})}
    status, refused = await do(fleet, f"/{change}/{step}", body)
    assert (status, code(refused)) == (409, "change.state")


@pytest.mark.parametrize(
    "body", [{}, {"reason": " "}, {"reason": "x", "actor": "somebody"}, {"reason": "x" * 2001}]
)
async def test_a_step_has_a_reason_and_no_actor_of_its_own(fleet: Fleet, body: dict[str, str]) -> None:
    await begin(fleet)
    change = await propose(fleet, OTHER)
    assert (await do(fleet, f"/{change}/abort", body))[0] == 400
    assert (await show(fleet, change))["stage"] == "shadow"


@pytest.mark.parametrize("who", ["ada", "auditor", "rae"])
async def test_only_administrators_change_anything(fleet: Fleet, who: str) -> None:
    await begin(fleet)
    assert (await do(fleet, "", {"table": text(OTHER), "reason": "x"}, who))[0] == 403
    change = await propose(fleet, OTHER)
    for step in ("share", "promote", "abort"):
        assert (await do(fleet, f"/{change}/{step}", {"reason": "x"}, who))[0] == 403
    seen, _ = await fleet.get(f"/api/v1/changes/{change}", **by(who))
    assert seen == (403 if who == "ada" else 200)


async def test_nobody_is_told_how_the_share_is_drawn(fleet: Fleet) -> None:
    await begin(fleet)
    change = await canary(fleet, OTHER)
    secret = fleet.app[STATE].changes.latest.change.secret  # type: ignore[union-attr]
    assert secret.hex() not in msgspec.json.encode(await show(fleet, change)).decode()
    assert "secret" not in await show(fleet, change)


async def test_an_error_of_the_candidate_reaches_no_client(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(fleet)
    change = await canary(fleet, OTHER, 100)
    dispatcher = fleet.app[GATEWAY].dispatcher
    decide = dispatcher.decide

    def fail(workload: Any, *given: Any, **more: Any) -> Any:
        if "other" in workload.hardware_classes:
            raise ZeroDivisionError
        return decide(workload, *given, **more)

    monkeypatch.setattr(dispatcher, "decide", fail)
    assert set(await send(fleet, 4)) == {200}
    found = await stopped(fleet, change)
    assert found["arms"]["candidate"]["refused"] >= 3


async def test_callers_with_requirements_are_served_by_both(fleet: Fleet) -> None:
    await begin(fleet)
    await canary(fleet, table(hardware_classes=["good", "other"]))
    wanted = {"provider": {"touchstone": {"nodes": ["good"]}}}
    assert set(await send(fleet, 10, **wanted)) == {200}
    # One that the table in force alone would take, and one that neither does.
    assert set(await send(fleet, 4, 20, provider={"touchstone": {"nodes": ["nobody"]}})) == {412}


async def test_a_nonce_is_used_once_although_two_tables_decide(fleet: Fleet) -> None:
    _, other = await begin(fleet)
    other.behave("status", status=500)
    await canary(fleet, OTHER, 100)
    first = await fleet.ask(said(0), CHATS, **by("ada"))
    commitment = first.headers["X-Touchstone-Commitment"].partition(".")[0]
    heard = await fleet.ask(
        said(1), CHATS, **by("ada"), **{"X-Touchstone-Nonce": f"{commitment}.{'ab' * 16}"}
    )
    assert heard.status == 200, heard.body


async def test_without_the_store_the_table_in_force_decides_alone(fleet: Fleet) -> None:
    await begin(fleet)
    await canary(fleet, OTHER, 100)
    fleet.clock.forward(20)
    fleet.verifier.beat()
    await asyncio.sleep(0)
    assert fleet.app[STATE].changes.trial is None


async def test_an_abort_counts_here_although_it_cannot_be_written(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(fleet)
    change = await canary(fleet, OTHER, 100)

    async def fail(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store_changes, "update", fail)
    assert (await abort(fleet, change))[0] >= 500
    assert fleet.app[STATE].changes.trial is None


async def test_routers_that_share_a_store_share_changes(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_changes, "_LOOK_EVERY_S", 0.02)
    _, other = await begin(fleet, tmp_path, sections={"service": {"name": "one"}})
    second = fleet.another()
    await start(second, tmp_path, sections={"service": {"name": "two"}})
    change = await canary(fleet, OTHER)
    await until(
        lambda: second.app[STATE].changes.trial is not None and second.app[STATE].changes.trial.has_share
    )
    assert (await show(second, change))["decides_here"]
    other.behave("status", status=500)
    assert set(await send(second, 20)) == {200}
    await stopped(second, change)
    await until(lambda: fleet.app[STATE].changes.trial is None)
    found = await show(fleet, change)
    assert found["stage"] == "stopped"
    assert found["routers"] == ["one", "two"] or found["routers"] == ["two"]
    # Another one, promoted at one of them, is in force at both.
    again = await canary(fleet, table(hardware_classes=["good", "other"]))
    await promote(fleet, again)
    await until(lambda: in_force(second) == in_force(fleet) != DIGESTS["active"])


async def test_a_stop_asks_a_person_to_look(fleet: Fleet) -> None:
    await begin(fleet)
    change = await canary(fleet, table(hardware_classes=["nobody"]), 100)
    assert set(await send(fleet, 4)) == {200}
    await stopped(fleet, change)
    _, found = await fleet.get("/api/v1/incidents", **by("auditor"))
    (each,) = found["incidents"]
    assert (each["kind"], each["holding"], each["evidence"]["change"]) == ("change-stopped", False, change)


async def test_the_status_says_which_table_decides(fleet: Fleet) -> None:
    await begin(fleet)
    _, before = await fleet.get("/api/v1/status", **by("auditor"))
    change = await canary(fleet, OTHER, 5)
    _, after = await fleet.get("/api/v1/status", **by("auditor"))
    assert (before["table"], before["change"]) == (DIGESTS["active"], None)
    assert after["change"] == {"id": change, "share_percent": 5, "decides_here": True, "problem": None}


async def test_of_a_table_that_is_gone_nobody_says_whom_it_shut_out(fleet: Fleet) -> None:
    await begin(fleet)
    change = await canary(fleet, OTHER, 100)
    heard = await fleet.ask(said(0), CHATS, **by("ada"))
    path = f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}"
    assert set((await fleet.get(path, **by("auditor")))[1]["excluded"]) == {"good"}
    await abort(fleet, change)
    assert (await fleet.get(path, **by("auditor")))[1]["excluded"] == {}


async def test_a_restored_store_has_no_change_that_is_live(tmp_path: Path) -> None:
    async with open_database("", tmp_path / "router.db", schema="router.store") as db:
        await db.write(lambda tx: store_changes.add(tx, of("c-1")))
        await db.write(lambda tx: store_changes.end_live(tx, 7))
        async with db.read() as tx:
            assert await store_changes.find_live(tx) is None
            assert [step.actor for step in await store_changes.steps(tx, "c-1")] == ["restore"]


async def test_a_router_with_another_table_takes_no_part(fleet: Fleet, tmp_path: Path) -> None:
    await begin(fleet, tmp_path, sections={"service": {"name": "one"}})
    change = await canary(fleet, OTHER)
    second = fleet.another()
    await start(second, tmp_path, table(regions=["x"]), sections={"service": {"name": "two"}})
    found = await show(second, change)
    assert not found["decides_here"]
    assert "not the one that it was proposed for" in found["problem_here"]
    assert (await promote(second, change))[0] == 409


REVISIONS = ("aa" * 32, "bb" * 32)


async def test_two_revisions_are_compared(fleet: Fleet, tmp_path: Path) -> None:
    for name, revision in zip(("old", "new"), REVISIONS, strict=True):
        await fleet.engine(name, operator="ops", hardware_class="good", revision=revision)
    (tmp_path / "workloads.yaml").write_text(text(ACTIVE))
    await start(fleet, tmp_path)
    object.__setattr__(fleet.app[STATE], "folder", tmp_path)
    wanted = {"model": MODEL, "revision_from": REVISIONS[0], "revision_to": REVISIONS[1]}
    status, found = await do(fleet, "", {"compare": wanted, "reason": "new weights", "by": "conversation"})
    assert status == 201, found
    await share(fleet, found["id"], 50)
    heard = [await fleet.ask(said(number), CHATS, **by("ada")) for number in range(24)]
    assert {each.status for each in heard} == {200}
    found = await show(fleet, found["id"])
    sides = found["revisions"]
    assert set(sides) == set(REVISIONS)
    by_candidate = sides[REVISIONS[1]]["requests_by_arm"]["candidate"]
    assert by_candidate == found["arms"]["candidate"]["requests"] > 4
    assert sides[REVISIONS[0]]["requests_by_arm"]["candidate"] == 0
    for digest, side in sides.items():
        assert side["requests"] == sum(each.headers["X-Touchstone-Revision"] == digest for each in heard)
        assert (side["nodes"], side["suspected_for_answers"], side["failed"]) == (1, 0, 0)
    fleet.router.set_suspected("new", MODEL, is_suspected=True)
    found = await show(fleet, found["id"])
    assert found["revisions"][REVISIONS[1]]["suspected_for_answers"] == 1


async def command(fleet: Fleet, *arguments: str) -> str:
    """What a command prints, run against the router."""
    env = {"TOUCHSTONE_ROUTER_URL": fleet.url, "TOUCHSTONE_API_KEY": "sk-root"}
    ended = await asyncio.to_thread(CliRunner().invoke, router_commands, ["change", *arguments], env=env)
    assert ended.exit_code == 0, ended.output
    return ended.output


async def test_the_commands(fleet: Fleet, tmp_path: Path) -> None:
    await begin(fleet, tmp_path)

    (tmp_path / "next.yaml").write_text(text(OTHER))
    why = ("--reason", "it is cheaper")
    said_ = await command(fleet, "propose", str(tmp_path / "next.yaml"), "--by", "conversation", *why)
    assert "decides in shadow" in said_
    assert set(await send(fleet, 3)) == {200}
    assert "decides about 100 %" in await command(fleet, "share", "100", *why)
    assert set(await send(fleet, 3, 10)) == {200}
    said_ = await command(fleet, "status")
    for what in (
        "share, 100 % by conversation",
        "share 100 % by root: it is cheaper",
        "closed capability.hardware-class",
    ):
        assert what in said_
    assert "is in force" in await command(fleet, "promote", *why)
    assert read_table((await command(fleet, "table")).encode()).digest == in_force(fleet) == DIGESTS["other"]
    assert "is aborted" in await command(fleet, "abort", *why)
    assert in_force(fleet) == DIGESTS["active"]
    assert '"stage": "aborted"' in await command(fleet, "status", "--json")


async def test_killed(tmp_path: Path) -> None:
    async with opened(tmp_path / "real", Running()) as real:
        store = {"path": "router.db"}
        process = RouterProcess(tmp_path / "router", real.verifier, keys=KEYS, store=store)
        process.write_table(ACTIVE)
        await real.engine("good", operator="ops", hardware_class="good")
        real.url = process.url
        try:
            await process.start()
            change = await canary(real, OTHER, 5)
            await process.end(signal.SIGKILL)
            await process.start()
            found = await show(real, change)
            assert (found["stage"], found["share_percent"], found["decides_here"]) == ("share", 5, True)
            assert [step["step"] for step in found["steps"]] == ["propose", "share 5 %"]
            status, found = await abort(real, change)
            assert (status, found["stage"]) == (200, "aborted")
        finally:
            await process.end(signal.SIGKILL)
