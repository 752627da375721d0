"""
Reference values by hand, in the part of YAML that `verifier.plainyaml` reads.

    model: publisher/name
    files:
      model.safetensors:
        sha256: 9f86d081…          # at least one of sha256 and blake3
        blake3: af1349b9…
        size: 1234                 # bytes; may be left out
    ignore: [notes.txt]            # may be left out
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from attester.evidence import MAX_FILES
from attester.weights.folder import IGNORED_AT_TOP
from verifier.errors import PlainYAMLError, ReferenceValueError
from verifier.plainyaml import Parsed, Path, parse_yaml
from verifier.references.measured import Document, DocumentFile

MAX_YAML: Final = 4 << 20
"""Bytes."""
MAX_VALUES: Final = 20_000
"""4,096 files with both digests and a size have 16,384."""
_HEX32: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Reader:
    """Turns what was parsed into a document; refusals have a place and a path."""

    parsed: Parsed

    def refuse(self, path: Path, what: str) -> NoReturn:
        raise self.parsed.error(path, what)

    def map(self, value: Any, path: Path, known: frozenset[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            self.refuse(path, "not a map with something in it")
        for key in value:
            if known is not None and key not in known:
                self.refuse((*path, key), f"not known; there are {', '.join(sorted(known))}")
        return value

    def document(self) -> Document:
        raw = self.map(self.parsed.value, (), frozenset({"model", "files", "ignore"}))
        for key in ("model", "files"):
            if key not in raw:
                self.refuse((), f"it has no {key}")
        if not isinstance(raw["model"], str):
            self.refuse(("model",), "not text")
        files = self.map(raw["files"], ("files",))
        if len(files) > MAX_FILES:
            self.refuse(("files",), f"{len(files)} files, and a manifest has at most {MAX_FILES}")
        read = [self.file(name, each) for name, each in files.items()]
        ignored = raw.get("ignore", [])
        if not isinstance(ignored, list):
            self.refuse(("ignore",), "not a list of names")
        for number, name in enumerate(ignored):
            if not isinstance(name, str) or not _is_path(name):
                self.refuse(("ignore", number), "not a path within the model")
            if name in files:
                self.refuse(("ignore", number), f"{name[:80]!r} is a file of the model")
        try:
            # In the order of manifests: how the file was written makes no other reference value.
            return Document(
                model=raw["model"],
                files=tuple(sorted(read, key=lambda file: file.name.encode())),
                ignore=tuple(sorted(set(ignored))),
            )
        except ValueError as error:
            self.refuse(("model",), str(error))

    def file(self, name: str, value: Any) -> DocumentFile:
        path: Path = ("files", name)
        if not _is_path(name):
            self.refuse(path, "not a path within the model")
        if name.partition("/")[0] in IGNORED_AT_TOP:
            self.refuse(path, "manifests leave such files out, so it would fit no node")
        raw = self.map(value, path, frozenset({"sha256", "blake3", "size"}))
        digests = {key: each for key, each in raw.items() if key != "size"}
        if not digests:
            self.refuse(path, "neither sha256 nor blake3")
        for key, digest in digests.items():
            if not isinstance(digest, str) or not _HEX32.fullmatch(digest):
                self.refuse((*path, key), "not 64 digits of lower-case hex; quote them if all are decimal")
        size = raw.get("size")
        if "size" in raw and (type(size) is not int or size < 0):
            self.refuse((*path, "size"), "not a number of bytes")
        return DocumentFile(name, size, **digests)


def _is_path(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(parts) and len(name) <= 1024


def read_yaml(data: bytes) -> Document:
    """
    Read a reference value that was written by hand.

    Raises:
        ReferenceValueError: naming line and column.
    """
    try:
        return _Reader(parse_yaml(data, max_size=MAX_YAML, max_values=MAX_VALUES)).document()
    except PlainYAMLError as error:
        raise ReferenceValueError(str(error)) from None
