"""Minting as a person runs it: wide walks, runs that are killed and taken up again, and refusals."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cose import PrivateKey
from attester.weights.cpu import CpuKernel, numpy_fold, numpy_products
from attester.weights.folder import open_folder
from attester.weights.kernels import Int8, Int32
from attester.weights.select import kernel
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from tests.integration.test_cli import touchstone
from touchstone import main
from verifier.config import Home, VerifierConfig
from verifier.references import measured
from verifier.service.sessions import wants_for
from verifier.store import nodes, references, sessions
from verifier.store.database import Tx
from verifier.store.nodes import Grant
from verifier.store.policies import ChangeAuthor
from verifier.store.sqlite import SqliteDatabase

NOW_MS = 1_795_000_000_000
ROOT = Path(__file__).parents[2]


def in_transaction(home: Path, work: Callable[[Tx], Any]) -> Any:
    async def run() -> Any:
        async with SqliteDatabase(Home(home).database) as db, transaction(db) as tx:
            return await work(tx)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def document(model_folder: Path) -> measured.Document:
    return measured.measure_folder(MODEL, open_folder(model_folder))


def publish(home: Path, document: measured.Document) -> None:
    who = ChangeAuthor("test", "measured")
    in_transaction(
        home, lambda tx: references.add(tx, document, references.Provenance(), who, NOW_MS, replace=True)
    )


async def in_force(tx: Tx) -> dict[str, str]:
    row = await references.active(tx, MODEL)
    return {} if row is None else {MODEL: row["digest"]}


@pytest.fixture
def home(tmp_path: Path, document: measured.Document) -> Path:
    """A verifier with the reference value of the tiny model, and nothing minted."""
    path = tmp_path / "v"
    Home(path).create(VerifierConfig())
    publish(path, document)
    return path


@pytest.fixture(autouse=True)
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that needs no time to prove itself, on the device that every machine has."""
    monkeypatch.setattr("verifier.commands.challenges.best_device", lambda: "cpu")
    monkeypatch.setattr("verifier.commands.challenges.kernel", lambda **_: kernel("numpy"))


def mint(home: Path, folder: Path, *arguments: str) -> Result:
    """The command, in this process."""
    command = ["challenges", "mint", "--model", MODEL, "--dir", str(folder), "--home", str(home)]
    return CliRunner().invoke(main, [*command, *arguments])


def entries(home: Path) -> list[tuple[str, int, int, str | None]]:
    with sqlite3.connect(home / "verifier.db") as db:
        return list(db.execute("SELECT kind, idx, batch, session_id FROM pool ORDER BY kind, idx"))


def counts(home: Path) -> dict[str, int]:
    return dict(Counter(kind for kind, *_ in entries(home)))


def refused(done: Result, sentence: str) -> None:
    """One line that says why, and no trace of how it came to that."""
    assert done.exit_code == 1, done.output
    assert done.output.startswith("Error: ")
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1


async def enrolled(tx: Tx) -> Any:
    return await nodes.enrol(tx, Grant("acme", (MODEL,)), (MODEL,), PrivateKey.generate().public, NOW_MS)


def test_wide_walks_are_minted_and_taken(home: Path, model_folder: Path) -> None:
    """By the command itself, with whatever kernel is best here; a walk stands in where they are used up."""
    done = touchstone(
        *("challenges", "mint", "--model", MODEL, "--dir", str(model_folder), "--home", str(home)),
        *("--reads", "3", "--walks", "1", "--rows", "8", "--wides", "2", "--wide-rows", "300"),
    )
    assert done.returncode == 0, done.stderr
    assert f"Minted 3 reads and 1 walks and 2 wide walks for {MODEL}" in done.stdout
    assert counts(home) == {"read": 3, "walk": 1, "wide": 2}

    async def call(tx: Tx, node: Any, number: int) -> Any:
        found = await sessions.open_session(
            tx,
            node_id=node.id,
            channel="call",
            nonce=bytes([number] * 32),
            now_ms=NOW_MS,
            lifetime_ms=1000,
            wants=wants_for(node, walk=True, wide=MODEL),
            references=await in_force(tx),
        )
        await sessions.drop(tx, found.id, NOW_MS)
        return found

    async def work(tx: Tx) -> list[Any]:
        node = await enrolled(tx)
        return [await call(tx, node, number) for number in range(4)]

    found = in_transaction(home, work)
    kinds = [sorted((e.kind, e.index) for e in session.entries) for session in found]
    assert kinds == [
        [("read", 0), ("wide", 0)],
        [("read", 1), ("wide", 1)],
        [("read", 2), ("walk", 0)],
        [],
    ]
    assert [session.exhausted for session in found[:3]] == [{}] * 3
    assert found[3].exhausted == {MODEL: ("read", "walk")}
    rows = [
        msgspec.json.decode(e.parameters)["rows"]
        for session in found
        for e in session.entries
        if e.kind != "read"
    ]
    assert rows == [300, 300, 8]


DYING = """
import os, signal, sys
from attester.weights.select import kernel
from verifier.challenges import runs
from verifier.commands import challenges as commands
commands.kernel = lambda **_: kernel("numpy")
commands.best_device = lambda: "cpu"
add, left, when = runs.pool.add, int(sys.argv[1]), sys.argv[2]
async def dying(tx, entries):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await add(tx, entries)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
runs.pool.add = dying
from touchstone import main
main(sys.argv[3:])
"""
"""The command, killed at the n-th group: before it is added, or once it is, and not committed."""


def killed(home: Path, folder: Path, group: int, when: str, *arguments: str) -> None:
    command = ["challenges", "mint", "--model", MODEL, "--dir", str(folder), "--home", str(home)]
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(group), when, *command, *arguments],
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


GOAL = ("--reads", "70", "--walks", "130", "--wides", "2", "--rows", "8", "--wide-rows", "20")
"""Two groups of reads, three of walks, one of wide walks."""
WHOLE = {"read": 70, "walk": 130, "wide": 2}


@pytest.mark.parametrize(
    ("group", "when", "left"),
    [
        (1, "before", {}),
        (2, "after", {"read": 64}),
        (6, "after", {"read": 70, "walk": 130}),
    ],
)
def test_a_killed_run_is_taken_up_and_makes_exactly_its_goal(
    home: Path, model_folder: Path, group: int, when: str, left: dict[str, int]
) -> None:
    """At most one group is lost, none is half there, and no index is minted twice."""
    killed(home, model_folder, group, when, *GOAL)
    assert counts(home) == left
    before = entries(home)
    done = mint(home, model_folder, "--resume")
    assert done.exit_code == 0, done.output
    after = entries(home)
    assert set(before) <= set(after)
    assert counts(home) == WHOLE
    indexes = {kind: [idx for k, idx, *_ in after if k == kind] for kind in WHOLE}
    assert indexes == {kind: list(range(count)) for kind, count in WHOLE.items()}
    assert {batch for *_, batch, _ in after} == {1}


def test_a_run_is_taken_up_twice_and_what_was_used_stays_used(home: Path, model_folder: Path) -> None:
    """Killed, taken up, killed again: entries that nodes were given meanwhile are not made anew."""
    killed(home, model_folder, 4, "before", *GOAL)

    async def use(tx: Tx) -> None:
        node = await enrolled(tx)
        await sessions.open_session(
            tx,
            node_id=node.id,
            channel="call",
            nonce=bytes(32),
            now_ms=NOW_MS,
            lifetime_ms=1000,
            wants=wants_for(node, walk=True),
            references=await in_force(tx),
        )

    in_transaction(home, use)
    used = [entry for entry in entries(home) if entry[3] is not None]
    assert [(kind, idx) for kind, idx, *_ in used] == [("read", 0), ("walk", 0)]
    killed(home, model_folder, 2, "after", "--resume")
    assert counts(home) == {"read": 70, "walk": 128}
    assert mint(home, model_folder, "--resume").exit_code == 0
    assert counts(home) == WHOLE
    assert [entry for entry in entries(home) if entry[3] is not None] == used


def test_what_is_resumed_is_what_was_asked_for(home: Path, model_folder: Path) -> None:
    """Rows, passes and windows too; the second part does not differ from the first."""
    sizes = ("--rows", "9", "--passes", "2", "--windows", "17")
    killed(home, model_folder, 3, "after", "--reads", "65", "--walks", "65", *sizes)
    assert mint(home, model_folder, "--resume").exit_code == 0
    with sqlite3.connect(home / "verifier.db") as db:
        found = set(db.execute("SELECT kind, parameters FROM pool"))
    assert found == {("read", '{"windows":17}'), ("walk", '{"rows":9,"passes":2}')}
    assert counts(home) == {"read": 65, "walk": 65}


def test_a_finished_run_has_nothing_left_to_resume(home: Path, model_folder: Path) -> None:
    """Said, and nothing is added."""
    assert mint(home, model_folder, "--reads", "2").exit_code == 0
    done = mint(home, model_folder, "--resume")
    assert (done.exit_code, "Minted nothing more" in done.output) == (0, True)
    assert counts(home) == {"read": 2}


def test_a_second_run_goes_on_where_the_first_ended(home: Path, model_folder: Path) -> None:
    """No seed comes twice."""
    assert mint(home, model_folder, "--reads", "2", "--wides", "1", "--wide-rows", "5").exit_code == 0
    assert mint(home, model_folder, "--reads", "3", "--wides", "1", "--wide-rows", "5").exit_code == 0
    assert [(kind, idx, batch) for kind, idx, batch, _ in entries(home)] == [
        *(("read", number, 1 if number < 2 else 2) for number in range(5)),
        ("wide", 0, 1),
        ("wide", 1, 2),
    ]


def test_resuming_before_anything_was_minted_is_refused(home: Path, model_folder: Path) -> None:
    """There is no goal to go on with."""
    refused(mint(home, model_folder, "--resume"), "nothing to resume")


def test_resuming_for_another_reference_value_is_refused(
    home: Path, model_folder: Path, document: measured.Document
) -> None:
    """The goal was for weights that are no longer in force; nothing is added to their batch."""
    killed(home, model_folder, 2, "before", *GOAL)
    publish(home, msgspec.structs.replace(document, information_bytes=1))
    before = entries(home)
    refused(mint(home, model_folder, "--resume"), "was for another reference value")
    assert entries(home) == before
    assert mint(home, model_folder, "--reads", "1").exit_code == 0


@pytest.mark.parametrize("arguments", [(), ("--resume", "--reads", "1"), ("--rows", "8")])
def test_a_goal_or_resume_and_not_both(home: Path, model_folder: Path, arguments: tuple[str, ...]) -> None:
    """What is meant is asked, not guessed."""
    done = mint(home, model_folder, *arguments)
    assert (done.exit_code, "--resume alone" in done.output) == (2, True)
    assert entries(home) == []


def tampered(folder: Path) -> str:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return "model.safetensors differs"


def without_a_file(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json is missing"


def with_one_more(folder: Path) -> str:
    (folder / "zz.json").write_text("{}")
    return "zz.json is not in the reference value"


@pytest.mark.parametrize("change", [tampered, without_a_file, with_one_more])
@pytest.mark.parametrize("resume", [False, True])
def test_other_weights_are_refused_by_the_file_that_differs(
    home: Path, model_folder: Path, tmp_path: Path, change: Callable[[Path], str], *, resume: bool
) -> None:
    """Before anything is minted from them, also where a run is taken up."""
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    if resume:
        assert mint(home, other, "--reads", "1").exit_code == 0
    named = change(other)
    before = entries(home)
    done = mint(home, other, *(["--resume"] if resume else ["--reads", "1", "--walks", "1"]))
    refused(done, f"not the one of the active reference value: {named}")
    assert entries(home) == before


def test_without_a_reference_value_nothing_is_minted(tmp_path: Path, model_folder: Path) -> None:
    """It is said how to come by one."""
    Home(tmp_path / "v").create(VerifierConfig())
    done = mint(tmp_path / "v", model_folder, "--reads", "1")
    refused(done, f"{MODEL} has no reference value in force. Measure its weights first")


def test_a_reference_value_from_a_signature_alone_mints_nothing(
    home: Path, model_folder: Path, tmp_path: Path
) -> None:
    """It has no tensors; with the weights at hand it has them, and mints."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public, bundle = (tmp_path / name for name in ("key.pem", "key.pub", "model.sig"))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )

    def reference(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["reference", *(str(argument) for argument in arguments)])

    done = reference("export-oms", model_folder, "--private-key", private, "--out", bundle)
    assert done.exit_code == 0, done.output
    take = ("import-oms", bundle, "--model", MODEL, "--public-key", public, "--home", home, "--activate")
    done = reference(*take)
    assert (done.exit_code, "no tensors and therefore no walks" in done.output) == (0, True), done.output
    sentence = f"the reference value of {MODEL} has no tensors. Import it again with --dir"
    for arguments in (("--reads", "1"), ("--walks", "1"), ("--wides", "1")):
        refused(mint(home, model_folder, *arguments), sentence)
    assert entries(home) == []
    assert reference(*take, "--dir", model_folder).exit_code == 0
    assert mint(home, model_folder, "--reads", "1", "--walks", "1").exit_code == 0
    assert counts(home) == {"read": 1, "walk": 1}


def broken(inputs: Int8) -> Any:
    """Products that are wrong by one, now and then."""
    exact = numpy_products(inputs)

    def multiply(weights: Int8, out: Int32) -> None:
        exact(weights, out)
        out[0] += 1

    return multiply


@pytest.mark.parametrize("kind", ["--walks", "--wides"])
def test_a_kernel_that_computes_wrongly_keeps_nothing(
    home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Reads, which it has no part in, stay; with a right kernel the run is finished."""
    wrong = CpuKernel(broken, numpy_fold, "numpy", 1)
    with monkeypatch.context() as patched:
        patched.setattr("verifier.commands.challenges.kernel", lambda **_: wrong)
        done = mint(home, model_folder, "--reads", "2", kind, "70", "--wide-rows", "8")
    refused(done, "the second implementation disagrees with the kernel in a spot check")
    assert counts(home) == {"read": 2}
    assert mint(home, model_folder, "--resume").exit_code == 0
    assert counts(home) == {"read": 2, kind.removeprefix("--").removesuffix("s"): 70}
