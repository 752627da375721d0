"""One adapter per inference engine: its configuration, and a walk over what it has loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attester.engines.base import Engine
from attester.engines.budget import Budget
from attester.engines.files import FileEngine
from attester.engines.llamacpp import LlamaCppEngine
from attester.engines.loopback import LoopbackEngine
from attester.engines.vllm import VllmEngine
from attester.engines.walker import Walker
from attester.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

    from attester.config import AttesterConfig, Home


ADAPTERS = ("loopback", "vllm", "llama.cpp", "files")


def open_engine(config: AttesterConfig, http: aiohttp.ClientSession, home: Home) -> Engine:
    """
    The adapter that the configuration names.

    Raises:
        ConfigError: there is none of that name.
    """
    section = config.engine
    folders = {name: Path(model.dir) for name, model in config.models.items()}
    ignore = {name: model.ignore for name, model in config.models.items()}
    walker = Walker(section.device, Budget(section.walk_s, section.hour_s))
    match section.adapter:
        case "loopback":
            return LoopbackEngine(http, section.url, home.engine_secret())
        case "vllm":
            return VllmEngine(http, section.url, folders, ignore)
        case "llama.cpp":
            return LlamaCppEngine(http, section.url, folders, walker, ignore)
        case "files":
            return FileEngine(folders, walker, ignore)
        case name:
            raise ConfigError(f"no adapter {name[:40]!r}; there are {', '.join(ADAPTERS)}")
