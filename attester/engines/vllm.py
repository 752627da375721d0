"""
vLLM: its worker walks the tensors it has loaded, called over vLLM's development endpoints.

Start it with ``--worker-extension-cls attester.engines.vllm_worker.WalkExtension`` and
``VLLM_SERVER_DEV_MODE=1`` on a loopback address: ``POST /collective_rpc`` calls the
extension's methods; ``GET /version`` and ``GET /v1/models`` describe the engine.  These
endpoints check no credentials, so they must not be reachable from other machines.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.engines.loopback import WalkBody, to_answer
from attester.errors import EngineError, WeightsError
from attester.evidence import WalkAnswer
from attester.weights.possession import WalkChallenge

_REQUEST_TIMEOUT_S = 10.0
_PREPARE_TIMEOUT_S = 300.0
_WALK_TIMEOUT_S = 600.0
_POLL_INTERVAL_S = 0.02


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


class _Results(msgspec.Struct, frozen=True):
    results: tuple[Any, ...]


class _Facts(msgspec.Struct, frozen=True):
    """The extension's description of its engine."""

    packages: dict[str, str]
    arguments: dict[str, str | int | bool | None]
    python: str = platform.python_version()
    driver: str | None = None


class VllmEngine:
    """The adapter of a vLLM server on this machine."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        folders: Mapping[str, Path],
        ignore: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._http = EngineHttp(http, url)
        self._folders = folders
        self._ignore = ignore or {}

    async def describe(self) -> Description:
        """As `Engine.describe`."""
        version = await self._http.request("GET", "/version", _Version, timeout_s=_REQUEST_TIMEOUT_S)
        models = await self._http.request("GET", "/v1/models", _Models, timeout_s=_REQUEST_TIMEOUT_S)
        described = await self._call("touchstone_describe", _REQUEST_TIMEOUT_S)
        lengths = [model.max_model_len for model in models.data if model.max_model_len]
        try:
            facts = msgspec.convert(described, _Facts)
            return msgspec.convert(
                {
                    "engine": "vllm",
                    "version": version.version,
                    "arguments": facts.arguments,
                    "packages": facts.packages,
                    "python": facts.python,
                    "context_length": min(lengths, default=0),
                    "features": ("chat", "completions"),
                    "driver": facts.driver,
                },
                Description,
            )
        except msgspec.ValidationError as error:
            raise EngineError(f"vLLM's description is malformed: {error}") from None

    async def prepare(self) -> str:
        """As `Engine.prepare`: the worker prepares views of all tensors and its kernel."""
        for model in self._folders:
            await self._call("touchstone_prepare", _PREPARE_TIMEOUT_S, **self._files(model))
        return f"vLLM at {self._http.url}"

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`.  The worker walks in a separate thread and continues to serve."""
        if model not in self._folders:
            raise WeightsError(f"the verifier asks about {model!r}, which is not in attester.toml")
        await self._call(
            "touchstone_walk",
            _REQUEST_TIMEOUT_S,
            **self._files(model),
            seed=challenge.seed,
            rows=challenge.rows,
            passes=challenge.passes,
        )
        try:
            async with asyncio.timeout(_WALK_TIMEOUT_S):
                found = await self._answer(challenge.seed)
        except TimeoutError:
            raise EngineError(f"vLLM's worker did not answer within {_WALK_TIMEOUT_S:.0f} s") from None
        if isinstance(found, dict) and found.keys() == {"error"}:
            raise EngineError(f"vLLM's worker cannot walk: {str(found['error'])[:200]}")
        try:
            return to_answer(msgspec.convert(found, WalkBody), challenge)
        except msgspec.ValidationError as error:
            raise EngineError(f"the answer of vLLM's worker to the walk is malformed: {error}") from None

    def _files(self, model: str) -> dict[str, object]:
        arguments: dict[str, object] = {"folder": str(self._folders[model])}
        if self._ignore.get(model):
            arguments["ignore"] = list(self._ignore[model])
        return arguments

    async def _answer(self, seed: str) -> Any:
        # Polled, because the worker cannot call the attester.
        while (found := await self._call("touchstone_answer", _REQUEST_TIMEOUT_S, seed=seed)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL_S)
        return found

    async def _call(self, method: str, timeout_s: float, **arguments: object) -> Any:
        body = {"method": method, "kwargs": arguments, "timeout": timeout_s}
        answer = await self._http.request("POST", "/collective_rpc", _Results, body, timeout_s=timeout_s)
        if len(answer.results) != 1:
            raise EngineError(
                f"vLLM has {len(answer.results)} workers, but walks over sharded workers are not supported. "
                "Use the adapter files, which the policy trusts less"
            )
        return answer.results[0]
