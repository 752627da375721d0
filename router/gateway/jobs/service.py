"""All that a router needs for jobs: what is stored of them, what does their lines, and what looks after them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import IO, Any, Final

from aiohttp import web

from router.config import BatchesSection
from router.gateway.handler import Gateway
from router.gateway.jobs.duties import Duties
from router.gateway.jobs.running import Runner
from router.gateway.jobs.wire import invalid
from router.gateway.jobs.writing import LineWriter
from router.state.receipt_keeper import ReceiptKeeper
from router.store import files
from router.store.files import PART, StoredFile
from verifier.store.database import Database, Tx

MAX_UPLOADS: Final = 8
"""That one router takes at a time."""
_PARTS_AT_ONCE: Final = 4


@dataclass
class Jobs:
    """A router's files and jobs."""

    db: Database
    gateway: Gateway
    config: BatchesSection
    writer: LineWriter
    runner: Runner
    duties: Duties
    uploads: int = 0
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs until the router ends, by name."""
        return {
            "batches": self.duties.run(),
            "lines of batches": self.runner.run(),
            "results of batches": self.writer.run(),
        }

    async def keep(self, file: StoredFile, data: IO[bytes]) -> None:
        """
        Keep an upload, as whole or not at all.

        Raises:
            GatewayError: its owner has too much stored already.
            StoreError: it could not be written.
        """
        most = self.config.max_stored_bytes

        async def begin(tx: Tx) -> bool:
            if await files.stored_bytes(tx, file.owner) + file.bytes > most:
                return False
            await files.add(tx, file, state=files.INCOMING)
            return True

        if not await self.db.write(begin):
            what = f"the files of the key have more than {most} bytes together: delete some"
            raise invalid(what, param="file", code="storage_limit_exceeded")
        data.seek(0)
        number = 0
        while parts := await asyncio.to_thread(_read_parts, data):

            async def add(tx: Tx, parts: list[bytes] = parts, number: int = number) -> None:
                for place, part in enumerate(parts, number):
                    await files.add_part(tx, file.id, place, part)

            await self.db.write(add)
            number += len(parts)
        await self.db.write(lambda tx: files.set_ready(tx, file.id))

    def delete_soon(self) -> None:
        """Delete in the background what is in files that their owners do not have any more."""
        task = asyncio.create_task(self.duties.delete(), name="deleting files")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Give back what was held, after the last results were written."""
        for task in self._background:
            task.cancel()
        await self.runner.ranges.close()


def make_jobs(
    db: Database, gateway: Gateway, config: BatchesSection, keeper: ReceiptKeeper | None, router: str
) -> Jobs:
    """
    Make the parts, and connect them.

    Args:
        db: The store.
        gateway: What requests share.
        config: ``[batches]``.
        keeper: Of the router's receipts; `None` if there are none.
        router: The router's name, which it has alone.
    """
    writer = LineWriter(db, keeper, gateway.clock)
    runner = Runner(db, gateway, config, writer, router)
    return Jobs(
        db=db,
        gateway=gateway,
        config=config,
        writer=writer,
        runner=runner,
        duties=Duties(db, gateway, config, runner),
    )


def _read_parts(data: IO[bytes]) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < _PARTS_AT_ONCE and (part := data.read(PART)):
        found.append(part)
    return found


JOBS: web.AppKey[Jobs | None] = web.AppKey("jobs")
"""`None`: this router keeps nothing, or batches are switched off."""
