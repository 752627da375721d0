"""
vLLM: its workers walk the tensors they have loaded, called over vLLM's development endpoints.

Start it with ``--worker-extension-cls attester.engines.vllm_worker.WalkExtension`` and
``VLLM_SERVER_DEV_MODE=1`` on a loopback address: ``POST /collective_rpc`` calls the extension's
methods on all workers; ``GET /server_info``, ``/version`` and ``/v1/models`` describe the engine.  These
endpoints check no credentials, so they must not be reachable from other machines.

A call that fails on one worker leaves the answers of the others unread, and vLLM then gives each later
caller the answer of the call before.  So nothing is called before `GET /server_info` has said that the
workers have the extension, no call has a time limit inside vLLM, and each answer names its call.
"""

from __future__ import annotations

import asyncio
import platform
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.engines.loopback import WalkBody, to_answer
from attester.errors import EngineError, WeightsError
from attester.evidence import WalkAnswer
from attester.weights.folder import open_folder
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import tensor_files

EXTENSION = "attester.engines.vllm_worker.WalkExtension"
PROTOCOL = 1
"""Of the extension's methods; as in `vllm_worker`, which is not imported here because it needs the engine."""

# A call waits for the step that the engine is computing, and the first `/server_info` looks at the whole machine.
_REQUEST_TIMEOUT_S = 60.0
_PREPARE_TIMEOUT_S = 600.0
_WALK_TIMEOUT_S = 600.0
_POLL_INTERVAL_S = 0.02


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


class _Parallel(msgspec.Struct, frozen=True):
    worker_extension_cls: str = ""
    world_size: int = 1


class _Config(msgspec.Struct, frozen=True):
    parallel_config: _Parallel


class _ServerInfo(msgspec.Struct, frozen=True):
    vllm_config: _Config


class _Sleeping(msgspec.Struct, frozen=True):
    is_sleeping: bool


class _Results(msgspec.Struct, frozen=True):
    results: tuple[Any, ...]


class _Said(msgspec.Struct, frozen=True):
    """What each method of the extension returns, beside its own fields."""

    call: str
    rank: int
    error: str | None = None
    unjoined: bool = False
    ended: bool = True


class _Facts(msgspec.Struct, frozen=True):
    """The extension's description of its engine."""

    protocol: int
    packages: dict[str, str]
    arguments: dict[str, str | int | bool | None]
    python: str = platform.python_version()
    driver: str | None = None


class _UnjoinedError(EngineError):
    """The workers are not in our group: vLLM was started again."""


class VllmEngine:
    """The adapter of a vLLM server on this machine."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        folders: Mapping[str, Path],
        ignore: Mapping[str, tuple[str, ...]] | None = None,
        as_loaded: Collection[str] = (),
    ) -> None:
        self._http = EngineHttp(http, url)
        self._folders = folders
        self._ignore = ignore or {}
        self._as_loaded = as_loaded
        self._workers = 0
        """How many workers answer a call; 0 until the server has said that they have the extension."""
        self._group: str | None = None
        """Our name of the group that the workers have joined."""
        # The workers do one thing at a time.
        self._turn = asyncio.Lock()

    async def describe(self) -> Description:
        """As `Engine.describe`."""
        version = await self._http.request("GET", "/version", _Version, timeout_s=_REQUEST_TIMEOUT_S)
        models = await self._http.request("GET", "/v1/models", _Models, timeout_s=_REQUEST_TIMEOUT_S)
        # Asked each time: vLLM may have been started again with other arguments.
        await self._find_workers()
        described = await self._call("touchstone_describe")
        self._check(described)
        lengths = [model.max_model_len for model in models.data if model.max_model_len]
        try:
            facts = msgspec.convert(described[0], _Facts)
            if facts.protocol != PROTOCOL:
                raise EngineError(
                    f"the extension in vLLM's environment speaks protocol {facts.protocol}, and this attester "
                    f"{PROTOCOL}. Install the same release in both"
                )
            return msgspec.convert(
                {
                    "engine": "vllm",
                    "version": version.version,
                    "arguments": {**facts.arguments, "workers": self._workers},
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
        """As `Engine.prepare`: the workers form a group, select a kernel, and map and read all tensors once."""
        async with self._turn:
            await self._join()
            for model in self._folders:
                task = f"check {model}"
                await self._start("touchstone_check", task=task, **self._files(model))
                await self._finish("touchstone_answer", _PREPARE_TIMEOUT_S, task=task)
        workers = f", {self._workers} workers" if self._workers > 1 else ""
        return f"vLLM at {self._http.url}{workers}"

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`.  The workers walk in threads of their own and continue to serve."""
        if model not in self._folders:
            raise WeightsError(f"the verifier asks about {model!r}, which is not in attester.toml")
        async with self._turn:
            if self._group is None:
                await self._join()
            asked = {
                **await asyncio.to_thread(self._files, model, challenge.files),
                "seed": challenge.seed,
                "rows": challenge.rows,
                "passes": challenge.passes,
            }
            try:
                await self._check_awake()
                await self._start("touchstone_walk", **asked)
            except _UnjoinedError:
                await self._join()
                await self._start("touchstone_walk", **asked)
            found = await self._finish("touchstone_answer", _WALK_TIMEOUT_S, task=challenge.seed)
        try:
            source = "loaded" if model in self._as_loaded else "engine"
            return to_answer(msgspec.convert(found | {"source": source}, WalkBody), challenge)
        except msgspec.ValidationError as error:
            raise EngineError(f"the answer of vLLM's worker to the walk is malformed: {error}") from None

    def _files(self, model: str, names: tuple[str, ...] | None = None) -> dict[str, object]:
        """Where the workers find the published tensors: in the files of *names*, or in all of the folder."""
        arguments: dict[str, object] = {"folder": str(self._folders[model])}
        ignore = list(self._ignore.get(model, ()))
        if names is not None:
            # Workers of any version know names that they leave out.
            present = tensor_files(open_folder(self._folders[model], ignore))
            ignore += [file.name for file in present if file.name not in names]
        if ignore:
            arguments["ignore"] = ignore
        if model in self._as_loaded:
            arguments["as_loaded"] = True
        return arguments

    async def _find_workers(self) -> None:
        """Find out, without a call, how many workers there are, and that they have the extension."""
        info = await self._http.request(
            "GET", "/server_info?config_format=json", _ServerInfo, timeout_s=_REQUEST_TIMEOUT_S
        )
        parallel = info.vllm_config.parallel_config
        # An extension of the operator's own may inherit from ours; it keeps the name, so that it is known here.
        if parallel.worker_extension_cls.rpartition(".")[2] != EXTENSION.rpartition(".")[2]:
            self._workers = 0
            raise EngineError(
                f"vLLM's workers do not have our extension ({parallel.worker_extension_cls[:100] or 'none'}). "
                f"Start vLLM with --worker-extension-cls {EXTENSION}"
            )
        self._workers = parallel.world_size

    async def _join(self) -> None:
        await self._find_workers()
        self._group = None
        group = secrets.token_hex(8)
        await self._finish("touchstone_leave", _PREPARE_TIMEOUT_S)
        # From here on the workers know when they are put to sleep; before, only the server does.
        self._check(await self._call("touchstone_join", group=group))
        self._group = group
        await self._check_awake()
        await self._finish("touchstone_answer", _PREPARE_TIMEOUT_S, task=group)

    async def _check_awake(self) -> None:
        said = await self._http.request("GET", "/is_sleeping", _Sleeping, timeout_s=_REQUEST_TIMEOUT_S)
        if said.is_sleeping:
            raise EngineError(
                "vLLM sleeps or is paused, so it serves nothing, and its weights may not be on the device. "
                "Wake it: POST /wake_up, or POST /resume"
            )

    async def _start(self, method: str, **arguments: object) -> None:
        started = await self._call(method, group=self._group, **arguments)
        if any(each.get("unjoined") for each in started):
            self._group = None
            raise _UnjoinedError("vLLM was started again; try again")
        # A worker that has begun ends by itself if another one has not.
        self._check(started)

    async def _finish(self, method: str, limit_s: float, **arguments: object) -> dict[str, Any]:
        """Call *method* until every worker says that it has ended; returns the first one's answer."""
        try:
            async with asyncio.timeout(limit_s):
                # Polled, because a worker cannot call the attester.
                while True:
                    said = await self._call(method, **arguments)
                    if all(each.get("ended", True) for each in said):
                        break
                    await asyncio.sleep(_POLL_INTERVAL_S)
        except TimeoutError:
            self._group = None
            raise EngineError(f"vLLM's worker did not answer within {limit_s:.0f} s") from None
        self._check(said)
        return {key: value for key, value in said[0].items() if key not in _Said.__struct_fields__}

    async def _call(self, method: str, **arguments: object) -> list[dict[str, Any]]:
        """Call *method* on all workers; returns the answer of each, by rank."""
        call = secrets.token_hex(8)
        # Without a time limit: one that vLLM reached would leave answers unread.
        body = {"method": method, "kwargs": {**arguments, "call": call}}
        answer = await self._http.request(
            "POST", "/collective_rpc", _Results, body, timeout_s=_REQUEST_TIMEOUT_S
        )
        if len(answer.results) != self._workers:
            raise EngineError(
                f"vLLM has {self._workers} workers, and {len(answer.results)} answered {method}"
            )
        try:
            said = [msgspec.convert(each, _Said) for each in answer.results]
        except msgspec.ValidationError as error:
            raise EngineError(f"the answer of vLLM's worker to {method} is malformed: {error}") from None
        if any(each.call != call for each in said):
            raise EngineError(
                "vLLM gives the answer of another call: an earlier call, of whoever made it, has failed on one "
                "worker, and vLLM did not read the rest. Start vLLM again"
            )
        return list(answer.results)

    def _check(self, said: list[dict[str, Any]]) -> None:
        """Raise the error of the lowest rank that has one; then the workers join a new group."""
        failed = [each for each in said if each.get("error") is not None]
        if failed:
            # What fails on one worker may leave a message between two others.
            self._group = None
            where = f" {failed[0]['rank']}" if self._workers > 1 else ""
            raise EngineError(f"vLLM's worker{where} cannot walk: {str(failed[0]['error'])[:250]}")
