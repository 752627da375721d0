"""
A policy bundle: a folder of Rego, data and tests, identified by the digest of all of it.

Results name the exact version: ``NAME@VERSION#sha-256;DIGEST``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from attester import cbor
from verifier.errors import PolicyError
from verifier.schemes.base import Thresholds

MAX_FILE = 1 << 20
MAX_FILES = 64
_TEST_SUFFIX: Final = "_test.rego"


class _Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+-]{1,32}\Z")]
    author: str
    description: str


@dataclass(frozen=True)
class Bundle:
    """A bundle as read: never changed in place."""

    id: str
    modules: tuple[tuple[str, str], ...]
    """Rego sources by file name, tests left out."""
    tests: tuple[tuple[str, str], ...]
    data: str
    """JSON text, loaded as `data`."""
    thresholds: Thresholds


def load(folder: Path) -> Bundle:
    """
    Read a bundle.

    Raises:
        PolicyError: not a bundle, too large, without rules, or with data that does not parse.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if len(files) > MAX_FILES or any(path.stat().st_size > MAX_FILE for path in files):
            raise PolicyError(f"{folder}: more than {MAX_FILES} files, or one above {MAX_FILE} bytes")
        content = {path.name: path.read_bytes() for path in files}
    except OSError as error:
        raise PolicyError(f"{folder} cannot be read: {error.strerror}") from None
    manifest = _decode(folder, content, "bundle.json", _Manifest)
    thresholds = _decode(folder, content, "data.json", _Data).thresholds
    try:
        sources = {name: data.decode() for name, data in content.items() if name.endswith(".rego")}
    except UnicodeDecodeError:
        raise PolicyError(f"{folder}: a module is not UTF-8") from None
    modules = tuple((n, s) for n, s in sorted(sources.items()) if not n.endswith(_TEST_SUFFIX))
    if not modules:
        # An empty policy is an error, not a pass.
        raise PolicyError(f"{folder} holds no rules")
    digests = {name: hashlib.sha256(data).digest() for name, data in content.items()}
    digest = hashlib.sha256(cbor.encode(digests)).hexdigest()
    return Bundle(
        id=f"{manifest.name}@{manifest.version}#sha-256;{digest}",
        modules=modules,
        tests=tuple((n, s) for n, s in sorted(sources.items()) if n.endswith(_TEST_SUFFIX)),
        data=content["data.json"].decode(),
        thresholds=thresholds,
    )


class _Data(Struct, frozen=True):
    thresholds: Thresholds


def _decode(folder: Path, content: dict[str, bytes], name: str, kind: type[Any]) -> Any:
    if name not in content:
        raise PolicyError(f"{folder} has no {name}")
    try:
        return msgspec.json.decode(content[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{folder / name}: {error}") from None
