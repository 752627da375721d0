"""The log of a verifier: what is written into it, how it grows, and how anybody reads it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fixtures.transactions import transaction
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.proofs import LogProof
from verifier.store import log, log_tree
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
