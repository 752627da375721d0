"""
`touchstone attester front`: the endpoint of a node, in a process of its own.

It holds the TLS key and the engine's key, and not the node's: the attester that runs beside it keeps the list of
routers in the home up to date, and this process reads it there.  Every second it looks at its files again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from attester import cose, usage_counts
from attester.config import AttesterConfig, Home
from attester.errors import AttesterError, ConfigError, KeyFileError
from attester.front.clients import ASKED, LIST, Clients
from attester.front.engine import EnginePool
from attester.front.forward import Forwarder
from attester.front.ledger import Ledger
from attester.front.listener import Listener, Registry
from attester.front.operations import methods
from attester.front.protocol import FrontProtocol
from attester.front.tls import server_context

_LOOK_S: Final = 1.0
_ASK_S: Final = 5.0
"""The list is asked for at most this often because of somebody who is not on it."""
_SHUTDOWN_S: Final = 10.0

_log = structlog.get_logger("front")


def place_of(config: AttesterConfig) -> tuple[str, int]:
    """Host and port to listen on; an empty host means every address."""
    if config.front.listen is not None:
        host, _, port = config.front.listen.rpartition(":")
        return host.strip("[]"), int(port)
    return "", urlsplit(config.serve.url).port or 443


def engine_url(config: AttesterConfig) -> str:
    """The engine's base URL."""
    return config.front.engine_url or config.engine.url


class Front:
    """
    The endpoint by what the home has.

    Args:
        home: The attester's home.
        config: Its configuration.
        now: Seconds since 1970.

    Raises:
        AttesterError: the home cannot be used.
    """

    def __init__(self, home: Home, config: AttesterConfig, *, now: Callable[[], float] = time.time) -> None:
        self._home = home
        self._config = config
        self.now = now
        self._clients = Clients(home, config.front.routers_max_age_s)
        self._clients.refresh(now())
        self._files = (home.path / "tls.crt", home.path / "tls.key")
        self._seen = self._state()
        self._asked_at = -_ASK_S
        self.registry = Registry(config.front.connections, self._who, self._ask)
        self._context = self._make_context()
        self._key = home.tls_key()

    @property
    def key(self) -> cose.PrivateKey:
        """The endpoint's key, with which it also signs what it has served."""
        return self._key

    @property
    def context(self) -> ssl.SSLContext:
        """TLS for the next connection."""
        return self._context

    @property
    def routers(self) -> int:
        """How many routers may use the node now."""
        return self._clients.routers

    def look(self) -> None:
        """Take up what has changed in the home: the TLS key and its certificate, and the list of routers."""
        is_listed_anew = self._clients.refresh(self.now())
        state = self._state()
        if not is_listed_anew and state == self._seen:
            return
        has_new_key = state != self._seen
        self._seen = state
        if is_listed_anew:
            _log.info("the list of routers has changed", routers=self.routers)
            self.registry.drop_unlisted()
        try:
            context, key = self._make_context(), self._home.tls_key()
        except (ConfigError, KeyFileError) as error:
            _log.error("the TLS files are refused; the previous ones stay in force", why=str(error))
            return
        self._context, self._key = context, key
        if has_new_key:
            _log.info("tls.key and tls.crt were read again")

    def _make_context(self) -> ssl.SSLContext:
        return server_context(*self._files, self._clients.names, self._note_failure)

    def _note_failure(self, error: ssl.SSLError) -> None:
        is_unknown = isinstance(error, ssl.SSLCertVerificationError)
        self.registry.refuse("unknown" if is_unknown else "tls", is_unknown=is_unknown)

    def _who(self, certificate: bytes) -> str | None:
        return self._clients.names.get(certificate)

    def _ask(self) -> None:
        """Somebody came who is not on the list: let the attester fetch it, unless that was just asked for."""
        tick = time.monotonic()
        if tick - self._asked_at < _ASK_S:
            return
        self._asked_at = tick
        _log.info("a client is not on the list of routers", routers=self.routers)
        with contextlib.suppress(OSError):
            (self._home.path / ASKED).touch()

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state_of(path) for path in self._files)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextlib.asynccontextmanager
async def serving(
    home: Home, config: AttesterConfig, **options: Callable[[], float]
) -> AsyncIterator[tuple[Front, int]]:
    """
    Serve while the context lasts; yields the front and its port.

    Raises:
        AttesterError: the home cannot be used, or it cannot listen there.
    """
    front = Front(home, config, **options)
    key = home.engine_key(config)
    allowed = methods(config.engine.adapter, config.front.operations)
    engine = EnginePool(engine_url(config), config.front.answer_s)
    usage = home.path / usage_counts.FOLDER
    counter = _counter(usage)
    ledger = Ledger(config.front, lambda: front.key, lambda: int(front.now() * 1000), counter=counter)
    forwarder = Forwarder(engine, methods=allowed, config=config.front, key=key, ledger=ledger, usage=usage)
    listener = Listener(
        lambda: front.context,
        lambda: FrontProtocol(forwarder, front.registry, config.front),
        front.registry,
        handshake_s=config.front.head_s,
    )
    await listener.start(*place_of(config))
    looking = asyncio.create_task(_look(front), name="look")
    try:
        yield front, listener.port
    finally:
        looking.cancel()
        listener.close()
        # Those without a request end now, and the others have some time.
        await front.registry.end_all(_SHUTDOWN_S)
        engine.close()
        if counter is not None:
            counter.close()


def _counter(folder: Path) -> usage_counts.UsageCounter | None:
    """What counts for claims; `None` if the home cannot be written: serving goes on, and nothing is claimed."""
    try:
        return usage_counts.UsageCounter(folder)
    except ConfigError as error:
        _log.warning("what is served will not be claimed", why=str(error))
        return None


async def _look(front: Front) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            front.look()
        except Exception:  # noqa: BLE001
            # The outermost loop: an unexpected error must not leave an old list in force without a word.
            _log.exception("the home cannot be looked at")


def start(home: Home) -> None:
    """`run` as a process.  Raises `AttesterError`."""
    # uvloop is faster.  Without it, everything works the same.
    try:
        import uvloop
    except ImportError:
        asyncio.run(run(home))
    else:
        uvloop.run(run(home))


async def run(home: Home) -> None:
    """
    Serve until SIGTERM or SIGINT; on SIGHUP the configuration is read anew.

    Raises:
        AttesterError: the home cannot be used.
    """
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    config = home.config()
    while not stop.is_set():
        again.clear()
        async with serving(home, config) as (front, port):
            _log.info(
                "serving", url=config.serve.url, port=port, engine=engine_url(config), routers=front.routers
            )
            if not front.routers:
                _log.warning(
                    "no router is known yet; the attester fetches the list",
                    file=str(home.path / LIST), start="touchstone attester run",
                )  # fmt: skip
            while not stop.is_set():
                waits = [asyncio.create_task(each.wait()) for each in (stop, again)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
                if stop.is_set():
                    break
                again.clear()
                try:
                    config = home.config()
                    break
                except AttesterError as error:
                    _log.error("nothing is read anew; the front goes on as before", why=str(error))
