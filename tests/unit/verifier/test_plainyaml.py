"""The part of YAML that is read: what any two readers could read differently is refused, with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verifier import plainyaml
from verifier.errors import PlainYAMLError
from verifier.plainyaml import parse_yaml


def parsed(text: str | bytes, max_size: int = 1 << 20) -> object:
    return parse_yaml(text.encode() if isinstance(text, str) else text, max_size=max_size).value


def refusal(text: str | bytes) -> str:
    with pytest.raises(PlainYAMLError) as error:
        parsed(text)
    return str(error.value)


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
    "a merge key": ("a:\n  <<: {b: c}", "line 2, column 3: '<<': this is a merge key"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' comes twice"),
    "a key twice, quoted once": ('{a: 1, "a": 2}', "line 1, column 8: the key 'a' comes twice"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: a second document"),
    "no document": ("# nothing", "line 1, column 1: the file is empty"),
    "a float": ("a: 1.5", "line 1, column 4: '1.5': floats are not allowed"),
    "a float with an exponent": ("1e5", "floats are not allowed"),
    "a float without a whole": (".5", "floats are not allowed"),
    "infinity": ("[-.inf]", "line 1, column 2: '-.inf': floats are not allowed"),
    "not a number": (".NaN", "floats are not allowed"),
    "take it for a timestamp": ("2026-01-02", "some readers take it for a timestamp. Quote it"),
    "a timestamp with a time": ("a: 2026-1-2 10:00:00", "some readers take it for a timestamp. Quote it"),
    "yes": ("a: yes", "line 1, column 4: 'yes': some readers take it for a truth value. Quote it"),
    "no": ("a: No", "'No': some readers take it for a truth value"),
    "on": ("on: 1", "line 1, column 1: 'on': some readers take it for a truth value"),
    "off": ("OFF", "some readers take it for a truth value"),
    "y": ("[y]", "some readers take it for a truth value"),
    "another true": ("True", "write true or false"),
    "another null": ("Null", "Write null"),
    "a tilde": ("a: ~", "Write null"),
    "nothing": ("a:", "line 1, column 3: there is no value"),
    "an equals sign": ("=", "a default value"),
    "a zero before": ("010", "readers disagree about this number"),
    "a plus before": ("+1", "readers disagree about this number"),
    "minus zero": ("-0", "readers disagree about this number"),
    "hexadecimal": ("0x1F", "readers disagree about this number"),
    "octal": ("0o17", "readers disagree about this number"),
    "binary": ("0b11", "readers disagree about this number"),
    "underscores": ("1_000", "readers disagree about this number"),
    "to base 60": ("1:30", "to base 60"),
    "more than 64 bits": ("9223372036854775808", "more than 64 bits"),
    "very many digits": ("9" * 10_000, "more than 64 bits"),
    "a number as a key": ("1: a", "line 1, column 1: a key must be text. Quote it"),
    "null as a key": ("null: a", "a key must be text"),
    "a list as a key": ("? [a]\n: b", "line 1, column 3: a key must be text"),
    "not UTF-8": (b"a: b\nc: \xff", "line 2, column 4: the byte is not UTF-8"),
    "UTF-16": ("a: b".encode("utf-16"), "line 1, column 1: the byte is not UTF-8"),
    "a control character": ("a: b\nc: \x07", "line 2, column 4: YAML does not allow this character"),
    "a separator of lines": ("a: b\nc: d\u2028e", "line 2, column 5: only some readers take this separator"),
    "half a character": ('a: "\\ud800"', "line 1, column 4: the text is not Unicode"),
    "an escape beyond all": ('a: "\\UFFFFFFFF"', "not YAML"),
    "a version": ("%YAML 1.1\n---\na: b", "a directive"),
    "a version of many digits": ("%YAML 1." + "9" * 5000 + "\n--- a", "not YAML"),
    "a handle": ("%TAG ! tag:x,2026:\n--- a", "a directive"),
    "not closed": ("a: [b", "line 1, column 6: this is not YAML"),
    "a tab": ("a:\n\tb: c", "line 2, column 1: this is not YAML"),
    "too deep": ("[" * 9 + "]" * 9, "line 1, column 9: maps and lists are nested deeper than 8"),
    "too deep, as a block": ("- " * 9 + "a", "line 1, column 17: maps and lists are nested deeper than 8"),
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
    assert len(parsed("[" + "1, " * 19_999 + "]")) == 19_999
    assert "more than 20000 values" in refusal("[" + "1, " * 20_000 + "]")


def test_too_many_bytes():
    """Looked at before anything else."""
    with pytest.raises(PlainYAMLError, match="11 bytes, and at most 10 are read"):
        parsed("a" * 11, max_size=10)


def test_aliases_of_aliases_cost_nothing():
    """The bomb of nine lists is refused at its first anchor."""
    text = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
    )
    assert "line 1, column 5: an anchor" in refusal(text)


def test_bounds_are_the_readers():
    """Who reads says how deep and how many."""
    assert parse_yaml(b"[[1]]", max_size=5, max_depth=2, max_values=3).value == [[1]]
    with pytest.raises(PlainYAMLError, match="nested deeper than 1"):
        parse_yaml(b"[[1]]", max_size=5, max_depth=1)
    with pytest.raises(PlainYAMLError, match="more than 2 values"):
        parse_yaml(b"[[1]]", max_size=5, max_values=2)


def test_places_are_those_of_keys_and_items():
    """By path; what a reader has to say of a value comes with them."""
    read = parse_yaml(b"a:\n  - b\n  - {c: d}\n", max_size=100)
    assert read.places == {
        (): (0, 0),
        ("a",): (0, 0),
        ("a", 0): (1, 4),
        ("a", 1): (2, 4),
        ("a", 1, "c"): (2, 5),
    }
    assert str(read.error(("a", 1, "c"), "no")) == "line 3, column 6: a.1.c: no"
    assert str(read.error((), "no")) == "line 1, column 1: no"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300)
@example(b"\xef\xbb\xbf")
@example(b"- ? -")
def test_any_bytes_are_read_or_refused(data):
    """Nothing but our own error, whatever came."""
    with contextlib.suppress(PlainYAMLError):
        parsed(data)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%#?,\n \t\\1.~<=@`", max_size=60))
@settings(max_examples=500)
def test_any_marks_are_read_or_refused(text):
    """As above, of the characters to which YAML gives a meaning."""
    with contextlib.suppress(PlainYAMLError):
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


def test_the_library_is_never_asked_to_build_objects():
    """Only its parser is used: no `load`, no constructor."""
    source = plainyaml.__loader__.get_source(plainyaml.__name__)
    assert "yaml.parse(" in source
    assert "yaml.load" not in source
