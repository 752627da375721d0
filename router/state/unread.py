"""Results that cannot be read yet, because their key is not known: they wait for it."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

_MAX_BYTES: Final = 32 << 20


class UnreadResult(Struct, frozen=True):
    """The newest result of a node, by the word of the page or the event that brought it."""

    token: str
    sequence: int | None


class UnreadResults:
    """One for each node, and not too many bytes of all."""

    def __init__(self) -> None:
        self._by_node: dict[str, UnreadResult] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_node)

    def keep(self, node: str, token: str, sequence: int | None) -> None:
        """Keep a result, unless a newer one of its node is kept, or there is no room."""
        known = self._by_node.get(node)
        if known is not None and (sequence or 0) < (known.sequence or 0):
            return
        self.drop(node)
        if self._bytes + len(token) <= _MAX_BYTES:
            self._by_node[node] = UnreadResult(token, sequence)
            self._bytes += len(token)

    def drop(self, node: str) -> None:
        """Drop the result of a node, if there is one: something newer is known."""
        known = self._by_node.pop(node, None)
        if known is not None:
            self._bytes -= len(known.token)

    def take_all(self) -> dict[str, UnreadResult]:
        """Give all of them, by node; none is kept."""
        found, self._by_node, self._bytes = self._by_node, {}, 0
        return found
