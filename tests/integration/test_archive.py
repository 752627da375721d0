"""Results that are too old move into Parquet files that the log proves: a kill at any moment loses none."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from attester.errors import ConfigError
from fixtures.transactions import transaction
from tests.integration.test_log import settle, the_log
from tests.unit.verifier.log.test_notes import LOG
from touchstone import main
from verifier.archive import files, parquet
from verifier.archive.files import ArchiveEntry, proof_of
from verifier.archive.moving import Archive, Step, unchanged
from verifier.archive.rows import RECEIPTS, RESULTS, leaf_of, root_of
from verifier.audit.checking import check
from verifier.audit.exporting import export
from verifier.errors import AuditError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, open_checkpoint, sign_checkpoint
from verifier.log.notes import VerifierKey
from verifier.log.proofs import LogProof
from verifier.service import archiving, sweep

pytest.importorskip("pyarrow", reason="an archive needs pyarrow")
STORES = ("sqlite", "postgres")
DAY_S = 86_400


def row(number: int, **changed: Any) -> dict[str, Any]:
    made = {
        "id": f"{number:032x}", "at_ms": 1_700_000_000_000 + number, "kid": "k", "caller": "c",
        "batch": 1, "place": number, "payload": b"{}", "signature": None,
    }  # fmt: skip
    return {**made, **changed}


class Rows:
    """A hot store in memory."""

    def __init__(self, count: int) -> None:
        self.rows = {each["id"]: each for each in map(row, range(count))}
        self.removed = 0

    async def oldest(self, limit: int) -> list[dict[str, Any]]:
        return sorted(self.rows.values(), key=lambda each: each["id"])[:limit]

    async def remove(self, rows: Any) -> None:
        there = [self.rows[each["id"]] for each in rows if each["id"] in self.rows]
        for each in unchanged(RECEIPTS, rows, there):
            del self.rows[each["id"]]
            self.removed += 1


class Log:
    """A log that signs when it is told to."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.submitted: list[ArchiveEntry] = []
        self.signs = True

    async def submit(self, entry: ArchiveEntry) -> None:
        self.submitted.append(entry)
        data = msgspec.json.encode({**entry.members(), "at": 1, "kind": "archive", "v": 1}, order="sorted")
        if data not in self.entries:
            self.entries.append(data)

    async def prove(self, digest: str) -> LogProof | None:
        if not self.signs:
            return None
        leaves = [tree.leaf_hash(entry) for entry in self.entries]
        place = next(at for at, entry in enumerate(self.entries) if digest.encode() in entry)
        checkpoint = Checkpoint(LOG.key.name, len(leaves), tree.root_of(leaves))
        path = tree.inclusion_proof(
            place,
            len(leaves),
            lambda level, index: tree.root_of(leaves[index << level : (index + 1) << level]),
        )
        return LogProof(place, tuple(path), sign_checkpoint(checkpoint, LOG), self.entries[place])


@pytest.fixture(autouse=True)
def moved_by_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier's own sweep does not move what a test is about to move."""
    monkeypatch.setattr(sweep, "open_archive", lambda _service: None)


@pytest.fixture
def store() -> Rows:
    return Rows(25)


@pytest.fixture
def log() -> Log:
    return Log()


def archive(folder: Path, store: Rows, log: Log) -> Archive:
    return Archive(folder, RECEIPTS, store, log, 10)


async def run(archive: Archive) -> Step:
    while (step := await archive.step()) is Step.MOVED:
        pass
    return step


def kept(folder: Path) -> list[dict[str, Any]]:
    return [each for path in sorted(folder.glob("*.parquet")) for each in parquet.read(path)[1]]


def test_all_rows_move(tmp_path: Path, store: Rows, log: Log) -> None:
    assert asyncio.run(run(archive(tmp_path, store, log))) is Step.IDLE
    assert store.rows == {}
    assert kept(tmp_path) == [row(number) for number in range(25)]
    assert [path.name for path in sorted(tmp_path.glob("*.parquet"))] == [
        f"00000000{number}-2023-11-14.parquet" for number in (1, 2, 3)
    ]
    for path in tmp_path.glob("*.parquet"):
        assert files.check(path, None).entry.digest == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_nothing_is_deleted_before_the_log_has_signed(tmp_path: Path, store: Rows, log: Log) -> None:
    log.signs = False
    assert await run(archive(tmp_path, store, log)) is Step.WAITS
    assert len(store.rows) == 25
    log.signs = True
    assert await run(archive(tmp_path, store, log)) is Step.IDLE
    assert store.removed == 25


class Killed(BaseException):
    """The process ends here."""


POINTS = ("written", "submitted", "proof", "deleting")


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_moment_loses_no_row_and_doubles_none(
    tmp_path: Path, store: Rows, log: Log, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """At each point in turn, three times; a new process goes on with what it finds."""
    kills = 3

    def kill_after(function: Callable[..., Any], *, at: str) -> Callable[..., Any]:
        async def killing(*arguments: Any) -> Any:
            nonlocal kills
            if at == "deleting" and kills:
                kills -= 1
                await function(arguments[0][:4])
                raise Killed
            found = await function(*arguments)
            if kills:
                kills -= 1
                raise Killed
            return found

        return killing

    if point == "written":
        monkeypatch.setattr(log, "submit", kill_before(log.submit, lambda: kills))
    targets = {"submitted": (log, "submit"), "proof": (log, "prove"), "deleting": (store, "remove")}
    if point in targets:
        owner, name = targets[point]
        monkeypatch.setattr(owner, name, kill_after(getattr(owner, name), at=point))
    for _ in range(20):
        try:
            step = await run(archive(tmp_path, store, log))
        except Killed:
            every = {each["id"] for each in kept(tmp_path)} | set(store.rows)
            assert len(every) == 25
            continue
        assert step is Step.IDLE
        break
    assert store.rows == {}
    assert kept(tmp_path) == [row(number) for number in range(25)]


def kill_before(function: Callable[..., Awaitable[None]], left: Callable[[], int]) -> Callable[..., Any]:
    times = [left()]

    async def killing(*arguments: Any) -> None:
        if times[0]:
            times[0] -= 1
            raise Killed
        await function(*arguments)

    return killing


def test_a_file_that_was_being_written_is_begun_anew(tmp_path: Path, store: Rows, log: Log) -> None:
    """A kill leaves a file without its name."""
    left = tmp_path / ".000000001-2023-11-14.parquet.0123456789abcdef"
    left.write_bytes(b"PAR1 and not more")
    asyncio.run(run(archive(tmp_path, store, log)))
    assert not left.exists()
    assert len(kept(tmp_path)) == 25


async def test_a_row_that_was_changed_meanwhile_stays_and_moves_later(
    tmp_path: Path, store: Rows, log: Log
) -> None:
    """Its file has it as it was, and a later one as it is: neither is lost."""
    log.signs = False
    await run(archive(tmp_path, store, log))
    changed = store.rows[row(3)["id"]]
    store.rows[changed["id"]] = {**changed, "signature": b"later"}
    log.signs = True
    assert await run(archive(tmp_path, store, log)) is Step.IDLE
    assert store.rows == {}
    assert [each["signature"] for each in kept(tmp_path) if each["id"] == changed["id"]] == [None, b"later"]


@pytest.mark.parametrize("at", [4, -20, 1000])
def test_a_file_that_was_changed_deletes_nothing(tmp_path: Path, store: Rows, log: Log, at: int) -> None:
    """A bad disk, or somebody: the file with the proof is not what was logged."""
    log.signs = False
    asyncio.run(run(archive(tmp_path, store, log)))
    (path,) = tmp_path.glob("*.parquet")
    log.signs = True
    proof = asyncio.run(log.prove(files.digest_of(path)))
    proof_of(path).write_text(str(proof))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AuditError, match="was changed"):
        asyncio.run(run(archive(tmp_path, store, log)))
    assert len(store.rows) == 25


def test_a_disk_that_is_full_deletes_nothing(
    tmp_path: Path, store: Rows, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise AuditError("No space left on device")

    monkeypatch.setattr(parquet, "write", full)
    with pytest.raises(AuditError, match="space"):
        asyncio.run(run(archive(tmp_path, store, log)))
    assert len(store.rows) == 25
    assert list(tmp_path.iterdir()) == []


def touchstone(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", "archive", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path, store: Rows, log: Log) -> Path:
    asyncio.run(run(archive(tmp_path / "a", store, log)))
    return min((tmp_path / "a").glob("*.parquet"))


def test_a_file_verifies_with_the_public_key(file: Path) -> None:
    result = touchstone(file, "--key", LOG.key)
    assert result.exit_code == 0, result.output
    assert "10 rows of receipts" in result.output
    assert touchstone(file).exit_code == 2


def test_a_file_of_another_log_is_refused(file: Path) -> None:
    other = LOG.key.__class__("log.example/log", bytes(32))
    assert touchstone(file, "--key", other).exit_code == 1


def test_a_changed_file_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(bytes(data))
    result = touchstone(file, "--key", LOG.key)
    assert result.exit_code == 1
    assert "was changed" in result.output


def test_rows_in_another_file_are_refused(file: Path) -> None:
    """The rows are those that were logged; the file is another one."""
    _, rows = parquet.read(file)
    parquet.write(file, RECEIPTS, rows[:9])
    assert touchstone(file, "--key", LOG.key).exit_code == 1


def test_a_proof_of_something_else_is_refused(file: Path, log: Log) -> None:
    entry = b'{"at":1,"kind":"result","v":1}'
    note = sign_checkpoint(Checkpoint(LOG.key.name, 1, tree.leaf_hash(entry)), LOG)
    proof_of(file).write_text(str(LogProof(0, (), note, entry)))
    result = touchstone(file, "--key", LOG.key)
    assert result.exit_code == 1
    assert "is not of a file of an archive" in result.output


def test_a_file_without_its_proof_is_refused(file: Path) -> None:
    proof_of(file).unlink()
    assert touchstone(file, "--key", LOG.key).exit_code == 1


def test_a_parquet_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(AuditError, match="other columns"):
        parquet.read(tmp_path / "x.parquet")


def test_an_archive_without_pyarrow_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pyarrow"):
        parquet.check_installed()


values = st.fixed_dictionaries(
    {
        "id": st.text(max_size=4), "at_ms": st.integers(0, 1 << 62), "kid": st.text(max_size=4),
        "caller": st.text(max_size=4), "batch": st.integers(0, 9), "place": st.integers(0, 9),
        "payload": st.binary(max_size=9), "signature": st.none() | st.binary(max_size=9),
    }
)  # fmt: skip


@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_every_value_of_a_row_is_under_the_root(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    root = root_of(RECEIPTS, rows)
    other = data.draw(values)
    changed = [*rows]
    changed[data.draw(st.integers(0, len(rows) - 1))] = other
    assert (root_of(RECEIPTS, changed) == root) == (changed == rows)
    assert leaf_of(RECEIPTS, other) == leaf_of(RECEIPTS, dict(reversed(other.items())))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    path.write_bytes(data)
    with pytest.raises(AuditError):
        parquet.read(path)


# The verifier's own archive.


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {"archive": {"folder": "archive"}, "results": {"keep_days": 1, "lifetime_s": 600}}


async def test_old_results_move_into_files_that_the_log_proves(
    verifier, verifier_home, tmp_path: Path
) -> None:
    node = await verifier.enrol()
    claims = [await verifier.attest(node) for _ in range(3)]
    verifier.clock.forward(2 * DAY_S)
    last = await verifier.attest(node)
    found = archiving.open_archive(verifier.service)
    assert found is not None
    await sweep.delete_old(verifier.service)
    assert len(await verifier.rows("SELECT id FROM appraisals")) == 4
    await archiving.move_old(found)
    assert len(await verifier.rows("SELECT id FROM appraisals")) == 4
    await settle(verifier)
    await archiving.move_old(found)
    rows = await verifier.rows("SELECT id FROM appraisals")
    assert [each["id"] for each in rows] == [last["jti"]]
    (path,) = (verifier_home.path / "archive" / "results").glob("*.parquet")
    key = (await the_log(verifier)).vkey
    result = await asyncio.to_thread(touchstone, path, "--key", key)
    assert result.exit_code == 0, result.output
    table, moved = parquet.read(path)
    assert table is RESULTS
    assert [each["id"] for each in moved] == [each["jti"] for each in claims]
    await sweep.delete_old(verifier.service)
    # Evidence packs have them from there.
    async with verifier.service.db.read() as tx:
        await export(
            tx, verifier.service.log_key, tmp_path / "pack", from_ms=0, to_ms=verifier.clock.ms + 1, now_ms=1,
            archive=path.parent,
        )  # fmt: skip
    trusted = VerifierKey.parse(key)
    pack = check(tmp_path / "pack", [trusted], lambda note: open_checkpoint(note, [trusted]))
    assert (pack.findings, pack.results, pack.index.without_token) == ([], 4, 0)


async def test_what_was_changed_in_the_database_is_not_deleted(verifier, verifier_home) -> None:
    """Somebody edits a result after it was archived: both are kept."""
    node = await verifier.enrol()
    await verifier.attest(node)
    verifier.clock.forward(2 * DAY_S)
    found = archiving.open_archive(verifier.service)
    assert found is not None
    await archiving.move_old(found)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE appraisals SET status = 'warning'")
    for _ in range(2):
        await settle(verifier)
        await archiving.move_old(found)
    folder = verifier_home.path / "archive" / "results"
    assert [each["status"] for each in kept(folder)] == ["affirming", "warning"]
    assert await verifier.rows("SELECT id FROM appraisals") == []
