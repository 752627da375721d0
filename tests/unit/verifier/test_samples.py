"""The samples: every value that the schema has, every pair, each kind; and what a policy itself names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, product
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from attester import kinds
from attester.kinds import KINDS, Kind
from verifier.policy import contract, samples
from verifier.policy.words import Words, of_policy
from verifier.schemes import gpu
from verifier.schemes.facts import Facts, ModelFacts, PlatformFacts
from verifier.schemes.registry import SCHEMES, Scheme

BY_KIND = {"platform": "PlatformFacts", "model": "ModelFacts", "gpu": "GpuFacts", "unknown": "UnknownFacts"}


@cache
def inputs() -> list[Any]:
    return [json.loads(given) for given in samples.of_types()]


def facts_of(kind: str) -> list[Any]:
    return [facts for given in inputs() for facts in given["checked"].values() if facts["kind"] == kind]


def fixed_values(form: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Any]:
    """The values that a field's schema names."""
    if "$ref" in form:
        yield "an object"
    for option in form.get("anyOf", ()):
        yield from fixed_values(option, definitions)
    yield from form.get("enum", ())
    match form.get("type"):
        case "null":
            yield None
        case "boolean":
            yield from (False, True)


def seen(value: Any) -> Any:
    return "an object" if isinstance(value, dict) else value


def schema_places() -> list[tuple[str, str, Any]]:
    """Each field of each definition with each value that its schema names."""
    schema = contract.input_schema()
    definitions = schema["$defs"]
    return [
        (name, field, value)
        for name in [*BY_KIND.values(), "NodeFacts", "ReferenceFacts"]
        for field, form in definitions[name]["properties"].items()
        for value in fixed_values(form, definitions)
        if field != "kind"
    ]


@pytest.mark.parametrize(("definition", "field", "value"), schema_places(), ids=str)
def test_each_value_of_the_schema_is_asked(definition: str, field: str, value: Any) -> None:
    """The schema is made from the types by msgspec, and read here without the module that makes the samples."""
    match definition:
        case "NodeFacts":
            found = [given["node"] for given in inputs()]
        case "ReferenceFacts":
            found = [r for given in inputs() for r in given["references"].values()]
        case _:
            found = facts_of({name: kind for kind, name in BY_KIND.items()}[definition])
    properties = contract.input_schema()["$defs"][definition]["properties"]
    absent = properties[field].get("default", ...)
    assert any(seen(facts.get(field, absent)) == value for facts in found)


@pytest.mark.parametrize(
    ("kind", "count"), [("model", 10 * 7 * 13 * 3 * 3), ("gpu", 2 * 2 * 4 * 2), ("unknown", 1)]
)
def test_each_combination_of_facts_is_asked(kind: str, count: int) -> None:
    """A policy that is total on single changes may fail on two or three together."""
    assert len({json.dumps(facts, sort_keys=True) for facts in facts_of(kind)}) == count


def test_each_combination_of_the_platforms_fixed_facts_is_asked() -> None:
    """With and without a runtime and capabilities, which have values of their own."""
    fixed = (
        "malformed",
        "node_state",
        "endpoint",
        "class_matches",
        "class_doubted",
        "runtime",
        "capabilities",
        "exposure",
    )
    found = {tuple(seen(facts.get(name)) for name in fixed) for facts in facts_of("platform")}
    assert len(found) == 2 * 3 * 3 * 2 * 2 * 2 * 2 * 4


def test_each_pair_of_facts_of_two_kinds_is_asked() -> None:
    """What the platform says beside what a model says, and two models beside each other."""
    for first, second in combinations(("platform", "model/a", "model/b/c-1", "gpu/0"), 2):
        both = [g["checked"] for g in inputs() if first in g["checked"] and second in g["checked"]]
        for one, other in product(fixed_fields(first), fixed_fields(second)):
            pairs = {(value_of(c[first], one), value_of(c[second], other)) for c in both}
            values = [{value_of(c[name], f) for c in both} for name, f in ((first, one), (second, other))]
            assert pairs == set(product(*values)), (first, one, second, other)


def fixed_fields(submod: str) -> list[str]:
    definitions = contract.input_schema()["$defs"]
    properties = definitions[BY_KIND[kinds.kind_of(submod) or ""]]["properties"]
    return [
        name for name, form in properties.items() if name != "kind" and list(fixed_values(form, definitions))
    ]


def value_of(facts: Mapping[str, Any], field: str) -> Any:
    return seen(facts.get(field, "absent"))


SHAPES: dict[str, Any] = {
    "platform alone": lambda g: set(g["checked"]) == {"platform"},
    "one model": lambda g: sum(name.startswith("model/") for name in g["checked"]) == 1,
    "two models that differ": lambda g: (
        len({json.dumps(f) for f in g["checked"].values() if f["kind"] == "model"}) > 1
    ),
    "no reference value": lambda g: not g["references"] and "model/a" in g["checked"],
    "reference values of two models": lambda g: len(g["references"]) == 2,
    "an unknown kind whose name begins as a model's": lambda g: (
        g["checked"].get("model/") == {"kind": "unknown"}
    ),
    "an empty string": lambda g: g["node"]["operator"] == "",
    "an empty map": lambda g: (g["checked"]["platform"]["runtime"] or {}).get("arguments") == {},
    "a version that is no semantic version": lambda g: (
        (g["checked"]["platform"]["runtime"] or {}).get("version") == "-"
    ),
    "an absent fact": lambda g: "exposure" not in g["checked"]["platform"],
    "no list": lambda g: "features" not in (g["checked"]["platform"]["capabilities"] or {"features": 1}),
    "a list": lambda g: (g["checked"]["platform"]["capabilities"] or {}).get("features"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_shape_is_asked(shape: Any) -> None:
    """Several models, none, no references, absent fields, empty strings and lists."""
    assert any(shape(given) for given in inputs())


def test_samples_are_bounded_and_no_two_are_equal() -> None:
    """Publishing a policy stays quick."""
    made = samples.of_types()
    assert len(set(made)) == len(made) < 3000
    assert max(map(len, made)) < 8192


def test_samples_are_always_the_same() -> None:
    """A policy is not refused by chance."""
    before = samples.of_types()
    samples._of_types.cache_clear()
    assert samples.of_types() == before


class Newer(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="model", omit_defaults=True):
    """`model` with a fact that nobody knew when the samples were written."""

    manifest: Literal["equal", "differs"]
    mood: Annotated[Literal["good", "bad", "strange"], Meta(description="A new fact.")]
    note: str | None = None
    numbers: tuple[int, ...] = ()


class FanFacts(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="fan"):
    """A new kind."""

    turns: bool


def test_a_new_fact_is_asked_without_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its values, beside each value of the others; so is text of which there is no end."""
    monkeypatch.setitem(SCHEMES, "model", Scheme(check=gpu.check, facts=Newer, malfunction=("hardware",)))
    found = [
        f for g in map(json.loads, samples.of_types()) for f in g["checked"].values() if f["kind"] == "model"
    ]
    assert {(f["manifest"], f["mood"]) for f in found} == set(
        product(["equal", "differs"], ["good", "bad", "strange"])
    )
    assert {"", None} < {f.get("note") for f in found}
    assert {tuple(f.get("numbers", ())) for f in found} > {()}


def test_a_new_kind_is_asked_without_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the others, and alone with the platform."""
    monkeypatch.setitem(KINDS, "fan", Kind("fan", (), KINDS["gpu"].members))
    monkeypatch.setitem(SCHEMES, "fan", Scheme(check=gpu.check, facts=FanFacts, malfunction=("hardware",)))
    made = [json.loads(given)["checked"] for given in samples.of_types()]
    assert {c["fan/0"]["turns"] for c in made if "fan/0" in c} == {True, False}
    assert any("fan/0" in c and "model/a" in c for c in made)


def test_a_type_of_which_no_value_is_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its author adds examples."""

    class Odd(Facts, Struct, frozen=True, kw_only=True, tag_field="kind", tag="model"):
        form: Annotated[str, Meta(pattern="^[A-Z]{9}$")]

    monkeypatch.setitem(SCHEMES, "model", Scheme(check=gpu.check, facts=Odd, malfunction=("hardware",)))
    with pytest.raises(NotImplementedError, match="examples"):
        samples.of_types()


def test_the_facts_of_today_are_closed_or_have_samples() -> None:
    """Both kinds with many facts."""
    for facts in (PlatformFacts, ModelFacts):
        assert msgspec.inspect.type_info(facts).fields  # type: ignore[attr-defined]  # it is a StructType


DATA = {
    "approved_engines": {"vllm": {"versions": ["0.11.0"], "weak": ["0.10.2"]}},
    "forbidden_arguments": {"trust_remote_code": [True]},
    "forbidden_packages": {"litellm": ["1.82.7"]},
    "thresholds": {"walk_max_age_s": 3600},
    "ar4si": {"hardware": {"genuine": 2}},
}
GOOD = {
    "model": {"manifest": "equal"},
    "platform": {"malformed": False, "class_matches": True, "runtime": None},
}


def worded(words: Words) -> list[Any]:
    return [json.loads(given) for given in samples.of_words(words, GOOD)]


def test_an_engine_and_its_version_meet() -> None:
    """What the data approves, and what it calls weak: no rule about them is reached otherwise."""
    made = worded(of_policy([], [], json.dumps(DATA)))
    runtimes = [given["checked"]["platform"]["runtime"] for given in made]
    assert {("vllm", "0.11.0"), ("vllm", "0.10.2")} <= {(r["engine"], r["version"]) for r in runtimes}
    assert any(r["arguments"].get("trust_remote_code") is True for r in runtimes)
    assert any(r["packages"].get("litellm") == "1.82.7" for r in runtimes)


def test_the_rest_is_as_good_as_it_may_be() -> None:
    """What a policy says of an engine may depend on that."""
    for given in worded(of_policy(["vllm"], [7], "{}")):
        assert given["checked"]["platform"]["class_matches"] is True
        assert given["checked"]["model/a"]["manifest"] == "equal"


def test_numbers_are_asked_with_their_neighbours() -> None:
    """Where a rule has < and another >, nothing has =."""
    made = worded(of_policy([], [80], "{}"))
    found = {given["checked"]["platform"]["capabilities"]["memory_bytes"] for given in made}
    assert {79, 80, 81} <= found


def test_what_is_the_verifiers_own_is_no_word() -> None:
    """Thresholds and the values of claims."""
    words = of_policy([], [], json.dumps(DATA))
    assert "walk_max_age_s" not in words.strings
    assert 2 not in words.numbers


def test_inputs_of_words_are_bounded() -> None:
    """Data may have any number of versions."""
    data = {"approved": {f"engine-{n}": {"versions": [f"{n}.{m}" for m in range(20)]} for n in range(50)}}
    assert len(worded(of_policy([], [], json.dumps(data)))) <= samples.MAX_OF_WORDS
