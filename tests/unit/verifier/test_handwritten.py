"""Reference values by hand: what is read, and what is refused with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import ReferenceValueError
from verifier.references.handwritten import MAX_YAML, read_yaml
from verifier.references.measured import Document, DocumentFile

A, B = "ab" * 32, "0" * 63 + "f"
GOOD = f"""\
# by hand
model: publisher/name
files:
  b.safetensors:
    sha256: {A}
    blake3: {B}
    size: 12
  a/config.json: {{sha256: {B}}}
ignore: [z.txt, "notes.md"]
"""


def test_a_document_is_read():
    """Files and what is ignored come in the order of manifests."""
    assert read_yaml(GOOD.encode()) == Document(
        model="publisher/name",
        files=(DocumentFile("a/config.json", sha256=B), DocumentFile("b.safetensors", 12, A, B)),
        ignore=("notes.md", "z.txt"),
    )


def test_the_order_it_is_written_in_makes_no_other_reference_value():
    """Two people who write the same files down get one digest."""
    head, _, rest = GOOD.partition("files:\n")
    one, two = rest.split("  a/config.json", 1)
    second, ignore = two.split("\n", 1)
    turned = f"{head}files:\n  a/config.json{second}\n{one}{ignore}"
    assert turned != GOOD
    assert read_yaml(turned.encode()).digest == read_yaml(GOOD.encode()).digest


def test_json_is_read_too():
    """JSON is a part of YAML, and of this part."""
    text = json.dumps({"model": "m", "files": {"a": {"sha256": A, "size": 0}}})
    assert read_yaml(text.encode()) == Document(model="m", files=(DocumentFile("a", 0, A),))


def test_too_many_bytes():
    """Looked at before anything else."""
    with pytest.raises(ReferenceValueError, match=f"at most {MAX_YAML} are read"):
        read_yaml(b"#" * (MAX_YAML + 1))


def test_what_is_not_of_our_yaml_is_no_reference_value_either():
    """With the place that the reader gives."""
    with pytest.raises(ReferenceValueError, match=r"^line 2, column 8: an anchor or an alias"):
        read_yaml(b"model: m\nfiles: &x {}")


def document(**changes: object) -> str:
    """A document in JSON, right but for *changes*."""
    value = {"model": "m", "files": {"a": {"sha256": A}}, **changes}
    return json.dumps({key: each for key, each in value.items() if each is not ...})


NOT_DOCUMENTS = {
    "not a map": ("[a]", "line 1, column 1: this must be a map"),
    "an empty map": ("{}", "this must be a map that is not empty"),
    "no model": (document(model=...), "the key model is missing"),
    "no files": (document(files=...), "the key files is missing"),
    "an unknown key": ("model: m\ntensors: []", "line 2, column 1: tensors: this key is not known. Use files, ignore, model"),
    "a model that is no text": ("model: 1\nfiles: {a: {size: 1}}", "line 1, column 1: model: this must be text"),
    "a model that is no name": (document(model="a b"), "model: 'a b' is not a model's name"),
    "a long name of a model": (document(model="a" * 129), "is not a model's name"),
    "files in a list": (document(files=["a"]), "files: this must be a map"),
    "empty files": (document(files={}), "files: this must be a map that is not empty"),
    "too many files": (document(files={f"f{n}": {"sha256": A} for n in range(4097)}), "at most 4096"),
    "an empty file": (document(files={"a": {}}), "files.a: this must be a map that is not empty"),
    "only a size": (document(files={"a": {"size": 3}}), "files.a: there is neither sha256 nor blake3"),
    "an unknown digest": (document(files={"a": {"sha512": A * 2}}), "files.a.sha512: this key is not known"),
    "a short digest": (document(files={"a": {"sha256": A[:-1]}}), "files.a.sha256: this must be 64 digits"),
    "a long digest": (document(files={"a": {"sha256": A + "\n"}}), "files.a.sha256: this must be 64 digits"),
    "an upper-case digest": (document(files={"a": {"blake3": A.upper()}}), "files.a.blake3: this must be 64 digits"),
    "a decimal digest": (f"model: m\nfiles:\n  a: {{sha256: {'1' * 64}}}", "line 3, column 15: the integer has more"),
    "a digest like a float": (f"model: m\nfiles:\n  a: {{sha256: 1e{'1' * 62}}}", "Quote it if it is text"),
    "null for a digest": (document(files={"a": {"sha256": A, "blake3": None}}), "files.a.blake3: this must be 64"),
    "a negative size": (document(files={"a": {"sha256": A, "size": -1}}), "files.a.size: this must be a number of bytes"),
    "a truth value as size": (document(files={"a": {"sha256": A, "size": True}}), "files.a.size: this must be a number"),
    "null for a size": (document(files={"a": {"sha256": A, "size": None}}), "files.a.size: this must be a number"),
    "text as size": (document(files={"a": {"sha256": A, "size": "1"}}), "files.a.size: this must be a number"),
    "an empty name": (document(files={"": {"sha256": A}}), "not a path within the model"),
    "a name that leads out": (document(files={"../a": {"sha256": A}}), "not a path within the model"),
    "an absolute name": (document(files={"/a": {"sha256": A}}), "not a path within the model"),
    "a backslash": (document(files={"a\\b": {"sha256": A}}), "not a path within the model"),
    "a zero in a name": (document(files={"a\0b": {"sha256": A}}), "not a path within the model"),
    "a long name": (f"model: m\nfiles:\n  ? {'a' * 1025}\n  : {{sha256: {A}}}", "not a path within the model"),
    "a longer key than YAML has": (document(files={"a" * 1025: {"sha256": A}}), "there is no value"),
    "a name that no manifest lists": (document(files={".git/config": {"sha256": A}}), "would fit no node"),
    "ignore is no list": (document(ignore="a"), "ignore: this must be a list"),
    "ignore of a number": (document(ignore=["b", 1]), "ignore.1: this is not a path"),
    "ignore of a file of it": (document(ignore=["a"]), "ignore.0: 'a' is a file of the model"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_DOCUMENTS)
def test_not_a_reference_value(case):
    """YAML that is read, and is no reference value."""
    text, expected = NOT_DOCUMENTS[case]
    with pytest.raises(ReferenceValueError) as error:
        read_yaml(text.encode())
    assert expected in str(error.value)
    assert str(error.value).startswith("line ")


def test_the_place_of_a_value_is_the_one_of_its_key():
    """Where a person has to look."""
    text = GOOD.replace("size: 12", "size: -12")
    with pytest.raises(
        ReferenceValueError, match=r"^line 7, column 5: files\.b\.safetensors\.size: this must be a number"
    ):
        read_yaml(text.encode())


def test_the_most_that_a_manifest_may_have():
    """4,096 files with both digests and a size are within the bounds."""
    files = {f"f{n}": {"sha256": A, "blake3": B, "size": n} for n in range(4096)}
    assert len(read_yaml(document(files=files).encode()).files) == 4096


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data):
    """Nothing but our own error, whatever came."""
    with contextlib.suppress(ReferenceValueError):
        read_yaml(data)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9 _.-]{0,10}(/[A-Za-z][A-Za-z0-9_.-]{0,10}){0,2}", fullmatch=True)
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    st.dictionaries(
        NAMES,
        st.fixed_dictionaries({"sha256": HEX}, optional={"blake3": HEX, "size": st.integers(0, 1 << 62)}),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100)
def test_a_reference_value_is_read_as_it_was_written(files):
    """Names with quotes, digests with quotes: a person may leave them out where it is clear."""
    lines = ["model: org/model", "files:"]
    for name, each in files.items():
        lines.append(f"  {json.dumps(name)}:")
        lines.extend(f"    {key}: {json.dumps(value)}" for key, value in each.items())
    read = read_yaml("\n".join(lines).encode())
    assert {file.name: file for file in read.files} == {
        name: DocumentFile(name, **each) for name, each in files.items()
    }
    assert [file.name for file in read.files] == sorted(files, key=str.encode)
