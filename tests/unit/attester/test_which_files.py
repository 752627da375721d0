"""Which files of a folder are gates, junk or neither; and folders that are not complete."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from attester.errors import WeightsError
from attester.weights import roles
from attester.weights.complete import check_complete
from attester.weights.folder import open_folder, restrict
from attester.weights.patterns import Excluded, as_names, only
from attester.weights.patterns import given as as_given
from attester.weights.roles import ROWS, Role, Roles, is_junk

MODEL = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    "name",
    ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf", "x.pth",
     "mmproj-F16.gguf", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "modeling_x.py",
     "tokenizer.json", "tokenizer.model", "vocab.txt", "merges.txt", "special_tokens_map.json", "chat_template.jinja",
     "additional_chat_templates/tools.jinja", "generation_config.json", "preprocessor_config.json",
     "processor_config.json", "modules.json", "1_Pooling/config.json", "consolidated.safetensors", "params.json",
     "tekken.json", "hf_quant_config.json", "kernel.so", "whatever", "notes.txt", "README.md/config.json",
     "LICENSE.safetensors", "README.py", "README.json", "._model.safetensors", "sub/original/x.json"],
)  # fmt: skip
def test_what_an_engine_could_load_is_a_gate(name):
    """Also what it could load in place of the measured file, and whatever nobody has looked at."""
    assert Roles((*MODEL, name)).of(name) is Role.GATE
    assert Roles(MODEL).of(name) is Role.GATE


@pytest.mark.parametrize(
    "name",
    ["README.md", "readme", "LICENSE", "LICENSE.txt", "USE_POLICY.md", "NOTICE", "a.png", "pictures/b.JPEG",
     "paper.pdf", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "original/params.json",
     "original/consolidated.00.pth", "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "model.onnx",
     "training_args.bin", "optimizer.pt", "trainer_state.json", "runs/x/events.out.tfevents.1.host", "sub/.gitattributes"],
)  # fmt: skip
def test_what_no_engine_loads_is_none(name):
    """A README, images, licences, and the same model for other frameworks."""
    assert Roles((*MODEL, name)).of(name) is Role.OTHER
    assert Roles(MODEL).of(name) is Role.OTHER


@pytest.mark.parametrize(
    "name", ["a/__pycache__/x.pyc", ".DS_Store", "x.lock", ".ipynb_checkpoints/a.json", "._a", "Thumbs.db", ".msc"]
)  # fmt: skip
def test_what_tools_leave_is_junk(tmp_path, name):
    """``__pycache__``, ``*.lock`` and ``.DS_Store`` are measured as the model."""
    assert is_junk(name)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    (tmp_path / "config.json").write_text("{}")
    assert [file.name for file in open_folder(tmp_path).files] == ["config.json"]
    assert {file.name for file in open_folder(tmp_path, everything=True).files} == {"config.json", name}


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "original/params.json"])
def test_another_format_alone_is_the_model(name):
    """It is beside the weights that it is none of the gates."""
    assert Roles(("config.json", name)).of(name) is Role.GATE


def test_a_folder_of_nothing_else_is_the_model():
    """A reference value must have something to read."""
    assert Roles(("README.md", "a.png")).gates == {"README.md", "a.png"}


def test_weights_in_another_folder_are_not_beside():
    """The weights of a part of a pipeline say nothing of another part."""
    assert Roles(("unet/a.safetensors", "vae/b.h5")).of("vae/b.h5") is Role.GATE
    assert Roles(("unet/a.safetensors", "onnx/b.onnx")).of("onnx/b.onnx") is Role.GATE


def test_each_row_is_in_the_docs():
    """The table in docs/which-files.md is the one in the code."""
    page = (Path(__file__).parents[3] / "docs" / "which-files.md").read_text()
    for row in ROWS:
        for name in row.names:
            assert f"`{name}`" in page, name
        assert row.why.split(".")[0] in page, row.why
    for names, what in roles.GATES:
        assert what in page, what
        assert all(f"`{name}`" in page for name in names.split(", ") if name != "everything else"), names


names = st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12),
                 min_size=1, max_size=4).map("/".join)  # fmt: skip


@given(st.lists(names, max_size=8), names)
def test_every_name_has_a_role(own, name):
    """Gates are of the model's own; what is a gate of the model stays one when it is asked for."""
    found = Roles(own)
    assert found.of(name) in Role
    assert found.gates <= set(own)
    assert all(found.of(each) is Role.GATE for each in found.gates)


@given(names, st.lists(names, max_size=4))
def test_names_are_no_patterns(name, excluded):
    """A publisher who has signed a list of names has signed no patterns."""
    assert Excluded(as_names(excluded)).covers(name) == (name in excluded and not name.startswith("glob:"))


@given(st.lists(st.text("*?!/ab[].", max_size=8), max_size=6), names)
def test_patterns_of_any_form_are_taken(excluded, name):
    """A pattern is matched or not; none fails."""
    assert Excluded(as_given(excluded)).covers(name) in (True, False)


@pytest.mark.parametrize(
    ("patterns", "left_out", "kept"),
    [
        (["docs"], ["docs", "docs/a"], ["sub/docs", "docs2"]),
        (["*.fp16.*"], ["a.fp16.safetensors", "unet/a.fp16.bin"], ["a.safetensors", "fp16"]),
        (["unet/*.bin"], ["unet/a.bin"], ["a.bin", "unet/x/a.bin"]),
        (["/*.bin"], ["a.bin"], ["unet/a.bin"]),
        (["*.gguf", "!b.gguf"], ["a.gguf", "x/b.gguf"], ["b.gguf"]),
        (["a[1].txt"], ["a[1].txt"], ["a1.txt"]),
        (["a[1]*"], ["a[1].txt"], ["a1.txt"]),
        (["logs/"], ["logs", "logs/a/b"], ["x/logs"]),
    ],
)
def test_patterns_are_as_in_a_gitignore(patterns, left_out, kept):
    """`measure --exclude PATTERN`, and `ignore` in attester.toml."""
    excluded = Excluded(as_given(patterns))
    assert all(excluded.covers_path(name) for name in left_out)
    assert not any(excluded.covers_path(name) for name in kept)


def test_only_one_of_several_files_of_weights():
    """`measure --file NAME`: other weights in its folder go, whatever else there is stays."""
    excluded = Excluded(only(["q/a-00001-of-00002.gguf"]))
    assert [n for n in ("q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf", "q/b.gguf", "q/x.safetensors", "b.gguf",
                        "q/config.json", "q/model.safetensors.index.fp16.json") if not excluded.covers(n)] == [
        "q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf", "b.gguf", "q/config.json"]  # fmt: skip


def test_patterns_are_bounded():
    """A document of another verifier may have too many."""
    with pytest.raises(WeightsError, match="257 patterns"):
        Excluded(as_given([f"{number}*" for number in range(257)]))


def whole(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": np.ones((8, 8), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123\n"


def test_a_whole_folder_is_whole(tmp_path):
    check_complete(open_folder(whole(tmp_path)))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "x.gguf", "pytorch_model.bin"])
def test_a_pointer_of_lfs_is_refused_by_name(tmp_path, name):
    """LFS pointers are measured as the model."""
    (whole(tmp_path) / name).write_text(POINTER)
    with pytest.raises(WeightsError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        check_complete(open_folder(tmp_path))


def test_a_pointer_in_place_of_a_picture_is_none_of_our_business(tmp_path):
    """The model is whole without it."""
    (whole(tmp_path) / "a.png").write_text(POINTER)
    check_complete(open_folder(tmp_path))


@pytest.mark.parametrize("suffix", ["incomplete", "part", "crdownload", "aria2", "tmp"])
def test_a_download_that_has_not_ended_is_refused_by_name(tmp_path, suffix):
    """``*.incomplete`` is measured as the model."""
    (whole(tmp_path) / f"model-2.safetensors.{suffix}").write_text("x")
    with pytest.raises(WeightsError, match=f"model-2.safetensors.{suffix} is a download that has not ended"):
        check_complete(open_folder(tmp_path))


def test_what_a_download_left_that_has_ended_is_junk(tmp_path):
    """The file itself is there."""
    (whole(tmp_path) / "model.safetensors.incomplete").write_text("x")
    assert [file.name for file in open_folder(tmp_path).files] == ["config.json", "model.safetensors"]


def test_aria2_says_itself_that_the_file_is_not_whole(tmp_path):
    """Its note lies beside a file that has its full name from the start."""
    (whole(tmp_path) / "model.safetensors.aria2").write_text("x")
    with pytest.raises(WeightsError, match="aria2"):
        check_complete(open_folder(tmp_path))


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_a_missing_shard_of_an_index_is_refused_by_name(tmp_path, index):
    """Of weights of either format."""
    (whole(tmp_path) / index).write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "gone.bin"}})
    )
    with pytest.raises(WeightsError, match=r"names gone\.bin, which is missing"):
        check_complete(open_folder(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "bin"])
def test_a_missing_number_is_refused_by_name(tmp_path, suffix):
    """Shards say how many they are."""
    (whole(tmp_path) / f"m-00001-of-00003.{suffix}").write_bytes(b"x" * 20)
    (tmp_path / f"m-00003-of-00003.{suffix}").write_bytes(b"x" * 20)
    with pytest.raises(WeightsError, match=f"m-00002-of-00003.{suffix} is missing"):
        check_complete(open_folder(tmp_path))


@pytest.mark.parametrize("cut", [1, 100, 256, 300])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, cut):
    """The header says more bytes than the file has; or it is cut off itself."""
    path = whole(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(WeightsError, match=r"not complete: model\.safetensors is cut off"):
        check_complete(open_folder(tmp_path))


def test_an_empty_file_of_weights_is_refused(tmp_path):
    (whole(tmp_path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model\.safetensors has no bytes"):
        check_complete(open_folder(tmp_path))


@given(st.binary(max_size=200))
def test_whatever_a_file_of_weights_holds_it_is_whole_or_refused(tmp_path_factory, data):
    """No content makes it fail in another way."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "model.safetensors").write_bytes(data)
    (folder / "x.gguf").write_bytes(b"GGUF" + data)
    with suppress(WeightsError):
        check_complete(open_folder(folder))


def test_the_files_of_a_challenge_must_be_there(tmp_path):
    """The node's operator is told which one is missing."""
    folder = open_folder(whole(tmp_path))
    assert [file.name for file in restrict(folder, ["config.json"]).files] == ["config.json"]
    with pytest.raises(WeightsError, match="gone is missing"):
        restrict(folder, ["config.json", "gone"])
