"""
Emergency blocks: how they are written, and what they match.  Pure.

    kind            value
    digest          the SHA-256 or BLAKE3 of a file, or the digest of a reference value
    engine-version  ENGINE@VERSION, ENGINE@PATTERN such as vllm@0.11.*, or ENGINE@RANGE such as vllm@>=0.10,<0.11.2
    device          a device's UUID as its driver gives it, or a pattern such as GPU-1d*

A block is meant for whatever a node may call the same thing: capital letters, spaces around a value and
a local build (0.11.0+cpu) do not escape it.  Versions are compared as PEP 440 orders them.  What is not
such a version, such as llama.cpp's b6123-1a2b3c, is compared by the number that it begins with.  If a
version has no number, nobody can say that it is outside a range, so every range matches it.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final

from packaging.version import InvalidVersion, Version

from verifier.errors import RequestError

KINDS: Final = ("digest", "engine-version", "device")

_MAX_VALUE: Final = 256
_DIGEST: Final = re.compile(r"(?:(?:sha-?256|blake3)[:;-])?([0-9a-f]{64})")
_CONDITION: Final = re.compile(r"(<=|>=|==|!=|<|>)(.+)")
_COMPARE: Final[Mapping[str, Callable[[Version, Version], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne
}  # fmt: skip
_LEADING_NUMBER: Final = re.compile(r"[a-z]{0,8}[-_.]?([0-9]{1,12}(?:\.[0-9]{1,12}){0,4})(.*)", re.DOTALL)
_MAX_COMPARED: Final = 128
"""A longer version is not a version: it has no number."""


def normalise(kind: str, value: str) -> str:
    """
    Give the value of a block in the form in which it is stored.

    Raises:
        RequestError: There is no such kind, or the value does not have the form of its kind.
    """
    if kind not in KINDS:
        raise RequestError(f"the kind of a block must be digest, engine-version or device, not {kind[:40]!r}")
    value = value.strip().casefold()
    if not value or len(value) > _MAX_VALUE or not value.isprintable():
        raise RequestError(f"the value of a block must have 1 to {_MAX_VALUE} printable characters")
    if kind == "digest":
        found = _DIGEST.fullmatch(value)
        if found is None:
            raise RequestError(
                "a digest must have 64 hexadecimal digits, after sha256: or blake3: if you like"
            )
        return found[1]
    if kind == "engine-version":
        return _normalise_engine(value)
    return value


def _normalise_engine(value: str) -> str:
    engine, at, versions = (part.strip() for part in value.partition("@"))
    if not (engine and at and versions):
        raise RequestError(
            "the version of an engine must be written ENGINE@VERSION, such as vllm@0.11.0, vllm@0.11.* or vllm@<0.11.2"
        )
    parts = [re.sub(r"\s+", "", part) for part in versions.split(",")]
    for part in parts:
        condition = _CONDITION.fullmatch(part)
        if not part or (condition is None and part[0] in "<>=!~^"):
            raise RequestError(
                f"{part!r} is not a range of versions: write <, <=, >, >=, == or != and a version, with commas between"
            )
        if condition is not None and _number_of(condition[2]) is None:
            raise RequestError(
                f"{condition[2]!r} has no number that versions could be compared with; write a version such as 0.11.2"
            )
        if condition is None and len(parts) > 1:
            raise RequestError(f"{part!r} stands beside a range: write =={part}, or block it alone")
    return f"{engine}@{','.join(parts)}"


def find_engine(blocks: Collection[str], engine: str, version: str) -> str | None:
    """Give the block that a running engine falls under; `None` if there is none."""
    return next((block for block in sorted(blocks) if matches_engine(block, engine, version)), None)


def find_device(blocks: Collection[str], uuid: str) -> str | None:
    """Give the block that a device falls under; `None` if there is none."""
    form = uuid.strip().casefold()
    return next((block for block in sorted(blocks) if _matches_text(block.casefold(), form)), None)


def matches_engine(block: str, engine: str, version: str) -> bool:
    """Whether a running engine falls under a block of the kind engine-version, in the stored form or an older one."""
    named, _, versions = block.casefold().rpartition("@")
    if not _matches_text(named, engine.strip().casefold()):
        return False
    running = version.strip().casefold()
    return all(_matches_version(part, running) for part in versions.split(","))


def literal_of(block: str) -> bytes:
    """
    Give the longest text that everything which falls under a block of a device has, in lower case.

    A search of evidence for it, in lower case too, is quick.  Empty if a block matches everything.
    """
    return max(re.split(r"[*?]", block.casefold()), key=len).encode()


def _matches_version(part: str, running: str) -> bool:
    condition = _CONDITION.fullmatch(part)
    if condition is None:
        return _matches_text(part, running) or _is_same_version(part, running)
    bound, found = _number_of(condition[2]), _number_of(running)
    return found is None or bound is None or _COMPARE[condition[1]](_without_local(found), bound)


def _is_same_version(part: str, running: str) -> bool:
    """Whether a version without a local build, or ``0.11.*``, is that of *running*, written in another way."""
    is_prefix = part.endswith(".*")
    bound, found = _exact_of(part.removesuffix(".*")), _number_of(running)
    if bound is None or found is None or bound.local is not None:
        return False
    if is_prefix:
        length = len(bound.release)
        padded = (*found.release, *(0,) * length)
        return padded[:length] == bound.release
    return _without_local(found) == bound


@lru_cache(maxsize=1024)
def _number_of(text: str) -> Version | None:
    """A version as PEP 440 reads it, or else the number that it begins with; `None` if it has none."""
    if len(text) > _MAX_COMPARED:
        return None
    try:
        return Version(text)
    except InvalidVersion:
        found = _LEADING_NUMBER.fullmatch(text)
        return None if found is None else Version(found[1])


@lru_cache(maxsize=1024)
def _exact_of(text: str) -> Version | None:
    """As `_number_of`, if nothing follows the number: ``b6123-1a2b3c`` is one build, and not each with that number."""
    if len(text) > _MAX_COMPARED:
        return None
    try:
        return Version(text)
    except InvalidVersion:
        found = _LEADING_NUMBER.fullmatch(text)
        return None if found is None or found[2] else Version(found[1])


def _without_local(version: Version) -> Version:
    return version if version.local is None else Version(version.public)


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    # Its patterns do not go back: a node that chooses its text cannot make a match slow.
    return re.compile(fnmatch.translate(text.replace("[", "[[]")))


def _matches_text(pattern: str, text: str) -> bool:
    if not ("*" in pattern or "?" in pattern):
        return pattern == text
    return _pattern(pattern).fullmatch(text) is not None
