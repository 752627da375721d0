"""
Jobs: files of requests that are done in the background, in ranges of lines.

A range is done by one router, while it has its lease; a lease is told by a token that is drawn anew each time.
What comes of a line is written with the line's receipt, and only under the lease (`write_lines`): so a line has one
result, and is charged once.
"""

from __future__ import annotations

import secrets
from asyncio import Future
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from router.model.errors import LostLeaseError
from router.model.job_lines import Range
from router.store import files
from router.store.batches import in_batches
from router.store.files import StoredFile
from verifier.store.database import Row, Tx

VALIDATING, FAILED, IN_PROGRESS, FINALIZING = "validating", "failed", "in_progress", "finalizing"
COMPLETED, EXPIRED, CANCELLING, CANCELLED = "completed", "expired", "cancelling", "cancelled"
_CUT: Final = "cut"
SPENT_BY: Final = " lines"
"""In place of a router's name, who has spent what lines of jobs use.  No router has such a name."""


class LineError(Struct, frozen=True, omit_defaults=True):
    """What is wrong with an input."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Job(Struct, frozen=True, kw_only=True):
    """A job as the store has it: a Batch of OpenAI's API."""

    id: str
    owner: str
    guest: bytes | None = None
    status: str = VALIDATING
    endpoint: str
    input_file: str
    completion_window: str
    created_ms: int
    expires_ms: int
    times: dict[str, int] = {}
    """When it came to each status, milliseconds."""
    metadata: dict[str, str] = {}
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    errors: tuple[LineError, ...] = ()
    output_file: str | None = None
    error_file: str | None = None
    keep_output_s: int | None = None
    holder: str = ""
    until_ms: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether each of its lines has a result."""
        return self.total > 0 and self.completed + self.failed >= self.total

    @property
    def is_cut(self) -> bool:
        """Whether its time was over before each line had a result."""
        return _CUT in self.times


class HeldRange(NamedTuple):
    """A range and its lease."""

    job: str
    range: Range
    tries: int
    holder: str


class LineResult(NamedTuple):
    """What came of a line, to be written with its receipt."""

    job: str
    line: int
    holder: str
    """The token of the lease under which it was done."""
    failed: bool
    data: bytes
    """A line of the output, or of the errors."""
    owner: str
    day: int
    """On which its tokens are charged, counted from 1970."""
    charged: int
    """Tokens that are charged."""
    prompt: int
    completion: int
    """Tokens that its receipt tells."""
    written: Future[bool]
    """Whether it was written: not if the lease was lost."""


# Jobs.


async def add(tx: Tx, job: Job) -> None:
    """Write a new job."""
    await tx.execute(
        "INSERT INTO jobs (id, owner, guest, status, is_open, endpoint, input_file, completion_window, created_ms,"
        " expires_ms, times, metadata, keep_output_s) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
        job.id, job.owner, job.guest, job.status, job.endpoint, job.input_file, job.completion_window,
        job.created_ms, job.expires_ms, _json(job.times), _json(job.metadata), job.keep_output_s,
    )  # fmt: skip


async def find(tx: Tx, job_id: str) -> Job | None:
    """A job."""
    row = await tx.one("SELECT * FROM jobs WHERE id = ?", job_id)
    return None if row is None else _stored(row)


async def page(tx: Tx, owner: str, *, after: str, limit: int) -> list[Job]:
    """Some jobs of *owner*, the newest first; those behind *after*, if it is one."""
    rows = await tx.all(
        "SELECT * FROM jobs WHERE owner = ? AND id < ? ORDER BY id DESC LIMIT ?", owner, after or "~", limit
    )
    return [_stored(row) for row in rows]


async def newest(tx: Tx, *, after: str, limit: int) -> list[Job]:
    """Some jobs of everybody, the newest first."""
    rows = await tx.all("SELECT * FROM jobs WHERE id < ? ORDER BY id DESC LIMIT ?", after or "~", limit)
    return [_stored(row) for row in rows]


async def all_open(tx: Tx) -> list[Job]:
    """All jobs that have not ended, the oldest of each owner first."""
    rows = await tx.all("SELECT * FROM jobs WHERE is_open = 1 ORDER BY owner, id")
    return [_stored(row) for row in rows]


async def count(tx: Tx, owner: str) -> tuple[int, int]:
    """How many jobs of *owner* have not ended, and how many there are."""
    row = await tx.one(
        "SELECT coalesce(sum(is_open), 0) AS still, count(*) AS kept FROM jobs WHERE owner = ?", owner
    )
    return (0, 0) if row is None else (int(row["still"]), int(row["kept"]))


async def is_read(tx: Tx, file_id: str) -> bool:
    """Whether an open job reads a file."""
    row = await tx.one("SELECT id FROM jobs WHERE input_file = ? AND is_open = 1 LIMIT 1", file_id)
    return row is not None


async def hold(tx: Tx, job: str, router: str, holder: str, now_ms: int, until_ms: int) -> bool:
    """Take or renew the lease of a job as a whole; returns whether *holder* has it."""
    changed = await tx.execute(
        "UPDATE jobs SET router = ?, holder = ?, until_ms = ? WHERE id = ? AND is_open = 1"
        " AND (holder = ? OR until_ms <= ?)",
        router, holder, until_ms, job, holder, now_ms,
    )  # fmt: skip
    return changed > 0


async def move(tx: Tx, job: Job, status: str, now_ms: int, *, holder: str = "", is_cut: bool = False) -> None:
    """
    Bring a job to another status.

    Args:
        job: As it was read.
        holder: Who must have its lease; empty: anybody may do this.
        is_cut: Whether its time is over and lines of it have no result.

    Raises:
        LostLeaseError: another router has the lease, or the job is in another status meanwhile.
    """
    times = {**job.times, status: now_ms}
    if is_cut:
        times[_CUT] = now_ms
    changed = await tx.execute(
        "UPDATE jobs SET status = ?, times = ?, is_open = ? WHERE id = ? AND status = ? AND (? = '' OR holder = ?)",
        status, _json(times), int(status not in (FAILED, COMPLETED, EXPIRED, CANCELLED)), job.id, job.status,
        holder, holder,
    )  # fmt: skip
    if not changed:
        raise LostLeaseError(f"{job.id} is {job.status} no more")


async def refuse(tx: Tx, job: Job, errors: Sequence[LineError], now_ms: int, holder: str) -> None:
    """End a job whose input is refused.  Raises `LostLeaseError`."""
    await move(tx, job, FAILED, now_ms, holder=holder)
    await tx.execute("UPDATE jobs SET errors = ? WHERE id = ?", _json(errors), job.id)
    await _drop_ranges(tx, job.id)


async def add_ranges(tx: Tx, job: str, ranges: Sequence[Range]) -> None:
    """Write ranges.  Those that are there already, from before a restart, are the same."""
    for marks, values in in_batches([(job, *each) for each in ranges]):
        await tx.execute(
            f"INSERT INTO job_ranges (job, number, first_line, lines, start, size) VALUES {marks}"
            " ON CONFLICT DO NOTHING",
            *values,
        )


async def begin(tx: Tx, job: Job, total: int, model: str | None, now_ms: int, holder: str) -> None:
    """Let the ranges of a job be done.  Raises `LostLeaseError`."""
    await move(tx, job, IN_PROGRESS, now_ms, holder=holder)
    await tx.execute(
        "UPDATE jobs SET total = ?, model = ?, holder = '', until_ms = 0 WHERE id = ?", total, model, job.id
    )


async def end(tx: Tx, job: Job, status: str, now_ms: int, holder: str, made: Sequence[StoredFile]) -> None:
    """End a job, with the files of its results.  Raises `LostLeaseError`."""
    await move(tx, job, status, now_ms, holder=holder)
    for file in made:
        await files.add(tx, file, state=files.READY)
        column = "error_file" if file.side else "output_file"
        await tx.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", file.id, job.id)
    await _drop_ranges(tx, job.id)


async def forget(tx: Tx, until_ms: int) -> None:
    """Drop jobs that ended long ago and whose results nobody has any more."""
    await tx.execute(
        "DELETE FROM jobs WHERE is_open = 0 AND created_ms <= ? AND NOT EXISTS"
        " (SELECT 1 FROM files WHERE files.id = jobs.output_file OR files.id = jobs.error_file)",
        until_ms,
    )


async def _drop_ranges(tx: Tx, job: str) -> None:
    await tx.execute("DELETE FROM job_ranges WHERE job = ?", job)


# Ranges.


async def claim(tx: Tx, job: str, router: str, holder: str, now_ms: int, until_ms: int) -> HeldRange | None:
    """Take the first range of a job that is due and that nobody has; `None` if there is none."""
    row = await tx.one(
        "UPDATE job_ranges SET router = ?, holder = ?, until_ms = ? WHERE job = ? AND number ="
        " (SELECT number FROM job_ranges WHERE job = ? AND is_done = 0 AND due_ms <= ? AND until_ms <= ?"
        " ORDER BY number LIMIT 1) RETURNING *",
        router, holder, until_ms, job, job, now_ms, now_ms,
    )  # fmt: skip
    if row is None:
        return None
    taken = Range(row["number"], row["first_line"], row["lines"], row["start"], row["size"])
    return HeldRange(job, taken, row["tries"], holder)


async def renew(tx: Tx, holders: Collection[str], until_ms: int) -> set[str]:
    """Renew leases of ranges; returns those that are still held."""
    if not holders:
        return set()
    marks = ", ".join("?" * len(holders))
    await tx.execute(f"UPDATE job_ranges SET until_ms = ? WHERE holder IN ({marks})", until_ms, *holders)
    rows = await tx.all(f"SELECT holder FROM job_ranges WHERE holder IN ({marks})", *holders)
    return {row["holder"] for row in rows}


async def give_back(
    tx: Tx, held: HeldRange, *, is_done: bool, failed_tries: int = 0, due_ms: int = 0
) -> None:
    """
    Give a range back.

    Args:
        is_done: Whether each of its lines has a result.
        failed_tries: Further tries of its lines that have failed.
        due_ms: When its other lines are to be tried again.
    """
    await tx.execute(
        "UPDATE job_ranges SET holder = '', until_ms = 0, is_done = ?, tries = tries + ?, due_ms = ?"
        " WHERE job = ? AND number = ? AND holder = ?",
        int(is_done), failed_tries, due_ms, held.job, held.range.number, held.holder,
    )  # fmt: skip


async def give_back_all(tx: Tx, router: str) -> None:
    """Give back all that a router held, and does no more."""
    await tx.execute(
        "UPDATE job_ranges SET holder = '', until_ms = 0 WHERE router = ? AND holder <> ''", router
    )
    await tx.execute("UPDATE jobs SET holder = '', until_ms = 0 WHERE router = ? AND is_open = 1", router)


async def lines_with_results(tx: Tx, job: str, taken: Range) -> set[int]:
    """Which lines of a range have a result."""
    rows = await tx.all(
        "SELECT line FROM job_lines WHERE job = ? AND line >= ? AND line < ?",
        job, taken.first_line, taken.first_line + taken.lines,
    )  # fmt: skip
    return {row["line"] for row in rows}


async def is_held(tx: Tx, job: str, now_ms: int) -> bool:
    """Whether anybody still does a range of a job."""
    row = await tx.one(
        "SELECT number FROM job_ranges WHERE job = ? AND is_done = 0 AND holder <> '' AND until_ms > ? LIMIT 1",
        job, now_ms,
    )  # fmt: skip
    return row is not None


async def undone(tx: Tx, job: str, limit: int) -> list[HeldRange]:
    """The first ranges of a job that are not done."""
    rows = await tx.all(
        "SELECT * FROM job_ranges WHERE job = ? AND is_done = 0 ORDER BY number LIMIT ?", job, limit
    )
    return [
        HeldRange(
            job,
            Range(row["number"], row["first_line"], row["lines"], row["start"], row["size"]),
            row["tries"],
            row["holder"],
        )
        for row in rows
    ]


# Lines.


async def write_lines(tx: Tx, lines: Sequence[LineResult]) -> set[int]:
    """
    Write what came of lines, and charge for it.

    Returns:
        The places in *lines* of those that were refused: another router has the lease, so it does the line.
    """
    holders = list(dict.fromkeys(line.holder for line in lines))
    alive: set[str] = set()
    for start in range(0, len(holders), 100):
        some = holders[start : start + 100]
        marks = ", ".join("?" * len(some))
        rows = await tx.all(f"SELECT holder FROM job_ranges WHERE holder IN ({marks})", *some)
        alive |= {row["holder"] for row in rows}
    known = await _known(tx, [line for line in lines if line.holder in alive])
    kept, refused = [], set()
    for place, line in enumerate(lines):
        if line.holder in alive and (line.job, line.line) not in known:
            kept.append(line)
            known.add((line.job, line.line))
        else:
            refused.add(place)
    for marks, values in in_batches([(each.job, each.line, int(each.failed), each.data) for each in kept]):
        await tx.execute(f"INSERT INTO job_lines (job, line, failed, data) VALUES {marks}", *values)
    await _count(tx, kept)
    await _charge(tx, kept)
    return refused


async def _known(tx: Tx, lines: Sequence[LineResult]) -> set[tuple[str, int]]:
    """Which of *lines* have a result already."""
    by_job: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        by_job[line.job].append(line.line)
    found: set[tuple[str, int]] = set()
    for job, numbers in by_job.items():
        for start in range(0, len(numbers), 100):
            some = numbers[start : start + 100]
            marks = ", ".join("?" * len(some))
            rows = await tx.all(f"SELECT line FROM job_lines WHERE job = ? AND line IN ({marks})", job, *some)
            found |= {(job, row["line"]) for row in rows}
    return found


async def _count(tx: Tx, lines: Sequence[LineResult]) -> None:
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for line in lines:
        size = len(line.data)
        added = (not line.failed, line.failed, line.prompt, line.completion, 0 if line.failed else size,
                 size if line.failed else 0)  # fmt: skip
        sums[line.job] = [a + int(b) for a, b in zip(sums[line.job], added, strict=True)]
    for job, added_up in sorted(sums.items()):
        await tx.execute(
            "UPDATE jobs SET completed = completed + ?, failed = failed + ?, prompt_tokens = prompt_tokens + ?,"
            " completion_tokens = completion_tokens + ?, output_bytes = output_bytes + ?,"
            " error_bytes = error_bytes + ? WHERE id = ?",
            *added_up, job,
        )  # fmt: skip


async def _charge(tx: Tx, lines: Sequence[LineResult]) -> None:
    spent: dict[tuple[str, int], int] = defaultdict(int)
    for line in lines:
        spent[line.owner, line.day] += line.charged
    for (owner, day), tokens in sorted(spent.items()):
        if not tokens:
            continue
        await tx.execute(
            "INSERT INTO budgets (router, name, day, tokens) VALUES (?, ?, ?, ?) ON CONFLICT (router, name)"
            " DO UPDATE SET tokens = CASE WHEN excluded.day > budgets.day THEN excluded.tokens"
            " ELSE budgets.tokens + excluded.tokens END,"
            " day = CASE WHEN excluded.day > budgets.day THEN excluded.day ELSE budgets.day END",
            SPENT_BY, owner, day, tokens,
        )  # fmt: skip


async def fill(tx: Tx, job: Job, held: HeldRange, rest: Sequence[tuple[int, bytes]]) -> None:
    """Write errors for the lines of a range that are done no more, and mark it as done."""
    added = 0
    for marks, values in in_batches([(job.id, line, 1, data) for line, data in rest]):
        added += await tx.execute(f"INSERT INTO job_lines (job, line, failed, data) VALUES {marks}", *values)
    await tx.execute(
        "UPDATE jobs SET failed = failed + ?, error_bytes = error_bytes + ? WHERE id = ?",
        added, sum(len(data) for _, data in rest), job.id,
    )  # fmt: skip
    await tx.execute(
        "UPDATE job_ranges SET is_done = 1, holder = '' WHERE job = ? AND number = ?",
        held.job, held.range.number,
    )  # fmt: skip


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _stored(row: Row) -> Job:
    given = {name: row[name] for name in Job.__struct_fields__ if name in row}
    given["times"] = msgspec.json.decode(bytes(row["times"]), type=dict[str, int])
    given["metadata"] = msgspec.json.decode(bytes(row["metadata"]), type=dict[str, str])
    errors = row["errors"]
    given["errors"] = () if errors is None else msgspec.json.decode(bytes(errors), type=tuple[LineError, ...])
    given["guest"] = None if row["guest"] is None else bytes(row["guest"])
    return Job(**given)


def new_id(now_ms: int) -> str:
    """An id that begins with the time, as those of receipts do, so that ids are in the order of time."""
    return f"{now_ms:012x}{secrets.token_hex(10)}"
