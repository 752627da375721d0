"""
Reference values measured from a folder of weights.

A document holds the files, the list of tensors, and a practice challenge with its answers,
with which a node can test itself before it enrols.  A document that was imported from a
publisher's signature alone has only the files, and no walk can be asked for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from attester import cbor
from attester.errors import NoTensorsError, WeightsError
from attester.kinds import MODEL_NAME
from attester.weights import possession
from attester.weights.cache import DigestCache
from attester.weights.complete import check_complete
from attester.weights.folder import Folder, restrict
from attester.weights.hashing import SHA256
from attester.weights.kernels import row_words
from attester.weights.manifest import measure
from attester.weights.roles import Role, Roles, roles_of
from attester.weights.select import kernel, small_kernel
from attester.weights.tensors import FileTensor, TensorFiles
from verifier.errors import ReferenceValueError
from verifier.references.information import examine
from verifier.schemes.context import ModelReference, ReferenceFile, Source

PRACTICE_ROWS: Final = 4
PRACTICE_WINDOWS: Final = 256
_MAX_DOCUMENT: Final = 64 << 20
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
"""Weights that cannot be walked: to read their tensors, code in them would have to run."""
T = TypeVar("T")

_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class DocumentFile(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the model; its size is unknown if only a signature names it."""

    name: str
    size: int | None = None
    sha256: _Hex32 | None = None
    blake3: _Hex32 | None = None


class DocumentTensor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor of the model, and the place of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    file: str = ""
    offset: int = 0
    """Bytes from the start of the file."""
    blake3: _Hex32 | None = None


class Practice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public challenge with its answers, for self-tests only."""

    seed: _Hex32
    windows: int
    read: _Hex32
    rows: int
    passes: int
    walk: tuple[_Hex32, ...]


class LoadedBy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The build of an engine whose loaded tensors are walked, as it described itself when it was measured."""

    engine: Annotated[str, Meta(max_length=512)]
    version: Annotated[str, Meta(max_length=512)]
    device: Annotated[str, Meta(max_length=512)]


class Publisher(Struct, frozen=True, forbid_unknown_fields=True):
    """The publisher whose signature the files were compared with (OpenSSF Model Signing)."""

    method: str
    """key, certificate or sigstore."""
    signer: str
    """The key's SHA-256, the certificate's subject, or the identity and its issuer."""
    statement: _Hex32
    """SHA-256 of the signed statement, which binds every name and not only the digests."""


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The reference value of one model."""

    model: Annotated[str, Meta(max_length=128)]
    files: Annotated[tuple[DocumentFile, ...], Meta(min_length=1)]
    tensors: tuple[DocumentTensor, ...] = ()
    """In walking order."""
    practice: Practice | None = None
    information_bytes: int | None = None
    """The information that the tensors hold (`verifier.references.information`)."""
    publisher: Publisher | None = None
    ignore: tuple[str, ...] = ()
    """Paths in the folder that do not belong to the model, besides those that no manifest lists."""
    loaded_by: LoadedBy | None = None
    """Walks go over what this build of an engine has loaded, as it is; if absent, over the tensors of the files."""

    def __post_init__(self) -> None:
        """Refuse a document that no appraisal could use."""
        if len(self.model) > 128 or not MODEL_NAME.fullmatch(self.model):
            raise ValueError(f"{self.model[:80]!r} is not a model's name. Use letters, digits, . _ - and /")
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("the document lists a file twice")
        if any(file.sha256 is None and file.blake3 is None for file in self.files):
            raise ValueError("a file has no digest")

    @property
    def digest(self) -> str:
        """The reference value's identity: SHA-256 over its deterministic encoding, hex."""
        return hashlib.sha256(cbor.encode(msgspec.to_builtins(self))).hexdigest()

    def to_reference(
        self,
        *,
        source: Source = "measured",
        signer: str | None = None,
        not_before: int | None = None,
        not_after: int | None = None,
    ) -> ModelReference:
        """The reference value in the form that the appraisal takes, with its source and its validity."""
        dtypes: dict[str, int] = {}
        for tensor in self.tensors:
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.size
        total = sum(dtypes.values())
        return ModelReference(
            digest=self.digest,
            files={file.name: ReferenceFile(file.size, _digests(file)) for file in self.files},
            tensor_bytes=total,
            information_bytes=total if self.information_bytes is None else self.information_bytes,
            dtypes=dtypes,
            source=source,
            signer=signer,
            not_before=not_before,
            not_after=not_after,
            as_loaded=self.loaded_by is not None,
            walked=frozenset(tensor.file for tensor in self.tensors),
            ignore=self.ignore,
        )

    @property
    def gates(self) -> frozenset[str]:
        """As `ModelReference.gates`."""
        names = frozenset(file.name for file in self.files)
        return roles_of(names).gates | (names & {tensor.file for tensor in self.tensors})


def _digests(file: DocumentFile) -> dict[str, bytes]:
    named = {"sha256": file.sha256, "blake3": file.blake3}
    return {name: bytes.fromhex(digest) for name, digest in named.items() if digest is not None}


def practice_seed(model: str) -> bytes:
    """The seed of a model's practice challenge; it is not secret."""
    return hashlib.shake_256(b"touchstone/practice/1" + model.encode()).digest(32)


def measure_folder(
    model: str,
    folder: Folder,
    progress: Callable[[int], None] | None = None,
    *,
    algorithms: Sequence[str] = (SHA256,),
    cache: DigestCache | None = None,
    device: str | None = None,
    ignore: Sequence[str] = (),
    measure_engine: Callable[[bytes, int, int], tuple[LoadedBy, Sequence[bytes]]] | None = None,
) -> Document:
    """
    Measure a folder.  *progress* is called with the bytes just read, `work_of` in all, by several threads at once.

    Args:
        folder: As listed without *ignore*.
        device: Where the practice challenge is walked; `None` for the CPU, where so few rows need no library.
        ignore: The names and patterns of what is not the model's; the document has them.
        measure_engine: From seed, rows and passes to an engine and its answers, if walks are to go over what this
            engine has loaded of the files.

    Raises:
        ReferenceValueError: *model* is not a model's name, or the folder cannot be measured.
    """
    if len(model) > 128 or not MODEL_NAME.fullmatch(model):
        raise ReferenceValueError(f"{model[:80]!r} is not a model's name. Use letters, digits, . _ - and /")
    seed = practice_seed(model)
    loaded_by: LoadedBy | None = None
    try:
        check_complete(folder)
        tensors = _walkable(folder)
        # SHA-256 cannot be divided, so it leaves cores idle that examine the tensors meanwhile.
        with _beside(progress) as (submit, step):
            hashing = submit(lambda: files_of(folder, algorithms, step, cache))
            if tensors is not None:
                examined = examine(tensors, step)
            files = hashing.result()
        if tensors is None:
            return Document(model=model, files=files, ignore=tuple(ignore))
        if measure_engine is None:
            answers: Sequence[bytes] = _walk_practice(tensors, seed, device, progress)
        else:
            loaded_by, answers = measure_engine(seed, PRACTICE_ROWS, 1)
        read = possession.read(folder, seed, PRACTICE_WINDOWS)
    except WeightsError as error:
        raise ReferenceValueError(str(error)) from None
    return Document(
        model=model,
        files=files,
        tensors=tuple(
            _listed(tensor, digest) for tensor, digest in zip(tensors, examined.digests, strict=True)
        ),
        practice=_practice(seed, read, answers),
        information_bytes=_rounded(examined.information_bytes, tensors.total),
        loaded_by=loaded_by,
        ignore=tuple(ignore),
    )


def _walk_practice(
    tensors: TensorFiles, seed: bytes, device: str | None, progress: Callable[[int], None] | None
) -> list[bytes]:
    words = [row_words(seed, row) for row in range(PRACTICE_ROWS)]
    walks_with = small_kernel() if device is None else kernel(device=device)
    return possession.walk(tensors, words, 1, walks_with, progress)


def _practice(seed: bytes, read: bytes, answers: Sequence[bytes]) -> Practice:
    return Practice(
        seed=seed.hex(),
        windows=PRACTICE_WINDOWS,
        read=read.hex(),
        rows=PRACTICE_ROWS,
        passes=1,
        walk=tuple(answer.hex() for answer in answers),
    )


def _walkable(folder: Folder) -> TensorFiles | None:
    """The tensors of the files that change answers; `None` if they are in files that are not walked: pickles."""
    gates = Roles(file.name for file in folder.files).gates
    try:
        return TensorFiles(restrict(folder, gates))
    except NoTensorsError:
        if any(file.name.endswith(_PICKLES) for file in folder.files):
            return None
        raise


@contextmanager
def _beside(
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[Callable[[Callable[[], T]], Future[T]], Callable[[int], None]]]:
    """Work in a thread beside this one.  If this one fails, it is stopped at its next step."""
    stopped = threading.Event()

    def step(count: int) -> None:
        if stopped.is_set():
            raise WeightsError("the measuring was stopped")
        if progress is not None:
            progress(count)

    with ThreadPoolExecutor(1, "measure") as pool:
        try:
            yield pool.submit, step
        finally:
            stopped.set()


def _listed(tensor: FileTensor, digest: bytes) -> DocumentTensor:
    return DocumentTensor(
        name=tensor.info.name,
        dtype=tensor.info.dtype,
        shape=tensor.info.shape,
        size=tensor.size,
        file=tensor.file.name,
        offset=tensor.info.offset,
        blake3=digest.hex(),
    )


def _rounded(information: int, total: int) -> int:
    """
    *information* rounded down to thousandths of all bytes.

    The last digits of logarithms differ between machines, and the document's digest must not.
    """
    return total * (1000 * information // total) // 1000


def files_of(
    folder: Folder,
    algorithms: Sequence[str],
    progress: Callable[[int], None] | None = None,
    cache: DigestCache | None = None,
) -> tuple[DocumentFile, ...]:
    """A folder's files with their digests.  Raises `WeightsError`."""
    measured = measure(folder, algorithms, progress, cache)
    return tuple(
        DocumentFile(file.name, file.size, **{name: digest.hex() for name, digest in digests.items()})
        for file, digests in zip(folder.files, measured.digests, strict=True)
    )


def work_of(folder: Folder) -> int:
    """The number of bytes that `measure_folder` reads.  Raises `WeightsError`, also if the folder is not complete."""
    check_complete(folder)
    tensors = _walkable(folder)
    return folder.total + (0 if tensors is None else 2 * tensors.total)


def check_folder(
    document: Document,
    folder: Folder,
    cache: DigestCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> Folder:
    """
    Check that *folder* holds the files of a reference value, and no others that could change answers.

    Returns:
        The folder with the files of the reference value alone.

    Args:
        cache: Digests of files that have not changed since they were read.

    Raises:
        ReferenceValueError: it does not; the message names the first file that differs.
        WeightsError: the folder cannot be read.
    """
    algorithms = sorted({name for file in document.files for name in _digests(file)})
    present = {file.name: file for file in files_of(folder, algorithms, progress, cache)}
    expected = {file.name: file for file in document.files}
    roles = Roles(expected)
    for name in sorted(present.keys() ^ expected.keys()):
        what = "is not in the reference value" if name in present else "is missing"
        if name in expected or roles.of(name) is Role.GATE:
            raise ReferenceValueError(
                f"the folder is not the one of the active reference value: {name} {what}"
            )
    for name, file in expected.items():
        found = _digests(present[name])
        if any(found[algorithm] != digest for algorithm, digest in _digests(file).items()):
            raise ReferenceValueError(
                f"the folder is not the one of the active reference value: {name} differs"
            )
    return restrict(folder, expected)


def read_document(data: bytes | str) -> Document:
    """
    Read a reference value's document.

    Raises:
        ReferenceValueError: it is too large or malformed.
    """
    if len(data) > _MAX_DOCUMENT:
        raise ReferenceValueError(f"the document has more than {_MAX_DOCUMENT} bytes")
    try:
        return msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReferenceValueError(f"this is not a reference value: {error}") from None
