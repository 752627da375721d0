"""Signing keys: rotated with overlap, withdrawn with what they signed, and taken by a running verifier."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fixtures.transactions import transaction
from tests.integration.lifecycle import chosen, router, within
from verifier import jws, result_keys
from verifier.commands.verifier import verifier as commands
from verifier.errors import StoreError
from verifier.result_keys import ResultKey
from verifier.store import signing_keys

STORES = ("sqlite", "postgres")
LEAD_MS, OVERLAP_MS = 60_000, 600_000


async def listed(verifier: Any) -> list[str]:
    """The kids of the JWKS, in its order."""
    _, body = await verifier.get("/.well-known/jwks.json")
    found = [key["kid"] for key in body["keys"]]
    assert set(result_keys.read_jwks(json.dumps(body).encode())) == set(found)
    return found


async def rotated(verifier: Any, *, lead_ms: int = LEAD_MS) -> ResultKey:
    """A new key, as the command makes it, by the clock of the test."""
    _, key = verifier.home.create_result_key()
    now_ms = verifier.clock.ms
    signs_ms = now_ms + lead_ms
    async with transaction(verifier.service.db) as tx:
        await signing_keys.rotate(
            tx, key.verifying, now_ms, signs_ms=signs_ms, leaves_ms=signs_ms + OVERLAP_MS
        )
    await verifier.service.key_ring.look(now_ms)
    return key


async def withdrawn(verifier: Any, kid: str) -> int:
    async with transaction(verifier.service.db) as tx:
        count = await signing_keys.withdraw(tx, kid, verifier.clock.ms)
    await verifier.service.key_ring.look(verifier.clock.ms)
    return count


async def signer_of(verifier: Any, node: Any) -> str | None:
    """Who signed a node's live result."""
    async with verifier.http.get(f"{verifier.url}/api/v1/nodes/{node.id}/result") as response:
        return jws.kid_of(await response.text()) if response.status == 200 else None


async def test_a_new_key_is_listed_first_and_signs_later(verifier) -> None:
    """Whoever keeps a JWKS for a minute knows it before it is used."""
    node = await verifier.enrol()
    old = verifier.service.signing_key.kid
    new = await rotated(verifier)
    await verifier.attest(node)
    assert set(await listed(verifier)) == {old, new.kid}
    assert await signer_of(verifier, node) == old
    verifier.clock.forward(LEAD_MS / 1000)
    await verifier.attest(node)
    assert await signer_of(verifier, node) == new.kid
    assert await listed(verifier) == [new.kid, old]


async def test_an_old_key_leaves_when_nothing_that_it_signed_can_live(verifier) -> None:
    """And not before."""
    old = verifier.service.signing_key.kid
    new = await rotated(verifier)
    verifier.clock.forward((LEAD_MS + OVERLAP_MS) / 1000 - 1)
    before = await listed(verifier)
    verifier.clock.forward(1)
    assert (set(before), await listed(verifier)) == ({old, new.kid}, [new.kid])


async def test_a_withdrawn_key_revokes_what_it_signed_and_nothing_else(verifier) -> None:
    """Routers hear of it by the stream."""
    one, two = await verifier.enrol(), await verifier.enrol()
    old = verifier.service.signing_key.kid
    await verifier.attest(one)
    await verifier.attest(two)
    async with router(verifier) as decision:
        await within(5, lambda: chosen(decision()) == {one.id, two.id})
        new = await rotated(verifier, lead_ms=0)
        verifier.clock.forward(1)
        await verifier.attest(two)
        assert await withdrawn(verifier, old) == 2
        await within(5, lambda: chosen(decision()) == {two.id})
        assert await listed(verifier) == [new.kid]
        assert await signer_of(verifier, one) is None
        assert await signer_of(verifier, two) == new.kid
        verifier.clock.forward(1)
        await verifier.attest(one)
        await within(5, lambda: chosen(decision()) == {one.id, two.id})


async def test_a_key_that_is_to_come_signs_at_once_if_the_one_before_it_is_withdrawn(verifier) -> None:
    """Somebody must sign."""
    node = await verifier.enrol()
    old = verifier.service.signing_key.kid
    new = await rotated(verifier)
    await withdrawn(verifier, old)
    await verifier.attest(node)
    assert await signer_of(verifier, node) == new.kid


async def test_the_only_key_cannot_be_withdrawn(verifier) -> None:
    """The error says what to do first, and nothing has changed."""
    kid = verifier.service.signing_key.kid
    with pytest.raises(StoreError, match="rotate --at-once"):
        await withdrawn(verifier, kid)
    with pytest.raises(StoreError, match="there is no key"):
        await withdrawn(verifier, "nobody's")
    assert await listed(verifier) == [kid]


async def test_a_result_that_was_signed_while_the_key_was_withdrawn_is_revoked_too(verifier) -> None:
    """A verifier takes the change within a second, and has signed until then."""
    node = await verifier.enrol()
    old = verifier.service.signing_key.kid
    await rotated(verifier, lead_ms=0)
    async with transaction(verifier.service.db) as tx:
        await signing_keys.withdraw(tx, old, verifier.clock.ms)
    ring = verifier.service.key_ring
    signs, ring.signer = ring.signer, lambda _now: ring._private[old]
    await verifier.attest(node)
    before = await signer_of(verifier, node)
    ring.signer = signs
    await ring.look(verifier.clock.ms)
    assert (before, await signer_of(verifier, node)) == (old, None)


async def test_a_withdrawn_key_stays_so_when_the_database_has_forgotten_it(verifier) -> None:
    """As after a restore: the home remembers."""
    old = verifier.service.signing_key.kid
    new = await rotated(verifier, lead_ms=0)
    await withdrawn(verifier, old)
    verifier.home.note_withdrawn(old)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE signing_keys SET withdrawn_ms = NULL, signs_ms = signs_ms + 1")
    await verifier.service.key_ring.look(verifier.clock.ms + 10)
    assert await listed(verifier) == [new.kid]


async def test_a_replica_without_the_file_goes_on_with_the_key_before(verifier) -> None:
    """It lists the new one all the same, and signs with it as soon as the file is there."""
    old = verifier.service.signing_key.kid
    path, key = verifier.home.create_result_key()
    pem = path.read_bytes()
    path.unlink()
    now_ms = verifier.clock.ms
    async with transaction(verifier.service.db) as tx:
        await signing_keys.rotate(tx, key.verifying, now_ms, signs_ms=now_ms, leaves_ms=now_ms + OVERLAP_MS)
    ring = verifier.service.key_ring
    await ring.look(now_ms)
    assert (verifier.service.signing_key.kid, set(await listed(verifier))) == (old, {old, key.kid})
    path.write_bytes(pem)
    path.chmod(0o600)
    await ring.look(now_ms)
    assert verifier.service.signing_key.kid == key.kid


def run(home: Any, *words: str) -> Result:
    return CliRunner().invoke(commands, ["signing-key", *words, "--home", str(home.path)])


async def test_the_commands_rotate_list_and_withdraw(verifier) -> None:
    """Beside a running verifier, which takes the change without a restart."""
    old = verifier.service.signing_key.kid
    made = await asyncio.to_thread(run, verifier.home, "rotate", "--at-once")
    assert made.exit_code == 0, made.output
    await within(10, lambda: len(verifier.service.key_ring.listed(1 << 50)) >= 1)
    rows = json.loads((await asyncio.to_thread(run, verifier.home, "list", "--json")).output)
    assert [(row["state"], row["file"]) for row in rows] == [("signs", True), ("listed", True)]
    new = rows[0]["kid"]
    gone = await asyncio.to_thread(run, verifier.home, "withdraw", old)
    assert gone.exit_code == 0, gone.output
    rows = json.loads((await asyncio.to_thread(run, verifier.home, "list", "--json")).output)
    assert [(row["kid"], row["state"]) for row in rows] == [(new, "signs"), (old, "withdrawn")]
    await within(10, lambda: set(verifier.service.verifying_keys()) == {new})
    refused = await asyncio.to_thread(run, verifier.home, "withdraw", new)
    assert (refused.exit_code, "rotate --at-once" in refused.output) == (1, True)
