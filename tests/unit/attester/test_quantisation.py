"""How weights are quantised: read from their files, and a declared word that contradicts them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from attester.weights import quantisation
from attester.weights.folder import open_folder
from attester.weights.quantisation import Quantisation, conclude, quantisation_of

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
ROWS = np.random.default_rng(1).normal(size=(8, 256)).astype(np.float32)


def write_gguf(path: Path, kinds: dict[str, str], file_type: int | None = None) -> None:
    """A file by the format's own writer, with a tensor of each type."""
    writer = gguf.GGUFWriter(path, "llama")
    if file_type is not None:
        writer.add_file_type(file_type)
    for name, kind in kinds.items():
        if kind == "F32":
            writer.add_tensor(name, ROWS)
            continue
        wanted = getattr(gguf.GGMLQuantizationType, kind)
        _, block_bytes = gguf.GGML_QUANT_SIZES[wanted]
        blocks = ROWS.size // gguf.GGML_QUANT_SIZES[wanted][0] // 8
        writer.add_tensor(name, np.zeros((8, blocks * block_bytes), np.uint8), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of(folder: Path) -> Quantisation | None:
    return quantisation_of(open_folder(folder))


@pytest.mark.parametrize(
    ("kinds", "file_type", "name"),
    [
        ({"a": "Q4_1", "b": "Q4_1", "c": "Q8_0", "n": "F32"}, 3, "q4_1"),
        ({"a": "Q4_1", "b": "Q4_1", "c": "Q8_0", "n": "F32"}, None, "q4_1"),
        ({"a": "Q4_K", "b": "Q6_K"}, 15, "q4_k_m"),
        ({"a": "IQ4_XS", "b": "Q6_K"}, 30, "iq4_xs"),
        # A label that the tensors do not bear out is a word.
        ({"a": "Q4_1"}, 1, "q4_1"),
        ({"a": "Q4_1"}, 7, "q4_1"),
        ({"a": "Q8_0"}, 1000, "q8_0"),
        ({"a": "F32"}, 0, "none"),
        ({"a": "F32"}, 15, "none"),
        ({"a": "BF16"}, 32, "none"),
    ],
)
def test_a_gguf_file_says_how_it_is_quantised(tmp_path, kinds, file_type, name):
    """By the types of its tensors, and by its label where they bear it out; under any name."""
    write_gguf(tmp_path / "sha256-0123", kinds, file_type)
    found = of(tmp_path)
    assert found is not None
    assert found.name == name


CONFIGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "AWQ": ({"quant_method": "awq", "bits": 4}, "awq", "int4"),
    "GPTQ": ({"quant_method": "gptq", "bits": 8}, "gptq", "gptq-int8"),
    "fp8": ({"quant_method": "fp8"}, "fp8", "FP8"),
    "compressed": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
        },
        "compressed-tensors",
        "fp8",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_says_it(tmp_path, name):
    section, called, also = CONFIGS[name]
    save_file({"qweight": np.zeros((4, 4), np.int32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": section}))
    found = of(tmp_path)
    assert found is not None
    assert found.name == called
    assert found.is_called(called)
    assert found.is_called(also)
    assert not found.is_called("none")


BROKEN = [
    "", "[]", "{", '{"quantization_config": 7}', '{"quantization_config": {"quant_method": 7}}',
    '{"quantization_config": {"quant_method": "\\u0000"}}', '{"quantization_config": {"quant_method": ""}}',
    '{"quantization_config": {"quant_method": "x", "quant_method": "y"}}', "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_configuration_that_says_nothing_is_passed_over(tmp_path, text):
    """The tensors say it then."""
    save_file({"w": ROWS}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert of(tmp_path) == Quantisation("none", quantisation._PLAIN["F32"])


def test_tensors_in_safetensors_say_it(tmp_path):
    """By the type that has the most bytes."""
    save_file({"w": np.zeros(4096, np.int8), "scale": ROWS[0]}, tmp_path / "model.safetensors")
    found = of(tmp_path)
    assert found is not None
    assert found.name == "int8"


def test_a_folder_without_weights_says_nothing(tmp_path):
    (tmp_path / "README.md").write_text("x")
    assert of(tmp_path) is None


def test_a_header_that_is_refused_says_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    assert of(tmp_path) is None


def test_a_changed_file_is_read_again(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"a": "Q4_1"})
    assert of(tmp_path).name == "q4_1"
    (tmp_path / "m.gguf").unlink()
    write_gguf(tmp_path / "m.gguf", {"a": "Q8_0"})
    assert of(tmp_path).name == "q8_0"


Q4 = {"org/m": Quantisation("q4_k_m", frozenset({"q4_k"}))}
PLAIN = {"org/m": Quantisation("none", frozenset({"bf16"}))}


@pytest.mark.parametrize(
    ("declared", "found", "loaded_as", "said"),
    [
        (None, Q4, None, "q4_k_m"),
        ("Q4_K_M", Q4, None, "Q4_K_M"),
        ("q4-k", Q4, None, "q4-k"),
        (None, PLAIN, None, "none"),
        ("bf16", PLAIN, None, "bf16"),
        (None, {"org/m": None}, None, "none"),
        ("anything", {"org/m": None}, None, "anything"),
        (None, PLAIN, "fp8", "fp8"),
        ("fp8", PLAIN, "fp8", "fp8"),
        (None, {**Q4, "org/n": PLAIN["org/m"]}, None, "mixed"),
        (None, {**Q4, "org/n": None}, None, "q4_k_m"),
    ],
)
def test_what_the_evidence_says(declared, found, loaded_as, said):
    assert conclude(declared, found, loaded_as) == (said, None)


@pytest.mark.parametrize(
    ("declared", "found", "loaded_as"),
    [
        ("none", Q4, None),
        ("q8_0", Q4, None),
        ("fp8", PLAIN, None),
        ("q4_k_m", PLAIN, None),
        ("awq", PLAIN, "fp8"),
    ],
)
def test_a_word_that_the_weights_contradict(declared, found, loaded_as):
    """`quantisation: none` declared for a Q4_1 file: what is said is what the weights are, and what to do."""
    said, wrong = conclude(declared, found, loaded_as)
    assert said == found["org/m"].name
    assert wrong == (
        f"attester.toml declares {declared}, but the weights of org/m are {found['org/m'].name}. "
        "Leave quantisation out under [capabilities]: then it is read from the weights"
    )


def test_the_names_of_mixtures_are_the_formats_own():
    """Numbers and names of llama.cpp, as its own writer has them."""
    theirs = {int(each): each.name.removeprefix("MOSTLY_") for each in gguf.LlamaFileType}
    for number, name in quantisation._FILE_TYPES.items():
        assert theirs[number] == name


@given(st.none() | st.text(max_size=8), st.dictionaries(st.text(max_size=3), st.none() | st.sampled_from(
    [Q4["org/m"], PLAIN["org/m"]]), max_size=3), st.none() | st.sampled_from(["fp8", "awq"]))  # fmt: skip
def test_a_contradiction_is_never_passed_on(declared, found, loaded_as):
    """Whatever is declared, what is said is the operator's word only if no weights contradict it."""
    said, wrong = conclude(declared, found, loaded_as)
    if wrong is None and declared is not None and loaded_as != declared:
        assert said == declared
        assert all(each is None or each.is_called(declared) for each in found.values())
    if wrong is not None:
        assert said != declared
