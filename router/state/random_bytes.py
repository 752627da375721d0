"""Random bytes of the operating system, fetched a page at a time: each request needs a few, and each fetch is a call."""

from __future__ import annotations

import os
from typing import Final

_PAGE: Final = 4096


class RandomBytes:
    """Gives each byte once.  A forked process fetches its own."""

    def __init__(self) -> None:
        self._page = b""
        self._given = 0
        os.register_at_fork(after_in_child=self._forget)

    def take(self, count: int) -> bytes:
        """The next *count* bytes, at most a page."""
        start = self._given
        self._given = end = start + count
        if end > len(self._page):
            self._page = os.urandom(_PAGE)
            start, self._given = 0, count
            end = count
        return self._page[start:end]

    def _forget(self) -> None:
        self._page, self._given = b"", 0


_shared: Final = RandomBytes()


def random_bytes(count: int) -> bytes:
    """*count* bytes that nobody can guess."""
    return _shared.take(count)
