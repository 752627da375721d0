"""
Tiles: the tree and the entries of a log as files that never change (c2sp.org/tlog-tiles).  Pure.

A tile of level L has up to 256 hashes of nodes of level 8 L.  The levels between are hashed from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from verifier.errors import LogFormatError
from verifier.log.notes import decode_number
from verifier.log.tree import HASH_SIZE, Node, node_hash

HEIGHT: Final = 8
"""The levels of the tree that one tile has."""
WIDTH: Final = 1 << HEIGHT
"""The hashes of a full tile, and the entries of a full bundle."""
TILE_SIZE: Final = WIDTH * HASH_SIZE
"""Bytes of a full tile."""
MAX_LEVEL: Final = 7
"""Of tiles: sizes have 63 bits."""
MAX_ENTRY: Final = 65_535
"""Bytes: the length of an entry has 16 bits."""
MAX_BUNDLE: Final = WIDTH * (2 + MAX_ENTRY)
_ENTRIES: Final = -1
_PATH: Final = re.compile(r"tile/(entries|\d{1,2})/((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d{0,2}))?", re.ASCII)


@dataclass(frozen=True, order=True)
class Tile:
    """The place of a tile or, with `of_entries`, of a bundle of entries."""

    level: int
    index: int
    width: int = WIDTH
    """Its hashes or entries, 1 to 256."""

    @classmethod
    def of_entries(cls, index: int, width: int = WIDTH) -> Tile:
        """The place of the bundle with the entries ``256 * index`` and following."""
        return cls(_ENTRIES, index, width)

    @property
    def has_entries(self) -> bool:
        """Whether it is a bundle of entries."""
        return self.level == _ENTRIES

    @property
    def is_full(self) -> bool:
        """Whether it never changes."""
        return self.width == WIDTH

    @property
    def start(self) -> int:
        """The first leaf that it is over."""
        return self.index * WIDTH << (HEIGHT * max(self.level, 0))

    @property
    def path(self) -> str:
        """Its path under the prefix of the log: ``tile/<L>/<N>[.p/<W>]``."""
        digits = f"{self.index:03d}"
        digits = digits.rjust(-(-len(digits) // 3) * 3, "0")
        *first, last = (digits[at : at + 3] for at in range(0, len(digits), 3))
        place = "".join(f"x{each}/" for each in first) + last
        level = "entries" if self.has_entries else str(self.level)
        return f"tile/{level}/{place}" + ("" if self.is_full else f".p/{self.width}")

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a path under the prefix of the log.  Raises `LogFormatError`."""
        found = _PATH.fullmatch(path) if len(path) < 100 else None
        if found is None:
            raise LogFormatError("the path is not one of a tile")
        level = _ENTRIES if found[1] == "entries" else decode_number(found[1], MAX_LEVEL)
        index = int(found[2].replace("x", "").replace("/", ""))
        width = WIDTH if found[3] is None else decode_number(found[3], WIDTH - 1)
        made = cls(level, index, width)
        if made.path != path:
            raise LogFormatError("the path is not the one path of its tile")
        return made

    def fits(self, size: int) -> bool:
        """Whether a log of *size* entries has as many hashes or entries in this place, or more."""
        return _width_at(self, size) >= self.width


def _width_at(tile: Tile, size: int) -> int:
    return (size >> (HEIGHT * max(tile.level, 0))) - tile.index * WIDTH


def tile_at(level: int, index: int, size: int) -> Tile:
    """
    The widest tile in a place of a log of *size* entries; level -1 is the bundles of entries.

    Raises:
        LogFormatError: the log has nothing there.
    """
    width = min(_width_at(Tile(level, index), size), WIDTH)
    if width < 1:
        raise LogFormatError(f"a log of {size} entries has no tile {Tile(level, index).path}")
    return Tile(level, index, width)


def tiles_of(size: int) -> list[Tile]:
    """All tiles of a log of *size* entries, the widest in each place, without the bundles of entries."""
    found, level = [], 0
    while count := size >> (HEIGHT * level):
        found += [tile_at(level, index, size) for index in range(-(-count // WIDTH))]
        level += 1
    return found


def bundles_of(size: int) -> list[Tile]:
    """All bundles of entries of a log of *size* entries, the widest in each place."""
    return [tile_at(_ENTRIES, index, size) for index in range(-(-size // WIDTH))]


def new_tiles(old: int, new: int) -> list[Tile]:
    """
    What a log must write when it grows from *old* to *new* entries: tiles and bundles, the widest in each place.

    A place that was full at *old* is not among them.
    """
    found = [tile_at(_ENTRIES, index, new) for index in range(old // WIDTH, -(-new // WIDTH)) if new > old]
    level = 0
    while count := new >> (HEIGHT * level):
        before = old >> (HEIGHT * level)
        if count > before:
            found += [tile_at(level, index, new) for index in range(before // WIDTH, -(-count // WIDTH))]
        level += 1
    return found


def tile_of(node: Node, size: int) -> Tile:
    """The widest tile of a log of *size* entries from which *node* follows."""
    level, index = node
    return tile_at(level // HEIGHT, index << (level % HEIGHT) >> HEIGHT, size)


def tiles_for(nodes: Iterable[Node], size: int) -> set[Tile]:
    """The tiles of a log of *size* entries from which *nodes* follow."""
    return {tile_of(node, size) for node in nodes}


def split_tile(data: bytes, width: int) -> list[bytes]:
    """
    The hashes of a tile.

    Raises:
        LogFormatError: it does not have *width* hashes.
    """
    if len(data) != width * HASH_SIZE:
        raise LogFormatError(f"a tile has {len(data)} bytes, and must have {width} hashes of {HASH_SIZE}")
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


class TiledNodes:
    """The nodes of a tree, from its tiles: what `verifier.log.tree` makes proofs of."""

    def __init__(self, size: int, read: Callable[[Tile], bytes]) -> None:
        """
        Read the nodes of a log.

        Args:
            size: The entries of the log.
            read: Gives the bytes of a tile.  It is asked once for each.
        """
        self._size = size
        self._read = read
        self._hashes: dict[Tile, list[bytes]] = {}

    def __call__(self, level: int, index: int) -> bytes:
        """The hash of a node.  Raises `LogFormatError`: the log has no such node, or its tile is malformed."""
        tile = tile_of((level, index), self._size)
        if tile not in self._hashes:
            self._hashes[tile] = split_tile(self._read(tile), tile.width)
        height = level % HEIGHT
        first = (index << height) % WIDTH
        hashes = self._hashes[tile][first : first + (1 << height)]
        if len(hashes) != 1 << height:
            raise LogFormatError(f"a log of {self._size} entries has no node {index} at level {level}")
        return fold_perfect(hashes)


def fold_perfect(hashes: Sequence[bytes]) -> bytes:
    """The root over as many hashes as a power of two."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """
    Encode a bundle of entries: each with its length in 16 bits before it.

    Raises:
        LogFormatError: there are more than 256, or one is longer than 65,535 bytes.
    """
    if len(entries) > WIDTH or any(len(entry) > MAX_ENTRY for entry in entries):
        raise LogFormatError(f"a bundle has at most {WIDTH} entries of at most {MAX_ENTRY} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """
    Read a bundle of *width* entries.

    Raises:
        LogFormatError: it has more or fewer, or ends within one.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < width:
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        if at + 2 > len(data) or len(entry) != length:
            raise LogFormatError(f"a bundle of entries ends within its entry {len(entries)}")
        entries.append(entry)
        at += 2 + length
    if len(entries) != width or at != len(data):
        raise LogFormatError(f"a bundle of entries does not have exactly {width}")
    return entries
