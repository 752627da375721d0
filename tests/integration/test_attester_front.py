"""The front of a node, over real sockets: whom it lets in, what it passes on, and what hostile clients get."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from attester import cose, identity
from attester.config import create_certificate
from attester.front.clients import ASKED, replace_file
from attester.front.tls import client_context
from fixtures.fronted import (
    Fronted,
    Identity,
    RecordingEngine,
    engine_server,
    fronted,
    keep_list,
    make_home,
    own_identity,
)
from tests.conftest import FakeClock

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
ASK = {"model": "org/model", "messages": []}
DAY_S = 86_400


@pytest.fixture
async def node(tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest) -> AsyncIterator[Fronted]:
    """A front with the sections that the test asks for."""
    sections: dict[str, Any] = getattr(request, "param", {})
    async with fronted(tmp_path, lambda: float(clock.seconds), **sections) as found:
        yield found


def front_with(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [{"front": settings}], indirect=True, ids=["limited"])


async def is_served(node: Fronted, who: Any = None) -> bool:
    """Whether a new connection is served; a refusal at TLS is none."""
    async with node.session(who) as http:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(node.url + "/v1/models") as response:
                return response.status == 200
    return False


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)


# Who is let in.


async def test_a_router_of_the_list_is_served(node: Fronted) -> None:
    """Over TLS 1.3, with the attested key, and by HTTP/1.1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)
    tls = writer.get_extra_info("ssl_object")
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    assert tls.version() == "TLSv1.3"
    assert certificate.public_key() == node.home.tls_key().native.public_key()
    writer.write(MODELS)
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    writer.close()


async def test_the_node_itself_is_served(node: Fronted) -> None:
    """So that `check` works before the first router exists."""
    node.list_routers([], 0)
    assert await is_served(node, own_identity(node.home))


async def refused_by(node: Fronted, context: ssl.SSLContext) -> str:
    """The alert that a client gets."""
    async with node.session(context) as http:
        with pytest.raises(aiohttp.ClientError) as caught:
            await http.get(node.url + "/v1/models")
    return str(caught.value)


async def test_without_a_certificate_nobody_is_served(node: Fronted) -> None:
    """It is told so by TLS, and the engine hears nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert "CERTIFICATE_REQUIRED" in await refused_by(node, context)
    assert node.engine.paths == []


async def test_a_certificate_that_is_not_on_the_list_is_refused(node: Fronted) -> None:
    """Although it has the form of a router's."""
    assert "UNKNOWN_CA" in await refused_by(node, node.stranger.context)
    assert node.engine.paths == []


async def test_the_nodes_own_serving_key_opens_nothing(node: Fronted) -> None:
    """The certificate of the endpoint is public, and it is not a client's."""
    files = (node.home.path / "tls.crt", node.home.path / "tls.key")
    assert "UNKNOWN_CA" in await refused_by(node, client_context(files))


async def test_tls_1_2_is_refused(node: Fronted) -> None:
    """Whoever presents the right certificate."""
    node.router.context.minimum_version = node.router.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert not await is_served(node)


async def test_what_a_router_signs_is_nobodys(node: Fronted, tmp_path: Path) -> None:
    """A listed key issues a certificate: the list names routers, and no authorities."""
    issuer = identity.load_key(node.router.key_file)
    key = identity.create_key(tmp_path / "friend.key", cose.ES256)
    named = x509.load_der_x509_certificate(node.router.der).subject
    now = datetime.now(UTC)
    friend = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "friend")]))
        .issuer_name(named)
        .public_key(key.native.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(issuer.native, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    chain = friend.public_bytes(pem) + node.router.certificate_file.read_bytes()
    (tmp_path / "friend.crt").write_bytes(chain)
    context = client_context((tmp_path / "friend.crt", tmp_path / "friend.key"))
    assert not await is_served(node, context)
    assert node.engine.paths == []


async def test_another_certificate_of_a_listed_subject_is_refused(node: Fronted) -> None:
    """All routers may be named alike: only their keys tell them apart."""
    names = {x509.load_der_x509_certificate(each.der).subject for each in (node.router, node.stranger)}
    assert len(names) == 1
    assert not await is_served(node, node.stranger)
    assert await is_served(node, node.router)


# The list changes while it serves.


async def test_a_router_that_comes_is_served_without_a_restart(node: Fronted, clock: FakeClock) -> None:
    """And the one from before goes on, on the same connection."""
    async with node.session() as http:
        async with http.get(node.url + "/v1/models") as response:
            assert response.status == 200
        node.list_routers([node.router, node.stranger], clock.seconds)
        assert await is_served(node, node.stranger)
        async with http.get(node.url + "/v1/models") as response:
            assert response.status == 200
    assert len(node.engine.paths) == 3


async def test_a_router_that_is_gone_from_the_list_loses_its_open_connections(
    node: Fronted, clock: FakeClock
) -> None:
    """In the middle of an answer too."""
    node.engine.wait_s = 0.001
    async with node.session() as http:
        body = {**ASK, "stream": True, "tokens": 1000}
        async with http.post(node.url + "/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            node.list_routers([node.stranger], clock.seconds)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
    assert not await is_served(node, node.router)
    await asyncio.wait_for(node.engine.gone.wait(), 10)


async def test_a_list_that_nobody_renews_is_believed_for_a_day(node: Fronted, clock: FakeClock) -> None:
    """The verifier cannot be reached: routers are served meanwhile, and not forever."""
    clock.forward(DAY_S)
    node.front.look()
    assert await is_served(node)
    clock.forward(1)
    node.front.look()
    assert not await is_served(node)


async def test_a_list_of_the_future_is_not_believed_forever(node: Fronted, clock: FakeClock) -> None:
    """It was fetched under a clock that was wrong."""
    node.list_routers([node.router], clock.seconds + DAY_S + 1)
    assert not await is_served(node)


async def test_a_damaged_list_is_not_believed_for_longer_than_a_day(node: Fronted, clock: FakeClock) -> None:
    """What was read before counts as if it had stayed."""
    replace_file(node.home.path / "routers.json", b"{")
    clock.forward(DAY_S)
    node.front.look()
    assert await is_served(node)
    clock.forward(1)
    node.front.look()
    assert not await is_served(node)


async def test_a_router_that_is_gone_is_cut_also_while_the_certificate_is_exchanged(
    node: Fronted, clock: FakeClock
) -> None:
    """Two files are exchanged in two steps, and the list changes between them."""
    certificate = node.home.path / "tls.crt"
    async with node.session() as http:
        async with http.get(node.url + "/v1/models") as response:
            assert response.status == 200
        replace_file(certificate, b"not yet")
        node.list_routers([node.stranger], clock.seconds)
        with pytest.raises(aiohttp.ClientError):
            await http.get(node.url + "/v1/models")


async def test_a_damaged_list_changes_nothing(node: Fronted) -> None:
    """What was read before stays in force."""
    replace_file(node.home.path / "routers.json", b'{"fetched": 1, "routers": [{"name": "x"}]}')
    with capture_logs() as logs:
        node.front.look()
        node.front.look()
    assert [each["event"] for each in logs] == ["the list of routers in the home cannot be used"]
    assert await is_served(node)


async def test_somebody_unknown_makes_it_ask_for_the_list(node: Fronted) -> None:
    """A router that registered just now waits for seconds, not for a minute; a flood asks no more often."""
    asked = node.home.path / ASKED
    assert not asked.exists()
    await is_served(node, node.stranger)
    touched = asked.stat().st_mtime_ns
    await is_served(node, node.stranger)
    assert asked.stat().st_mtime_ns == touched


async def test_another_tls_key_of_the_home_is_taken_up(node: Fronted) -> None:
    """Without a restart: the next evidence names it already."""
    path = node.home.path
    (path / "tls.key").unlink()
    key = identity.create_key(path / "tls.key", cose.ES256)
    with capture_logs() as logs:
        node.front.look()
    # The certificate is still that of the old key.
    assert "the previous ones stay in force" in logs[0]["event"]
    replace_file(path / "tls.crt", create_certificate(key, "127.0.0.1"))
    node.front.look()
    _, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)
    found = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    assert found.public_key() == key.native.public_key()
    writer.close()


# What is passed on.

TRICKS = (
    "/", "*", "/collective_rpc", "/invocations", "/metrics", "/props", "/slots", "/v1", "/v1/",
    "/v1/../collective_rpc", "/v1/models/../../collective_rpc", "/v1/%2e%2e/collective_rpc",
    "/v1/..%2fcollective_rpc", "/v1/.%2e/metrics", "/v1/./models", "/v1//models", "//v1/models",
    "///collective_rpc", "/v1/models/", "/v1/models/x", "/v1/models?x=1", "/v1/models?/../../metrics",
    "/v1/models#x", "/v1/models;x", "/v1/models%00", "/v1/models%20", "/v1/model%73", "/v1/chat%2fcompletions",
    "/V1/models", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/chat/completions/render",
    "/v1\\models", "/v1/..\\metrics", "https://127.0.0.1/v1/models", "http://127.0.0.1:8000/collective_rpc",
    "HTTPS://127.0.0.1/v1/models", "127.0.0.1:8000", "v1/models", "/touchstone/walk",
)  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", TRICKS)
async def test_no_other_path_reaches_the_engine(node: Fronted, path: str, method: str) -> None:
    """However it is written."""
    answer = await node.raw(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert answer.split(b" ", 2)[1] in {b"404", b"400"}
    assert b'{"error":{"message":' in answer
    assert node.engine.paths == []


@pytest.mark.parametrize(
    "method", ["POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"]
)
async def test_no_other_method_reaches_the_engine(node: Fronted, method: str) -> None:
    """Each path has one method."""
    answer = await node.raw(f"{method} /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert answer.split(b" ", 2)[1] in {b"404", b"400"}
    assert node.engine.paths == []


SMUGGLED = b"GET /collective_rpc HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SMUGGLING = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 43\r\n\r\n" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 0, 43\r\n\r\n" + SMUGGLED,
    "a signed length": POST + b"Content-Length: +43\r\n\r\n" + SMUGGLED,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": POST + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 43\r\n\r\n" + SMUGGLED,
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2b\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    "a bare line feed": POST + b"Content-Length: 43\n\n" + SMUGGLED,
    "a null in a header": POST + b"X: a\0b\r\nContent-Length: 43\r\n\r\n" + SMUGGLED,
    "in a header": POST + b"Content-Type: x\r\n\r\nGET /collective_rpc HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "an upgrade": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + SMUGGLED,
    "a web socket": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + SMUGGLED,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "HTTP/0.9": b"GET /collective_rpc\r\n\r\n",
    "HTTP/1.0": b"GET /collective_rpc HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLING)
async def test_nothing_is_smuggled_to_the_engine(node: Fronted, name: str) -> None:
    """What one request carries is never another one there."""
    await node.raw(SMUGGLING[name])
    assert set(node.engine.paths) <= {"/v1/completions", "/v1/models"}


async def test_a_request_in_a_body_stays_a_body(node: Fronted) -> None:
    """Its length goes with it."""
    await node.raw(POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED)
    assert [(path, body) for _, path, _, body in node.engine.requests] == [("/v1/completions", SMUGGLED)]


@pytest.mark.parametrize(
    "node", [{"engine": {"api_key_file": "engine.key"}}], indirect=True, ids=["with a key"]
)
async def test_the_engine_gets_its_own_key_and_nothing_that_the_client_says_of_itself(node: Fronted) -> None:
    """No header that names who sent it, that is about the connection, or that only the engine's operator may set."""
    headers = {
        "Authorization": "Bearer of-the-router", "Cookie": "a=b", "Forwarded": "for=1.2.3.4",
        "X-Forwarded-For": "1.2.3.4", "X-Real-Ip": "1.2.3.4", "Via": "1.1 x", "Te": "trailers",
        "Proxy-Authorization": "Basic x", "X-Private": "1", "X-Data-Parallel-Rank": "1", "Host": "elsewhere",
        "Connection": "keep-alive, X-Private", "X-Request-Id": "abc",
    }  # fmt: skip
    async with (
        node.session(headers=headers) as http,
        http.post(node.url + "/v1/chat/completions", json=ASK) as response,
    ):
        assert response.status == 200
    [(_, _, sent, _)] = node.engine.requests
    sent = {name.lower(): value for name, value in sent.items()}
    assert sent.pop("host").startswith("127.0.0.1:")
    assert sent == {
        "authorization": "Bearer key-of-the-engine", "content-type": "application/json", "accept": "*/*",
        "x-request-id": "abc", "content-length": sent["content-length"],
    }  # fmt: skip


async def test_the_client_learns_nothing_of_the_engines_own_headers(node: Fronted) -> None:
    """Only those that the table names come back."""
    async with (
        node.session() as http,
        http.post(node.url + "/v1/chat/completions", json={**ASK, "stream": True}) as response,
    ):
        assert set(response.headers) == {"Server", "Content-Type", "Transfer-Encoding"}
        assert response.headers["Server"] == "touchstone"


@front_with(operations=["embeddings"])
async def test_an_operation_that_the_operator_left_out_is_not_passed(node: Fronted) -> None:
    """`[front] operations` names those that are."""
    async with node.session() as http:
        async with http.get(node.url + "/v1/models") as response:
            assert response.status == 404
        async with http.post(node.url + "/v1/embeddings", json=ASK) as response:
            assert response.status == 200


# Streams.


async def test_an_answer_comes_as_it_is_made(node: Fronted) -> None:
    """The first part is there while the engine waits for the rest."""
    node.engine.wait_s = 30
    async with (
        node.session() as http,
        http.post(node.url + "/v1/chat/completions", json={**ASK, "stream": True}) as response,
    ):
        assert await response.content.readuntil(b"\n\n") == b'data: {"n": 0}\n\n'


async def test_a_client_that_goes_away_ends_the_engines_work(node: Fronted) -> None:
    """A GPU must not go on for nobody."""
    node.engine.wait_s = 0.01
    async with node.session() as http:
        body = {**ASK, "stream": True, "tokens": 1 << 20}
        async with http.post(node.url + "/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        await asyncio.wait_for(node.engine.gone.wait(), 10)


async def test_a_client_that_does_not_read_holds_up_the_engine(node: Fronted) -> None:
    """And fills nobody's memory."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", node.port, ssl=node.router.context, limit=1024
    )
    body = b'{"stream": true, "tokens": 10000000}'
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readline()
    transports = [each.transport for each in node.front.registry._open]
    sizes = []
    for _ in range(5):
        await asyncio.sleep(0.1)
        sizes.append(sum(each.get_write_buffer_size() for each in transports))
    assert max(sizes) < 2 << 20
    writer.transport.abort()


async def test_a_body_goes_on_as_it_comes(node: Fronted) -> None:
    """The engine has its begin before the client has sent its end."""
    arrived = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.wait_for(arrived.wait(), 10)
        yield b'"org/model"}'

    real = node.engine.handle

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        arrived.set()
        return await real(request)

    node.engine.handle = handle  # type: ignore[method-assign]  # the route asks for it at each request
    async with node.session() as http, http.post(node.url + "/v1/completions", data=parts()) as response:
        assert response.status == 400
    assert arrived.is_set()


async def test_a_large_body_arrives_whole(node: Fronted) -> None:
    """With its length, and in chunks."""
    data = b'{"x": "%s"}' % (b"y" * (3 << 20))

    async def parts() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 100_000):
            yield data[begin : begin + 100_000]

    async with node.session() as http:
        for body in (data, parts()):
            async with http.post(node.url + "/v1/completions", data=body) as response:
                assert (await response.json())["size"] == len(data)
    assert [sent[3] == data for sent in node.engine.requests] == [True, True]


# The engine fails.


async def error_of(node: Fronted, **body: Any) -> tuple[int, dict[str, Any]]:
    async with (
        node.session() as http,
        http.post(node.url + "/v1/chat/completions", json={**ASK, **body}) as response,
    ):
        document = await response.json()
        assert set(document) == {"error"}
        assert set(document["error"]) == {"message", "type", "param", "code"}
        return response.status, document["error"]


@pytest.mark.parametrize("node", [{"engine": {"url": "http://127.0.0.1:9"}}], indirect=True, ids=["gone"])
async def test_an_engine_that_is_gone_is_502(node: Fronted) -> None:
    """In OpenAI's form, and with no word of where the engine is."""
    with capture_logs() as logs:
        status, error = await error_of(node)
    assert (status, error["code"], error["type"]) == (502, "engine_unreachable", "server_error")
    assert "127.0.0.1" not in error["message"]
    assert [each["event"] for each in logs] == ["the engine does not answer"]


@front_with(answer_s=0.2)
async def test_an_engine_that_says_nothing_is_504(node: Fronted) -> None:
    """After `[front] answer_s`."""

    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    node.engine.handle = silent  # type: ignore[method-assign]
    status, error = await error_of(node)
    assert (status, error["code"]) == (504, "engine_timeout")


async def test_an_answer_that_breaks_off_does_not_look_whole(node: Fronted) -> None:
    """The client gets what came, and no end."""
    async with (
        node.session() as http,
        http.post(node.url + "/v1/chat/completions", json={**ASK, "stream": True, "break": True}) as response,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_what_the_engine_refuses_comes_back_as_it_is(node: Fronted) -> None:
    """Its status and its words."""
    async with node.session() as http, http.post(node.url + "/v1/completions", data=b"no JSON") as response:
        assert (response.status, await response.json()) == (400, {"error": {"message": "no JSON"}})


# Hostile clients: each is a router of the list, or nobody hears it.


async def test_a_huge_header_is_refused(node: Fronted) -> None:
    """Before the engine hears of it."""
    answer = await node.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"431"
    assert node.engine.paths == []


async def test_too_many_headers_are_refused(node: Fronted) -> None:
    """However short each is."""
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(100))
    answer = await node.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
    assert answer.split(b" ", 2)[1] == b"431"
    assert node.engine.paths == []


async def test_a_head_without_end_is_refused(node: Fronted) -> None:
    """In many headers of a size that is allowed."""
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 4000) for number in range(20))
    answer = await node.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + lines)
    assert answer.split(b" ", 2)[1] == b"431"


@front_with(head_s=0.2)
async def test_a_slow_head_is_cut(node: Fronted) -> None:
    """A connection is not held by half a request."""
    assert (await node.raw(b"GET /v1/models HT")).split(b" ", 2)[1] == b"408"


@front_with(body_s=0.2)
async def test_a_slow_body_is_cut(node: Fronted) -> None:
    """And the request to the engine with it."""
    answer = await node.raw(POST + b"Content-Length: 100\r\n\r\n{")
    assert answer.split(b" ", 2)[1] == b"408"
    assert node.engine.paths == []


@front_with(max_body=1024)
@pytest.mark.parametrize("form", ["length", "chunks"])
async def test_a_body_that_is_too_large_is_refused(node: Fronted, form: str) -> None:
    """Said beforehand or not."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b"x" * 1000
            await asyncio.sleep(0)

    data = b"x" * 16_000 if form == "length" else parts()
    async with node.session() as http, http.post(node.url + "/v1/completions", data=data) as response:
        assert response.status == 413
    assert node.engine.paths == []


async def test_requests_piled_up_behind_one_end_the_connection(node: Fronted) -> None:
    """It could not be seen any more whether the client is still there."""
    node.engine.wait_s = 0.05
    body = b'{"stream": true}'
    _, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: node.engine.paths)
    with contextlib.suppress(OSError):
        for _ in range(20):
            writer.write(MODELS)
            await writer.drain()
    await until(lambda: node.front.registry.refused["ahead"] == 1)
    writer.transport.abort()


@front_with(connections=2)
async def test_there_is_room_for_the_next_router(node: Fronted, clock: FakeClock) -> None:
    """An idle connection of whoever has most gives way."""
    node.list_routers([node.router, node.stranger], clock.seconds)
    held = [await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context) for _ in range(2)]
    await until(lambda: len(node.front.registry) == 2)
    assert await is_served(node, node.stranger)
    assert await asyncio.wait_for(held[0][0].read(), 10) == b""
    for _, writer in held:
        writer.transport.abort()


async def test_half_open_handshakes_keep_no_router_out(
    node: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of them gives way."""
    monkeypatch.setattr("attester.front.listener._HANDSHAKES", 4)
    held = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(10)]
    assert await is_served(node)
    for _, writer in held:
        writer.transport.abort()


@front_with(head_s=0.2)
async def test_noise_instead_of_tls_is_cut(node: Fronted) -> None:
    """Plain HTTP among it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(MODELS)
    await asyncio.wait_for(reader.read(), 10)
    assert node.engine.paths == []
    writer.transport.abort()


async def test_a_session_of_tls_cannot_be_taken_up_again(node: Fronted) -> None:
    """Whoever is gone from the list would come back with it."""
    _, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)
    writer.write(MODELS)
    await until(lambda: node.engine.paths)
    session = writer.get_extra_info("ssl_object").session
    assert session is None or not session.has_ticket
    writer.transport.abort()


@pytest.mark.parametrize(
    "node",
    [{"engine": {"api_key_file": "engine.key", "url": "http://127.0.0.1:9"}}],
    indirect=True,
    ids=["with a key"],
)
async def test_neither_key_is_in_the_log(node: Fronted) -> None:
    """Nor what clients send."""
    with capture_logs() as logs:
        async with node.session(headers={"Authorization": "Bearer of-the-router"}) as http:
            await http.post(node.url + "/v1/completions", json=ASK)
        await node.raw(b"GET /v1/secret\x00 HTTP/1.1\r\n\r\n")
        await is_served(node, node.stranger)
    assert logs
    assert not any(word in str(logs) for word in ("key-of-the-engine", "of-the-router", "/v1/secret"))


def test_identities_of_the_fixture_are_routers(tmp_path: Path) -> None:
    """The certificates of these tests have the form that the list asks for."""
    from attester import router_list

    known = Identity(tmp_path, "one").known
    data = router_list.write((known,), 5)
    assert router_list.read(data) == (5, (known,))
    assert router_list.parse(data) == (known,)


async def test_connections_to_the_engine_are_kept(node: Fronted) -> None:
    """A new one for each request would cost more than the rest of the front."""
    peers = set()
    real = node.engine.handle

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return await real(request)

    node.engine.handle = handle  # type: ignore[method-assign]  # the route asks for it at each request
    async with node.session() as http:
        for stream in (False, True, False):
            body = {**ASK, "stream": stream}
            async with http.post(node.url + "/v1/chat/completions", json=body) as response:
                await response.read()
    assert len(peers) == 1


async def test_an_engine_that_closes_its_connections_is_asked_on_new_ones(node: Fronted) -> None:
    """As one does that was restarted, or that says so."""
    real = node.engine.handle

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = await real(request)
        answer.force_close()
        return answer

    node.engine.handle = handle  # type: ignore[method-assign]
    for _ in range(3):
        assert await is_served(node)


async def test_a_connection_that_the_engine_has_dropped_is_no_failure(node: Fronted) -> None:
    """It keeps them for less time than the front does, and closes one while a request is on its way."""
    real, served = node.engine.handle, set()

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        if peer in served:
            request.transport.abort()
        served.add(peer)
        return await real(request)

    node.engine.handle = handle  # type: ignore[method-assign]
    async with node.session() as http:
        for _ in range(3):
            async with http.post(node.url + "/v1/chat/completions", json=ASK) as response:
                assert response.status == 200
    assert len(served) == 3


async def test_a_client_that_goes_away_during_its_body_ends_the_request(node: Fronted) -> None:
    """The engine does not take half of it for the whole."""
    _, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)
    writer.write(POST + b'Content-Length: 100\r\n\r\n{"half": ')
    await asyncio.sleep(0.05)
    writer.transport.abort()
    assert await is_served(node)
    assert node.engine.paths == ["/v1/models"]


# The process.


async def test_the_process_serves_reads_anew_and_ends(tmp_path: Path, clock: FakeClock) -> None:
    """`touchstone attester front`: SIGHUP takes up the configuration, what cannot be used changes nothing."""
    engine, router = RecordingEngine(), Identity(tmp_path, "router-1")
    async with engine_server(engine) as url:
        home = make_home(tmp_path, url)
        keep_list(home, [router], int(time.time()))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "touchstone", "attester", "front", "--home", str(home.path), "--log-json",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            assert b'"serving"' in await asyncio.wait_for(process.stderr.readline(), 30)
            address = home.config().serve.url
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=router.context)) as http:
                async with http.get(address + "/v1/models") as response:
                    assert response.status == 200
                toml = home.path / "attester.toml"
                text = toml.read_text()
                toml.write_text("not [TOML")
                process.send_signal(signal.SIGHUP)
                assert b"nothing is read anew" in await asyncio.wait_for(process.stderr.readline(), 10)
                toml.write_text(text.replace("[front]\n", '[front]\noperations = ["embeddings"]\n'))
                process.send_signal(signal.SIGHUP)
                assert b'"serving"' in await asyncio.wait_for(process.stderr.readline(), 10)
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=router.context)) as http,
                http.get(address + "/v1/models") as response,
            ):
                assert response.status == 404
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
