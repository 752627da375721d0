"""Routers register the keys of their receipts, and send the roots of batches that the log commits to."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from attester.cose import PrivateKey
from fixtures.credentials import bearer
from router.state.identity import Identity
from tests.integration.test_log import entries
from tests.integration.test_routers import made, register, secret
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.proofs import LogProof
from verifier.roles import Role
from verifier.router_receipts import NO_ROOT, Batch, ReceiptKey, generate_key, key_statement, sign_batch
from verifier.store import log_tree, routers
from verifier.store.policies import ChangeAuthor
from verifier.store.receipt_batches import MAX_KEYS_A_DAY

STORES = ("sqlite", "postgres")
NAME = "gpu-1/0.0.0.0:8450"


def key_body(verifier: Any, identity: Identity, token: str, key: PrivateKey, name: str = NAME) -> bytes:
    """The registration of a receipt key."""
    credential = hashlib.sha256(token.encode()).digest()
    statement = key_statement(verifier.url, credential, name, key.public.point)
    return msgspec.json.encode(
        {
            "x": ReceiptKey(key.public).x,
            "signature": base64.b64encode(identity.key.sign(statement)).decode(),
            "possession": base64.b64encode(key.sign(statement)).decode(),
        }
    )


async def put_key(verifier: Any, token: str, data: bytes, name: str = NAME) -> tuple[int, str | None]:
    from yarl import URL

    url = URL(f"{verifier.url}/api/v1/routers/{quote(name, safe='')}/receipt-key", encoded=True)
    async with verifier.stranger.put(url, data=data, headers=bearer(token)) as response:
        return response.status, code_of(await response.json(content_type=None))


async def send(verifier: Any, token: str, batch: Batch) -> tuple[int, Any]:
    async with verifier.stranger.post(
        f"{verifier.url}/api/v1/log/receipts", data=batch.encode(), headers=bearer(token)
    ) as response:
        answer = await response.json(content_type=None)
        return response.status, code_of(answer) or answer["entry"]


def code_of(answer: Any) -> str | None:
    return answer["type"].rpartition("#")[2] if "type" in answer else None


async def a_router(verifier: Any, name: str = "router-1") -> tuple[Identity, str]:
    """A registered router: its identity and its credential."""
    identity, token = made(verifier), await secret(verifier, name)
    status, _ = await register(verifier, identity, token)
    assert status == 200
    return identity, token


async def a_key(verifier: Any, identity: Identity, token: str) -> PrivateKey:
    key = generate_key()
    assert await put_key(verifier, token, key_body(verifier, identity, token, key)) == (201, None)
    return key


def batch(key: PrivateKey, number: int = 1, root: str = "a1" * 32, prev: str = NO_ROOT, **more: Any) -> Batch:
    plain = Batch(
        router=NAME, number=number, size=3, root=root, prev=prev, from_ms=5, to_ms=9, kid=ReceiptKey(key.public).kid
    )  # fmt: skip
    return sign_batch(replace(plain, **more), key)


async def test_a_batch_is_logged_with_its_signature(verifier) -> None:
    """Its entry has exactly what the router signed, and its proof verifies with the log's key."""
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    sent = batch(key)
    assert await send(verifier, token, sent) == (201, f"{sent.kid}/1")
    (entry,) = await entries(verifier, "receipts")
    assert {name: entry[name] for name in json.loads(sent.encode())} == json.loads(sent.encode())
    async with verifier.stranger.get(
        f"{verifier.url}/api/v1/log/proof", params={"kind": "receipts", "id": f"{sent.kid}/1"}
    ) as response:
        proof = LogProof.parse(await response.read())
    async with verifier.service.db.read() as tx:
        log_key = VerifierKey.parse((await log_tree.newest(tx)).vkey)
    proof.verify(proof.extra or b"", lambda note: open_checkpoint(note, [log_key]))


async def test_a_receipt_key_is_logged_with_the_identity_that_vouched(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    (entry,) = await entries(verifier, "router-key")
    assert entry["kid"] == ReceiptKey(key.public).kid
    assert entry["spki_sha256"] == identity.certificate.spki_sha256.hex()
    assert entry["router"] == NAME


async def test_the_same_key_again_is_the_same(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    assert await put_key(verifier, token, key_body(verifier, identity, token, key)) == (200, None)
    assert len(await entries(verifier, "router-key")) == 1


async def test_the_same_batch_again_is_the_same(verifier) -> None:
    identity, token = await a_router(verifier)
    sent = batch(await a_key(verifier, identity, token))
    await send(verifier, token, sent)
    assert await send(verifier, token, sent) == (200, f"{sent.kid}/1")
    assert len(await entries(verifier, "receipts")) == 1


async def test_a_second_root_for_a_number_is_refused_and_reviewed(verifier) -> None:
    """The router has two histories of its receipts; the first one stays in the log, and a person looks at it once."""
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    await send(verifier, token, batch(key))
    for _ in range(2):
        assert await send(verifier, token, batch(key, root="b2" * 32)) == (409, "receipts.forked")
    (review,) = await verifier.rows("SELECT kind, code, node_id, state FROM incidents")
    assert review == {"kind": "reporter-suspect", "code": "receipts.forked", "node_id": None, "state": "open"}
    (entry,) = await entries(verifier, "receipts")
    assert entry["root"] == "a1" * 32


async def test_a_batch_on_another_root_than_the_one_before_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    await send(verifier, token, batch(key))
    assert await send(verifier, token, batch(key, 2, "c3" * 32, prev="d4" * 32)) == (409, "receipts.forked")
    assert (await send(verifier, token, batch(key, 2, "c3" * 32, prev="a1" * 32)))[0] == 201


async def test_a_first_batch_that_names_one_before_it_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    assert await send(verifier, token, batch(key, prev="d4" * 32)) == (409, "receipts.forked")


async def test_a_batch_after_a_gap_is_taken(verifier) -> None:
    """The verifier may have been restored, and have forgotten some: the gap can be seen in the log."""
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    assert (await send(verifier, token, batch(key, 7, prev="d4" * 32)))[0] == 201


async def test_a_key_that_is_not_registered_signs_nothing(verifier) -> None:
    _, token = await a_router(verifier)
    assert await send(verifier, token, batch(generate_key())) == (403, "receipts.key")


async def test_another_routers_key_is_of_no_use(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    _, other = await a_router(verifier, "router-2")
    assert await send(verifier, other, batch(key)) == (403, "receipts.key")


async def test_a_batch_for_another_router_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    assert await send(verifier, token, batch(key, router="gpu-2")) == (403, "receipts.key")


async def test_a_batch_that_was_altered_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    assert await send(verifier, token, replace(batch(key), size=4)) == (403, "registration.signature")
    assert not await verifier.rows("SELECT * FROM receipt_batches")


async def test_a_batch_in_another_spelling_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    data = batch(await a_key(verifier, identity, token)).encode().replace(b',"', b', "')
    async with verifier.stranger.post(
        f"{verifier.url}/api/v1/log/receipts", data=data, headers=bearer(token)
    ) as response:
        assert response.status == 400


async def test_a_removed_router_logs_no_receipts(verifier) -> None:
    """A person has removed the identity that vouched for its key."""
    identity, token = await a_router(verifier)
    key = await a_key(verifier, identity, token)
    author, spki = ChangeAuthor("kim", "stolen"), identity.certificate.spki_sha256.hex()
    await verifier.service.db.write(lambda tx: routers.remove(tx, spki, author, verifier.clock.ms))
    assert await send(verifier, token, batch(key)) == (403, "receipts.key")


async def test_who_has_registered_no_router_registers_no_receipt_key(verifier) -> None:
    identity, token = made(verifier), await secret(verifier)
    data = key_body(verifier, identity, token, generate_key())
    assert await put_key(verifier, token, data) == (403, "registration.signature")


async def test_an_identity_that_is_not_registered_vouches_for_nothing(verifier) -> None:
    _, token = await a_router(verifier)
    data = key_body(verifier, made(verifier), token, generate_key())
    assert await put_key(verifier, token, data) == (403, "registration.signature")


async def test_a_receipt_key_that_the_router_does_not_have_is_refused(verifier) -> None:
    """Its possession is proven by another key."""
    identity, token = await a_router(verifier)
    key, other = generate_key(), generate_key()
    data = json.loads(key_body(verifier, identity, token, key))
    data["possession"] = json.loads(key_body(verifier, identity, token, other))["possession"]
    assert await put_key(verifier, token, msgspec.json.encode(data)) == (403, "registration.signature")


async def test_a_registration_for_another_name_is_refused(verifier) -> None:
    identity, token = await a_router(verifier)
    data = key_body(verifier, identity, token, generate_key())
    assert await put_key(verifier, token, data, "gpu-2") == (403, "registration.signature")


async def test_the_name_of_another_credential_is_taken(verifier) -> None:
    """Otherwise its receipts could be in another router's name."""
    identity, token = await a_router(verifier)
    await a_key(verifier, identity, token)
    other, theirs = await a_router(verifier, "router-2")
    data = key_body(verifier, other, theirs, generate_key())
    assert await put_key(verifier, theirs, data) == (403, "request.forbidden")


async def test_only_so_many_keys_a_day(verifier) -> None:
    """Each is an entry of the log for ever."""
    identity, token = await a_router(verifier)
    rows = [
        (f"kid-{number}", NAME, "router-1", "x", b"s", verifier.clock.ms) for number in range(MAX_KEYS_A_DAY)
    ]

    async def add(tx: Any) -> None:
        for row in rows:
            await tx.execute(
                "INSERT INTO receipt_keys (kid, router, caller, x, spki, since_ms) VALUES (?, ?, ?, ?, ?, ?)",
                *row,
            )

    await verifier.service.db.write(add)
    data = key_body(verifier, identity, token, generate_key())
    assert await put_key(verifier, token, data) == (429, "request.too-often")


async def test_a_relying_party_logs_no_receipts(verifier) -> None:
    token = await secret(verifier, "reader", Role.RELYING_PARTY)
    assert (await send(verifier, token, batch(generate_key())))[0] == 403
