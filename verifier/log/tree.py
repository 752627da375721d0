"""
The Merkle tree of the log: hashes, roots, and proofs of inclusion and consistency (RFC 9162, section 2.1).  Pure.

A *node* is a perfect subtree, named by its level and its index: node (l, i) is over the leaves
``i * 2**l … (i + 1) * 2**l``.  Node (0, i) is the hash of leaf i.  Proofs are made from nodes, wherever they are kept:
a caller that must read them first asks `inclusion_nodes` or `consistency_nodes` which they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from verifier.errors import LogProofError

HASH_SIZE: Final = 32
"""Bytes of SHA-256."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of the tree without leaves (RFC 9162, section 2.1.1)."""
MAX_PATH: Final = 63
"""The most hashes in a proof: sizes have 63 bits."""
MAX_SIZE: Final = (1 << 63) - 1

Node = tuple[int, int]
"""The level and the index of a perfect subtree."""
Nodes = Callable[[int, int], bytes]
"""Gives the hash of the node with this level and this index."""
_Range = tuple[int, int]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, the left one first."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """
    The roots of the perfect subtrees of a tree from its first leaf on, the largest first.

    It is all that is needed to append to a tree and to know its root: at most 63 hashes.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """
        Continue a tree.

        Args:
            size: Its leaves.
            hashes: What `hashes` was at that size: one for each 1 bit of *size*, the highest first.

        Raises:
            LogProofError: the number of hashes is not that of *size*.
        """
        if not 0 <= size <= MAX_SIZE or len(hashes) != size.bit_count():
            raise LogProofError(f"a tree of {size} leaves does not have {len(hashes)} perfect subtrees")
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, the largest first."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """
        Append the hash of a leaf.

        Returns:
            The nodes that are whole now, the leaf first, each with its hash.
        """
        level, index, carried = 0, self.size, leaf
        made = [((level, index), carried)]
        while index & 1:
            carried = node_hash(self._hashes.pop(), carried)
            level, index = level + 1, index >> 1
            made.append(((level, index), carried))
        self._hashes.append(carried)
        self.size += 1
        return made

    def root(self) -> bytes:
        """The root of the tree."""
        return _fold(self._hashes)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over these hashes of leaves."""
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def perfect_nodes(start: int, end: int) -> list[Node]:
    """
    The nodes that the subtree over the leaves *start* to *end* consists of, from left to right.

    Args:
        start: The first leaf; a multiple of the largest power of two that is at most ``end - start``.
        end: The leaf after the last one.
    """
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def covering_nodes(start: int, end: int) -> list[Node]:
    """
    The fewest nodes that are over the leaves *start* to *end* and no others, from left to right.

    Args:
        end: The leaf after the last one.
    """
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        found.append((level, start >> level))
        start += 1 << level
    return found


def inclusion_nodes(index: int, size: int) -> list[Node]:
    """The nodes that a proof of inclusion is made of.  Raises `LogProofError`: no such leaf."""
    return [node for start, end in _inclusion_ranges(index, size) for node in perfect_nodes(start, end)]


def consistency_nodes(old: int, new: int) -> list[Node]:
    """The nodes that a proof of consistency is made of.  Raises `LogProofError`: no such sizes."""
    return [node for start, end in _consistency_ranges(old, new) for node in perfect_nodes(start, end)]


def root_from_nodes(size: int, nodes: Nodes) -> bytes:
    """The root of the tree with *size* leaves."""
    return _range_hash((0, size), nodes)


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """
    The audit path of a leaf: from its sibling up to a child of the root (RFC 9162, section 2.1.3.1).

    Raises:
        LogProofError: a tree of *size* leaves has no leaf *index*.
    """
    return [_range_hash(each, nodes) for each in _inclusion_ranges(index, size)]


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """
    The proof that the tree of *old* leaves is the beginning of that of *new* leaves (RFC 9162, section 2.1.4.1).

    It is empty if the sizes are equal or *old* is 0.

    Raises:
        LogProofError: *old* is larger than *new*.
    """
    return [_range_hash(each, nodes) for each in _consistency_ranges(old, new)]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """
    Verify a proof that the leaf with this hash is at *index* (RFC 9162, section 2.1.3.2).

    Raises:
        LogProofError: it is not, or the proof has another length than it must have.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise LogProofError(f"a tree of {size} leaves has no leaf {index}")
    _check_hashes(leaf, root, *path)
    node, last, carried = index, size - 1, leaf
    for each in path:
        if last == 0:
            raise LogProofError("the proof of inclusion is too long")
        if node & 1 or node == last:
            carried = node_hash(each, carried)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            carried = node_hash(carried, each)
        node, last = node >> 1, last >> 1
    if last:
        raise LogProofError("the proof of inclusion is too short")
    if carried != root:
        raise LogProofError(f"the entry is not the one at {index} of the tree of {size} leaves")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """
    Verify a proof that the tree of *old* leaves is the beginning of that of *new* leaves (RFC 9162, section 2.1.4.2).

    The tree of 0 leaves is the beginning of each, and its proof is empty.

    Raises:
        LogProofError: it is not, or the proof has another length than it must have.
    """
    if not 0 <= old <= new <= MAX_SIZE:
        raise LogProofError(f"a tree of {new} leaves cannot begin with one of {old}")
    _check_hashes(old_root, new_root, *path)
    if old in (0, new):
        if path:
            raise LogProofError("the proof of consistency must be empty")
        if old == 0 and old_root != EMPTY_ROOT:
            raise LogProofError("the root of the tree of 0 leaves is not that of the empty tree")
        if old == new and old_root != new_root:
            raise LogProofError(f"two trees of {old} leaves have different roots")
        return
    hashes = list(path)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise LogProofError("the proof of consistency is too short")
    _climb(old, new, old_root, new_root, hashes)


def _climb(old: int, new: int, old_root: bytes, new_root: bytes, hashes: Sequence[bytes]) -> None:
    # fn, sn, fr and sr of the RFC.
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = hashes[0]
    for each in hashes[1:]:
        if last == 0:
            raise LogProofError("the proof of consistency is too long")
        if node & 1 or node == last:
            before, after = node_hash(each, before), node_hash(each, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, each)
        node, last = node >> 1, last >> 1
    if last:
        raise LogProofError("the proof of consistency is too short")
    if before != old_root or after != new_root:
        raise LogProofError(f"the tree of {new} leaves does not begin with the tree of {old} leaves")


def _check_hashes(*hashes: bytes) -> None:
    if any(len(each) != HASH_SIZE for each in hashes):
        raise LogProofError(f"a hash does not have {HASH_SIZE} bytes")


def _split(size: int) -> int:
    """The largest power of two below *size* (k of RFC 9162, section 2.1.1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _inclusion_ranges(index: int, size: int) -> list[_Range]:
    if not 0 <= index < size <= MAX_SIZE:
        raise LogProofError(f"a tree of {size} leaves has no leaf {index}")
    found = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]


def _consistency_ranges(old: int, new: int) -> list[_Range]:
    if not 0 <= old <= new <= MAX_SIZE:
        raise LogProofError(f"a tree of {new} leaves cannot begin with one of {old}")
    if old in (0, new):
        return []
    found = []
    start, end = 0, new
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    if start:
        # The old tree does not end with a node whose hash is the old root.
        found.append((start, end))
    return found[::-1]


def _range_hash(leaves: _Range, nodes: Nodes) -> bytes:
    return _fold([nodes(level, index) for level, index in perfect_nodes(*leaves)])


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    carried = hashes[-1]
    for each in reversed(hashes[:-1]):
        carried = node_hash(each, carried)
    return carried
