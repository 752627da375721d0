"""A node's model folders: their manifests, and answers to `read` challenges.  Slow work runs in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import structlog

from attester.config import AttesterConfig, ModelSection
from attester.errors import WeightsError
from attester.evidence import Manifest, ReadAnswer
from attester.places import Places
from attester.weights import possession
from attester.weights.cache import DigestCache
from attester.weights.complete import check_complete
from attester.weights.folder import Folder, open_folder, restrict
from attester.weights.hashing import Pace, check_algorithms
from attester.weights.manifest import measure
from attester.weights.possession import ReadChallenge
from attester.weights.quantisation import Quantisation, quantisation_of

_log = structlog.get_logger("attester")


class ModelFiles:
    """
    The folders that ``attester.toml`` names.

    Args:
        places: Where they are now; as configured if not given.
    """

    def __init__(
        self, config: AttesterConfig, cache: DigestCache | None = None, places: Places | None = None
    ) -> None:
        self._config = config
        self.places = places or Places(config.folders)
        """Where evidence is made from."""
        self._cache = cache or DigestCache()
        self._algorithms = check_algorithms(config.manifest.digests)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make running manifests end early, with `WeightsError`."""
        self._stopping.set()

    async def read(self, model: str, challenge: ReadChallenge) -> ReadAnswer:
        """Answer a `read` challenge from the files as they are now.  Raises `WeightsError`."""

        def work() -> ReadAnswer:
            start = time.monotonic_ns()
            folder = self._folder(model, everything=True)
            if challenge.files is not None:
                folder = restrict(folder, challenge.files)
            answer = possession.read(folder, bytes.fromhex(challenge.seed), challenge.windows)
            return ReadAnswer(answer=answer, micros=(time.monotonic_ns() - start) // 1000)

        return await asyncio.to_thread(work)

    async def list_files(self, model: str, root: Path) -> Folder:
        """The files of a model as they lie at *root*.  Raises `WeightsError`."""
        return await asyncio.to_thread(open_folder, root, self._section(model).left_out)

    async def manifest(self, model: str) -> Manifest:
        """The manifest of the folder that evidence is made from, as `manifest_of` gives it."""
        return await self.manifest_of(await self.list_files(model, self.places[model]))

    async def manifest_of(self, folder: Folder) -> Manifest:
        """
        The files and digests of a folder as it was listed.

        A file is read again only if it changed or its digest is old.  A `read` challenge shows
        what a stale cache could hide.

        Raises:
            WeightsError: it cannot be read, is not complete, or the attester is being stopped.
        """
        section = self._config.manifest

        def work() -> Manifest:
            limit = None if section.bytes_per_s is None else Pace(section.bytes_per_s)

            def pace(count: int) -> None:
                if self._stopping.is_set():
                    raise WeightsError("the attester is being stopped")
                if limit is not None:
                    limit(count)

            check_complete(folder)
            return measure(
                folder, self._algorithms, cache=self._cache, max_age_s=section.reread_s, pace=pace
            ).to_claim()

        return await asyncio.to_thread(work)

    async def try_manifest(self, model: str) -> Manifest | None:
        """The manifest of a model; `None`, with the reason in the log, if there is none."""
        try:
            return await self.manifest(model)
        except WeightsError as error:
            # The other models' evidence must not suffer from this one.
            _log.error("a model's files cannot be listed", model=model, why=str(error))
            return None

    async def quantisations(self) -> dict[str, Quantisation | None]:
        """By model, how its weights are quantised; `None` where the files do not say it, or cannot be read."""

        def work(model: str) -> Quantisation | None:
            try:
                return quantisation_of(self._folder(model))
            except WeightsError:
                # The manifest says why.
                return None

        return {model: await asyncio.to_thread(work, model) for model in self._config.models}

    def _folder(self, model: str, *, everything: bool = False) -> Folder:
        section = self._section(model)
        return open_folder(self.places[model], section.left_out, everything=everything)

    def _section(self, model: str) -> ModelSection:
        section = self._config.models.get(model)
        if section is None:
            raise WeightsError(f"the verifier asks about {model!r}, which is not in attester.toml")
        return section
