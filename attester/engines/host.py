"""
HTTP resources for a Python engine's own process, so that it walks the tensors it has loaded.

    from attester.engines.host import HostedEngine, serve_in_thread

    def tensors():
        return LiveTensors(published, [state_of(module)])

    serve_in_thread(HostedEngine(describe, {"org/model": tensors}), secret, port=8000)

Each walk calls `tensors`, which returns what is loaded at that moment: `live.LiveTensors` over
what `module_state.state_of` gives, or any other `Source`s in walking order.  If loading cast or repacked
the weights, it returns `as_loaded.AsLoaded` over the same state, for a reference value of this build.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import Meta

from attester.engines.as_loaded import AsLoaded
from attester.engines.base import Description
from attester.engines.walker import Walker
from attester.errors import AttesterError
from attester.evidence import WalkAnswer
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import Source

_MAX_BODY_BYTES = 4096


class _WalkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=128)]
    seed: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rows: Annotated[int, Meta(ge=1, le=2048)]
    passes: Annotated[int, Meta(ge=1, le=64)]


@dataclass(frozen=True)
class HostedEngine:
    """The engine's side: its description, and the tensors of its models."""

    describe: Callable[[], Description]
    models: Mapping[str, Callable[[], Iterable[Source]]]
    walker: Walker = field(default_factory=Walker)

    def app(self, secret: str) -> web.Application:
        """An application with the two resources that `engines.loopback` requests; they need *secret*."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_require_secret(secret)])
        app.router.add_get("/touchstone/engine", self._engine)
        app.router.add_post("/touchstone/walk", self._walk)
        return app

    async def _engine(self, _: web.Request) -> web.Response:
        return _json(msgspec.to_builtins(self.describe()))

    async def _walk(self, request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read(), type=_WalkBody)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _json({"error": str(error)}, 400)
        if body.model not in self.models:
            return _json({"error": f"there is no model {body.model!r}"}, 404)
        challenge = WalkChallenge(body.seed, body.rows, body.passes)
        try:
            answer = await asyncio.to_thread(_answer, self.walker, self.models[body.model], challenge)
        except AttesterError as error:
            return _json({"error": str(error)}, 503)
        return _json(
            {
                "answers": [each.hex() for each in answer.answers],
                "device": answer.device,
                "micros": answer.micros,
                "source": answer.source,
            }
        )


def _answer(walker: Walker, load: Callable[[], Iterable[Source]], challenge: WalkChallenge) -> WalkAnswer:
    tensors = load()
    return walker.answer(tensors, challenge, "loaded" if isinstance(tensors, AsLoaded) else "engine")


def _require_secret(secret: str) -> Middleware:
    expected = f"Bearer {secret}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, expected):
            raise web.HTTPUnauthorized
        return await handler(request)

    return check


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def serve_in_thread(
    hosted: HostedEngine, secret: str, *, port: int, host: str = "127.0.0.1"
) -> threading.Thread:
    """
    Serve the two resources from a thread, for engines without an event loop.

    The kernel is ready when this returns.

    Raises:
        WeightsError: no kernel is exact on the walker's device.
        OSError, OverflowError: the port is in use, or is not a port number.
    """
    hosted.walker.prepare()
    failures: list[BaseException] = []
    ready = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(hosted.app(secret), access_log=None)
        try:
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
        except Exception as error:  # noqa: BLE001
            # The caller's thread raises it again.
            failures.append(error)
            return
        finally:
            ready.set()
        await asyncio.Event().wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="touchstone", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    return thread
