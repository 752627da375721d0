"""
Walks over files, for engines that cannot walk the tensors that they have loaded.

The evidence says so (`source: file`), and the default policy turns that into a warning.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from pathlib import Path

from attester.engines.base import Description
from attester.engines.walker import Walker
from attester.errors import WeightsError
from attester.evidence import WalkAnswer
from attester.version import installed_version
from attester.weights.folder import Folder, open_folder
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import TensorFiles


class FileEngine:
    """The adapter without an engine: it walks the folders of the models."""

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

    async def describe(self) -> Description:
        """A description that says that no engine is known."""
        return Description(
            engine="none",
            version="0",
            arguments={},
            packages={"touchstone": installed_version()},
            python=platform.python_version(),
            context_length=0,
        )

    async def prepare(self) -> str:
        """As `Engine.prepare`."""
        kernel = await asyncio.to_thread(self._walker.prepare)
        for model in self._folders:
            await asyncio.to_thread(self._tensors, model)
        return kernel.name

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """As `Engine.walk`, over the files."""

        def work() -> WalkAnswer:
            return self._walker.answer(self._tensors(model), challenge, "file")

        return await asyncio.to_thread(work)

    def _tensors(self, model: str) -> TensorFiles:
        """The model's tensors; the headers are read again only if a file has changed."""
        if model not in self._folders:
            raise WeightsError(f"the verifier asks about {model!r}, which is not in attester.toml")
        folder = open_folder(self._folders[model], self._ignore.get(model, ()))
        cached = self._cached.get(model)
        if cached is None or cached[0] != folder:
            cached = (folder, TensorFiles(folder))
            self._cached[model] = cached
        return cached[1]
