"""Make a reference value from a publisher's signed statement, with the weights or without them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import blake3
import msgspec

from attester.weights.folder import IGNORED_AT_TOP, Folder, ModelFile, open_model_file
from attester.weights.hashing import ALGORITHMS, BLAKE3, SHA256
from attester.weights.patterns import as_names
from verifier.errors import ReferenceValueError
from verifier.references.measured import Document, DocumentFile, measure_folder
from verifier.references.oms_statement import BLAKE2B, Resource, Statement


def without_weights(model: str, statement: Statement) -> Document:
    """
    A reference value of the files alone: manifests can be compared with it, and no walk can be asked.

    Raises:
        ReferenceValueError: the statement is over shards, uses an algorithm that no manifest
            has, or is over a single file without a name.
    """
    if statement.shard_size is not None:
        raise ReferenceValueError(
            "the bundle is over shards, which no manifest lists. Give the weights with --dir"
        )
    if statement.algorithm not in ALGORITHMS:
        raise ReferenceValueError(
            f"the bundle uses {statement.algorithm}, which no manifest has. Give the weights with --dir"
        )
    if any(resource.name == "." for resource in statement.resources):
        raise ReferenceValueError(
            "the bundle is over a single file without a name. Give the weights with --dir"
        )
    _refuse_unlisted(statement)
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
    Measure a reference value of a folder that holds exactly what was signed.

    Args:
        model: The model's name.
        statement: A verified statement.
        folder: The folder, opened without the statement's `ignore_paths`.
        progress: Called with the bytes just read.

    Raises:
        ReferenceValueError: a file is missing, was not signed, or differs; the message names it.
        WeightsError: a file cannot be read.
    """
    by_file: dict[str, list[Resource]] = {}
    for resource in statement.resources:
        by_file.setdefault(resource.name, []).append(resource)
    if by_file.keys() == {"."} and len(folder.files) == 1:
        by_file = {folder.files[0].name: by_file["."]}
    _refuse_unlisted(statement)
    present = {file.name: file for file in folder.files}
    for name in sorted(present.keys() | by_file.keys()):
        if name not in present:
            raise ReferenceValueError(f"{name[:80]!r} was signed, but it is not in the folder")
        # An empty file has no shards.
        if name not in by_file and not (statement.shard_size and present[name].size == 0):
            raise ReferenceValueError(f"{name[:80]!r} is in the folder, but it was not signed")
    document = measure_folder(model, folder, progress, algorithms=ALGORITHMS)
    measured = {file.name: file for file in document.files}
    for name, resources in by_file.items():
        if statement.shard_size is None and statement.algorithm in ALGORITHMS:
            whole = getattr(measured[name], statement.algorithm)
            is_equal = len(resources) == 1 and whole == resources[0].digest.hex()
        else:
            is_equal = _has_digests(present[name], resources, statement)
        if not is_equal:
            raise ReferenceValueError(f"{name[:80]!r} differs from what was signed")
    ignored = tuple(sorted(set(as_names(statement.ignore_paths)) - IGNORED_AT_TOP))
    return msgspec.structs.replace(document, publisher=statement.publisher, ignore=ignored)


def _refuse_unlisted(statement: Statement) -> None:
    """Refuse files that no manifest lists: a reference value with them would fit no node."""
    for resource in statement.resources:
        if resource.name.partition("/")[0] in IGNORED_AT_TOP:
            raise ReferenceValueError(
                f"{resource.name[:80]!r} was signed, but manifests leave such files out"
            )


def _has_digests(file: ModelFile, resources: list[Resource], statement: Statement) -> bool:
    """Whether the parts of a file have the signed digests and cover all of the file."""
    covered = 0
    with open_model_file(file) as stream:
        for resource in sorted(resources, key=lambda r: r.start):
            end = file.size if resource.end is None else resource.end
            if resource.start != covered or end > file.size:
                return False
            hasher = _hasher(statement.algorithm)
            for data in stream.slices(resource.start, end - resource.start):
                hasher.update(data.data)
            if hasher.digest() != resource.digest:
                return False
            covered = end
    return covered == file.size


def _hasher(algorithm: str) -> Any:
    makers: dict[str, Any] = {SHA256: hashlib.sha256, BLAKE3: blake3.blake3, BLAKE2B: hashlib.blake2b}
    return makers[algorithm]()
