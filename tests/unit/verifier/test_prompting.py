"""Where chat template and sampling defaults come from: files by their digests, or what the engine puts in their place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.evidence import File, Manifest, Runtime
from verifier.schemes.context import ModelReference, ReferenceFile
from verifier.schemes.prompting import find

TEMPLATE, CONFIG, SAMPLING = b"t" * 32, b"c" * 32, b"s" * 32
GGUF = "m.Q8_0.gguf"


def files(**named: bytes) -> Manifest:
    found = [File(name=name, size=1, sha256=digest) for name, digest in named.items()]
    return Manifest(files=tuple(found), dtypes={})


def runtime(**arguments: Any) -> Runtime:
    return Runtime(
        engine="vllm", version="0.32.0", arguments=arguments, packages={}, python="3.12", kernel="Linux"
    )


PUBLISHED = files(
    **{"chat_template.jinja": TEMPLATE, "generation_config.json": SAMPLING, "tokenizer_config.json": CONFIG}
)
OF_FILES = {
    "template": f"chat_template.jinja sha256:{TEMPLATE.hex()}",
    "sampling": f"generation_config.json sha256:{SAMPLING.hex()}",
}


def test_the_files_of_the_node_are_named() -> None:
    """With their digests; the template's own file comes before the tokeniser's."""
    assert find(PUBLISHED, None, runtime()) == OF_FILES
    assert find(PUBLISHED, None, runtime(generation_config="auto")) == OF_FILES


def test_a_template_in_the_tokenisers_file() -> None:
    """It is told by the file that it is in."""
    found = find(files(**{"tokenizer_config.json": CONFIG}), None, None)
    assert found == {"template": f"tokenizer_config.json sha256:{CONFIG.hex()}"}


def test_a_template_in_the_weights() -> None:
    """Of llama.cpp's files; one for images has none."""
    found = find(files(**{"mmproj-m.gguf": CONFIG, GGUF: TEMPLATE}), None, None)
    assert found == {"template": f"{GGUF} sha256:{TEMPLATE.hex()}"}


def test_without_a_manifest_the_reference_value_says_it() -> None:
    """By whatever algorithm it has."""
    file = ReferenceFile(1, {"blake3": TEMPLATE})
    reference = ModelReference(digest="d", files={"chat_template.jinja": file}, tensor_bytes=1)
    assert find(None, reference, None) == {"template": f"chat_template.jinja blake3:{TEMPLATE.hex()}"}


OVERRIDES = {
    "another template": ({"chat_template": "sha256:aa"}, {"template": "engine sha256:aa"}),
    "all defaults": ({"sampling": "sha256:bb"}, {"sampling": "engine sha256:bb"}),
    "no file of defaults": ({"generation_config": "vllm"}, {"sampling": "engine neutral"}),
    "another file of defaults": ({"generation_config": "sha256:cc"}, {"sampling": "engine sha256:cc"}),
    "some over the file": (
        {"generation_config": "auto", "override_generation_config": "sha256:dd"},
        {"sampling": f"{OF_FILES['sampling']}; engine sha256:dd"},
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_what_the_engine_puts_in_their_place(name: str) -> None:
    """It is seen as the node's word, and differs from the file's."""
    arguments, changed = OVERRIDES[name]
    assert find(PUBLISHED, None, runtime(**arguments)) == {**OF_FILES, **changed}


def test_nothing_is_made_up() -> None:
    """What neither files nor engine say is left out."""
    assert find(None, None, None) == {}
    assert find(files(), None, runtime(chat_template=None, sampling=7)) == {}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20), st.text(max_size=600) | st.integers() | st.none(), max_size=4
    )
)
def test_an_engine_cannot_make_a_result_large(arguments: dict[str, Any]) -> None:
    """Whatever it says of itself is short and printable."""
    named = dict(zip(("chat_template", "sampling", "generation_config"), arguments.values(), strict=False))
    said = msgspec.structs.replace(runtime(), arguments=named)
    for value in find(PUBLISHED, None, said).values():
        assert value.isprintable()
        assert len(value) <= 250
