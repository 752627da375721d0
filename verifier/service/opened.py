"""
Sessions that this process has opened of late for nodes, which it need not read again when their evidence comes.

Nothing is decided by them: the transaction of the result reads the session's state anew.  A session is given once.
Whatever comes for it afterwards, or comes to another replica, finds it in the database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from verifier.schemes.context import Channel, IssuedChallenges
from verifier.store.sessions import StoredSession

_KEPT: Final = 4096
_MAX_COMMITMENTS: Final = 4096
"""Bytes.  A session with more is read again: only a wide walk has more."""


class OpenedSessions:
    """Sessions by id.  If there are too many, the oldest are forgotten."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, StoredSession] = OrderedDict()

    def keep(self, session: StoredSession, asked: Mapping[str, IssuedChallenges]) -> None:
        """
        Keep a session whose transaction was committed.  Calls are not kept: their answers come later.

        Args:
            asked: Its challenges, as they were posed.
        """
        size = sum(len(entry.commitments) for entry in session.entries)
        if session.channel != Channel.ANNOUNCED or size > _MAX_COMMITMENTS:
            return
        self._sessions[session.id] = replace(session, asked=asked)
        while len(self._sessions) > _KEPT:
            self._sessions.popitem(last=False)

    def take(self, session_id: str) -> StoredSession | None:
        """Give a session, and forget it."""
        return self._sessions.pop(session_id, None)
