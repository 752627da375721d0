"""What the attester asks of an inference engine, whichever it is."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta, Struct

from attester.evidence import Line, Name, WalkAnswer
from attester.weights.possession import WalkChallenge


class Description(Struct, frozen=True, forbid_unknown_fields=True):
    """An engine's word about itself: everything that may change an answer."""

    engine: Name
    version: Name
    arguments: Annotated[dict[Name, Line | int | bool | None], Meta(max_length=256)]
    packages: Annotated[dict[Name, Name], Meta(max_length=512)]
    python: Name
    context_length: Annotated[int, Meta(ge=0, le=1 << 40)]
    features: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    container: Line | None = None
    driver: Line | None = None


class Engine(Protocol):
    """
    An adapter to one engine.

    A new engine is one file here: how to ask for its configuration, and how to walk the
    tensors that it has loaded.
    """

    async def describe(self) -> Description:
        """The running configuration.  Raises `EngineError`."""
        ...

    async def prepare(self) -> str:
        """
        Make everything ready that a walk needs, so that the verifier's clock measures the walk.

        Says with what it will walk.  Raises `EngineError` or `WeightsError`.
        """
        ...

    async def walk(self, model: str, challenge: WalkChallenge) -> WalkAnswer:
        """Answer a walk from the tensors that are loaded.  Raises `EngineError`."""
        ...
