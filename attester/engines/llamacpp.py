"""
llama.cpp's server: described over ``GET /props``, walked by its GGUF file.

Its process has no way to be asked about the tensors it holds, so the evidence says
`source: file`.  What can be seen is checked: the file it serves must be the model's.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import msgspec

from attester.engines.base import Description
from attester.engines.files import FileEngine
from attester.engines.http import EngineHttp
from attester.engines.walker import Walker
from attester.errors import EngineError
from attester.evidence import WalkAnswer
from attester.version import installed_version
from attester.weights.possession import WalkChallenge

_ASK_S = 10.0


class _Generation(msgspec.Struct, frozen=True):
    n_ctx: int = 0


class _Props(msgspec.Struct, frozen=True):
    build_info: str
    model_path: str
    default_generation_settings: _Generation = _Generation()
    total_slots: int | None = None


class LlamaCppEngine:
    """A llama.cpp server on this machine."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        folders: Mapping[str, Path],
        walker: Walker,
        ignore: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._http = EngineHttp(http, url)
        self._folders = folders
        self._files = FileEngine(folders, walker, ignore)

    async def describe(self) -> Description:
        """As `Engine.describe`; raises `EngineError` where it serves a file that is no model's of ours."""
        props = await self._http.ask("GET", "/props", _Props, timeout_s=_ASK_S)
        try:
            served = await asyncio.to_thread(Path(props.model_path).resolve)
        except (OSError, ValueError, RuntimeError):
            raise EngineError("llama.cpp names a model's path that is none") from None
        if not any(served.is_relative_to(folder.resolve()) for folder in self._folders.values()):
            raise EngineError(f"llama.cpp serves {str(served)[:200]!r}, which is in no model's folder")
        # Evidence is printable ASCII; the manifest has the name as it is.
        shown = "".join(c if " " <= c <= "~" else "?" for c in served.name)
        try:
            return msgspec.convert(
                {
                    "engine": "llama.cpp",
                    "version": props.build_info,
                    "arguments": {"model": shown, "slots": props.total_slots},
                    "packages": {"touchstone": installed_version()},
                    "python": platform.python_version(),
                    "context_length": max(props.default_generation_settings.n_ctx, 0),
                    "features": ("chat", "completions"),
                },
                Description,
            )
        except msgspec.ValidationError as error:
            raise EngineError(f"llama.cpp describes itself wrongly: {error}") from None

    async def prepare(self) -> str:
        """As `Engine.prepare`."""
        return await self._files.prepare()

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """Walk the file."""
        return await self._files.walk(model, challenge)
