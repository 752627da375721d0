"""
Collecting: what the agent puts into evidence, and its answers to challenges.

Everything slow runs in threads, so that calls are answered while files are hashed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from attester import identity
from attester.config import AttesterConfig
from attester.cose import PrivateKey
from attester.engines.base import Description, Engine
from attester.errors import AttesterError, WeightsError
from attester.evidence import (
    Capabilities,
    Endpoint,
    Manifest,
    ReadAnswer,
    Runtime,
    WalkAnswer,
    endpoint_statement,
    model_submod,
    write_submod,
)
from attester.weights import possession
from attester.weights.manifest import Folder, measure, open_folder
from attester.weights.possession import ModelChallenge, ReadChallenge

_log = structlog.get_logger("attester")

_Stat = tuple[tuple[str, int, int, int, int, int], ...]


class Collector:
    """Collects for one node: platform claims, manifests, answers."""

    def __init__(self, config: AttesterConfig, engine: Engine, tls_key: PrivateKey, kid: bytes) -> None:
        self._config = config
        self._engine = engine
        self._tls_key = tls_key
        self._kid = kid
        self._manifests: dict[str, tuple[_Stat, Manifest]] = {}

    async def describe(self) -> Description:
        """The engine's word about itself.  Raises `EngineError`."""
        return await self._engine.describe()

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

    async def _try_walk(self, challenge: ModelChallenge) -> WalkAnswer | None:
        try:
            if challenge.walk is None:
                return None
            return await self._engine.walk(challenge.model, challenge.walk)
        except AttesterError as error:
            _log.error("a walk cannot be answered", model=challenge.model, why=str(error))
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
        The model's files and digests; read again only where a file's place or times changed.

        What a stale cache could hide, a `read` challenge brings to light.
        """

        def work() -> Manifest:
            folder = self._folder(model)
            stat = _stat_of(folder)
            known = self._manifests.get(model)
            if known is None or known[0] != stat:
                known = (stat, measure(folder))
                self._manifests[model] = known
            return known[1]

        return await asyncio.to_thread(work)

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
        for model in self._config.models:
            read, walk = answers.get(model, (None, None))
            claims: dict[str, Any] = {"manifest": await self.manifest(model)}
            if read is not None:
                claims["read"] = read
            if walk is not None:
                claims["walk"] = walk
            found[model_submod(model)] = write_submod(claims)
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
        return open_folder(Path(section.dir))


def _stat_of(folder: Folder) -> _Stat:
    found = []
    for file in folder.files:
        try:
            status = file.path.stat()
        except OSError as error:
            raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
        found.append(
            (file.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )
    return tuple(found)
