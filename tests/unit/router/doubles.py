"""A verifier and nodes on real sockets that do as they are told, lies included."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester import identity
from attester.config import create_certificate
from attester.cose import PrivateKey
from router.model.clock import Clock
from tests.unit.router.support import ear
from verifier.result_keys import ResultKey
from verifier.results import AttestationResult, encode_jwt
from verifier.service.front import FRONT
from verifier.service.serve import listening


def result_key() -> ResultKey:
    return ResultKey(ec.generate_private_key(ec.SECP256R1()))


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Let sockets settle until *condition* holds; a failure when it never does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Moved:
    """A clock that tests move."""

    def __init__(self, ms: int = 1_795_000_000_000) -> None:
        self.ms = ms
        self.ticks = 1000.0

    @property
    def seconds(self) -> int:
        return self.ms // 1000

    def forward(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)
        self.ticks += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.ms, lambda: self.ticks)


class Wrong(Moved):
    """A clock that differs from the time that passes, by what a test sets."""

    def __init__(self, passing: Moved, off_s: float = 0.0) -> None:
        self._passing = passing
        self.off_s = off_s

    @property
    def ms(self) -> int:  # type: ignore[override]
        return self._passing.ms + int(self.off_s * 1000)

    @property
    def ticks(self) -> float:  # type: ignore[override]
        return self._passing.ticks

    def forward(self, seconds: float) -> None:
        self._passing.forward(seconds)


class FakeVerifier:
    """Serves whatever is put into it; events go to all that follow."""

    def __init__(self, clock: Moved) -> None:
        self.clock = clock
        self.key = result_key()
        self.keys: list[dict[str, Any]] = [self.key.verifying.jwk()]
        self.results: dict[str, str] = {}
        self.issued: dict[str, str] = {}
        """Every token, by the id of its result."""
        self.page_size = 0
        """Results on a page; 0: all of them."""
        self.on_page: Callable[[str], Awaitable[None]] | None = None
        """Awaited before a page of results is made, with the id after which it begins."""
        self.incidents: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []
        """Incidents that are over."""
        self.bodies: dict[str, Any] = {}
        """By path: bytes or a response in place of the honest page."""
        self.reports: list[dict[str, Any]] = []
        """What routers report; each makes an incident."""
        self.steps: list[dict[str, Any]] = []
        """What people do about incidents, by way of a router."""
        self.on_release: Callable[[web.Request], Awaitable[web.Response]] | None = None
        self.registers = True
        """Whether it registers routers, or refuses all of them."""
        self.registered_for_s = 0
        self.registrations: list[bytes] = []
        self.offers: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda _: None
        """Gives a check for what a router wants to ask; `None`: there is none."""
        self.given: dict[str, list[dict[str, Any]]] = {}
        """By check, what was reported of it."""
        self.suspicions: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.loads = 0
        self.connections = 0
        self.seq = 0
        self.url = ""
        self._followers: set[asyncio.Queue[bytes | None]] = set()
        self._sent: dict[int, bytes] = {}
        """Events by number, as long as they are kept."""

    @property
    def followers(self) -> int:
        return len(self._followers)

    def ear(self, name: str, **given: Any) -> AttestationResult:
        given.setdefault("issuer", self.url)
        given.setdefault("iat", self.clock.seconds)
        return ear(name, **given)

    def token(self, name: str, **given: Any) -> str:
        result = self.ear(name, **given)
        self.issued[result.jti] = encode_jwt(result, self.key)
        return self.issued[result.jti]

    def trust(self, name: str, **given: Any) -> None:
        """A live result of *name* for the next snapshot."""
        self.results[name] = self.token(name, **given)

    def send(self, kind: str, **data: Any) -> None:
        """An event, to all that follow."""
        self.seq += 1
        text = f"event: {kind}\nid: {self.seq}\ndata: {msgspec.json.encode(data).decode()}\n\n".encode()
        self._sent[self.seq] = text
        self.send_raw(text)

    def send_raw(self, data: bytes) -> None:
        for follower in self._followers:
            follower.put_nowait(data)

    def beat(self) -> None:
        """A heartbeat with the verifier's time, to all that follow."""
        self.send_raw(f'event: heartbeat\ndata: {{"time_ms": {self.clock.ms}}}\n\n'.encode())

    def forget_events(self) -> None:
        """Something happens, and its event is pruned with all before it: nobody can go on from where they were."""
        self.seq += 1
        self._sent.clear()

    def hang_up(self) -> None:
        """End all streams.  What is sent from now on is heard by those that come back."""
        for follower in self._followers:
            follower.put_nowait(None)
        self._followers.clear()

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/.well-known/jwks.json", self._page),
                web.get("/api/v1/results", self._page),
                web.get("/api/v1/results/{jti}", self._result),
                web.get("/api/v1/incidents", self._page),
                web.post("/api/v1/incidents", self._report),
                web.get("/api/v1/incidents/{id}", self._incident),
                web.post("/api/v1/incidents/{id}/release", self._release),
                web.post("/api/v1/routers", self._register),
                web.get("/api/v1/events", self._events),
                web.post("/api/v1/answer-checks", self._offer),
                web.post("/api/v1/answer-checks/{id}", self._judge),
                web.get("/api/v1/suspicions", self._list_suspicions),
            ]
        )
        return app

    async def _page(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if (given := self.bodies.get(request.path)) is not None:
            return given() if callable(given) else web.Response(body=given)
        if request.path == "/api/v1/results" and self.on_page is not None:
            await self.on_page(request.query["after"])
        match request.path.rpartition("/")[2]:
            case "jwks.json":
                page: dict[str, Any] = {"keys": self.keys}
            case "results":
                # Who asks for one result asks for the number.
                self.loads += request.query["after"] == "" and request.query["limit"] != "1"
                page = self._results_page(request.query["after"])
            case _:
                page = {"incidents": self.incidents, "next": None}
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    async def _result(self, request: web.Request) -> web.Response:
        token = self.issued.get(request.match_info["jti"])
        return web.json_response({"token": token} if token else {}, status=200 if token else 404)

    def _results_page(self, after: str) -> dict[str, Any]:
        entries = [{"node": node, "token": token} for node, token in self.results.items()]
        following = None
        if self.page_size:
            entries = sorted(
                (each for each in entries if each["node"] > after), key=lambda each: each["node"]
            )
            entries = entries[: self.page_size]
            following = entries[-1]["node"] if len(entries) == self.page_size else None
        return {"results": entries, "seq": self.seq, "next": following}

    async def _report(self, request: web.Request) -> web.Response:
        if (given := self.bodies.get("reports")) is not None:
            return given()
        report = {**await request.json(), "by": request.headers.get("Authorization")}
        self.reports.append(report)
        incident = {"id": f"i-{len(self.reports)}", "node": report["node"], "state": "open"}
        self.incidents.append(incident)
        self.send("incident", node=report["node"], incident=incident["id"], state="open")
        return web.json_response({"id": incident["id"], "state": "open"}, status=201)

    async def _offer(self, request: web.Request) -> web.Response:
        check = self.offers(await request.json())
        if check is None:
            return web.json_response({"type": "challenges.exhausted"}, status=409)
        return web.json_response({"checks": [check]})

    async def _judge(self, request: web.Request) -> web.Response:
        self.given.setdefault(request.match_info["id"], []).append(await request.json())
        return web.json_response({"verdict": "agrees"})

    async def _list_suspicions(self, request: web.Request) -> web.Response:
        # One on a page: routers must ask on.
        left = sorted(
            (each for each in self.suspicions if each["node"] > request.query["after"]),
            key=lambda each: each["node"],
        )
        more = left[0]["node"] if len(left) > 1 else None
        return web.json_response({"suspicions": left[:1], "next": more})

    async def _register(self, request: web.Request) -> web.Response:
        self.registrations.append(await request.read())
        if (given := self.bodies.get("routers")) is not None:
            return given()
        if not self.registers:
            return web.json_response({"detail": "a person has removed this key"}, status=403)
        answer = {"name": "router-1", "registered_for_s": self.registered_for_s, "expires_in_s": 86400}
        return web.json_response(answer)

    async def _incident(self, request: web.Request) -> web.Response:
        found = [each for each in [*self.incidents, *self.ended] if each["id"] == request.match_info["id"]]
        return web.json_response(found[0] if found else {}, status=200 if found else 404)

    async def _release(self, request: web.Request) -> web.Response:
        step = {**await request.json(), "by": request.headers.get("Authorization")}
        self.steps.append(step)
        if self.on_release is not None:
            return await self.on_release(request)
        (incident,) = [each for each in self.incidents if each["id"] == request.match_info["id"]]
        self.release(incident)
        return web.json_response(incident)

    def release(self, incident: dict[str, Any]) -> None:
        """A person lets its node go."""
        self.incidents.remove(incident)
        self.ended.append(incident)
        incident["state"] = "released"
        self.send("incident", node=incident["node"], incident=incident["id"], state="released")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if (given := self.bodies.get(request.path)) is not None:
            return given()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.connections += 1
        for data in self._since(int(request.query["after"])):
            queue.put_nowait(data)
        self._followers.add(queue)
        try:
            while (data := await queue.get()) is not None:
                await response.write(data)
        finally:
            self._followers.discard(queue)
        return response

    def _since(self, after: int) -> list[bytes]:
        """What a stream begins with: the events after a number, or a reset."""
        missed = range(after + 1, self.seq + 1)
        if after > self.seq or any(number not in self._sent for number in missed):
            return [b"event: reset\ndata: {}\n\n"]
        return [self._sent[number] for number in missed]


@asynccontextmanager
async def serving(app: web.Application, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """An application on a free port; its URL.  A service of ours is behind its own socket, as in production."""
    if FRONT in app:
        async with listening(app, "127.0.0.1:0", shutdown_timeout=0.1) as listener:
            yield f"http://127.0.0.1:{listener.port}"
        return
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"{'http' if context is None else 'https'}://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def fake_verifier(clock: Moved) -> AsyncIterator[FakeVerifier]:
    verifier = FakeVerifier(clock)
    async with serving(verifier.app()) as url:
        verifier.url = url
        yield verifier
        verifier.hang_up()


class Certificate:
    """A TLS key with its self-signed certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        key = PrivateKey.generate()
        self.pin = hashlib.sha256(identity.spki(key)).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        crt, pem = folder / f"{name}.crt", folder / f"{name}.key"
        crt.write_bytes(create_certificate(key, "127.0.0.1"))
        pem.write_bytes(
            key.native.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(crt, pem)


VECTORS: dict[str, Any] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
    "model": "example/tiny",
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
CHAT: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "example/tiny",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def honest(request: web.Request) -> web.StreamResponse:
    await request.read()
    return web.json_response(VECTORS if request.path.endswith("/embeddings") else CHAT)


def answers(status: int = 200, body: bytes = b"{}", **headers: str) -> Handler:
    """A node that always gives this answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **given})

    return answer


class FakeNode:
    """A node over TLS; *act* may be changed at any time."""

    def __init__(self, name: str, certificate: Certificate) -> None:
        self.name = name
        self.pin = certificate.pin
        self.act: Handler = honest
        self.url = ""
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.bytes_read = 0

    @property
    def endpoint(self) -> dict[str, str]:
        return {"url": self.url, "spki_sha256": self.pin}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.act(request)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{rest:.*}", self.handle)
        return app


@asynccontextmanager
async def raw_server(
    act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """A server that speaks bytes; its URL as a node would give it."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await act(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.sleep(0)
