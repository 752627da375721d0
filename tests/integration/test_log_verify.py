"""`touchstone log`: a log is verified with nothing but its public key, and what is wrong is told with its place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fixtures.folder_log import ORIGIN, FolderLog
from touchstone import main
from verifier.errors import LogFormatError, LogUnreadableError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, open_checkpoint, sign_checkpoint
from verifier.log.notes import COSIGNATURE_V1, Signer
from verifier.log.proofs import LogProof
from verifier.log.tiles import Tile, encode_bundle
from verifier.watching.auditing import audit
from verifier.watching.sources import FolderSource, open_source

T = TypeVar("T")
SIZE = 600
"""Two full bundles, and a partial one."""
WITNESS = Signer("witness.example/w1", Ed25519PrivateKey.generate(), COSIGNATURE_V1)


def entry(index: int, mark: str = "") -> bytes:
    return json.dumps({"at": index, "kind": "result", "mark": mark}, sort_keys=True).encode()


def entries(size: int = SIZE) -> list[bytes]:
    return [entry(index) for index in range(size)]


@pytest.fixture
def log(tmp_path: Path) -> FolderLog:
    return FolderLog(tmp_path / "log", entries())


@pytest.fixture
def touchstone(tmp_path: Path, log: FolderLog) -> Callable[..., Result]:
    """`touchstone log …` with the key of the log."""

    def run(command: str, *arguments: object) -> Result:
        given = [str(each) for each in arguments]
        if command == "verify":
            given += ["--state", str(tmp_path / "state")]
        if "--policy" not in given and "--key" not in given:
            given += ["--key", str(log.key)]
        return CliRunner().invoke(main, ["log", command, *given])

    return run


def test_a_log_is_verified(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    result = touchstone("verify", log.folder)
    assert result.exit_code == 0, result.output
    assert f"{ORIGIN}: 600 entries" in result.output
    log.append([entry(SIZE)])
    result = touchstone("verify", log.folder, "--json")
    assert json.loads(result.stdout)["size"] == 601


def test_an_empty_log_is_verified(tmp_path: Path, touchstone: Callable[..., Result], log: FolderLog) -> None:
    empty = log.with_entries(tmp_path / "empty", [])
    assert touchstone("verify", empty.folder).exit_code == 0


def test_a_log_is_verified_over_http(tmp_path: Path, log: FolderLog) -> None:
    """On a real socket, with the files as a static server has them."""

    async def run() -> list[str]:
        app = web.Application()
        app.router.add_static("/log", log.folder)
        async with TestServer(app) as server, open_source(str(server.make_url("/log"))) as source:
            found = await audit(source, open_checkpoint(log.note, [log.key]).checkpoint, {})
            assert found.entries == SIZE
            with pytest.raises(LogFormatError):
                await source.read("checkpoint", 10)
            assert await source.read("nothing", 10) is None
            return [str(each) for each in found.findings]

    assert _run(run) == []


def test_a_log_that_cannot_be_reached_is_not_blamed(
    tmp_path: Path, touchstone: Callable[..., Result]
) -> None:
    """Exit status 3: nothing is known against it."""
    result = touchstone("verify", "http://127.0.0.1:1/log")
    assert result.exit_code == 3
    assert touchstone("verify", tmp_path / "nowhere").exit_code == 3


def test_a_redirection_is_not_followed(log: FolderLog) -> None:
    """The prefix that was named is the one that is read."""

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", elsewhere)
        async with TestServer(app) as server, open_source(str(server.make_url("/log"))) as source:
            with pytest.raises(LogUnreadableError, match="302"):
                await source.read("checkpoint", 10)

    _run(run)


def test_a_busy_log_is_asked_again(log: FolderLog) -> None:
    """A service that limits how often strangers ask says when to come again."""
    asked = 0

    async def busy(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise web.HTTPTooManyRequests(headers={"Retry-After": "0"})
        return web.Response(body=b"data")

    async def run() -> bytes | None:
        app = web.Application()
        app.router.add_get("/log/checkpoint", busy)
        async with TestServer(app) as server, open_source(str(server.make_url("/log"))) as source:
            return await source.read("checkpoint", 10)

    assert _run(run) == b"data"


def findings(result: Result) -> list[str]:
    assert result.exit_code == 1, result.output
    return result.stdout.splitlines()


def test_an_edited_entry_is_named(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    changed = [*log.entries]
    changed[300] = entry(300, "edited")
    log.write(Tile.of_entries(1).path, encode_bundle(changed[256:512]))
    found = findings(touchstone("verify", log.folder))
    assert found[0].startswith("entry 300: it is not the entry whose hash tile/0/001 has")
    assert found[1].startswith("checkpoint: the root over the entries")
    assert len(found) == 2


def test_an_edited_entry_is_no_fork(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """The log's key has signed one history: it is the copy that is wrong."""
    assert touchstone("verify", log.folder).exit_code == 0
    log.write(Tile.of_entries(2, 88).path, encode_bundle([b"edited", *log.entries[513:]]))
    found = findings(touchstone("verify", log.folder))
    assert [each.partition(":")[0] for each in found[::2]] == ["entry 512", "checkpoint"]
    assert "the first 600 entries" in found[1]
    assert not list((tmp_path / "state").glob("*.contradicts-*"))


def test_an_edited_entry_with_its_tile_is_named(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    """The tile above it still has the hash of the tile as it was."""
    changed = [*log.entries]
    changed[300] = entry(300, "edited")
    log.write(Tile.of_entries(1).path, encode_bundle(changed[256:512]))
    log.write(Tile(0, 1).path, b"".join(map(tree.leaf_hash, changed[256:512])))
    found = findings(touchstone("verify", log.folder))
    assert found[0].startswith("tile/1/000.p/2: its hash 1 is not that of tile/0/001")


def test_an_edited_tile_is_named(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    path = Tile(1, 0, 2).path
    data = bytearray((log.folder / path).read_bytes())
    data[40] ^= 1
    log.write(path, bytes(data))
    found = findings(touchstone("verify", log.folder))
    assert found[0].startswith("tile/1/000.p/2: its hash 1 is not that of tile/0/001")
    assert found[1].startswith("checkpoint: the root over the tiles")


def test_a_rewritten_log_with_the_old_checkpoint_is_named(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """Every entry and tile agree, and the signature is that of another tree."""
    note = (log.folder / "checkpoint").read_bytes()
    forked = log.with_entries(tmp_path / "forked", [entry(0, "edited"), *log.entries[1:]])
    forked.write("checkpoint", note)
    found = findings(touchstone("verify", forked.folder))
    assert [each.partition(" is ")[0] for each in found] == [
        "checkpoint: the root over the entries",
        "checkpoint: the root over the tiles",
    ]


def test_a_fork_is_found_by_what_was_kept(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """It is whole and signed by the right key; only who has seen the other one can tell.  Both are kept."""
    assert touchstone("verify", log.folder).exit_code == 0
    forked = log.with_entries(tmp_path / "forked", [entry(0, "edited"), *log.entries[1:], entry(SIZE)])
    result = touchstone("verify", forked.folder)
    (found,) = findings(result)
    assert "the first 600 entries are not those that it signs" in found
    (evidence,) = (tmp_path / "state").glob("*.contradicts-*")
    assert open_checkpoint(evidence.read_bytes(), [log.key]).checkpoint.size == SIZE + 1
    assert str(evidence) in result.stderr
    assert touchstone("verify", log.folder).exit_code == 0


def test_another_root_of_the_same_size_is_found(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    assert touchstone("verify", log.folder).exit_code == 0
    forked = log.with_entries(tmp_path / "forked", [*log.entries[:-1], entry(SIZE - 1, "edited")])
    assert "edited or forked" in findings(touchstone("verify", forked.folder))[0]


def test_a_log_that_was_cut_short_is_found(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """And so is an old checkpoint that somebody gives out again."""
    assert touchstone("verify", log.folder).exit_code == 0
    shorter = log.with_entries(tmp_path / "shorter", log.entries[:-1])
    found = findings(touchstone("verify", shorter.folder))
    assert "it has 600 entries, and the log now shows 599: the log was cut short" in found[0]
    assert found[1:] == [
        "tile/entries/002.p/88: the log does not have it",
        "tile/0/002.p/88: the log does not have it",
    ]
    assert not list((tmp_path / "state").glob("*.contradicts-*"))


def test_an_older_checkpoint_of_a_log_that_has_all_is_no_fault(
    log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """A cache gives it, or a log that waits for its witnesses."""
    before = (log.folder / "checkpoint").read_bytes()
    log.append([entry(SIZE)])
    assert touchstone("verify", log.folder).exit_code == 0
    log.write("checkpoint", before)
    result = touchstone("verify", log.folder)
    assert result.exit_code == 0, result.output
    assert "the log now shows 600. It still has all of them." in result.stderr
    assert f"{ORIGIN}: 601 entries" in result.stdout


def test_an_older_checkpoint_of_another_history_is_a_fork(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """It is smaller, and not the beginning of the larger one."""
    assert touchstone("verify", log.folder).exit_code == 0
    other = log.with_entries(tmp_path / "other", [b"other", b"entries"])
    log.write("checkpoint", (other.folder / "checkpoint").read_bytes())
    found = findings(touchstone("verify", log.folder))
    assert "cut short" in found[0]
    assert found[1].startswith("the log's checkpoint: the first 2 entries are not those that it signs")
    (evidence,) = (tmp_path / "state").glob("*.contradicts-*")
    assert evidence.read_bytes() == (other.folder / "checkpoint").read_bytes()


def test_a_kept_checkpoint_of_another_key_is_told(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """The log has a new key under its old name: a person has to say that this is right."""
    assert touchstone("verify", log.folder).exit_code == 0
    other = FolderLog(tmp_path / "other", entries(3))
    result = touchstone("verify", other.folder, "--key", other.key)
    assert result.exit_code == 1
    assert "If the log has a new key, remove the file" in result.output


def test_an_earlier_checkpoint_may_be_given(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    earlier = tmp_path / "earlier"
    earlier.write_bytes((log.folder / "checkpoint").read_bytes())
    log.append([entry(SIZE)])
    assert touchstone("verify", log.folder, "--since", earlier).exit_code == 0
    forked = log.with_entries(tmp_path / "forked", [entry(0, "edited"), *log.entries[1:]])
    found = findings(touchstone("verify", forked.folder, "--since", earlier))
    assert any(each.startswith(f"the checkpoint {earlier}: ") for each in found)


def test_an_earlier_checkpoint_of_another_key_is_refused(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    other = FolderLog(tmp_path / "other", entries(3))
    result = touchstone("verify", log.folder, "--since", other.folder / "checkpoint")
    assert result.exit_code == 1
    assert "has signed the checkpoint" in result.output


def test_what_is_missing_is_named(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    """A log that was cut short without signing it."""
    (log.folder / Tile.of_entries(2, 88).path).unlink()
    (log.folder / Tile(0, 2, 88).path).unlink()
    found = findings(touchstone("verify", log.folder))
    assert found == [
        "tile/entries/002.p/88: the log does not have it",
        "tile/0/002.p/88: the log does not have it",
    ]


def test_a_malformed_bundle_is_named(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    path = Tile.of_entries(0).path
    log.write(path, (log.folder / path).read_bytes()[:-1])
    assert findings(touchstone("verify", log.folder)) == [
        f"{path}: a bundle of entries ends within its entry 255"
    ]


def test_not_everything_that_is_wrong_is_listed(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    log.write(Tile.of_entries(0).path, encode_bundle([b"other"] * 256))
    result = touchstone("verify", log.folder)
    assert len(findings(result)) == 20
    assert "20 or more findings" in result.stderr


def test_a_partial_tile_may_have_become_full(log: FolderLog) -> None:
    """A log may drop a partial tile as soon as the full one is there, while somebody reads at the older size."""
    checkpoint = open_checkpoint(log.note, [log.key]).checkpoint
    log.append([entry(index) for index in range(SIZE, 800)])
    for path in (Tile.of_entries(2, 88).path, Tile(0, 2, 88).path):
        (log.folder / path).unlink()

    async def run() -> list[str]:
        found = await audit(FolderSource(log.folder), checkpoint, {})
        return [str(each) for each in found.findings]

    assert _run(run) == []


def test_the_wrong_key_is_refused(tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]) -> None:
    other = Signer(ORIGIN, Ed25519PrivateKey.generate())
    result = touchstone("verify", log.folder, "--key", other.key)
    assert result.exit_code == 1
    assert "no key that is trusted for log.example/log has signed" in result.output


def test_the_wrong_origin_is_refused(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """The key's own signature, under the checkpoint of another log."""
    note = sign_checkpoint(Checkpoint("other.example", 0, tree.EMPTY_ROOT), log.signer)
    log.write("checkpoint", str(note).encode())
    result = touchstone("verify", log.folder)
    assert result.exit_code == 1
    assert "other.example" in result.output


def test_a_log_that_is_too_large_is_not_read(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    result = touchstone("verify", log.folder, "--max-entries", 599)
    assert result.exit_code == 1
    assert "--max-entries" in result.output


def cosign(log: FolderLog, at_s: int) -> None:
    log.write("checkpoint", str(log.note.with_signatures([WITNESS.sign(log.note.text, at_s)])).encode())


@pytest.fixture
def policy(tmp_path: Path, log: FolderLog) -> Path:
    path = tmp_path / "policy"
    path.write_text(f"log {log.key}\nwitness w {WITNESS.key}\nquorum w\n")
    return path


def test_a_quorum_is_asked_for(log: FolderLog, policy: Path, touchstone: Callable[..., Result]) -> None:
    """By the policy alone, which names the log too."""
    result = touchstone("verify", log.folder, "--policy", policy)
    assert result.exit_code == 1
    assert "quorum w is not met" in result.output
    cosign(log, 1_700_000_000)
    result = touchstone("verify", log.folder, "--policy", policy)
    assert "cosigned by w at 2023-11-14T22:13:20+00:00" in result.output


def test_an_old_cosignature_is_no_quorum(
    log: FolderLog, policy: Path, touchstone: Callable[..., Result]
) -> None:
    """A log that is frozen: its last checkpoint was cosigned, long ago."""
    cosign(log, 1_700_000_000)
    result = touchstone("verify", log.folder, "--policy", policy, "--max-age", 3600)
    assert result.exit_code == 1
    assert "quorum" in result.output


def test_a_cosignature_of_another_checkpoint_is_refused(
    log: FolderLog, policy: Path, touchstone: Callable[..., Result]
) -> None:
    replayed = WITNESS.sign(log.note.text, 1_700_000_000)
    log.append([entry(SIZE)])
    log.write("checkpoint", str(log.note.with_signatures([replayed])).encode())
    result = touchstone("verify", log.folder, "--policy", policy)
    assert result.exit_code == 1
    assert "does not verify" in result.output


def test_a_key_that_the_policy_does_not_name_is_refused(
    policy: Path, touchstone: Callable[..., Result]
) -> None:
    other = Signer(ORIGIN, Ed25519PrivateKey.generate())
    assert touchstone("verify", policy.parent, "--policy", policy, "--key", other.key).exit_code == 2


def test_entries_are_shown_after_they_were_verified(
    log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    result = touchstone("show", log.folder, "--from", 510, "--count", 4)
    assert result.output.splitlines() == [f"{index} {entry(index).decode()}" for index in range(510, 514)]
    assert touchstone("show", log.folder, "--kind", "policy").output == ""
    assert touchstone("show", log.folder, "--from", SIZE).output == ""


def test_an_edited_entry_is_not_shown(log: FolderLog, touchstone: Callable[..., Result]) -> None:
    changed = [entry(0, "edited"), *log.entries[1:256]]
    log.write(Tile.of_entries(0).path, encode_bundle(changed))
    log.write(Tile(0, 0).path, b"".join(map(tree.leaf_hash, changed)))
    result = touchstone("show", log.folder, "--count", 1)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "entry 0" in result.stderr


def test_what_is_no_text_is_shown_in_base64(
    tmp_path: Path, log: FolderLog, touchstone: Callable[..., Result]
) -> None:
    """Nothing of an entry reaches the terminal as a control sequence."""
    other = log.with_entries(tmp_path / "other", [b"\x1b[2Jgone", b"a\nb"])
    assert touchstone("show", other.folder).output.splitlines() == ["0 base64:G1sySmdvbmU=", "1 base64:YQpi"]


@pytest.fixture
def proof(tmp_path: Path, log: FolderLog) -> Path:
    size = len(log.entries)
    leaves = [tree.leaf_hash(each) for each in log.entries]
    path = tree.inclusion_proof(7, size, lambda level, index: _node(leaves, level, index))
    place = tmp_path / "7.tlog-proof"
    place.write_text(str(LogProof(7, tuple(path), log.note, log.entries[7])))
    return place


def _node(leaves: list[bytes], level: int, index: int) -> bytes:
    return tree.root_of(leaves[index << level : (index + 1) << level])


def test_a_proof_verifies_offline(proof: Path, touchstone: Callable[..., Result]) -> None:
    result = touchstone("proof", proof)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"7 {entry(7).decode()}\n"
    assert "entry 7 of the 600 of log.example/log" in result.stderr


def test_a_proof_of_another_entry_is_refused(
    tmp_path: Path, proof: Path, touchstone: Callable[..., Result]
) -> None:
    other = tmp_path / "entry"
    other.write_bytes(entry(8))
    assert touchstone("proof", proof, "--entry", other).exit_code == 1
    other.write_bytes(entry(7))
    assert touchstone("proof", proof, "--entry", other).exit_code == 0


def test_a_proof_needs_its_quorum(proof: Path, policy: Path, touchstone: Callable[..., Result]) -> None:
    result = touchstone("proof", proof, "--policy", policy)
    assert result.exit_code == 1
    assert "quorum" in result.output


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(work())
