"""Run a service as a process."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web

from verifier.config import Home
from verifier.service.app import make_app, open_service
from verifier.service.front import FRONT, Front
from verifier.service.listener import Listener, fit_open_files
from verifier.service.protocol import FrontRunner, FrontServer
from verifier.service.tls import ServerTLS

_GC_THRESHOLDS: Final = (20_000, 50, 100)
_SHUTDOWN_S: Final = 5.0

_log = structlog.get_logger("verifier")


def run(home: Home) -> None:
    """Serve until SIGTERM or SIGINT.  Raises `ConfigError` if it cannot start."""
    _run(_serve(home))


async def _serve(home: Home) -> None:
    config = home.config()
    async with open_service(home, config) as service:
        # What is loaded by now stays for ever, and requests make no reference cycles: the collector need not
        # look at it every few of them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        await serve_app(make_app(service), home.path, service.issuer, "verifier")


def run_app(
    app: web.Application, folder: Path, url: str, name: str, *, on_hangup: Callable[[], None] | None = None
) -> None:
    """
    Serve *app* until SIGTERM or SIGINT, and call *on_hangup* at SIGHUP.

    Args:
        app: The application, with its `Front`.
        folder: The folder that the names of the TLS files are relative to.
        url: What the log says of where it is reached.
        name: What the log calls it.
        on_hangup: Reads again what else may change.

    Raises:
        ConfigError: it cannot start.
    """
    _run(serve_app(app, folder, url, name, on_hangup=on_hangup))


def _run(main: Coroutine[Any, Any, None]) -> None:
    # uvloop is faster.  Without it, everything works the same.
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def serve_app(
    app: web.Application, folder: Path, url: str, name: str, *, on_hangup: Callable[[], None] | None = None
) -> None:
    """Serve *app* until a signal, and then finish the requests in flight.  SIGHUP reads the TLS files again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    front = app[FRONT]
    tls = open_tls(front, folder)

    def read_again() -> None:
        if tls is not None:
            tls.reload()
        if on_hangup is not None:
            on_hangup()

    # Even if there is nothing to read again: the usual effect of this signal is the end of the process.
    loop.add_signal_handler(signal.SIGHUP, read_again)
    fit_open_files(front)
    try:
        async with listening(app, front.config.listen, tls=tls):
            _log.info("serving", role=name, listen=front.config.listen, url=url)
            await stop.wait()
    finally:
        _log.info("stopped", role=name)


def open_tls(front: Front, folder: Path) -> ServerTLS | None:
    """What the service speaks TLS with, if it does.  Raises `ConfigError` if a file cannot be used."""
    return ServerTLS(*front.config.files(folder)) if front.config.speaks_tls else None


@asynccontextmanager
async def listening(
    app: web.Application, listen: str, *, tls: ServerTLS | None = None, shutdown_timeout: float = _SHUTDOWN_S
) -> AsyncIterator[Listener]:
    """
    Serve *app* on ``HOST:PORT`` until the block ends.

    Raises:
        ConfigError: it cannot listen there.
    """
    front = app[FRONT]
    runner = FrontRunner(app, front, shutdown_timeout=shutdown_timeout)
    await runner.setup()
    try:
        assert isinstance(runner.server, FrontServer)
        listener = Listener(runner.server, front, tls)
        await listener.start(listen)
        try:
            yield listener
        finally:
            listener.close()
    finally:
        await runner.cleanup()
        front.refusals.flush()
