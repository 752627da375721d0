"""Running verifiers, and the commands on their databases, for the tests of backups and restores."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from click.testing import CliRunner

from fixtures.credentials import bearer
from fixtures.fleet import free_port
from fixtures.published import publish
from fixtures.simulator import SimulatedNode
from tests.conftest import FakeClock, RunningVerifier, seed
from touchstone import main
from verifier.config import Home
from verifier.service.app import make_app, open_service
from verifier.service.state import Service
from verifier.store.maintenance import Place
from verifier.store.opening import open_whole
from verifier.store.postgres import PostgresDatabase
from verifier.store.sqlite import SqliteDatabase
from verifier.store.whole import TableDigest, Use, digest_all

PACKAGE = "verifier.store"
WHY = ("--reason", "a test", "--actor", "kim")


def real_clock() -> FakeClock:
    """A clock that begins now: the commands read the real one."""
    return FakeClock(ms=time.time_ns() // 1_000_000)


@asynccontextmanager
async def serving(home: Home, clock: FakeClock, folder: Path) -> AsyncIterator[RunningVerifier]:
    """A verifier over a home, until the block ends."""
    config = home.config()
    with pytest.MonkeyPatch.context() as patch:
        # The clock that the test moves is the one that all replicas share.
        patch.setattr(PostgresDatabase, "ahead_ms", SqliteDatabase.ahead_ms)
        async with (
            open_service(home, config, clock.clock()) as service,
            _served(service, config.service.listen) as (app, http),
            aiohttp.ClientSession() as stranger,
        ):
            yield RunningVerifier(service, app, service.issuer, http, stranger, clock, home, folder)


@asynccontextmanager
async def _served(
    service: Service, listen: str
) -> AsyncIterator[tuple[web.Application, aiohttp.ClientSession]]:
    app = make_app(service)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    async with aiohttp.ClientSession(headers=bearer(service.admin_token)) as http:
        yield app, http
    await runner.cleanup()


async def fill(home: Home, clock: FakeClock, folder: Path, *, reads: int = 30, walks: int = 20) -> None:
    """Make the home's policy active, and mint challenges."""
    await seed(home, clock.ms)
    async with open_service(home, home.config(), clock.clock()) as service:
        await publish(service.db, service.pool_key, folder, clock.ms, reads=reads, walks=walks)


@dataclass
class Ended:
    """How a command ended."""

    status: int
    said: str


async def touchstone(*arguments: str | Path) -> Ended:
    """Run a command in this process, while its loop goes on."""
    done = await asyncio.to_thread(CliRunner().invoke, main, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ended(done.exit_code, done.output)


async def verifier_does(command: str, home: Home, *arguments: str | Path) -> Ended:
    return await touchstone("verifier", command, *arguments, "--home", home.path)


def place_of(home: Home) -> Place:
    return Place(home.config().store.url, home.database, PACKAGE)


async def at_rest(running: RunningVerifier) -> None:
    """Wait until the log has taken what was decided, which it does a little later."""
    async with asyncio.timeout(30):
        while await running.rows("SELECT 1 AS one FROM log_pending LIMIT 1"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def digests(place: Place) -> dict[str, TableDigest]:
    async with open_whole(place.url, place.file, Use.READ, schema=place.package) as whole:
        return await digest_all(whole)


async def rows(place: Place, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    async with open_whole(place.url, place.file, Use.READ, schema=place.package) as whole:
        return [dict(row) for row in await whole.tx.all(sql, *parameters)]


async def change(place: Place, *statements: str) -> None:
    """Change a database by hand."""
    async with open_whole(place.url, place.file, Use.WRITE, schema=place.package) as whole:
        for statement in statements:
            await whole.tx.execute(statement)
        await whole.commit()


async def attested(running: RunningVerifier, count: int = 1) -> list[SimulatedNode]:
    """Nodes that have attested once."""
    nodes = [await running.enrol(operator=f"operator-{number}") for number in range(count)]
    for node in nodes:
        await running.attest(node)
    return nodes


async def lose_database(home: Home) -> None:
    """What a lost disk leaves: an empty server, or no file; the home is as it was."""
    url = home.config().store.url
    if not url:
        for path in home.path.glob("verifier.db*"):
            path.unlink()
        return
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA IF EXISTS touchstone_verifier CASCADE")
    await connection.close()


def other_home(home: Home, path: Path) -> Home:
    """The home of a second replica: a copy made before the first start, that listens elsewhere."""
    shutil.copytree(home.path, path)
    config = path / "verifier.toml"
    listen = home.config().service.listen
    config.write_text(
        config.read_text().replace(f'listen = "{listen}"', f'listen = "127.0.0.1:{free_port()}"')
    )
    return Home(path)
