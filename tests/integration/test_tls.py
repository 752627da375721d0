"""TLS and mutual TLS that verifier and router speak themselves, and certificates that are read again on SIGHUP."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from attester.errors import ConfigError
from fixtures.fleet import free_port
from tests.integration.front import QUIET, SERVICES, Raw, request, served, until
from tests.integration.gateway import RouterProcess
from tests.integration.test_front import cut
from tests.unit.router.doubles import Moved, fake_verifier
from verifier.config import Home, VerifierConfig
from verifier.service.tls import ServerTLS

both = pytest.mark.parametrize("kind", SERVICES)


class Authority:
    """A certificate authority of our own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True, parents=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.pem"
        self._write(self.path, self._sign(self.name, self.key, is_authority=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self._write(certificate, self._sign(subject, key))
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, path

    def client(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.path))
        context.check_hostname = False
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def settings_of(pair: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    return {"tls_certificate": str(pair[0]), "tls_key": str(pair[1]), **more}


async def connect(port: int, context: ssl.SSLContext | None) -> Raw:
    return Raw(*await asyncio.open_connection("127.0.0.1", port, ssl=context))


async def ask(port: int, context: ssl.SSLContext | None, path: str) -> bytes:
    client = await connect(port, context)
    await client.send(request("GET", path, Connection="close"))
    return (await client.answer()).data


def seen(client: Raw) -> bytes:
    """The certificate that the service has shown."""
    found: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return hashlib.sha256(found).digest()


@both
async def test_tls_is_spoken_and_nothing_else(kind: str, authority: Authority, tmp_path: Path) -> None:
    """With a version of today."""
    async with served(kind, tmp_path, **settings_of(authority.issue("server"))) as service:
        assert b"HTTP/1.1 " in await ask(service.port, authority.client(), QUIET[kind])
        assert await ask(service.port, None, QUIET[kind]) == b""
        old = authority.client()
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(service.port, old)


@both
async def test_a_client_needs_a_certificate_where_an_authority_is_named(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    """Of that authority, and no other one."""
    settings = settings_of(authority.issue("server"), client_ca=str(authority.path))
    other = Authority(tmp_path / "others", "other").issue("stranger")
    async with served(kind, tmp_path, **settings) as service:
        right = authority.client(authority.issue("client"))
        assert b"HTTP/1.1 " in await ask(service.port, right, QUIET[kind])
        for wrong in (authority.client(), authority.client(other)):
            with suppress(ssl.SSLError, ConnectionError):
                assert await ask(service.port, wrong, QUIET[kind]) == b""


@both
async def test_half_open_handshakes_keep_no_new_client_out(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    """A connection counts before its handshake, and that has a deadline."""
    settings = settings_of(authority.issue("server"), head_s=1)
    async with served(kind, tmp_path, **settings) as service:
        service.front.connections.limit(200)
        before = cut("tls")
        held = [await connect(service.port, None) for _ in range(300)]
        assert b"HTTP/1.1 " in await ask(service.port, authority.client(), QUIET[kind])
        assert service.front.connections.strangers <= 100
        await until(lambda: cut("tls") > before)
        await until(lambda: len(service.front.connections) == 0)
        for client in held:
            client.close()


def test_files_that_are_refused_leave_the_old_ones_in_force(authority: Authority, tmp_path: Path) -> None:
    """Half a renewal must not end the service."""
    certificate, key = authority.issue("server")
    tls = ServerTLS(certificate, key, authority.path)
    before = tls.context
    certificate.write_text("nonsense")
    tls.reload()
    assert tls.context is before
    with pytest.raises(ConfigError, match=r"server\.pem"):
        ServerTLS(certificate, key, None)
    with pytest.raises(ConfigError, match="authority"):
        ServerTLS(*authority.issue("again"), tmp_path / "no-authority.pem")


@asynccontextmanager
async def verifier_process(folder: Path, settings: dict[str, Any]) -> AsyncIterator[tuple[int, Any]]:
    """`touchstone verifier serve`, and what sends it a signal."""
    port = free_port()
    scheme = "https" if settings else "http"
    given = {"listen": f"127.0.0.1:{port}", "url": f"{scheme}://127.0.0.1:{port}", **settings}
    home = Home(folder / "home")
    home.create(msgspec.convert({"service": given, "policy": {"workers": 1}}, VerifierConfig))
    command = [sys.executable, "-m", "touchstone", "verifier", "serve", "--home", str(home.path)]
    log = folder / "log"
    process = await asyncio.to_thread(_spawn, command, log)
    try:
        await until(lambda: "serving" in log.read_text() or process.poll() is not None, 30)
        yield port, process.send_signal
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out)


@asynccontextmanager
async def router_process(folder: Path, settings: dict[str, Any]) -> AsyncIterator[tuple[int, Any]]:
    """`touchstone router serve`, likewise."""
    async with fake_verifier(Moved()) as verifier:
        router = RouterProcess(folder / "router", verifier, service=settings)
        await router.start()
        try:
            yield int(router.listen.rpartition(":")[2]), router.send
            router._alive()
        finally:
            await router.end()


PROCESSES = {"verifier": verifier_process, "router": router_process}


@both
async def test_a_hangup_reads_the_certificate_again(kind: str, authority: Authority, tmp_path: Path) -> None:
    """New connections get the new one; an open one goes on."""
    pair = authority.issue("server")
    async with PROCESSES[kind](tmp_path, settings_of(pair)) as (port, send):
        held = await connect(port, authority.client())
        old = seen(held)
        authority.issue("server")
        send(signal.SIGHUP)

        async def is_new() -> bool:
            client = await connect(port, authority.client())
            client.close()
            return seen(client) != old

        async with asyncio.timeout(20):
            while not await is_new():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await held.send(request("GET", QUIET[kind], Connection="close"))
        assert b"HTTP/1.1 " in (await held.answer()).data


async def test_a_hangup_ends_no_verifier_without_tls(tmp_path: Path) -> None:
    """There is nothing to read again, and it goes on."""
    async with verifier_process(tmp_path, {}) as (port, send):
        send(signal.SIGHUP)
        assert b" 200 " in await ask(port, None, QUIET["verifier"])
