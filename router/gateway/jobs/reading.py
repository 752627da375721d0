"""Reads input files of jobs: all of one, a part at a time, or the lines of a range."""

from __future__ import annotations

from collections.abc import AsyncIterator

from router.model.errors import JobLineError
from router.model.job_lines import Line, LineRequest, LineSplitter, Range, read_line
from router.store import files
from router.store.files import PART
from verifier.store.database import Database

_ANY: int = 1 << 62
"""No bound: the lines were bounded when they came."""


async def read_parts(db: Database, file_id: str, size: int) -> AsyncIterator[bytes]:
    """The parts of a file, of *size* bytes in all."""
    for number in range((size + PART - 1) // PART):
        async with db.read() as tx:
            found = await files.parts(tx, file_id, number, number)
        if not found:
            raise JobLineError("file_not_found", "the input file was deleted")
        yield found[0]


async def read_range(db: Database, file_id: str, taken: Range) -> list[Line]:
    """
    The lines of a range.

    Raises:
        JobLineError: the file was deleted.
    """
    first, last = taken.start // PART, (taken.start + taken.size - 1) // PART
    async with db.read() as tx:
        found = await files.parts(tx, file_id, first, last)
    if len(found) != last - first + 1:
        raise JobLineError("file_not_found", "the input file was deleted")
    at = taken.start - first * PART
    splitter = LineSplitter(_ANY, _ANY, number=taken.first_line, start=taken.start)
    return [*splitter.feed(b"".join(found)[at : at + taken.size]), *splitter.end()]


async def read_requests(
    db: Database, file_id: str, taken: Range, endpoint: str
) -> list[tuple[int, LineRequest]]:
    """
    The requests of a range, each with the number of its line.

    Raises:
        JobLineError: the file was deleted.
    """
    return [(line.number, read_line(line, endpoint)) for line in await read_range(db, file_id, taken)]
