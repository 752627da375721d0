"""What the front of a node has served, in its own word: digests, signed with the endpoint's key when a router asks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cose, identity
from attester.config import create_certificate
from attester.errors import FrontReceiptError
from attester.front.clients import replace_file
from attester.front.receipts import FrontReceipt, Ring, Served, open_receipt, read_id, sign
from fixtures.fronted import Fronted, fronted, own_identity
from tests.conftest import FakeClock

ID = "0123456789abcdef0123456789abcdef"
CHATS = "/v1/chat/completions"
ASK = b'{"model":"org/model","messages":[]}'
STREAM = b'{"model":"org/model","stream":true,"tokens":5}'
PATH = "/touchstone/receipts/"


@pytest.fixture
async def node(tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest) -> AsyncIterator[Fronted]:
    """A front with the settings that the test asks for."""
    front: dict[str, Any] = getattr(request, "param", {})
    async with fronted(tmp_path, lambda: float(clock.seconds), front=front) as found:
        yield found


def front_with(**options: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [options], indirect=True, ids=["limited"])


def pin_of(node: Fronted) -> str:
    return hashlib.sha256(identity.spki(node.home.tls_key())).hexdigest()


async def send(
    http: aiohttp.ClientSession, node: Fronted, data: Any = ASK, path: str = CHATS, request_id: str = ID
) -> bytes:
    """The body of the answer, as it came; what came until it broke off, if it did."""
    came = b""
    headers = {"X-Touchstone-Request": request_id}
    async with http.post(node.url + path, data=data, headers=headers) as answer:
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async for part in answer.content.iter_any():
                came += part
    return came


async def receipt(http: aiohttp.ClientSession, node: Fronted, request_id: str = ID) -> tuple[int, str]:
    async with http.get(node.url + PATH + request_id) as answer:
        return answer.status, await answer.text()


async def opened(http: aiohttp.ClientSession, node: Fronted, request_id: str = ID) -> FrontReceipt:
    status, text = await receipt(http, node, request_id)
    assert status == 200, text
    return open_receipt(text, pin_of(node))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# What it says.


async def test_a_whole_answer_has_a_receipt(node: Fronted, clock: FakeClock) -> None:
    """Of the body that the front was sent, and of the one that it sent."""
    async with node.session() as http:
        body = await send(http, node)
        found = await opened(http, node)
    assert found.jti == ID
    assert (found.request.sha256, found.request.bytes) == (sha256(ASK), len(ASK))
    assert (found.response.sha256, found.response.bytes) == (sha256(body), len(body))
    assert (found.response.status, found.response.complete) == (200, True)
    assert (found.model, found.at) == ("org/model", clock.seconds * 1000)


async def test_a_stream_has_a_receipt_of_every_byte_of_it(node: Fronted) -> None:
    """Of its bytes, and not of the chunks that they come in."""
    async with node.session() as http:
        body = await send(http, node, STREAM)
        found = await opened(http, node)
    assert body.count(b"data: ") == 5
    assert (found.response.sha256, found.response.bytes) == (sha256(body), len(body))


async def test_a_request_in_chunks_is_digested_as_its_bytes(node: Fronted) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(ASK), 7):
            yield ASK[at : at + 7]
            await asyncio.sleep(0.01)

    async with node.session() as http:
        await send(http, node, parts())
        found = await opened(http, node)
    assert (found.request.sha256, found.request.bytes) == (sha256(ASK), len(ASK))
    assert node.engine.requests[-1][3] == ASK


async def test_an_answer_that_broke_off_is_not_complete(node: Fronted) -> None:
    """The receipt is of what was sent."""
    async with node.session() as http:
        body = await send(http, node, STREAM.replace(b"}", b',"break":true}'))
        found = await opened(http, node)
    assert (found.response.complete, found.response.sha256) == (False, sha256(body))


async def test_an_error_of_the_engine_has_a_receipt(node: Fronted) -> None:
    async with node.session() as http:
        body = await send(http, node, b"no JSON")
        found = await opened(http, node)
    assert (found.response.status, found.response.sha256) == (400, sha256(body))


async def test_a_refusal_of_the_front_has_a_receipt(node: Fronted) -> None:
    async with node.session() as http:
        body = await send(http, node, path="/v1/nothing")
        found = await opened(http, node)
    assert (found.response.status, found.response.sha256) == (404, sha256(body))


@front_with(max_body=1024)
async def test_a_body_that_was_not_read_whole_has_a_receipt_of_what_was_read(node: Fronted) -> None:
    async with node.session() as http:
        await send(http, node, b"x" * 4000)
        found = await opened(http, node)
    assert (found.response.status, found.request.bytes) == (413, 0)


async def test_each_request_of_a_connection_has_its_own(node: Fronted) -> None:
    async with node.session() as http:
        bodies = [await send(http, node, b'{"n":%d}' % n, request_id=f"{n:032x}") for n in range(5)]
        for number, body in enumerate(bodies):
            found = await opened(http, node, f"{number:032x}")
            assert found.request.sha256 == sha256(b'{"n":%d}' % number)
            assert found.response.sha256 == sha256(body)


async def test_it_is_signed_once(node: Fronted) -> None:
    """To ask for it again costs the node nothing."""
    async with node.session() as http:
        await send(http, node)
        assert await receipt(http, node) == await receipt(http, node)


async def test_the_engine_does_not_hear_the_id(node: Fronted) -> None:
    """It is the router's and the front's."""
    async with node.session() as http:
        await send(http, node)
    assert "X-Touchstone-Request" not in node.engine.requests[-1][2]


async def test_a_new_key_signs_what_is_served_from_then_on(node: Fronted) -> None:
    """What was served under the old one, the old one signs: the result of that time pins it."""
    async with node.session() as http:
        await send(http, node, request_id="00" * 16)
        old = pin_of(node)
        key = cose.PrivateKey.generate()
        replace_file(node.home.path / "tls.key", identity.key_to_pem(key))
        (node.home.path / "tls.key").chmod(0o600)
        replace_file(node.home.path / "tls.crt", create_certificate(key, "127.0.0.1"))
        node.front.look()
        await send(http, node, request_id="11" * 16)
        _, before = await receipt(http, node, "00" * 16)
        _, after = await receipt(http, node, "11" * 16)
    assert open_receipt(before, old).jti == "00" * 16
    assert open_receipt(after, pin_of(node)).jti == "11" * 16
    with pytest.raises(FrontReceiptError):
        open_receipt(after, old)


# Who gets it.


async def test_another_router_does_not_get_it(node: Fronted, clock: FakeClock) -> None:
    """It hears what it would hear if there were none."""
    node.list_routers([node.router, node.stranger], clock.seconds)
    async with node.session() as http, node.session(node.stranger) as others:
        await send(http, node)
        assert await receipt(others, node) == await receipt(others, node, "f" * 32)
        assert (await receipt(others, node))[0] == 404
        await send(others, node, b"{}")
        assert (await opened(others, node)).request.sha256 == sha256(b"{}")
        assert (await opened(http, node)).request.sha256 == sha256(ASK)


async def test_who_is_not_let_in_gets_none(node: Fronted) -> None:
    async with node.session() as http:
        await send(http, node)
    async with node.session(node.stranger) as http:
        with pytest.raises(aiohttp.ClientError):
            await receipt(http, node)


async def test_the_nodes_own_client_gets_none_of_a_routers(node: Fronted) -> None:
    async with node.session() as http:
        await send(http, node)
    async with node.session(own_identity(node.home)) as http:
        assert (await receipt(http, node))[0] == 404


@pytest.mark.parametrize(
    "request_id", ["", "x", "F" * 32, "0" * 31, "0" * 33, "../v1/models", "0" * 32 + "?a=1"]
)
async def test_a_path_of_another_form_is_404(node: Fronted, request_id: str) -> None:
    """And the engine hears nothing."""
    answer = await node.raw(f"GET {PATH}{request_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert node.engine.paths == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
async def test_another_method_is_404(node: Fronted, method: str) -> None:
    async with node.session() as http:
        await send(http, node)
    data = f"{method} {PATH}{ID} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    assert (await node.raw(data)).startswith(b"HTTP/1.1 404 ")
    assert len(node.engine.paths) == 1


async def test_a_body_of_a_request_for_a_receipt_is_no_second_request(node: Fronted) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"GET {PATH}{ID} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled) + 5}\r\n\r\n".encode()
    await node.raw(head + smuggled)
    assert node.engine.paths == []


# What is kept.


@pytest.mark.parametrize("request_id", ["", "x", "0" * 31, "G" * 32, "A" * 32])
async def test_a_request_without_a_proper_id_is_served_and_not_kept(node: Fronted, request_id: str) -> None:
    async with node.session() as http:
        assert b"chat.completion" in await send(http, node, request_id=request_id)
        async with http.post(node.url + CHATS, data=ASK) as answer:
            assert answer.status == 200
        assert (await receipt(http, node, request_id or "0" * 32))[0] == 404


@front_with(receipts=3)
async def test_the_oldest_give_way(node: Fronted) -> None:
    async with node.session() as http:
        for number in range(5):
            await send(http, node, request_id=f"{number:032x}")
        statuses = [(await receipt(http, node, f"{number:032x}"))[0] for number in range(5)]
    assert statuses == [404, 404, 200, 200, 200]


@front_with(receipts=0)
async def test_an_operator_may_want_none(node: Fronted) -> None:
    async with node.session() as http:
        await send(http, node)
        assert (await receipt(http, node))[0] == 404


def served(request_id: str = ID, key: cose.PrivateKey | None = None) -> Served:
    found = Served(request_id)
    found.take_request(b"request", is_whole=True)
    found.take_answer(b"answer")
    found.end(key or cose.PrivateKey.generate(), 200, 1, is_complete=True)
    return found


def test_what_is_old_is_forgotten() -> None:
    ring = Ring(10, 60.0)
    ring.add("r", served(), 0.0)
    assert ring.find("r", ID, 60.0) is not None
    assert ring.find("r", ID, 60.1) is None
    assert len(ring) == 0


def test_an_id_that_is_used_twice_is_of_the_second_use() -> None:
    ring = Ring(10, 60.0)
    first, second = served(), served()
    ring.add("r", first, 0.0)
    ring.add("r", second, 1.0)
    assert (ring.find("r", ID, 1.0), len(ring)) == (second, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.floats(0, 30)), max_size=40))
def test_a_ring_is_bounded_and_keeps_the_newest(steps: list[tuple[str, int, float]]) -> None:
    ring, now = Ring(4, 60.0), 0.0
    newest: dict[tuple[str, str], float] = {}
    for client, number, seconds in steps:
        now += seconds
        newest.pop((client, f"{number:032x}"), None)
        newest[client, f"{number:032x}"] = now
        ring.add(client, served(f"{number:032x}", KEY), now)
        kept = [place for place, at in newest.items() if now - at <= 60.0][-4:]
        assert len(ring) == len(kept)
        assert all(ring.find(*place, now) is not None for place in kept)


# What a reader refuses.

KEY = cose.PrivateKey.generate()
PIN = sha256(identity.spki(KEY))
SIGNED = sign(served(key=KEY), 2)


@pytest.mark.parametrize("alg", [cose.ES256, cose.ED25519])
def test_keys_of_both_kinds_sign(alg: int) -> None:
    """As they do for endpoints."""
    key = cose.PrivateKey.generate(alg)
    found = open_receipt(sign(served(key=key), 2), sha256(identity.spki(key)))
    assert (found.iat, found.request.sha256) == (2, sha256(b"request"))


def test_it_is_a_jws_that_others_read() -> None:
    """Canonical JSON, and a kid that is the pin."""
    import jwt

    assert msgspec.json.decode(jwt.utils.base64url_decode(SIGNED.split(".")[0])) == {
        "alg": "ES256",
        "kid": PIN,
        "typ": "touchstone-front-receipt+jwt",
    }
    payload = jwt.decode(SIGNED, KEY.native.public_key(), algorithms=["ES256"], options={"verify_iat": False})  # type: ignore[arg-type]  # P-256
    assert payload["response"] == {
        "bytes": 6,
        "complete": True,
        "sha256": sha256(b"answer"),
        "status": 200,
    }


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SIGNED) - 1), st.sampled_from("AZaz09-_."))
def test_one_changed_character_is_refused(at: int, by: str) -> None:
    """Anywhere."""
    changed = SIGNED[:at] + by + SIGNED[at + 1 :]
    if changed == SIGNED:
        return
    with pytest.raises(FrontReceiptError):
        open_receipt(changed, PIN)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_whatever_a_node_sends_is_read_or_refused(text: str) -> None:
    with pytest.raises(FrontReceiptError):
        open_receipt(text, PIN)


def forged(header: dict[str, Any], payload: Any, key: cose.PrivateKey = KEY) -> str:
    import jwt

    def part(value: Any) -> str:
        data = msgspec.json.encode(value, order="sorted")
        return str(jwt.utils.base64url_encode(data).decode())

    signed = f"{part(header)}.{part(payload)}"
    return f"{signed}.{jwt.utils.base64url_encode(key.sign(signed.encode())).decode()}"


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    import jwt

    head, body, _ = SIGNED.split(".")
    return (
        msgspec.json.decode(jwt.utils.base64url_decode(head)),
        msgspec.json.decode(jwt.utils.base64url_decode(body)),
    )


def test_another_key_is_refused_whatever_it_calls_itself() -> None:
    """The pin decides, not the kid."""
    header, payload = parts()
    other = cose.PrivateKey.generate()
    with pytest.raises(FrontReceiptError, match="another key"):
        open_receipt(sign(served(key=other), 2), PIN)
    with pytest.raises(FrontReceiptError):
        open_receipt(forged(header, payload, other), PIN)


@pytest.mark.parametrize(
    "changes",
    [{"alg": "none"}, {"alg": "EdDSA"}, {"alg": "HS256"}, {"typ": "JWT"}, {"crit": "b64"}, {"kid": "0" * 64}],
    ids=str,
)
def test_another_header_is_refused(changes: dict[str, Any]) -> None:
    header, payload = parts()
    with pytest.raises(FrontReceiptError):
        open_receipt(forged({**header, **changes}, payload), PIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"jti": "x"},
        {"at": -1},
        {"at": 1.5},
        {"more": 1},
        {"request": {}},
        {"request": {"sha256": "0", "bytes": 1}},
        {"response": None},
        {"jwk": {}},
        {"jwk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"model": 7},
    ],
    ids=str,
)
def test_another_payload_is_refused(changes: dict[str, Any]) -> None:
    header, payload = parts()
    with pytest.raises(FrontReceiptError):
        open_receipt(forged(header, {**payload, **changes}), PIN)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"\A[0-9a-f]{32}\Z"))
def test_an_id_is_of_one_form(text: str) -> None:
    assert read_id(text) in (None, text)
    assert (read_id(text) is not None) == (len(text) == 32 and set(text) <= set("0123456789abcdef"))


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (ASK, "org/model"),
        (b"", None),
        (b"no JSON", None),
        (b'{"model":7}', None),
        (b'{"model":"' + "é".encode() + b'"}', None),
        (b'{"model":"' + b"x" * 129 + b'"}', None),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_model_is_named_if_it_can_be_told_at_once(body: bytes, model: str | None) -> None:
    """Nothing that a client sends can end in the receipt but a plain name."""
    found = Served(ID)
    found.take_request(body, is_whole=True)
    assert found.model == model
