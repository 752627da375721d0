"""A router's certificate at real proxies in front of an engine: they let it in, and nobody else."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures.fleet import free_port
from fixtures.streaming import HONEST
from router.gateway import pinned, probe
from router.model.outcomes import Failure
from router.service.state import STATE
from router.state.identity import Identity
from tests.integration.gateway import CHAT, CHATS, EngineNode, Fleet, Running, opened
from tests.integration.test_proxies import PATH
from tests.integration.test_router_identity import start
from tests.unit.router.doubles import Certificate, serving, until

NGINX = """
daemon off; user root; pid {folder}/pid; error_log stderr; events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {files}.crt;
    ssl_certificate_key {files}.key;
    ssl_protocols TLSv1.3;
    ssl_client_certificate {folder}/anchors.pem;
    ssl_verify_client on;
    # Otherwise nginx answers 400, as if the request were wrong; so it does too without a text of our own.
    error_page 495 496 =495 @stranger;
    location @stranger {{ return 495 'this router is not served here'; }}
    location / {{ proxy_pass {engine}; proxy_buffering off; }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
  servers {{
    strict_sni_host insecure_off
  }}
  storage file_system {folder}
}}
https://:{port} {{
  bind 127.0.0.1
  tls {files}.crt {files}.key {{
    protocols tls1.3
    client_auth {{
      mode require_and_verify
      {anchors}
    }}
  }}
  reverse_proxy {engine}
}}
"""
PROXIES = {"nginx": NGINX, "caddy": CADDY}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path, Running()) as made:
        (tmp_path / "token").write_text("touchstone_x")
        yield made


def pem(identity: Identity) -> bytes:
    return x509.load_der_x509_certificate(identity.certificate.der).public_bytes(Encoding.PEM)


@asynccontextmanager
async def behind(
    name: str, folder: Path, port: int, files: Path, engine: str, *served: Identity
) -> AsyncIterator[None]:
    """A proxy that serves these routers alone."""
    (folder / "anchors.pem").write_bytes(b"".join(map(pem, served)))
    path, program = folder / f"{name}.conf", shutil.which(name, path=PATH)
    assert program is not None
    anchors = "\n      ".join(
        f"trusted_ca_cert {base64.b64encode(each.certificate.der).decode()}" for each in served
    )
    text = PROXIES[name].format(folder=folder, port=port, files=files, engine=engine, anchors=anchors)
    path.write_text(text)
    command = {
        "nginx": [program, "-c", str(path), "-p", str(folder)],
        "caddy": [program, "run", "--adapter", "caddyfile", "--config", str(path)],
    }[name]
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        await until(lambda: listens(port), 20.0)
        yield
    finally:
        process.terminate()
        await process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_lets_the_router_in_and_nobody_else(fleet, tmp_path, name: str) -> None:
    """Work and probes; who is not in its list is refused, and that is told from a refused request."""
    if shutil.which(name, path=PATH) is None:
        pytest.skip(f"{name} is not here")
    certificate: Certificate = fleet.certificate("a")
    node = EngineNode("a", certificate, HONEST)
    port = free_port()
    node.url = f"https://127.0.0.1:{port}"
    fleet.verifier.trust("a", endpoint=node.endpoint)
    identity = await start(fleet, tmp_path)
    other = Identity.make(datetime.now(UTC))
    files = certificate.folder / "a"
    judge = fleet.app[STATE].registrar.judge_refusal
    async with serving(node.app()) as engine:
        async with behind(name, tmp_path, port, files, engine, other, identity):
            assert await fleet.attempts(CHAT, CHATS) == [("a", "completed")]
        async with (
            behind(name, tmp_path, port, files, engine, other),
            pinned.open_session(allow_private=True, context=identity.client_context()) as http,
        ):
            assert await fleet.attempts(CHAT, CHATS) == [("a", "not-admitted")]
            endpoint = (node.url, node.pin)
            found = await probe.ask(http, endpoint, allow_private=True, judge_refusal=judge)
            assert found is Failure.CERTIFICATE_NEW
    assert node.engine.requests == 1
