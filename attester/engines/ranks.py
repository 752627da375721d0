"""
The ranks of a sharded engine: rank 0 walks, and fetches what the others hold, tensor by tensor.

They talk over process groups of their own, so that the engine's own messages are never mixed with
these: requests and listings over gloo, values over gloo on a CPU and over NCCL on GPUs.  Rank 0 leads.
The others answer one request after another until they are told that the walk has ended.  Every
wait has an end, so a rank that fails ends the walk on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final

import msgspec
import torch
from torch import distributed

from attester.engines.joined import State
from attester.engines.remote import Origin, Remote, View, apply
from attester.errors import AttesterError, EngineError

STEP_S: Final = 60.0
"""For how long a rank waits for another one."""
_JOIN: Final = timedelta(seconds=20)
"""For how long the ranks wait for each other when they make a group."""
_NCCL: Final = timedelta(hours=2)
"""NCCL's own watchdog ends the whole process, so its limit must never be the first to be reached."""
_MAX_MESSAGE_BYTES: Final = 64 << 20
_INLINE_BYTES: Final = 8
"""The values of numbers of at most this size come with the listing: scales, of which there are many."""
_MAP_BYTES: Final = 64 << 10
"""So do integers of at most this size: maps of experts, which are asked for each of them."""
_POLL_S: Final = 0.0005
_DTYPES: Final = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class _Listed(msgspec.Struct, frozen=True):
    """A tensor in the listing of a rank."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    pointer: int
    values: bytes | None = None


class _Request(msgspec.Struct, frozen=True):
    """What rank 0 asks for: the listing, the values of one tensor, or the end."""

    name: str | None = None
    views: tuple[View, ...] = ()
    ended: str | None = None
    """How the walk has ended: empty, or the error."""


class _Reply(msgspec.Struct, frozen=True):
    tensors: tuple[_Listed, ...] = ()
    size: int = 0
    error: str | None = None


class Ranks:
    """
    One rank's place among the ranks of its engine.

    All ranks of the default process group make one at the same time.

    Args:
        device: Where the weights are.
        shards: Ranks of one stage of the pipeline, each with a share of its tensors.
        step_s: For how long one rank waits for another.

    Raises:
        RuntimeError: the groups cannot be made.
    """

    def __init__(self, device: torch.device, shards: int, step_s: float = STEP_S) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._device = device
        self._shards = shards
        # The others outwait the leader, which may be waiting for one of them, and tells them how that ends.
        self._step = timedelta(seconds=step_s if self.rank == 0 else 3 * step_s)
        self._control = distributed.new_group(backend="gloo", timeout=_JOIN)
        self._values = self._control
        if device.type == "cuda":
            self._values = distributed.new_group(backend="nccl", timeout=_NCCL)
        self._gone: set[int] = set()

    def close(self) -> None:
        """Give back the groups."""
        for group in {self._control, self._values}:
            with suppress(RuntimeError, ValueError):
                distributed.destroy_process_group(group)

    @contextmanager
    def lead(self, own: Callable[[], State]) -> Iterator[list[State]]:
        """
        Lead a walk as rank 0; yields the state dicts of all shards, each over all stages of the pipeline.

        Raises:
            EngineError: a rank has failed, does not answer, or holds something that is no plain tensor.
        """
        ended = "rank 0 has failed"
        try:
            states = [own(), *(self._listing(rank) for rank in range(1, self.size))]
            yield [self._joined(states[shard :: self._shards]) for shard in range(self._shards)]
            ended = ""
        except AttesterError as error:
            ended = str(error)[:300]
            raise
        finally:
            for rank in range(1, self.size):
                # A rank that is gone cannot be told, and waiting for it would hold up the others.
                if rank not in self._gone:
                    with suppress(EngineError):
                        self._send(rank, _Request(ended=ended))

    def follow(self, own: Callable[[], State]) -> None:
        """
        Answer rank 0's requests until it says that the walk has ended.

        Raises:
            EngineError: the walk has failed, here or on another rank, or rank 0 is gone.
        """
        state: State | None = None
        while True:
            request = self._receive(0, _Request)
            if request.ended is not None:
                if request.ended:
                    raise EngineError(request.ended)
                return
            try:
                # Read once a walk: names must not change between two requests.
                state = own() if state is None or request.name is None else state
                if request.name is None:
                    self._send(0, _Reply(tensors=_list(state)))
                    continue
                part = apply(state[request.name].detach(), request.views).contiguous().reshape(-1)
                data = part.view(torch.uint8)
            except Exception as error:  # noqa: BLE001
                # Rank 0 waits for an answer, and it tells the others of it.
                self._send(0, _Reply(error=f"{type(error).__name__}: {error}"[:200]))
                continue
            self._send(0, _Reply(size=data.numel()))
            if data.numel():
                self._wait_for_values(distributed.isend(data, 0, group=self._values), 0)

    def _listing(self, rank: int) -> State:
        self._send(rank, _Request())
        reply = self._reply(rank)
        state = {}
        for listed in reply.tensors:
            shadow = torch.empty(listed.shape, dtype=_DTYPES[listed.dtype], device="meta")
            # A rank's addresses mean nothing here; the rank's number keeps them apart.
            origin = Origin(rank, listed.name, (rank << 64) | listed.pointer, self._fetch)
            if listed.values is not None:
                found = torch.frombuffer(bytearray(listed.values), dtype=shadow.dtype).reshape(listed.shape)
                origin.known = found.to(self._device)
            state[listed.name] = Remote(shadow, origin, self._device)
        return state

    def _joined(self, stages: Sequence[State]) -> State:
        """One state dict of all stages of a pipeline; what several have must be the same on each."""
        joined: dict[str, Any] = {}
        same: dict[int, int] = {}
        for state in stages:
            for name, tensor in state.items():
                first: Any = joined.setdefault(name, tensor)
                if first is tensor:
                    continue
                if first.shape != tensor.shape or first.dtype != tensor.dtype:
                    raise EngineError(f"{name[:120]}: two stages of the pipeline have it in different shapes")
                same[tensor.data_ptr()] = first.data_ptr()
                # The leader's own is read without a request, so its copy is asked for in its place.
                asked, twin = (first, tensor) if isinstance(first, Remote) else (tensor, first)
                asked.origin.twins.append(twin)
                joined[name] = asked
        for tensor in joined.values():
            # What shares memory with a copy is walked with it.
            if isinstance(tensor, Remote):
                tensor.origin.pointer = same.get(tensor.origin.pointer, tensor.origin.pointer)
        return joined

    def _fetch(self, rank: int, name: str, views: Sequence[View], empty: torch.Tensor) -> torch.Tensor:
        self._send(rank, _Request(name, tuple(views)))
        data = empty.reshape(-1).view(torch.uint8)
        reply = self._reply(rank)
        if reply.size != data.numel():
            raise EngineError(f"rank {rank} has other bytes under {name[:120]!r} than it has listed")
        if data.numel():
            self._wait_for_values(distributed.irecv(data, rank, group=self._values), rank)
        return empty

    def _reply(self, rank: int) -> _Reply:
        reply: _Reply = self._receive(rank, _Reply)
        if reply.error is not None:
            raise EngineError(f"rank {rank} of {self.size}: {reply.error}")
        return reply

    def _send(self, rank: int, message: msgspec.Struct) -> None:
        data = torch.frombuffer(bytearray(msgspec.msgpack.encode(message)), dtype=torch.uint8)
        with self._named(rank):
            for each in (torch.tensor([data.numel()]), data):
                self._wait(distributed.isend(each, rank, group=self._control))

    def _receive(self, rank: int, kind: type[Any]) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        with self._named(rank):
            self._wait(distributed.irecv(length, rank, group=self._control))
            if not 0 < int(length) <= _MAX_MESSAGE_BYTES:
                raise EngineError(f"rank {rank} sends a message of {int(length)} bytes")
            data = torch.empty(int(length), dtype=torch.uint8)
            self._wait(distributed.irecv(data, rank, group=self._control))
        return msgspec.msgpack.decode(data.numpy().tobytes(), type=kind)

    def _wait(self, work: Any) -> None:
        work.wait(self._step)

    def _wait_for_values(self, work: Any, rank: int) -> None:
        with self._named(rank):
            if self._values is self._control:
                self._wait(work)
                return
            # Waiting for NCCL's work only queues a wait on the stream, which nothing would end.
            deadline = time.monotonic() + self._step.total_seconds()
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise RuntimeError("timed out")
                time.sleep(_POLL_S)

    @contextmanager
    def _named(self, rank: int) -> Iterator[None]:
        """Name the rank in the error of a message that fails."""
        try:
            yield
        except RuntimeError as error:
            self._gone.add(rank)
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise EngineError(
                f"rank {self.rank} of {self.size} does not reach rank {rank}: {reason}"
            ) from None


def _list(state: State) -> tuple[_Listed, ...]:
    small = [name for name, tensor in state.items() if _is_small(tensor)]
    values: dict[str, bytes] = {}
    if small:
        # One copy from the device for all of them.
        flat = [state[name].detach().contiguous().reshape(-1).view(torch.uint8) for name in small]
        data = torch.cat(flat).cpu().numpy().tobytes()
        for name, part in zip(small, flat, strict=True):
            values[name], data = data[: part.numel()], data[part.numel() :]
    listed = []
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_conj():
            raise EngineError(f"{name[:120]!r} is not a plain tensor, so its bytes cannot be walked")
        listed.append(
            _Listed(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype),
                pointer=tensor.data_ptr(),
                values=values.get(name),
            )
        )
    return tuple(listed)


def _is_small(tensor: torch.Tensor) -> bool:
    size = tensor.numel() * tensor.itemsize
    return 0 < size <= (_INLINE_BYTES if tensor.is_floating_point() else _MAP_BYTES)
