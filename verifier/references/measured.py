"""
Reference values measured from a folder of weights.

A document holds the files, the list of tensors, and a practice challenge with its answers,
with which a node can test itself before it enrols.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from attester import cbor
from attester.errors import WeightsError
from attester.evidence import MODEL_NAME, File
from attester.weights import possession
from attester.weights.kernels import kernel
from attester.weights.manifest import Folder, measure
from attester.weights.tensors import TensorFiles
from verifier.errors import ReferenceValueError
from verifier.schemes.base import ModelReference

PRACTICE_ROWS: Final = 4
PRACTICE_WINDOWS: Final = 256
_MAX_DOCUMENT: Final = 64 << 20

_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ReferenceFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the model."""

    name: str
    size: int
    sha256: _Hex32


class ReferenceTensor(Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the model, in walking order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Practice(Struct, frozen=True, forbid_unknown_fields=True):
    """A public challenge with its answers: for self-tests, and for nothing else."""

    seed: _Hex32
    windows: int
    read: _Hex32
    rows: int
    passes: int
    walk: tuple[_Hex32, ...]


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """The reference value of one model."""

    model: Annotated[str, Meta(max_length=128)]
    files: Annotated[tuple[ReferenceFile, ...], Meta(min_length=1)]
    tensors: Annotated[tuple[ReferenceTensor, ...], Meta(min_length=1)]
    practice: Practice

    @property
    def digest(self) -> str:
        """SHA-256 over the deterministic encoding, hex: the reference value's identity."""
        return hashlib.sha256(cbor.encode(msgspec.to_builtins(self))).hexdigest()

    def to_reference(self) -> ModelReference:
        """As the appraisal takes it."""
        return ModelReference(
            digest=self.digest,
            files={
                f.name: File(name=f.name, size=f.size, sha256=bytes.fromhex(f.sha256)) for f in self.files
            },
            tensor_bytes=sum(tensor.size for tensor in self.tensors),
        )


def practice_seed(model: str) -> bytes:
    """The seed of a model's practice challenge: no secret."""
    return hashlib.shake_256(b"touchstone/practice/1" + model.encode()).digest(32)


def measure_folder(model: str, folder: Folder, progress: Callable[[int], None] | None = None) -> Document:
    """
    Measure a folder.

    Raises:
        ReferenceValueError: *model* is not a name, or the folder cannot be measured.
    """
    if len(model) > 128 or not MODEL_NAME.fullmatch(model):
        raise ReferenceValueError(f"{model[:80]!r} is not a model's name: letters, digits, . _ - and /")
    try:
        manifest = measure(folder, progress)
        tensors = TensorFiles(folder)
        seed = practice_seed(model)
        words = [possession.row_words(seed, row) for row in range(PRACTICE_ROWS)]
        answers = possession.walk(tensors, words, 1, kernel())
        read = possession.read(folder, seed, PRACTICE_WINDOWS)
    except WeightsError as error:
        raise ReferenceValueError(str(error)) from None
    return Document(
        model=model,
        files=tuple(ReferenceFile(f.name, f.size, f.sha256.hex()) for f in manifest.files),
        tensors=tuple(ReferenceTensor(t.name, t.dtype, t.shape, t.size) for t in tensors.infos),
        practice=Practice(
            seed=seed.hex(),
            windows=PRACTICE_WINDOWS,
            read=read.hex(),
            rows=PRACTICE_ROWS,
            passes=1,
            walk=tuple(answer.hex() for answer in answers),
        ),
    )


def read_document(data: bytes | str) -> Document:
    """
    Read a reference value's document.

    Raises:
        ReferenceValueError: too large or malformed.
    """
    if len(data) > _MAX_DOCUMENT:
        raise ReferenceValueError("the document is too large")
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReferenceValueError(f"not a reference value: {error}") from None
    if not MODEL_NAME.fullmatch(document.model):
        raise ReferenceValueError(f"{document.model[:80]!r} is not a model's name")
    return document
