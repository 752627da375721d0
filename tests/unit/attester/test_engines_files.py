"""Files are walked as they are now, and their headers read once.  Who the engine is: `test_engines_naming.py`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from attester.engines import files as files_module
from attester.engines.budget import Budget
from attester.engines.files import FileWalker
from attester.engines.walker import Walker
from attester.errors import EngineError, WeightsError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles

CHALLENGE = WalkChallenge("cd" * 32, rows=5, passes=2)
A, B = (np.random.default_rng(seed).integers(-128, 128, 5000, dtype=np.int8) for seed in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": A, "b": B}, folder / "model.safetensors")
    return folder


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose headers are read, each time they are."""
    read = []

    def noted(folder):
        read.append(folder.root)
        return TensorFiles(folder)

    monkeypatch.setattr(files_module, "TensorFiles", noted)
    return read


def engine_of(*folders: Path, budget: Budget | None = None) -> FileWalker:
    return FileWalker({folder.name: folder for folder in folders}, Walker("cpu", budget, "numpy"))


def expected(folder: Path) -> list[bytes]:
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    return possession.walk(TensorFiles(open_folder(folder)), words, CHALLENGE.passes, kernel("numpy"))


async def test_it_walks_the_files_and_says_so(folder):
    """Every row, as many times through as asked, and never as if an engine had answered."""
    answer = await engine_of(folder).walk("model", CHALLENGE)
    assert list(answer.answers) == expected(folder)
    assert (answer.source, answer.device) == ("file", kernel("numpy").name)
    assert answer.micros > 0


async def test_headers_are_read_once_and_before_the_call(folder, headers):
    """All models' when making ready, none's when walking."""
    other = folder.with_name("other")
    other.mkdir()
    save_file({"c": B}, other / "model.safetensors")
    engine = engine_of(folder, other)
    assert await engine.prepare() == kernel("numpy").name
    assert headers == [folder, other]
    for model in ("model", "other", "model"):
        await engine.walk(model, CHALLENGE)
    assert headers == [folder, other]


async def test_a_walk_that_nobody_prepared_for_is_answered(folder, headers):
    """Later, and the next one as quickly as any."""
    engine = engine_of(folder)
    first = await engine.walk("model", CHALLENGE)
    second = await engine.walk("model", CHALLENGE)
    assert first.answers == second.answers
    assert headers == [folder]


def swap_the_names(folder: Path) -> None:
    """A file of the same size and the same time, whose tensors have changed places."""
    file = folder / "model.safetensors"
    before = file.stat()
    save_file({"a": B, "b": A}, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


CHANGES = {
    "the same size and time": swap_the_names,
    "another size": lambda folder: save_file({"a": A, "b": B[:77]}, folder / "model.safetensors"),
    "another file": lambda folder: save_file({"c": B}, folder / "more.safetensors"),
    "one file less": lambda folder: (
        save_file({"z": A}, folder / "z.safetensors"),
        (folder / "model.safetensors").unlink(),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_changed_file_is_noticed(folder, headers, name):
    """What is walked is what there is now, by headers that are read anew, once."""
    engine = engine_of(folder)
    await engine.prepare()
    before = await engine.walk("model", CHALLENGE)
    CHANGES[name](folder)
    after = await engine.walk("model", CHALLENGE)
    assert list(after.answers) == expected(folder)
    assert not set(after.answers) & set(before.answers)
    await engine.walk("model", CHALLENGE)
    assert headers == [folder, folder]


async def test_a_change_of_one_model_leaves_the_other_alone(folder, headers):
    """Only what changed is read again."""
    other = folder.with_name("other")
    other.mkdir()
    save_file({"c": B}, other / "model.safetensors")
    engine = engine_of(folder, other)
    await engine.prepare()
    swap_the_names(folder)
    await engine.walk("other", CHALLENGE)
    await engine.walk("model", CHALLENGE)
    assert headers == [folder, other, folder]


async def test_an_unknown_model_is_refused(folder):
    """By name, and nothing is read."""
    with pytest.raises(
        WeightsError, match=r"^the verifier asks about 'org/else', which is not in attester\.toml$"
    ):
        await engine_of(folder).walk("org/else", CHALLENGE)


def remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    folder.rmdir()


BROKEN = {
    "no folder": (remove, "does not exist"),
    "no files": (lambda folder: (folder / "model.safetensors").unlink(), "has no files"),
    "not a model": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
        "is not a safetensors file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_folder_that_cannot_be_walked_is_told_of_when_making_ready(folder, name):
    """And again at each call; where it is mended, calls are answered."""
    change, why = BROKEN[name]
    change(folder)
    engine = engine_of(folder)
    with pytest.raises(WeightsError, match=why):
        await engine.prepare()
    with pytest.raises(WeightsError, match=why):
        await engine.walk("model", CHALLENGE)
    folder.mkdir(exist_ok=True)
    save_file({"a": A}, folder / "model.safetensors")
    assert list((await engine.walk("model", CHALLENGE)).answers) == expected(folder)


async def test_the_budget_ends_a_walk(folder, clock):
    """Files are walked at the operator's cost too."""
    engine = engine_of(folder, budget=Budget(60, 600, lambda: clock.forward(61) or clock.ticks))
    with pytest.raises(EngineError, match="exceeds its limit of 60 s"):
        await engine.walk("model", CHALLENGE)
