"""
Reference values that people write by hand, in the part of YAML that `verifier.plainyaml` reads.

    model: publisher/name
    files:
      model.safetensors:
        sha256: 9f86d081…          # at least one of sha256 and blake3
        blake3: af1349b9…
        size: 1234                 # bytes; optional
    ignore: [notes.txt]            # optional
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from attester.evidence import MAX_FILES
from attester.weights.folder import IGNORED_AT_TOP
from verifier.errors import PlainYAMLError, ReferenceValueError
from verifier.plainyaml import Parsed, Path, parse_yaml
from verifier.references.acceptable import is_path
from verifier.references.measured import Document, DocumentFile

MAX_YAML: Final = 4 << 20
"""Bytes."""
MAX_VALUES: Final = 20_000
"""4,096 files with both digests and a size have 16,384."""
_HEX32: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Reader:
    """Turns a parsed file into a document; its refusals name the place and the path."""

    parsed: Parsed

    def refuse(self, path: Path, what: str) -> NoReturn:
        raise self.parsed.error(path, what)

    def map(self, value: Any, path: Path, known: frozenset[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            self.refuse(path, "this must be a map that is not empty")
        for key in value:
            if known is not None and key not in known:
                self.refuse((*path, key), f"this key is not known. Use {', '.join(sorted(known))}")
        return value

    def document(self) -> Document:
        raw = self.map(self.parsed.value, (), frozenset({"model", "files", "ignore"}))
        for key in ("model", "files"):
            if key not in raw:
                self.refuse((), f"the key {key} is missing")
        if not isinstance(raw["model"], str):
            self.refuse(("model",), "this must be text")
        files = self.map(raw["files"], ("files",))
        if len(files) > MAX_FILES:
            self.refuse(("files",), f"there are {len(files)} files, but a manifest has at most {MAX_FILES}")
        read = [self.file(name, each) for name, each in files.items()]
        ignored = raw.get("ignore", [])
        if not isinstance(ignored, list):
            self.refuse(("ignore",), "this must be a list of names")
        for number, name in enumerate(ignored):
            if not isinstance(name, str) or not is_path(name):
                self.refuse(("ignore", number), "this is not a path within the model")
            if name in files:
                self.refuse(("ignore", number), f"{name[:80]!r} is a file of the model")
        try:
            # Sorted, because the order in the file must not change the reference value.
            return Document(
                model=raw["model"],
                files=tuple(sorted(read, key=lambda file: file.name.encode())),
                ignore=tuple(sorted(set(ignored))),
            )
        except ValueError as error:
            self.refuse(("model",), str(error))

    def file(self, name: str, value: Any) -> DocumentFile:
        path: Path = ("files", name)
        if not is_path(name):
            self.refuse(path, "this is not a path within the model")
        if name.partition("/")[0] in IGNORED_AT_TOP:
            self.refuse(path, "manifests leave such files out, so this value would fit no node")
        raw = self.map(value, path, frozenset({"sha256", "blake3", "size"}))
        digests = {key: each for key, each in raw.items() if key != "size"}
        if not digests:
            self.refuse(path, "there is neither sha256 nor blake3")
        for key, digest in digests.items():
            if not isinstance(digest, str) or not _HEX32.fullmatch(digest):
                self.refuse(
                    (*path, key), "this must be 64 digits of lower-case hex. Quote them if all are decimal"
                )
        size = raw.get("size")
        if "size" in raw and (type(size) is not int or size < 0):
            self.refuse((*path, "size"), "this must be a number of bytes")
        return DocumentFile(name, size, **digests)


def read_yaml(data: bytes) -> Document:
    """
    Read a reference value that was written by hand.

    Raises:
        ReferenceValueError: the file is refused; the message names line and column.
    """
    try:
        return _Reader(parse_yaml(data, max_size=MAX_YAML, max_values=MAX_VALUES)).document()
    except PlainYAMLError as error:
        raise ReferenceValueError(str(error)) from None
