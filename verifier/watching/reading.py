"""Read some entries of a log, each verified against its checkpoint."""

from __future__ import annotations

import asyncio

from verifier.errors import LogFormatError, LogProofError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint
from verifier.log.tiles import WIDTH, Tile, bundles_of
from verifier.watching.pulling import read_nodes
from verifier.watching.sources import LogSource, read_entries


async def read_range(
    source: LogSource, checkpoint: Checkpoint, first: int, count: int
) -> list[tuple[int, bytes]]:
    """
    Read up to *count* entries from *first* on, each with its index.

    Raises:
        LogProofError: an entry is not the one that the checkpoint signs.
        LogFormatError: something of the log is malformed, or the log does not have it.
        LogUnreadableError: it cannot be read now.
    """
    last = min(first + count, checkpoint.size)
    if first >= last:
        return []
    bundles = bundles_of(checkpoint.size)[first // WIDTH : (last - 1) // WIDTH + 1]
    found = []
    for bundle in bundles:
        entries = await _read(source, bundle)
        chosen = [
            (index, entry) for index, entry in enumerate(entries, bundle.start) if first <= index < last
        ]
        await _check(source, checkpoint, chosen)
        found += chosen
    return found


async def _read(source: LogSource, bundle: Tile) -> list[bytes]:
    try:
        return await read_entries(source, bundle)
    except LogFormatError as error:
        raise LogFormatError(f"{bundle.path}: {error}") from None


async def _check(source: LogSource, checkpoint: Checkpoint, entries: list[tuple[int, bytes]]) -> None:
    size = checkpoint.size
    needed = [node for index, _ in entries for node in tree.inclusion_nodes(index, size)]
    nodes = await read_nodes(source, size, needed)

    def check() -> None:
        for index, entry in entries:
            path = tree.inclusion_proof(index, size, nodes)
            try:
                tree.verify_inclusion(tree.leaf_hash(entry), index, size, path, checkpoint.root)
            except LogProofError:
                raise LogProofError(f"entry {index}: it is not the one that the checkpoint signs") from None

    await asyncio.to_thread(check)
