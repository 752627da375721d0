"""Answers walks over tensors from any source, with one kernel and within a budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from attester.engines.budget import Budget
from attester.errors import EngineError
from attester.evidence import WalkAnswer, WalkSource
from attester.weights import possession
from attester.weights.kernels import Backend, Kernel, row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import Source


class Walker:
    """
    Answers walks on one device, one at a time.

    Args:
        device: ``cpu``, or torch's name of an accelerator.
        budget: Limits on the time of walks.
        backend: The library on the CPU; `None` for the fastest.
    """

    def __init__(
        self, device: str = "cpu", budget: Budget | None = None, backend: Backend | None = None
    ) -> None:
        self._device = device
        self._backend = backend
        self._budget = budget or Budget()
        # Two walks at once would only delay both.
        self._turn = threading.Lock()

    def prepare(self) -> Kernel:
        """
        Select and compile the kernel, so that it is ready when a call comes.

        Raises:
            WeightsError: no kernel is exact on this device.
        """
        return kernel(self._backend, self._device)

    def answer(self, tensors: Iterable[Source], challenge: WalkChallenge, source: WalkSource) -> WalkAnswer:
        """
        Answer *challenge* with a walk over *tensors*.

        Raises:
            WeightsError: the tensors cannot be read, or no kernel is exact.
            EngineError: a limit of the budget is reached, or the device fails.
        """
        ready = self.prepare()
        seed = bytes.fromhex(challenge.seed)
        words = [row_words(seed, row) for row in range(challenge.rows)]
        with self._turn, self._budget.walk() as check:
            start = time.monotonic_ns()
            try:
                answers = possession.walk(tensors, words, challenge.passes, ready, check)
            except (RuntimeError, MemoryError) as error:
                # The device fails: it is out of memory, lost, or busy.
                raise EngineError(f"the walk failed on {ready.name}: {str(error)[:200]}") from None
            micros = (time.monotonic_ns() - start) // 1000
        return WalkAnswer(answers=tuple(answers), source=source, device=ready.name, micros=micros)
