"""Minting: challenges with commitments to their answers, computed from the reference weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from attester.weights import possession, reference
from attester.weights.folder import Folder, restrict
from attester.weights.kernels import Kernel, row_words
from attester.weights.roles import TABLE
from attester.weights.tensors import FileTensor, TensorFiles
from verifier.challenges.pool_key import PoolKey, ReadParameters, WalkParameters
from verifier.errors import ReferenceValueError
from verifier.store.pool import Entry

WALKS_PER_GROUP: Final = 64
"""Walk entries that go through the weights together: 256 columns, 4 MiB of state."""
_GROUPS_PER_SPOT_CHECK: Final = 16


@dataclass(frozen=True, kw_only=True)
class Minter:
    """Mints challenges for one model on a machine that has its weights."""

    model: str
    folder: Folder
    tensors: TensorFiles | None
    """`None` for a model that cannot be walked."""
    key: PoolKey
    kernel: Kernel
    batch: int
    ask_engine: Callable[[bytes, int, int], Sequence[bytes]] | None = None
    """From seed, rows and passes to the answers of an engine (`TrustedEngine.walk`), if walks are not over the files."""

    gates: frozenset[str] | None = None
    """The files that change the model's answers, which reads are about; `None`: all, as in pools of before."""

    def reads(self, start: int, count: int, parameters: ReadParameters) -> Iterator[Entry]:
        """Mint *count* `read` entries from index *start* on."""
        for index in range(start, start + count):
            seed = self.key.seed(self.model, "read", index)
            answer = possession.read(self.folder, seed, parameters.windows)
            entry = self._entry("read", index, parameters, possession.commitment(answer))
            if self.gates is not None:
                only = possession.read(restrict(self.folder, self.gates), seed, parameters.windows)
                entry = msgspec.structs.replace(entry, gates=possession.commitment(only), gate_table=TABLE)
            yield entry

    def walks(
        self,
        start: int,
        count: int,
        parameters: WalkParameters,
        progress: Callable[[int], None] | None = None,
        *,
        kind: str = "walk",
        groups_before: int = 0,
    ) -> Iterator[list[Entry]]:
        """
        Mint *count* entries of a kind of walk from index *start* on, in groups that share their passes.

        The second implementation spot-checks the first group and every sixteenth after it
        before they are yielded.  One row costs it as much time as many groups cost the kernel,
        and that is enough: a library that computes wrongly does so every time.
        Of answers of an engine there is no second implementation: they were given twice.

        Args:
            groups_before: How many groups were minted before; they count for which ones are checked.

        Raises:
            ReferenceValueError: the implementations disagree; nothing of the group may be used.
            WeightsError: the files changed or cannot be read.
        """
        for number, first in enumerate(range(start, start + count, WALKS_PER_GROUP), groups_before):
            indexes = range(first, min(first + WALKS_PER_GROUP, start + count))
            places = [
                (index, row)
                for index in indexes
                for row in self.key.checked_rows(self.model, kind, index, parameters.rows)
            ]
            if self.ask_engine is not None:
                answers = self._ask(self.ask_engine, kind, places, parameters, progress)
            else:
                words = [row_words(self.key.seed(self.model, kind, index), row) for index, row in places]
                answers = possession.walk(self._tensors, words, parameters.passes, self.kernel, progress)
            if self.ask_engine is None and number % _GROUPS_PER_SPOT_CHECK == 0:
                index, row = places[-1]
                self._spot_check(self.key.seed(self.model, kind, index), row, answers[-1], parameters.passes)
            by_index: dict[int, list[bytes]] = {}
            for (index, _), answer in zip(places, answers, strict=True):
                by_index.setdefault(index, []).append(possession.commitment(answer))
            yield [self._entry(kind, index, parameters, b"".join(by_index[index])) for index in indexes]

    @property
    def _tensors(self) -> TensorFiles:
        if self.tensors is None:
            raise ReferenceValueError(f"{self.model} has no tensors, so that nothing can be walked")
        return self.tensors

    def _ask(
        self,
        ask: Callable[[bytes, int, int], Sequence[bytes]],
        kind: str,
        places: Sequence[tuple[int, int]],
        parameters: WalkParameters,
        progress: Callable[[int], None] | None,
    ) -> list[bytes]:
        """The engine's answers to rows of challenges.  It is asked as a node is, one challenge after the other."""
        indexes = dict.fromkeys(index for index, _ in places)
        given = {}
        for index in indexes:
            given[index] = ask(self.key.seed(self.model, kind, index), parameters.rows, parameters.passes)
            if progress is not None:
                progress(self._tensors.total * parameters.passes // len(indexes))
        return [given[index][row] for index, row in places]

    def _entry(
        self, kind: str, index: int, parameters: ReadParameters | WalkParameters, commitments: bytes
    ) -> Entry:
        return Entry(
            model=self.model,
            kind=kind,
            index=index,
            batch=self.batch,
            parameters=msgspec.json.encode(parameters).decode(),
            commitments=commitments,
        )

    def _spot_check(self, seed: bytes, row: int, answer: bytes, passes: int) -> None:
        tensors = [_TensorBytes(tensor) for tensor in self._tensors]
        if reference.walk_row(tensors, seed, row, passes) != answer:
            raise ReferenceValueError(
                "the second implementation disagrees with the kernel in a spot check, so a library on this "
                "machine computes wrongly. Nothing of this group was stored"
            )


@dataclass(frozen=True)
class _TensorBytes:
    """A tensor's bytes in pieces, because it may be larger than memory."""

    tensor: FileTensor

    def __iter__(self) -> Iterator[bytes]:
        for data in self.tensor.chunks():
            yield data.tobytes()
