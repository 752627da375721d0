"""The real verifier and the real router behind their own socket, and clients that speak bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from router.config import RouterConfig
from router.model.workload import Table, Workload
from router.service.app import make_app as make_router
from router.service.setup import RouterSetup
from tests.conftest import FakeClock, seed
from tests.unit.router.doubles import Moved, fake_verifier
from tests.unit.router.support import MODEL
from verifier.config import Home, VerifierConfig
from verifier.service.app import make_app, open_service
from verifier.service.front import FRONT, Front
from verifier.service.listener import Listener
from verifier.service.serve import listening, open_tls

SERVICES = ("verifier", "router")
SMALL_LIMITS = {"connections": 40, "stranger_connections": 20, "connections_per_address": 20}
QUIET = {"verifier": "/.well-known/jwks.json", "router": "/api/v1/nothing"}
"""A resource that needs no credential."""


@dataclass
class Served:
    """A service on a port of its own."""

    kind: str
    app: web.Application
    listener: Listener

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def front(self) -> Front:
        return self.app[FRONT]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port))

    async def get(self, **headers: str) -> Answer:
        """A whole request of a new client."""
        client = await self.connect()
        await client.send(request("GET", QUIET[self.kind], Connection="close", **headers))
        return await client.answer()


@dataclass
class Answer:
    """What came back, as bytes."""

    data: bytes

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode()

    @property
    def document(self) -> Any:
        return json.loads(self.data.partition(b"\r\n\r\n")[2])


class Raw:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """All that comes until the other side closes."""
        async with asyncio.timeout(20):
            parts = []
            try:
                while part := await self.reader.read(65536):
                    parts.append(part)
            except ConnectionError:
                pass
            self.close()
            return Answer(b"".join(parts))

    def close(self) -> None:
        self.writer.close()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items()),
    ]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def served(kind: str, folder: Path, **settings: Any) -> AsyncIterator[Served]:
    """One of the two services, with settings of its socket; ``sections`` are further sections."""
    sections = settings.pop("sections", {})
    opened = (
        _verifier(folder, settings, sections) if kind == "verifier" else _router(folder, settings, sections)
    )
    async with opened as (app, home):
        tls = open_tls(app[FRONT], home)
        async with listening(app, "127.0.0.1:0", tls=tls, shutdown_timeout=0.1) as listener:
            yield Served(kind, app, listener)


@asynccontextmanager
async def _verifier(
    folder: Path, settings: dict[str, Any], sections: dict[str, Any]
) -> AsyncIterator[tuple[web.Application, Path]]:
    scheme = "https" if "tls_certificate" in settings else "http"
    given = {
        "service": {"listen": "127.0.0.1:1", "url": f"{scheme}://127.0.0.1:1", **settings},
        "policy": {"workers": 1},
        **sections,
    }
    home = Home(folder / "verifier")
    if not home.path.exists():
        home.create(msgspec.convert(given, VerifierConfig))
    clock = FakeClock()
    await seed(home, clock.ms)
    async with open_service(home, home.config(), clock.clock()) as service:
        yield make_app(service), home.path


@asynccontextmanager
async def _router(
    folder: Path, settings: dict[str, Any], sections: dict[str, Any]
) -> AsyncIterator[tuple[web.Application, Path]]:
    clock = Moved()
    table = Table([msgspec.convert({"model": MODEL, "name": "tiny", "tier": "small"}, Workload)])
    async with fake_verifier(clock) as verifier:
        given = {
            "verifier": {"url": verifier.url},
            "gateway": {"probe_every_s": 0, "open": "keys" not in sections},
            "service": settings,
            **sections,
        }
        setup = RouterSetup(msgspec.convert(given, RouterConfig), table, folder)
        yield make_router(setup, clock.clock()), folder


async def until(condition: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
