"""The log of a verifier: what is written into it, how it grows, and how anybody reads it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.client import Session
from attester.cose import PrivateKey
from fixtures.transactions import transaction
from verifier.errors import StoreError
from verifier.incident_transitions import Open
from verifier.incidents import Draft, Severity, State
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.proofs import LogProof
from verifier.roles import Role
from verifier.schemes.findings import Finding
from verifier.store import (
    api_keys,
    blocks,
    incident_transitions,
    incidents,
    log,
    log_tree,
    nodes,
    policies,
    references,
    signing_keys,
)  # fmt: skip
from verifier.store.policies import ChangeAuthor
from verifier.watching.auditing import audit
from verifier.watching.sources import open_source

STORES = ("sqlite", "postgres")


async def settle(verifier: Any) -> None:
    """Let the sequencer give all that waits its places."""
    await verifier.service.sequencer.round()


async def entries(verifier: Any, kind: str | None = None) -> list[dict[str, Any]]:
    """All entries with their places, or those of one kind."""
    await settle(verifier)
    rows = await verifier.rows("SELECT entry FROM log_entries ORDER BY log, place")
    found = [json.loads(bytes(row["entry"])) for row in rows]
    return [entry for entry in found if kind in (None, entry["kind"])]


async def the_log(verifier: Any) -> log_tree.Log:
    async with verifier.service.db.read() as tx:
        found = await log_tree.newest(tx)
    assert found is not None
    return found


async def fetch(verifier: Any, path: str) -> bytes:
    async with verifier.stranger.get(verifier.url + path) as response:
        assert response.status == 200, await response.text()
        return bytes(await response.read())


async def test_anybody_verifies_the_whole_log_with_its_key_alone(verifier) -> None:
    """Checkpoint, tiles and entries come from the routes, and `touchstone log verify` finds nothing wrong."""
    node = await verifier.enrol()
    for _ in range(3):
        await verifier.attest(node)
    await fill(verifier, 600)
    await settle(verifier)
    key = VerifierKey.parse((await the_log(verifier)).vkey)
    signed = open_checkpoint(await fetch(verifier, "/log/checkpoint"), [key])
    assert signed.checkpoint.size > 600
    async with open_source(verifier.url + "/log") as source:
        found = await audit(source, signed.checkpoint, {})
    assert not found.findings
    assert found.entries == signed.checkpoint.size


async def fill(verifier: Any, count: int) -> None:
    async with transaction(verifier.service.db) as tx:
        for number in range(count):
            members = {"change": "made", "kid": f"key-{number}", "use": "test"}
            await log.append(tx, verifier.clock.ms, "key", members)


async def test_a_result_is_logged_and_its_proof_verifies(verifier) -> None:
    """The proof has the entry with it, and needs nothing but the log's key."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    await settle(verifier)
    proof = LogProof.parse(await fetch(verifier, f"/api/v1/log/proof?kind=result&id={claims['jti']}"))
    key = VerifierKey.parse((await the_log(verifier)).vkey)
    assert proof.extra is not None
    proof.verify(proof.extra, lambda note: open_checkpoint(note, [key]))
    entry = json.loads(proof.extra)
    (row,) = await verifier.rows("SELECT token FROM appraisals WHERE id = ?", claims["jti"])
    assert entry["sha256"] == hashlib.sha256(row["token"].encode()).hexdigest()
    assert (entry["node"], entry["status"]) == (node.id, "affirming")
    assert list(entry["references"]) == [node.model]


async def test_discovery_and_the_list_of_logs_have_the_key(verifier) -> None:
    await settle(verifier)
    known = await the_log(verifier)
    wanted = {"origin": known.origin, "vkey": known.vkey, "prefix": "/log"}
    _, document = await verifier.get("/.well-known/veraison/verification")
    assert document["log"] == wanted
    async with verifier.stranger.get(f"{verifier.url}/api/v1/log") as response:
        told = await response.json()
    assert [{name: each[name] for name in wanted} for each in told["logs"]] == [wanted]
    assert told["stopped"] is False


async def test_an_entry_is_canonical_and_small(verifier) -> None:
    """And has nothing secret: no token, no digest of a credential, no evidence."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.key("someone")
    await settle(verifier)
    rows = await verifier.rows("SELECT entry FROM log_entries")
    digests = [bytes(row["digest"]).hex() for row in await verifier.rows("SELECT digest FROM api_keys")]
    for row in rows:
        data = bytes(row["entry"])
        assert (
            json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            == data
        )
        assert len(data) <= log.MAX_ENTRY
        assert not any(digest in data.decode() for digest in digests)
        assert verifier.service.admin_token not in data.decode()


async def test_an_entry_that_is_too_large_stops_what_it_records(verifier) -> None:
    with pytest.raises(StoreError, match="more than 4096"):
        await verifier.service.db.write(
            lambda tx: log.append(tx, 1, "key", {"change": "made", "kid": "x" * 5000, "use": "test"})
        )


async def test_what_is_undone_is_not_logged(verifier) -> None:
    """The entry goes with the transaction."""

    async def work(tx: Any) -> None:
        await log.append(tx, 1, "key", {"change": "made", "kid": "undone", "use": "test"})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await verifier.service.db.write(work)
    assert "undone" not in [entry["kid"] for entry in await entries(verifier, "key")]


# What is logged.


async def test_an_enrolment_and_a_new_key_and_a_retirement(verifier) -> None:
    node = await verifier.enrol()
    old = node.key.public.kid.hex()
    new = PrivateKey.generate()
    async with transaction(verifier.service.db) as tx:
        await nodes.replace_key(tx, node.id, new.public, verifier.clock.ms)
        await nodes.retire(tx, node.id, verifier.clock.ms)
    found = [(each["change"], each.get("kid")) for each in await entries(verifier, "node")]
    assert found == [("enrolled", old), ("key-rolled", new.public.kid.hex()), ("retired", None)]


async def test_a_revocation_names_all_results_and_why(verifier) -> None:
    node = await verifier.enrol()
    ids = [(await verifier.attest(node))["jti"] for _ in range(3)]
    async with transaction(verifier.service.db) as tx:
        await nodes.retire(tx, node.id, verifier.clock.ms)
    (found,) = await entries(verifier, "revocation")
    assert (found["ids"], found["node"], found["why"]) == (ids, node.id, "retired")


async def test_a_background_check_names_no_node(verifier) -> None:
    """Its result is its caller's alone."""
    node = await verifier.enrol()
    path = "/challenge-response/v1/newSession?nonce=" + base64.urlsafe_b64encode(b"y" * 32).decode()
    async with verifier.http.post(verifier.url + path) as response:
        session = Session(response.headers["Location"].rpartition("/")[2], b"y" * 32, ())
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    (found,) = [each for each in await entries(verifier, "result") if each["id"] == claims["jti"]]
    assert "node" not in found
    assert "references" not in found


async def test_changes_of_policies_are_logged_with_who_made_them(verifier) -> None:
    active = (await verifier.policy()).digest
    author = ChangeAuthor("ada", "a test")
    async with transaction(verifier.service.db) as tx:
        await policies.note(tx, "canary", active, author, 1, {"permille": 50})
    changes = [(each["change"], each["actor"]) for each in await entries(verifier, "policy")]
    assert changes[:2] == [("published", "test"), ("promoted", "test")]
    assert changes[-1] == ("canary", "ada")
    last = (await entries(verifier, "policy"))[-1]
    assert (last["digest"], last["permille"]) == (active, 50)
    assert last["id"].endswith(active)


async def test_a_reference_value_is_logged_with_its_source(verifier) -> None:
    found = await entries(verifier, "reference")
    assert [each["change"] for each in found] == ["add", "activate"]
    assert {each["source"] for each in found} == {"measured"}
    digest = found[0]["digest"]
    async with transaction(verifier.service.db) as tx:
        await references.retire(tx, digest, ChangeAuthor("ada", "wrong"), 1)
        await references.restore(tx, digest, ChangeAuthor("ada", "right"), 1)
    later = (await entries(verifier, "reference"))[2:]
    assert [(each["change"], each["actor"]) for each in later] == [("retire", "ada"), ("restore", "ada")]


async def test_blocks_are_logged(verifier) -> None:
    author = ChangeAuthor("ada", "a test")
    async with transaction(verifier.service.db) as tx:
        block = await blocks.block(tx, "engine-version", "vllm@0.1", author, 1)
        await blocks.lift(tx, block, author, 1)
    found = [(each["change"], each["what"], each["value"]) for each in await entries(verifier, "block")]
    assert found == [("blocked", "engine-version", "vllm@0.1"), ("lifted", "engine-version", "vllm@0.1")]


async def test_api_keys_are_logged_by_name_and_roles(verifier) -> None:
    await verifier.key("router-9", Role.ROUTER)
    async with transaction(verifier.service.db) as tx:
        await api_keys.revoke(tx, "router-9", 1, "ada")
    made, revoked = [each for each in await entries(verifier, "key") if each["kid"] == "router-9"]
    assert (made["change"], made["roles"], made["use"]) == ("made", ["router"], "api")
    assert (revoked["change"], revoked["actor"]) == ("revoked", "ada")


async def test_signing_keys_are_logged(verifier) -> None:
    _, key = verifier.home.create_result_key()
    now = verifier.clock.ms
    async with transaction(verifier.service.db) as tx:
        await signing_keys.rotate(tx, key.verifying, now, signs_ms=now, leaves_ms=now + 9, actor="ada")
        await signing_keys.withdraw(tx, key.kid, now, "ada")
    found = [each for each in await entries(verifier, "key") if each["use"] == "results"]
    assert [(each["change"], each.get("actor")) for each in found] == [
        ("made", None), ("made", "ada"), ("withdrawn", "ada")
    ]  # fmt: skip


async def test_an_incident_and_its_release_are_logged_with_who_and_why(verifier) -> None:
    node = await verifier.enrol()
    finding = Finding("weights.read.wrong", "a test")
    draft = Draft("model-integrity-failure", Severity.SERIOUS, finding, None)
    async with transaction(verifier.service.db) as tx:
        (incident,) = await incident_transitions.apply(
            tx, [Open(draft, State.OPEN, node_id=node.id, operator="acme")], 1
        )
        await incidents.take_step(tx, incident, "release", "ada", "it was us", 2, two_person=False)
    states = [(each["state"], each["actor"]) for each in await entries(verifier, "incident")]
    assert states == [("open", "verifier"), ("released", "ada")]
    (release,) = await entries(verifier, "release")
    assert (release["id"], release["node"], release["actor"]) == (incident, node.id, "ada")
    assert release["reason"] == "it was us"


async def test_a_long_reason_is_cut(verifier) -> None:
    """In the history it is whole."""
    node = await verifier.enrol()
    draft = Draft("model-integrity-failure", Severity.SERIOUS, Finding("weights.read.wrong", "a test"), None)
    async with transaction(verifier.service.db) as tx:
        (incident,) = await incident_transitions.apply(
            tx, [Open(draft, State.OPEN, node_id=node.id, operator="acme")], 1
        )
        await incidents.take_step(tx, incident, "release", "ada", "\x01ö" * 1000, 2, two_person=False)
    (release,) = await entries(verifier, "release")
    assert release["reason"].endswith("…")
    assert len(release["reason"]) < 200


@given(st.text(max_size=3000))
def test_a_text_is_cut_to_what_an_entry_has_room_for(text: str) -> None:
    kept = log.clip(text)
    assert len(msgspec.json.encode(kept)) <= 520
    assert kept == text or kept.endswith("…")
