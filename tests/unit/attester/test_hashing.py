"""Digests: all from one read, the same whichever way a file goes, or a refusal by name."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import folder as folder_module
from attester.weights import hashing
from attester.weights.folder import ModelFile, OpenFile, open_folder, opened
from attester.weights.hashing import ALGORITHMS, Pace, check_algorithms, hash_file, hash_files
from attester.weights.manifest import measure

WAIT_S = 30.0
"""Only a test that fails waits as long."""


def put(path, data: bytes = b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def only(root) -> ModelFile:
    (file,) = open_folder(root).files
    return file


def digests_of(data: bytes) -> dict[str, bytes]:
    return {"sha256": hashlib.sha256(data).digest(), "blake3": blake3.blake3(data).digest()}


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
def small(monkeypatch):
    """A few thousand bytes are several slices, and a piece is smaller yet."""
    monkeypatch.setattr(folder_module, "SLICE", 1 << 13)
    monkeypatch.setattr(hashing, "_SLICE_ALONE", 1 << 13)
    monkeypatch.setattr(hashing, "_PIECE", 1 << 10)


@pytest.fixture
def leased(tmp_path):
    """Skips where no file can be mapped under a lease."""
    file = ModelFile("probe", put(tmp_path.parent / "probe"), 1)
    with opened(file) as stream:
        if not stream._leased:
            pytest.skip("this file system grants no leases")


@pytest.fixture
def lease_broken():
    """Waits, in any thread, until somebody wants to write to a file that we hold a lease on."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    handler = signal.signal(signal.SIGURG, lambda *_: None)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    ours.settimeout(WAIT_S)
    yield lambda: ours.recv(1)
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGURG, handler)
    ours.close()
    theirs.close()


def elsewhere(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Python in another process."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"import os, sys\n{code}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "size",
    [0, 1, 1023, 1024, 1025, (1 << 13) - 1, 1 << 13, (1 << 13) + 1, (1 << 15) + 777],
)
def test_both_digests_of_a_file_are_those_of_its_bytes(tmp_path, small, size):
    put(tmp_path / "a", noise(size))
    assert hash_file(only(tmp_path), ALGORITHMS) == digests_of(noise(size))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_file_of_a_real_slice(tmp_path, more):
    data = noise(1 << 20) * 16
    data = data[: len(data) + more] + b"x" * (more == 1)
    assert len(data) == folder_module.SLICE + more
    put(tmp_path / "a", data)
    done = []
    assert hash_files([only(tmp_path)], ALGORITHMS, done.append) == [digests_of(data)]
    assert sum(done) == len(data)
    assert hash_file(only(tmp_path), ALGORITHMS) == digests_of(data)


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=8), st.sampled_from(["sha256", "blake3", None]))
@settings(max_examples=40)
def test_any_files_have_their_digests_in_their_order(tmp_path_factory, sizes, alone):
    root = tmp_path_factory.mktemp("any")
    for number, size in enumerate(sizes):
        put(root / str(number), noise(size))
    algorithms = ALGORITHMS if alone is None else (alone,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "SLICE", 1 << 13)
        patch.setattr(hashing, "_SLICE_ALONE", 1 << 13)
        patch.setattr(hashing, "_PIECE", 1 << 10)
        found = hash_files(open_folder(root).files, algorithms)
    assert found == [{name: digests_of(noise(size))[name] for name in algorithms} for size in sizes]


@pytest.fixture
def ways(monkeypatch):
    """Which files were hashed by themselves, and which beside others."""
    found: dict[str, list[str]] = {"alone": [], "beside": []}

    def spy(way, name):
        function = getattr(hashing, name)

        def spied(file, *rest):
            found[way].append(file.name)
            return function(file, *rest)

        monkeypatch.setattr(hashing, name, spied)

    spy("alone", "_hash_alone")
    spy("beside", "hash_file")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    return found


def test_a_file_that_would_keep_the_others_waiting_is_hashed_by_itself(tmp_path, small, ways):
    sizes = {"huge": 60_000, "large": 20_000, "small": 300, "empty": 0}
    for name, size in sizes.items():
        put(tmp_path / name, noise(size))
    files = open_folder(tmp_path).files
    found = dict(zip((file.name for file in files), hash_files(files, ALGORITHMS), strict=True))
    assert found == {name: digests_of(noise(size)) for name, size in sizes.items()}
    assert (ways["alone"], sorted(ways["beside"])) == (["huge"], ["empty", "large", "small"])


@pytest.mark.parametrize("algorithms", [("sha256",), ("blake3",), ALGORITHMS])
def test_only_a_digest_that_can_be_divided_is_taken_alone(tmp_path, small, ways, algorithms):
    put(tmp_path / "a", noise(60_000))
    (found,) = hash_files([only(tmp_path)], algorithms)
    assert found == {name: digests_of(noise(60_000))[name] for name in algorithms}
    assert ways["alone"] == (["a"] if "blake3" in algorithms else [])


def test_the_way_alone_and_the_way_beside_agree(tmp_path, small, ways, monkeypatch):
    put(tmp_path / "a", noise(100_001))
    alone = hash_files([only(tmp_path)], ALGORITHMS)
    monkeypatch.setattr(hashing, "_PIECE", 1 << 30)
    beside = hash_files([only(tmp_path)], ALGORITHMS)
    assert alone == beside == [digests_of(noise(100_001))]
    assert ways == {"alone": ["a"], "beside": ["a"]}


@pytest.mark.parametrize("algorithms", [("sha256",), ("blake3",), ALGORITHMS])
def test_progress_is_told_of_every_byte_once(tmp_path, small, ways, algorithms):
    for name, size in (("huge", 60_000), ("large", 20_000), ("small", 300), ("empty", 0)):
        put(tmp_path / name, noise(size))
    folder, lock, done = open_folder(tmp_path), threading.Lock(), []

    def tell(count: int) -> None:
        with lock:
            done.append(count)

    hash_files(folder.files, algorithms, tell)
    assert sum(done) == folder.total
    assert max(done) <= 1 << 13


def test_each_file_is_told_of_when_it_is_done(tmp_path):
    for number in range(5):
        put(tmp_path / str(number), noise(number))
    told = {}
    hash_files(open_folder(tmp_path).files, ALGORITHMS, None, lambda f, d: told.update({f.name: d}))
    assert told == {str(number): digests_of(noise(number)) for number in range(5)}


# Files are told of in the order of their sizes: a small one waits for every larger one, and a crash loses it.
def test_a_file_is_told_of_while_a_larger_one_is_being_read(tmp_path):
    put(tmp_path / "large", noise(2000))
    put(tmp_path / "small", noise(1000))
    told, in_time = threading.Event(), []

    def progress(count: int) -> None:
        if count == 2000:
            in_time.append(told.wait(2))

    def done(file, _) -> None:
        if file.name == "small":
            told.set()

    hash_files(open_folder(tmp_path).files, ("sha256",), progress, done)
    assert in_time == [True]


def test_no_files_have_no_digests():
    assert hash_files([], ALGORITHMS) == []


@pytest.mark.parametrize("names", [["md5"], ["SHA256"], ["sha256", "md5"], [""], ["sha256 "], ["sha-256"]])
def test_an_unknown_algorithm_is_refused(names):
    with pytest.raises(WeightsError, match=r"no digest algorithm '.*'; there are sha256, blake3"):
        check_algorithms(names)


def test_no_algorithm_is_refused():
    with pytest.raises(WeightsError, match="no digest algorithm was named"):
        check_algorithms([])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["sha256"], ("sha256",)),
        (["blake3"], ("blake3",)),
        (["blake3", "sha256"], ("sha256", "blake3")),
        (["sha256", "sha256"], ("sha256",)),
    ],
)
def test_algorithms_come_once_and_in_one_order(names, found):
    assert check_algorithms(names) == found


# This one is not refused: whatever is not SHA-256 is hashed by BLAKE3, under the name that was given.
@pytest.mark.parametrize("take", [hash_file, lambda f, names: hash_files([f], names)], ids=["one", "several"])
def test_an_unknown_algorithm_is_never_taken_for_another(tmp_path, take):
    put(tmp_path / "a")
    with pytest.raises((WeightsError, KeyError, ValueError)):
        take(only(tmp_path), ["md5"])


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


def test_a_pace_is_kept_on_average():
    time = Time()
    pace = Pace(1000, lambda: time.now, time.sleep)
    for _ in range(10):
        pace(500)
    assert time.now == pytest.approx(105.0)


def test_time_that_reading_takes_counts():
    time = Time()
    pace = Pace(1000, lambda: time.now, time.sleep)
    pace(500)
    time.now += 0.2
    pace(500)
    assert time.slept == pytest.approx([0.5, 0.5])
    assert time.now == pytest.approx(101.2)


def test_an_idle_hour_is_not_saved_up():
    time = Time()
    pace = Pace(1000, lambda: time.now, time.sleep)
    pace(1000)
    time.now += 3600
    pace(1000)
    assert time.slept == pytest.approx([1.0, 1.0])


def test_several_threads_share_one_pace():
    """What one has read the next one waits for, even while the first one sleeps."""
    slept = []
    pace = Pace(1000, lambda: 0.0, slept.append)
    for _ in range(4):
        pace(1000)
    assert slept == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_a_pace_holds_over_threads():
    lock, slept = threading.Lock(), []

    def sleep(seconds: float) -> None:
        with lock:
            slept.append(seconds)

    pace = Pace(1000, lambda: 0.0, sleep)
    threads = [threading.Thread(target=lambda: [pace(10) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == pytest.approx([0.01 * (number + 1) for number in range(400)])


def test_a_measurement_keeps_to_its_pace(tmp_path, small):
    put(tmp_path / "a", noise(20_000))
    put(tmp_path / "b", noise(30_000))
    slept = []
    measure(open_folder(tmp_path), ALGORITHMS, pace=Pace(1000, lambda: 0.0, slept.append))
    assert max(slept) == pytest.approx(50.0)


WRITERS = {
    "cut short": "os.truncate(sys.argv[1], 100)",
    "emptied": "open(sys.argv[1], 'wb').close()",
    "written to": "f = open(sys.argv[1], 'r+b'); f.write(b'other'); f.close()",
    "appended to": "f = open(sys.argv[1], 'ab'); f.write(b'more'); f.close()",
    "opened for writing": "open(sys.argv[1], 'r+b').close()",
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("algorithms", [("sha256",), ALGORITHMS], ids=["beside", "alone"])
def test_a_mapped_file_that_another_process_writes_to_is_refused(
    tmp_path, small, leased, lease_broken, name, algorithms
):
    """The writer waits, we refuse and live, and then the writer goes on."""
    path = put(tmp_path / "a", noise(60_000))
    files, writers = open_folder(tmp_path).files, []

    def progress(_: int) -> None:
        if not writers:
            writers.append(elsewhere(WRITERS[name], path))
            lease_broken()

    with pytest.raises(WeightsError, match=r"^a is written to while it is read$"):
        hash_files(files, algorithms, progress)
    gc.collect()
    assert writers[0].wait(WAIT_S) == 0
    assert (name == "opened for writing") == (path.read_bytes() == noise(60_000))


def test_a_writer_that_comes_during_the_last_slice_waits_for_its_end(tmp_path, leased, lease_broken):
    """There is no next slice to refuse: the digest is that of the bytes before."""
    path = put(tmp_path / "a", noise(60_000))
    writers = []

    def progress(_: int) -> None:
        writers.append(elsewhere(WRITERS["cut short"], path))
        lease_broken()

    assert hash_file(only(tmp_path), progress=progress) == {"sha256": digests_of(noise(60_000))["sha256"]}
    assert writers[0].wait(WAIT_S) == 0
    assert path.stat().st_size == 100


# The mapping, and with it the lease, lives on in the error's traceback until garbage is collected:
# who wants to write waits for that, or for the kernel's 45 seconds.
@pytest.mark.parametrize("algorithms", [("sha256",), ALGORITHMS], ids=["beside", "alone"])
def test_a_lease_ends_with_a_refusal(tmp_path, small, leased, algorithms):
    path = put(tmp_path / "a", noise(60_000))

    def progress(_: int) -> None:
        raise WeightsError("refused")

    gc.disable()
    try:
        with pytest.raises(WeightsError, match="refused"):
            hash_files(open_folder(tmp_path).files, algorithms, progress)
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    finally:
        gc.enable()


def test_a_lease_ends_with_the_reading(tmp_path, leased):
    """Nobody who wants to write waits for a file that was read."""
    path = put(tmp_path / "a", noise(60_000))
    hash_file(only(tmp_path))
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.close(descriptor)


def test_a_file_that_nobody_writes_to_is_mapped(tmp_path, leased):
    put(tmp_path / "a", noise(100))
    with opened(only(tmp_path)) as stream:
        assert stream._leased
        (data,) = stream.slices()
        assert data.base is not None
        data[:] = 0
    assert (tmp_path / "a").read_bytes() == noise(100)


@pytest.fixture
def copied(monkeypatch):
    """How many slices were copied, and how many mapped."""
    counts = {"_copied": 0, "_mapped": 0}
    for name in counts:
        function = getattr(OpenFile, name)

        def spied(self, *rest, name=name, function=function):
            counts[name] += 1
            return function(self, *rest)

        monkeypatch.setattr(OpenFile, name, spied)
    return counts


def test_a_file_that_somebody_has_open_for_writing_is_copied(tmp_path, small, copied):
    path = put(tmp_path / "a", noise(20_000))
    writer = elsewhere("f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()", path)
    try:
        writer.stdout.readline()
        assert hash_file(only(tmp_path), ALGORITHMS) == digests_of(noise(20_000))
        assert copied == {"_copied": 3, "_mapped": 0}
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize(
    "places", [(0, None), (1, 20_000), (4096, 8192), (4097, 9000), (8191, 2), (30_000, 1)]
)
@pytest.mark.parametrize("lease", [True, False], ids=["mapped", "copied"])
def test_any_part_of_a_file_is_read(tmp_path, small, monkeypatch, lease, places):
    """Wherever it begins, whichever way."""
    if not lease:
        monkeypatch.setattr(folder_module, "_lease", lambda _: False)
    put(tmp_path / "a", noise(30_001))
    start, size = places
    with opened(only(tmp_path)) as stream:
        slices = [data.tobytes() for data in stream.slices(start, size)]
    assert b"".join(slices) == noise(30_001)[start : None if size is None else start + size]
    assert max(map(len, slices)) <= 1 << 13


def test_a_part_beyond_the_file_is_refused(tmp_path):
    put(tmp_path / "a", noise(100))
    with opened(only(tmp_path)) as stream:
        stream._leased = False
        with pytest.raises(WeightsError, match=r"^a changed while it was read"):
            list(stream.slices(50, 51))


def test_a_file_that_is_cut_between_its_listing_and_its_lease_is_refused(tmp_path, monkeypatch):
    path = put(tmp_path / "a", noise(60_000))
    lease = folder_module._lease

    def late(descriptor: int) -> bool:
        os.truncate(path, 100)
        return lease(descriptor)

    monkeypatch.setattr(folder_module, "_lease", late)
    with pytest.raises(WeightsError, match=r"^a (cannot be mapped|changed)"):
        hash_file(only(tmp_path))


@pytest.mark.parametrize("algorithms", [("sha256",), ALGORITHMS], ids=["beside", "alone"])
def test_a_file_that_is_gone_is_refused_by_name(tmp_path, small, algorithms):
    path = put(tmp_path / "sub" / "a", noise(20_000))
    file = only(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"^sub/a cannot be read: No such file"):
        hash_files([file], algorithms)


@pytest.mark.parametrize("algorithms", [("sha256",), ALGORITHMS], ids=["beside", "alone"])
def test_a_file_of_another_size_than_listed_is_refused_by_name(tmp_path, small, algorithms):
    path = put(tmp_path / "a", noise(20_000))
    file = only(tmp_path)
    path.write_bytes(noise(20_001))
    with pytest.raises(WeightsError, match=r"^a changed since it was listed"):
        hash_files([file], algorithms)


def test_a_file_whose_reading_fails_is_refused_by_name(tmp_path, monkeypatch):
    put(tmp_path / "a", noise(100))
    monkeypatch.setattr(folder_module, "_lease", lambda _: False)

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(WeightsError, match=r"^a cannot be read: Input/output error"):
        hash_file(only(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path):
    put(tmp_path / "a").chmod(0)
    with pytest.raises(WeightsError, match=r"^a cannot be read: Permission denied"):
        hash_files([only(tmp_path)], ALGORITHMS)


def test_an_error_in_one_file_stops_the_work(tmp_path, monkeypatch):
    """Of the hundreds of files behind it, only those under way are read."""
    for number in range(400):
        put(tmp_path / f"{number:03}", noise(1000))
    first = put(tmp_path / "first", noise(2000))
    files = open_folder(tmp_path).files
    first.unlink()
    stopped, read = threading.Event(), []
    shutdown = hashing.ThreadPoolExecutor.shutdown

    def stop(self, *, wait=True, cancel_futures=False):
        shutdown(self, wait=False, cancel_futures=cancel_futures)
        stopped.set()
        shutdown(self, wait=wait)

    def progress(count: int) -> None:
        # Nobody reads on before the error was noticed.
        stopped.wait(WAIT_S)
        read.append(count)

    monkeypatch.setattr(hashing.ThreadPoolExecutor, "shutdown", stop)
    with pytest.raises(WeightsError, match=r"^first cannot be read"):
        hash_files(files, ("sha256",), progress)
    assert len(read) <= len(os.sched_getaffinity(0)) + 2


@pytest.mark.parametrize("algorithms", [("sha256",), ALGORITHMS], ids=["beside", "alone"])
def test_what_progress_raises_ends_the_work(tmp_path, small, algorithms):
    put(tmp_path / "a", noise(60_000))

    class StopNowError(Exception):
        pass

    told = []

    def progress(count: int) -> None:
        told.append(count)
        raise StopNowError

    with pytest.raises(StopNowError):
        hash_files(open_folder(tmp_path).files, algorithms, progress)
    assert len(told) == 1
