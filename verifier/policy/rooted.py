"""
A bundle's data as OPA roots it: the folder is the path, so ``limits/eu/data.yaml`` is ``data.limits.eu``.

Objects are merged.  Two files that say something about the same place otherwise are refused, both
by name.  YAML is read as the part of it on which all readers agree (`verifier.plainyaml`), and is
JSON from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from verifier.errors import BundleError, PlainYAMLError
from verifier.plainyaml import parse_yaml
from verifier.policy.content import check_object, is_data, read_json

MAX_YAML: Final = 256 * 1024
"""All files of YAML data together: its reader is slow and careful.  Larger tables are JSON."""
_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 50_000

_Part: TypeAlias = tuple[str, tuple[str, ...], dict[str, Any]]
"""A file, the path of its folder, and what is in it."""


def data_of(content: Mapping[str, bytes]) -> dict[str, Any]:
    """
    Merge all data of a bundle.

    Raises:
        BundleError: a file cannot be read, or two files disagree.
    """
    parts = _read(content)
    merged: dict[str, Any] = {}
    for number, (name, path, value) in enumerate(parts):
        at = merged
        for depth, part in enumerate(path):
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise _conflict(name, path[: depth + 1], parts[:number])
        _merge(at, value, name, path, parts[:number])
    return merged


def file_with(content: Mapping[str, bytes], key: str) -> str:
    """The file in which a key of `data` is, or should be."""
    names = [name for name in content if is_data(name)]
    below = [name for name in names if name.startswith(f"{key}/")]
    at_root = [name for name in names if "/" not in name]
    holders = [name for name in at_root if key in _decoded(name, content[name])]
    return (holders or below or at_root or ["data.json"])[0]


def _read(content: Mapping[str, bytes]) -> list[_Part]:
    found: list[_Part] = []
    bytes_left = MAX_YAML
    # What is above comes first, so that the deeper file is the one that is said to conflict.
    for name in sorted(filter(is_data, content), key=lambda name: (name.count("/"), name)):
        if not name.endswith(".json"):
            bytes_left -= len(content[name])
            if bytes_left < 0:
                raise BundleError(
                    f"{name}: YAML data may have {MAX_YAML} bytes in all files together. Write large tables as data.json"
                )
        found.append((name, tuple(name.split("/")[:-1]), _decoded(name, content[name])))
    return found


def _decoded(name: str, data: bytes) -> dict[str, Any]:
    if name.endswith(".json"):
        return read_json(name, data)
    try:
        parsed = parse_yaml(
            data, max_size=MAX_YAML, max_depth=_MAX_DEPTH, max_values=_MAX_VALUES, decimals=True
        )
    except PlainYAMLError as error:
        raise BundleError(f"{name}: {error}") from None
    return check_object(name, parsed.value)


def _merge(
    into: dict[str, Any], value: dict[str, Any], name: str, path: tuple[str, ...], before: Sequence[_Part]
) -> None:
    # Without recursion, because the files may be deep.
    work = [(into, value, path)]
    while work:
        target, source, at = work.pop()
        for key, item in source.items():
            if key not in target:
                target[key] = item
            elif isinstance(item, dict) and isinstance(target[key], dict):
                work.append((target[key], item, (*at, key)))
            else:
                raise _conflict(name, (*at, key), before)


def _conflict(name: str, path: tuple[str, ...], before: Sequence[_Part]) -> BundleError:
    other = next((file for file, folder, value in before if _reaches(folder, value, path)), "another file")
    shown = ".".join(path)[:200]
    return BundleError(
        f"{name}: {other} has data.{shown} too, and only objects can be merged. Keep one of the two"
    )


def _reaches(folder: tuple[str, ...], value: Any, path: tuple[str, ...]) -> bool:
    """Whether a file says something about *path* that is not only a folder on the way."""
    for depth, part in enumerate(path):
        if depth < len(folder):
            if folder[depth] != part:
                return False
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return not isinstance(value, dict)
    return True
