"""
The trust anchors of a home: the files in its folder ``anchors``, read whenever they are needed.

One file that cannot be used is named, and the others count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from attester.errors import ConfigError
from verifier.errors import ReferenceValueError
from verifier.references import anchor_reading
from verifier.references.anchors import Anchor

SUFFIXES: Final = (".pem", ".crt", ".cer", ".der", ".pub", ".jwk", ".jwks", ".json")
"""The ends of the names of files that are read."""
MAX_FILES: Final = 1024


@dataclass(frozen=True)
class AnchorFile:
    """What one file has."""

    path: Path
    anchors: tuple[tuple[str, Anchor], ...] = ()
    """By name: that of the file, with a number if the file has several."""
    refused: tuple[str, ...] = ()
    """Why the file, or a part of it, cannot be used."""
    has_private_key: bool = False


def read_file(path: Path, *, public_half: bool = False) -> AnchorFile:
    """
    Read a file.  What is wrong with it is in the answer.

    Args:
        path: The file.
        public_half: Take the public half of a private key, where it is refused otherwise.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(anchor_reading.MAX_FILE + 1)
    except OSError as error:
        return AnchorFile(path, refused=(f"it cannot be read: {error.strerror}",))
    try:
        found = anchor_reading.read_anchors(data, public_half=public_half)
    except ReferenceValueError as error:
        return AnchorFile(path, (), (str(error),), anchor_reading.has_private_key(data))
    return AnchorFile(
        path,
        has_private_key=anchor_reading.has_private_key(data),
        anchors=tuple(
            (path.stem if len(found) == 1 else f"{path.stem}#{number}", each)
            for number, each in enumerate(found, 1)
            if not isinstance(each, ReferenceValueError)
        ),
        refused=tuple(
            str(each) if len(found) == 1 else f"number {number}: {each}"
            for number, each in enumerate(found, 1)
            if isinstance(each, ReferenceValueError)
        ),
    )


def read_folder(folder: Path) -> list[AnchorFile]:
    """
    Read every file of a folder whose name says that it is an anchor, by name.

    Files of one name and several endings keep their endings, so that no anchor hides another.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        return [AnchorFile(folder, refused=(f"it cannot be read: {error.strerror}",))]
    if len(paths) > MAX_FILES:
        return [AnchorFile(folder, refused=(f"it has {len(paths)} files, and at most {MAX_FILES} are read",))]
    stems = Counter(path.stem for path in paths)
    return [_named(read_file(path), is_alone=stems[path.stem] == 1) for path in paths]


def _named(file: AnchorFile, *, is_alone: bool) -> AnchorFile:
    if is_alone:
        return file
    stem, name = file.path.stem, file.path.name
    named = tuple((name + each.removeprefix(stem), anchor) for each, anchor in file.anchors)
    return replace(file, anchors=named)


def usable(files: Iterable[AnchorFile]) -> dict[str, Anchor]:
    """The anchors of files, by name."""
    return dict(pair for file in files for pair in file.anchors)


def read_given(path: Path) -> AnchorFile:
    """
    Read a file that a person has named: of a private key the public half is taken.

    Raises:
        ConfigError: nothing in it can be used.
    """
    file = read_file(path, public_half=True)
    if not file.anchors:
        raise ConfigError(f"{path} must be a public key in PEM or JWK, or a certificate: {file.refused[0]}")
    return file
