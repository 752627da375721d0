"""Laying out Rego: as `opa fmt` does, never a token changed, and nothing to do the second time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import regorus
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.config import default_policy
from verifier.errors import BundleError
from verifier.policy import formatting, repository, rules
from verifier.policy.formatting import lay_out
from verifier.policy.tokens import tokens_of

# No library has `opa fmt`, so this is written by its rules (v1/format/format.go of OPA 1.20), and not recorded.
# Each construct stands here as it leaves it.
AS_OPA = """# METADATA
# title: layout

# A comment of the file.
package lib.layout

# A group of imports.
import data.a.b # with a comment
import data.c

import input.x as y

default value := 0

default other := {"a": [1, 2]}

value := 1

one := 1
two := 2
three if input.z

# A comment above a rule.
# It has two lines.
set contains item if {
	some item in input.items
	not item in {"a", "b"}
}

# It stands apart.

map[key] := item if some key, item in input.items

f(a, [b, c]) := a + b if {
	a == -1
	b == c - 1
	d := [-1, a - 1, (a + b) * 2]

	# A comment in a body.
	count(d) > 2 # and at the end of a line
	e := {
		"a": 1, "b": 2,
		# A comment in an object.
		"c": [
			1,
			2,
		],
		"d": {"e": {1, 2}},
	}
	e.a == 1
	# A comment at the end.
}

g(x) := "big" if x > 10

else := "small" if x > 5

h := 1 if {
	input.a
	input.b
} else := 2 if {
	input.c
	input.d
} else := 3

all if {
	every key, item in input.items {
		key != item
		item in [1, 2]
	}
	every item in {1, 2} { item > 0 }
	contains("abc", "b")
	data.a["b-c"].d[input.n][_] == `raw # "text"`
}

lists := [item | some item in input.items; item > 1]

sets := {item |
	some item in input.items
	item > 1 # a comment in a comprehension
}

objects := {key: item | some key, item in input.items}

union := {1, 2} | {3}

both := ({1, 2} | {3}) & set()

call := concat(
	", ",
	[
		"a",
		"b",
	],
)

raw := `first
  second	# no comment
third`

test_it if {
	f(1, [2, 3]) == 3 with input as {"a": 1}
		with data.a as {"b": 2}
		with input.c as [
			1,
			2,
		]
}

dotted.name.contains := 1

# The end.
"""


def parse(source: str) -> Any:
    engine = regorus.Engine()
    engine.add_policy("a.rego", source)
    (module,) = json.loads(engine.get_ast_as_json())
    return module


def laid_out(source: str) -> str:
    return lay_out("a.rego", source, lambda _, text: parse(text))


def meaning(source: str) -> list[tuple[str, str]]:
    """The rules with the digests of their syntax trees, without places."""
    return [(name, digest) for name, digest, _ in rules.of([parse(source)])["a.rego"]]


def tokens(source: str) -> list[tuple[str, str]]:
    return [(token.kind, token.text) for token in tokens_of("a.rego", source)]


def scrambled(source: str, chance: random.Random) -> str:
    """The same tokens in the same lines, with other blanks between, before and behind them."""
    lines: list[str] = []
    row = -1
    for last, token in zip([None, *tokens_of("a.rego", source)], tokens_of("a.rego", source), strict=False):
        if token.row > row or last is None:
            is_apart = last is not None and token.row > row + 1
            lines += [" " * chance.randrange(3)] * (chance.randint(1, 3) if is_apart else 0)
            if last is not None and last.text in ("{", "[", "(") and not is_apart and chance.random() < 0.3:
                lines.append("")
            lines.append(" \t"[chance.randrange(2)] * chance.randrange(6))
        elif not token.is_glued:
            lines[-1] += " \t"[chance.randrange(2)] * chance.randint(1, 3)
        elif token.text in (",", "]", "}", ":") and last is not None and last.text not in ("|", "-"):
            lines[-1] += " " * chance.randrange(2)
        if token.text.count("\n"):
            head, *rest = token.text.split("\n")
            lines[-1] += head
            lines += rest
        else:
            lines[-1] += token.text
        row = token.end_row
    return "\n".join(
        line if "`" in line or "second" in line else line + " " * chance.randrange(3) for line in lines
    )


def test_what_opa_leaves_alone_is_left_alone() -> None:
    """Each construct, with comments wherever they may stand."""
    assert laid_out(AS_OPA) == AS_OPA


@pytest.mark.parametrize("file", sorted(path.name for path in Path(default_policy()).glob("*.rego")))
def test_default_policy_is_laid_out(file: str) -> None:
    """What we ship looks as authors' policies should."""
    source = (Path(default_policy()) / file).read_text()
    assert laid_out(source) == source


@settings(max_examples=15)
@given(st.integers(0, 1 << 32))
def test_layout_does_not_depend_on_what_was_before(seed: int) -> None:
    """Whatever stands between the tokens of a line comes out the same."""
    assert laid_out(scrambled(AS_OPA, random.Random(seed))) == AS_OPA


PLACES = {
    "no blank line behind the package": ("package a\nx := 1\n", "package a\n\nx := 1\n"),
    "nothing but a package": ("package   a", "package a\n"),
    "many blank lines at the end": ("package a\n\n\n\n", "package a\n"),
    "spaces for tabulators": ("package a\n\nx if {\n  y\n    z\n}\n", "package a\n\nx if {\n\ty\n\tz\n}\n"),
    "signs without spaces": ("package a\n\nx:=1+2*-3\n", "package a\n\nx := 1 + 2 * -3\n"),
    "an object without spaces": (
        'package a\n\nx:={"a":1,"b":[1,2]}\n',
        'package a\n\nx := {"a": 1, "b": [1, 2]}\n',
    ),
    "spaces within brackets": ("package a\n\nx := [ 1 , f( 2 ) ]\n", "package a\n\nx := [1, f(2)]\n"),
    "a body on one line": ("package a\n\nx if {y;z}\n", "package a\n\nx if { y; z }\n"),
    "a comment without a space": ("package a\n\nx := 1 #why   \n", "package a\n\nx := 1 #why\n"),
    "rules close together": (
        "package a\n\nx if {\n\ty\n\tz\n}\nw := 1\nv := 2\n",
        "package a\n\nx if {\n\ty\n\tz\n}\n\nw := 1\nv := 2\n",
    ),
    "a comment close to a rule": (
        "package a\n\nx := 1\n# y\ny := 2\n",
        "package a\n\nx := 1\n\n# y\ny := 2\n",
    ),
    "a comment in a body": (
        "package a\n\nx if {\n\ty\n\t# z\n\tz\n}\n",
        "package a\n\nx if {\n\ty\n\n\t# z\n\tz\n}\n",
    ),
    "blank lines in brackets": (
        "package a\n\nx := [\n\n\t1,\n\n\t2,\n\n]\n",
        "package a\n\nx := [\n\t1,\n\t2,\n]\n",
    ),
    "an else apart": ("package a\n\nx if y\nelse if z\n", "package a\n\nx if y\n\nelse if z\n"),
    "ends of lines as on Windows": ("package a\r\n\r\nx := 1\r\n", "package a\n\nx := 1\n"),
    "with on lines of its own": (
        "package a\n\nx if {\n\ty with input as 1\n\twith data.a as 2\n}\n",
        "package a\n\nx if {\n\ty with input as 1\n\t\twith data.a as 2\n}\n",
    ),
    "two blocks of metadata": (
        "# METADATA\n# title: a\n# METADATA\n# title: b\npackage a\n",
        "# METADATA\n# title: a\n\n# METADATA\n# title: b\npackage a\n",
    ),
    "an operator at the end of a line": (
        "package a\n\nx if {\n\ty ==\n\tz\n}\n",
        "package a\n\nx if {\n\ty == z\n}\n",
    ),
    "a list that begins in the line of its bracket": (
        "package a\n\nx := [1,\n  2, 3,\n  4]\n",
        "package a\n\nx := [\n\t1,\n\t2, 3,\n\t4\n]\n",
    ),
    "a list whose bracket closes later": ("package a\n\nx := [1, 2\n]\n", "package a\n\nx := [1, 2]\n"),
    "an item behind one of several lines": (
        'package a\n\nx := {\n"a": {\n1\n}, "b": 2\n}\n',
        'package a\n\nx := {\n\t"a": {\n\t\t1\n\t},\n\t"b": 2\n}\n',
    ),
    "one item of several lines": (
        "package a\n\nx := f({\n\ta,\n\tb\n})\n",
        "package a\n\nx := f({\n\ta,\n\tb\n})\n",
    ),
    "arguments of a rule": ("package a\n\nf(x,\n  y) := 1\n", "package a\n\nf(\n\tx,\n\ty\n) := 1\n"),
    "parentheses of several lines": ("package a\n\nx := (1 +\n2\n)\n", "package a\n\nx := (1 + 2)\n"),
    "a body that begins in the line of its bracket": (
        "package a\n\nx if { y\n  z }\n",
        "package a\n\nx if {\n\ty\n\tz\n}\n",
    ),
    "a comprehension of several lines": (
        "package a\n\nx := [y | some y in z\n  y > 1]\n",
        "package a\n\nx := [y |\n\tsome y in z\n\ty > 1\n]\n",
    ),
    "a comprehension whose bracket closes later": (
        "package a\n\nx := [y | some y in z\n]\n",
        "package a\n\nx := [y | some y in z]\n",
    ),
    "a comment keeps its line": (
        "package a\n\nx := [1, # one\n2 # two\n]\n",
        "package a\n\nx := [\n\t1, # one\n\t2 # two\n]\n",
    ),
}


@pytest.mark.parametrize(("before", "after"), PLACES.values(), ids=PLACES)
def test_layout(before: str, after: str) -> None:
    assert laid_out(before) == after


KEPT = {
    "no comma after the last item": "package a\n\nx := [\n\t1,\n\t2\n]\n",
    "imports out of order": "package a\n\nimport data.c\nimport data.b\n",
    "a body of one expression": "package a\n\nx if { y }\n",
    "an equals sign": "package a\n\nx = 1\n",
}


@pytest.mark.parametrize("source", KEPT.values(), ids=KEPT)
def test_tokens_that_opa_would_change_are_kept(source: str) -> None:
    """`opa fmt` goes further here; a reviewer of ours sees layout alone."""
    assert laid_out(source) == source


_NAMES = st.sampled_from(["a", "input.b", "data.c", 'data["d-e"]', "f(a, 1)", "x_1"])
_EXPRESSIONS = st.recursive(
    _NAMES | st.sampled_from(["1", "-2", '"#no"', "`r\n`", "true", "set()", "[]", "{}"]),
    lambda e: st.one_of(
        st.lists(e, min_size=1, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(e, min_size=1, max_size=3).map(lambda items: "[\n" + ",\n # c\n".join(items) + "\n]"),
        st.lists(e, min_size=1, max_size=2).map(lambda items: f"{{{','.join(items)}}}"),
        st.tuples(e, e).map(lambda p: f'{{"k":{p[0]}, "l" : {p[1]}}}'),
        st.tuples(e, st.sampled_from(["+", "-", "==", "|", "&", "*", " in "]), e).map(
            lambda p: f"({''.join(p)})"
        ),
        e.map(lambda x: f"[v | some v in {x}]"),
        e.map(lambda x: f"{{v: 1 |\nsome v in {x}\n v}}"),
    ),
    max_leaves=6,
)
_STATEMENTS = st.one_of(
    _EXPRESSIONS,
    _EXPRESSIONS.map(lambda e: f"not f({e})"),
    _EXPRESSIONS.map(lambda e: f"some i, j in {e} # c"),
    _EXPRESSIONS.map(lambda e: f"every v in {e} {{ v }}"),
    _EXPRESSIONS.map(lambda e: f"# c\nx == {e} with input as 1\n   with data.a as 2"),
)
_RULES = st.one_of(
    _EXPRESSIONS.map(lambda e: f"r := {e}"),
    _EXPRESSIONS.map(lambda e: f"r contains {e} if a"),
    st.lists(_STATEMENTS, min_size=1, max_size=3).map(lambda s: "r if {\n" + "\n\n".join(s) + "\n# end\n}"),
    st.lists(_STATEMENTS, min_size=1, max_size=2).map(
        lambda s: "r := 1 if {\n" + "\n".join(s) + "\n}\nelse := 2"
    ),
)


@settings(max_examples=40)
@given(st.lists(_RULES, max_size=3))
def test_any_policy_stays_the_same_policy(items: list[str]) -> None:
    """The same tokens, comments and meaning; and what is laid out stays as it is."""
    source = "package a\n" + "\n".join(items)
    try:
        before = meaning(source)
    except RuntimeError:
        return
    after = laid_out(source)
    assert tokens(after) == tokens(source)
    assert meaning(after) == before
    assert laid_out(after) == after
    assert not any(line != line.rstrip() for line in after.splitlines() if "`" not in line)


@given(st.text(max_size=60) | st.text('{}[]()|,;:=-.#"`\\ \n\tab1', max_size=40))
def test_any_text_is_tokens_or_an_error_of_it(text: str) -> None:
    """No other exception comes out, and nothing but blanks is left out."""
    try:
        found = tokens_of("a.rego", text)
    except BundleError:
        return
    kept = "".join(token.text for token in found).replace(" ", "").replace("\t", "").replace("\n", "")
    assert kept.replace("\r", "") == "".join(text.split(" ")).replace("\t", "").replace("\n", "").replace(
        "\r", ""
    )


@pytest.mark.parametrize("text", ['x := "open', "x := `open", "x := 'a'", "x := $`a`", "é := 1"])
def test_what_is_no_token_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(BundleError, match=r"^a\.rego:2: "):
        tokens_of("a.rego", f"package a\n{text}\n")


def test_source_that_would_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the layout, it never reaches a file."""
    for wrong in ("package a\n\nx := 2\n", "package a\n\n# y\nx := 1\n"):
        monkeypatch.setattr(formatting, "format_source", lambda *_, text=wrong: text)
        with pytest.raises(BundleError, match="cannot be laid out without changing it"):
            laid_out("package a\nx := 1\n")


async def test_sources_are_laid_out_in_a_process_of_their_own() -> None:
    """One that does not parse is named, and the others are laid out all the same."""
    sources = {"a.rego": "package a\nx:=1\n", "b.rego": "package b\nx := {\n", "c.rego": "package c\n\n\n"}
    done, refused = await repository.laid_out(sources)
    assert done == {"a.rego": "package a\n\nx := 1\n", "c.rego": "package c\n"}
    assert list(refused) == ["b.rego"]
    assert refused["b.rego"].startswith("b.rego:3:")
