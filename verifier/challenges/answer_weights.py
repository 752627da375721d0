"""Whether the engine that answers has the weights of the reference value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from attester.weights.cache import DigestCache
from attester.weights.folder import Folder, open_folder
from verifier.challenges.answer_engine import AnswerEngine
from verifier.challenges.trusted_engine import trusted_engine
from verifier.errors import ReferenceValueError
from verifier.references import measured
from verifier.references.measured import Document


@dataclass(frozen=True, kw_only=True)
class Where:
    """The trusted engine, and what its weights can be compared with."""

    model: str
    url: str
    folder: Path | None = None
    """The folder with the reference weights; `None`: the operator's word for the engine counts."""
    secret: Path | None = None
    """The file of the secret that an engine with the loopback resources shares."""
    control: str | None = None
    """Where it serves these, if not at `url`."""


def dtype_of(document: Document) -> str:
    """The precision of most of a reference value's bytes."""
    sizes: dict[str, int] = {}
    for tensor in document.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=sizes.__getitem__, default="unknown")


def check_folder(
    document: Document, path: Path, cache: DigestCache | None, step: Callable[[int], None] | None
) -> Folder:
    """The folder, if its files are those of the reference value.  Raises `ReferenceValueError` or `WeightsError`."""
    folder = open_folder(path, document.ignore, everything=True)
    return measured.check_folder(document, folder, cache, step)


def check_weights(where: Where, document: Document, engine: AnswerEngine) -> str:
    """
    How it is known that the engine has the weights of a reference value, whose folder was checked; a part of a sentence.

    Raises:
        ReferenceValueError: it has others.
    """
    if where.folder is None:
        return "whose weights are trusted by your word: give --dir, and they are looked at"
    if engine.is_llama_cpp:
        if not engine.serves_file_of(where.folder):
            raise ReferenceValueError(f"the file that llama.cpp serves is not in {where.folder}")
        return "which names a file of the checked folder"
    walked, as_loaded = (where.control or where.url).rstrip("/"), document.loaded_by is not None
    if where.secret is not None:
        with trusted_engine(walked, where.secret, where.model, where.folder, as_loaded=as_loaded) as trusted:
            trusted.check(document.practice)
        return "which walked the weights of the reference value"
    with ExitStack() as stack:
        try:
            trusted = stack.enter_context(
                trusted_engine(walked, None, where.model, where.folder, as_loaded=as_loaded)
            )
        except ReferenceValueError:
            # It is no vLLM, or one without our extension.
            return "whose weights are trusted by your word: it cannot walk them"
        trusted.check(document.practice)
    return "which walked the weights of the reference value"
