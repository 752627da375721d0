"""Routers as identities: who registers a certificate, who reads the list, and when an entry is gone from it."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from attester.cose import PrivateKey
from attester.proof import Request
from fixtures.credentials import bearer
from fixtures.router_identities import body, certificate, extensions_of
from router.model.clock import Clock
from router.model.outcomes import Failure
from router.state.identity import Identity
from router.state.registration import Registrar
from verifier.errors import RequestError
from verifier.roles import Role
from verifier.service import sweep
from verifier.service.app import make_app, open_service
from verifier.service.http import base64_bytes, parse_json
from verifier.service.routers import _Body
from verifier.service.serve import listening
from verifier.store import api_keys, routers
from verifier.store.api_keys import digest_of
from verifier.store.policies import ChangeAuthor
from verifier.store.routers import LIFETIME_MS, MAX_OF_NAME, MAX_ROUTERS, OVERDUE_MS, NewRegistration

STORES = ("sqlite", "postgres")
DAY_MS = 86_400_000
HOUR_S = 3600


def at(verifier: Any) -> datetime:
    return datetime.fromtimestamp(verifier.clock.seconds, UTC)


def made(verifier: Any) -> Identity:
    """An identity of the verifier's day."""
    return Identity.make(at(verifier))


async def secret(verifier: Any, name: str = "router-1", role: Role = Role.ROUTER, **more: Any) -> str:
    return (await verifier.key(name, role, **more))["Authorization"].partition(" ")[2]


async def send(verifier: Any, data: bytes, token: str, url: str | None = None) -> tuple[int, Any]:
    """The status, and the answer or the code of the refusal."""
    async with verifier.stranger.post(
        f"{url or verifier.url}/api/v1/routers", data=data, headers=bearer(token)
    ) as response:
        answer = await response.json(content_type=None)
        return response.status, answer if response.status == 200 else answer["type"].rpartition("#")[2]


async def register(verifier: Any, identity: Identity, token: str) -> tuple[int, Any]:
    return await send(verifier, identity.registration(verifier.url, token), token)


async def listed(verifier: Any, url: str | None = None) -> list[tuple[str, str]]:
    """The names and digests that an administrator sees."""
    async with verifier.http.get(f"{url or verifier.url}/api/v1/routers") as response:
        return [(each["name"], each["spki_sha256"]) for each in (await response.json())["routers"]]


def entry(name: str, identity: Identity) -> tuple[str, str]:
    return (name, identity.certificate.spki_sha256.hex())


async def test_a_router_registers_and_nodes_read_its_certificate(verifier) -> None:
    """By their own signature; another registration of the same is the same."""
    router, token = made(verifier), await secret(verifier)
    status, answer = await register(verifier, router, token)
    assert status == 200
    assert answer == {
        "name": "router-1",
        "spki_sha256": router.certificate.spki_sha256.hex(),
        "registered_for_s": 0,
        "expires_in_s": 86400,
    }
    verifier.clock.forward(HOUR_S)
    assert (await register(verifier, router, token))[1]["registered_for_s"] == HOUR_S
    node = await verifier.enrol()
    signed = Request("GET", verifier.url.partition("://")[2], "/api/v1/routers")
    headers = {"Authorization": signed.authorize(node.key, now=verifier.clock.seconds)}
    async with verifier.stranger.get(f"{verifier.url}/api/v1/routers", headers=headers) as response:
        assert await response.json() == {
            "routers": [
                {
                    "name": "router-1",
                    "certificate": base64.b64encode(router.certificate.der).decode(),
                    "spki_sha256": router.certificate.spki_sha256.hex(),
                }
            ]
        }


async def test_a_router_sees_itself_alone(verifier) -> None:
    """Who else routes is not its affair."""
    first, second = await secret(verifier, "router-1"), await secret(verifier, "router-2")
    one, two = made(verifier), made(verifier)
    await register(verifier, two, second)
    await register(verifier, one, first)
    assert await listed(verifier) == [entry("router-1", one), entry("router-2", two)]
    async with verifier.stranger.get(f"{verifier.url}/api/v1/routers", headers=bearer(second)) as response:
        assert [each["name"] for each in (await response.json())["routers"]] == ["router-2"]


async def refused(verifier: Any, data: bytes, token: str, code: str) -> None:
    """It is refused, and nothing of it is kept."""
    assert (await send(verifier, data, token))[1] == code
    assert await verifier.rows("SELECT * FROM routers") == []


async def test_the_certificate_of_another_router_is_not_registered(verifier) -> None:
    """Whoever has seen it does not have its key."""
    token, other, own = await secret(verifier), made(verifier), PrivateKey.generate()
    data = body(own, other.certificate.der, verifier.url, token)
    await refused(verifier, data, token, "registration.signature")


async def test_a_wrong_signature_registers_nothing(verifier) -> None:
    """One bit is enough."""
    token = await secret(verifier)
    sent = json.loads(made(verifier).registration(verifier.url, token))
    signature = bytearray(base64.b64decode(sent["signature"]))
    signature[40] ^= 1
    sent["signature"] = base64.b64encode(signature).decode()
    await refused(verifier, json.dumps(sent).encode(), token, "registration.signature")


async def test_a_signature_of_another_form_registers_nothing(verifier) -> None:
    """DER is longer, and nothing is shorter."""
    token = await secret(verifier)
    sent = json.loads(made(verifier).registration(verifier.url, token))
    for text in ("", base64.b64encode(bytes(72)).decode(), sent["signature"] + "\n"):
        data = json.dumps({**sent, "signature": text}).encode()
        await refused(verifier, data, token, "request.malformed")


async def test_a_registration_for_another_issuer_is_refused(verifier) -> None:
    """It names the verifier that it is for."""
    token = await secret(verifier)
    data = made(verifier).registration("https://other.example", token)
    await refused(verifier, data, token, "registration.signature")


async def test_a_registration_is_not_replayed_from_another_verifier(verifier) -> None:
    """What a router has sent to one verifier, its operator cannot use at another one, whose key it also has."""
    elsewhere, here = "touchstone_" + "A" * 43, await secret(verifier)
    captured = made(verifier).registration("https://evil.example", elsewhere)
    await refused(verifier, captured, here, "registration.signature")


async def test_a_registration_is_not_replayed_with_another_credential(verifier) -> None:
    """Somebody else with a key of the role router cannot keep a router listed whose key was revoked."""
    victim, thief = await secret(verifier, "victim"), await secret(verifier, "thief")
    captured = made(verifier).registration(verifier.url, victim)
    await refused(verifier, captured, thief, "registration.signature")


def any_signature(der: bytes) -> bytes:
    return msgspec.json.encode(
        {
            "certificate": base64.b64encode(der).decode(),
            "signature": base64.b64encode(bytes(64)).decode(),
        }
    )


async def test_an_rsa_key_is_not_registered(verifier) -> None:
    """P-256 alone."""
    data = any_signature(certificate(rsa.generate_private_key(65537, 2048)))
    await refused(verifier, data, await secret(verifier), "registration.certificate")


async def test_a_p384_key_is_not_registered(verifier) -> None:
    """P-256 alone."""
    data = any_signature(certificate(ec.generate_private_key(ec.SECP384R1())))
    await refused(verifier, data, await secret(verifier), "registration.certificate")


async def test_an_authority_is_not_registered(verifier) -> None:
    """Not even by its own key and with a right signature: every node would believe whom it signs."""
    native, token = ec.generate_private_key(ec.SECP256R1()), await secret(verifier)
    constraints = type(extensions_of(native)["constraints"])(ca=True, path_length=None)
    der = certificate(
        native, extensions={"constraints": constraints}, begins=at(verifier) - timedelta(days=1)
    )
    data = body(PrivateKey(native), der, verifier.url, token)
    await refused(verifier, data, token, "registration.certificate")


async def test_a_body_that_is_too_large_is_refused_unread(verifier) -> None:
    """Eight KiB hold any registration."""
    token = await secret(verifier)
    await refused(verifier, b" " * 9000, token, "request.too-large")


@pytest.mark.parametrize("role", [each for each in Role if each not in (Role.NODE, Role.ROUTER)])
async def test_who_may_read_the_list(verifier, role: Role) -> None:
    """Nodes, auditors and administrators; names of routers and their number are nobody else's affair."""
    more = {"operator": "acme"} if role is Role.OPERATOR else {}
    token = await secret(verifier, "somebody", role, **more)
    async with verifier.stranger.get(f"{verifier.url}/api/v1/routers", headers=bearer(token)) as response:
        assert (response.status == 200) is (role in (Role.AUDITOR, Role.ADMINISTRATOR))


async def test_a_revoked_key_is_gone_from_the_list_at_once(verifier) -> None:
    """With the next look at it."""
    router, token = made(verifier), await secret(verifier)
    await register(verifier, router, token)
    await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "router-1", verifier.clock.ms))
    assert await listed(verifier) == []
    assert (await register(verifier, router, token))[0] == 401


async def test_an_expired_key_is_gone_from_the_list_at_once(verifier) -> None:
    """Its registration ends with it, and says so."""
    router = made(verifier)
    token = await secret(verifier, expires_ms=verifier.clock.ms + 600_000)
    assert (await register(verifier, router, token))[1]["expires_in_s"] == 600
    verifier.clock.forward(599)
    assert await listed(verifier) == [entry("router-1", router)]
    verifier.clock.forward(1)
    assert await listed(verifier) == []


async def test_the_token_of_the_home_registers_a_router(verifier) -> None:
    """Under its name, and as long as the home has that token."""
    router, token = made(verifier), verifier.service.router_token
    assert (await register(verifier, router, token))[1]["name"] == "home-router"
    assert await listed(verifier) == [entry("home-router", router)]
    async with AsyncExitStack() as stack:
        without = replace(verifier.service, router_token="")
        app = make_app(without)
        listener = await stack.enter_async_context(listening(app, "127.0.0.1:0", shutdown_timeout=0.1))
        assert await listed(verifier, f"http://127.0.0.1:{listener.port}") == []


async def test_a_registration_that_is_not_renewed_ends(verifier) -> None:
    """After a day, and some time later nothing is left of it."""
    await register(verifier, made(verifier), await secret(verifier))
    verifier.clock.forward(LIFETIME_MS / 1000 - 1)
    assert len(await listed(verifier)) == 1
    verifier.clock.forward(1)
    assert await listed(verifier) == []
    verifier.clock.forward(2 * 86_400)
    await sweep.sweep(verifier.service)
    assert await verifier.rows("SELECT * FROM routers") == []


async def test_who_comes_back_is_new(verifier) -> None:
    """Nodes did not know it meanwhile: they have to learn of it again."""
    router, token = made(verifier), await secret(verifier)
    await register(verifier, router, token)
    verifier.clock.forward(2 * 86_400)
    assert (await register(verifier, router, token))[1]["registered_for_s"] == 0


async def test_a_new_key_in_place_of_a_revoked_one_registers_the_same_router(verifier) -> None:
    """A router's credential can be changed, and the router stays."""
    router, old = made(verifier), await secret(verifier, "old")
    await register(verifier, router, old)
    new = await secret(verifier, "new")
    await register(verifier, router, new)
    assert await listed(verifier) == [entry("new", router)]
    await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "old", verifier.clock.ms))
    assert await listed(verifier) == [entry("new", router)]


async def test_of_one_name_the_key_that_was_renewed_longest_ago_makes_room(verifier) -> None:
    """A router that loses its key at each start does not lock itself out."""
    token, known = await secret(verifier), [made(verifier) for _ in range(MAX_OF_NAME + 1)]
    for router in known:
        assert (await register(verifier, router, token))[0] == 200
        verifier.clock.forward(1)
    found = await listed(verifier)
    assert len(found) == MAX_OF_NAME
    assert entry("router-1", known[0]) not in found


async def test_a_long_name_is_cut_in_the_list(verifier) -> None:
    """One of an issuer's tokens has its URL in it, and nodes refuse a list with a name that is too long."""
    new = NewRegistration(
        spki=bytes(32), certificate=b"x", name="x" * 500, credential=None, until_ms=verifier.clock.ms + DAY_MS
    )
    await verifier.service.db.write(lambda tx: routers.register(tx, new, verifier.clock.ms, ()))
    assert await listed(verifier) == [("x" * 128, "00" * 32)]


async def fill(verifier: Any, count: int) -> None:
    """So many routers, each with a credential of its own."""

    async def work(tx: Any) -> None:
        for number in range(count):
            new = NewRegistration(
                spki=number.to_bytes(32, "big"),
                certificate=b"x",
                name=f"r-{number:03d}",
                credential=None,
                until_ms=verifier.clock.ms + DAY_MS,
            )
            await routers.register(tx, new, verifier.clock.ms, ())

    await verifier.service.db.write(work)


async def test_the_257th_router_is_refused_and_takes_nobodys_place(verifier) -> None:
    """As long as all of them are there; one that renews is none more."""
    await fill(verifier, MAX_ROUTERS - 1)
    router, token = made(verifier), await secret(verifier)
    assert (await register(verifier, router, token))[0] == 200
    assert (await register(verifier, router, token))[0] == 200
    before = await listed(verifier)
    assert len(before) == MAX_ROUTERS
    late = await secret(verifier, "late")
    assert await register(verifier, made(verifier), late) == (503, "registration.full")
    assert await listed(verifier) == before


async def test_the_257th_router_takes_the_place_of_one_that_is_overdue(verifier) -> None:
    """The one that did not renew for longest."""
    await fill(verifier, MAX_ROUTERS)
    verifier.clock.forward(OVERDUE_MS / 1000)
    router, token = made(verifier), await secret(verifier)
    assert (await register(verifier, router, token))[0] == 200
    found = await listed(verifier)
    assert len(found) == MAX_ROUTERS
    assert entry("router-1", router) in found
    assert "r-000" not in dict(found)


async def test_two_replicas_have_one_list(verifier, store_url: str) -> None:
    """What one registers, the other lists; and a key that is revoked is gone from both."""
    if not store_url:
        pytest.skip("replicas share a PostgreSQL")
    router, token = made(verifier), await secret(verifier)
    async with (
        open_service(verifier.home, verifier.home.config(), verifier.clock.clock()) as service,
        listening(make_app(service), "127.0.0.1:0", shutdown_timeout=0.1) as listener,
    ):
        other = f"http://127.0.0.1:{listener.port}"
        data = router.registration(verifier.url, token)
        assert (await send(verifier, data, token, other))[0] == 200
        assert await listed(verifier) == await listed(verifier, other) == [entry("router-1", router)]
        # Both at once: it is one row.
        answers = await asyncio.gather(*(send(verifier, data, token, url) for url in (None, other) * 4))
        assert {status for status, _ in answers} == {200}
        assert len(await listed(verifier)) == 1
        await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "router-1", verifier.clock.ms))
        assert await listed(verifier) == await listed(verifier, other) == []


@given(st.dictionaries(st.sampled_from(["certificate", "signature", "more"]), st.text(max_size=100)))
def test_any_body_is_read_or_refused(data: dict[str, str]) -> None:
    """With the two members as strict base64, and no other."""
    codes = set()
    try:
        read = parse_json(msgspec.json.encode(data), _Body)
        assert data.keys() == {"certificate", "signature"}
        assert base64.b64encode(base64_bytes(read.signature, "signature")).decode() == data["signature"]
    except RequestError as error:
        codes.add(error.code)
    assert codes <= {"request.malformed"}


@given(st.binary(max_size=70))
def test_base64_has_one_spelling(data: bytes) -> None:
    """What is read is what was written, and a bit that is not used is not free."""
    text = base64.b64encode(data).decode()
    assert base64_bytes(text, "x") == data
    if len(data) % 3:
        place = len(text.rstrip("=")) - 1
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        other = alphabet[alphabet.index(text[place]) ^ 1]
        with pytest.raises(RequestError):
            base64_bytes(text[:place] + other + text[place + 1 :], "x")


def test_the_credential_of_the_statement_is_what_keys_are_looked_up_by() -> None:
    """One digest for both."""
    assert len(digest_of("x")) == 32


async def test_a_routers_own_registrar_registers_it_and_hears_of_its_removal(verifier) -> None:
    """The two ends, as they are."""
    router, token = made(verifier), await secret(verifier)
    clock = Clock(lambda: verifier.clock.ms, lambda: verifier.clock.ticks)
    registrar = Registrar(verifier.stranger, verifier.url, router, clock, lambda: token)
    await registrar.register()
    assert registrar.to_wire()["registered_as"] == "router-1"
    assert await listed(verifier) == [entry("router-1", router)]
    verifier.clock.forward(200)
    assert await registrar.judge_refusal() is Failure.CERTIFICATE_REFUSED
    who = ChangeAuthor("kim", "a test")
    spki = router.certificate.spki_sha256.hex()
    await verifier.service.db.write(lambda tx: routers.remove(tx, spki, who, verifier.clock.ms))
    verifier.clock.forward(10)
    assert await registrar.judge_refusal() is Failure.NOT_REGISTERED
    assert "a person has removed this key" in registrar.to_wire()["problem"]


async def test_strangers_learn_nothing(verifier) -> None:
    """Neither the list nor a registration without a credential."""
    async with aiohttp.ClientSession() as http:
        for method in ("GET", "POST"):
            async with http.request(method, f"{verifier.url}/api/v1/routers") as response:
                assert response.status == 401
