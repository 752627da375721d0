"""Digests taken before: used for files that are unchanged, declared, and never lost in a crash."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import blake3
import pytest

from attester.errors import WeightsError
from attester.evidence import Cached
from attester.weights import hashing
from attester.weights.cache import DigestCache
from attester.weights.folder import ModelFile, open_folder
from attester.weights.hashing import ALGORITHMS
from attester.weights.manifest import measure

NOW = 1_800_000_000
SECOND = 1_000_000_000
STAMP = (1, 2, (NOW - 100) * SECOND, (NOW - 50) * SECOND)
FILE = ModelFile("a", None, 5, STAMP)
DIGESTS = {"sha256": b"s" * 32, "blake3": b"b" * 32}


class Now:
    """Seconds since 1970, moved by hand."""

    def __init__(self, seconds: float = NOW) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def cache(tmp_path, now):
    with closing(DigestCache(tmp_path / "cache.db", now)) as opened:
        yield opened


@pytest.fixture
def root(tmp_path):
    """A folder of a model, beside which a cache may lie."""
    path = tmp_path / "model"
    path.mkdir()
    for name in "abc":
        (path / name).write_bytes(name.encode() * 1000)
    return path


@pytest.fixture
def later(tmp_path):
    """A cache for real files, which were written to an hour ago."""
    with closing(DigestCache(tmp_path / "cache.db", Now(int(time.time()) + 3600))) as opened:
        yield opened


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are opened to be hashed."""
    found = []
    real = hashing.open_model_file

    def spied(file):
        found.append(file.name)
        return real(file)

    monkeypatch.setattr(hashing, "open_model_file", spied)
    return found


def test_what_was_kept_is_found(cache):
    cache.store(FILE, DIGESTS)
    assert cache.find(FILE, ALGORITHMS) == (DIGESTS, NOW)


def test_what_was_never_kept_is_not_found(cache):
    assert cache.find(FILE, ALGORITHMS) is None
    cache.store(FILE, DIGESTS)
    assert cache.find(ModelFile("a", None, 5, (1, 3, *STAMP[2:])), ALGORITHMS) is None


def test_a_file_goes_by_its_inode_and_not_by_its_name(cache):
    cache.store(FILE, DIGESTS)
    assert cache.find(ModelFile("b", None, 5, STAMP), ALGORITHMS) == (DIGESTS, NOW)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("part", range(4), ids=["device", "inode", "mtime", "ctime"])
def test_a_file_whose_stamp_differs_is_not_found(cache, part, by):
    """To the nanosecond, and backwards too."""
    cache.store(FILE, DIGESTS)
    stamp = [*STAMP]
    stamp[part] += by
    assert cache.find(ModelFile("a", None, 5, tuple(stamp)), ALGORITHMS) is None


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_file_of_another_size_is_not_found(cache, size):
    cache.store(FILE, DIGESTS)
    assert cache.find(ModelFile("a", None, size, STAMP), ALGORITHMS) is None


def test_what_is_kept_anew_takes_the_place_of_what_was(cache, now):
    cache.store(FILE, DIGESTS)
    now.seconds += 10
    changed = ModelFile("a", None, 6, (1, 2, (NOW - 20) * SECOND, (NOW - 20) * SECOND))
    cache.store(changed, {"sha256": b"t" * 32})
    assert cache.find(changed, ["sha256"]) == ({"sha256": b"t" * 32}, NOW + 10)
    assert cache.find(changed, ["blake3"]) is None
    assert cache.find(FILE, ["sha256"]) is None


def test_two_algorithms_are_kept_by_themselves(cache, now):
    cache.store(FILE, {"sha256": b"s" * 32})
    assert cache.find(FILE, ALGORITHMS) is None
    assert cache.find(FILE, ["blake3"]) is None
    now.seconds += 7
    cache.store(FILE, {"blake3": b"b" * 32})
    assert cache.find(FILE, ["sha256"]) == ({"sha256": b"s" * 32}, NOW)
    assert cache.find(FILE, ["blake3"]) == ({"blake3": b"b" * 32}, NOW + 7)
    assert cache.find(FILE, ALGORITHMS) == (DIGESTS, NOW)


def test_no_algorithm_finds_nothing(cache):
    cache.store(FILE, DIGESTS)
    assert cache.find(FILE, []) is None


@pytest.mark.parametrize(
    ("age", "found"), [(0, True), (99, True), (100, True), (101, False), (1 << 40, False)]
)
def test_digests_grow_old(cache, now, age, found):
    cache.store(FILE, DIGESTS)
    now.seconds += age
    assert (cache.find(FILE, ALGORITHMS, 100) is not None) == found
    assert cache.find(FILE, ALGORITHMS) is not None


def test_the_oldest_of_two_digests_counts(cache, now):
    cache.store(FILE, {"sha256": b"s" * 32})
    now.seconds += 60
    cache.store(FILE, {"blake3": b"b" * 32})
    now.seconds += 60
    assert cache.find(FILE, ALGORITHMS, 100) is None
    assert cache.find(FILE, ["blake3"], 100) is not None


@pytest.mark.parametrize(
    ("mtime", "ctime", "kept"),
    [
        (-10 * SECOND, -10 * SECOND, True),
        (-2 * SECOND, -2 * SECOND, True),
        (-2 * SECOND + 1000, -10 * SECOND, False),
        (-10 * SECOND, -2 * SECOND + 1000, False),
        (0, 0, False),
        (3600 * SECOND, -10 * SECOND, False),
    ],
    ids=["long ago", "two seconds ago", "written a moment ago", "touched a moment ago", "now", "tomorrow"],
)
def test_what_was_written_a_moment_ago_is_not_kept(cache, mtime, ctime, kept):
    """It may be written to again within a tick of its clock."""
    file = ModelFile("a", None, 5, (1, 2, NOW * SECOND + mtime, NOW * SECOND + ctime))
    cache.store(file, DIGESTS)
    assert (cache.find(file, ALGORITHMS) is not None) == kept


def test_a_cache_in_memory_works_alike(now):
    with closing(DigestCache(None, now)) as cache:
        cache.store(FILE, DIGESTS)
        assert cache.find(FILE, ALGORITHMS) == (DIGESTS, NOW)


def test_a_cache_survives_being_closed(tmp_path, now):
    with closing(DigestCache(tmp_path / "cache.db", now)) as cache:
        cache.store(FILE, DIGESTS)
    with closing(DigestCache(tmp_path / "cache.db", now)) as cache:
        assert cache.find(FILE, ALGORITHMS) == (DIGESTS, NOW)


def test_two_that_keep_at_once_keep_both(tmp_path, now):
    other = ModelFile("a", None, 5, (1, 9, *STAMP[2:]))
    with (
        closing(DigestCache(tmp_path / "cache.db", now)) as first,
        closing(DigestCache(tmp_path / "cache.db", now)) as second,
    ):
        first.store(FILE, DIGESTS)
        second.store(other, DIGESTS)
    with closing(DigestCache(tmp_path / "cache.db", now)) as cache:
        assert None not in (cache.find(FILE, ALGORITHMS), cache.find(other, ALGORITHMS))


def of_another_kind(path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE digests (name TEXT)")
        db.commit()


def damaged(path) -> None:
    with closing(DigestCache(path, Now())) as cache:
        for inode in range(2000):
            cache.store(ModelFile("a", None, 5, (1, inode, *STAMP[2:])), DIGESTS)
    data = bytearray(path.read_bytes())
    data[8192:-8192] = b"\xa5" * (len(data) - 16384)
    path.write_bytes(data)


BROKEN = {
    "text": lambda path: path.write_text("not a database, but longer than a header of one" * 100),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "another database": of_another_kind,
    "damaged": damaged,
    "a folder": lambda path: path.mkdir(),
    "in no folder": lambda path: None,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_cache_is_said(tmp_path, name):
    path = tmp_path / ("gone/cache.db" if name == "in no folder" else "cache.db")
    BROKEN[name](path)
    with pytest.raises(WeightsError, match="not a usable cache") as refusal:
        DigestCache(path)
    assert str(path) in str(refusal.value)


def test_a_cache_that_cannot_be_written_to_costs_this_process_nothing(cache):
    cache.close()
    cache.store(FILE, DIGESTS)
    found = cache.find(FILE, tuple(DIGESTS))
    assert found is not None
    assert found[0] == DIGESTS


def test_devices_and_inodes_of_64_bits_are_kept(tmp_path):
    large = ModelFile("a", "/a", 1, ((1 << 64) - 1, 1 << 63, 1, 1))
    for _ in range(2):
        cache = DigestCache(tmp_path / "c.db", lambda: 1e9)
        cache.store(large, DIGESTS)
        assert cache.find(large, tuple(DIGESTS)) is not None
        cache.close()


def test_digests_from_the_future_are_not_found(tmp_path):
    times = [2e9, 2e9, 1e9]
    cache = DigestCache(None, lambda: times[0])
    cache.store(FILE, DIGESTS)
    assert cache.find(FILE, tuple(DIGESTS)) is not None
    times[0] = 1.9e9
    assert cache.find(FILE, tuple(DIGESTS)) is None


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_an_unchanged_folder_is_not_read_again(root, later, reads):
    folder = open_folder(root)
    first = measure(folder, ALGORITHMS, cache=later)
    assert sorted(reads) == ["a", "b", "c"]
    assert first.to_claim().cached is None
    reads.clear()
    told, paced = [], []
    second = measure(open_folder(root), ALGORITHMS, told.append, later, pace=paced.append)
    assert (reads, sum(told), paced) == ([], folder.total, [])
    assert second.digests == first.digests
    assert second.to_claim().files == first.to_claim().files
    assert second.to_claim().cached == Cached(files=3, oldest=int(later._now()))


def test_a_measurement_without_a_cache_reads_everything(root, reads):
    for _ in range(2):
        assert measure(open_folder(root)).to_claim().cached is None
    assert sorted(reads) == ["a", "a", "b", "b", "c", "c"]


def rewrite(path) -> None:
    path.write_bytes(b"z" * 1000)


def rewrite_and_hide(path) -> None:
    """Size and mtime as they were."""
    before = path.stat()
    path.write_bytes(b"z" * 1000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_and_hide(path) -> None:
    """Size and mtime as they were, of another file."""
    before = path.stat()
    other = path.with_name("new")
    other.write_bytes(b"z" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def grow(path) -> None:
    path.write_bytes(b"z" * 1001)


CHANGES = {"rewritten": rewrite, "in secret": rewrite_and_hide, "replaced": replace_and_hide, "grown": grow}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changed_is_read_again(root, later, reads, name):
    # Older than any tick of a clock, as the files of a model are.
    os.utime(root / "b", ns=(1, 1))
    measure(open_folder(root), cache=later)
    before = (root / "b").stat().st_ctime_ns
    while (root / "b").stat().st_ctime_ns == before:
        CHANGES[name](root / "b")
    reads.clear()
    told, paced = [], []
    measured = measure(open_folder(root), ("sha256",), told.append, later, pace=paced.append)
    claim = measured.to_claim()
    assert reads == ["b"]
    assert [file.sha256 for file in claim.files] == [
        sha256(b"a" * 1000),
        sha256((root / "b").read_bytes()),
        sha256(b"c" * 1000),
    ]
    assert claim.cached == Cached(files=2, oldest=int(later._now()))
    assert (sum(told), sum(paced)) == (open_folder(root).total, (root / "b").stat().st_size)


def test_what_is_too_old_is_read_again_and_is_young_then(root, later, reads):
    measure(open_folder(root), cache=later)
    later._now.seconds += 101
    reads.clear()
    assert measure(open_folder(root), cache=later, max_age_s=100).to_claim().cached is None
    assert sorted(reads) == ["a", "b", "c"]
    reads.clear()
    later._now.seconds += 99
    claim = measure(open_folder(root), cache=later, max_age_s=100).to_claim()
    assert (reads, claim.cached) == ([], Cached(files=3, oldest=int(later._now()) - 99))


def test_the_oldest_of_what_was_cached_is_told(root, later):
    (root / "c").rename(root.parent / "c")
    measure(open_folder(root), cache=later)
    oldest = int(later._now())
    (root.parent / "c").rename(root / "c")
    later._now.seconds += 50
    assert measure(open_folder(root), cache=later).to_claim().cached == Cached(files=2, oldest=oldest)
    later._now.seconds += 50
    assert measure(open_folder(root), cache=later).to_claim().cached == Cached(files=3, oldest=oldest)


def test_files_just_written_are_read_every_time(root, tmp_path, reads):
    with closing(DigestCache(tmp_path / "cache.db", Now(time.time() - 3600))) as cache:
        for _ in range(2):
            assert measure(open_folder(root), cache=cache).to_claim().cached is None
    assert sorted(reads) == ["a", "a", "b", "b", "c", "c"]


# This one is kept: it is asked how long ago the file was written to when it was read, not before.
def test_a_file_just_written_is_read_again_however_long_its_reading_took(root, tmp_path, reads):
    """It may have been written to while it was read, within the tick that its mtime shows."""
    now = Now(time.time())

    def progress(_: int) -> None:
        now.seconds += 60

    with closing(DigestCache(tmp_path / "cache.db", now)) as cache:
        measure(open_folder(root), progress=progress, cache=cache)
        reads.clear()
        measure(open_folder(root), cache=cache)
    assert sorted(reads) == ["a", "b", "c"]


def test_an_algorithm_more_is_taken_and_declared_as_read(root, later, reads):
    measure(open_folder(root), ["sha256"], cache=later)
    reads.clear()
    claim = measure(open_folder(root), ALGORITHMS, cache=later).to_claim()
    assert (sorted(reads), claim.cached) == (["a", "b", "c"], None)
    assert claim.files[0].blake3 == blake3.blake3(b"a" * 1000).digest()
    reads.clear()
    for algorithm in ALGORITHMS:
        assert measure(open_folder(root), [algorithm], cache=later).cached == 3
    assert reads == []


def test_two_names_of_one_file_share_its_digest(root, later):
    (root / "d").symlink_to("a")
    measure(open_folder(root), cache=later)
    claim = measure(open_folder(root), cache=later).to_claim()
    assert claim.cached == Cached(files=4, oldest=int(later._now()))
    assert claim.files[0].sha256 == claim.files[3].sha256


def test_a_refusal_loses_nothing_that_was_read_before(root, later):
    (root / "b").write_bytes(b"b" * 10)
    folder = open_folder(root)
    (root / "b").unlink()
    with pytest.raises(WeightsError, match=r"^b cannot be read"):
        measure(folder, cache=later)
    (root / "b").write_bytes(b"b" * 10)
    assert measure(open_folder(root), cache=later).cached == 2


CRASHING = """
import sys, threading, time
from pathlib import Path
from attester.weights.cache import DigestCache
from attester.weights.folder import open_folder
from attester.weights.manifest import measure

class Telling(DigestCache):
    def store(self, file, digests, began=None):
        super().store(file, digests, began)
        print("kept", file.name, flush=True)

def progress(count):
    if count == 500:
        threading.Event().wait()

cache = Telling(Path(sys.argv[1]), lambda: time.time() + 3600)
measure(open_folder(Path(sys.argv[2])), ["sha256", "blake3"], progress, cache)
"""


def test_a_run_that_was_killed_goes_on_where_it_was(root, tmp_path, reads):
    (root / "last").write_bytes(b"l" * 500)
    run = subprocess.Popen(
        [sys.executable, "-c", CRASHING, tmp_path / "cache.db", root], stdout=subprocess.PIPE, text=True
    )
    try:
        kept = {run.stdout.readline() for _ in "abc"}
    finally:
        run.kill()
        run.wait()
    assert kept == {"kept a\n", "kept b\n", "kept c\n"}
    with closing(DigestCache(tmp_path / "cache.db", Now(time.time() + 3600))) as cache:
        measured = measure(open_folder(root), ALGORITHMS, cache=cache)
    assert reads == ["last"]
    assert measured.cached == 3
    assert [digests["sha256"] for digests in measured.digests] == [
        *(sha256(name * 1000) for name in (b"a", b"b", b"c")),
        sha256(b"l" * 500),
    ]
