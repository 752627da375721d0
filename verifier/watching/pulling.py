"""Follow a log without being called: fetch its checkpoint, prove its growth from its tiles, and cosign it."""

from __future__ import annotations

import asyncio

from verifier.errors import LogFormatError
from verifier.log import tree
from verifier.log.checkpoints import SignedCheckpoint, open_checkpoint
from verifier.log.notes import Signature, VerifierKey
from verifier.log.tiles import Tile, TiledNodes, tiles_for
from verifier.log.witnessing import AddCheckpoint, Refusal, RefusalError
from verifier.watching.sources import LogSource, read_checkpoint, read_hashes
from verifier.watching.witness import Witness


async def pull(source: LogSource, key: VerifierKey, witness: Witness) -> Signature:
    """
    Cosign the newest checkpoint of a log.

    Raises:
        LogError: it cannot be read, or must not be signed.
    """
    signed = open_checkpoint(await read_checkpoint(source), [key])
    last = await asyncio.to_thread(witness.seen.last, signed.checkpoint.origin)
    path = await _path(source, signed, last.size)
    return await asyncio.to_thread(witness.add, AddCheckpoint(last.size, path, signed.note))


async def _path(source: LogSource, signed: SignedCheckpoint, old: int) -> tuple[bytes, ...]:
    size = signed.checkpoint.size
    if old > size:
        message = f"the log shows {size} entries, and this witness has signed {old}: the log was cut short"
        raise RefusalError(Refusal.STALE, message, size=old)
    nodes = await read_nodes(source, size, tree.consistency_nodes(old, size))
    return tuple(tree.consistency_proof(old, size, nodes))


async def read_nodes(source: LogSource, size: int, nodes: list[tree.Node]) -> TiledNodes:
    """
    Read the tiles from which *nodes* of a log of *size* entries follow.

    Raises:
        LogFormatError: the log does not have one, or it is malformed.
        LogUnreadableError: one cannot be read now.
    """
    tiles = sorted(tiles_for(nodes, size))
    found = await asyncio.gather(*(_read(source, tile) for tile in tiles))
    return TiledNodes(size, dict(zip(tiles, found, strict=True)).__getitem__)


async def _read(source: LogSource, tile: Tile) -> bytes:
    try:
        return b"".join(await read_hashes(source, tile))
    except LogFormatError as error:
        raise LogFormatError(f"{tile.path}: {error}") from None
