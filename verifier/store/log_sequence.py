"""Gives entries that wait their places, with the tiles and the signed checkpoint that follow, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.errors import LogDivergedError
from verifier.log.checkpoints import Checkpoint, sign_checkpoint
from verifier.log.notes import Signer
from verifier.log.tree import leaf_hash
from verifier.store import log as entries
from verifier.store import log_audit, log_tree
from verifier.store.database import Tx
from verifier.store.log_guard import Signed, signed_of
from verifier.store.log_tree import Log


@dataclass(frozen=True)
class Extended:
    """What became of a log."""

    signed: Signed
    """What its key signed last."""
    count: int
    """How many entries got their places."""
    is_new: bool
    """Whether a checkpoint was signed."""


async def extend(
    tx: Tx, log: Log, known: Signed | None, signer: Signer, now_ms: int, limit: int, *, is_new: bool = False
) -> Extended:
    """
    Give the oldest entries their places, up to *limit*, and sign the tree that follows.

    Before that, what is stored must be what was signed, and begin with *known*.  A process that is killed leaves all
    of it or nothing; and of two that try it at once, the second finds what the first has left.

    Args:
        known: What this key is known to have signed last.
        is_new: Whether the log was begun in this transaction.

    Raises:
        LogDivergedError: What is stored is not what was signed.  Nothing is signed.
        ConflictError: Another process has given the same places meanwhile.
    """
    if not is_new:
        await check_begun(tx, log)
    tree = await log_audit.check_head(tx, log, known, is_alone=True)
    size = tree.size
    taken = await entries.take_about(tx, "log", log.origin) if size == 0 else []
    taken += await entries.take(tx, limit)
    if not taken and await log_tree.head(tx, log.number) is not None:
        return Extended(signed_of(log.number, log.origin, tree), 0, is_new=False)
    made = [node for row in taken for node in tree.append(leaf_hash(bytes(row["entry"])))]
    await log_tree.insert(tx, log.number, size, taken)
    await log_tree.write_nodes(tx, log.number, size, made)
    checkpoint = Checkpoint(log.origin, tree.size, tree.root())
    note = str(sign_checkpoint(checkpoint, signer))
    await log_tree.add_checkpoint(tx, log.number, tree.size, checkpoint.root, note, now_ms)
    return Extended(signed_of(log.number, log.origin, tree), len(taken), is_new=True)


async def check_begun(tx: Tx, log: Log) -> None:
    """
    Check that a log has a checkpoint: whoever begins one signs it at once, and others can only write its row.

    Raises:
        LogDivergedError: It has none.
    """
    if await log_tree.head(tx, log.number) is None:
        raise LogDivergedError(
            (0, 1), f"nobody who has its key has begun {log.origin}, or its checkpoints are gone"
        )
