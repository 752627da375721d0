"""Every usual place and form of a model is measured as what it is, or refused with what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from attester.errors import WeightsError
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from attester.weights.stores import parse_ollama, shard_of
from attester.weights.tensors import TensorFiles
from fixtures.simulator import MODEL
from tests.unit.attester.test_gguf import tensor, whole
from touchstone import main
from verifier.references import measured
from verifier.references.measured import Document

COMMIT, OTHER = "a" * 40, "b" * 40


def measure(path: Path, *options: str) -> Document:
    done = run(path, *options)
    assert done.exit_code == 0, done.output
    return measured.read_document(done.stdout)


def run(path: Path, *options: str, as_json: bool = True) -> Result:
    shown = ["--json"] if as_json else []
    command = ["reference", "measure", str(path), "--model", MODEL, "--no-cache", *shown, *options]
    return CliRunner().invoke(main, command)


def refused(path: Path, *options: str) -> str:
    done = run(path, *options)
    assert done.exit_code == 1, done.output
    return done.output


def names(document: Document) -> list[str]:
    return [file.name for file in document.files]


def weights(path: Path, *tensors: str, of: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full((4, 4), of, np.float32) for name in tensors or ("a",)}, path)


def repository(root: Path, snapshots: Mapping[str, str], main_ref: str | None) -> Path:
    """A repository as huggingface_hub keeps it: blobs, snapshots of links, and refs."""
    folder = root / "models--org--name"
    for commit, text in snapshots.items():
        for name, data in (("config.json", text.encode()), ("model.safetensors", None)):
            blob = folder / "blobs" / hashlib.sha256(f"{name} {text}".encode()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            weights(blob, "a") if data is None else blob.write_bytes(data)
            link = folder / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../../blobs") / blob.name)
    if main_ref is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main_ref)
    return folder


def test_a_repository_of_the_hub_is_its_snapshot_of_main(tmp_path):
    """A Hub cache's repository root (twice the files)."""
    folder = repository(tmp_path, {COMMIT: "1", OTHER: "2"}, COMMIT)
    found = measure(folder)
    assert names(found) == ["config.json", "model.safetensors"]
    assert found.files == measure(folder / "snapshots" / COMMIT).files
    assert found.files != measure(folder / "snapshots" / OTHER).files


def test_a_repository_with_one_snapshot_needs_no_main(tmp_path):
    """It was downloaded by its revision."""
    assert names(measure(repository(tmp_path, {COMMIT: "1"}, None))) == ["config.json", "model.safetensors"]


def test_several_snapshots_without_main_are_asked_for_by_name(tmp_path):
    said = refused(repository(tmp_path, {COMMIT: "1", OTHER: "2"}, None))
    assert f"Give the path of one of them in it: {COMMIT}, {OTHER}" in said


@pytest.mark.parametrize("ref", ["c" * 40, "../../..", "", "/etc"])
def test_a_main_that_is_not_there_is_refused(tmp_path, ref):
    """A download that has not ended, or a name that leads out of the repository."""
    assert "which is not in snapshots" in refused(repository(tmp_path, {COMMIT: "1"}, ref))


def test_the_whole_cache_of_the_hub_is_refused_with_its_repositories(tmp_path):
    """It holds several models."""
    repository(tmp_path, {COMMIT: "1"}, COMMIT)
    assert "the cache of several repositories" in refused(tmp_path)
    assert "models--org--name" in refused(tmp_path)


def put(path: Path, *tensors: str, payload: bytes = b"abcd") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole([tensor(name) for name in tensors or ("a",)], (), payload))
    return path


def test_several_ggufs_are_refused_with_the_list_and_the_option(tmp_path):
    """Several GGUFs in a folder."""
    for name in ("m-Q4.gguf", "m-Q8.gguf"):
        put(tmp_path / name)
    said = refused(tmp_path)
    assert "2 GGUF files, which are several models: m-Q4.gguf, m-Q8.gguf. Name one with --file" in said


def test_one_of_several_ggufs_is_measured_by_name(tmp_path):
    """With whatever is not weights beside it."""
    for name in ("m-Q4.gguf", "m-Q8.gguf"):
        put(tmp_path / name)
    (tmp_path / "README.md").write_text("card")
    found = measure(tmp_path, "--file", "m-Q8.gguf")
    assert names(found) == ["README.md", "m-Q8.gguf"]
    assert [each.file for each in found.tensors] == ["m-Q8.gguf"]


def test_a_file_that_is_not_there_is_told(tmp_path):
    put(tmp_path / "m.gguf")
    assert "--file x.gguf is not a file in" in refused(tmp_path, "--file", "x.gguf")


def test_a_single_gguf_path_is_that_file(tmp_path):
    """A single ``.gguf`` path."""
    for name in ("m-Q4.gguf", "m-Q8.gguf"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert names(measure(tmp_path / "m-Q4.gguf")) == ["m-Q4.gguf"]


def test_a_single_gguf_in_the_cache_of_the_hub_keeps_its_name(tmp_path):
    """The link is followed to its contents, and not to the name of the blob."""
    blob = put(tmp_path / "models--o--n" / "blobs" / "123")
    link = tmp_path / "models--o--n" / "snapshots" / COMMIT / "m-Q4.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert names(measure(link)) == ["m-Q4.gguf"]


def test_the_shards_of_a_gguf_are_one_model(tmp_path):
    """``-00001-of-0000N``, as a folder and as a path."""
    put(tmp_path / "m-00001-of-00002.gguf", "a")
    put(tmp_path / "m-00002-of-00002.gguf", "b")
    both = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert names(measure(tmp_path)) == names(measure(tmp_path / both[0])) == both
    put(tmp_path / "q.gguf", "a")
    assert names(measure(tmp_path, "--file", both[0])) == both


def test_a_missing_shard_of_a_gguf_is_refused_by_name(tmp_path):
    put(tmp_path / "m-00001-of-00002.gguf", "a")
    assert "m-00002-of-00002.gguf" in refused(tmp_path)
    assert "m-00002-of-00002.gguf" in refused(tmp_path / "m-00001-of-00002.gguf")


def test_a_folder_of_pickles_is_measured_as_files(tmp_path):
    """``.bin``-only folders: the files count, and what cannot be walked is said."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK pickle")
    (tmp_path / "config.json").write_text("{}")
    found = measure(tmp_path)
    assert names(found) == ["config.json", "pytorch_model.bin"]
    assert (found.tensors, found.practice) == ((), None)
    assert "reads can be minted, but no walks" in run(tmp_path, as_json=False).output


def test_pickles_beside_safetensors_are_files_of_the_model(tmp_path):
    """An engine can be told to load them; the safetensors are walked."""
    weights(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK pickle")
    found = measure(tmp_path)
    assert "pytorch_model.bin" in found.gates
    assert [each.file for each in found.tensors] == ["model.safetensors"]


def ollama(root: Path, tag: str = "latest", **layers: bytes) -> Path:
    """A model as `ollama pull` leaves it."""
    models = root / "models"
    entries = []
    for kind, data in {"model": whole(), "template": b"{{ .Prompt }}", "license": b"MIT", **layers}.items():
        digest = hashlib.sha256(data).hexdigest()
        (models / "blobs").mkdir(parents=True, exist_ok=True)
        (models / "blobs" / f"sha256-{digest}").write_bytes(data)
        media = f"application/vnd.ollama.image.{kind}"
        entries.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)})
    config = b'{"model_format":"gguf"}'
    digest = hashlib.sha256(config).hexdigest()
    (models / "blobs" / f"sha256-{digest}").write_bytes(config)
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": f"sha256:{digest}",
                   "size": len(config)},
        "layers": entries,
    }  # fmt: skip
    path = models / "manifests" / "registry.ollama.ai" / "library" / "tiny" / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def test_a_model_of_ollamas_store_is_named_by_its_manifest(tmp_path):
    """Ollama's store: the GGUF layer is the weights; template, params and system layers are gates."""
    path = ollama(tmp_path, params=b'{"stop":["x"]}', system=b"Be kind.")
    found = measure(path)
    assert names(found) == ["config.json", "license", "model.gguf", "params", "system", "template"]
    assert found.gates == {"config.json", "model.gguf", "params", "system", "template"}
    assert [each.file for each in found.tensors] == ["model.gguf"]
    assert measure(path.parent).files == found.files


def test_the_whole_store_of_ollama_is_refused_with_its_models(tmp_path):
    ollama(tmp_path)
    ollama(tmp_path, "8b", system=b"x")
    assert "registry.ollama.ai/library/tiny/8b, registry.ollama.ai/library/tiny/latest" in refused(tmp_path)
    assert "8b, latest" in refused(
        tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "tiny"
    )


@pytest.mark.parametrize("damage", [lambda blob: blob.unlink(), lambda blob: blob.write_bytes(b"x")])
def test_a_layer_that_is_not_whole_is_refused_by_name(tmp_path, damage):
    """`ollama pull` was stopped."""
    path = ollama(tmp_path)
    damage(tmp_path / "models" / "blobs" / f"sha256-{hashlib.sha256(whole()).hexdigest()}")
    assert "is missing or not complete: it is the model.gguf" in refused(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
digests = st.sampled_from(["sha256:" + "a" * 64, "sha256-" + "b" * 64, "sha256:../../x", "md5:1"])
layers = st.fixed_dictionaries(
    {"mediaType": st.sampled_from(["application/vnd.ollama.image.model", "application/vnd.ollama.image.tensor", "x"])
                  | json_values,
     "digest": digests | json_values, "size": st.integers(-1, 5) | json_values},
    optional={"name": st.text("a/.", max_size=6) | json_values},
)  # fmt: skip


@given(json_values | st.fixed_dictionaries({"layers": st.lists(layers, max_size=4)}))
def test_any_manifest_is_read_or_refused(raw: Any):
    """No layer leads out of the store, and no two have the same name."""
    try:
        found = parse_ollama(raw, Path("/store/manifests/m"), Path("/store/blobs"))
    except WeightsError:
        return
    for layer in found or ():
        assert layer.path.parent == Path("/store/blobs")
        assert layer.size >= 0
    assert len({layer.name for layer in found or ()}) == len(found or ())


@given(st.from_regex(r"[a-z]{0,3}-[0-9]{5}-of-[0-9]{5}\.gguf", fullmatch=True) | st.text(max_size=20))
def test_any_name_is_a_shard_or_none(name):
    """A name gives itself among the names of all of its shards."""
    shard = shard_of(name)
    assert shard is None or shard.count > 2000 or name in set(shard.names())


def test_a_variant_is_not_walked_and_it_is_said(tmp_path):
    """fp16 variants: engines load the plain file if nobody asks for another."""
    weights(tmp_path / "model.safetensors")
    weights(tmp_path / "model.fp16.safetensors", of=2.0)
    found = measure(tmp_path)
    assert names(found) == ["model.fp16.safetensors", "model.safetensors"]
    assert [each.file for each in found.tensors] == ["model.safetensors"]
    said = run(tmp_path, as_json=False).output
    assert "model.fp16.safetensors is a variant of model.safetensors and is not walked" in said
    assert "--file model.fp16.safetensors" in said


def test_a_variant_is_measured_by_name(tmp_path):
    weights(tmp_path / "model.safetensors")
    weights(tmp_path / "model.fp16.safetensors", of=2.0)
    found = measure(tmp_path, "--file", "model.fp16.safetensors")
    assert names(found) == ["model.fp16.safetensors"]


def test_variants_are_left_out_by_a_pattern(tmp_path):
    """The names of diffusers: the variant of each part of a pipeline, in shards too."""
    for part in ("unet", "vae"):
        weights(tmp_path / part / "diffusion_pytorch_model.safetensors")
        weights(tmp_path / part / "diffusion_pytorch_model.fp16.safetensors", of=2.0)
    weights(tmp_path / "unet" / "diffusion_pytorch_model.fp16-00001-of-00001.safetensors", of=2.0)
    found = measure(tmp_path, "--exclude", "*.fp16*")
    plain = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    assert names(found) == plain
    assert [each.file for each in measure(tmp_path).tensors] == plain
    assert [each.name for each in found.tensors] == ["unet/a", "vae/a"]


def test_what_only_looks_like_a_variant_is_walked(tmp_path):
    """It has other tensors: so it was walked before, and still is."""
    weights(tmp_path / "model.safetensors", "a")
    weights(tmp_path / "model.extra.safetensors", "b")
    assert [info.name for info in TensorFiles(open_folder(tmp_path)).infos] == ["a", "b"]


def test_a_folder_may_be_left_out(tmp_path):
    """`measure --exclude`, kept in the document."""
    weights(tmp_path / "model.safetensors")
    weights(tmp_path / "old" / "model.safetensors")
    found = measure(tmp_path, "--exclude", "old", "--exclude", "*.log")
    assert (names(found), found.ignore) == (["model.safetensors"], ("old", "glob:*.log"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("model-2.safetensors.incomplete", b"x", "a download that has not ended"),
     ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
     ("b.safetensors", None, "is cut off")],
)  # fmt: skip
def test_what_is_not_whole_is_not_measured(tmp_path, name, content, said):
    """LFS pointers and partial files refused by name."""
    weights(tmp_path / "model.safetensors")
    if content is None:
        content = (tmp_path / "model.safetensors").read_bytes()[:-1]
    (tmp_path / name).write_bytes(content)
    output = refused(tmp_path)
    assert name in output
    assert said in output


def test_a_document_measured_again_is_the_same(tmp_path):
    """What rules and speed have changed, the digest of a folder has not: pools stay."""
    weights(tmp_path / "model.safetensors", "a", "b")
    (tmp_path / "README.md").write_text("card")
    assert (
        measure(tmp_path).digest == measure(Path(shutil.copytree(tmp_path, tmp_path.parent / "again"))).digest
    )


@pytest.fixture
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.commands.challenges.best_device", lambda: "cpu")
    monkeypatch.setattr("verifier.commands.challenges.kernel", lambda **_: kernel("numpy"))


@pytest.mark.usefixtures("quick_kernel")
def test_reads_of_pickles_are_minted_and_walks_are_not(tmp_path):
    """Minting follows what was measured: files without tensors have reads alone."""
    folder, home = tmp_path / "m", tmp_path / "v"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"PK pickle")
    CliRunner().invoke(main, ["verifier", "init", "--home", str(home)])
    done = run(folder, "--home", str(home), as_json=False)
    assert done.exit_code == 0, done.output
    assert mint(folder, home, "--reads", "2").exit_code == 0
    refusal = mint(folder, home, "--walks", "1")
    assert (refusal.exit_code, "pickles, which cannot be walked" in refusal.output) == (1, True), (
        refusal.output
    )


@pytest.mark.usefixtures("quick_kernel")
def test_minting_leaves_out_what_measuring_left_out(tmp_path):
    """`challenges mint` and `keep` follow the same selection; junk and cards make no difference to them."""
    folder, home = tmp_path / "m", tmp_path / "v"
    weights(folder / "model.safetensors")
    weights(folder / "model.fp16.safetensors", of=2.0)
    CliRunner().invoke(main, ["verifier", "init", "--home", str(home)])
    assert run(folder, "--exclude", "*.fp16.*", "--home", str(home), as_json=False).exit_code == 0
    (folder / "other.fp16.safetensors").write_bytes(b"x")
    (folder / "CARD.md").write_text("card")
    (folder / "x.lock").write_text("")
    done = mint(folder, home, "--reads", "2", "--walks", "2")
    assert done.exit_code == 0, done.output
    (folder / "extra.json").write_text("{}")
    assert "extra.json is not in the reference value" in mint(folder, home, "--reads", "1").output


def mint(folder: Path, home: Path, *counts: str) -> Result:
    command = ["challenges", "mint", "--model", MODEL, "--dir", str(folder), "--home", str(home), *counts]
    return CliRunner().invoke(main, command)
