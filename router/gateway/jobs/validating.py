"""
Validates the input of a job: every line, before any of them is done.

A line is read here as it will be when it is done, so that what is accepted can be done.  It runs on the loop in short
turns, and leaves twice as much time to other work as it takes; of the file a part is in memory, of its ids their digests.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from msgspec import Struct

from router.config import ApiKey, BatchesSection
from router.gateway.errors import GatewayError
from router.gateway.handler import Gateway
from router.gateway.jobs import lines
from router.gateway.jobs.reading import read_parts
from router.model.errors import JobLineError
from router.model.job_lines import Line, LineRequest, LineSplitter, Range, RangeMaker, is_blank, read_line
from router.store.files import StoredFile
from router.store.jobs import Job, LineError
from verifier.store.database import Database

_MAX_ERRORS: Final = 100
"""Errors of a file that are told."""
_TURN_S: Final = 0.002
_DIGEST: Final = 16
_MAX_SHOWN: Final = 300


class Validated(Struct, frozen=True, kw_only=True):
    """What a file has."""

    lines: int = 0
    ranges: tuple[Range, ...] = ()
    model: str | None = None
    """The model of all lines, if it is one."""
    errors: tuple[LineError, ...] = ()


class Validator:
    """
    Validates one file.

    Args:
        gateway: What requests share.
        config: The bounds.
        job: Whose input it is.
        key: Of its owner.
    """

    def __init__(self, gateway: Gateway, config: BatchesSection, job: Job, key: ApiKey) -> None:
        self._gateway = gateway
        self._config = config
        self._job = job
        self._key = key
        self._ids: set[bytes] = set()
        """Digests of the custom ids so far: 10^6 of them take about 100 MB."""
        self._ranges = RangeMaker()
        self._models: set[str] = set()
        self._errors: list[LineError] = []
        self._blank: Line | None = None
        """The first of blank lines: they may stand at the end alone."""
        self._lines = 0

    async def run(self, db: Database, file: StoredFile) -> Validated:
        """Read the file to its end, or up to a hundred errors."""
        splitter = LineSplitter(self._config.max_line_bytes, self._config.max_lines)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async for part in read_parts(db, file.id, file.bytes):
                for line in splitter.feed(part):
                    await self._take(line)
                    if (spent := loop.time() - began) > _TURN_S:
                        await asyncio.sleep(2 * spent)
                        began = loop.time()
            for line in splitter.end():
                await self._take(line)
        except JobLineError as error:
            self._note(error)
        except _TooManyErrorsError:
            pass
        return self._result()

    def _result(self) -> Validated:
        if not self._lines and not self._errors:
            self._note(JobLineError("empty_file", "the file has no lines"))
        if self._errors:
            return Validated(errors=tuple(self._errors))
        return Validated(
            lines=self._lines,
            ranges=tuple(self._ranges.end()),
            model=next(iter(self._models)) if len(self._models) == 1 else None,
        )

    async def _take(self, line: Line) -> None:
        if is_blank(line.data):
            self._blank = self._blank or line
            return
        if self._blank is not None:
            blank, self._blank = self._blank, None
            what = "the line is blank, and others come after it"
            self._note(JobLineError("invalid_json_line", what, line=blank.number))
        try:
            read = read_line(line, self._job.endpoint)
            self._check_id(line, read)
            await self._check_body(line, read)
        except JobLineError as error:
            self._note(error)
        self._ranges.add(line)
        self._lines += 1

    def _check_id(self, line: Line, read: LineRequest) -> None:
        digest = hashlib.blake2b(read.custom_id.encode(), digest_size=_DIGEST).digest()
        if digest in self._ids:
            what = f"custom_id {read.custom_id[:64]!r} was used in a line before"
            raise JobLineError("duplicate_custom_id", what, line=line.number, param="custom_id")
        self._ids.add(digest)

    async def _check_body(self, line: Line, read: LineRequest) -> None:
        try:
            request = await lines.prepare(self._gateway, self._job.endpoint, read, self._key)
        except GatewayError as error:
            param = "body" if error.param is None else f"body.{error.param}"
            raise JobLineError(
                error.code or "invalid_request", str(error)[:_MAX_SHOWN], line=line.number, param=param
            ) from None
        self._models.add(request.workload.model)

    def _note(self, error: JobLineError) -> None:
        self._errors.append(LineError(error.code, str(error), error.line, error.param))
        if len(self._errors) >= _MAX_ERRORS:
            raise _TooManyErrorsError


class _TooManyErrorsError(Exception):
    """Enough was found."""
