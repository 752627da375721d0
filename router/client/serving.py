"""`touchstone client serve` as a process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from msgspec import structs

from attester.errors import ConfigError
from attester.settings import read_toml
from router.client.config import ClientConfig
from router.client.kept import KeptFolder
from router.client.proxy import Proxy
from router.client.session import AsyncClient
from router.client.trust import load_trust

_MAX_KEY: Final = 8192
_SHUTDOWN_S: Final = 5.0
_log = structlog.get_logger("client")


def read_config(path: Path | None, told: Mapping[str, Any]) -> ClientConfig:
    """
    A configuration from a file, if there is one, and from options, which come first.

    Raises:
        ConfigError: it cannot be used.
    """
    config = (
        ClientConfig()
        if path is None
        else read_toml(path, ClientConfig, "an editor: see docs/checking-answers.md")
    )
    try:
        return msgspec.convert({**structs.asdict(config), **told}, ClientConfig)
    except ValueError as error:
        # msgspec's errors are such ones too.
        raise ConfigError(str(error)) from None


def read_key(path: Path) -> str:
    """The key in a file.  Raises `ConfigError`: it cannot be read, or is no key."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read as a key") from None
    if not text or len(text) > _MAX_KEY or any(not "!" <= each <= "~" for each in text):
        raise ConfigError(f"{path} has no key")
    return text


async def run(config: ClientConfig, base: Path) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Args:
        base: The folder that files of the configuration are relative to.

    Raises:
        ConfigError, TrustError: it cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = AsyncClient(
        trust=load_trust(base / config.trust),
        key=None if config.key_file is None else read_key(base / config.key_file),
        ca_file=None if config.ca_file is None else base / config.ca_file,
        kept=None
        if config.folder is None
        else KeptFolder(base / config.folder, has_bodies=config.keep_bodies),
    )
    caller_key = None if config.caller_key_file is None else read_key(base / config.caller_key_file)
    proxy = Proxy(
        client,
        caller_key=caller_key,
        passes_streams=config.pass_streams,
        max_in_flight=config.max_in_flight,
        max_body=config.max_body_bytes,
    )
    async with client:
        runner = web.AppRunner(
            proxy.app(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        host, _, port = config.listen.rpartition(":")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
            _log.info("serving", role="client", listen=config.listen, router=client.trust.router_url)
            await stop.wait()
        except OSError as error:
            raise ConfigError(f"cannot listen on {config.listen}: {error.strerror}") from None
        finally:
            await runner.cleanup()
