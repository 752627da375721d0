"""
Names of files that are not the model's: as they are, or by patterns, as in a ``.gitignore``.

The name of a file or of a folder leaves it out.  What a person gives with ``*`` or ``?`` is a pattern: without a
slash for names in any folder, with one for paths from the top.  What begins with ``!`` comes back; the last that
fits counts.  Documents keep patterns as ``glob:…``: a publisher who has signed a list of names has signed no patterns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Final

from attester.errors import WeightsError
from attester.weights.roles import WEIGHT_SUFFIXES
from attester.weights.stores import shard_of

MAX_PATTERNS: Final = 256
_GLOB: Final = "glob:"


class Excluded:
    """
    What a list of names and patterns leaves out.

    Raises:
        WeightsError: there are too many.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._plain = frozenset(name for name in names if not name.startswith(_GLOB))
        if len(names) - len(self._plain) > MAX_PATTERNS:
            raise WeightsError(
                f"there are {len(names)} patterns to leave out, and at most {MAX_PATTERNS} may be given"
            )
        self._patterns = _compiled(tuple(names)) if len(self._plain) != len(names) else ()

    def covers(self, name: str) -> bool:
        """Whether a file or folder is left out."""
        if not self._patterns:
            return name in self._plain
        left_out = False
        for pattern in self._patterns:
            if pattern.leaves_out != left_out and pattern.fits(name):
                left_out = pattern.leaves_out
        return left_out

    def covers_path(self, name: str) -> bool:
        """Whether a file is left out, by its own name or by that of a folder that it is in."""
        parts = name.split("/")
        return any(self.covers("/".join(parts[:count])) for count in range(1, len(parts) + 1))


def given(names: Sequence[str]) -> tuple[str, ...]:
    """What a person gives, as documents keep it."""
    return tuple(_GLOB + name if _is_pattern(name) else name for name in names)


def as_names(names: Sequence[str]) -> tuple[str, ...]:
    """What somebody else has signed, which are names: those that would be patterns here are left out."""
    return tuple(name for name in names if not name.startswith(_GLOB))


def only(names: Sequence[str]) -> tuple[str, ...]:
    """The patterns that leave out, in the folders of *names*, all weights but these and their shards."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    patterns = [
        f"/{folder}/*{suffix}".replace("//", "/")
        for folder in folders
        for suffix in (*WEIGHT_SUFFIXES, ".safetensors.index*.json", ".bin.index*.json")
    ]
    for name in names:
        shard = shard_of(name)
        patterns += [f"!{each}" for each in ([name] if shard is None else shard.names())]
    return given(patterns)


def _is_pattern(name: str) -> bool:
    return name.startswith(("!", "/")) or "*" in name or "?" in name or name.endswith("/")


@dataclass(frozen=True)
class _Pattern:
    """Part by part, because a wildcard never passes a slash; each part takes time in proportion to the name."""

    parts: tuple[re.Pattern[str], ...]
    in_any_folder: bool
    leaves_out: bool

    def fits(self, name: str) -> bool:
        parts = [name.rpartition("/")[2]] if self.in_any_folder else name.split("/")
        return len(parts) == len(self.parts) and all(
            pattern.match(part) for pattern, part in zip(self.parts, parts, strict=True)
        )


@lru_cache(maxsize=64)
def _compiled(names: tuple[str, ...]) -> tuple[_Pattern, ...]:
    found = []
    for each in names:
        is_pattern, name = each.startswith(_GLOB), each.removeprefix(_GLOB)
        text = name.removeprefix("!").rstrip("/") if is_pattern else name
        in_any_folder = is_pattern and _is_pattern(text) and "/" not in text
        parts = (text.removeprefix("/") if is_pattern else text).split("/")
        translated = tuple(_translate(part) if is_pattern else re.escape(part) + r"\Z" for part in parts)
        found.append(
            _Pattern(
                tuple(map(re.compile, translated)), in_any_folder, not (is_pattern and name.startswith("!"))
            )
        )
    return tuple(found)


def _translate(part: str) -> str:
    # A bracket is a letter like others: files are called so.
    return translate(part.replace("[", "[[]"))
