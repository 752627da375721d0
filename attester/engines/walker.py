"""Answering walks: tensors from anywhere, one kernel made ready before a call comes, and a budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Literal

from attester.engines.budget import Budget
from attester.errors import EngineError
from attester.evidence import WalkAnswer
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
        budget: What walks may cost.
        backend: The library on the CPU; the fastest there is if not given.
    """

    def __init__(
        self, device: str = "cpu", budget: Budget | None = None, backend: Backend | None = None
    ) -> None:
        self._device = device
        self._backend = backend
        self._budget = budget or Budget()
        # Two walks at once would only make both late.
        self._turn = threading.Lock()

    def prepare(self) -> Kernel:
        """
        Choose, compile and prove the kernel, so that a call finds it ready.

        Raises:
            WeightsError: no kernel is exact on this device.
        """
        return kernel(self._backend, self._device)

    def answer(
        self, tensors: Iterable[Source], challenge: WalkChallenge, source: Literal["engine", "file"]
    ) -> WalkAnswer:
        """
        Walk *tensors*.

        Raises:
            WeightsError: they cannot be read, or no kernel is exact.
            EngineError: the budget is spent.
        """
        ready = self.prepare()
        seed = bytes.fromhex(challenge.seed)
        words = [row_words(seed, row) for row in range(challenge.rows)]
        with self._turn, self._budget.walk() as check:
            start = time.monotonic_ns()
            try:
                answers = possession.walk(tensors, words, challenge.passes, ready, check)
            except (RuntimeError, MemoryError) as error:
                # A device's own: out of memory, lost, busy with something else.
                raise EngineError(f"the walk failed on {ready.name}: {str(error)[:200]}") from None
            micros = (time.monotonic_ns() - start) // 1000
        return WalkAnswer(answers=tuple(answers), source=source, device=ready.name, micros=micros)
