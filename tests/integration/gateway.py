"""A router over nodes and a verifier of our own, in this process or in one of its own, and what clients hear of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
from aiohttp import web

from attester.cose import PrivateKey
from attester.settings import to_toml
from fixtures.fleet import free_port
from fixtures.replies import made_up
from fixtures.streaming import HONEST, Behaviour, StreamingEngine
from router.choose.decision import decide
from router.config import RouterConfig
from router.gateway.openai import GATEWAY
from router.model.standing import Standing
from router.model.statistics import NodeStatistics, StatisticsAggregate
from router.model.workload import Table, Workload
from router.service.app import make_app
from router.service.setup import RouterSetup
from router.service.state import STATE
from router.state.fleet import Fleet as RouterFleet
from router.state.identity import Identity
from tests.unit.router.doubles import (
    Certificate,
    FakeNode,
    FakeVerifier,
    Moved,
    fake_verifier,
    raw_server,
    serving,
    until,
)
from tests.unit.router.support import MODEL

WORK = {"model": MODEL, "input": "a secret prompt"}
PROMPT = "tell me a story"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
STREAM = CHAT | {"stream": True}
CHATS, TEXTS, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TEXT: dict[str, Any] = {"model": MODEL, "prompt": PROMPT}


class Running(Moved):
    """A clock that runs, and that tests move besides."""

    def __init__(self, ms: int | None = None) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._ms = time.time_ns() // 1_000_000 if ms is None else ms
        self._ahead = 0.0

    @property
    def ms(self) -> int:  # type: ignore[override]
        return self._ms + int((self.ticks - 1000) * 1000)

    @ms.setter
    def ms(self, _: int) -> None:
        """It began in the constructor."""

    @property
    def ticks(self) -> float:  # type: ignore[override]
        return 1000 + time.monotonic() - self._began + self._ahead

    @ticks.setter
    def ticks(self, _: float) -> None:
        """Likewise."""

    def forward(self, seconds: float) -> None:
        self._ahead += seconds


class Heard:
    """What a client gets for one request: a stream's events, or a whole answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        self.body = body
        self.streamed = headers.get("Content-Type", "").startswith("text/event-stream")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[str]:
        """Of every event; an event that is not whole is a failure."""
        *events, rest = self.body.decode().split("\n\n")
        assert not rest
        assert all(event.startswith("data: ") for event in events), events
        return [event.removeprefix("data: ") for event in events]

    @property
    def events(self) -> list[Any]:
        return [json.loads(data) for data in self.data if data != "[DONE]"]

    @property
    def done(self) -> bool:
        return self.data[-1] == "[DONE]" and self.data.count("[DONE]") == 1

    @property
    def choices(self) -> list[Any]:
        documents = self.events if self.streamed else [self.json]
        return [choice for document in documents for choice in document.get("choices", ())]

    @property
    def text(self) -> str:
        said = [choice.get("delta", choice.get("message", choice)) for choice in self.choices]
        return "".join(each.get("content", each.get("text")) or "" for each in said)

    @property
    def error(self) -> Any:
        """The error that it ended with."""
        return (self.events[-1] if self.streamed else self.json).get("error")

    @property
    def usage(self) -> list[Any]:
        """Every usage that was told."""
        documents = self.events if self.streamed else [self.json]
        return [document["usage"] for document in documents if document.get("usage") is not None]


class EngineNode:
    """A node with a streaming engine, over TLS."""

    def __init__(self, name: str, certificate: Certificate, behaviour: Behaviour) -> None:
        self.name = name
        self.pin = certificate.pin
        self.engine = StreamingEngine(MODEL, behaviour)
        self.url = ""
        self.handshakes = 0
        self.gate = asyncio.Event()
        """While it is cleared, requests wait at the node's door."""
        self.gate.set()
        self.waiting = 0
        certificate.context.sni_callback = self._greeted

    def _greeted(self, *_: Any) -> None:
        self.handshakes += 1

    @property
    def endpoint(self) -> dict[str, str]:
        return {"url": self.url, "spki_sha256": self.pin}

    def app(self) -> web.Application:
        app = self.engine.app()
        app.middlewares.append(self._wait)
        return app

    @web.middleware
    async def _wait(self, request: web.Request, handler: Any) -> Any:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return await handler(request)

    def behave(self, kind: str = "honest", **how: Any) -> None:
        self.engine.behaviour = Behaviour(kind, **how)


class Fleet:
    """A router over nodes and a verifier of our own."""

    def __init__(
        self, stack: AsyncExitStack, verifier: FakeVerifier, http: aiohttp.ClientSession, tls: Path
    ) -> None:
        self._stack = stack
        self._tls = tls
        self.verifier = verifier
        self.clock = verifier.clock
        self.http = http
        self.app = web.Application()
        self.url = ""
        self._looks_as: dict[str, str] = {}
        self.receipt_key: PrivateKey | None = None
        """It signs the router's receipts; `None`: a new one for each start."""
        self._router = AsyncExitStack()
        stack.push_async_exit(self._router)

    def another(self) -> Fleet:
        """Another router, over the same nodes and the same verifier."""
        return Fleet(self._stack, self.verifier, self.http, self._tls)

    def certificate(self, name: str) -> Certificate:
        return Certificate(self._tls, name)

    async def node(self, name: str) -> FakeNode:
        """An honest node with a live result."""
        certificate = self.certificate(name)
        node = FakeNode(name, certificate)
        node.url = await self._stack.enter_async_context(serving(node.app(), certificate.context))
        self.verifier.trust(name, endpoint=node.endpoint)
        return node

    async def engine(self, name: str, behaviour: Behaviour = HONEST, **trusted: Any) -> EngineNode:
        """A node with a streaming engine and a live result."""
        certificate = self.certificate(name)
        node = EngineNode(name, certificate, behaviour)
        await self.place(node, certificate, **trusted)
        return node

    async def place(self, node: EngineNode, certificate: Certificate, **trusted: Any) -> None:
        """Let a node serve, with a live result."""
        node.url = await self._stack.enter_async_context(serving(node.app(), certificate.context))
        self.verifier.trust(node.name, endpoint=node.endpoint, **trusted)

    async def raw(self, name: str, act: Any, *, tls: bool = True, pin: str | None = None) -> str:
        """A node that speaks bytes; its URL."""
        certificate = self.certificate(name)
        url = await self._stack.enter_async_context(raw_server(act, certificate.context if tls else None))
        endpoint = {"url": url, "spki_sha256": pin or certificate.pin}
        self.verifier.trust(name, endpoint=endpoint)
        return url

    async def start(
        self,
        workload: dict[str, Any] | None = None,
        *,
        sections: Mapping[str, Any] | None = None,
        table: Table | None = None,
        watches_stalls: bool = False,
        identity: Identity | None = None,
        **gateway: Any,
    ) -> None:
        """
        Start the router and wait until it has taken its snapshot.

        Args:
            watches_stalls: Whether it counts for how long it stood still.  Otherwise a busy machine fails no test.
            identity: By which nodes know it; a new one if it is left out.
        """
        # A node of a test is silent, or it is not: what the size of a request adds is tested on its own.
        given = {
            "timeout_s": 5,
            "attempt_timeout_s": 3,
            "quiet_s": 3,
            "connect_timeout_s": 2,
            "allow_private": True,
            "unseen_tokens_per_second": 1e6,
            "unseen_prompt_tokens_per_second": 1e6,
        }
        keys = [
            {"name": f"k{n}", "sha256": digest} for n, digest in enumerate(gateway.pop("key_digests", []))
        ]
        # Without keys of the test's own anyone may send work, and one key sees what is needed to look at it.
        is_open = not keys and "keys" not in (sections or {})
        given["open"] = is_open
        self._looks_as = by("auditor") if is_open else {}
        config = {
            "keys": [key("auditor", roles=["auditor"])] if is_open else keys,
            **(sections or {}),
            "verifier": {"url": self.verifier.url, **(sections or {}).get("verifier", {})},
            "gateway": {**given, "probe_every_s": 0, **gateway},
        }
        tiny = {"model": MODEL, "name": "tiny", "tier": "small", **(workload or {})}
        table = table or Table([msgspec.convert(tiny, Workload)])
        setup = RouterSetup(
            msgspec.convert(config, RouterConfig), table, identity=identity, receipt_key=self.receipt_key
        )
        self.app = make_app(setup, self.clock.clock())
        before = self.verifier.followers
        self.url = await self._router.enter_async_context(serving(self.app))
        await until(lambda: self.verifier.followers > before)
        if not watches_stalls:
            self.app[STATE].stalls.stop()
        self.in_order()

    async def stop(self) -> None:
        """End the router as a signal would."""
        before = self.verifier.followers
        await self._router.aclose()
        await until(lambda: self.verifier.followers < before)

    @property
    def router(self) -> RouterFleet:
        return self.app[STATE].fleet

    def in_order(self, name: str | None = None) -> None:
        """Let chance rank equals by name from now on."""
        workload = self.router.table.workloads[name or next(iter(self.router.table.workloads))]
        snapshot = self.router.view_for(workload)
        for seed in range(10_000):
            names = [ranked.node for ranked in decide(snapshot, workload, seed).ranked]
            if names == sorted(names):
                self.app[GATEWAY].dispatcher.seed = partial(int, seed)
                return
        raise AssertionError

    def establish(self, *names: str) -> None:
        """Nodes of which much good is known."""
        good = Standing((100.0, 100.0), (0.0, 0.0), 100.0, 0.0, self.app[STATE].clock.unix(), 0.1)
        for name in names:
            self.router.restore_statistics(name, "small", StatisticsAggregate(good))

    async def post(
        self, body: Any = WORK, path: str = "/v1/embeddings", **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.json(content_type=None), dict(response.headers)

    async def ask(self, body: Any = STREAM, path: str = CHATS, **headers: str) -> Heard:
        """All that a client gets."""
        return await ask(self.http, self.url, body, path, **headers)

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(self.url + path, headers={**self._looks_as, **headers}) as response:
            return response.status, await response.json(content_type=None)

    async def attempts(self, body: Any = WORK, path: str = "/v1/embeddings") -> list[tuple[str, str]]:
        """The nodes that a request went to, each with its outcome."""
        _, _, headers = await self.post(body, path)
        return [(attempt["node"], attempt["outcome"]) for attempt in await self.record(headers)]

    async def record(self, headers: Mapping[str, str]) -> list[Any]:
        """What became of the decision that an answer names."""
        _, record = await self.get(f"/api/v1/decisions/{headers['X-Touchstone-Decision']}")
        return list(record["attempts"])

    def statistics(self, name: str) -> NodeStatistics:
        return self.router.statistics(name, "small") or NodeStatistics()

    def standing(self, name: str) -> Standing:
        return self.statistics(name).own

    def failed(self, name: str) -> float:
        return self.standing(name).failed[1]


async def ask(
    http: aiohttp.ClientSession, url: str, body: Any = STREAM, path: str = CHATS, **headers: str
) -> Heard:
    """All that a client gets."""
    async with http.post(url + path, json=body, headers=headers) as response:
        return Heard(response.status, response.headers, await response.read())


def story(tokens: int = HONEST.tokens) -> str:
    """What an honest engine answers to `PROMPT`."""
    return made_up(PROMPT, tokens)


@asynccontextmanager
async def opened(folder: Path, clock: Moved | None = None) -> AsyncIterator[Fleet]:
    """A fleet without nodes, its router not started yet."""
    async with AsyncExitStack() as stack:
        verifier = await stack.enter_async_context(fake_verifier(clock or Moved()))
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Fleet(stack, verifier, http, folder / "tls")


def official(fleet: Fleet, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=key, max_retries=0)


def key(name: str, **given: Any) -> dict[str, Any]:
    """An entry of ``[[keys]]`` for the key ``sk-NAME``."""
    return {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **given}


def by(name: str) -> dict[str, str]:
    """The header of who has the key ``sk-NAME``."""
    return {"Authorization": f"Bearer sk-{name}"}


TABLE = {"tiers": {"small": {}}, "workloads": {"tiny": {"model": MODEL, "tier": "small"}}}


class RouterProcess:
    """A router as a real process over a fake verifier whose clock is the real one."""

    def __init__(self, folder: Path, verifier: FakeVerifier, **sections: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.listen = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.listen}"
        self.log = folder / "router.log"
        self.config = folder / "router.toml"
        gateway = {"open": "keys" not in sections, "allow_private": True, "probe_every_s": 0}
        (folder / "router.token").write_text("the-routers-key")
        (folder / "reviewer.token").write_text("a-reviewers-key")
        given = {
            "keys": [key("auditor", roles=["auditor"])],
            **sections,
            "service": {"listen": self.listen, **sections.get("service", {})},
            "verifier": {
                "url": verifier.url,
                "router_token_file": "router.token",
                "admin_token_file": "reviewer.token",
                **sections.get("verifier", {}),
            },
            "gateway": {**gateway, **sections.get("gateway", {})},
        }
        self.config.write_text(to_toml(msgspec.convert(given, RouterConfig)), encoding="utf-8")
        self.write_table(TABLE)
        self.process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def write_table(self, table: Any) -> None:
        # JSON is YAML too.
        data = table if isinstance(table, bytes) else msgspec.json.format(msgspec.json.encode(table))
        (self.folder / "workloads.yaml").write_bytes(data)

    def logged(self) -> str:
        """What it has logged since it was started the last time."""
        return self.log.read_text()[self._read :]

    async def start(self, *options: str) -> None:
        """Start it, and wait until it has heard of its nodes and answers."""
        self._read = len(self.log.read_text()) if self.log.exists() else 0
        command = ["-m", "touchstone", "router", "serve", "--config", str(self.config), *options]
        self.process = await asyncio.to_thread(self._spawn, [sys.executable, *command])
        await until(lambda: self._alive() and "snapshot taken" in self.logged(), 30)
        await until(self._answers, 30)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logged()
        return True

    def _answers(self) -> bool:
        host, port = self.listen.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM) -> None:
        """By a signal; nothing happens where it has ended already."""
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, 20)

    async def touchstone(self, *arguments: str) -> tuple[int, str]:
        """Run ``touchstone router …`` against it: the exit status, and all that it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "touchstone", "router", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TOUCHSTONE_ROUTER_URL": self.url},
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()
