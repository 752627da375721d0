"""`touchstone client …` as a person runs it: keys are agreed to, answers served, receipts checked."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner
from msgspec import structs

from fixtures.fleet import free_port
from router.client import trusting
from router.client.commands import client
from router.client.page import read_page
from router.client.proxy import VERIFIED_HEADER
from router.client.trust import Required, load_trust, write_trust
from tests.integration.gateway import CHAT, CHATS, Fleet, Running, key, opened


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Its clock is the real one: the command has no other."""
    async with opened(tmp_path / "fleet", Running()) as found:
        await found.engine("a")
        await found.start(sections={"keys": [key("caller")]})
        (tmp_path / "router.key").write_text("sk-caller\n")
        yield found


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as a person names them who stands beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOUCHSTONE_API_KEY", raising=False)


async def run(*arguments: str, typed: str = "") -> tuple[int, str]:
    """A command of the client: its exit status, and all that it printed.  It has an event loop of its own."""
    # This process logs for other tests too.
    with patch("router.client.commands.configure_logging"):
        found = await asyncio.to_thread(CliRunner().invoke, client, arguments, input=typed)
    return found.exit_code, found.output


async def trust(fleet: Fleet, *more: str, typed: str = "y\n") -> tuple[int, str]:
    return await run(
        "trust",
        fleet.url,
        "--verifier",
        fleet.verifier.url,
        "--out",
        "trust.json",
        *more,
        typed=typed,
    )


async def test_keys_are_shown_and_a_person_agrees(fleet: Fleet, tmp_path: Path) -> None:
    status, shown = await trust(fleet)
    assert status == 0, shown
    made = load_trust(tmp_path / "trust.json")
    for kid in (*made.receipt_keys, *made.result_keys):
        assert kid in shown
    assert "trust on first use" in shown
    assert "another way" in shown
    assert made.require.log == "never"
    assert "none: nobody shows that all callers are given the same story" in shown


@pytest.mark.parametrize("typed", ["n\n", "", "\n"], ids=["no", "nobody", "enter"])
async def test_without_a_yes_nothing_is_trusted(fleet: Fleet, tmp_path: Path, typed: str) -> None:
    status, _ = await trust(fleet, typed=typed)
    assert status == 1
    assert not (tmp_path / "trust.json").exists()


async def test_a_trust_file_is_never_replaced(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_text("{}")
    status, shown = await trust(fleet)
    assert status == 1
    assert "keys have changed" in shown
    assert (tmp_path / "trust.json").read_text() == "{}"


async def test_keys_that_are_known_need_no_person(fleet: Fleet, tmp_path: Path) -> None:
    found = await trusting.fetch_trust(fleet.url, fleet.verifier.url)
    kids = sorted(trusting.kids_of(found))
    expected = [word for kid in kids for word in ("--expect", kid)]
    status, shown = await trust(fleet, *expected, typed="")
    assert status == 0, shown


@pytest.mark.parametrize("change", ["one-less", "one-more"])
async def test_other_keys_than_those_that_are_known(fleet: Fleet, tmp_path: Path, change: str) -> None:
    found = await trusting.fetch_trust(fleet.url, fleet.verifier.url)
    kids = sorted(trusting.kids_of(found))
    kids = kids[1:] if change == "one-less" else [*kids, "A" * 43]
    status, shown = await trust(fleet, *[w for kid in kids for w in ("--expect", kid)], typed="y\n")
    assert status == 1, shown
    assert not (tmp_path / "trust.json").exists()


async def test_a_verifier_that_is_away(fleet: Fleet, tmp_path: Path) -> None:
    status, shown = await run(
        "trust", fleet.url, "--verifier", "http://127.0.0.1:9", "--out", "trust.json", typed="y\n"
    )
    assert status == 1
    assert "cannot be fetched" in shown


async def test_serving_and_checking_what_was_kept(fleet: Fleet, tmp_path: Path) -> None:
    """The whole way: agree, serve, ask, stop, check; and a kept receipt that somebody edits is found."""
    file = await trusting.fetch_trust(fleet.url, fleet.verifier.url)
    file = structs.replace(file, require=Required(log="never"))
    (tmp_path / "trust.json").write_bytes(write_trust(file))
    listen = f"127.0.0.1:{free_port()}"
    (tmp_path / "client.toml").write_text(
        f'listen = "{listen}"\nkey_file = "router.key"\nfolder = "receipts"\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "touchstone", "client", "serve", "--config", str(tmp_path / "client.toml"),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = await process.stderr.readline()
        assert b"serving" in line, line
        async with aiohttp.ClientSession() as http:
            for _ in range(2):
                async with http.post(f"http://{listen}{CHATS}", json=CHAT) as answer:
                    assert answer.status == 200, await answer.text()
                    assert "response" in answer.headers[VERIFIED_HEADER]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert process.returncode == 0
    status, shown = await run("check", "receipts")
    assert status == 0, shown
    assert shown.count("not everything was checked") == 2
    assert "there is no answer to hold it against" in shown
    kept = min((tmp_path / "receipts").iterdir())
    document = msgspec.json.decode(kept.read_bytes())
    document["bundle"]["result"] = document["bundle"]["result"][:-8] + "AAAAAAAA"
    kept.write_bytes(msgspec.json.encode(document))
    status, shown = await run("check", "receipts")
    assert status == 1
    assert "1 of 2 receipts do not verify" in shown
    assert "  result " in shown


async def test_a_receipt_is_checked_by_its_id(fleet: Fleet, tmp_path: Path) -> None:
    assert (await trust(fleet))[0] == 0
    answer = await fleet.ask(CHAT, Authorization="Bearer sk-caller")
    receipt = answer.headers["X-Touchstone-Receipt"]
    (tmp_path / "answer").write_bytes(answer.body)
    given = ("check", receipt, "--key-file", "router.key", "--response", "answer")
    status, shown = await run(*given)
    assert status == 0, shown
    assert "response" in shown
    (tmp_path / "answer").write_bytes(answer.body + b" ")
    status, shown = await run(*given)
    assert status == 1
    assert "it is about another answer" in shown


async def test_beyond_loopback_it_does_not_serve(fleet: Fleet, tmp_path: Path) -> None:
    assert (await trust(fleet))[0] == 0
    status, shown = await run("serve", "--listen", "0.0.0.0:4180")
    assert status == 1
    assert "caller_key_file" in shown


async def test_the_page_is_written_as_it_was_packaged(tmp_path: Path) -> None:
    status, _ = await run("page", "--out", "receipt.html")
    assert status == 0
    assert (tmp_path / "receipt.html").read_bytes() == read_page()
    assert (await run("page", "--out", "receipt.html"))[0] == 1
