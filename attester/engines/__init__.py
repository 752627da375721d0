"""One adapter for each inference engine: it reads the configuration and answers walks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

    from attester.config import AttesterConfig, Home
    from attester.engines.base import Engine


def open_engine(
    config: AttesterConfig,
    http: aiohttp.ClientSession,
    home: Home,
    places: Mapping[str, Path] | None = None,
) -> Engine:
    """
    Open the adapter that the configuration names.

    Args:
        places: Where the models' folders are, by model; the configured ones if not given.

    Raises:
        ConfigError: no adapter has that name.
    """
    # Imported here, because an engine's own process imports this package and needs none of them.
    from attester.config import ADAPTERS
    from attester.engines.budget import Budget
    from attester.engines.files import FileEngine, FileWalker
    from attester.engines.http import EngineHttp
    from attester.engines.llamacpp import LlamaCppEngine
    from attester.engines.loopback import LoopbackEngine
    from attester.engines.naming import introductions
    from attester.engines.vllm import VllmEngine
    from attester.engines.walker import Walker
    from attester.errors import ConfigError

    section = config.engine
    folders = config.folders if places is None else places
    ignore = {name: model.left_out for name, model in config.models.items()}
    as_loaded = {name for name, model in config.models.items() if model.walk == "as-loaded"}
    files = FileWalker(folders, Walker(section.device, Budget(section.walk_s, section.hour_s)), ignore)
    engine = EngineHttp(http, section.url)
    match section.adapter:
        case "loopback":
            return LoopbackEngine(http, section.url, home.engine_secret(), as_loaded)
        case "vllm":
            return VllmEngine(http, section.url, folders, ignore, as_loaded)
        case "llama.cpp":
            return LlamaCppEngine(engine, folders, files)
        case "files":
            known = (LlamaCppEngine(engine, folders, files).introduce, *introductions(engine))
            declared = None if section.name is None else (section.name, section.version or "")
            return FileEngine(engine, files, known, declared)
        case name:
            raise ConfigError(f"there is no adapter {name[:40]!r}. Choose one of {', '.join(ADAPTERS)}")
