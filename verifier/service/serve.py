"""Run a service as a process."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog
from aiohttp import web

from attester.errors import ConfigError
from verifier.config import Home
from verifier.service.app import make_app, open_service
from verifier.service.keeper import keeper_process

_GC_THRESHOLDS: Final = (20_000, 50, 100)

_log = structlog.get_logger("verifier")


def run(home: Home, keeper: Sequence[str] = ()) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Args:
        keeper: Arguments of the process that keeps the pool filled; empty if there is none.

    Raises:
        ConfigError: It cannot start.
    """
    _run(_serve(home, keeper))


async def _serve(home: Home, keeper: Sequence[str]) -> None:
    config = home.config()
    async with open_service(home, config) as service:
        # What is loaded by now stays for ever, and requests make no reference cycles: the collector need not
        # look at it every few of them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        async with keeper_process(keeper):
            await serve_app(make_app(service), config.service.listen, service.issuer, "verifier")


def run_app(
    app: web.Application, listen: str, url: str, name: str, *, on_hangup: Callable[[], None] | None = None
) -> None:
    """
    Serve *app* until SIGTERM or SIGINT, and call *on_hangup* at SIGHUP.

    Raises:
        ConfigError: it cannot start.
    """
    _run(serve_app(app, listen, url, name, on_hangup=on_hangup))


def _run(main: Coroutine[Any, Any, None]) -> None:
    # uvloop is faster.  Without it, everything works the same.
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def serve_app(
    app: web.Application, listen: str, url: str, name: str, *, on_hangup: Callable[[], None] | None = None
) -> None:
    """Serve *app* on ``HOST:PORT`` until a signal, and then finish the requests in flight."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if on_hangup is not None:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    host, _, port = listen.rpartition(":")
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        _log.info("serving", role=name, listen=listen, url=url)
        await stop.wait()
    except OSError as error:
        raise ConfigError(f"cannot listen on {listen}: {error.strerror}") from None
    finally:
        await runner.cleanup()
        _log.info("stopped", role=name)
