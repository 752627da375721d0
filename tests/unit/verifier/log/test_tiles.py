"""Tiles and bundles of entries: the paths of the specification, trees from tiles, and what is malformed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.log.test_tree import naive_root, nodes_of
from verifier.errors import LogFormatError
from verifier.log import tiles, tree
from verifier.log.tiles import Tile, TiledNodes


def leaves_of(size: int) -> list[bytes]:
    return [index.to_bytes(3, "big") for index in range(size)]


def bytes_of(size: int) -> dict[Tile, bytes]:
    """All tiles of a log, by the rule of the specification."""
    leaves, found = [tree.leaf_hash(leaf) for leaf in leaves_of(size)], {}
    level = 0
    while leaves:
        for start in range(0, len(leaves), 256):
            part = leaves[start : start + 256]
            found[Tile(level, start // 256, len(part))] = b"".join(part)
        whole = len(leaves) // 256 * 256
        leaves = [tiles.fold_perfect(leaves[at : at + 256]) for at in range(0, whole, 256)]
        level += 1
    return found


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile(2, 999, 1), "tile/2/999.p/1"),
        (Tile(1, 1000, 255), "tile/1/x001/000.p/255"),
        (Tile.of_entries(17, 112), "tile/entries/017.p/112"),
        (Tile.of_entries(123_456), "tile/entries/x123/456"),
    ],
)
def test_paths_are_those_of_the_specification(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0", "tile/00/000", "tile/8/000", "tile/64/000", "tile/0/x000/000", "tile/0/000.p/0",
        "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/1000", "tile/0/x001/x000", "tile/0/000/", "tile/0/../000",
        "/tile/0/000", "tile/x/000", "tile/entries/0", "tile/0/٠٠٠", "tile/0/" + "x001/" * 30 + "000", "checkpoint",
    ],
)  # fmt: skip
def test_another_path_is_refused(path: str) -> None:
    with pytest.raises(LogFormatError):
        Tile.parse(path)


@given(st.integers(-1, 7), st.integers(0, 10**15), st.integers(1, 256))
def test_each_tile_has_one_path(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.path) == tile


@given(st.text(alphabet="tile/entrisx0123456789.p", max_size=40))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    with suppress(LogFormatError):
        assert Tile.parse(text).path == text


def test_the_tiles_of_a_size_are_those_of_the_specification() -> None:
    """Its example: 70,000 entries."""
    found = tiles.tiles_of(70_000)
    assert [sum(t.level == level and t.is_full for t in found) for level in range(4)] == [273, 1, 0, 0]
    assert [t for t in found if not t.is_full] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert tiles.tiles_of(256) == [Tile(0, 0), Tile(1, 0, 1)]
    assert tiles.bundles_of(257) == [Tile.of_entries(0), Tile.of_entries(1, 1)]
    assert tiles.tiles_of(0) == tiles.bundles_of(0) == []


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 600])
def test_a_log_has_the_tiles_that_it_should(size: int) -> None:
    assert sorted(tiles.tiles_of(size)) == sorted(bytes_of(size))
    assert all(tile.fits(size) for tile in bytes_of(size))
    assert not Tile(0, size // 256, size % 256 + 1).fits(size)


def test_there_is_no_tile_behind_the_end() -> None:
    with pytest.raises(LogFormatError):
        tiles.tile_at(0, 1, 256)


@given(st.integers(0, 1200), st.integers(0, 600))
def test_growth_writes_what_changes_and_nothing_else(old: int, more: int) -> None:
    new = old + more
    before = {*tiles.tiles_of(old), *tiles.bundles_of(old)}
    after = {*tiles.tiles_of(new), *tiles.bundles_of(new)}
    assert set(tiles.new_tiles(old, new)) == after - before


@given(st.integers(1, 700), st.data())
def test_proofs_from_tiles_are_those_of_the_tree(size: int, data: st.DataObject) -> None:
    kept = bytes_of(size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    plain = nodes_of(leaves_of(size))
    tiled = TiledNodes(size, kept.__getitem__)
    assert tree.inclusion_proof(index, size, tiled) == tree.inclusion_proof(index, size, plain)
    assert tree.consistency_proof(old, size, tiled) == tree.consistency_proof(old, size, plain)
    assert tree.root_from_nodes(size, tiled) == naive_root(leaves_of(size))
    needed = tiles.tiles_for(tree.inclusion_nodes(index, size), size)
    few = TiledNodes(size, {tile: kept[tile] for tile in needed}.__getitem__)
    assert tree.inclusion_proof(index, size, few) == tree.inclusion_proof(index, size, plain)


@pytest.mark.parametrize("change", [-32, -1, 1, 32])
def test_a_tile_of_another_length_is_refused(change: int) -> None:
    with pytest.raises(LogFormatError):
        tiles.split_tile(bytes(7 * 32 + change), 7)


def test_a_node_that_is_not_whole_is_refused() -> None:
    kept = bytes_of(3)
    with pytest.raises(LogFormatError):
        TiledNodes(3, kept.__getitem__)(1, 1)


@given(st.lists(st.binary(max_size=40), max_size=256))
def test_bundles_give_their_entries_back(entries: list[bytes]) -> None:
    data = tiles.encode_bundle(entries)
    assert tiles.decode_bundle(data, len(entries)) == entries
    for wrong in (len(entries) - 1, len(entries) + 1):
        with pytest.raises(LogFormatError):
            tiles.decode_bundle(data, wrong)


@given(st.binary(max_size=60), st.integers(0, 20))
def test_any_bytes_are_a_bundle_or_refused(data: bytes, width: int) -> None:
    with suppress(LogFormatError):
        assert tiles.encode_bundle(tiles.decode_bundle(data, width)) == data


@pytest.mark.parametrize(
    "data",
    [b"\0", b"\0\1", b"\0\2a", b"\0\1a\0", b"\0\1ab"],
    ids=["half a length", "no entry", "cut", "half", "more"],
)
def test_a_bundle_that_is_cut_or_longer_is_refused(data: bytes) -> None:
    with pytest.raises(LogFormatError):
        tiles.decode_bundle(data, 1)


@pytest.mark.parametrize("entries", [[b""] * 257, [bytes(65_536)]])
def test_what_has_no_place_in_a_bundle_is_refused(entries: list[bytes]) -> None:
    with pytest.raises(LogFormatError):
        tiles.encode_bundle(entries)
