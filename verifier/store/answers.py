"""The answers to calls, which come before the evidence and repeat in it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from verifier.errors import RequestError
from verifier.schemes.context import Answers, Channel
from verifier.store import sessions
from verifier.store.database import Tx
from verifier.store.sessions import StoredSession, has_walk


async def keep(
    tx: Tx, session_id: str, given: Mapping[str, Answers], answer_ms: int | None, now_ms: int
) -> StoredSession:
    """
    Store the answers to a call.  Of each kind only the first answers count.

    A call with a walk is answered in two steps: the read first, and then the walk, of which the node is told
    in between.

    Args:
        answer_ms: The time that they took; `None` if it could not be measured.

    Returns:
        The session afterwards.  If it waits for the answers to its walk, its `told_ms` is set.

    Raises:
        RequestError: There is no such session, it is answered already, or it no longer waits.
    """
    session = await sessions.get(tx, session_id)
    if session.channel != Channel.CALLED or session.status != "waiting":
        raise _closed()
    answers, told_ms, read_ms = given, session.told_ms, session.read_ms
    if session.answers is None:
        asks_walk = any(entry.kind != "read" for entry in session.entries)
        if asks_walk and session.withholds_walk and not has_walk(given):
            told_ms, read_ms, answer_ms = now_ms, answer_ms, None
    elif session.awaits_walk and has_walk(given):
        answers = _with_walks(session.answers, given)
    elif session.awaits_walk and dict(given) == dict(session.answers):
        # The same again: what the node was told then was lost.
        return session
    else:
        raise _closed()
    await tx.execute(
        "UPDATE sessions SET answers = ?, answer_ms = ?, read_ms = ?, told_ms = ?"
        " WHERE id = ? AND status = 'waiting'",
        msgspec.json.encode(answers).decode(),
        answer_ms,
        read_ms,
        told_ms,
        session_id,
    )
    return replace(session, answers=answers, answer_ms=answer_ms, read_ms=read_ms, told_ms=told_ms)


def _with_walks(reads: Mapping[str, Answers], walks: Mapping[str, Answers]) -> dict[str, Answers]:
    """The reads that a node has answered, with the walks that it has answered later."""
    return {
        model: Answers(reads.get(model, Answers()).read, walks.get(model, Answers()).walk)
        for model in {**reads, **walks}
    }


def _closed() -> RequestError:
    return RequestError("this call is answered already, or no longer waits", code="session.closed")
