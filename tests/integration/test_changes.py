"""Changes of the table of workloads, over real sockets: a bad candidate is stopped, and no client notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from msgspec import UNSET

from router.choose.decision import Decision, replay
from router.model.change import Arm, is_shared, unit_of
from router.model.table import read_table
from router.service.state import STATE
from router.state.trial import Trial
from tests.integration.gateway import CHAT, CHATS, EngineNode, Fleet, Heard, by, key, opened
from tests.integration.test_receipts import read
from tests.unit.router.doubles import honest, until
from tests.unit.router.support import MODEL

KEYS = [
    key("ada"),
    key("bob"),
    key("root", roles=["administrator"]),
    key("auditor", roles=["auditor"]),
    key("rae", roles=["reviewer"]),
]
TIER: dict[str, Any] = {"hardware_classes": ["good"], "prices": {"*": {"input": 100, "output": 100}}}
ACTIVE: dict[str, Any] = {"tiers": {"small": TIER}, "workloads": {"tiny": {"model": MODEL, "tier": "small"}}}


def table(**tier: Any) -> dict[str, Any]:
    """The table in force, but for what is given of its tier."""
    return {**ACTIVE, "tiers": {"small": {**TIER, **tier}}}


def text(document: Any) -> str:
    return document if isinstance(document, str) else msgspec.json.encode(document).decode()


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which conversations are in a share is the same each time."""
    monkeypatch.setattr("router.state.change_steps.token_bytes", bytes)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def begin(fleet: Fleet, folder: Path | None = None, **gateway: Any) -> tuple[EngineNode, EngineNode]:
    """A router over two nodes: the table in force takes the first alone."""
    good = await fleet.engine("good", operator="ops", hardware_class="good")
    bad = await fleet.engine("other", operator="ops", hardware_class="other")
    await start(fleet, folder, **gateway)
    return good, bad


async def start(fleet: Fleet, folder: Path | None, document: Any = ACTIVE, **gateway: Any) -> None:
    store = {} if folder is None else {"store": {"path": str(folder / "router.db")}}
    sections = {"keys": KEYS, **store, "checks": {"enabled": False}, **gateway.pop("sections", {})}
    await fleet.start(sections=sections, table=read_table(text(document).encode()), **gateway)


async def do(fleet: Fleet, path: str, body: Any, who: str = "root") -> tuple[int, Any]:
    async with fleet.http.post(f"{fleet.url}/api/v1/changes{path}", json=body, headers=by(who)) as response:
        return response.status, await response.json(content_type=None)


async def propose(fleet: Fleet, document: Any, **given: Any) -> str:
    status, found = await do(fleet, "", {"table": text(document), "reason": "cheaper", **given})
    assert status == 201, found
    return str(found["id"])


async def share(fleet: Fleet, change: str, percent: int, **given: Any) -> Any:
    status, found = await do(fleet, f"/{change}/share", {"percent": percent, "reason": "try", **given})
    assert status == 200, found
    return found


async def show(fleet: Fleet, change: str) -> Any:
    status, found = await fleet.get(f"/api/v1/changes/{change}", **by("auditor"))
    assert status == 200, found
    return found


def code(problem: Any) -> str:
    return str(problem["type"]).rpartition("#")[2]


def said(number: int, **given: Any) -> dict[str, Any]:
    """A conversation of its own."""
    return {**CHAT, "messages": [{"role": "user", "content": f"story {number}"}], **given}


async def send(fleet: Fleet, count: int, first: int = 0, *, who: str = "ada", **given: Any) -> list[int]:
    """So many conversations, one after the other; the status of each."""
    found = []
    for number in range(first, first + count):
        heard = await fleet.ask(said(number, **given), CHATS, **by(who))
        found.append(heard.status if not heard.streamed or heard.done else 599)
    return found


async def canary(fleet: Fleet, document: Any, percent: int = 50) -> str:
    """A candidate that has a share of the conversations."""
    change = await propose(fleet, document, by="conversation")
    await share(fleet, change, percent, anyway=True)
    return change


async def stopped(fleet: Fleet, change: str) -> Any:
    """The change, once it is written that it was stopped."""
    await until(lambda: fleet.app[STATE].changes.latest is None)
    found = await show(fleet, change)
    assert found["stage"] == "stopped", found
    assert [step["step"] for step in found["steps"]][-1] == "stop"
    assert found["steps"][-1]["actor"] == "router"
    return found


async def test_one_that_sends_all_to_failing_nodes_is_stopped_and_no_client_notices(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    bad.behave("status", status=500)
    change = await canary(fleet, table(hardware_classes=["other"]))
    assert set(await send(fleet, 30)) == {200}
    found = await stopped(fleet, change)
    assert bad.engine.requests > 0
    assert found["arms"]["candidate"]["failed"] == found["arms"]["candidate"]["requests"]
    assert found["arms"]["active"]["failed"] == 0
    before = bad.engine.requests
    assert set(await send(fleet, 10, 100)) == {200}
    assert bad.engine.requests == before


@pytest.mark.parametrize("kind", ["refuses", "busy", "empty", "garbage"])
async def test_whatever_its_nodes_do_instead_of_the_work(fleet: Fleet, kind: str) -> None:
    _, bad = await begin(fleet)
    bad.behave(kind)
    change = await canary(fleet, table(hardware_classes=["other"]))
    assert set(await send(fleet, 30)) == {200}
    await stopped(fleet, change)


async def test_streams_are_taken_over_before_their_first_text(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    bad.behave("status", status=500)
    change = await canary(fleet, table(hardware_classes=["other"]))
    assert set(await send(fleet, 30, stream=True)) == {200}
    await stopped(fleet, change)


async def test_streams_that_break_off_count(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    bad.behave("cuts")
    change = await canary(fleet, table(hardware_classes=["other"]))
    assert 599 in await send(fleet, 30, stream=True)
    found = await stopped(fleet, change)
    assert found["arms"]["candidate"]["failed"] <= 10


async def test_one_that_refuses_everything(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    change = await canary(fleet, table(hardware_classes=["nobody-has-this"]))
    assert set(await send(fleet, 30)) == {200}
    found = await stopped(fleet, change)
    assert found["steps"][-1]["reason"].startswith("ceiling")
    assert found["arms"]["candidate"]["refused"] == found["arms"]["candidate"]["requests"]
    assert bad.engine.requests == 0


async def test_one_that_hangs_leaves_the_other_its_time(fleet: Fleet) -> None:
    _, bad = await begin(fleet, attempt_timeout_s=0.4)
    bad.behave("silent")
    change = await canary(fleet, table(hardware_classes=["other"]), 100)
    heard = await asyncio.gather(*(send(fleet, 1, number) for number in range(4)))
    assert {status for each in heard for status in each} == {200}
    await stopped(fleet, change)


async def test_one_whose_nodes_are_slow(fleet: Fleet) -> None:
    await fleet.engine("good", operator="ops", hardware_class="good")
    slow = await fleet.node("other")
    fleet.verifier.trust("other", endpoint=slow.endpoint, operator="ops", hardware_class="other")

    async def act(request: web.Request) -> web.StreamResponse:
        fleet.clock.forward(0.2)
        return await honest(request)

    slow.act = act
    await start(fleet, None)
    change = await propose(fleet, table(hardware_classes=["other"]), by="conversation")
    assert set(await embed(fleet, 110)) == {200}
    await share(fleet, change, 30)
    assert set(await embed(fleet, 110, 200)) == {200}
    found = await stopped(fleet, change)
    assert found["steps"][-1]["reason"].startswith("p99")
    assert found["arms"]["candidate"]["p99_s"] == pytest.approx(0.2, rel=0.02)
    assert found["arms"]["candidate"]["failed"] == 0


async def embed(fleet: Fleet, count: int, first: int = 0) -> list[int]:
    """So many embeddings, each of a text of its own."""
    body = {"model": MODEL}
    return [
        (await fleet.post({**body, "input": f"text {first + number}"}, **by("ada")))[0]
        for number in range(count)
    ]


async def test_what_is_not_its_nodes_fault_does_not_count(fleet: Fleet) -> None:
    await begin(fleet)
    # What answers there has another key: it is not the node.
    certificate = fleet.certificate("stranger")
    node = EngineNode("stranger", certificate, (await fleet.engine("x")).engine.behaviour)
    await fleet.place(node, certificate, operator="ops", hardware_class="strange")
    fleet.verifier.trust(
        "stranger",
        endpoint={**node.endpoint, "spki_sha256": "ab" * 32},
        operator="ops",
        hardware_class="strange",
    )
    await fleet.stop()
    await start(fleet, None)
    change = await canary(fleet, table(hardware_classes=["strange"]))
    assert set(await send(fleet, 20)) == {200}
    found = await show(fleet, change)
    assert found["stage"] == "share"
    assert found["arms"]["candidate"]["failed"] == 0
    assert found["arms"]["candidate"]["excused"] == found["arms"]["candidate"]["requests"] > 3


def trial_of(fleet: Fleet) -> Trial:
    found = fleet.app[STATE].changes.trial
    assert found is not None
    return found


async def test_one_that_costs_ten_times_more(fleet: Fleet) -> None:
    await begin(fleet)
    dear = table(prices={"*": {"input": 1000, "output": 1000}})
    change = await propose(fleet, dear, by="conversation")
    assert set(await send(fleet, 20)) == {200}
    seen = await show(fleet, change)
    assert seen["shadow"]["would_stop"] == "cost"
    assert [(each["kind"], each["code"], each["count"]) for each in seen["shadow"]["differences"]] == [
        ("price", "dearer", 20)
    ]
    status, refused = await do(fleet, f"/{change}/share", {"percent": 50, "reason": "x"})
    assert (status, code(refused)) == (409, "change.state")
    await share(fleet, change, 50, anyway=True)
    assert set(await send(fleet, 40, 100)) == {200}
    found = await stopped(fleet, change)
    assert found["steps"][-1]["reason"].startswith("cost")
    assert found["arms"]["candidate"]["cost_exact"] > 0


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("tiers: {small: {}}\nworkloads:\n  tiny: {model: m, tier: other}\n", "line 3"),
        ("tiers: [", "line"),
        ("\x00", "refused"),
        ("", "refused"),
        ("tiers:\n  small: {concurrency: 0}\nworkloads: {a: {model: m, tier: small}}\n", "line 2"),
        ("a: &b [*b]", "line 1"),
    ],
)
async def test_a_malformed_one_leaves_no_trace(fleet: Fleet, document: str, why: str) -> None:
    await begin(fleet)
    status, found = await do(fleet, "", {"table": document, "reason": "x"})
    assert (status, code(found)) == (400, "request.malformed")
    assert why in found["detail"]
    assert (await fleet.get("/api/v1/changes", **by("auditor")))[1] == {"changes": []}
    assert fleet.app[STATE].changes.latest is None


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.json", "a/../../b.json"])
async def test_a_candidate_names_no_file_outside_the_folder(fleet: Fleet, name: str) -> None:
    await begin(fleet)
    work = {"tiny": {"model": MODEL, "tier": "small", "tokeniser": name}}
    status, found = await do(fleet, "", {"table": text({**ACTIVE, "workloads": work}), "reason": "x"})
    assert (status, code(found)) == (409, "change.state")


async def test_the_same_table_is_no_change(fleet: Fleet) -> None:
    await begin(fleet)
    status, found = await do(fleet, "", {"table": "# a comment\n" + text(ACTIVE), "reason": "x"})
    assert (status, "says what the table in force says" in found["detail"]) == (409, True)


async def test_one_that_lacks_the_model_that_clients_use(fleet: Fleet) -> None:
    await begin(fleet)
    other = {**ACTIVE, "workloads": {"other": {"model": "example/other", "tier": "small"}}}
    change = await propose(fleet, other, by="conversation")
    assert set(await send(fleet, 5)) == {200}
    seen = await show(fleet, change)
    assert [(each["kind"], each["code"]) for each in seen["shadow"]["differences"]] == [
        ("unknown", "model_not_found")
    ]
    assert len(seen["warnings"]) == 4, seen["warnings"]
    await share(fleet, change, 50, anyway=True)
    assert set(await send(fleet, 30, 100)) == {200}
    await stopped(fleet, change)


async def test_a_tier_by_another_name_says_that_standing_is_lost(fleet: Fleet) -> None:
    await begin(fleet)
    fleet.establish("good")
    renamed = {
        "tiers": {"tiny-tier": TIER},
        "workloads": {"tiny": {"model": MODEL, "tier": "tiny-tier"}},
    }
    change = await propose(fleet, renamed)
    found = await show(fleet, change)
    assert any("no standing is kept" in warning for warning in found["warnings"])
    assert set(await send(fleet, 3)) == {200}
    assert fleet.router.statistics("good", "tiny-tier") is None


async def test_shadow_reaches_no_client_and_moves_no_state(fleet: Fleet) -> None:
    _, other = await begin(fleet)
    change = await propose(fleet, table(hardware_classes=["other"]))
    before = fleet.router.statistics_by_tier("other")
    assert set(await send(fleet, 12)) == {200}
    found = await show(fleet, change)
    assert other.engine.requests == 0
    assert fleet.router.statistics_by_tier("other") == before
    assert found["shadow"]["decided"] == 12
    assert [(each["kind"], each["code"], each["count"]) for each in found["shadow"]["differences"]] == [
        ("closed", "capability.hardware-class", 12)
    ]


async def test_examples_can_be_made_again(fleet: Fleet) -> None:
    await begin(fleet)
    change = await propose(fleet, table(hardware_classes=["other"]))
    await send(fleet, 1)
    (example,) = (await show(fleet, change))["examples"]
    active, candidate = (Decision.from_wire(example[arm]) for arm in ("active", "candidate"))
    assert [replay(each).chosen.node for each in (active, candidate)] == ["good", "other"]  # type: ignore[union-attr]
    assert active.seed == candidate.seed
    assert [active.table, candidate.table] == [
        read_table(text(each).encode()).digest for each in (ACTIVE, table(hardware_classes=["other"]))
    ]


async def test_records_and_receipts_say_who_decided(fleet: Fleet) -> None:
    await begin(fleet)
    candidate = table(hardware_classes=["other"])
    change = await canary(fleet, candidate, 50)
    secret = trial_of(fleet).change.secret
    digests = {
        False: read_table(text(ACTIVE).encode()).digest,
        True: read_table(text(candidate).encode()).digest,
    }
    seen = set()
    for number in range(12):
        heard = await fleet.ask(said(number), CHATS, **by("ada"))
        is_candidate = is_shared(secret, unit_of("conversation", "ada", said(number)), 50)
        seen.add(is_candidate)
        _, record = await fleet.get(
            f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}", **by("auditor")
        )
        assert (record["table"], record["arm"]) == (
            digests[is_candidate],
            "candidate" if is_candidate else "active",
        )
        assert record["chosen"] == ("other" if is_candidate else "good")
        replay(Decision.from_wire(record))
        receipt = await read(fleet, heard.headers)
        assert receipt.table == digests[is_candidate]
        assert receipt.arm == ("candidate" if is_candidate else UNSET)
    assert seen == {True, False}
    assert (await show(fleet, change))["stage"] == "share"


async def test_by_key_each_caller_stays_on_its_side_while_the_share_grows(fleet: Fleet) -> None:
    for name in ("good", "other"):
        await fleet.engine(name, operator="ops", hardware_class=name)
    callers = [f"caller-{number}" for number in range(12)]
    await start(fleet, None, sections={"keys": [*KEYS, *map(key, callers)]})
    change = await propose(fleet, table(hardware_classes=["other"]))
    before: set[str] = set()
    for percent in (20, 60):
        await share(fleet, change, percent)
        heard = {who: [await fleet.ask(said(n), CHATS, **by(who)) for n in range(2)] for who in callers}
        nodes = {who: {await answered_by(fleet, each) for each in some} for who, some in heard.items()}
        assert all(len(each) == 1 for each in nodes.values())
        now = {who for who, each in nodes.items() if each == {"other"}}
        assert before <= now
        assert 0 < len(now) < 12
        before = now


async def answered_by(fleet: Fleet, heard: Heard) -> str:
    path = f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}"
    _, record = await fleet.get(path, **by("auditor"))
    return str(record["attempts"][-1]["node"])


async def test_a_caller_with_little_time_has_enough_for_the_other_table(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    bad.behave("silent")
    change = await canary(fleet, table(hardware_classes=["other"]), 100)
    heard = await fleet.ask(said(0), CHATS, **by("ada"), **{"X-Touchstone-Timeout": "2"})
    assert heard.status == 200
    assert await answered_by(fleet, heard) == "good"
    # For want of its caller's time nobody is blamed.
    await until(lambda: trial_of(fleet).sight.shared.of(Arm.CANDIDATE).requests == 1)
    found = await show(fleet, change)
    assert (found["arms"]["candidate"]["failed"], found["arms"]["candidate"]["excused"]) == (0, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_names_the_decision_and_the_node_that_it_is_of(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    _, bad = await begin(fleet)
    bad.behave("status", status=500)
    change = await canary(fleet, table(hardware_classes=["other"]), 100)
    heard = await fleet.ask(said(0, stream=stream), CHATS, **by("ada"), **{"X-Touchstone-Explain": "1"})
    assert heard.status == 200
    path = f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}"
    _, record = await fleet.get(path, **by("auditor"))
    assert (record["arm"], record["chosen"], [each["outcome"] for each in record["attempts"]]) == (
        "active",
        "good",
        ["completed"],
    )
    receipt = await read(fleet, heard.headers)
    assert (receipt.decision, receipt.arm, receipt.node.id) == (record["id"], UNSET, "good")
    told = [each["touchstone"] for each in (heard.events if stream else [heard.json]) if "touchstone" in each]
    assert [each["id"] for each in told] == [record["id"]]
    # The candidate's own record says what its node did, and whose fault that was.
    (example,) = (await show(fleet, change))["examples"]
    _, own = await fleet.get(f"/api/v1/decisions/{example['record']}", **by("auditor"))
    assert [(each["node"], each["outcome"], each["blame"]) for each in own["attempts"]] == [
        ("other", "crashed", "node")
    ]
    assert own["arm"] == "candidate"


async def test_a_proposal_may_bring_its_own_bounds(fleet: Fleet) -> None:
    await begin(fleet)
    dear = table(prices={"*": {"input": 1000, "output": 1000}})
    change = await propose(fleet, dear, by="conversation", bounds={"cost_percent": 1000})
    await share(fleet, change, 100)
    assert set(await send(fleet, 12)) == {200}
    found = await show(fleet, change)
    assert (found["stage"], found["bounds"]["cost_percent"]) == ("share", 1000)


@pytest.mark.parametrize(
    "given", [{"bounds": {"cost_percent": 0}}, {"by": "address"}, {"reason": ""}, {"table": None}]
)
async def test_a_proposal_that_is_malformed(fleet: Fleet, given: dict[str, Any]) -> None:
    await begin(fleet)
    body = {"table": text(table(regions=["x"])), "reason": "x", **given}
    status, found = await do(fleet, "", body)
    assert (status, code(found)) == (400, "request.malformed")
    assert fleet.app[STATE].changes.latest is None
