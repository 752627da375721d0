"""From a publisher's signed statement to a reference value, with the weights at hand or without."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import blake3
import msgspec

from attester.weights.folder import IGNORED_AT_TOP, Folder, ModelFile, open_model_file
from attester.weights.hashing import ALGORITHMS, BLAKE3, SHA256
from verifier.errors import ReferenceValueError
from verifier.references.measured import Document, DocumentFile, measure_folder
from verifier.references.oms import BLAKE2B, Resource, Statement


def without_weights(model: str, statement: Statement) -> Document:
    """
    A reference value of the files alone: manifests can be compared, walks cannot be asked.

    Raises:
        ReferenceValueError: the statement is over shards, by an algorithm that no manifest
            has, or of a single unnamed file.
    """
    if statement.shard_size is not None:
        raise ReferenceValueError(
            "the bundle is over shards, which no manifest lists: give the weights, --dir"
        )
    if statement.algorithm not in ALGORITHMS:
        raise ReferenceValueError(
            f"the bundle is by {statement.algorithm}, which no manifest has: give the weights, --dir"
        )
    if any(resource.name == "." for resource in statement.resources):
        raise ReferenceValueError("the bundle is of a single file without a name: give the weights, --dir")
    _refuse_left_out(statement)
    try:
        return Document(
            model=model,
            files=tuple(
                DocumentFile(
                    resource.name,
                    sha256=resource.digest.hex() if statement.algorithm == SHA256 else None,
                    blake3=resource.digest.hex() if statement.algorithm == BLAKE3 else None,
                )
                for resource in sorted(statement.resources, key=lambda r: r.name.encode())
            ),
            publisher=statement.publisher,
        )
    except ValueError as error:
        raise ReferenceValueError(str(error)) from None


def with_weights(
    model: str, statement: Statement, folder: Folder, progress: Callable[[int], None] | None = None
) -> Document:
    """
    A measured reference value of a folder that holds exactly what was signed.

    Args:
        model: The model's name.
        statement: As verified.
        folder: OpenedEvidence without the statement's `ignore_paths`.
        progress: Called with the bytes read.

    Raises:
        ReferenceValueError: a file is missing, was not signed, or differs, by name.
        WeightsError: a file cannot be read.
    """
    by_file: dict[str, list[Resource]] = {}
    for resource in statement.resources:
        by_file.setdefault(resource.name, []).append(resource)
    if by_file.keys() == {"."} and len(folder.files) == 1:
        by_file = {folder.files[0].name: by_file["."]}
    _refuse_left_out(statement)
    have = {file.name: file for file in folder.files}
    for name in sorted(have.keys() | by_file.keys()):
        if name not in have:
            raise ReferenceValueError(f"{name[:80]!r} was signed and is not in the folder")
        # Shards leave empty files out.
        if name not in by_file and not (statement.shard_size and have[name].size == 0):
            raise ReferenceValueError(f"{name[:80]!r} is in the folder and was not signed")
    document = measure_folder(model, folder, progress, algorithms=ALGORITHMS)
    measured = {file.name: file for file in document.files}
    for name, resources in by_file.items():
        if statement.shard_size is None and statement.algorithm in ALGORITHMS:
            whole = getattr(measured[name], statement.algorithm)
            right = len(resources) == 1 and whole == resources[0].digest.hex()
        else:
            right = _holds(have[name], resources, statement)
        if not right:
            raise ReferenceValueError(f"{name[:80]!r} is not what was signed")
    ignored = tuple(sorted(set(statement.ignore_paths) - IGNORED_AT_TOP))
    return msgspec.structs.replace(document, publisher=statement.publisher, ignore=ignored)


def _refuse_left_out(statement: Statement) -> None:
    """Nodes never list these, so a reference value with them would fit no node."""
    for resource in statement.resources:
        if resource.name.partition("/")[0] in IGNORED_AT_TOP:
            raise ReferenceValueError(
                f"{resource.name[:80]!r} was signed, and manifests leave such files out"
            )


def _holds(file: ModelFile, resources: list[Resource], statement: Statement) -> bool:
    """Whether the parts of a file have their digests, and leave nothing of it out."""
    expected = 0
    with open_model_file(file) as stream:
        for resource in sorted(resources, key=lambda r: r.start):
            end = file.size if resource.end is None else resource.end
            if resource.start != expected or end > file.size:
                return False
            hasher = _hasher(statement.algorithm)
            for data in stream.slices(resource.start, end - resource.start):
                hasher.update(data.data)
            if hasher.digest() != resource.digest:
                return False
            expected = end
    return expected == file.size


def _hasher(algorithm: str) -> Any:
    makers: dict[str, Any] = {SHA256: hashlib.sha256, BLAKE3: blake3.blake3, BLAKE2B: hashlib.blake2b}
    return makers[algorithm]()
