"""One adapter per inference engine: its configuration, and a walk over what it has loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attester.engines.base import Engine
from attester.engines.files import FileEngine
from attester.engines.loopback import LoopbackEngine
from attester.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

    from attester.config import AttesterConfig, Home


def open_engine(config: AttesterConfig, http: aiohttp.ClientSession, home: Home) -> Engine:
    """
    The adapter that the configuration names.

    Raises:
        ConfigError: there is none of that name.
    """
    match config.engine.adapter:
        case "loopback":
            return LoopbackEngine(http, config.engine.url, home.engine_secret())
        case "files":
            return FileEngine({name: Path(model.dir) for name, model in config.models.items()})
        case name:
            raise ConfigError(f"no adapter {name[:40]!r}; there are loopback and files")
