"""The verifier asks witnesses to cosign its log: real ones on real sockets, ones that are away, and a log that is forked."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from fixtures.fleet import free_port
from tests.conftest import FakeClock, RunningVerifier, seed
from tests.integration.maintenance import real_clock, serving, touchstone
from tests.integration.test_log_tampering import add, head, only_our_rounds, swap
from verifier.config import Home
from verifier.log.checkpoints import open_checkpoint
from verifier.log.cosignatures import cosignatures
from verifier.log.notes import Note, VerifierKey
from verifier.log.policies import LogPolicy
from verifier.log_config import AskedWitness
from verifier.service.log_witnesses import Witnesses
from verifier.service.serve import listening
from verifier.store import log_tree
from verifier.watching.home import FollowedLog, WitnessConfig, WitnessHome
from verifier.watching.seen import SeenTrees
from verifier.watching.service import make_app
from verifier.watching.witness import Witness

__all__ = ["only_our_rounds"]
NAMES = ("w.example/one", "w.example/two")


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture
async def home(verifier_home: Home, clock: FakeClock) -> Home:
    await seed(verifier_home, clock.ms)
    return verifier_home


@asynccontextmanager
async def witnessing(
    folder: Path, log: VerifierKey, name: str = NAMES[0]
) -> AsyncIterator[tuple[AskedWitness, VerifierKey]]:
    """A witness that follows a log."""
    home = WitnessHome(folder / name.rpartition("/")[2])
    if not home.path.exists():
        home.create(WitnessConfig(name=name))
    seen = SeenTrees(home.database)
    signer = home.signer(name)
    app = make_app(
        home,
        WitnessConfig(name=name, logs=(FollowedLog(key=str(log)),)),
        Witness(signer, seen, [log], lambda: 1_800_000_000),
    )
    async with listening(app, "127.0.0.1:0") as listener:
        yield AskedWitness(f"http://127.0.0.1:{listener.port}", str(signer.key)), signer.key
    seen.close()


async def log_key(running: RunningVerifier) -> VerifierKey:
    await running.service.sequencer.round()
    async with running.service.db.read() as tx:
        found = await log_tree.newest(tx)
    assert found is not None
    return VerifierKey.parse(found.vkey)


async def ask(running: RunningVerifier, *asked: AskedWitness) -> Witnesses:
    witnesses = Witnesses(running.service.db, running.service.duties, asked)
    async with aiohttp.ClientSession() as http:
        await witnesses.ask_all(http)
    return witnesses


async def published(running: RunningVerifier) -> bytes:
    async with running.stranger.get(f"{running.url}/log/checkpoint") as response:
        assert response.status == 200
        return bytes(await response.read())


async def cosigned_by(running: RunningVerifier, *keys: VerifierKey) -> set[str]:
    note = open_checkpoint(await published(running), [await log_key(running)]).note
    return {key.name for key in cosignatures(note, keys)}


async def test_the_published_checkpoint_has_the_cosignatures_of_all_witnesses(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    async with serving(home, clock, model_folder) as running:
        key = await log_key(running)
        async with (
            witnessing(tmp_path, key) as (one, first),
            witnessing(tmp_path, key, NAMES[1]) as (two, second),
        ):
            await ask(running, one, two)
            assert await cosigned_by(running, first, second) == set(NAMES)


async def test_a_log_that_grows_is_cosigned_again(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """From the size that the witness has seen, also if the verifier was started anew and does not know it."""
    async with (
        serving(home, clock, model_folder) as running,
        witnessing(tmp_path, await log_key(running)) as (asked, key),
    ):
        witnesses = await ask(running, asked)
        await add(running, 300)
        async with aiohttp.ClientSession() as http:
            await witnesses.ask_all(http)
        assert await cosigned_by(running, key) == {key.name}
        await add(running, 10)
        await ask(running, asked)
        assert await cosigned_by(running, key) == {key.name}
        assert (await head(running)).witnesses == 1


async def test_a_witness_that_is_away_stops_nothing(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """The others cosign, and the log goes on."""
    async with serving(home, clock, model_folder) as running:
        async with witnessing(tmp_path, await log_key(running)) as (asked, key):
            away = AskedWitness(f"http://127.0.0.1:{free_port()}", asked.key)
            await ask(running, away, asked)
            assert await cosigned_by(running, key) == {key.name}
        await add(running, 5)


async def shown(running: RunningVerifier) -> int:
    """The size of the checkpoint that a verifier with one witness publishes."""
    async with running.service.db.read() as tx:
        found = await log_tree.shown(tx, 1, 1, running.service.now_ms())
    assert found is not None
    return found.size


async def test_a_checkpoint_waits_for_its_witnesses(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """The newest has no cosignature yet; after some seconds it is published all the same."""
    async with serving(home, clock, model_folder) as running:
        async with witnessing(tmp_path, await log_key(running)) as (asked, _):
            await ask(running, asked)
            size = (await head(running)).size
            await add(running, 5)
            assert await shown(running) == size
        clock.forward(6)
        assert await shown(running) == size + 5


async def test_what_is_published_never_shrinks(home: Home, clock: FakeClock, model_folder: Path) -> None:
    """A smaller tree that is cosigned late would look like a log that was cut short."""
    async with serving(home, clock, model_folder) as running:
        await log_key(running)
        size = (await head(running)).size
        clock.forward(1)
        await add(running, 5)
        clock.forward(6)
        assert await shown(running) == size + 5
        late = "UPDATE log_checkpoints SET witnesses = 1 WHERE size = ?"
        assert await running.service.db.write(lambda tx: tx.execute(late, size)) == 1
        assert await shown(running) == size + 5


async def test_a_cosignature_of_another_key_is_not_taken(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Whoever answers in the place of a witness."""
    async with serving(home, clock, model_folder) as running:
        key = await log_key(running)
        async with (
            witnessing(tmp_path, key) as (one, first),
            witnessing(tmp_path, key, NAMES[1]) as (two, second),
        ):
            await ask(running, AskedWitness(one.url, two.key))
            assert await cosigned_by(running, first, second) == set()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "nothing"),
        (200, "— w.example/one AAAA\n"),
        (409, "many\n"),
        (409, "99\n"),
        (500, ""),
        (200, "x" * 70_000),
        (302, ""),
    ],
)
async def test_an_answer_that_is_none_is_not_taken(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path, status: int, body: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"Location": "http://127.0.0.1:1/"})

    app = web.Application()
    app.router.add_post("/add-checkpoint", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with (
        serving(home, clock, model_folder) as running,
        witnessing(tmp_path, await log_key(running)) as (asked, key),
    ):
        await ask(running, AskedWitness(f"http://127.0.0.1:{port}", asked.key))
        assert await cosigned_by(running, key) == set()
    await runner.cleanup()


async def test_a_witness_refuses_a_fork_that_the_key_has_signed(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Somebody put another database in place and deleted the guard too: whoever has the key can sign anything."""
    async with serving(home, clock, model_folder) as running:
        key = await log_key(running)
        await add(running, 20)
    shutil.copytree(home.path, tmp_path / "twin")
    async with witnessing(tmp_path, key) as (asked, witness):
        async with serving(home, clock, model_folder) as running:
            await add(running, 30)
            await ask(running, asked)
            assert await cosigned_by(running, witness) == {witness.name}
        async with serving(Home(tmp_path / "twin"), clock, model_folder) as running:
            await add(running, 50, "other")
        swap(home, tmp_path / "twin" / "verifier.db")
        home.log_guard.unlink()
        async with serving(home, clock, model_folder) as running:
            await add(running, 1)
            await ask(running, asked)
            assert await cosigned_by(running, witness) == set()


async def test_the_verifier_names_its_witnesses_as_a_policy(
    home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """`touchstone log key --policy` writes what a reader needs to accept the checkpoint."""
    async with (
        serving(home, clock, model_folder) as running,
        witnessing(tmp_path, await log_key(running)) as (asked, _),
    ):
        path = home.path / "verifier.toml"
        line = f'witnesses = [{{url = "{asked.url}", key = "{asked.key}"}}]'
        path.write_text(path.read_text().replace("witnesses = []", line))
        policy = LogPolicy.parse(
            (await touchstone("log", "key", "--policy", "--home", home.path)).said.encode()
        )
        await ask(running, *home.config().log.witnesses)
        data = await published(running)
        assert policy.accept(Note.parse(data)).checkpoint.size > 0


async def test_they_are_asked_by_themselves(
    verifier_home: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """As the service does it, beside everything else, until it ends."""
    await seed(verifier_home, clock.ms)
    async with (
        serving(verifier_home, clock, model_folder) as running,
        witnessing(tmp_path, await log_key(running)) as (asked, key),
    ):
        task = asyncio.create_task(Witnesses(running.service.db, running.service.duties, (asked,)).run())
        async with asyncio.timeout(10):
            while await cosigned_by(running, key) != {key.name}:  # noqa: ASYNC110  # another task does it
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
