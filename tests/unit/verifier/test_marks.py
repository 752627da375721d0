"""High-water marks: above what is given out before it is given out, and never lowered."""

from __future__ import annotations

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import StoreError
from verifier.store.database import UnavailableError
from verifier.store.marks import HighWater, Marks, read_marks
from verifier.store.pool import Entry

BLOCK = 256


def entry(index: int, model: str = "m", kind: str = "read") -> Entry:
    return Entry(model, kind, index, batch=1, parameters="", commitments=b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "high-water.json"


def stored(path: Path) -> Marks:
    marks = read_marks(path)
    assert marks is not None
    return marks


def test_a_mark_is_in_the_file_before_cover_returns(path: Path) -> None:
    water = HighWater(path, 5)
    for index in (0, 255, 256, 10_000):
        water.cover([entry(index)])
        assert stored(path).pool["m"]["read"] > index
    assert stored(path).since_ms == 5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_written_once_for_a_block(path: Path) -> None:
    """Without a loop there is no thread, so each write is seen."""
    water = HighWater(path, 5)
    seen = set()
    for index in range(10 * BLOCK):
        water.cover([entry(index)])
        seen.add(stored(path).pool["m"]["read"])
    assert len(seen) <= 11


async def test_a_thread_raises_it_ahead(path: Path) -> None:
    """Before it is needed, so that nobody waits for the file."""
    water = HighWater(path, 5)
    water.cover([entry(0)])
    water.cover([entry(200)])
    async with asyncio.timeout(5):
        while stored(path).pool["m"]["read"] < 200 + BLOCK:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_events_have_a_mark_of_their_own(path: Path) -> None:
    water = HighWater(path, 5)
    for number in (0, 1, 4096, 100_000):
        water.cover_event(number)
        assert stored(path).events >= number


def test_two_processes_of_one_home_never_lower_it(path: Path) -> None:
    """Each knows only its own part; the file has both."""
    one, two = HighWater(path, 5), HighWater(path, 6)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda index: one.cover([entry(index)]), range(0, 20_000, 300)))
        list(pool.map(lambda index: two.cover([entry(index, kind="walk")]), range(0, 10_000, 300)))
        one.cover_event(7)
    marks = stored(path)
    assert marks.pool["m"]["read"] > 19_800
    assert marks.pool["m"]["walk"] > 9_900
    assert marks.events >= 7
    assert marks.since_ms == 5


def test_without_the_file_nothing_is_covered(path: Path, tmp_path: Path) -> None:
    """Whoever asked must not go on."""
    water = HighWater(path, 5)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        water.cover([entry(0)])
    assert water.marks.pool == {}
    with pytest.raises(UnavailableError):
        HighWater(tmp_path / "nowhere" / "high-water.json", 5)


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"format": 9, "since_ms": 0}', b'{"since_ms": -1}', b"\xff", b"[]"]
)
def test_a_damaged_file_is_refused(path: Path, data: bytes) -> None:
    """It is not begun anew: that would say that nothing was used."""
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        HighWater(path, 5)
    assert path.read_bytes() == data


_marks = st.builds(
    lambda pool, events: Marks(since_ms=0, pool=pool, events=events),
    st.dictionaries(
        st.sampled_from("ab"),
        st.dictionaries(st.sampled_from(["read", "walk"]), st.integers(0, 99), min_size=1),
    ),
    st.integers(0, 99),
)


@given(_marks, _marks)
def test_merged_marks_are_above_both(a: Marks, b: Marks) -> None:
    """And no higher than the higher of both."""
    merged = a.merge(b)
    assert merged == b.merge(a)
    assert merged.merge(a) == merged
    assert merged.events == max(a.events, b.events)
    for model, kinds in merged.pool.items():
        for kind, mark in kinds.items():
            assert mark == max(each.pool.get(model, {}).get(kind, 0) for each in (a, b))
