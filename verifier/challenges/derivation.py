"""
The pool of single-use challenges: how an entry is derived, posed and minted.

Entry *i* of a model and kind has a seed and checked rows that follow from its place and
the pool key, a secret outside the database; the database holds commitments to answers.
So a stolen database lets nobody answer, and nobody learns which rows are checked.
(Ateniese, Di Pietro, Mancini, Tsudik: Scalable and Efficient Provable Data Possession, 2008.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from attester.weights import possession, reference
from attester.weights.folder import Folder
from attester.weights.kernels import Kernel, row_words
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.tensors import FileTensor, TensorFiles
from verifier.errors import ReferenceValueError
from verifier.schemes.context import IssuedChallenges, IssuedRead, IssuedWalk
from verifier.store.pool import Entry

CHECKED_ROWS: Final = 4
POOL_KEY_BYTES: Final = 32
GROUP: Final = 64
"""Walk entries that go through the weights together: 256 columns, 4 MiB of state."""
_SPOT_CHECK_EVERY: Final = 16
WIDE_ROWS: Final = 2048
"""Rows of a wide walk: what it takes then is arithmetic."""


class ReadParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How large a `read` is."""

    windows: Annotated[int, Meta(ge=1, le=65536)] = 256


class WalkParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """How large a `walk` is."""

    rows: Annotated[int, Meta(ge=CHECKED_ROWS, le=2048)] = 32
    passes: Annotated[int, Meta(ge=1, le=64)] = 1


@dataclass(frozen=True)
class PoolKey:
    """The secret that seeds and checked rows follow from."""

    secret: bytes

    def seed(self, model: str, kind: str, index: int) -> bytes:
        """``SHAKE-256(key ‖ model ‖ kind ‖ LE64(i))[0:32]``; kinds are equally long, so no two clash."""
        return self._derive(model, kind, index, b"", 32)

    def checked_rows(self, model: str, kind: str, index: int, rows: int) -> tuple[int, ...]:
        """The rows of a walk that are checked, distinct, in rising order."""
        chosen: set[int] = set()
        stream = self._derive(model, kind, index, b"rows", 4096)
        for start in range(0, len(stream), 4):
            chosen.add(int.from_bytes(stream[start : start + 4], "little") % rows)
            if len(chosen) == CHECKED_ROWS:
                break
        return tuple(sorted(chosen))

    def _derive(self, model: str, kind: str, index: int, suffix: bytes, size: int) -> bytes:
        place = model.encode() + kind.encode() + index.to_bytes(8, "little")
        return hashlib.shake_256(self.secret + place + suffix).digest(size)


def pose(
    entries: Sequence[Entry], exhausted: Mapping[str, Sequence[str]], key: PoolKey
) -> dict[str, IssuedChallenges]:
    """What a session asks, with what the verifier knows of the answers."""
    asked: dict[str, IssuedChallenges] = {
        model: IssuedChallenges(exhausted=tuple(kinds)) for model, kinds in exhausted.items()
    }
    for entry in entries:
        seed = key.seed(entry.model, entry.kind, entry.index).hex()
        before = asked.get(entry.model, IssuedChallenges())
        if entry.kind == "read":
            read = msgspec.json.decode(entry.parameters, type=ReadParameters)
            posed = IssuedRead(
                seed=seed,
                windows=read.windows,
                commitment=entry.commitments,
                batch=entry.batch,
                reference=entry.reference,
            )
            asked[entry.model] = IssuedChallenges(posed, before.walk, before.exhausted)
        else:
            walk = msgspec.json.decode(entry.parameters, type=WalkParameters)
            rows = key.checked_rows(entry.model, entry.kind, entry.index, walk.rows)
            parts = [entry.commitments[i : i + 32] for i in range(0, len(entry.commitments), 32)]
            commitments = dict(zip(rows, parts, strict=True))
            wide = entry.kind == "wide"
            posed_walk = IssuedWalk(
                seed=seed,
                rows=walk.rows,
                passes=walk.passes,
                commitments=commitments,
                batch=entry.batch,
                wide=wide,
                reference=entry.reference,
            )
            asked[entry.model] = IssuedChallenges(before.read, posed_walk, before.exhausted)
    return asked


def to_wire(asked: Mapping[str, IssuedChallenges]) -> list[ModelChallenge]:
    """What the node is told: never commitments, never which rows are checked."""
    return [
        ModelChallenge(
            model=model,
            read=None if a.read is None else ReadChallenge(a.read.seed, a.read.windows),
            walk=None if a.walk is None else WalkChallenge(a.walk.seed, a.walk.rows, a.walk.passes),
        )
        for model, a in sorted(asked.items())
        if a.read is not None or a.walk is not None
    ]


@dataclass(frozen=True)
class Minter:
    """Mints challenges for one model where its weights are."""

    model: str
    folder: Folder
    tensors: TensorFiles
    key: PoolKey
    kernel: Kernel
    batch: int

    def reads(self, start: int, count: int, parameters: ReadParameters) -> Iterator[Entry]:
        """Mint *count* `read` entries from index *start* on."""
        text = msgspec.json.encode(parameters).decode()
        for index in range(start, start + count):
            seed = self.key.seed(self.model, "read", index)
            answer = possession.read(self.folder, seed, parameters.windows)
            yield Entry(self.model, "read", index, self.batch, text, possession.commitment(answer))

    def walks(
        self,
        start: int,
        count: int,
        parameters: WalkParameters,
        progress: Callable[[int], None] | None = None,
        *,
        kind: str = "walk",
    ) -> Iterator[list[Entry]]:
        """
        Mint *count* entries of a kind of walk from index *start* on, in groups that share their passes.

        The first group and every sixteenth after it are spot-checked by the second
        implementation before they are handed out: a library that is wrong is wrong always,
        and one row by the slow way costs as much as many groups by the fast one.

        Raises:
            ReferenceValueError: the implementations disagree: nothing of the group may be used.
            WeightsError: the files changed or cannot be read.
        """
        text = msgspec.json.encode(parameters).decode()
        for number, first in enumerate(range(start, start + count, GROUP)):
            indexes = range(first, min(first + GROUP, start + count))
            places = [
                (index, row)
                for index in indexes
                for row in self.key.checked_rows(self.model, kind, index, parameters.rows)
            ]
            words = [row_words(self.key.seed(self.model, kind, index), row) for index, row in places]
            answers = possession.walk(self.tensors, words, parameters.passes, self.kernel, progress)
            if number % _SPOT_CHECK_EVERY == 0:
                index, row = places[-1]
                self._spot_check(self.key.seed(self.model, kind, index), row, answers[-1], parameters.passes)
            by_index: dict[int, list[bytes]] = {}
            for (index, _), answer in zip(places, answers, strict=True):
                by_index.setdefault(index, []).append(possession.commitment(answer))
            yield [
                Entry(self.model, kind, index, self.batch, text, b"".join(by_index[index]))
                for index in indexes
            ]

    def _spot_check(self, seed: bytes, row: int, answer: bytes, passes: int) -> None:
        tensors = [_Pieces(tensor) for tensor in self.tensors]
        if reference.walk_row(tensors, seed, row, passes) != answer:
            raise ReferenceValueError(
                "the spot check by the second implementation disagrees: a library computes wrongly here, "
                "and nothing of this group was kept"
            )


@dataclass(frozen=True)
class _Pieces:
    """A tensor's bytes, piece by piece, so that it may be larger than memory."""

    tensor: FileTensor

    def __iter__(self) -> Iterator[bytes]:
        for data in self.tensor.chunks():
            yield data.tobytes()
