"""What the agent sends: the evidence of all kinds, and the answers to challenges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from attester.collectors import COLLECTORS
from attester.collectors.base import Answers, EvidenceSession, Sources
from attester.collectors.platform import loaded_as
from attester.config import AttesterConfig
from attester.cose import PrivateKey
from attester.engines.base import Description, Engine
from attester.errors import AttesterError, ConfigError
from attester.evidence import Benchmark, Exposure, ReadAnswer, WalkAnswer
from attester.holding import Claims, Holding
from attester.kinds import write_submod
from attester.model_files import ModelFiles
from attester.places import Places
from attester.revisions import Recognised, Revision, recognise
from attester.weights.cache import DigestCache
from attester.weights.possession import ModelChallenge
from attester.weights.quantisation import conclude

_log = structlog.get_logger("attester")


class Collector:
    """Collects for one node.  `files` replaces the reader of the configured folders."""

    def __init__(
        self,
        config: AttesterConfig,
        engine: Engine,
        tls_key: PrivateKey,
        kid: bytes,
        *,
        cache: DigestCache | None = None,
        benchmarks: Callable[[], Mapping[int, Benchmark]] = dict,
        files: ModelFiles | None = None,
        exposure: Callable[[], Awaitable[Exposure | None]] | None = None,
        places: Places | None = None,
    ) -> None:
        self._models = config.models
        self._engine = engine
        self._files = files or ModelFiles(config, cache, places)
        self._sources = sources = Sources(
            config=config, engine=engine, files=self._files, tls_key=tls_key, kid=kid, benchmarks=benchmarks,
            exposure=exposure,
        )  # fmt: skip
        self._collectors = [make(sources) for make in COLLECTORS.values()]

    async def describe(self) -> Description:
        """What the engine says about itself.  Raises `EngineError`."""
        return await self._engine.describe()

    async def check_quantisation(self) -> str:
        """
        How the weights are quantised, as the evidence says it.

        Raises:
            ConfigError: ``attester.toml`` declares something else than the weights are.
            EngineError: the engine does not answer.
        """
        declared = self._sources.config.capabilities.quantisation
        found = await self._files.quantisations()
        said, conflict = conclude(declared, found, loaded_as(await self.describe()))
        if conflict is not None:
            raise ConfigError(conflict)
        known = any(each is not None for each in found.values())
        return said if declared is None and not known else f"{said}, as the files of the weights say"

    async def prepare(self) -> None:
        """
        Have manifests and the engine's kernel ready before the first call comes.

        Raises:
            WeightsError, EngineError: why a call could not be answered either.
        """
        ready = await self._engine.prepare()
        listed = [model for model in self._models if await self._files.try_manifest(model) is not None]
        _log.info("ready for calls", walks_with=ready, models=listed)

    async def recognise(
        self, model: str, revisions: Sequence[Revision], folder: Path | None = None
    ) -> Recognised:
        """
        Which of *revisions* a model's folder is; *folder* instead of the configured one.

        Raises:
            WeightsError: it cannot be listed or read.
        """
        listed = await self._files.list_files(model, folder or self._files.places.configured[model])
        return recognise(await self._files.manifest_of(listed), revisions)

    def watch(self, node: str, verifier: Claims, **more: Any) -> Holding:
        """What watches the folders that this evidence is made from; *more* as for `Holding`."""
        return Holding(self._sources.config, node, self._files, self._engine, verifier, **more)

    def use_keys(self, tls_key: PrivateKey, kid: bytes) -> None:
        """Collect for these keys from now on: the engine's TLS key, and the thumbprint of the node key."""
        self._sources.tls_key, self._sources.kid = tls_key, kid

    def stop(self) -> None:
        """End work that reads files in threads; callers that wait for it get an error."""
        self._files.stop()

    async def answer(self, challenge: ModelChallenge) -> tuple[ReadAnswer | None, WalkAnswer | None]:
        """
        Answer the challenges about one model, `read` and `walk` at the same time.

        An answer that cannot be given is left out: one missing answer is better than two.
        """
        read, walk = await asyncio.gather(self._try_read(challenge), self._try_walk(challenge))
        return read, walk

    async def _try_read(self, challenge: ModelChallenge) -> ReadAnswer | None:
        try:
            return None if challenge.read is None else await self._files.read(challenge.model, challenge.read)
        except AttesterError as error:
            _log.error("a read cannot be answered", model=challenge.model, why=str(error))
            return None
        except Exception:  # noqa: BLE001
            # An unexpected error in one answer must not prevent the other one.
            _log.exception("a read cannot be answered", model=challenge.model)
            return None

    async def _try_walk(self, challenge: ModelChallenge) -> WalkAnswer | None:
        try:
            return (
                None if challenge.walk is None else await self._engine.walk(challenge.model, challenge.walk)
            )
        except AttesterError as error:
            _log.error("a walk cannot be answered", model=challenge.model, why=str(error))
            return None
        except Exception:  # noqa: BLE001
            _log.exception("a walk cannot be answered", model=challenge.model)
            return None

    async def submods(self, nonce: bytes, answers: Answers) -> dict[str, Any]:
        """The claims-sets of all submodules of the evidence for a session, by name."""
        session = EvidenceSession(nonce, answers)
        found: dict[str, Any] = {}
        for collector in self._collectors:
            for name, claims in (await collector.collect(session)).items():
                found[name] = write_submod(claims)
        return found
