"""Two versions of a policy: what is the same stays quiet, and nothing that means something else is missed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import pytest
import regorus
from hypothesis import given
from hypothesis import strategies as st

from verifier.config import default_policy
from verifier.policy import admission, bundle, rules
from verifier.policy.admission import Inspection
from verifier.policy.bundle import Bundle
from verifier.policy.diff import Difference, compare
from verifier.references.measured import Document, DocumentFile, DocumentTensor

DEFAULT = bundle.load(default_policy())
HEX, OTHER_HEX = "ab" * 32, "cd" * 32
RULES = """package touchstone

# Of a walk.
value(facts) := 2 if {
	facts.walk == "called" # the best – é
	not facts.malformed
}

value(facts) := 32 if facts.walk == "late"

outcome[name] := {"trust_vector": {"executables": value(facts)}, "reasons": []} if {
	some name, facts in input.checked
	every key, value in facts { key != value }
	some other
	input.checked[other]
}
"""


def inspection(*sources: str, test: str = "") -> Inspection:
    """The rules of files a.rego, b.rego, … and of a test file, read here instead of in a process."""
    engine = regorus.Engine()
    for letter, source in zip("abcdefgh", sources, strict=False):
        engine.add_policy(f"{letter}.rego", source)
    if test:
        engine.add_policy("z_test.rego", test)
    return Inspection((), rules.of(json.loads(engine.get_ast_as_json())))


def rules_diff(old: Inspection, new: Inspection) -> list[Difference]:
    return compare(DEFAULT, old, DEFAULT, new)


def between(old: str, new: str) -> list[Difference]:
    return rules_diff(inspection(old), inspection(new))


def data_diff(old: Any, new: Any) -> list[Difference]:
    nothing = Inspection((), {})
    one, other = (dataclasses.replace(DEFAULT, data=json.dumps(value)) for value in (old, new))
    return compare(one, nothing, other, nothing)


def bundle_diff(old: Bundle, new: Bundle) -> list[Difference]:
    nothing = Inspection((), {})
    return compare(old, nothing, new, nothing)


# Nothing.


async def test_equal_bundles_do_not_differ() -> None:
    """As they are read and inspected."""
    again = bundle.load(default_policy())
    assert compare(DEFAULT, await admission.inspect(DEFAULT), again, await admission.inspect(again)) == []


QUIET = {
    "comments": RULES.replace("# Of a walk.", "# Of walks.\n# And of nothing else.").replace(" – é", ""),
    "no comments": "\n".join(line.partition("#")[0] for line in RULES.splitlines()),
    "comments beyond ASCII": RULES.replace("# Of a walk.", "# ………… \U0001f6b6"),
    "layout": RULES.replace("\t", "        ").replace("{\n", "{\n\n\n").replace(" := ", "   :=  "),
    "line ends": RULES.replace("\n", "\r\n"),
    "order of rules": "\n\n".join([RULES.split("\n\n", maxsplit=1)[0], *reversed(RULES.split("\n\n")[1:])]),
    "a redundant import": RULES.replace("touchstone\n", "touchstone\n\nimport rego.v1\n", 1),
    "an import of nothing new": RULES.replace("touchstone\n", "touchstone\n\nimport data.touchstone\n", 1),
}


@pytest.mark.parametrize("other", QUIET.values(), ids=QUIET)
def test_what_means_the_same_does_not_count(other: str) -> None:
    """Comments, layout, and the order in which rules stand."""
    assert other != RULES
    assert between(RULES, other) == []
    assert between(other, RULES) == []


def test_rule_that_moves_to_another_file_does_not_count() -> None:
    """Its name and its meaning are the same."""
    parts = RULES.split("\n\n")
    two = ("\n\n".join(parts[:2]), "\n\n".join([parts[0], *parts[2:]]))
    assert rules_diff(inspection(RULES), inspection(*two)) == []


def test_helpers_of_tests_do_not_count() -> None:
    """They judge nobody."""
    old, new = (
        "package touchstone_test\n\nhelper := 1\n\ntest_x if true\n",
        "package touchstone_test\n\ntest_x if true\n",
    )
    assert rules_diff(inspection(RULES, test=old), inspection(RULES, test=new)) == []


# Rules.


def test_changed_rule_is_shown_with_its_lines() -> None:
    """And nothing of the rules beside it."""
    (found,) = between(RULES, RULES.replace('"called" #', '"announced" #'))
    assert (found.part, found.name, found.change) == ("rule", "data.touchstone.value", "changed")
    assert changed_lines(found) == [
        '-\tfacts.walk == "called" # the best – é',
        '+\tfacts.walk == "announced" # the best – é',
    ]


def changed_lines(found: Difference) -> list[str]:
    return [line for line in found.text.splitlines() if line[:1] in ("-", "+")]


def test_added_rule_is_shown_with_its_lines() -> None:
    """All of them."""
    (found,) = between(RULES, RULES + "\nmore if {\n\tinput.x\n}\n")
    assert (found.part, found.name, found.change) == ("rule", "data.touchstone.more", "added")
    assert changed_lines(found) == ["+more if {", "+\tinput.x", "+}"]


def test_removed_rule_is_shown_with_its_lines() -> None:
    """All of them."""
    (found,) = between(RULES + "\nmore if {\n\tinput.x\n}\n", RULES)
    assert (found.part, found.name, found.change) == ("rule", "data.touchstone.more", "removed")
    assert changed_lines(found) == ["-more if {", "-\tinput.x", "-}"]


def test_alternative_added_is_a_change() -> None:
    """Of the rule by whose name it is asked."""
    (found,) = between(RULES, RULES + '\nvalue(facts) := 96 if facts.walk == "wrong" \n')
    assert (found.name, found.change) == ("data.touchstone.value", "changed")
    assert changed_lines(found) == ['+value(facts) := 96 if facts.walk == "wrong"']


def test_alternative_removed_is_a_change() -> None:
    """And is shown whole."""
    late = 'value(facts) := 32 if facts.walk == "late"'
    (found,) = between(RULES, RULES.replace(f"{late}\n\n", ""))
    assert (found.name, found.change) == ("data.touchstone.value", "changed")
    assert changed_lines(found) == [f"-{late}"]


def test_rule_moved_to_another_package_is_another() -> None:
    """Its name is not the same."""
    found = between("package a\n\nx := 1\n", "package b\n\nx := 1\n")
    assert [(d.name, d.change) for d in found] == [("data.a.x", "removed"), ("data.b.x", "added")]


def test_changes_are_in_the_order_of_names() -> None:
    """Whatever the order in the files."""
    found = between("package p\n\nc := 1\n\na := 1\n\nb := 1\n", "package p\n\nb := 2\n\na := 2\n\nc := 2\n")
    assert [d.name for d in found] == ["data.p.a", "data.p.b", "data.p.c"]


def test_test_is_shown_as_a_test() -> None:
    """Reviewers look for what is no longer asked."""
    old = "package touchstone_test\n\ntest_x if true\n\ntest_y if true\n"
    found = rules_diff(
        inspection(RULES, test=old), inspection(RULES, test=old.replace("\ntest_y if true\n", ""))
    )
    assert [(d.part, d.name, d.change) for d in found] == [("test", "data.touchstone_test.test_y", "removed")]


MEANINGS = {
    "a number": ("a := 1", "a := 2"),
    "a sign": ("a := 1", "a := -1"),
    "a text": ('a := "x"', 'a := "y"'),
    "a truth value": ("a := true", "a := false"),
    "a comparison": ("a if input.x < 2", "a if input.x <= 2"),
    "an operator": ("a := input.x + 2", "a := input.x - 2"),
    "a negation": ("a if input.x", "a if not input.x"),
    "a field": ("a := input.x", "a := input.y"),
    "a field in brackets": ('a := input["x"]', 'a := input["y"]'),
    "a function": ("a := count(input)", "a := sum(input)"),
    "an argument": ("f(x) := x\na := f(1)", "f(x) := x\na := f(2)"),
    "a default": ("default a := 1", "default a := 2"),
    "an else": ("a := 1 if input.x else := 2", "a := 1 if input.x else := 3"),
    "the order of elses": (
        "a := 1 if input.x else := 2 if input.y else := 3 if input.z",
        "a := 1 if input.x else := 3 if input.z else := 2 if input.y",
    ),
    "a replacement": ("b if input\na if b with input as 1", "b if input\na if b with input as 2"),
    "a set of it": ("a[x] := 1 if some x in input", "a contains x if some x in input"),
    "a list for a set": ("a := [1]", "a := {1}"),
    "a key": ('a := {"x": 1}', 'a := {"y": 1}'),
    "a key that is called line": ('a := {"line": 1}', 'a := {"line": 2}'),
    "a list of such": ('a := [{"line": 1}]', 'a := [{"line": 2}]'),
    "a key of the head": ('a["x"] := 1', 'a["y"] := 1'),
    "every for some": ("a if { some x in input; x }", "a if { every x in input { x } }"),
    "a body": ("a if { input.x; input.y }", "a if { input.x }"),
}


@pytest.mark.parametrize(("old", "new"), MEANINGS.values(), ids=MEANINGS)
def test_what_means_something_else_is_shown(old: str, new: str) -> None:
    """However small it is."""
    (found,) = between(f"package p\n\n{old}\n", f"package p\n\n{new}\n")
    assert (found.name, found.change) == ("data.p.a", "changed")
    assert changed_lines(found)


def test_changed_import_is_shown() -> None:
    """The rule below it reads the same, and means something else."""
    old = "package touchstone\n\nimport data.approved as list\n\na if input.x in list\n"
    assert between(old, old.replace("data.approved", "data.refused")) != []


def test_changed_import_without_another_name_is_shown() -> None:
    """Its last part is its name."""
    old = "package touchstone\n\nimport data.strict.limits\n\na if input.x < limits.most\n"
    assert between(old, old.replace("data.strict", "data.loose")) != []


@pytest.mark.parametrize("value", ['"x"', "`x`", 'f("x")', '{"x"}', '["x"]'])
def test_lines_are_shown_to_their_end(value: str) -> None:
    """As they stand in the file."""
    old = f"package p\n\na := {value}\n\nb := 1\n"
    (found,) = between(old, old.replace("x", "y"))
    assert changed_lines(found) == [f"-a := {value}", f"+a := {value.replace('x', 'y')}"]


def test_lines_behind_letters_of_others_are_shown_right() -> None:
    """A place counts the same whatever stands before it."""
    old = "package p\n\n# é – 模 \U0001f6b6\nb := `é模`\n\na := [1, 2] # ü\n"
    (found,) = between(old, old.replace("[1, 2]", "[1, 3]"))
    assert changed_lines(found) == ["-a := [1, 2]", "+a := [1, 3]"]


async def test_change_is_found_in_bundles_as_they_are_inspected() -> None:
    """From the folder to the difference."""
    files = {**DEFAULT.files}
    files["weights.rego"] = files["weights.rego"].replace(b'facts.read == "right"', b'facts.read != "wrong"')
    new = bundle.of_files(files)
    found = compare(DEFAULT, await admission.inspect(DEFAULT), new, await admission.inspect(new))
    assert [(d.part, d.name, d.change) for d in found] == [("rule", "data.touchstone.file_system", "changed")]
    assert changed_lines(found[0]) == ['-\tfacts.read == "right"', '+\tfacts.read != "wrong"']


# Data.


def test_changed_data_is_shown_by_its_path() -> None:
    """With what it was and what it is."""
    found = data_diff({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}})
    assert found == [Difference("data", "a.b.c", "changed", "1", "3")]


def test_added_data_is_shown_by_its_path() -> None:
    """With what it is."""
    assert data_diff({"a": {}}, {"a": {"b": [1]}}) == [Difference("data", "a.b", "added", after="[1]")]


def test_removed_data_is_shown_by_its_path() -> None:
    """With what it was."""
    assert data_diff({"a": {"b": [1]}}, {"a": {}}) == [Difference("data", "a.b", "removed", before="[1]")]


def test_order_of_names_does_not_count() -> None:
    """It is JSON."""
    assert data_diff({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}) == []


def test_order_of_a_list_counts() -> None:
    """Rules may ask for the first."""
    assert data_diff({"a": [1, 2]}, {"a": [2, 1]}) == [Difference("data", "a", "changed", "[1, 2]", "[2, 1]")]


KINDS = {
    "text for a number": (1, "1"),
    "true for 1": (1, True),
    "false for 0": (0, False),
    "true for 1 in a list": ([1], [True]),
    "false for 0 in a list": ([[0]], [[False]]),
    "true for 1 in an object in a list": ([{"b": 1}], [{"b": True}]),
    "an object for a list": ([], {}),
    "nothing for an object": ({}, None),
    "an object for a number": (1, {"b": 1}),
}


@pytest.mark.parametrize(("old", "new"), KINDS.values(), ids=KINDS)
def test_another_kind_of_value_is_a_change(old: Any, new: Any) -> None:
    """In Rego 1 is not true."""
    assert [(d.name, d.change) for d in data_diff({"a": old}, {"a": new})] == [("a", "changed")]
    assert [(d.name, d.change) for d in data_diff({"a": new}, {"a": old})] == [("a", "changed")]


def test_long_value_is_cut() -> None:
    """What is shown is bounded, and says that it was cut."""
    (found,) = data_diff({"a": "x" * 1000}, {"a": "y" * 1000})
    assert found.before is not None
    assert found.after is not None
    assert len(found.before) == len(found.after) == 200
    assert found.after.endswith("y…")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("pq"), JSON), st.dictionaries(st.sampled_from("pq"), JSON))
def test_data_differs_where_its_json_does(old: dict[str, Any], new: dict[str, Any]) -> None:
    """There is a difference exactly if there is one, and each way round the same ones."""
    found = data_diff(old, new)
    assert bool(found) == (json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True))
    back = {(d.name, d.after, d.before) for d in data_diff(new, old)}
    assert {(d.name, d.before, d.after) for d in found} == back


# Reference values and the manifest.


def with_documents(*documents: Document) -> Bundle:
    return dataclasses.replace(DEFAULT, documents=documents)


ONE = Document(model="acme/tiny", files=(DocumentFile("a", 1, HEX), DocumentFile("b", 2, HEX)))


def test_added_reference_value_is_shown() -> None:
    """By its model, with its digest."""
    found = bundle_diff(DEFAULT, with_documents(ONE))
    assert found == [Difference("reference", "acme/tiny", "added", after=ONE.digest)]


def test_removed_reference_value_is_shown() -> None:
    """By its model, with its digest."""
    found = bundle_diff(with_documents(ONE), DEFAULT)
    assert found == [Difference("reference", "acme/tiny", "removed", before=ONE.digest)]


def test_changed_reference_value_is_shown_with_its_files() -> None:
    """Those that changed, came or went."""
    new = Document(model="acme/tiny", files=(DocumentFile("a", 1, OTHER_HEX), DocumentFile("c", 2, HEX)))
    (found,) = bundle_diff(with_documents(ONE), with_documents(new))
    assert (found.part, found.name, found.change) == ("reference", "acme/tiny", "changed")
    assert (found.before, found.after) == (ONE.digest, new.digest)
    assert found.text.splitlines() == ["-a", "+a", "-b", "+c"]


def test_reference_value_that_differs_in_its_tensors_alone_is_shown() -> None:
    """Walks are asked of them."""
    tensor = DocumentTensor(name="w", dtype="BF16", shape=(2,), size=4)
    (found,) = bundle_diff(
        with_documents(ONE), with_documents(msgspec.structs.replace(ONE, tensors=(tensor,)))
    )
    assert (found.change, found.text) == ("changed", "")


def test_order_of_reference_values_does_not_count() -> None:
    """Nor the file that they are in."""
    other = msgspec.structs.replace(ONE, model="acme/other")
    assert bundle_diff(with_documents(ONE, other), with_documents(other, ONE)) == []


@pytest.mark.parametrize("name", ["name", "version", "author", "description"])
def test_changed_manifest_is_shown(name: str) -> None:
    """Each of its fields, with what it was and what it is."""
    manifest = msgspec.structs.replace(DEFAULT.manifest, **{name: "other"})
    found = bundle_diff(DEFAULT, dataclasses.replace(DEFAULT, manifest=manifest))
    assert found == [Difference("manifest", name, "changed", getattr(DEFAULT.manifest, name), "other")]


def test_parts_are_in_order() -> None:
    """Manifest, rules, data, reference values."""
    manifest = msgspec.structs.replace(DEFAULT.manifest, version="9")
    new = dataclasses.replace(DEFAULT, manifest=manifest, data='{"a": 1}', documents=(ONE,))
    found = compare(DEFAULT, inspection(RULES), new, inspection(RULES.replace("32", "96")))
    parts = [d.part for d in found]
    assert list(dict.fromkeys(parts)) == ["manifest", "rule", "data", "reference"]


def test_notes_do_not_count() -> None:
    """They mean nothing to anybody who is judged."""
    assert bundle_diff(DEFAULT, bundle.of_files({**DEFAULT.files, "README.md": b"New.\n"})) == []
