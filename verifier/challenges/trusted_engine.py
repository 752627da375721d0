"""
An engine that is trusted, on this machine: it answers the walks of a reference value of what it has loaded.

It is asked by the same adapters as on a node.  There is no second implementation of what it has loaded, so it is
asked everything twice: a device or a library that errs now and then is found, and one that always errs in the
same way is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import aiohttp

from attester.engines.base import Description, Engine
from attester.engines.loopback import LoopbackEngine
from attester.engines.vllm import VllmEngine
from attester.errors import EngineError, WeightsError
from attester.evidence import WalkAnswer
from attester.identity import read_private
from attester.weights.possession import WalkChallenge
from verifier.errors import ReferenceValueError
from verifier.references.measured import LoadedBy, Practice


class TrustedEngine:
    """
    One model of an engine.

    Args:
        engine: The adapter, which walks the model as the engine has loaded it.
        run: Awaits what the adapter does.
    """

    def __init__(self, engine: Engine, model: str, run: Callable[..., object]) -> None:
        self._engine = engine
        self._model = model
        self._run = run

    def prepare(self) -> None:
        """See that everything that is loaded can be walked.  Raises `ReferenceValueError`."""
        self._ask(self._engine.prepare())

    def walk(self, seed: bytes, rows: int, passes: int) -> Sequence[bytes]:
        """
        The answers to a challenge, 32 bytes for each row, from two walks that agree.

        Raises:
            ReferenceValueError: the engine cannot walk, or the two walks differ.
        """
        return self._twice(WalkChallenge(seed.hex(), rows, passes)).answers

    def measure(self, seed: bytes, rows: int, passes: int) -> tuple[LoadedBy, Sequence[bytes]]:
        """What the engine is, and its answers as by `walk`."""
        answer = self._twice(WalkChallenge(seed.hex(), rows, passes))
        said = self._ask(self._engine.describe())
        assert isinstance(said, Description)
        return LoadedBy(engine=said.engine, version=said.version, device=answer.device), answer.answers

    def check(self, practice: Practice | None) -> None:
        """
        Compare the engine with the one that was measured.

        Raises:
            ReferenceValueError: it gives other answers to the practice challenge, or the value has none.
        """
        if practice is None or [
            each.hex() for each in self.walk(bytes.fromhex(practice.seed), practice.rows, practice.passes)
        ] != list(practice.walk):
            raise ReferenceValueError(
                "this engine answers the practice challenge of the reference value otherwise than the engine that "
                "was measured, so it has loaded other bytes: another build, another device, or other weights"
            )

    def _twice(self, challenge: WalkChallenge) -> WalkAnswer:
        first, second = (self._ask(self._engine.walk(self._model, challenge)) for _ in range(2))
        assert isinstance(first, WalkAnswer)
        assert isinstance(second, WalkAnswer)
        if first.answers != second.answers:
            raise ReferenceValueError(
                "the engine answers the same walk in two ways, so its device or a library computes wrongly, or its "
                "weights change. Nothing of this group was stored"
            )
        return first

    def _ask(self, asked: object) -> object:
        try:
            return self._run(asked)
        except (EngineError, WeightsError) as error:
            raise ReferenceValueError(f"the engine: {error}") from None


def chosen_engine(
    url: str | None, secret: Path | None, model: str, folder: Path
) -> AbstractContextManager[TrustedEngine | None]:
    """`trusted_engine` if a URL was given.  Raises `ReferenceValueError` if there is a secret alone."""
    if url is None and secret is not None:
        raise ReferenceValueError("--engine-secret needs --engine")
    return nullcontext() if url is None else trusted_engine(url.rstrip("/"), secret, model, folder)


@contextmanager
def trusted_engine(
    url: str, secret: Path | None, model: str, folder: Path, *, as_loaded: bool = True
) -> Iterator[TrustedEngine]:
    """
    The engine at *url*: vLLM, or one that serves the two resources of `attester.engines.host`.

    Args:
        secret: The file of the secret that such an engine shares; `None` for vLLM.
        as_loaded: Whether its walks are over what it has loaded, as it is, or over the published tensors.

    Raises:
        KeyFileError: the secret cannot be read.
        ReferenceValueError: the engine cannot walk all that it has loaded.
    """
    shared = None if secret is None else read_private(secret).decode("ascii", errors="replace").strip()
    walked = {model} if as_loaded else frozenset[str]()
    # A loop of its own: minting computes between two questions, in a loop that must not wait for itself.
    with ThreadPoolExecutor(1, "trusted-engine") as thread, asyncio.Runner() as runner:

        def run(asked: object) -> object:
            return thread.submit(runner.run, asked).result()  # type: ignore[arg-type]  # a coroutine

        async def opened() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(trust_env=False)

        http = run(opened())
        assert isinstance(http, aiohttp.ClientSession)
        try:
            engine: Engine = (
                VllmEngine(http, url, {model: folder}, as_loaded=walked)
                if shared is None
                else LoopbackEngine(http, url, shared, walked)
            )
            trusted = TrustedEngine(engine, model, run)
            trusted.prepare()
            yield trusted
        finally:
            run(http.close())
