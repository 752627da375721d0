"""The Merkle tree: vectors of others, a naive tree, and what must not verify."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import LogProofError
from verifier.log import tree
from verifier.log.tree import CompactRange

# transparency-dev/merkle, proof/verify_test.go (Apache-2.0).
LEAVES = [
    bytes.fromhex(each)
    for each in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    bytes.fromhex(each)
    for each in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = [
    (0, 8, ("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7 "
           "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e "
           "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4")),
    (5, 8, ("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b "
           "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0 "
           "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7")),
    (2, 3, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    (1, 5, ("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d "
           "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e "
           "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b")),
]  # fmt: skip
CONSISTENCY = [
    (1, 1, ""),
    (1, 8, ("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7 "
           "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e "
           "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4")),
    (6, 8, ("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a "
           "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0 "
           "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7")),
    (2, 5, ("5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e "
           "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b")),
    (6, 7, ("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a "
           "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f "
           "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7")),
]  # fmt: skip
SOME = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")


def hashes(text: str) -> list[bytes]:
    return [bytes.fromhex(each) for each in text.split()]


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def nodes_of(leaves: Sequence[bytes]) -> tree.Nodes:
    def node(level: int, index: int) -> bytes:
        found = leaves[index << level : (index + 1) << level]
        assert len(found) == 1 << level
        return naive_root(found)

    return node


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_others(size: int) -> None:
    assert tree.root_of(map(tree.leaf_hash, LEAVES[:size])) == ROOTS[size - 1]
    assert tree.root_from_nodes(size, nodes_of(LEAVES)) == ROOTS[size - 1]


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert CompactRange().root() == tree.EMPTY_ROOT == hashlib.sha256(b"").digest()


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_proofs_of_inclusion_are_those_of_others(index: int, size: int, path: str) -> None:
    assert tree.inclusion_proof(index, size, nodes_of(LEAVES)) == hashes(path)
    tree.verify_inclusion(tree.leaf_hash(LEAVES[index]), index, size, hashes(path), ROOTS[size - 1])


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCY)
def test_proofs_of_consistency_are_those_of_others(old: int, new: int, path: str) -> None:
    assert tree.consistency_proof(old, new, nodes_of(LEAVES)) == hashes(path)
    tree.verify_consistency(old, new, ROOTS[old - 1], ROOTS[new - 1], hashes(path))


def corrupt_inclusions() -> list[tuple[str, tuple[bytes, int, int, list[bytes], bytes]]]:
    """The probes of `corruptInclusionProof` in the same file."""
    found = []
    for index, size, text in INCLUSION:
        path, leaf, root = hashes(text), tree.leaf_hash(LEAVES[index]), ROOTS[size - 1]
        probes = {
            "index - 1": (leaf, index - 1, size, path, root),
            "index + 1": (leaf, index + 1, size, path, root),
            "index ^ 2": (leaf, index ^ 2, size, path, root),
            "size * 2": (leaf, index, size * 2, path, root),
            "size / 2": (leaf, index, size // 2, path, root),
            "wrong leaf": (b"WrongLeaf", index, size, path, root),
            "another leaf": (SOME, index, size, path, root),
            "empty root": (leaf, index, size, path, tree.EMPTY_ROOT),
            "random root": (leaf, index, size, path, SOME),
            "trailing garbage": (leaf, index, size, [*path, b""], root),
            "trailing root": (leaf, index, size, [*path, root], root),
            "preceding garbage": (leaf, index, size, [b"", *path], root),
            "preceding root": (leaf, index, size, [root, *path], root),
            "removed": (leaf, index, size, path[:-1], root),
            "inserted": (leaf, index, size, [path[0], SOME, *path[1:]], root),
        }
        for at, each in enumerate(path):
            flipped = bytes([each[0] ^ 8]) + each[1:]
            probes[f"bit of {at}"] = (leaf, index, size, [*path[:at], flipped, *path[at + 1 :]], root)
        found += [(f"{index} of {size}: {name}", probe) for name, probe in probes.items()]
    return found


@pytest.mark.parametrize("probe", [pytest.param(each, id=name) for name, each in corrupt_inclusions()])
def test_no_corrupt_proof_of_inclusion_verifies(probe: tuple[bytes, int, int, list[bytes], bytes]) -> None:
    with pytest.raises(LogProofError):
        tree.verify_inclusion(*probe)


def corrupt_consistencies() -> list[tuple[str, tuple[int, int, bytes, bytes, list[bytes]]]]:
    """The probes of `corruptConsistencyProof` in the same file."""
    found = []
    for old, new, text in CONSISTENCY[1:]:
        path, before, after = hashes(text), ROOTS[old - 1], ROOTS[new - 1]
        probes = {
            "old - 1": (old - 1, new, before, after, path),
            "old + 1": (old + 1, new, before, after, path),
            "old ^ 2": (old ^ 2, new, before, after, path),
            "new * 2": (old, new * 2, before, after, path),
            "new / 2": (old, new // 2, before, after, path),
            "wrong old root": (old, new, b"WrongRoot", after, path),
            "wrong new root": (old, new, before, b"WrongRoot", path),
            "swapped roots": (old, new, after, before, path),
            "empty": (old, new, before, after, []),
            "trailing garbage": (old, new, before, after, [*path, b""]),
            "trailing old root": (old, new, before, after, [*path, before]),
            "trailing new root": (old, new, before, after, [*path, after]),
            "preceding garbage": (old, new, before, after, [b"", *path]),
            "preceding old root": (old, new, before, after, [before, *path]),
            "preceding new root": (old, new, before, after, [after, *path]),
            "preceding first": (old, new, before, after, [path[0], *path]),
            "truncated": (old, new, before, after, path[:-1]),
        }
        for at, each in enumerate(path):
            flipped = bytes([each[0] ^ 16]) + each[1:]
            probes[f"bit of {at}"] = (old, new, before, after, [*path[:at], flipped, *path[at + 1 :]])
        found += [(f"{old} to {new}: {name}", probe) for name, probe in probes.items()]
    return found


@pytest.mark.parametrize("probe", [pytest.param(each, id=name) for name, each in corrupt_consistencies()])
def test_no_corrupt_proof_of_consistency_verifies(probe: tuple[int, int, bytes, bytes, list[bytes]]) -> None:
    with pytest.raises(LogProofError):
        tree.verify_consistency(*probe)


@pytest.mark.parametrize(
    ("old", "new", "before", "after", "path"),
    [
        (0, 0, tree.EMPTY_ROOT, SOME, []),
        (0, 0, SOME, SOME, []),
        (0, 1, SOME, SOME, []),
        (1, 1, SOME, tree.EMPTY_ROOT, []),
        (1, 0, SOME, SOME, []),
        (2, 1, SOME, SOME, []),
        (1, 2, SOME, SOME, []),
        (1, 1, SOME, SOME, [SOME]),
        (0, 1, tree.EMPTY_ROOT, SOME, [SOME]),
        (-1, 1, SOME, SOME, []),
        (1, 1 << 63, SOME, SOME, []),
    ],
)
def test_sizes_that_prove_nothing_are_refused(
    old: int, new: int, before: bytes, after: bytes, path: list[bytes]
) -> None:
    with pytest.raises(LogProofError):
        tree.verify_consistency(old, new, before, after, path)


def test_every_tree_begins_with_the_empty_one() -> None:
    tree.verify_consistency(0, 5, tree.EMPTY_ROOT, ROOTS[4], [])
    assert tree.consistency_proof(0, 5, nodes_of(LEAVES)) == []


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 1), (0, 1 << 63)])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(LogProofError):
        tree.inclusion_proof(index, size, nodes_of(LEAVES))
    with pytest.raises(LogProofError):
        tree.verify_inclusion(SOME, index, size, [], SOME)


def test_there_is_no_proof_backwards() -> None:
    with pytest.raises(LogProofError):
        tree.consistency_nodes(3, 2)


def test_a_range_has_as_many_hashes_as_its_size_has_ones() -> None:
    with pytest.raises(LogProofError):
        CompactRange(3, [SOME])


entries = st.lists(st.binary(max_size=4), max_size=70)


@given(entries, st.data())
def test_a_range_is_the_naive_tree(leaves: list[bytes], data: st.DataObject) -> None:
    """Also if it is put down and taken up anywhere."""
    cut = data.draw(st.integers(0, len(leaves)))
    first = CompactRange()
    made = [node for leaf in leaves[:cut] for node in first.append(tree.leaf_hash(leaf))]
    second = CompactRange(first.size, first.hashes)
    made += [node for leaf in leaves[cut:] for node in second.append(tree.leaf_hash(leaf))]
    assert second.root() == naive_root(leaves)
    node = nodes_of(leaves)
    assert all(node(*place) == value for place, value in made)
    assert len({place for place, _ in made}) == len(made)


@given(entries.filter(bool), st.data())
def test_each_leaf_is_proven_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    node, root = nodes_of(leaves), naive_root(leaves)
    path = tree.inclusion_proof(index, size, node)
    tree.verify_inclusion(tree.leaf_hash(leaves[index]), index, size, path, root)
    assert len(path) <= tree.MAX_PATH
    other = data.draw(st.integers(0, size - 1))
    if leaves[other] != leaves[index]:
        with pytest.raises(LogProofError):
            tree.verify_inclusion(tree.leaf_hash(leaves[other]), index, size, path, root)


@given(entries.filter(bool), st.data())
def test_each_beginning_is_proven_and_no_fork(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    old = data.draw(st.integers(0, size))
    path = tree.consistency_proof(old, size, nodes_of(leaves))
    tree.verify_consistency(old, size, naive_root(leaves[:old]), naive_root(leaves), path)
    if old:
        at = data.draw(st.integers(0, old - 1))
        forked = [*leaves]
        forked[at] = leaves[at] + b"edited"
        proof = tree.consistency_proof(old, size, nodes_of(forked))
        with pytest.raises(LogProofError):
            tree.verify_consistency(old, size, naive_root(leaves[:old]), naive_root(forked), proof)
