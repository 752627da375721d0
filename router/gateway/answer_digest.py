"""The digest of what a node has sent."""

from __future__ import annotations

import hashlib

from router.gateway.aside import Aside


class AnswerDigest:
    """
    SHA-256 of the bytes of a node's answer, before the router writes anything anew.

    Args:
        aside: Where large bodies are digested.
        enabled: Whether anything is digested at all.
    """

    def __init__(self, aside: Aside, *, enabled: bool) -> None:
        self._aside = aside
        self._enabled = enabled
        self._digest = hashlib.sha256()
        self._has_bytes = False

    def add(self, data: bytes) -> None:
        """Digest a part of a stream."""
        if self._enabled:
            self._digest.update(data)
            self._has_bytes = True

    async def add_whole(self, data: bytes) -> None:
        """Digest a whole body."""
        if self._enabled:
            await self._aside.run_on(data, self.add)

    def hex(self) -> str:
        """The digest, hex; empty if the node has sent no bytes, or nothing is digested."""
        return self._digest.hexdigest() if self._has_bytes else ""
