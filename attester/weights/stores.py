"""
Where the files of a model are, from the path that a person gives.

A path may be a folder, one file of weights, the folder of a repository in the cache of the Hugging Face Hub, or a
manifest in Ollama's store.  Whatever holds several models is refused, with their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from attester import strictjson
from attester.errors import WeightsError
from attester.weights.roles import WEIGHT_SUFFIXES

_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_REF_BYTES: Final = 256
_MAX_LISTED: Final = 20
"""A refusal names at most so many."""
_LAYER: Final = "application/vnd.ollama.image."
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-f]{64}\Z")
_REVISION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}\Z")
_SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z]+)\Z")
_LAYER_NAMES: Final = {"model": "model.gguf", "projector": "mmproj.gguf", "adapter": "adapter.gguf"}
"""By the end of a layer's media type, the name of its file, if that is not the end itself."""


class Shard(Struct, frozen=True):
    """A name such as ``model-00001-of-00003.safetensors``, in its parts."""

    stem: str
    number: int
    count: int
    suffix: str

    def names(self) -> Iterator[str]:
        """All shards of the same file."""
        for number in range(1, self.count + 1):
            yield f"{self.stem}-{number:05}-of-{self.count:05}{self.suffix}"


class Layer(Struct, frozen=True):
    """A file of a model in a store that names files by their contents."""

    name: str
    path: Path
    size: int


class Place(Struct, frozen=True):
    """Where the files of a model are."""

    root: Path
    only: tuple[str, ...] = ()
    """Names below *root*; all if empty."""
    layers: tuple[Layer, ...] = ()
    """The files, if a manifest lists them: then nothing below *root* counts."""


def shard_of(name: str) -> Shard | None:
    """The parts of a shard's name; `None` if it is none."""
    found = _SHARD.match(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return None
    return Shard(found["stem"], int(found["number"]), int(found["count"]), found["suffix"])


def find_place(path: Path) -> Place:
    """
    Where the files of the model at *path* are.

    Raises:
        WeightsError: *path* holds several models, none, or is no place of a model.
        OSError, ValueError, RuntimeError: it cannot be looked at.
    """
    real = path.resolve(strict=True)
    if real.is_dir():
        return _place_of_folder(path, real)
    if not real.is_file():
        raise WeightsError(f"{path} is neither a file nor a folder")
    name = path.name
    if name.endswith(WEIGHT_SUFFIXES):
        # The name is the link's: a cache of the Hub links to a file that is named by its digest.
        shard = shard_of(name)
        return Place(path.parent.resolve(), (name,) if shard is None else tuple(shard.names()))
    layers = _read_ollama(real)
    if layers is None:
        raise WeightsError(f"{path} is not a folder, no file of weights, and no manifest of Ollama's store")
    return Place(real, layers=layers)


def _place_of_folder(path: Path, real: Path) -> Place:
    if (real / "snapshots").is_dir() and (real.name.startswith("models--") or (real / "blobs").is_dir()):
        return Place(_snapshot_of(path, real))
    for store in (real, real / "models"):
        if (store / "manifests").is_dir() and (store / "blobs").is_dir():
            raise several(path, "Ollama's store of several models", _manifests_below(store / "manifests"))
    if "manifests" in real.parts and not _holds_weights(real):
        found = _manifests_below(real)
        if len(found) == 1 and (layers := _read_ollama(real / found[0])) is not None:
            return Place(real / found[0], layers=layers)
        if found:
            raise several(path, "a part of Ollama's store", found)
    return Place(real)


def several(path: Path, what: str, names: list[str]) -> WeightsError:
    """The refusal of a *path* that holds several models, with their names."""
    shown = ", ".join(name[:120] for name in names[:_MAX_LISTED])
    more = ", …" if len(names) > _MAX_LISTED else ""
    return WeightsError(
        f"{path} is {what}. Give the path of one of them in it: {shown or 'there is none'}{more}"
    )


def _snapshot_of(path: Path, real: Path) -> Path:
    """The snapshot that ``refs/main`` names, or the only one."""
    snapshots = sorted(each.name for each in (real / "snapshots").iterdir() if each.is_dir())
    main = real / "refs" / "main"
    if main.is_file():
        with open(main, "rb") as stream:
            revision = stream.read(_MAX_REF_BYTES).decode(errors="replace").strip()
        if not _REVISION.match(revision) or revision not in snapshots:
            raise WeightsError(
                f"{path}: refs/main names the revision {revision[:60]!r}, which is not in snapshots. Download it again, "
                f"or give the path of a snapshot: {', '.join(snapshots[:_MAX_LISTED]) or 'there is none'}"
            )
        return real / "snapshots" / revision
    if len(snapshots) != 1:
        raise several(
            path / "snapshots", "the snapshots of several revisions, and refs/main names none", snapshots
        )
    return real / "snapshots" / snapshots[0]


def _holds_weights(folder: Path) -> bool:
    return any(each.name.endswith(WEIGHT_SUFFIXES) for each in folder.iterdir())


def _manifests_below(folder: Path) -> list[str]:
    found = (each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    return sorted(each.relative_to(folder).as_posix() for each in found)


def _read_ollama(path: Path) -> tuple[Layer, ...] | None:
    """The files that a manifest of Ollama's store lists; `None` if it is no such manifest."""
    store = next((each.parent for each in path.parents if each.name == "manifests"), None)
    if store is None or path.stat().st_size > _MAX_MANIFEST_BYTES:
        return None
    try:
        raw = strictjson.loads(path.read_bytes())
    except ValueError:
        return None
    return parse_ollama(raw, path, store / "blobs")


def parse_ollama(raw: Any, path: Path, blobs: Path) -> tuple[Layer, ...] | None:
    """
    The files of a decoded manifest of Ollama's store; `None` if it is no such manifest.

    Raises:
        WeightsError: a layer is malformed, or two have the same name.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("layers"), list) or not raw["layers"]:
        return None
    layers: dict[str, Layer] = {}
    entries = [*raw["layers"], *([] if raw.get("config") is None else [raw["config"]])]
    for number, entry in enumerate(entries):
        kind = entry.get("mediaType") if isinstance(entry, dict) else None
        digest, size = (entry.get("digest"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(digest, str) or not _DIGEST.match(digest):
            raise WeightsError(f"{path}: layer {number} of the manifest has no media type or no digest")
        if type(size) is not int or size < 0:
            raise WeightsError(f"{path}: layer {number} of the manifest has no size")
        name = _name_of_layer(kind, entry.get("name"))
        if name in layers:
            stem, dot, suffix = name.partition(".")
            name = f"{stem}-{number}{dot}{suffix}"
        layers[name] = Layer(name, blobs / digest.replace(":", "-"), size)
    return tuple(layers.values())


def _name_of_layer(kind: str, named: object) -> str:
    """A name that says what the layer is: its digest would be another one with each change."""
    if kind == _CONFIG:
        return "config.json"
    tail = kind.removeprefix(_LAYER) if kind.startswith(_LAYER) else "unknown"
    if tail in ("tensor", "json") and isinstance(named, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)*", named):
        return named if tail == "json" else f"{named}.tensor"
    return _LAYER_NAMES.get(tail, tail if re.fullmatch(r"[a-z]{1,32}", tail) else "unknown")


def is_complete(layer: Layer) -> bool:
    """Whether a layer is there with all of its bytes."""
    return layer.path.is_file() and layer.path.stat().st_size == layer.size
