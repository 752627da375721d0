"""
The extension of a vLLM worker: ``--worker-extension-cls attester.engines.vllm_worker.WalkExtension``.

vLLM mixes this class into its worker, and ``collective_rpc`` calls the methods, which therefore
return JSON values.  One loop in the worker handles requests and calls in turn.  So a walk runs
in a separate thread and stream, and `touchstone_answer` is polled for its answer.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attester.engines.live import LiveTensors, confirm
from attester.engines.module_state import state_of
from attester.engines.walker import Walker
from attester.errors import AttesterError
from attester.version import DISTRIBUTION
from attester.weights.folder import open_folder
from attester.weights.layout import TensorInfo
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import TensorFiles

_PACKAGES = {
    **{name: name for name in ("vllm", "torch", "transformers", "flashinfer-python", "flash-attn", "triton")},
    "touchstone": DISTRIBUTION,
}
"""The names of packages in evidence, and their distributions."""
_ARGUMENTS = ("dtype", "quantization", "trust_remote_code", "revision", "max_model_len", "enforce_eager")


class WalkExtension:
    """A mixin for vLLM's worker; it uses the worker's `get_model`, `device` and `vllm_config`."""

    def touchstone_describe(self) -> dict[str, Any]:
        """Versions and arguments that change results."""
        packages = {}
        for name, distribution in _PACKAGES.items():
            try:
                packages[name] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        config = self.vllm_config.model_config  # type: ignore[attr-defined]  # vLLM's worker has it
        arguments = {name: _plain(getattr(config, name, None)) for name in _ARGUMENTS}
        return {"packages": packages, "arguments": arguments, "python": platform.python_version()}

    def touchstone_prepare(self, folder: str, ignore: Sequence[str] = ()) -> None:
        """Map the module to the published layout, compare samples with the files, and select a kernel."""
        confirm(self._touchstone_tensors(folder, ignore), TensorFiles(open_folder(Path(folder), ignore)))
        self._touchstone_walker().prepare()

    def touchstone_walk(
        self, folder: str, seed: str, rows: int, passes: int, ignore: Sequence[str] = ()
    ) -> None:
        """Start a walk; `touchstone_answer` returns its answer or error."""
        answers: dict[str, Any] = self.__dict__.setdefault("_touchstone_answers", {})
        # There is one walk at a time, so older answers that nobody fetched are dropped.
        answers.clear()

        def work() -> None:
            try:
                tensors = self._touchstone_tensors(folder, ignore)
                answer = self._touchstone_walker().answer(
                    tensors, WalkChallenge(seed, rows, passes), "engine"
                )
            except (AttesterError, RuntimeError) as error:
                answers[seed] = {"error": str(error)[:200]}
                return
            except Exception as error:  # noqa: BLE001
                # The thread's outermost handler: without it, the caller would wait until its timeout.
                answers[seed] = {"error": f"{type(error).__name__}: {error}"[:200]}
                return
            answers[seed] = {
                "answers": [each.hex() for each in answer.answers],
                "device": answer.device,
                "micros": answer.micros,
            }

        threading.Thread(target=work, name="touchstone-walk", daemon=True).start()

    def touchstone_answer(self, seed: str) -> dict[str, Any] | None:
        """The answer to the walk of *seed*; `None` while the walk runs."""
        found: dict[str, Any] | None = self.__dict__.get("_touchstone_answers", {}).pop(seed, None)
        return found

    def _touchstone_tensors(self, folder: str, ignore: Sequence[str]) -> LiveTensors:
        known: dict[str, tuple[TensorInfo, ...]] = self.__dict__.setdefault("_touchstone_published", {})
        if folder not in known:
            known[folder] = TensorFiles(open_folder(Path(folder), ignore)).infos
        # Mapped for each walk: weights may have been replaced, or an adapter loaded, since the last one.
        return LiveTensors(known[folder], [state_of(self.get_model())])  # type: ignore[attr-defined]

    def _touchstone_walker(self) -> Walker:
        walker: Walker | None = self.__dict__.get("_touchstone_walker_instance")
        if walker is None:
            walker = Walker(str(self.device))  # type: ignore[attr-defined]
            self.__dict__["_touchstone_walker_instance"] = walker
        return walker


def _plain(value: object) -> str | int | bool | None:
    return value if value is None or isinstance(value, (bool, int)) else str(value)[:512]
