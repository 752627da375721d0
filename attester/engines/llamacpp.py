"""
llama.cpp's server: ``GET /props`` describes it, and its GGUF file is walked.

Its process offers no access to the tensors that it has loaded, so the evidence says
`source: file`.  The adapter checks that the server's file is in the folder of a configured model.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from attester.engines.base import Description
from attester.engines.files import FileWalker
from attester.engines.http import EngineHttp
from attester.engines.naming import ask
from attester.errors import EngineError, WeightsError
from attester.evidence import WalkAnswer
from attester.places import Places
from attester.version import installed_version
from attester.weights.folder import open_folder
from attester.weights.possession import WalkChallenge

_REQUEST_TIMEOUT_S = 10.0


_SAMPLING: Final = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma", "xtc_probability",
    "xtc_threshold", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau",
    "mirostat_eta", "samplers",
)  # fmt: skip
"""The server's sampling defaults that change answers, as ``/props`` names them."""


class _Generation(msgspec.Struct, frozen=True):
    n_ctx: int = 0
    params: dict[str, Any] = {}


class _Props(msgspec.Struct, frozen=True):
    build_info: str
    model_path: str
    default_generation_settings: _Generation = _Generation()
    total_slots: int | None = None
    chat_template: str = ""


def _prompting(props: _Props) -> dict[str, str]:
    """Digests of the server's chat template and of its sampling defaults; what it does not tell is left out."""
    params = props.default_generation_settings.params
    defaults = {name: params[name] for name in _SAMPLING if name in params}
    found = {
        "chat_template": props.chat_template.encode(),
        "sampling": msgspec.json.encode(defaults, order="deterministic") if defaults else b"",
    }
    return {name: f"sha256:{sha256(data).hexdigest()}" for name, data in found.items() if data}


class LlamaCppEngine:
    """A llama.cpp server on this machine."""

    def __init__(self, http: EngineHttp, folders: Mapping[str, Path], files: FileWalker) -> None:
        self._http = http
        self._folders = folders
        self._files = files

    async def describe(self) -> Description:
        """As `Engine.describe`; raises `EngineError` if the server's file is not a configured model's."""
        return await self._describe(
            await self._http.request("GET", "/props", _Props, timeout_s=_REQUEST_TIMEOUT_S)
        )

    async def introduce(self) -> Description | None:
        """As `describe`; `None` if the engine is another one."""
        props = await ask(self._http, "/props", _Props)
        return None if props is None else await self._describe(props)

    async def _describe(self, props: _Props) -> Description:
        try:
            served = await asyncio.to_thread(Path(props.model_path).resolve)
            is_known = await asyncio.to_thread(self._holds, served)
        except (OSError, ValueError, RuntimeError):
            raise EngineError("llama.cpp names a model path that is not valid") from None
        if not is_known:
            raise EngineError(
                f"llama.cpp serves {str(served)[:200]!r}, which is not in the folder of any model in attester.toml"
            )
        # This claim must be printable ASCII; the manifest has the exact name.
        printable = "".join(c if " " <= c <= "~" else "?" for c in served.name)
        try:
            return msgspec.convert(
                {
                    "engine": "llama.cpp",
                    "version": props.build_info,
                    "arguments": {
                        "model": printable,
                        "slots": props.total_slots,
                        **_prompting(props),
                    },
                    "packages": {"touchstone": installed_version()},
                    "python": platform.python_version(),
                    "context_length": max(props.default_generation_settings.n_ctx, 0),
                    "features": ("chat", "completions"),
                },
                Description,
            )
        except msgspec.ValidationError as error:
            raise EngineError(f"llama.cpp's description is malformed: {error}") from None

    def _holds(self, served: Path) -> bool:
        """Whether a file is one of a model's: below its path, or linked to or listed there, as caches do."""
        for folder in self._all_folders():
            if served.is_relative_to(folder.resolve()):
                return True
            with suppress(WeightsError):
                if any(Path(file.path).resolve() == served for file in open_folder(folder).files):
                    return True
        return False

    def _all_folders(self) -> list[Path]:
        if isinstance(self._folders, Places):
            return [folder for model in self._folders for folder in self._folders.all_of(model)]
        return list(self._folders.values())

    async def prepare(self) -> str:
        """As `Engine.prepare`."""
        return await self._files.prepare()

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`, over the file."""
        return await self._files.walk(model, challenge)
