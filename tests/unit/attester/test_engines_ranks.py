"""Tensor- and pipeline-parallel engines: real processes over gloo answer as the published files do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attester.engines import joined
from attester.engines.as_loaded import AsLoaded
from attester.engines.derived import published_scales
from attester.engines.live import LiveTensors
from attester.engines.walker import Walker
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from tests.unit.attester.sharded import model, run_ranks, split

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(autouse=True, scope="module")
def _kernel() -> None:
    """Made before the processes are forked, and once."""
    kernel("numpy")


WORDS = [row_words(bytes(32), row) for row in range(4)]
PASSES = 2
BLOCK_BYTES = 8192
"""Of the copies that are made where parts are joined: so small that each matrix of the model has several."""


def save(published: dict[str, Any], folder: Path) -> Path:
    from safetensors.torch import save_file

    (folder / "model").mkdir()
    save_file(published, folder / "model" / "model.safetensors")
    return folder / "model"


def expected(folder: Path) -> list[bytes]:
    return possession.walk(TensorFiles(open_folder(folder)), WORDS, PASSES, kernel("numpy"))


def walking(
    published: dict[str, Any],
    shards: int,
    stages: int = 1,
    change: Callable[[int, dict[str, Any]], object] = lambda rank, state: None,
    step_s: float = 20,
) -> Callable[[int, Path], Any]:
    """What each process does: rank 0 walks, the others follow."""

    def work(rank: int, folder: Path) -> Any:
        from attester.engines.ranks import Ranks

        ranks = Ranks(torch.device("cpu"), shards, step_s)
        state = split(published, rank, shards, stages)
        change(rank, state)
        try:
            if rank:
                ranks.follow(lambda: state)
                return "ended"
            held, fetch = [], ranks._fetch

            def noted(rank: int, name: str, views: Any, empty: Any) -> Any:
                held.append(empty.numel() * empty.itemsize)
                return fetch(rank, name, views, empty)

            ranks._fetch = noted
            files = TensorFiles(open_folder(folder / "model"))
            scales = published_scales(list(files))
            with ranks.lead(lambda: state) as states:
                live = LiveTensors(files.infos, states, scales=scales, is_deferred=True)
                answers = possession.walk(live, WORDS, PASSES, kernel("numpy"))
                return answers, max(held)
        except EngineError as error:
            return f"error: {error}"

    return work


SPLITS = {
    "2 shards": (2, 1, 2, False),
    "4 shards": (4, 1, 4, False),
    "4 shards, 2 heads of keys": (4, 1, 2, False),
    "4 shards, 1 head of keys, tied": (4, 1, 1, True),
    "2 stages": (1, 2, 2, False),
    "2 stages, tied": (1, 2, 2, True),
    "2 stages of 2 shards": (2, 2, 2, False),
    "2 stages of 2 shards, tied": (2, 2, 1, True),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_sharded_engine_answers_as_the_files_do(tmp_path, name, monkeypatch):
    """Rows, columns, fused qkv with heads in copies, a padded vocabulary, stages without some layers."""
    shards, stages, kv_heads, tied = SPLITS[name]
    monkeypatch.setattr(joined, "_BLOCK_BYTES", BLOCK_BYTES)
    published = model(kv_heads=kv_heads, tied=tied)
    folder = save(published, tmp_path)
    found = run_ranks(walking(published, shards, stages), shards * stages, tmp_path)
    assert found[1:] == ["ended"] * (shards * stages - 1)
    answers, held = found[0]
    assert answers == expected(folder)
    # No more than a block is fetched at a time.
    assert held <= BLOCK_BYTES


def flip(name: str, rank: int) -> Callable[[int, dict[str, Any]], object]:
    def change(at: int, state: dict[str, Any]) -> None:
        if at == rank:
            state[name].view(torch.int16).view(-1)[3] ^= 1

    return change


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bit_of_a_weight_on_any_rank_changes_the_answers(tmp_path, rank):
    published = model()
    folder = save(published, tmp_path)
    work = walking(published, 2, change=flip("model.layers.1.mlp.gate_up_proj.weight", rank))
    found = run_ranks(work, 2, tmp_path)
    assert not set(found[0][0]) & set(expected(folder))


DIFFERENT = {
    "a norm": (2, 1, 2, "model.layers.0.input_layernorm.weight", 1, "the copies on the ranks differ"),
    "a tied vocabulary": (
        1,
        2,
        2,
        "model.embed_tokens.weight",
        1,
        "copies on two stages of the pipeline differ",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_copies_that_differ_end_the_walk_on_every_rank(tmp_path, name):
    """What serves is on all ranks: none may hold other bytes."""
    shards, stages, kv_heads, tensor, rank, why = DIFFERENT[name]
    published = model(kv_heads=kv_heads, tied=stages > 1)
    save(published, tmp_path)
    found = run_ranks(walking(published, shards, stages, flip(tensor, rank)), shards * stages, tmp_path)
    assert all(why in each for each in found), found


def test_copies_of_keys_that_differ_end_the_walk(tmp_path):
    """Each pair of ranks has one head of keys."""

    def change(rank: int, state: dict[str, Any]) -> None:
        if rank == 3:
            # 16 rows of queries come first, then 16 of keys.
            state["model.layers.0.self_attn.qkv_proj.weight"].view(torch.int16)[20, 5] ^= 1

    published = model(kv_heads=2)
    save(published, tmp_path)
    found = run_ranks(walking(published, 4, change=change), 4, tmp_path)
    assert all("k_proj.weight: the copies on the ranks differ" in each for each in found), found


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another type": (
        lambda state: state.update({"model.norm.weight": state["model.norm.weight"].float()}),
        "loaded as F32, published as BF16",
    ),
    "another scale": (
        lambda state: state["model.layers.0.self_attn.attn._k_scale"].fill_(2),
        "_k_scale' is 2",
    ),
    "an adapter": (lambda state: state.update(lora=torch.ones(3, 3)), "is not on every rank"),
    "no plain tensor": (
        lambda state: state.update({"model.norm.weight": state["model.norm.weight"].to_sparse()}),
        "rank 1 of 2: EngineError: 'model.norm.weight' is not a plain tensor",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_refused_on_one_rank_ends_the_walk_on_all(tmp_path, name):
    change, why = CHANGES[name]
    published = model()
    save(published, tmp_path)
    work = walking(published, 2, change=lambda rank, state: rank == 1 and change(state))
    found = run_ranks(work, 2, tmp_path)
    assert all(why in each for each in found), found


def test_a_rank_that_cannot_read_its_weights_ends_the_walk_on_all(tmp_path):
    """Its own error reaches the operator."""

    def work(rank: int, folder: Path) -> Any:
        if rank != 2:
            return walking(published, 4)(rank, folder)
        from attester.engines.ranks import Ranks

        def fail() -> Any:
            raise RuntimeError("the device is lost")

        try:
            Ranks(torch.device("cpu"), 4, 20).follow(fail)
        except EngineError as error:
            return f"error: {error}"

    published = model(kv_heads=4)
    save(published, tmp_path)
    found = run_ranks(work, 4, tmp_path)
    assert all("rank 2 of 4: RuntimeError: the device is lost" in each for each in found), found


@pytest.mark.parametrize("lost", [0, 2])
def test_a_rank_that_does_nothing_holds_up_nobody(tmp_path, lost):
    """The limit on each step ends the walk on all others, and says which rank was waited for."""
    save(model(kv_heads=4), tmp_path)

    def work(rank: int, folder: Path) -> Any:
        if rank != lost:
            found = walking(model(kv_heads=4), 4, step_s=0.5)(rank, folder)
            (folder / f"ended-{rank}").touch()
            return found
        from attester.engines.ranks import Ranks

        Ranks(torch.device("cpu"), 4)
        while len(list(folder.glob("ended-*"))) < 3:
            time.sleep(0.01)
        return "idle"

    found = run_ranks(work, 4, tmp_path)
    others = [each for rank, each in enumerate(found) if rank != lost]
    assert all(each.startswith("error: ") for each in others), found
    # Gloo closes all connections of a rank that has waited in vain, so only the first one can name the cause.
    assert f"does not reach rank {lost}: " in others[0], found


def test_a_second_walk_over_the_same_group_is_answered(tmp_path):
    """What a walk leaves behind does not meet the next one."""
    published = model()
    folder = save(published, tmp_path)

    def work(rank: int, path: Path) -> Any:
        from attester.engines.ranks import Ranks

        ranks = Ranks(torch.device("cpu"), 2, 20)
        state = split(published, rank, 2)
        infos = TensorFiles(open_folder(path / "model")).infos
        answers = []
        for _ in range(3):
            if rank:
                ranks.follow(lambda: state)
                continue
            with ranks.lead(lambda: state) as states:
                live = LiveTensors(infos, states, is_deferred=True)
                answers.append(possession.walk(live, WORDS, PASSES, kernel("numpy")))
        ranks.close()
        return answers

    assert run_ranks(work, 2, tmp_path)[0] == [expected(folder)] * 3


class Flat:
    """A module that is a state dict."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def named_buffers(self) -> Any:
        return iter(())

    named_modules = named_buffers


def worker_of(rank: int, shards: int, state: dict[str, Any]) -> Any:
    from attester.engines.vllm_worker import WalkExtension

    worker = type("Worker", (WalkExtension,), {})()
    worker.rank, worker.device = rank, torch.device("cpu")
    worker.get_model = lambda: Flat(state)
    parallel = SimpleNamespace(world_size=shards, tensor_parallel_size=shards)
    worker.vllm_config = SimpleNamespace(parallel_config=parallel)
    # The library of the fastest kernel may have threads, which a fork does not bring along.
    worker._touchstone_part().walker = Walker("cpu", backend="numpy")
    return worker


def until_ended(worker: Any, task: str) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while not (said := worker.touchstone_answer(task=task))["ended"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return said


def test_workers_walk_what_each_has_loaded(tmp_path):
    """Rank by rank, as one process would that has the tensors of both; nothing is read from files."""
    published = model()

    def work(rank: int, _: Path) -> Any:
        worker = worker_of(rank, 2, split(published, rank, 2))
        assert "error" not in worker.touchstone_join(group="g")
        until_ended(worker, "g")
        walk = {"folder": "/nothing", "rows": 4, "passes": PASSES, "as_loaded": True}
        worker.touchstone_walk(group="g", seed="00" * 32, **walk)
        return until_ended(worker, "00" * 32)

    walked, _ = run_ranks(work, 2, tmp_path)
    both = AsLoaded([split(published, rank, 2) for rank in range(2)])
    assert [bytes.fromhex(each) for each in walked["answers"]] == possession.walk(
        both, WORDS, PASSES, kernel("numpy")
    )


def test_workers_end_what_fails_on_the_first_of_them_at_once(tmp_path):
    """Row: all ranks end a walk with an error, and the next one is right."""
    published = model()
    folder = save(published, tmp_path)

    def work(rank: int, path: Path) -> Any:
        worker = worker_of(rank, 2, split(published, rank, 2))
        assert "error" not in worker.touchstone_join(group="g")
        until_ended(worker, "g")
        found = []
        for name in ("nothing", "model"):
            walk = {"folder": str(path / name), "rows": 4, "passes": PASSES}
            worker.touchstone_walk(group="g", seed="00" * 32, **walk)
            found.append(until_ended(worker, "00" * 32))
        return found

    (failed, walked), (followed, ended) = run_ranks(work, 2, tmp_path)
    assert "has no files" in failed["error"] or "nothing" in failed["error"]
    assert followed["error"] == failed["error"]
    assert [bytes.fromhex(each) for each in walked["answers"]] == expected(folder)
    assert ended == {"ended": True, "call": "", "rank": 1}
