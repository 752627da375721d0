"""A witness as a process on a real socket: what it answers, what it refuses, and that it survives kill -9."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from attester.errors import ConfigError
from fixtures.fleet import free_port
from fixtures.folder_log import FolderLog
from touchstone import main
from verifier.errors import LogFormatError, LogUnreadableError
from verifier.log.checkpoints import open_checkpoint
from verifier.log.cosignatures import cosignatures, verify_answer
from verifier.log.notes import COSIGNATURE_V1, VerifierKey
from verifier.log.tiles import Tile
from verifier.log.witnessing import MAX_REQUEST, Refusal, RefusalError
from verifier.service.serve import listening
from verifier.watching.home import FollowedLog, WitnessConfig, WitnessHome, WitnessServiceConfig, place_of
from verifier.watching.pulling import pull
from verifier.watching.seen import SeenTrees
from verifier.watching.service import follow_once, make_app
from verifier.watching.sources import FolderSource
from verifier.watching.witness import Witness

NAME = "witness.example/w1"


def entries(count: int, mark: str = "") -> list[bytes]:
    return [f"{index}{mark}".encode() for index in range(count)]


@pytest.fixture
def log(tmp_path: Path) -> FolderLog:
    return FolderLog(tmp_path / "log", entries(300))


@pytest.fixture
def home(tmp_path: Path) -> WitnessHome:
    made = WitnessHome(tmp_path / "witness")
    made.create(WitnessConfig(name=NAME))
    return made


@pytest.fixture
def witness(home: WitnessHome, log: FolderLog) -> Iterator[Witness]:
    seen = SeenTrees(home.database)
    yield Witness(home.signer(NAME), seen, [log.key], lambda: 1_700_000_000)
    seen.close()


@asynccontextmanager
async def serving(
    home: WitnessHome, witness: Witness, log: FolderLog, **service: int
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    config = WitnessConfig(
        name=NAME, logs=(FollowedLog(key=str(log.key)),), service=WitnessServiceConfig(**service)
    )
    app = make_app(home, config, witness)
    async with listening(app, "127.0.0.1:0") as listener, aiohttp.ClientSession() as http:
        yield http, f"http://127.0.0.1:{listener.port}"


async def post(http: aiohttp.ClientSession, url: str, body: object) -> tuple[int, str, str]:
    async with http.post(f"{url}/add-checkpoint", data=str(body).encode()) as response:
        return response.status, response.content_type, await response.text()


async def test_a_checkpoint_is_cosigned(home: WitnessHome, witness: Witness, log: FolderLog) -> None:
    async with serving(home, witness, log) as (http, url):
        status, kind, text = await post(http, url, log.request(0))
        assert (status, kind) == (200, "text/plain")
        assert verify_answer(text.encode(), log.note, witness.signer.key)
        async with http.get(f"{url}/") as response:
            about = (await response.text()).splitlines()
        assert about[0] == f"witness {witness.signer.key}"
        path = about[1].split(" ")[2]
        assert about[1:] == [f"log {log.key.name} {path}"]
        async with http.get(url + path) as response:
            note = open_checkpoint(await response.read(), [log.key]).note
        assert cosignatures(note, [witness.signer.key])


async def test_each_refusal_has_the_status_of_the_specification(
    tmp_path: Path, home: WitnessHome, witness: Witness, log: FolderLog
) -> None:
    async with serving(home, witness, log) as (http, url):
        await post(http, url, log.request(0))
        forked = log.with_entries(tmp_path / "forked", entries(300, "x"))
        longer = log.with_entries(tmp_path / "longer", entries(301, "x"))
        other = FolderLog(tmp_path / "other", entries(1))
        stranger = other.request(0)
        unknown = replace(
            stranger, note=replace(stranger.note, text=stranger.note.text.replace("log.example", "x.example"))
        )
        answers = {
            "malformed": await post(http, url, "old x"),
            "unknown": await post(http, url, unknown),
            "unsigned": await post(http, url, stranger),
            "stale": await post(http, url, log.request(0)),
            "forked": await post(http, url, forked.request(300)),
            "inconsistent": await post(http, url, longer.request(300)),
        }
        async with http.get(f"{url}/") as response:
            about = await response.text()
    statuses = {name: status for name, (status, _, _) in answers.items()}
    assert statuses == {
        "malformed": 400, "unknown": 404, "unsigned": 403, "stale": 409, "forked": 409, "inconsistent": 422
    }  # fmt: skip
    assert answers["stale"][1:] == ("text/x.tlog.size", "300\n")
    assert set(statuses) == set(Refusal)
    assert f"evidence {log.key.name} 1700000000 " in about


async def test_a_body_that_is_too_large_is_refused(
    home: WitnessHome, witness: Witness, log: FolderLog
) -> None:
    async with serving(home, witness, log) as (http, url):
        status, _, _ = await post(http, url, "x" * (MAX_REQUEST + 1))
    assert status == 413


async def test_a_caller_may_not_ask_without_end(home: WitnessHome, witness: Witness, log: FolderLog) -> None:
    async with serving(home, witness, log, per_address_per_minute=2) as (http, url):
        statuses = [(await post(http, url, log.request(0)))[0] for _ in range(4)]
    assert statuses == [200, 409, 409, 429]


async def test_a_log_that_is_not_followed_has_no_checkpoint(
    home: WitnessHome, witness: Witness, log: FolderLog
) -> None:
    async with serving(home, witness, log) as (http, url):
        for place in (place_of(log.key.name), place_of("other"), "x"):
            async with http.get(f"{url}/logs/{place}/checkpoint") as response:
                assert response.status == 404


async def test_a_log_is_followed_by_its_files(witness: Witness, log: FolderLog) -> None:
    source = FolderSource(log.folder)
    for size in (300, 300, 301, 700):
        log.append(entries(size)[len(log.entries) :])
        signature = await pull(source, log.key, witness)
        assert signature.is_of(witness.signer.key)
        assert witness.seen.last(log.key.name).size == size


async def test_an_edited_log_is_not_followed(tmp_path: Path, witness: Witness, log: FolderLog) -> None:
    await pull(FolderSource(log.folder), log.key, witness)
    edited = log.with_entries(tmp_path / "edited", entries(301, "x"))
    with pytest.raises(RefusalError) as error:
        await pull(FolderSource(edited.folder), log.key, witness)
    assert error.value.refusal is Refusal.INCONSISTENT
    assert witness.seen.last(log.key.name).size == 300


async def test_a_forked_log_is_not_followed(tmp_path: Path, witness: Witness, log: FolderLog) -> None:
    await pull(FolderSource(log.folder), log.key, witness)
    forked = log.with_entries(tmp_path / "forked", entries(300, "x"))
    with pytest.raises(RefusalError) as error:
        await pull(FolderSource(forked.folder), log.key, witness)
    assert error.value.refusal is Refusal.FORKED


async def test_a_log_that_was_cut_short_is_not_followed(
    tmp_path: Path, witness: Witness, log: FolderLog
) -> None:
    await pull(FolderSource(log.folder), log.key, witness)
    shorter = log.with_entries(tmp_path / "shorter", entries(299))
    with pytest.raises(RefusalError, match="cut short"):
        await pull(FolderSource(shorter.folder), log.key, witness)


async def test_a_log_whose_tiles_are_missing_is_not_followed(witness: Witness, log: FolderLog) -> None:
    await pull(FolderSource(log.folder), log.key, witness)
    log.append(entries(302)[300:])
    (log.folder / Tile(0, 1, 46).path).unlink()
    with pytest.raises(LogFormatError, match=r"tile/0/001\.p/46"):
        await pull(FolderSource(log.folder), log.key, witness)
    with pytest.raises(LogUnreadableError):
        await pull(FolderSource(log.folder / "nowhere"), log.key, witness)


async def test_what_is_followed_is_published_as_a_file(
    home: WitnessHome, witness: Witness, log: FolderLog
) -> None:
    """Over a real socket; for operators who cannot be called."""
    app = web.Application()
    app.router.add_static("/log", log.folder)
    async with TestServer(app) as server:
        await follow_once(home, witness, log.key, str(server.make_url("/log")))
    path = home.checkpoint(log.key.name)
    note = open_checkpoint(path.read_bytes(), [log.key]).note
    assert set(cosignatures(note, [witness.signer.key])) == {witness.signer.key}
    assert path.stat().st_mode & 0o777 == 0o644


def touchstone(*arguments: object) -> Result:
    # This process logs for other tests too.
    with patch("verifier.commands.witness.configure_logging"):
        return CliRunner().invoke(main, ["log", "witness", *map(str, arguments)])


@contextmanager
def static(folder: Path) -> Iterator[str]:
    """The folder behind a URL, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> TestServer:
        app = web.Application()
        app.router.add_static("/log", folder)
        server = TestServer(app)
        await server.start_server()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield str(server.make_url("/log"))
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_the_command_makes_a_home_and_reads_a_log_once(tmp_path: Path, log: FolderLog) -> None:
    home = tmp_path / "w"
    with static(log.folder) as url:
        result = touchstone("--home", home, "--name", NAME, "--log", url, "--key", log.key, "--once")
        assert result.exit_code == 0, result.output
        assert "cosigned" in result.output
        key = VerifierKey.parse(touchstone("--home", home, "--show-key").output.strip())
        assert (key.name, key.kind) == (NAME, COSIGNATURE_V1)
        log.with_entries(log.folder, entries(300, "x"))
        result = touchstone("--home", home, "--log", url, "--key", log.key, "--once")
        assert result.exit_code == 1
        assert "forked" in result.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--once",), "follows no log"),
        (("--log", "http://127.0.0.1:1/", "--once"), "exactly one --key"),
        (("--key", "x", "--once"), "cannot be used"),
        (("--key", "WITNESS", "--once"), "a witness's"),
        (("--name", NAME), "exists"),
        (("--key", "LOG", "--log", "ftp://x", "--once"), "url"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    home: WitnessHome, log: FolderLog, options: tuple[str, ...], sentence: str
) -> None:
    keys = {"WITNESS": str(home.signer(NAME).key), "LOG": str(log.key)}
    result = touchstone("--home", home.path, *(keys.get(each, each) for each in options))
    assert result.exit_code != 0
    assert sentence in result.output


def test_a_name_that_is_none_of_a_key_makes_no_home(tmp_path: Path) -> None:
    assert touchstone("--home", tmp_path / "w", "--name", "a b").exit_code == 1
    assert not (tmp_path / "w").exists()


def test_one_process_runs_a_witness(home: WitnessHome) -> None:
    with home.only_process(), pytest.raises(ConfigError, match="another process"), home.only_process():
        pass


@contextmanager
def process(home: WitnessHome, log: FolderLog) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A witness as a process, and its URL."""
    command = [sys.executable, "-m", "touchstone", "log", "witness", "--home", str(home.path)]
    listen = f"127.0.0.1:{free_port()}"
    command += ["--key", str(log.key), "--listen", listen, "--json-log"]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path.cwd()
    )
    assert started.stdout is not None
    try:
        assert any('"serving"' in line for line in started.stdout), "the witness did not start"
        yield started, f"http://{listen}"
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


async def test_a_witness_that_is_killed_never_contradicts_itself(
    tmp_path: Path, home: WitnessHome, log: FolderLog
) -> None:
    """By kill -9 while it signs: what it has acknowledged it knows afterwards, and it signs no other tree of that size."""
    acknowledged = 0

    async def feed(url: str, killed: subprocess.Popen[str]) -> None:
        nonlocal acknowledged
        old = 0
        async with aiohttp.ClientSession() as http:
            for size in range(301, 400):
                status, _, text = await post(http, url, log.request(old))
                assert status == 200, text
                old = acknowledged = len(log.entries)
                if size == 310:
                    asyncio.get_running_loop().call_later(0.005, killed.send_signal, signal.SIGKILL)
                log.append(entries(size)[len(log.entries) :])

    with process(home, log) as (first, url), pytest.raises((aiohttp.ClientError, OSError)):
        await feed(url, first)
    assert acknowledged >= 309
    again = Witness(home.signer(NAME), SeenTrees(home.database), [log.key], lambda: 1_700_000_000)
    async with serving(home, again, log) as (http, url):
        status, kind, text = await post(http, url, log.request(0))
        assert (status, kind) == (409, "text/x.tlog.size")
        known = int(text)
        assert known in (acknowledged, acknowledged + 1)
        forked = log.with_entries(tmp_path / "forked", entries(known, "x"))
        assert (await post(http, url, forked.request(known)))[0] == 409
        longer = log.with_entries(tmp_path / "longer", entries(known + 1, "x"))
        assert (await post(http, url, longer.request(known)))[0] == 422
        log.append([b"last"])
        assert (await post(http, url, log.request(known)))[0] == 200
    again.seen.close()
