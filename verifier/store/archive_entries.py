"""Entries of the log about files of archives."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.archive.files import KIND
from verifier.errors import RequestError
from verifier.store import log, log_tree
from verifier.store.database import Tx


async def take(tx: Tx, members: Mapping[str, log.Value], now_ms: int) -> bool:
    """
    Log a file of an archive, unless it is logged.

    Args:
        members: Of the entry; ``digest`` is what it is found by.

    Returns:
        Whether it is new.

    Raises:
        RequestError: It cannot be logged: it is too large.
    """
    digest = str(members["digest"])
    if await log.is_pending(tx, KIND, digest) or await log_tree.find(tx, KIND, digest):
        return False
    if len(log.encode(now_ms, KIND, members)) > log.MAX_ENTRY:
        raise RequestError("the entry is too large")
    await log.append(tx, now_ms, KIND, members)
    return True
