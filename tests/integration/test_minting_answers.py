"""Minting answers with real engines, as a person runs it: what is stored, what is left out, kills, and refusals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from attester.cose import PrivateKey
from attester.weights.folder import open_folder
from fixtures.embedding_engine import SECRET, EmbeddingEngine, embedding_engine
from fixtures.fleet import free_port, wait_for
from fixtures.minilm import MODEL, MiniLM, round_to_int8_and_back
from fixtures.minted_answers import chat, put
from fixtures.smollm import MODEL as CHAT
from fixtures.transactions import transaction
from tests.conftest import LlamaServer
from touchstone import main
from verifier.answers import checks
from verifier.answers.checks import Minted
from verifier.answers.material import Material
from verifier.challenges import sealing
from verifier.challenges.answer_engine import Named
from verifier.challenges.answer_keeping import AnswerKeeper, KeptAnswers
from verifier.challenges.answer_weights import Where
from verifier.config import AnswersConfig, CallsConfig, Home, VerifierConfig
from verifier.references import measured
from verifier.store import nodes, references
from verifier.store.nodes import Grant
from verifier.store.policies import ChangeAuthor
from verifier.store.sqlite import SqliteDatabase

ROOT = Path(__file__).parents[2]
WHO = ChangeAuthor("test", "measured")


SHORT = tuple(f'"text {number}"' for number in range(400))


def one_layer(folder: Path) -> MiniLM:
    """The real model, of whose six layers it computes one: what is minted here depends on none of them."""
    model = MiniLM(folder)
    model.config["num_hidden_layers"] = 1
    return model


@pytest.fixture(scope="module")
def loaded(minilm: Path) -> MiniLM:
    return one_layer(minilm)


@pytest.fixture(scope="module")
def embedder(loaded: MiniLM) -> Iterator[EmbeddingEngine]:
    with embedding_engine(loaded) as engine:
        yield engine


def make_home(path: Path, folder: Path, model: str = MODEL) -> Home:
    """A home with a reference value of *model* and one enrolled node."""
    home = Home(path)
    home.create(VerifierConfig())
    document = measured.measure_folder(model, open_folder(folder))

    async def begin() -> None:
        async with SqliteDatabase(home.database) as db, transaction(db) as tx:
            await references.add(tx, document, references.Provenance(), WHO, 1, replace=True)
            await nodes.enrol(tx, Grant("acme", (model,)), (model,), PrivateKey.generate().public, 1)

    asyncio.run(begin())
    return home


@pytest.fixture
def home(tmp_path: Path, model_folder: Path) -> Home:
    """The reference value is of a small folder: no test here walks it."""
    return make_home(tmp_path / "v", model_folder)


def mint(home: Home, engine: str, *options: str, model: str = MODEL) -> Result:
    command = ("challenges", "mint", "--model", model, "--engine", engine, "--home", str(home.path), *options)
    return CliRunner().invoke(main, command)


def named(home: Home, embedder: EmbeddingEngine, *options: str) -> Result:
    """With the name that an engine of ours does not say over HTTP."""
    return mint(home, embedder.url, "--engine-name", "touchstone-fixture-engine@1.0.0", *options)


def stored(home: Home) -> dict[int, Minted]:
    """All that was minted, opened."""
    key = home.pool_key()
    with sqlite3.connect(home.database) as db:
        rows = db.execute("SELECT model, idx, sealed FROM minted_answers ORDER BY idx").fetchall()
    return {
        index: checks.decode_minted(sealing.unseal(key, model, index, sealed))
        for model, index, sealed in rows
    }


def lines(tmp_path: Path, *given: str) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(given))
    return str(path)


def test_embeddings_are_minted_as_the_engine_gives_them(
    home: Home, embedder: EmbeddingEngine, loaded: MiniLM
) -> None:
    result = named(home, embedder, "--answers", "5")
    assert result.exit_code == 0, result.output
    assert "Minted 5 answers" in result.output
    assert "trusted by your word" in result.output
    assert "built-in generator" in result.output
    found = stored(home)
    assert len(found) == 5
    for minted in found.values():
        asked = minted.body["input"]
        vectors = np.array([checks.floats(vector) for vector in minted.vectors or ()])
        expected, _ = loaded.embed([asked] if isinstance(asked, str) else asked)
        assert np.linalg.norm(vectors - expected) < 1e-5
        assert (minted.engine.family, minted.engine.dtype, minted.whole) == (
            "touchstone-fixture-engine",
            "F16",
            True,
        )
    assert len({json.dumps(minted.body) for minted in found.values()}) == 5


def test_prompts_come_from_the_operators_file_each_once(
    home: Home, embedder: EmbeddingEngine, tmp_path: Path
) -> None:
    """Also in a later run; when all were asked, it says so."""
    file = lines(tmp_path, '"one text"', '{"input": "two texts"}', '{"text": "three texts"}')
    profile = tmp_path / "profile.json"
    shape = {"count": 1, "operation": "embeddings", "inputs": 1, "messages": 0, "characters": [1, 16]}
    profile.write_text(json.dumps({"v": 1, "models": {MODEL: [shape]}}))
    options = ("--prompts", file, "--profile", str(profile))
    assert named(home, embedder, "--answers", "2", *options).exit_code == 0
    assert named(home, embedder, "--answers", "1", *options).exit_code == 0
    assert sorted(each.body["input"] for each in stored(home).values()) == [
        "one text",
        "three texts",
        "two texts",
    ]
    result = named(home, embedder, "--answers", "1", *options)
    assert result.exit_code == 1
    assert "every prompt of the file was minted before" in result.output


def test_a_killed_run_loses_no_answer_and_repeats_none(
    home: Home, embedder: EmbeddingEngine, tmp_path: Path
) -> None:
    file = lines(tmp_path, *SHORT)
    options = ("--engine-name", "touchstone-fixture-engine@1.0.0", "--prompts", file)
    command = (
        sys.executable, "-m", "touchstone", "challenges", "mint", "--model", MODEL, "--engine", embedder.url,
        "--home", str(home.path), "--answers", "30", *options,
    )  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        wait_for("some answers", lambda: len(stored(home)) >= 3, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = stored(home)
    assert 3 <= len(before) < 30
    result = mint(home, embedder.url, "--answers", "1", "--resume", *options)
    assert result.exit_code == 0, result.output
    after = stored(home)
    assert len(after) == 30
    assert before.items() <= after.items()
    assert len({json.dumps(minted.body) for minted in after.values()}) == 30


def test_a_run_is_resumed_only_with_the_engine_it_began_with(home: Home, embedder: EmbeddingEngine) -> None:
    assert named(home, embedder, "--answers", "1").exit_code == 0
    result = named(home, embedder, "--answers", "1", "--resume", "--dtype", "float16")
    assert result.exit_code == 1
    assert "Start a new run without --resume" in result.output


def test_vectors_that_differ_when_asked_again_are_dropped_and_counted(
    home: Home, minilm: Path, tmp_path: Path
) -> None:
    """An engine that errs now and then: each second computation is by rounded weights."""
    model = one_layer(minilm)
    name = "encoder.layer.0.intermediate.dense.weight"
    true = model.tensors[name]
    rounded, embed = round_to_int8_and_back(true), model.embed
    calls = 0

    def erring(texts: list[str]) -> object:
        nonlocal calls
        calls += 1
        model.tensors[name] = rounded if calls % 2 else true
        return embed(texts)

    model.embed = erring  # type: ignore[method-assign,assignment]  # the engine that errs
    file = lines(tmp_path, *SHORT)
    with embedding_engine(model) as engine:
        result = named(home, engine, "--answers", "2", "--operation", "embeddings", "--prompts", file)
    assert result.exit_code == 1
    assert "with vectors that differ when asked again" in result.output
    assert stored(home) == {}


def test_an_engine_that_is_to_have_the_weights_walks_them(
    tmp_path: Path, minilm: Path, embedder: EmbeddingEngine, loaded: MiniLM
) -> None:
    """The reference value's own practice challenge tells; an engine with other weights mints nothing."""
    home = make_home(tmp_path / "v", minilm)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    options = ("--dir", str(minilm), "--engine-control", embedder.control, "--engine-secret", str(secret))
    result = named(home, embedder, "--answers", "1", *options)
    assert result.exit_code == 0, result.output
    assert "which walked the weights of the reference value" in result.output
    name = "encoder.layer.0.intermediate.dense.weight"
    true = loaded.tensors[name]
    loaded.tensors[name] = round_to_int8_and_back(true)
    try:
        result = named(home, embedder, "--answers", "1", *options)
    finally:
        loaded.tensors[name] = true
    assert result.exit_code == 1
    assert "it has loaded other bytes" in result.output
    assert len(stored(home)) == 1


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://engine.example"])
def test_prompts_do_not_cross_a_network_that_others_read(home: Home, url: str) -> None:
    result = mint(home, url, "--answers", "1")
    assert result.exit_code == 1
    assert "Use https" in result.output


def test_an_engine_that_does_not_answer_is_named(home: Home) -> None:
    result = mint(home, f"http://127.0.0.1:{free_port()}", "--answers", "1")
    assert result.exit_code == 1
    assert "does not answer" in result.output


def test_an_engine_that_says_nothing_of_itself_must_be_named(home: Home, embedder: EmbeddingEngine) -> None:
    result = mint(home, embedder.url, "--answers", "1")
    assert result.exit_code == 1
    assert "--engine-name" in result.output


@pytest.mark.parametrize("options", [("--reads", "1"), ("--days", "1")])
def test_answers_are_minted_alone(home: Home, embedder: EmbeddingEngine, options: tuple[str, ...]) -> None:
    assert named(home, embedder, "--answers", "1", *options).exit_code == 2


def test_a_profile_without_the_model_is_refused(
    home: Home, embedder: EmbeddingEngine, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"v": 1, "models": {}}')
    result = named(home, embedder, "--answers", "1", "--profile", str(profile))
    assert result.exit_code == 1
    assert "has no traffic of" in result.output


def test_chat_answers_of_a_real_llama_cpp(tmp_path: Path, llama: LlamaServer) -> None:
    """Text, tokens with their margins, the ids of the rendered prompt, and how far repeated askings agree."""
    home = make_home(tmp_path / "v", llama.folder, CHAT)
    file = lines(
        tmp_path,
        '{"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 6}',
        '{"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 6, "stream": true}',
        '{"prompt": "The sea", "temperature": 0}',
    )
    result = mint(
        home, llama.url, "--answers", "2", "--prompts", file, "--dir", str(llama.folder), model=CHAT
    )
    assert result.exit_code == 0, result.output
    assert "which names a file of the checked folder" in result.output
    found = {minted.body["messages"][0]["content"]: minted for minted in stored(home).values()}
    greedy, drawn = found["Name a colour."], found["Name a river."]
    for minted in (greedy, drawn):
        assert minted.engine == checks.EngineUsed(
            name="llama.cpp", version="b0-unknown", dtype="Q4_1", family="llama.cpp"
        )
        assert minted.tokens is not None
        assert len(minted.prompt_ids or ()) == minted.prompt_tokens > 10
        assert 1 <= minted.stable <= len(minted.tokens) <= 6
        assert "".join(token.text for token in minted.tokens).startswith(minted.text or "")
        for token in minted.tokens:
            values = [value for _, value in token.top]
            assert values == sorted(values, reverse=True)
            assert len(values) == 5
    assert greedy.tokens is not None
    assert all(token.text == token.top[0][0] for token in greedy.tokens[: greedy.stable])
    assert not greedy.seeded
    assert not greedy.streamed
    assert drawn.seeded
    assert drawn.streamed
    assert drawn.body["seed"] < 1 << 31


def test_a_conversation_has_the_engines_own_earlier_answers(tmp_path: Path, llama: LlamaServer) -> None:
    home = make_home(tmp_path / "v", llama.folder, CHAT)
    shape = {"count": 1, "operation": "chat.completions", "messages": 3, "temperature": 0, "max_tokens": 4}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"v": 1, "models": {CHAT: [shape]}}))
    file = lines(tmp_path, '"Hello there."', '"And then?"')
    result = mint(home, llama.url, "--answers", "1", "--prompts", file, "--profile", str(profile), model=CHAT)
    assert result.exit_code == 0, result.output
    (minted,) = stored(home).values()
    roles = [message["role"] for message in minted.body["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert minted.body["messages"][1]["content"]


def test_llama_cpp_with_a_file_of_another_folder_mints_nothing(
    tmp_path: Path, llama: LlamaServer, model_folder: Path
) -> None:
    home = make_home(tmp_path / "v", model_folder, CHAT)
    result = mint(home, llama.url, "--answers", "1", "--dir", str(model_folder), model=CHAT)
    assert result.exit_code == 1
    assert "is not in" in result.output
    assert stored(home) == {}


def keeper(db: SqliteDatabase, home: Home, url: str, hours: float = 4) -> AnswerKeeper:
    kept = KeptAnswers(
        where=Where(model=MODEL, url=url),
        material=Material(texts=tuple(f"text {number}" for number in range(400))),
        shapes=(),
        named=Named(name="touchstone-fixture-engine", version="1.0.0"),
        operation="embeddings",
    )
    return AnswerKeeper(
        db, [kept], hours, calls=CallsConfig(), answers=AnswersConfig(), key=home.pool_key(), cache=None,
        now_ms=lambda: 1_795_000_000_000, monotonic=lambda: 0.0,
    )  # fmt: skip


async def test_answers_are_kept_from_running_out(home: Home, embedder: EmbeddingEngine) -> None:
    """A node uses two an hour: with the margin, four hours need 17; then nothing is minted until half are gone."""
    async with SqliteDatabase(home.database) as db:
        kept = keeper(db, home, embedder.url)
        minted = [await kept.round() for _ in range(4)]
        assert minted == [8, 8, 8, 0]
        await db.write(lambda tx: tx.execute("UPDATE answer_batches SET taken = 20"))
        assert await kept.round() == 8


async def test_an_engine_that_is_away_keeps_nothing_else(home: Home, embedder: EmbeddingEngine) -> None:
    """It is asked again in the next round."""
    async with SqliteDatabase(home.database) as db:
        assert await keeper(db, home, f"http://127.0.0.1:{free_port()}").round() == 0
        assert await keeper(db, home, embedder.url).round() == 8


def test_status_shows_how_many_there_are(home: Home) -> None:
    async def fill() -> None:
        async with SqliteDatabase(home.database) as db, db.read() as tx:
            (row,) = await references.every(tx, MODEL)
            await put(db, home.pool_key(), MODEL, row["digest"], [chat("One?"), chat("Two?")])

    asyncio.run(fill())
    result = CliRunner().invoke(main, ["verifier", "status", "--home", str(home.path), "--json"])
    pools = msgspec.json.decode(re.sub(r"^[^{]*", "", result.output))["pools"]
    (level,) = [level for level in pools if level["kind"] == "answ"]
    assert (level["free"], level["in_force"]) == (2, 2)
