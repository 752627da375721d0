"""Which files of a node's folder count, from the challenge to the result, with the attester's own reading and walking."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.config import AttesterConfig, ModelSection
from attester.engines.files import FileWalker
from attester.engines.walker import Walker
from attester.errors import WeightsError
from attester.kinds import write_submod
from attester.model_files import ModelFiles
from attester.weights.folder import open_folder
from attester.weights.patterns import only
from attester.weights.possession import ModelChallenge
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode, tiny_model
from tests.unit.attester.test_gguf import tensor, whole
from verifier.references import measured

SUBMOD = f"model/{MODEL}"


class RealFiles:
    """The part of an attester that looks at files, on one folder."""

    def __init__(self, folder: Path) -> None:
        section = ModelSection(dir=str(folder))
        config = msgspec.convert(
            {"verifier": {"url": "http://127.0.0.1:9"}, "engine": {"adapter": "files", "url": "http://127.0.0.1:9"},
             "models": {MODEL: msgspec.to_builtins(section)}, "capabilities": {"hardware_class": "cpu"},
             "serve": {"url": "https://127.0.0.1:9"}},
            AttesterConfig,
        )  # fmt: skip
        self.files = ModelFiles(config)
        self._walker = FileWalker({MODEL: folder}, Walker(backend="numpy"))

    async def answer(self, challenge: ModelChallenge) -> Any:
        read = None if challenge.read is None else await self.files.read(MODEL, challenge.read)
        walk = None if challenge.walk is None else await self._walker.walk(MODEL, challenge.walk)
        return read, walk


async def attested(verifier: Any, folder: Path, node: SimulatedNode | None = None) -> dict[str, Any]:
    """The result of evidence of a real attester's files, in a session that the node opened."""
    node = node or await verifier.enrol(SimulatedNode(folder))
    real = RealFiles(folder)
    session = await verifier.client(node).open_session()
    answers = {each.model: await real.answer(each) for each in session.models}
    claims = node.claims(session.nonce, answers)
    claims[SUBMOD]["manifest"] = await real.files.manifest(MODEL)
    raw = {name: write_submod(submod) for name, submod in claims.items()}
    token = node.token(session.nonce, raw, iat=verifier.clock.seconds)
    return await verifier.submit(session, token.sign(node.key), node)


def judged(result: dict[str, Any]) -> tuple[int, set[str]]:
    """The claim file-system of the model, and the codes of its findings."""
    submod = result["submods"][SUBMOD]
    vector = submod["ear_trustworthiness_vector"]
    codes = {reason["code"] for reason in submod["ear_verifier_claims"]["reasons"]}
    return vector["file-system"], codes - {"weights.walk.announced", "weights.walk.from-file"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the Hub has them: with a card, a licence, a picture, and the same weights for another framework."""
    folder = tiny_model(tmp_path_factory.mktemp("card") / "model")
    for name, text in {
        "README.md": "# Card", "LICENSE": "MIT", "pictures/a.png": "png", "tf_model.h5": "weights",
        "chat_template.jinja": "{{ messages }}", "tokenizer.json": "{}", "original/params.json": "{}",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "node"))


def write(name: str, text: str = "other") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


OTHERS = {
    "a README edited": write("README.md"),
    "a README missing": remove("README.md"),
    "a licence missing": remove("LICENSE"),
    "a picture edited": write("pictures/a.png"),
    "weights of another framework missing": remove("tf_model.h5"),
    "the original format edited": write("original/params.json"),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
async def test_a_file_that_changes_no_answers_is_a_note_and_affirms(verifier, tmp_path, change) -> None:
    """A README edited or missing on a node quarantines it."""
    folder = copied(verifier.model_folder, tmp_path)
    change(folder)
    assert judged(await attested(verifier, folder)) == (2, {"weights.manifest.others"})
    assert await verifier.rows("SELECT * FROM incidents") == []


EXTRA_OTHERS = {
    "a picture": write("more.png"),
    "junk": write("__pycache__/code.pyc"),
    "a lock": write("x.lock"),
    "a download that ended": write("config.json.incomplete"),
    "a download of a card": write("CARD.md.incomplete"),
    "the hub's own notes": write(".cache/huggingface/download/config.json.metadata"),
    "the mac's own notes": write(".DS_Store"),
}


@pytest.mark.parametrize("change", EXTRA_OTHERS.values(), ids=EXTRA_OTHERS)
async def test_an_extra_file_that_changes_no_answers_is_nothing(verifier, tmp_path, change) -> None:
    """``__pycache__`` and ``*.incomplete`` are measured as the model."""
    folder = copied(verifier.model_folder, tmp_path)
    change(folder)
    assert judged(await attested(verifier, folder)) == (2, set())


EXTRA_GATES = {
    "notes": write("notes.txt"),
    "an adapter": write("adapter_config.json"),
    "code": write("modeling_x.py"),
    "pickled weights": write("pytorch_model.bin"),
    "an index": write("model.safetensors.index.json.bak"),
    "a template": write("additional_chat_templates/tool.jinja"),
}


@pytest.mark.parametrize("change", EXTRA_GATES.values(), ids=EXTRA_GATES)
async def test_an_extra_file_is_a_warning_and_no_incident(verifier, tmp_path, change) -> None:
    """One extra file ends in `read.wrong` and an incident, where the docs say warning."""
    folder = copied(verifier.model_folder, tmp_path)
    change(folder)
    assert judged(await attested(verifier, folder)) == (32, {"weights.manifest.extra"})
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_extra_weights_are_a_warning_and_are_not_walked(verifier, tmp_path) -> None:
    """A file that an engine may load in place of the measured one: the walk goes over the reference value's own."""
    folder = copied(verifier.model_folder, tmp_path)
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")
    result = await attested(verifier, folder)
    assert judged(result) == (32, {"weights.manifest.extra"})
    assert await verifier.rows("SELECT * FROM incidents") == []


GATES = {
    "the template edited": write("chat_template.jinja"),
    "the tokeniser edited": write("tokenizer.json"),
    "the configuration edited": write("config.json"),
}


@pytest.mark.parametrize("change", GATES.values(), ids=GATES)
async def test_a_file_that_changes_answers_is_an_incident(verifier, tmp_path, change) -> None:
    """A gate that differs quarantines, as before."""
    folder = copied(verifier.model_folder, tmp_path)
    change(folder)
    value, codes = judged(await attested(verifier, folder))
    assert (value, codes) == (96, {"weights.manifest.configuration", "weights.read.wrong"})


async def test_a_pool_of_before_still_works(verifier, tmp_path) -> None:
    """Its reads are over all files of the reference value, and the node is told so."""
    folder = copied(verifier.model_folder, tmp_path)
    write("__pycache__/more.pyc")(folder)
    write("notes.txt")(folder)
    published = tmp_path / "published"
    shutil.copytree(verifier.model_folder, published)
    write("config.json", '{"layers": 2}')(published)
    write("config.json", '{"layers": 2}')(folder)
    service = verifier.service
    await publish(service.db, service.pool_key, published, verifier.clock.ms, as_before=True)
    assert judged(await attested(verifier, folder)) == (32, {"weights.manifest.extra"})


async def test_an_attester_of_before_still_works(verifier) -> None:
    """It reads all of its folder, which is as it was published, and the pool has that answer too."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder))
    session = await verifier.client(node).open_session()
    answers = {each.model: node.answer(each.about(None)) for each in session.models}
    # The simulated node knows nothing of the files that are named.
    result = await verifier.submit(
        session, node.evidence(session, iat=verifier.clock.seconds, answers=answers), node
    )
    assert judged(result) == (2, set())
    pools = await verifier.rows("SELECT gates, commitments FROM pool WHERE kind = 'read' LIMIT 1")
    assert pools[0]["gates"] != pools[0]["commitments"]


async def test_an_older_attester_passes_over_the_names(verifier) -> None:
    """The names are beside the challenges: what older attesters parse strictly is what it was."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder))
    async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession") as response:
        assert response.status == 201
    session = await verifier.client(node).open_session()
    named = session.models[0].read.files
    assert "README.md" not in named
    assert {"chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"} <= set(named)


async def test_a_folder_that_is_not_complete_is_not_claimed(verifier, tmp_path, capsys) -> None:
    """The attester says so to its operator instead of claiming."""
    folder = copied(verifier.model_folder, tmp_path)
    write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n")(folder)
    real = RealFiles(folder)
    with pytest.raises(WeightsError, match=r"not complete: tokenizer\.json is a pointer of Git LFS"):
        await real.files.manifest(MODEL)
    assert await real.files.try_manifest(MODEL) is None
    assert "tokenizer.json" in capsys.readouterr().out


async def test_a_node_needs_no_setting_for_what_the_reference_value_leaves_out(verifier, tmp_path) -> None:
    """`measure --file`: the node may have the other quantisations in the same folder."""
    published = tmp_path / "published"
    published.mkdir()
    (published / "q4.gguf").write_bytes(whole([tensor("a")], (), b"abcd"))
    (published / "q8.gguf").write_bytes(whole([tensor("a")], (), b"efgh"))
    ignore = only(("q8.gguf",))
    document = measured.measure_folder(MODEL, open_folder(published, ignore), ignore=ignore)
    service, node_folder = verifier.service, tmp_path / "node"
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(published / "q8.gguf", alone)
    await publish(service.db, service.pool_key, alone, verifier.clock.ms, document=document)
    shutil.copytree(published, node_folder)
    assert judged(await attested(verifier, node_folder)) == (2, set())
    (node_folder / "q4.gguf").write_bytes(b"anything")
    (node_folder / "q2.gguf").write_bytes(b"anything")
    node = await verifier.enrol(SimulatedNode(node_folder))
    assert judged(await attested(verifier, node_folder, node)) == (2, set())


async def test_a_node_without_the_published_file_says_which_is_missing(verifier, tmp_path) -> None:
    """A gate is missing: the read cannot be answered, and the operator is told the name."""
    folder = copied(verifier.model_folder, tmp_path)
    remove("tokenizer.json")(folder)
    session = await verifier.client(await verifier.enrol(SimulatedNode(folder))).open_session()
    with pytest.raises(WeightsError, match=r"tokenizer\.json is missing"):
        await RealFiles(folder).answer(session.models[0])


async def test_a_table_of_another_version_reads_all_files(verifier) -> None:
    """Nobody knows any more which files its gates were."""
    await verifier.service.db.write(lambda tx: tx.execute("UPDATE pool SET gate_table = 0"))
    node = await verifier.enrol(SimulatedNode(verifier.model_folder))
    session = await verifier.client(node).open_session()
    assert "README.md" in session.models[0].read.files
    assert judged(await attested(verifier, verifier.model_folder, node)) == (2, set())
