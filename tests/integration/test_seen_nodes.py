"""What a process has seen of a node is not read again, and counts for nothing once somebody has changed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.client import Session
from attester.cose import PrivateKey
from attester.errors import VerifierError
from fixtures.simulator import ENGINE, MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier import results
from verifier.schemes.context import WalkRecord
from verifier.store import blocks, nodes, sessions, walks
from verifier.store.database import Tx
from verifier.store.policies import ChangeAuthor

STORES = ("sqlite", "postgres")


async def seen_node(verifier) -> tuple[SimulatedNode, Session]:
    """A node that has answered a call and attested since, and its next session."""
    node = await verifier.enrol()
    await verifier.attest(node)
    client = verifier.client(node)
    _, following = await client.submit_and_go_on(*await evidence_of(verifier, node))
    assert following is not None
    assert verifier.service.seen.get(node.id) is not None
    return node, following


async def evidence_of(verifier, node: SimulatedNode) -> tuple[Session, bytes]:
    session = await verifier.client(node).open_session()
    return session, node.evidence(session, iat=verifier.clock.seconds)


async def codes_of(verifier, node: SimulatedNode, session: Session) -> dict[str, set[str]]:
    """Attest in a session that the verifier opened; by submodule, the codes of the reasons in the result."""
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    token = await verifier.client(node).submit(session, evidence)
    result = results.decode_jwt(token, verifier.service.verifying_keys(), issuer=verifier.url, now=None)
    return {
        name: {reason.code for reason in submod.ear_verifier_claims.reasons}
        for name, submod in result.submods.items()
    }


async def test_nothing_of_a_seen_node_is_read_before_its_result(verifier, monkeypatch) -> None:
    """An attestation of a node that attested before is one transaction, and no read besides."""
    node, session = await seen_node(verifier)
    reads: list[str] = []
    read = verifier.service.db.read

    @asynccontextmanager
    async def noted() -> AsyncIterator[Tx]:
        task = asyncio.current_task()
        assert task is not None
        reads.append(task.get_name())
        async with read() as tx:
            yield tx

    with monkeypatch.context() as patched:
        patched.setattr(type(verifier.service.db), "read", lambda _: noted())
        evidence = node.evidence(session, iat=verifier.clock.seconds)
        token, following = await verifier.client(node).submit_and_go_on(session, evidence)
    # The tasks of the background have names of their own.
    assert [name for name in reads if name.startswith("Task-")] == []
    assert token
    assert following is not None


async def test_a_walk_that_was_missed_meanwhile_counts(verifier) -> None:
    """Another replica, or the sweep, notes a missed call after the node was seen."""
    node, session = await seen_node(verifier)
    async with transaction(verifier.service.db) as tx:
        await sessions.record_missed_call(tx, node.id, (MODEL,), await digests(verifier), verifier.clock.ms)
    found = await codes_of(verifier, node, session)
    assert "weights.walk.unanswered" in found[f"model/{MODEL}"]


async def test_without_a_change_the_walks_are_as_they_were(verifier) -> None:
    """So the finding above comes from the missed call alone."""
    node, session = await seen_node(verifier)
    found = await codes_of(verifier, node, session)
    assert found[f"model/{MODEL}"] == set()


async def digests(verifier) -> dict[str, str]:
    async with verifier.service.db.read() as tx:
        return await verifier.service.inputs.load_digests_in_force(tx)


async def test_a_state_that_was_changed_meanwhile_counts(verifier) -> None:
    """A person puts the node on probation: its next result says so, and the policy was told."""
    node, session = await seen_node(verifier)
    async with transaction(verifier.service.db) as tx:
        await nodes.put_on_probation(tx, node.id, verifier.clock.ms)
    verifier.clock.forward(1)
    await codes_of(verifier, node, session)
    (row,) = await verifier.rows("SELECT input FROM recordings ORDER BY at_ms DESC LIMIT 1")
    assert '"state":"probation"' in row["input"]


async def test_a_hardware_class_that_was_changed_meanwhile_counts(verifier) -> None:
    """The deadline of a walk goes by it."""
    node, session = await seen_node(verifier)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE nodes SET hardware_class = 'other' WHERE id = ?", node.id)
    found = await codes_of(verifier, node, session)
    assert "capabilities.class.mismatch" in found["platform"]


async def test_a_new_key_is_taken_at_once(verifier) -> None:
    """The old key was seen: what the new one signs must not be refused for it."""
    node, session = await seen_node(verifier)
    node.key = PrivateKey.generate()
    async with transaction(verifier.service.db) as tx:
        await nodes.replace_key(tx, node.id, node.key.public, verifier.clock.ms)
    assert await codes_of(verifier, node, session)


@pytest.mark.parametrize("retired", [False, True])
async def test_an_old_key_opens_no_session(verifier, *, retired: bool) -> None:
    """Neither after it was replaced, nor after its node was retired."""
    node, session = await seen_node(verifier)
    await codes_of(verifier, node, session)
    async with transaction(verifier.service.db) as tx:
        if retired:
            await nodes.retire(tx, node.id, verifier.clock.ms)
        else:
            await nodes.replace_key(tx, node.id, PrivateKey.generate().public, verifier.clock.ms)
    with pytest.raises(VerifierError, match="retired" if retired else "not enrolled"):
        await verifier.client(node).open_session()


async def test_an_old_key_signs_no_evidence(verifier) -> None:
    """It was replaced after the session was opened."""
    node, session = await seen_node(verifier)
    async with transaction(verifier.service.db) as tx:
        await nodes.replace_key(tx, node.id, PrivateKey.generate().public, verifier.clock.ms)
    with pytest.raises(VerifierError, match="key"):
        await codes_of(verifier, node, session)


async def test_a_change_of_policy_counts(verifier) -> None:
    """The rollout was seen too: a block that came since counts for the next evidence."""
    node, session = await seen_node(verifier)
    async with transaction(verifier.service.db) as tx:
        value, who = f"{ENGINE}@{node.engine_version}", ChangeAuthor("kim", "a test")
        await blocks.block(tx, "engine-version", value, who, verifier.clock.ms)
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    result = await verifier.submit(session, evidence, node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 96


record = st.builds(
    WalkRecord,
    channel=st.sampled_from(["call", "announced"]),
    verdict=st.just("right"),
    at_ms=st.integers(0, 1000),
    wide=st.booleans(),
)


@given(kept=st.lists(record, max_size=20), limit=st.integers(1, 4))
def test_a_history_is_extended_as_it_would_be_read(kept: list[WalkRecord], limit: int) -> None:
    """The newest of each kind, oldest first; walks that are wide and announced have no place in it."""
    found: tuple[WalkRecord, ...] = ()
    for each in kept:
        found = walks.extend(found, each, limit)
    kinds = [("announced", False), ("call", False), ("call", True)]
    chosen = {
        number
        for kind in kinds
        for number in [n for n, each in enumerate(kept) if (each.channel, each.wide) == kind][-limit:]
    }
    assert found == tuple(kept[number] for number in sorted(chosen))


async def test_a_new_key_of_its_endpoint_takes_the_place_of_the_old_one(verifier) -> None:
    """The database says which key the node serves with, also if the node was seen with another."""
    node, session = await seen_node(verifier)
    (before,) = await verifier.rows("SELECT pin, node_id FROM endpoints")
    node.tls_key = PrivateKey.generate()
    await codes_of(verifier, node, session)
    (after,) = await verifier.rows("SELECT pin, node_id FROM endpoints")
    assert after["node_id"] == before["node_id"] == node.id
    assert after["pin"] != before["pin"]
