"""The interface between the attester and an inference engine."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta, Struct

from attester.evidence import Line, Name, WalkAnswer
from attester.weights.possession import WalkChallenge


class Description(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an engine describes itself: everything that may change its output."""

    engine: Name
    version: Name
    arguments: Annotated[dict[Name, Line | int | bool | None], Meta(max_length=256)]
    """`chat_template` and `sampling` are digests of what it renders and samples by, if it tells (docs/drift.md)."""
    packages: Annotated[dict[Name, Name], Meta(max_length=512)]
    python: Name
    context_length: Annotated[int, Meta(ge=0, le=1 << 40)]
    features: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    container: Line | None = None
    driver: Line | None = None


class Engine(Protocol):
    """
    The adapter of one engine.

    It reads the engine's configuration, and walks the tensors that the engine has loaded.
    CONTRIBUTING.md lists the files of a new engine.
    """

    async def describe(self) -> Description:
        """Read the running configuration.  Raises `EngineError`."""
        ...

    async def prepare(self) -> str:
        """
        Prepare everything that a walk needs, so that a call measures only the walk.

        Returns a description of what will walk, for the log.  Raises `EngineError` or `WeightsError`.
        """
        ...

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """Answer a walk from the loaded tensors.  Raises `EngineError`."""
        ...
