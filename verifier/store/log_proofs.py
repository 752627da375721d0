"""Proofs of entries, from what is stored of the log."""

from __future__ import annotations

from verifier.log.notes import Note
from verifier.log.proofs import LogProof
from verifier.log.tree import inclusion_nodes, inclusion_proof
from verifier.store import log_tree
from verifier.store.database import Tx
from verifier.store.log_tree import Placed


async def prove(tx: Tx, found: Placed) -> LogProof | None:
    """
    Prove an entry, which the proof has as its extra data; `None` until the log has signed a tree with it.

    Raises:
        LogDivergedError: A tile is missing, or cut short.
    """
    head = await log_tree.best(tx, found.log, found.place)
    if head is None:
        return None
    nodes = await log_tree.read_nodes(tx, found.log, head.size, inclusion_nodes(found.place, head.size))
    path = inclusion_proof(found.place, head.size, nodes)
    return LogProof(found.place, tuple(path), Note.parse(head.text.encode()), found.entry)
