"""Reference values by hand: what any two readers of YAML could read differently is refused, with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verifier.errors import ReferenceValueError
from verifier.references import handwritten
from verifier.references.handwritten import MAX_VALUES, MAX_YAML, parse_yaml, read_yaml
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


def parsed(text: str | bytes, max_size: int = 1 << 20) -> object:
    return parse_yaml(text.encode() if isinstance(text, str) else text, max_size=max_size)


def refusal(text: str | bytes) -> str:
    with pytest.raises(ReferenceValueError) as error:
        parsed(text)
    return str(error.value)


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        ("1.0.3", "1.0.3"),
        ("0", 0),
        ("-12", -12),
        ("9223372036854775807", (1 << 63) - 1),
        ("true", True),
        ("null", None),
        ("'yes'", "yes"),
        ('"1.5"', "1.5"),
        ('""', ""),
        ("'<<'", "<<"),
        ("- a\n- [1, {b: c}]", ["a", [1, {"b": "c"}]]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("\ufeffa: b", {"a": "b"}),
        ("---\na: b\n...\n", {"a": "b"}),
    ],
)
def test_values(text, value):
    """What all readers agree on."""
    read = parsed(text)
    assert read == value
    assert type(read) is type(value)


REFUSED = {
    "a tag": ("a: !!str 1", "line 1, column 4: a tag"),
    "a tag of Python": ("a: !!python/object/apply:os.system [x]", "line 1, column 4: a tag"),
    "a tag on a map": ("!!map {a: b}", "line 1, column 1: a tag"),
    "a tag on a key": ("!!str a: b", "line 1, column 1: a tag"),
    "a tag that says nothing": ("a: ! 12", "line 1, column 4: a tag"),
    "a tag by its address": ("a: !<tag:yaml.org,2002:int> 3", "line 1, column 4: a tag"),
    "an anchor": ("a: &x b", "line 1, column 4: an anchor or an alias"),
    "an anchor on a list": ("a:\n  &x [b]", "line 2, column 3: an anchor or an alias"),
    "an anchor on a key": ("&x a: b", "line 1, column 1: an anchor or an alias"),
    "an alias": ("*x", "line 1, column 1: an anchor or an alias"),
    "an alias as a key": ("{*x : b}", "line 1, column 2: an anchor or an alias"),
    "a merge key": ("a:\n  <<: {b: c}", "line 2, column 3: '<<': a merge key"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' twice"),
    "a key twice, quoted once": ('{a: 1, "a": 2}', "line 1, column 8: the key 'a' twice"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: a second document"),
    "no document": ("# nothing", "line 1, column 1: the file is empty"),
    "a float": ("a: 1.5", "line 1, column 4: '1.5': a float"),
    "a float with an exponent": ("1e5", "a float"),
    "a float without a whole": (".5", "a float"),
    "infinity": ("[-.inf]", "line 1, column 2: '-.inf': a float"),
    "not a number": (".NaN", "a float"),
    "a timestamp": ("2026-01-02", "a timestamp: quote it"),
    "a timestamp with a time": ("a: 2026-1-2 10:00:00", "a timestamp: quote it"),
    "yes": ("a: yes", "line 1, column 4: 'yes': text or a truth value, by the reader: quote it"),
    "no": ("a: No", "'No': text or a truth value"),
    "on": ("on: 1", "line 1, column 1: 'on': text or a truth value"),
    "off": ("OFF", "text or a truth value"),
    "y": ("[y]", "text or a truth value"),
    "another true": ("True", "write true or false"),
    "another null": ("Null", "write null"),
    "a tilde": ("a: ~", "write null"),
    "nothing": ("a:", "line 1, column 3: nothing stands here"),
    "an equals sign": ("=", "a default value"),
    "a zero before": ("010", "a number that readers read differently"),
    "a plus before": ("+1", "a number that readers read differently"),
    "minus zero": ("-0", "a number that readers read differently"),
    "hexadecimal": ("0x1F", "a number that readers read differently"),
    "octal": ("0o17", "a number that readers read differently"),
    "binary": ("0b11", "a number that readers read differently"),
    "underscores": ("1_000", "a number that readers read differently"),
    "to base 60": ("1:30", "to base 60"),
    "beyond 64 bits": ("9223372036854775808", "beyond 64 bits"),
    "very many digits": ("9" * 10_000, "beyond 64 bits"),
    "a number as a key": ("1: a", "line 1, column 1: a key that is not text: quote it"),
    "null as a key": ("null: a", "a key that is not text"),
    "a list as a key": ("? [a]\n: b", "line 1, column 3: a key that is not text"),
    "not UTF-8": (b"a: b\nc: \xff", "line 2, column 4: a byte that is not UTF-8"),
    "UTF-16": ("a: b".encode("utf-16"), "line 1, column 1: a byte that is not UTF-8"),
    "a control character": ("a: b\nc: \x07", "line 2, column 4: a character that YAML does not have"),
    "a separator of lines": ("a: b\nc: d\u2028e", "line 2, column 5: a separator"),
    "half a character": ('a: "\\ud800"', "line 1, column 4: text that is not Unicode"),
    "an escape beyond all": ('a: "\\UFFFFFFFF"', "not YAML"),
    "a version": ("%YAML 1.1\n---\na: b", "a directive"),
    "a version of many digits": ("%YAML 1." + "9" * 5000 + "\n--- a", "not YAML"),
    "a handle": ("%TAG ! tag:x,2026:\n--- a", "a directive"),
    "not closed": ("a: [b", "line 1, column 6: not YAML"),
    "a tab": ("a:\n\tb: c", "line 2, column 1: not YAML"),
    "too deep": ("[" * 9 + "]" * 9, "line 1, column 9: nested deeper than 8"),
    "too deep, as a block": ("- " * 9 + "a", "line 1, column 17: nested deeper than 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """One thing each that is not read, with its line and column."""
    text, expected = REFUSED[case]
    assert expected in refusal(text)
    assert refusal(text).startswith("line ")


def test_as_deep_as_allowed():
    """Eight lists inside each other are read."""
    assert parsed("[" * 8 + "]" * 8) == [[[[[[[[]]]]]]]]


def test_too_many_values():
    """Counted while they are read: the list and its items."""
    assert len(parsed("[" + "1, " * (MAX_VALUES - 1) + "]")) == MAX_VALUES - 1
    assert f"more than {MAX_VALUES} values" in refusal("[" + "1, " * MAX_VALUES + "]")


def test_too_many_bytes():
    """Looked at before anything else."""
    with pytest.raises(ReferenceValueError, match="11 bytes, and at most 10 are read"):
        parsed("a" * 11, max_size=10)
    with pytest.raises(ReferenceValueError, match=f"at most {MAX_YAML} are read"):
        read_yaml(b"#" * (MAX_YAML + 1))


def test_aliases_of_aliases_cost_nothing():
    """The bomb of nine lists is refused at its first anchor."""
    text = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
    )
    assert "line 1, column 5: an anchor" in refusal(text)


def document(**changes: object) -> str:
    """A document in JSON, right but for *changes*."""
    value = {"model": "m", "files": {"a": {"sha256": A}}, **changes}
    return json.dumps({key: each for key, each in value.items() if each is not ...})


NOT_DOCUMENTS = {
    "not a map": ("[a]", "line 1, column 1: not a map"),
    "an empty map": ("{}", "not a map with something in it"),
    "no model": (document(model=...), "it has no model"),
    "no files": (document(files=...), "it has no files"),
    "an unknown key": ("model: m\ntensors: []", "line 2, column 1: tensors: not known; there are files, ignore, model"),
    "a model that is no text": ("model: 1\nfiles: {a: {size: 1}}", "line 1, column 1: model: not text"),
    "a model that is no name": (document(model="a b"), "model: 'a b' is not a model's name"),
    "a long name of a model": (document(model="a" * 129), "is not a model's name"),
    "files in a list": (document(files=["a"]), "files: not a map"),
    "empty files": (document(files={}), "files: not a map with something in it"),
    "too many files": (document(files={f"f{n}": {"sha256": A} for n in range(4097)}), "at most 4096"),
    "an empty file": (document(files={"a": {}}), "files.a: not a map with something in it"),
    "only a size": (document(files={"a": {"size": 3}}), "files.a: neither sha256 nor blake3"),
    "an unknown digest": (document(files={"a": {"sha512": A * 2}}), "files.a.sha512: not known"),
    "a short digest": (document(files={"a": {"sha256": A[:-1]}}), "files.a.sha256: not 64 digits"),
    "a long digest": (document(files={"a": {"sha256": A + "\n"}}), "files.a.sha256: not 64 digits"),
    "an upper-case digest": (document(files={"a": {"blake3": A.upper()}}), "files.a.blake3: not 64 digits"),
    "a decimal digest": (f"model: m\nfiles:\n  a: {{sha256: {'1' * 64}}}", "line 3, column 15: an integer beyond"),
    "a digest like a float": (f"model: m\nfiles:\n  a: {{sha256: 1e{'1' * 62}}}", "quote it if it is text"),
    "null for a digest": (document(files={"a": {"sha256": A, "blake3": None}}), "files.a.blake3: not 64"),
    "a negative size": (document(files={"a": {"sha256": A, "size": -1}}), "files.a.size: not a number of bytes"),
    "a truth value as size": (document(files={"a": {"sha256": A, "size": True}}), "files.a.size: not a number"),
    "null for a size": (document(files={"a": {"sha256": A, "size": None}}), "files.a.size: not a number"),
    "text as size": (document(files={"a": {"sha256": A, "size": "1"}}), "files.a.size: not a number"),
    "an empty name": (document(files={"": {"sha256": A}}), "not a path within the model"),
    "a name that leads out": (document(files={"../a": {"sha256": A}}), "not a path within the model"),
    "an absolute name": (document(files={"/a": {"sha256": A}}), "not a path within the model"),
    "a backslash": (document(files={"a\\b": {"sha256": A}}), "not a path within the model"),
    "a zero in a name": (document(files={"a\0b": {"sha256": A}}), "not a path within the model"),
    "a long name": (f"model: m\nfiles:\n  ? {'a' * 1025}\n  : {{sha256: {A}}}", "not a path within the model"),
    "a longer key than YAML has": (document(files={"a" * 1025: {"sha256": A}}), "nothing stands here"),
    "a name that no manifest lists": (document(files={".git/config": {"sha256": A}}), "would fit no node"),
    "ignore is no list": (document(ignore="a"), "ignore: not a list"),
    "ignore of a number": (document(ignore=["b", 1]), "ignore.1: not a path"),
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
        ReferenceValueError, match=r"^line 7, column 5: files\.b\.safetensors\.size: not a number"
    ):
        read_yaml(text.encode())


def test_the_most_that_a_manifest_may_have():
    """4,096 files with both digests and a size are within the bounds."""
    files = {f"f{n}": {"sha256": A, "blake3": B, "size": n} for n in range(4096)}
    assert len(read_yaml(document(files=files).encode()).files) == 4096


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300)
@example(b"\xef\xbb\xbf")
@example(b"- ? -")
def test_any_bytes_are_read_or_refused(data):
    """Nothing but our own error, whatever came."""
    for read in (parsed, read_yaml):
        with contextlib.suppress(ReferenceValueError):
            read(data)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%#?,\n \t\\1.~<=@`", max_size=60))
@settings(max_examples=500)
def test_any_marks_are_read_or_refused(text):
    """As above, of the characters to which YAML gives a meaning."""
    with contextlib.suppress(ReferenceValueError):
        parsed(text)


# What JSON escapes in one way only: no pairs of escapes, and DEL, which YAML lacks and JSON leaves as it is.
TEXTS = st.text(
    st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8
)
PLAIN = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | TEXTS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


def deep(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(deep, value.values()), default=0)
    return 1 + max(map(deep, value), default=0) if isinstance(value, list) else 0


@given(VALUES.filter(lambda value: deep(value) <= 8))
@settings(max_examples=200)
def test_json_of_any_value_is_that_value(value):
    """All that JSON has without floats, to the depth that is read."""
    assert parsed(json.dumps(value)) == value


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


def test_the_library_is_never_asked_to_build_objects():
    """Only its parser is used: no `load`, no constructor."""
    source = handwritten.__loader__.get_source(handwritten.__name__)
    assert "yaml.parse(" in source
    assert "yaml.load" not in source
