"""
What runs inside a vLLM worker: ``--worker-extension-cls attester.engines.vllm_worker.WalkExtension``.

vLLM mixes this class into its worker; the methods are called over ``collective_rpc``, and
so give JSON.  A worker serves requests and calls by turns in one loop, so a walk runs in a
thread of its own and in a stream of its own, and its answer is asked for afterwards.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attester.engines.live import LiveTensors
from attester.engines.walker import Walker
from attester.errors import AttesterError
from attester.weights.folder import open_folder
from attester.weights.layout import TensorInfo
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import TensorFiles

_PACKAGES = ("vllm", "torch", "transformers", "flashinfer-python", "flash-attn", "triton", "touchstone")
_ARGUMENTS = ("dtype", "quantization", "trust_remote_code", "revision", "max_model_len", "enforce_eager")


class WalkExtension:
    """Mixed into vLLM's worker, whose `get_model`, `device` and `vllm_config` it uses."""

    def touchstone_describe(self) -> dict[str, Any]:
        """Versions and arguments that change results."""
        packages = {}
        for name in _PACKAGES:
            try:
                packages[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        config = self.vllm_config.model_config  # type: ignore[attr-defined]  # vLLM's worker has it
        arguments = {name: _plain(getattr(config, name, None)) for name in _ARGUMENTS}
        return {"packages": packages, "arguments": arguments, "python": platform.python_version()}

    def touchstone_prepare(self, folder: str, ignore: Sequence[str] = ()) -> None:
        """Map the module back to the published layout, and prove a kernel on the device."""
        self._touchstone_tensors(folder, ignore)
        self._touchstone_walker().prepare()

    def touchstone_walk(
        self, folder: str, seed: str, rows: int, passes: int, ignore: Sequence[str] = ()
    ) -> None:
        """Begin a walk; `touchstone_answer` gives what comes of it."""
        answers: dict[str, Any] = self.__dict__.setdefault("_touchstone_answers", {})
        # One walk is asked at a time: what was never fetched is not kept for ever.
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
                # The thread's outermost: unsaid, the asker would wait for its whole time-out.
                answers[seed] = {"error": f"{type(error).__name__}: {error}"[:200]}
                return
            answers[seed] = {
                "answers": [each.hex() for each in answer.answers],
                "device": answer.device,
                "micros": answer.micros,
            }

        threading.Thread(target=work, name="touchstone-walk", daemon=True).start()

    def touchstone_answer(self, seed: str) -> dict[str, Any] | None:
        """The answer to the walk of *seed*; `None` while it is under way."""
        found: dict[str, Any] | None = self.__dict__.get("_touchstone_answers", {}).pop(seed, None)
        return found

    def _touchstone_tensors(self, folder: str, ignore: Sequence[str]) -> LiveTensors:
        known: dict[str, tuple[TensorInfo, ...]] = self.__dict__.setdefault("_touchstone_published", {})
        if folder not in known:
            known[folder] = TensorFiles(open_folder(Path(folder), ignore)).infos
        # The module as it is now: weights may have been replaced, or an adapter loaded, since the last walk.
        return LiveTensors(known[folder], [self.get_model().state_dict()])  # type: ignore[attr-defined]

    def _touchstone_walker(self) -> Walker:
        walker: Walker | None = self.__dict__.get("_touchstone_walker_made")
        if walker is None:
            walker = Walker(str(self.device))  # type: ignore[attr-defined]
            self.__dict__["_touchstone_walker_made"] = walker
        return walker


def _plain(value: object) -> str | int | bool | None:
    return value if value is None or isinstance(value, (bool, int)) else str(value)[:512]
