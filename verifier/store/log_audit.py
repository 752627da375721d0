"""Whether what is stored of a log is what its key signed: its newest checkpoint, its tiles and its entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from verifier.errors import LogDivergedError, LogError
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.tiles import HEIGHT, WIDTH, Tile, fold_perfect, split_tile, tile_at
from verifier.log.tree import CompactRange, Nodes, leaf_hash, perfect_nodes
from verifier.store import log_tree
from verifier.store.database import Tx
from verifier.store.log_guard import Signed
from verifier.store.log_tree import Log, Stored

_EMPTY: Final = CompactRange()


async def check_head(tx: Tx, log: Log, known: Signed | None, *, is_alone: bool) -> CompactRange:
    """
    Check the newest checkpoint and what it rests on, down to the entries of the last tile.

    Args:
        known: What is known to be signed last; the stored tree must begin with it.
        is_alone: Whether nobody can append meanwhile.

    Returns:
        The tree that the checkpoint is of.

    Raises:
        LogDivergedError: What is stored is not what was signed.
    """
    head = await log_tree.head(tx, log.number)
    size = 0 if head is None else head.size
    if known is not None:
        _check_known(log, size, known)
    if head is not None:
        _check_signature(log, head)
    own, theirs = perfect_nodes(0, size), [] if known is None else perfect_nodes(0, known.size)
    nodes = await log_tree.read_nodes(tx, log.number, size, [*own, *theirs])
    if known is not None:
        _check_peaks(known, nodes)
    tree = CompactRange(size, [nodes(*node) for node in own])
    if tree.root() != (_EMPTY.root() if head is None else head.root):
        raise LogDivergedError((0, size), "the tiles do not have the root that was signed")
    await _check_leaves(tx, log.number, size // WIDTH * WIDTH, size)
    count = await log_tree.count_leaves(tx, log.number)
    if is_alone and count > size:
        raise LogDivergedError((size, count), "nobody signed these entries")
    return tree


def _check_known(log: Log, size: int, known: Signed) -> None:
    if log.number != known.number:
        raise LogDivergedError(
            (0, max(known.size, 1)), f"the database has no log {known.origin}, in which this key signed last"
        )
    if log.origin != known.origin:
        raise LogDivergedError((0, max(known.size, 1)), f"the log is {log.origin}, and was {known.origin}")
    if size < known.size:
        raise LogDivergedError((size, known.size), "these were signed, and are not in the database")


def _check_signature(log: Log, head: Stored) -> None:
    try:
        found = open_checkpoint(head.note.encode(), [VerifierKey.parse(log.vkey)]).checkpoint
    except LogError as error:
        raise LogDivergedError(
            (0, max(head.size, 1)), f"the newest checkpoint is not ours: {error}"
        ) from None
    if (found.origin, found.size, found.root) != (log.origin, head.size, head.root):
        raise LogDivergedError(
            (0, max(head.size, 1)), "the newest checkpoint is of another tree than its row says"
        )


def _check_peaks(known: Signed, nodes: Nodes) -> None:
    for (level, index), peak in zip(perfect_nodes(0, known.size), known.peaks, strict=True):
        if nodes(level, index).hex() != peak:
            raise LogDivergedError(
                (index << level, index + 1 << level), "what was signed had other entries, or another order"
            )


async def _check_leaves(tx: Tx, log: int, start: int, end: int) -> None:
    """Check the entries of a tile of level 0, from its beginning to *end*, by its hashes."""
    if start == end:
        return
    hashes = split_tile(await log_tree.read_tile(tx, log, Tile(0, start // WIDTH, end - start)), end - start)
    for place, (entry, known) in enumerate(
        zip(await log_tree.leaves(tx, log, start, end), hashes, strict=True), start
    ):
        if leaf_hash(entry) != known:
            raise LogDivergedError((place, place + 1), "the entry is not the one that was signed")


def tiles_to_check(size: int) -> Iterator[Tile]:
    """The tiles of a log of *size* leaves, in the order in which they are checked: the leaves first."""
    level = 0
    while count := size >> (HEIGHT * level):
        for index in range(-(-count // WIDTH)):
            yield tile_at(level, index, size)
        level += 1


async def check_tile(tx: Tx, log: int, size: int, tile: Tile) -> None:
    """
    Check one tile of the first *size* leaves: by its entries, and its hash in the tile above it.

    Raises:
        LogDivergedError: They differ.
    """
    hashes = split_tile(await log_tree.read_tile(tx, log, tile), tile.width)
    if tile.level == 0:
        await _check_leaves(tx, log, tile.start, tile.start + tile.width)
    if not tile.is_full:
        return
    above = tile_at(tile.level + 1, tile.index // WIDTH, size)
    known = split_tile(await log_tree.read_tile(tx, log, above), above.width)[tile.index % WIDTH]
    if fold_perfect(hashes) != known:
        end = tile.start + (WIDTH << (HEIGHT * tile.level))
        raise LogDivergedError((tile.start, end), f"{tile.path} does not have its hash in {above.path}")
