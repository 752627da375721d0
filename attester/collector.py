"""
Collecting: what the agent puts into evidence, and its answers to challenges.

Everything slow runs in threads, so that calls are answered while files are hashed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from attester import identity
from attester.config import AttesterConfig
from attester.cose import PrivateKey
from attester.engines.base import Description, Engine
from attester.errors import AttesterError, WeightsError
from attester.evidence import (
    Benchmark,
    Capabilities,
    Endpoint,
    Inventory,
    Manifest,
    ReadAnswer,
    Runtime,
    WalkAnswer,
    endpoint_statement,
    model_submod,
    write_submod,
)
from attester.gpu.inventory import inventory, visible
from attester.weights import possession
from attester.weights.cache import DigestCache
from attester.weights.folder import Folder, open_folder
from attester.weights.hashing import Pace, check_algorithms
from attester.weights.manifest import measure
from attester.weights.possession import ModelChallenge, ReadChallenge

_log = structlog.get_logger("attester")


class Collector:
    """Collects for one node: platform claims, manifests, answers."""

    def __init__(
        self,
        config: AttesterConfig,
        engine: Engine,
        tls_key: PrivateKey,
        kid: bytes,
        cache: DigestCache | None = None,
        benchmarks: Callable[[], Mapping[int, Benchmark]] = dict,
    ) -> None:
        self._config = config
        self._engine = engine
        self._tls_key = tls_key
        self._kid = kid
        self._cache = cache or DigestCache()
        self._benchmarks = benchmarks
        self._inventory: tuple[Inventory, ...] = ()
        self._stopping = threading.Event()
        self._algorithms = check_algorithms(config.manifest.digests)

    async def describe(self) -> Description:
        """The engine's word about itself.  Raises `EngineError`."""
        return await self._engine.describe()

    async def prepare(self) -> None:
        """
        Have manifests and the engine's kernel ready before the first call comes.

        Raises:
            WeightsError, EngineError: why a call could not be answered either.
        """
        ready = await self._engine.prepare()
        listed = [model for model in self._config.models if await self._try_manifest(model) is not None]
        _log.info("ready for calls", walks_with=ready, models=listed)

    def stop(self) -> None:
        """End what reads files in threads; whoever waits for it is told."""
        self._stopping.set()

    async def answer(self, challenge: ModelChallenge) -> tuple[ReadAnswer | None, WalkAnswer | None]:
        """
        Answer what is asked about one model, `read` and `walk` at the same time.

        What cannot be answered is left out: one missing answer is better than two.
        """
        read, walk = await asyncio.gather(self._try_read(challenge), self._try_walk(challenge))
        return read, walk

    async def _try_read(self, challenge: ModelChallenge) -> ReadAnswer | None:
        try:
            return None if challenge.read is None else await self.read(challenge.model, challenge.read)
        except AttesterError as error:
            _log.error("a read cannot be answered", model=challenge.model, why=str(error))
            return None
        except Exception:  # noqa: BLE001
            # One answer lost must not be all of them.
            _log.exception("a read cannot be answered", model=challenge.model)
            return None

    async def _try_walk(self, challenge: ModelChallenge) -> WalkAnswer | None:
        try:
            if challenge.walk is None:
                return None
            return await self._engine.walk(challenge.model, challenge.walk)
        except AttesterError as error:
            _log.error("a walk cannot be answered", model=challenge.model, why=str(error))
            return None
        except Exception:  # noqa: BLE001
            _log.exception("a walk cannot be answered", model=challenge.model)
            return None

    async def read(self, model: str, challenge: ReadChallenge) -> ReadAnswer:
        """Answer a `read` from the files as they are now."""

        def work() -> ReadAnswer:
            start = time.monotonic_ns()
            answer = possession.read(self._folder(model), bytes.fromhex(challenge.seed), challenge.windows)
            return ReadAnswer(answer=answer, micros=(time.monotonic_ns() - start) // 1000)

        return await asyncio.to_thread(work)

    async def manifest(self, model: str) -> Manifest:
        """
        The model's files and digests; read again only where a file changed, or its digest is old.

        What a stale cache could hide, a `read` challenge brings to light.
        """
        section = self._config.manifest

        def work() -> Manifest:
            polite = None if section.bytes_per_s is None else Pace(section.bytes_per_s)

            def pace(count: int) -> None:
                if self._stopping.is_set():
                    raise WeightsError("the attester is ending")
                if polite is not None:
                    polite(count)

            folder = self._folder(model)
            return measure(
                folder, self._algorithms, cache=self._cache, max_age_s=section.reread_s, pace=pace
            ).to_claim()

        return await asyncio.to_thread(work)

    async def _try_manifest(self, model: str) -> Manifest | None:
        """The manifest of a model; `None`, with the reason in the log, where there is none."""
        try:
            return await self.manifest(model)
        except WeightsError as error:
            # One model's trouble is not the others': what can be said is said.
            _log.error("a model's files cannot be listed", model=model, why=str(error))
            return None

    async def submods(
        self, nonce: bytes, answers: Mapping[str, tuple[ReadAnswer | None, WalkAnswer | None]]
    ) -> dict[str, Any]:
        """All submodules of the evidence for a session."""
        description = await self.describe()
        runtime = Runtime(
            engine=description.engine,
            version=description.version,
            arguments=description.arguments,
            packages=description.packages,
            python=description.python,
            kernel=f"{platform.system()} {platform.release()}"[:128],
            container=description.container,
            driver=description.driver,
        )
        declared = self._config.capabilities
        capabilities = Capabilities(
            hardware_class=declared.hardware_class,
            memory_bytes=declared.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            context_length=description.context_length,
            quantisation=declared.quantisation,
            features=description.features,
            region=declared.region,
        )
        found = {
            "platform": write_submod(
                {"endpoint": self.endpoint(nonce), "runtime": runtime, "capabilities": capabilities}
            )
        }
        for number, claims in (await self._devices()).items():
            found[f"gpu/{number}"] = write_submod(claims)
        for model in self._config.models:
            read, walk = answers.get(model, (None, None))
            manifest = await self._try_manifest(model)
            of_model: dict[str, Any] = {} if manifest is None else {"manifest": manifest}
            if read is not None:
                of_model["read"] = read
            if walk is not None:
                of_model["walk"] = walk
            found[model_submod(model)] = write_submod(of_model)
        return found

    async def _devices(self) -> dict[int, dict[str, Any]]:
        """Inventory and benchmark of each device that there is something to say of."""
        if not self._inventory:
            # Cards do not go while a process runs; a driver may come late.
            chosen = self._config.gpu.devices
            self._inventory = await asyncio.to_thread(inventory, visible() if chosen is None else chosen)
        found: dict[int, dict[str, Any]] = {
            number: {"inventory": device} for number, device in enumerate(self._inventory)
        }
        try:
            runs = self._benchmarks()
        except AttesterError as error:
            _log.error("a benchmark run cannot be read", why=str(error))
            runs = {}
        for number, benchmark in runs.items():
            found.setdefault(number, {})["benchmark"] = benchmark
        return found

    def endpoint(self, nonce: bytes) -> Endpoint:
        """Where the node serves, with its TLS key's word for it."""
        return Endpoint(
            url=self._config.serve.url,
            spki=identity.spki(self._tls_key),
            signature=self._tls_key.sign(endpoint_statement(self._config.serve.url, nonce, self._kid)),
        )

    def _folder(self, model: str) -> Folder:
        section = self._config.models.get(model)
        if section is None:
            raise WeightsError(f"asked about {model!r}, which is not in attester.toml")
        return open_folder(Path(section.dir), section.ignore)
