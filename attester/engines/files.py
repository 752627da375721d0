"""
Engines that cannot walk what they have loaded: the attester walks the files instead.

The evidence says so (`source: file`), and the default policy makes a warning of it.
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
    """No engine at all, but the folders its models came from."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        walker: Walker,
        ignore: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._folders = folders
        self._ignore = ignore or {}
        self._walker = walker
        self._known: dict[str, tuple[Folder, TensorFiles]] = {}

    async def describe(self) -> Description:
        """Nothing is known of an engine, and the evidence says that too."""
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
        """Walk the files."""

        def work() -> WalkAnswer:
            return self._walker.answer(self._tensors(model), challenge, "file")

        return await asyncio.to_thread(work)

    def _tensors(self, model: str) -> TensorFiles:
        """The model's tensors; headers are read again only where a file changed."""
        if model not in self._folders:
            raise WeightsError(f"asked about {model!r}, which is not in attester.toml")
        folder = open_folder(self._folders[model], self._ignore.get(model, ()))
        known = self._known.get(model)
        if known is None or known[0] != folder:
            known = (folder, TensorFiles(folder))
            self._known[model] = known
        return known[1]
