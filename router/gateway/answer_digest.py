"""The digest of what a node sends, as far as it is read."""

from __future__ import annotations

import hashlib

from router.gateway.aside import Aside
from router.gateway.body import LARGE


class AnswerDigest:
    """
    A SHA-256 that is made as the bytes come.

    Args:
        is_wanted: Whether anybody wants it.
    """

    __slots__ = ("_has_bytes", "_sha256")

    def __init__(self, *, is_wanted: bool) -> None:
        self._sha256 = hashlib.sha256() if is_wanted else None
        self._has_bytes = False

    def note(self, data: bytes) -> None:
        """A part has come."""
        if self._sha256 is not None:
            self._sha256.update(data)
            self._has_bytes = True

    async def note_whole(self, data: bytes, aside: Aside) -> None:
        """A whole body has come; a large one is digested aside."""
        if len(data) <= LARGE:
            self.note(data)
        else:
            await aside.run(self.note, data)

    @property
    def hex(self) -> str:
        """What was made of it until now; empty if nothing has come, or nobody wants it."""
        return self._sha256.hexdigest() if self._sha256 is not None and self._has_bytes else ""
