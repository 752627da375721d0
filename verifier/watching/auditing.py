"""
Verify all of a log: every entry, every tile, the root, and that it continues what was seen before.

What is wrong is told with its place.  An entry is compared with the hash in its tile, each tile with the hash of it in
the tile above, and the root of all with the signed one; so a change is found at the lowest level that was not changed
with it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from verifier.errors import LogFormatError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint
from verifier.log.tiles import WIDTH, Tile, TiledNodes, bundles_of, fold_perfect
from verifier.log.tree import CompactRange, leaf_hash
from verifier.watching.sources import LogSource, read_entries, read_hashes

MAX_FINDINGS: Final = 20
"""After so many the rest of a log is not read."""
_AHEAD: Final = 4
"""Bundles that are read at once."""

OnEntry: TypeAlias = Callable[[int, bytes], None]
"""Is given each entry with its index."""
_Read: TypeAlias = list[bytes] | str
"""What was read, or why it could not be used."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a log."""

    place: str
    """``entry 17``, the path of a tile, ``checkpoint``, or the name of an earlier checkpoint."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


@dataclass
class Audit:
    """What was found."""

    checkpoint: Checkpoint
    findings: list[Finding] = field(default_factory=list)
    entries: int = 0
    """Entries that were read."""
    is_fork: bool = False
    """Whether the log's key has signed two histories: this one is whole, and does not begin with an earlier one."""

    @property
    def is_full(self) -> bool:
        """Whether no more is looked for."""
        return len(self.findings) >= MAX_FINDINGS

    def note(self, place: str, sentence: str) -> None:
        """Add a finding."""
        if not self.is_full:
            self.findings.append(Finding(place, sentence))


async def audit(
    source: LogSource,
    checkpoint: Checkpoint,
    earlier: Mapping[str, Checkpoint],
    on_entry: OnEntry | None = None,
) -> Audit:
    """
    Verify a whole log.

    Args:
        checkpoint: The newest; its log's signature has been verified.
        earlier: Checkpoints of the same log, by what they are called in findings; their signatures were verified too.
        on_entry: Is given each entry that was read.

    Raises:
        LogUnreadableError: a part of the log cannot be read now.
    """
    found = Audit(checkpoint)
    roots, tiles = _Roots(found, earlier), _Tiles(source, found)
    async for bundle, entries, hashes in _parts(source, checkpoint.size):
        tile = Tile(0, bundle.index, bundle.width)
        if isinstance(entries, str):
            found.note(bundle.path, entries)
            roots.is_whole = False
        else:
            leaves = [leaf_hash(entry) for entry in entries]
            _compare(found, tile, leaves, hashes)
            for index, (entry, leaf) in enumerate(zip(entries, leaves, strict=True), bundle.start):
                roots.append(leaf)
                if on_entry is not None:
                    on_entry(index, entry)
            found.entries += len(entries)
        await tiles.take(tile, hashes)
        if found.is_full:
            return found
    await tiles.finish()
    roots.finish(tiles.root())
    return found


def _compare(found: Audit, tile: Tile, leaves: list[bytes], hashes: _Read) -> None:
    if isinstance(hashes, str):
        return
    for index, (leaf, kept) in enumerate(zip(leaves, hashes, strict=True), tile.start):
        if leaf != kept:
            found.note(f"entry {index}", f"it is not the entry whose hash {tile.path} has")


async def _parts(source: LogSource, size: int) -> AsyncIterator[tuple[Tile, _Read, _Read]]:
    """Each bundle in order, with its entries and the hashes of its tile; a few are read ahead."""
    waiting: deque[tuple[Tile, asyncio.Future[tuple[_Read, _Read]]]] = deque()
    left = iter(bundles_of(size))
    try:
        while True:
            while len(waiting) < _AHEAD and (bundle := next(left, None)) is not None:
                tile = Tile(0, bundle.index, bundle.width)
                both = asyncio.gather(_try(read_entries(source, bundle)), _try(read_hashes(source, tile)))
                waiting.append((bundle, both))
            if not waiting:
                return
            bundle, reading = waiting[0]
            entries, hashes = await reading
            waiting.popleft()
            yield bundle, entries, hashes
    finally:
        for _, reading in waiting:
            reading.cancel()
        await asyncio.gather(*(reading for _, reading in waiting), return_exceptions=True)


async def _try(reading: Awaitable[list[bytes]]) -> _Read:
    try:
        return await reading
    except LogFormatError as error:
        return str(error)


class _Roots:
    """The roots over all entries at the sizes that are known."""

    def __init__(self, found: Audit, earlier: Mapping[str, Checkpoint]) -> None:
        self._found = found
        self._tree = CompactRange()
        self.is_whole = True
        """Whether no entry is missing so far."""
        self._forked = False
        self._earlier: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
        size = found.checkpoint.size
        for name, each in earlier.items():
            if each.size > size:
                found.note(
                    name, f"it has {each.size} entries, and the log now has {size}: the log was cut short"
                )
            else:
                self._earlier[each.size].append((name, each.root))

    def append(self, leaf: bytes) -> None:
        if not self.is_whole:
            return
        self._tree.append(leaf)
        for name, root in self._earlier.get(self._tree.size, ()):
            if self._tree.root() != root:
                self._forked = True
                self._found.note(
                    name,
                    f"the first {self._tree.size} entries are not those that it signs: the log was edited or forked",
                )

    def finish(self, of_tiles: bytes | None) -> None:
        """
        Compare the roots with the signed one.

        Args:
            of_tiles: The root over the tiles; None if some are missing.
        """
        signed = self._found.checkpoint
        self._found.is_fork = self._forked and self.is_whole and self._tree.root() == signed.root
        for name, root in (("entries", self._tree.root() if self.is_whole else None), ("tiles", of_tiles)):
            if root is not None and root != signed.root:
                self._found.note(
                    "checkpoint",
                    f"the root over the {name} is {root.hex()}, and signed is {signed.root.hex()}",
                )


class _Tiles:
    """Compares each tile with the tiles below it."""

    def __init__(self, source: LogSource, found: Audit) -> None:
        self._source = source
        self._found = found
        self._below: dict[int, list[bytes | None]] = defaultdict(list)
        """By level: the hashes of its full tiles that the next tile above must have; None of one that is missing."""
        self._done: dict[int, int] = defaultdict(int)
        """By level: how many tiles were read."""
        self._edge: dict[Tile, list[bytes]] = {}
        """The partial tiles: the root follows from them."""

    async def take(self, tile: Tile, hashes: _Read) -> None:
        """Take a tile, in the order of its level."""
        self._done[tile.level] += 1
        if isinstance(hashes, str):
            self._found.note(tile.path, hashes)
        elif not tile.is_full:
            self._edge[tile] = hashes
        if tile.is_full:
            below = self._below[tile.level]
            below.append(None if isinstance(hashes, str) else fold_perfect(hashes))
            if len(below) == WIDTH:
                await self._check_above(tile.level)

    async def _check_above(self, level: int) -> None:
        made = self._below.pop(level)
        tile = Tile(level + 1, self._done[level + 1], len(made))
        hashes = await _try(read_hashes(self._source, tile))
        if not isinstance(hashes, str):
            for at, (each, kept) in enumerate(zip(made, hashes, strict=True)):
                if each is not None and each != kept:
                    below = Tile(level, tile.index * WIDTH + at)
                    self._found.note(tile.path, f"its hash {at} is not that of {below.path}")
        await self.take(tile, hashes)

    async def finish(self) -> None:
        """Check the partial tiles of the levels above."""
        level = 0
        while self._below:
            if self._below.get(level):
                await self._check_above(level)
            self._below.pop(level, None)
            level += 1

    def root(self) -> bytes | None:
        """The root over the tiles; None if one that is needed is missing."""
        size = self._found.checkpoint.size
        try:
            return tree.root_from_nodes(size, TiledNodes(size, lambda tile: b"".join(self._edge[tile])))
        except KeyError:
            return None
