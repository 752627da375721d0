"""
What this process has seen of nodes of late, which it need not read again when they attest.

Nothing is decided by it alone: each transaction that rests on it asks the database whether it still holds
(`verifier.store.node_state`), so other replicas, people and the sweep may change anything meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from verifier.schemes.context import Node
from verifier.store.node_state import SeenNode

_KEPT: Final = 4096
"""Up to 10 kB each."""


class SeenNodes:
    """What was seen, by node.  If there are too many nodes, those that were unused longest are forgotten."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, SeenNode] = OrderedDict()
        self._ids: dict[bytes, str] = {}
        """By the thumbprint of its key."""

    def get(self, node_id: str) -> SeenNode | None:
        """Give what was seen of a node."""
        seen = self._seen.get(node_id)
        if seen is not None:
            self._seen.move_to_end(node_id)
        return seen

    def by_kid(self, kid: bytes) -> Node | None:
        """Give the node that had the key with this thumbprint when it was seen."""
        node_id = self._ids.get(kid)
        seen = None if node_id is None else self.get(node_id)
        return None if seen is None else seen.node

    def put(self, seen: SeenNode) -> None:
        """Keep what a transaction that was committed has seen."""
        self.drop(seen.node.id)
        self._seen[seen.node.id] = seen
        self._ids[seen.node.key.kid] = seen.node.id
        if len(self._seen) > _KEPT:
            self.drop(next(iter(self._seen)))

    def drop(self, node_id: str) -> None:
        """Forget a node: what was seen of it does not hold any more."""
        seen = self._seen.pop(node_id, None)
        if seen is not None:
            self._ids.pop(seen.node.key.kid, None)
