"""A device serves one live node: whoever declares it first, for as long as it goes on declaring it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from attester.client import Session
from attester.cose import PrivateKey
from attester.evidence import Inventory
from fixtures.simulator import SimulatedNode
from fixtures.transactions import transaction
from verifier.store import incidents, nodes


def card(uuid: str = "GPU-1") -> dict[str, Any]:
    return {"inventory": Inventory(model="X1", uuid=uuid, memory_bytes=1 << 36)}


async def with_devices(verifier, operator: str, *uuids: str) -> SimulatedNode:
    node = SimulatedNode(verifier.model_folder, devices=tuple(card(uuid) for uuid in uuids))
    return await verifier.enrol(node, operator=operator)


def identity(result: dict[str, Any]) -> int:
    value: int = result["submods"]["platform"]["ear_trustworthiness_vector"]["instance-identity"]
    return value


def codes(result: dict[str, Any]) -> list[str]:
    return [r["code"] for r in result["submods"]["platform"]["ear_verifier_claims"].get("reasons", ())]


async def owners(verifier) -> dict[str, str]:
    return {row["device"]: row["node_id"] for row in await verifier.rows("SELECT * FROM devices")}


async def refused(verifier, node: SimulatedNode) -> bool:
    """Whether a new result of the node says that its device is another's; the two signs agree."""
    result = await verifier.attest(node)
    duplicate = codes(result) == ["identity.duplicate-device"]
    assert identity(result) == (96 if duplicate else 2)
    assert duplicate == (result["ear_status"] == "contraindicated")
    assert duplicate or codes(result) == []
    return duplicate


async def opened(verifier, query: str = "") -> Session:
    """A session of nobody's, without challenges."""
    async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession{query}") as response:
        assert response.status == 201
        given = await response.json(content_type=None)
    session_id = response.headers["Location"].rpartition("/")[2]
    return Session(session_id, base64.b64decode(given["nonce"]), ())


@pytest.fixture
async def two(verifier) -> tuple[SimulatedNode, SimulatedNode]:
    """The first has declared the device, the second will."""
    first = await with_devices(verifier, "first", "GPU-1")
    await verifier.attest(first)
    return first, await with_devices(verifier, "second", "GPU-1")


async def test_a_second_live_node_is_told_and_the_first_untouched(verifier, two) -> None:
    """The newcomer's result says which device; the incumbent's results stay, now and later."""
    first, second = two
    _, before = await verifier.get(f"/api/v1/nodes/{first.id}")
    result = await verifier.attest(second)
    assert identity(result) == 96
    reasons = result["submods"]["platform"]["ear_verifier_claims"]["reasons"]
    assert [(r["code"], r["detail"]) for r in reasons] == [
        ("identity.duplicate-device", "another live node declares GPU-1")
    ]
    assert result["submods"]["gpu/0"]["ear_attester_claims"]["inventory"]["uuid"] == "GPU-1"
    assert await verifier.get(f"/api/v1/nodes/{first.id}") == (200, before)
    assert (await verifier.rows("SELECT 1 FROM appraisals WHERE revoked_ms IS NOT NULL")) == []
    assert not await refused(verifier, first)
    assert await owners(verifier) == {"GPU-1": first.id}


async def test_it_is_a_minor_incident_of_the_newcomer(verifier, two) -> None:
    """Declared is declared: nobody goes into quarantine by the word of another."""
    first, second = two
    await verifier.attest(second)
    await verifier.attest(first)
    found = await verifier.rows("SELECT kind, severity, state, node_id, code FROM incidents")
    assert found == [
        {
            "kind": "declared-duplicate",
            "severity": "minor",
            "state": "noted",
            "node_id": second.id,
            "code": "identity.duplicate-device",
        }
    ]
    async with verifier.service.db.read() as tx:
        assert await incidents.holding(tx, second.id) is None


async def test_the_same_operator_is_no_exception(verifier) -> None:
    """Two nodes on one device are two promises of the same work."""
    first, second = [await with_devices(verifier, "acme", "GPU-1") for _ in range(2)]
    assert not await refused(verifier, first)
    assert await refused(verifier, second)


async def test_after_the_first_is_retired_the_second_may_have_it(verifier, two) -> None:
    """At its next evidence."""
    first, second = two
    assert await refused(verifier, second)
    async with transaction(verifier.service.db) as tx:
        await nodes.retire(tx, first.id, verifier.clock.ms)
    assert not await refused(verifier, second)
    assert await owners(verifier) == {"GPU-1": second.id}
    # What the retired one still sends, to a session that anyone may open, takes nothing back.
    session = await opened(verifier)
    result = await verifier.submit(session, first.evidence(session, iat=verifier.clock.seconds), first)
    assert identity(result) == 96
    assert not await refused(verifier, second)
    assert await owners(verifier) == {"GPU-1": second.id}


async def test_after_the_first_stops_declaring_it_the_second_may_have_it(verifier, two) -> None:
    """It was moved to another machine; the first keeps what it still has."""
    first, second = two
    first.devices = (card("GPU-2"), card("GPU-1"))
    assert not await refused(verifier, first)
    assert await refused(verifier, second)
    first.devices = (card("GPU-2"),)
    assert not await refused(verifier, first)
    assert not await refused(verifier, second)
    assert await owners(verifier) == {"GPU-1": second.id, "GPU-2": first.id}
    first.devices = (card("GPU-2"), card("GPU-1"))
    assert await refused(verifier, first)


async def test_a_node_that_says_nothing_of_devices_gives_them_up(verifier, two) -> None:
    """Silence is no claim."""
    first, second = two
    first.devices = ()
    assert not await refused(verifier, first)
    assert await owners(verifier) == {}
    assert not await refused(verifier, second)


async def test_one_foreign_device_among_ones_own(verifier, two) -> None:
    """Its own it gets, the other's it does not."""
    first, second = two
    second.devices = (card("GPU-7"), card("GPU-1"))
    assert await refused(verifier, second)
    assert await owners(verifier) == {"GPU-1": first.id, "GPU-7": second.id}


async def test_one_node_declares_several_and_again(verifier) -> None:
    """A machine of many cards is nobody's duplicate, not even its own."""
    node = await with_devices(verifier, "acme", "GPU-1", "GPU-2", "GPU-3")
    for _ in range(3):
        assert not await refused(verifier, node)
    assert set((await owners(verifier)).values()) == {node.id}


async def test_a_race_of_two_has_one_winner(verifier) -> None:
    """Submitted at once: one result without the finding, one with it."""
    for number in range(5):
        racers = [await with_devices(verifier, f"operator-{n}", f"GPU-{number}") for n in range(2)]
        results = await asyncio.gather(*(verifier.attest(node) for node in racers))
        assert sorted(map(identity, results)) == [2, 96], number
        loser = next(n for n, result in enumerate(results) if identity(result) == 96)
        assert codes(results[loser]) == ["identity.duplicate-device"]
        assert (await owners(verifier))[f"GPU-{number}"] == racers[1 - loser].id


async def test_a_background_check_takes_no_device(verifier, two) -> None:
    """Evidence shown to one caller changes nothing for anybody else."""
    first, second = two
    session = await opened(verifier, f"?nonce={'ab' * 16}")
    second.devices = (card("GPU-1"), card("GPU-9"))
    result = await verifier.submit(session, second.evidence(session, iat=verifier.clock.seconds), second)
    assert codes(result) == ["identity.duplicate-device"]
    assert await owners(verifier) == {"GPU-1": first.id}
    assert await verifier.rows("SELECT id FROM incidents") == []


async def test_a_new_key_of_the_same_node_keeps_its_device(verifier, two) -> None:
    """The device is the node's, not the key's."""
    first, second = two
    new = PrivateKey.generate()
    await verifier.client(first).roll(first.id, new)
    first.key = new
    assert not await refused(verifier, first)
    assert await refused(verifier, second)
