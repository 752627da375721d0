"""
Walks over files, for engines that cannot walk the tensors that they have loaded.

The evidence says so (`source: file`), and the default policy turns that into a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from attester.engines.base import Description
from attester.engines.http import EngineHttp
from attester.engines.naming import Introduction, introduce
from attester.engines.walker import Walker
from attester.errors import WeightsError
from attester.evidence import WalkAnswer
from attester.weights.folder import Folder, open_folder, restrict
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import TensorFiles


class FileWalker:
    """Walks the files in the folders of the models."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        walker: Walker,
        ignore: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._folders = folders
        self._ignore = ignore or {}
        self._walker = walker
        self._cached: dict[str, tuple[Folder, TensorFiles]] = {}

    async def prepare(self) -> str:
        """As `Engine.prepare`."""
        kernel = await asyncio.to_thread(self._walker.prepare)
        for model in self._folders:
            await asyncio.to_thread(self._tensors, model)
        return kernel.name

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`, over the files."""

        def work() -> WalkAnswer:
            return self._walker.answer(self._tensors(model, challenge.files), challenge, "file")

        return await asyncio.to_thread(work)

    def _tensors(self, model: str, names: tuple[str, ...] | None = None) -> TensorFiles:
        """The tensors of a model's files, or of those of *names*; headers are read again only if a file has changed."""
        if model not in self._folders:
            raise WeightsError(f"the verifier asks about {model!r}, which is not in attester.toml")
        folder = open_folder(self._folders[model], self._ignore.get(model, ()), everything=True)
        if names is not None:
            folder = restrict(folder, names)
        cached = self._cached.get(model)
        if cached is None or cached[0] != folder:
            cached = (folder, TensorFiles(folder))
            self._cached[model] = cached
        return cached[1]


class FileEngine:
    """
    The adapter for any engine: it walks the files, and names the engine by what the engine says of itself.

    Args:
        http: The engine.
        files: What walks.
        known: The engines that it may be, in the order in which they are asked.
        declared: The operator's word for an engine that says nothing of itself: name and version.
    """

    def __init__(
        self,
        http: EngineHttp,
        files: FileWalker,
        known: Sequence[Introduction],
        declared: tuple[str, str] | None = None,
    ) -> None:
        self._http = http
        self._files = files
        self._known = known
        self._declared = declared

    async def describe(self) -> Description:
        """As `Engine.describe`; raises `EngineError` also if nobody says what the engine is."""
        return await introduce(self._http, self._known, self._declared)

    async def prepare(self) -> str:
        """As `Engine.prepare`."""
        return await self._files.prepare()

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`, over the files."""
        return await self._files.walk(model, challenge)
