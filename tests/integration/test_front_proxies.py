"""The rules of the front as real proxies keep them: what `touchstone attester front --print` writes is run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from attester import cose, identity
from attester.config import Home
from attester.errors import ConfigError
from attester.front import exposure, printed
from attester.front.check import check_outside
from attester.front.outside import Outside
from attester.front.tls import client_context
from fixtures.fronted import Identity, RecordingEngine, engine_server, keep_list, make_home
from tests.integration.front import until

PATH = os.pathsep.join([os.environ.get("TEST_PROXIES", ""), os.environ.get("PATH", ""), "/usr/sbin"])
NOW = 1_800_000_000
ASK = {"model": "org/model", "messages": []}


@dataclass
class Proxied:
    """A proxy with the printed rules, the engine behind it, and two routers, of which the list has the first."""

    name: str
    home: Home
    engine: RecordingEngine
    router: Identity
    stranger: Identity
    process: subprocess.Popen[bytes]
    configuration: Path

    @property
    def url(self) -> str:
        return self.home.config().serve.url

    def session(self, context: ssl.SSLContext | None = None, **options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=context or self.router.context)
        return aiohttp.ClientSession(connector=connector, **options)

    async def raw(self, data: bytes) -> bytes:
        port = int(self.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.router.context)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.transport.abort()

    async def status(self, context: ssl.SSLContext) -> int | None:
        """The status of an answer; `None` if TLS ended first."""
        async with self.session(context) as http:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(self.url + "/v1/models") as response:
                    return response.status
        return None


def start(name: str, folder: Path, text: str) -> tuple[list[str], Path]:
    """The command that runs a proxy with this configuration, and the file of it."""
    program = shutil.which(name, path=PATH)
    if program is None:
        pytest.skip(f"{name} is not here: put it on the PATH, or its folder into TEST_PROXIES")
    path = folder / f"{name}.conf"
    if name == "nginx":
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        head = f"daemon off; user root; pid {folder}/pid; error_log stderr; events {{ }}"
        path.write_text(f"{head} http {{ access_log off; {paths}\n{text} }}")
        return [program, "-c", str(path), "-p", str(folder)], path
    if name == "caddy":
        path.write_text(text.replace("{\n", f"{{\n  admin unix/{folder}/admin\n", 1))
        return [program, "run", "--adapter", "caddyfile", "--config", str(path)], path
    path = path.with_suffix(".yaml")
    path.write_text(text)
    return [program, "-c", str(path), "--base-id", str(os.getpid()), "--concurrency", "1"], path


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HOME": str(log.parent)})


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=list(printed.PROXIES))
async def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Proxied]:
    engine = RecordingEngine()
    router, stranger = Identity(tmp_path, "router-1"), Identity(tmp_path, "stranger")
    async with engine_server(engine) as url:
        sections: dict[str, Any] = {"front": {"max_body": 100_000}, "engine": {"api_key_file": "engine.key"}}
        home = make_home(tmp_path, url, **sections)
        keep_list(home, [router], NOW)
        text = printed.write(home, home.config(), request.param, NOW)
        command, path = start(request.param, tmp_path, text)
        log = tmp_path / "log"
        process = await asyncio.to_thread(spawn, command, log)
        try:
            port = int(home.config().serve.url.rpartition(":")[2])
            await until(lambda: is_open(port) or process.poll() is not None, 30)
            assert process.poll() is None, log.read_text()
            yield Proxied(request.param, home, engine, router, stranger, process, path)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 20)


async def test_a_router_is_served_and_a_stranger_is_not(proxied: Proxied) -> None:
    """By TLS 1.3, with a certificate of the list."""
    async with proxied.session() as http, http.get(proxied.url + "/v1/models") as response:
        assert (response.status, (await response.json())["data"]) == (200, [{"id": "org/model"}])
    assert await proxied.status(proxied.stranger.context) in {None, 400}
    assert await proxied.status(client_context(None)) in {None, 400}
    old = Identity.__new__(Identity)
    old.context = client_context((proxied.router.certificate_file, proxied.router.key_file))
    old.context.minimum_version = old.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await proxied.status(old.context) is None
    assert proxied.engine.paths == ["/v1/models"]


async def test_what_a_router_signs_is_nobodys(proxied: Proxied, tmp_path: Path) -> None:
    """The trust anchors are no authorities."""
    key = identity.create_key(tmp_path / "friend.key", cose.ES256)
    issuer = x509.load_der_x509_certificate(proxied.router.der)
    friend = (
        x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer.subject)
        .public_key(key.native.public_key()).serial_number(7)
        .not_valid_before(issuer.not_valid_before_utc).not_valid_after(issuer.not_valid_after_utc)
        .sign(identity.load_key(proxied.router.key_file).native, hashes.SHA256())
    )  # fmt: skip
    chain = friend.public_bytes(serialization.Encoding.PEM) + proxied.router.certificate_file.read_bytes()
    (tmp_path / "friend.crt").write_bytes(chain)
    context = client_context((tmp_path / "friend.crt", tmp_path / "friend.key"))
    assert await proxied.status(context) in {None, 400}
    assert proxied.engine.paths == []


async def test_only_operations_are_passed(proxied: Proxied) -> None:
    """Whatever a path looks like."""
    paths = [
        "/collective_rpc", "/v1/../collective_rpc", "/v1/%2e%2e/collective_rpc", "/v1//models", "//v1/models",
        "/v1/models/", "/v1/models/../../metrics", "/v1/load_lora_adapter", "/v1/chat%2fcompletions",
        "/v1/model%73", "/metrics", "/V1/models", "/v1/./models",
    ]  # fmt: skip
    for path in paths:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await proxied.raw(head.encode())
        assert answer.split(b" ", 2)[1] in {b"404", b"400"}, (path, answer[:200])
    async with proxied.session() as http, http.post(proxied.url + "/v1/models", json=ASK) as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["error"]["code"] == "unknown_url"
    assert proxied.engine.paths == []


async def test_the_engine_gets_its_own_key_and_no_word_of_the_client(proxied: Proxied) -> None:
    """The same headers as from the front, or fewer that say who sent it."""
    headers = {
        "Authorization": "Bearer of-the-router", "Cookie": "a=b", "Forwarded": "for=1.2.3.4",
        "X-Forwarded-For": "1.2.3.4", "X-Real-Ip": "1.2.3.4", "Via": "1.1 x",
    }  # fmt: skip
    async with (
        proxied.session(headers=headers) as http,
        http.post(proxied.url + "/v1/chat/completions", json=ASK) as response,
    ):
        assert response.status == 200
    [(_, _, sent, _)] = proxied.engine.requests
    given = {name.lower(): value for name, value in sent.items()}
    assert given["authorization"] == "Bearer key-of-the-engine"
    assert given["content-type"] == "application/json"
    assert not {"cookie", "forwarded", "x-real-ip", "via", "x-forwarded-for", "x-forwarded-proto"} & set(
        given
    )


async def test_an_answer_comes_as_it_is_made(proxied: Proxied) -> None:
    """And a client that goes away ends the engine's work."""
    proxied.engine.wait_s = 0.05
    body = {**ASK, "stream": True, "tokens": 1 << 20}
    async with (
        proxied.session() as http,
        http.post(proxied.url + "/v1/chat/completions", json=body) as response,
    ):
        first = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
        assert first == b'data: {"n": 0}\n\n'
        response.close()
    await asyncio.wait_for(proxied.engine.gone.wait(), 10)


async def test_a_body_that_is_too_large_is_refused(proxied: Proxied) -> None:
    """At the limit of `[front] max_body`."""
    if proxied.name == "envoy":
        pytest.skip("Envoy has no limit of bodies that are streamed")
    async with proxied.session() as http:
        async with http.post(proxied.url + "/v1/completions", data=b"x" * 100_001) as response:
            # Caddy 2.6 does not tell this from an engine that is gone.
            assert response.status == (502 if proxied.name == "caddy" else 413)
        assert proxied.engine.paths == []
        async with http.post(proxied.url + "/v1/completions", json={"x": "y" * 90_000}) as response:
            assert response.status == 200


async def test_check_passes_with_the_proxy(proxied: Proxied) -> None:
    """The node's own certificate is among the trust anchors, and no control route can be reached."""
    outside = Outside(proxied.home, proxied.home.config())
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key-of-the-engine"}) as http:
        lines = await check_outside(outside, proxied.home.tls_key(), http, NOW)
    assert [(passed, what) for passed, what, _ in lines] == [
        (True, "endpoint"),
        (True, "who is served"),
        (True, "control routes"),
    ], lines
    assert set(proxied.engine.paths) == {"/v1/models"}
    assert len(exposure.ALL) > 30


async def test_another_list_comes_with_a_reload(proxied: Proxied) -> None:
    """The attester writes the file, and the operator's unit reloads the proxy."""
    keep_list(proxied.home, [proxied.stranger], NOW)
    printed.write(proxied.home, proxied.home.config(), proxied.name, NOW)
    program = shutil.which(proxied.name, path=PATH) or ""
    if proxied.name == "nginx":
        command = [
            program,
            "-c",
            str(proxied.configuration),
            "-p",
            str(proxied.configuration.parent),
            "-s",
            "reload",
        ]
    elif proxied.name == "caddy":
        address = f"unix/{proxied.configuration.parent}/admin"
        command = [program, "reload", "--force", "--adapter", "caddyfile", "--address", address]
        command += ["--config", str(proxied.configuration)]
    else:
        pytest.skip("Envoy takes the file up with a restart")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True)
    assert done.returncode == 0, done.stderr
    async with asyncio.timeout(10):
        # Until then the process from before may take a connection.
        while await proxied.status(proxied.stranger.context) != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while await proxied.status(proxied.router.context) == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", printed.PROXIES)
def test_the_key_of_the_engine_is_not_printed(tmp_path: Path, name: str) -> None:
    """It is in a file that only the operator can read."""
    home = make_home(tmp_path, "http://127.0.0.1:8000", engine={"api_key_file": "engine.key"})
    text = printed.write(home, home.config(), name, NOW)
    assert "key-of-the-engine" not in text
    kept = home.path / f"{name}.key.conf"
    assert "Bearer key-of-the-engine" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0
    assert str(kept) in text


@pytest.mark.parametrize("name", printed.PROXIES)
def test_a_key_that_would_end_a_directive_is_refused(tmp_path: Path, name: str) -> None:
    """It is the operator's own, but it must not become configuration."""
    home = make_home(tmp_path, "http://127.0.0.1:8000", engine={"api_key_file": "engine.key"})
    (home.path / "engine.key").write_text('x";return;')
    with pytest.raises(ConfigError, match="must do without"):
        printed.write(home, home.config(), name, NOW)


def test_the_rules_for_envoy_are_yaml(tmp_path: Path) -> None:
    """Each operation has one route, and the last route refuses the rest."""
    home = make_home(tmp_path, "http://127.0.0.1:8000")
    document = yaml.safe_load(printed.write(home, home.config(), "envoy", NOW))
    listener = document["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert [route["match"].get("path") for route in routes[:-1]] == [
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/messages", "/v1/rerank",
        "/v1/responses", "/v1/score",
    ]  # fmt: skip
    assert routes[-1]["direct_response"]["status"] == 404
