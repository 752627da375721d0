"""
A process that writes into a log and keeps it, as fast as it can, until it is killed.

    python -m tests.integration.log_writer HOME FIRST

It prints the number of each entry whose transaction was committed.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from verifier.config import Home
from verifier.service.clock import Clock
from verifier.service.duties import Duties
from verifier.service.sequencer import Sequencer
from verifier.store import log
from verifier.store.database import Database, Tx
from verifier.store.opening import open_database

TOGETHER = 37


async def write(db: Database, first: int) -> None:
    """Write entries into one transaction after the other, and say so."""
    for start in count(first, TOGETHER):

        async def work(tx: Tx, start: int = start) -> None:
            for number in range(start, start + TOGETHER):
                await log.append(tx, number, "key", {"change": "made", "kid": f"k{number}", "use": "test"})

        await db.write(work)
        print(start, flush=True)  # noqa: T201
        await asyncio.sleep(0)


async def keep(sequencer: Sequencer) -> None:
    """One round after the other."""
    while True:
        await sequencer.round()


async def main(home: Home, first: int) -> None:
    """Do both at once."""
    config = home.config()
    async with open_database(config.store.url, home.database) as db:
        duties = Duties(db, Clock(), config.sessions.skew_s)
        sequencer = Sequencer(db, duties, config.log_origin, home.log_key(), home.log_guard)
        await asyncio.gather(write(db, first), keep(sequencer))


if __name__ == "__main__":
    asyncio.run(main(Home(Path(sys.argv[1])), int(sys.argv[2])))
