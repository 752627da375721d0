"""
A part of a log that is proven as a whole: consecutive entries, and the nodes beside them.  Pure.

The entries and the nodes give the root of the tree, so no entry within the range can be changed, left out or added.
Proofs of single entries can be made of the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verifier.errors import LogProofError
from verifier.log.tiles import fold_perfect
from verifier.log.tree import MAX_SIZE, Node, covering_nodes, leaf_hash, node_hash


def nodes_beside(first: int, last: int, size: int) -> list[Node]:
    """
    The nodes of a tree of *size* leaves that a proof of a range needs beside its leaves.

    Args:
        first: The first leaf of the range.
        last: The leaf after its last one.

    Raises:
        LogProofError: there is no such range.
    """
    if not 0 <= first <= last <= size <= MAX_SIZE:
        raise LogProofError(f"a tree of {size} leaves has no range from {first} to {last}")
    return [*covering_nodes(0, first), *covering_nodes(last, size)]


class RangeNodes:
    """The nodes of a tree, from the entries of a range and the nodes beside it."""

    def __init__(self, first: int, entries: Sequence[bytes], beside: Mapping[Node, bytes]) -> None:
        """
        Take a range.

        Args:
            first: The place of the first of *entries*.
            beside: The hashes of `nodes_beside`.
        """
        self._first = first
        self._leaves = [leaf_hash(entry) for entry in entries]
        self._beside = beside

    def __call__(self, level: int, index: int) -> bytes:
        """The hash of a node.  Raises `LogProofError`: it does not follow from what is there."""
        known = self._beside.get((level, index))
        if known is not None:
            return known
        start = (index << level) - self._first
        leaves = self._leaves[max(start, 0) : max(start + (1 << level), 0)]
        if start >= 0 and len(leaves) == 1 << level:
            return fold_perfect(leaves)
        if level == 0:
            raise LogProofError(f"neither the entry {index} nor a hash over it is there")
        return node_hash(self(level - 1, 2 * index), self(level - 1, 2 * index + 1))
