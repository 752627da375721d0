"""What every reference value must be, whoever has made it and in whatever form it comes."""

from __future__ import annotations

from typing import Final

from attester.evidence import MAX_FILES
from attester.weights.folder import IGNORED_AT_TOP
from verifier.references.measured import Document, DocumentTensor
from verifier.references.shapes import refuse

MAX_NAME: Final = 1024
"""Characters of a path."""


def is_path(name: str) -> bool:
    """Whether *name* is a path within a model: relative, in its one form, with `/` between its parts."""
    parts = name.split("/")
    return (
        "\\" not in name
        and "\0" not in name
        and not {"", ".", ".."} & set(parts)
        and len(name) <= MAX_NAME
        and not any("\ud800" <= character <= "\udfff" for character in name)
    )


def check(document: Document) -> None:
    """
    Refuse a value that no manifest could equal, or that contradicts itself.

    Raises:
        ReferenceValueError: it is one; the message names the file or the tensor.
    """
    if len(document.files) > MAX_FILES:
        refuse(document.model, f"has {len(document.files)} files, but a manifest has at most {MAX_FILES}")
    sizes = {file.name: file.size for file in document.files}
    for name, size in sizes.items():
        shown = repr(name[:80])
        if not is_path(name):
            refuse(shown, "is not a path within the model")
        if name.partition("/")[0] in IGNORED_AT_TOP:
            refuse(shown, "is a file that manifests leave out, so this value would fit no node")
        if size is not None and size < 0:
            refuse(shown, "has fewer than 0 bytes")
    if len(document.ignore) > MAX_FILES or any(len(each) > MAX_NAME for each in document.ignore):
        refuse(document.model, f"ignores more than {MAX_FILES} names, or one longer than {MAX_NAME}")
    for tensor in document.tensors:
        _check_tensor(tensor, sizes)
    if document.information_bytes is not None and document.information_bytes < 0:
        refuse(document.model, "has less than no information")


def _check_tensor(tensor: DocumentTensor, sizes: dict[str, int | None]) -> None:
    shown = f"the tensor {tensor.name[:80]!r}"
    if tensor.size < 0 or tensor.offset < 0 or min(tensor.shape, default=0) < 0:
        refuse(shown, "has a negative size")
    if not tensor.file:
        return
    if tensor.file not in sizes:
        refuse(shown, f"is in {tensor.file[:80]!r}, which is no file of the model")
    size = sizes[tensor.file]
    if size is not None and tensor.offset + tensor.size > size:
        refuse(shown, f"ends behind the end of {tensor.file[:80]!r}")
