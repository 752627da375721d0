"""
Engines that cannot walk what they have loaded: the attester walks the files instead.

The evidence says so (`source: file`), and the default policy makes a warning of it.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from attester.engines.base import Description
from attester.errors import WeightsError
from attester.evidence import WalkAnswer
from attester.weights import possession
from attester.weights.kernels import kernel
from attester.weights.manifest import open_folder
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import TensorFiles


class FileEngine:
    """No engine at all, but the folders its models came from."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    async def describe(self) -> Description:
        """Nothing is known of an engine, and the evidence says that too."""
        return Description(
            engine="none",
            version="0",
            arguments={},
            packages={"touchstone": metadata.version("touchstone")},
            python=platform.python_version(),
            context_length=0,
        )

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """Walk the files."""
        if model not in self._folders:
            raise WeightsError(f"asked about {model!r}, which is not in attester.toml")
        return await asyncio.to_thread(walk_files, self._folders[model], challenge)


def walk_files(folder: Path, challenge: WalkChallenge) -> WalkAnswer:
    """
    Answer a walk from the files of *folder*.

    Raises:
        WeightsError: they cannot be read or walked.
    """
    start = time.monotonic_ns()
    tensors = TensorFiles(open_folder(folder))
    seed = bytes.fromhex(challenge.seed)
    words = [possession.row_words(seed, row) for row in range(challenge.rows)]
    answers = possession.walk(tensors, words, challenge.passes, kernel())
    micros = (time.monotonic_ns() - start) // 1000
    return WalkAnswer(answers=tuple(answers), source="file", device="cpu", micros=micros)
