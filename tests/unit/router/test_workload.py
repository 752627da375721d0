"""Workloads: what they require is checked when they are read, not when they are needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.errors import ConfigError
from router.config import ApiKey, RouterConfig, load_table
from router.model.errors import WorkloadError
from router.model.operations import OPERATIONS
from router.model.table import MAX_TABLE, read_table, write_table
from router.model.workload import MODEL_CLAIMS, Price, Requirements, Table, Workload

TABLE = """\
# What work requires.
tiers:
  small:
    max_age_s: 600
  large:
    hardware_classes: [h100-80gb, h200-141gb]
    min_memory_bytes: 80000000000
    first_token_p90_ms: 800
    prices:
      acme:
        input: 100
        output: 400
      "*":
        output: 500
    concurrency: 8
workloads:
  chat:
    model: example/large
    tier: large
    operations: [chat/completions]
    default: true
  batch:
    model: example/large
    tier: large
  tiny:
    model: example/tiny
    tier: small
    tokeniser: tiny.json
"""


def read(**changes: Any) -> Workload:
    return msgspec.convert({"model": "m", **changes}, Workload)


def refusal(data: str | bytes) -> str:
    with pytest.raises(ConfigError) as raised:
        read_table(data if isinstance(data, bytes) else data.encode())
    return str(raised.value)


def changed(before: str, after: str) -> str:
    assert TABLE.count(before) == 1
    return TABLE.replace(before, after)


# Requirements.


def test_the_defaults_require_integrity() -> None:
    """A workload of which nothing is said asks for identity, configuration, files and residence."""
    workload = read()
    assert (workload.platform_claims, workload.model_claims, workload.model_assurance) == (
        ("instance-identity", "configuration"),
        ("file-system", "executables"),
        "challenged",
    )


@pytest.mark.parametrize("name", ["platform_claims", "model_claims", "operations"])
def test_an_empty_list_of_required_claims_is_an_error(name: str) -> None:
    """It would let anyone in."""
    with pytest.raises(msgspec.ValidationError):
        read(**{name: []})


@pytest.mark.parametrize("name", ["platform_claims", "model_claims"])
@pytest.mark.parametrize("claim", ["executable", "Executables", "executables "])
def test_an_unknown_claim_is_an_error(name: str, claim: str) -> None:
    """A slip of the pen must not become a claim that nobody checks, or that nobody meets."""
    with pytest.raises(msgspec.ValidationError, match="no trust claim"):
        read(**{name: ["executables", claim]})


@pytest.mark.parametrize("name", ["platform_assurance", "model_assurance"])
@pytest.mark.parametrize("assurance", ["", "Declared", "trusted", "hardware"])
def test_an_unknown_assurance_is_an_error(name: str, assurance: str) -> None:
    """There are four."""
    with pytest.raises(msgspec.ValidationError, match="no assurance"):
        read(**{name: assurance})


@pytest.mark.parametrize("operation", ["", "Embeddings", "images", "chat/completions/"])
def test_an_unknown_operation_is_an_error(operation: str) -> None:
    """Only what the gateway serves."""
    with pytest.raises(msgspec.ValidationError, match="no operation"):
        read(operations=[operation])


def test_an_unknown_key_is_an_error() -> None:
    """A misspelt requirement is not silently none."""
    with pytest.raises(msgspec.ValidationError):
        read(min_memory_byte=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_age_s", 0),
        ("max_age_s", -1),
        ("max_age_s", 86_401),
        ("max_age_s", True),
        ("min_memory_bytes", -1),
        ("min_context", -1),
        ("min_walk_bytes_per_second", -1),
        ("min_tokens_per_second", -1),
        ("first_token_p90_ms", -1),
        ("first_token_p90_ms", 3_600_001),
        ("answer_p99_ms", 0.5),
        ("concurrency", 0),
        ("concurrency", 100_001),
        ("max_operator_share", 0),
        ("max_operator_share", 101),
        ("probation_per_mille", -1),
        ("degraded_per_mille", 1001),
        ("second_is_worth", -1),
        ("prices", {"acme": {"input": -1}}),
        ("prices", {"acme": {"inputs": 1}}),
        ("prices", {"a" * 129: {}}),
        ("prices", {"acme": {"input": 1 << 53}}),
        ("prices_by_hardware", {"": {}}),
        ("prices_by_hardware", {"a" * 129: {}}),
        ("prices_by_hardware", {"h200": {"input": 1}}),
        ("prices_by_hardware", {"h200": {"*": {"input": -1}}}),
        ("price_ceiling", {"output": 1.5}),
        ("typical", {"input": 0}),
        ("model", ""),
        ("model", "m" * 129),
        ("model_claims", "executables"),
        ("model_claims", [""]),
        ("features", "chat"),
    ],
)
def test_a_value_out_of_range_is_an_error(name: str, value: Any) -> None:
    """Numbers have bounds, and lists are lists."""
    with pytest.raises(msgspec.ValidationError):
        read(**{name: value})


def test_more_tries_than_decisions_are_an_error() -> None:
    """Of a thousand decisions, 600 and 500 cannot begin with somebody else."""
    with pytest.raises(msgspec.ValidationError, match="together must be at most 1000"):
        read(probation_per_mille=600, degraded_per_mille=500)


# Prices.

PRICED = read(prices={"acme": {"input": 100, "output": 400}, "*": {"output": 500}, "free": {}})


@pytest.mark.parametrize(
    ("operator", "price"),
    [
        ("acme", Price(100, 400)),
        ("other", Price(0, 500)),
        ("", Price(0, 500)),
        ("*", Price(0, 500)),
        ("free", Price(0, 0)),
    ],
)
def test_an_operator_has_its_price_or_that_of_all_others(operator: str, price: Price) -> None:
    """Also where its own is nothing."""
    assert PRICED.price_of(operator) == price


CLASSED = read(
    prices={"acme": {"output": 1}, "*": {"output": 2}},
    prices_by_hardware={
        "h200": {"acme": {"output": 3}, "*": {"output": 4}},
        "h100": {"*": {"output": 5}},
        "a40": {"beta": {"output": 6}},
    },
)


@pytest.mark.parametrize(
    ("operator", "hardware", "output"),
    [
        ("acme", "h200", 3),
        ("beta", "h200", 4),
        ("acme", "h100", 1),
        ("beta", "h100", 5),
        ("beta", "a40", 6),
        ("gamma", "a40", 2),
        ("beta", "", 2),
        ("", "h200", 4),
        ("acme", "H200", 1),
    ],
)
def test_what_was_agreed_with_an_operator_comes_before_what_holds_for_its_hardware(
    operator: str, hardware: str, output: int
) -> None:
    """And a class comes before what holds for all."""
    assert CLASSED.price_of(operator, hardware).output == output


def test_prices_by_hardware_alone_are_a_table() -> None:
    """A class without a price is free."""
    priced = read(prices_by_hardware={"h200": {"*": {"output": 4}}})
    assert [priced.price_of("a", c).output for c in ("h200", "h100")] == [4, 0]


def test_a_price_for_all_classes_belongs_into_prices() -> None:
    """A class of that name would never be met."""
    with pytest.raises(ValueError, match="what holds for all of them is in prices"):
        read(prices_by_hardware={"*": {"*": {"output": 4}}})


def test_without_a_price_work_is_free() -> None:
    """A table that names some operators says nothing of the others."""
    assert read(prices={"acme": {"input": 1}}).price_of("other") == Price()


def test_a_usual_exchange_costs_what_its_tokens_cost() -> None:
    """Prices are for a million tokens, of either kind."""
    workload = read(typical={"input": 2000, "output": 500})
    assert workload.cost_of(Price(1_000_000, 4_000_000)) == 2000 + 4 * 500


# The table.


def test_a_workload_has_its_tiers_requirements() -> None:
    """All of them, beside what is its own."""
    chat = read_table(TABLE.encode()).workloads["chat"]
    assert (chat.name, chat.model, chat.tier, chat.standing_key, chat.operations) == (
        "chat",
        "example/large",
        "large",
        "large",
        ("chat/completions",),
    )
    assert (chat.hardware_classes, chat.first_token_p90_ms, chat.concurrency, chat.price_of("acme")) == (
        ("h100-80gb", "h200-141gb"),
        800,
        8,
        Price(100, 400),
    )


def test_no_requirement_is_lost_on_the_way_from_tier_to_workload() -> None:
    """Each setting of the tier is the workload's, whatever settings there come to be."""
    tiny = read_table(TABLE.encode()).workloads["tiny"]
    tier = Requirements(max_age_s=600)
    names = Requirements.__struct_fields__
    assert [getattr(tiny, name) for name in names] == [getattr(tier, name) for name in names]


def test_what_a_workload_does_not_say_has_its_usual_value() -> None:
    """All operations, and no tokeniser."""
    workloads = read_table(TABLE.encode()).workloads
    assert (workloads["batch"].operations, workloads["batch"].tokeniser, workloads["tiny"].tokeniser) == (
        tuple(OPERATIONS),
        None,
        "tiny.json",
    )


def test_a_workload_without_a_tier_is_kept_under_its_model() -> None:
    """So that no two models ever share a standing unasked."""
    assert read(model="m").standing_key == "m"


WRONG = {
    "unknown tier": (("tier: small", "tier: tiny"), "line 27, column 5: workloads.tiny.tier: no tier 'tiny'"),
    "two defaults": (
        ("  batch:\n", "  batch:\n    default: true\n"),
        "line 22, column 3: workloads.batch: chat is the default for example/large already",
    ),
    "empty claims": (
        ("max_age_s: 600", "model_claims: []"),
        "line 4, column 5: tiers.small.model_claims: Expected `array` of length >= 1",
    ),
    "unknown claim": (
        ("max_age_s: 600", "model_claims: [executable]"),
        "line 3, column 3: tiers.small: no trust claim 'executable'",
    ),
    "a wrong value": (
        ("concurrency: 8", "concurrency: 0"),
        "line 15, column 5: tiers.large.concurrency: Expected `int` >= 1",
    ),
    "a wrong kind": (
        ("concurrency: 8", 'concurrency: "8"'),
        "line 15, column 5: tiers.large.concurrency: Expected `int`, got `str`",
    ),
    "a wrong value further in": (
        ("        input: 100\n", "        input: -1\n"),
        "line 9, column 5: tiers.large.prices: Expected `int` >= 0",
    ),
    "unknown key of a tier": (
        ("max_age_s: 600", "max_age: 600"),
        "line 3, column 3: tiers.small: Object contains unknown field `max_age`",
    ),
    "unknown key of a workload": (
        ("tokeniser: tiny.json", "tokenizer: tiny.json"),
        "line 25, column 3: workloads.tiny: Object contains unknown field `tokenizer`",
    ),
    "a requirement in a workload": (
        ("tokeniser: tiny.json", "max_age_s: 60"),
        "line 25, column 3: workloads.tiny: Object contains unknown field `max_age_s`",
    ),
    "unknown section": (
        ("workloads:", "others: {}\nworkloads:"),
        "line 16, column 1: others: the only sections are tiers",
    ),
    "no workloads": (("workloads:", "work:"), "line 2, column 1: workloads must have 1 to 1000 entries"),
    "a name that is none": (
        ("  small:", '  "s m":'),
        "line 3, column 3: tiers.s m: a name must have letters, digits",
    ),
    "unknown operation": (
        ("[chat/completions]", "[chat]"),
        "line 17, column 3: workloads.chat: no operation 'chat'",
    ),
    "a key twice": (("max_age_s: 600", "max_age_s: 600\n    max_age_s: 60"), "line 5, column 5: the key"),
    "too many tries": (
        ("max_age_s: 600", "probation_per_mille: 1000"),
        "line 3, column 3: tiers.small: probation_per_mille and degraded_per_mille together must be at most 1000",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_in_a_table_is_said_with_its_place(change: tuple[str, str], message: str) -> None:
    """For a person who has the file open."""
    assert message in refusal(changed(*change))


def test_a_table_is_checked_whole() -> None:
    """Also a tier that no workload is of."""
    unused = changed("workloads:\n", "  unused:\n    max_age_s: 0\nworkloads:\n")
    assert "tiers.unused.max_age_s" in refusal(unused)


@pytest.mark.parametrize(
    "data", ["", "- a", "7", "tiers: {}\nworkloads: {}", "tiers: [", b"\xff\xfe", "null"]
)
def test_what_is_no_table_is_refused_with_a_place(data: str | bytes) -> None:
    """Never with anything but a sentence about the file."""
    assert refusal(data).startswith(("line ", "the file"))


def test_a_table_beyond_the_size_is_refused() -> None:
    """Before anything is made of it."""
    assert "bytes" in refusal(TABLE.encode() + b"#" * MAX_TABLE)


@given(st.integers(0, len(TABLE) - 1), st.text(max_size=3), st.integers(0, 40))
def test_a_table_with_a_slip_is_a_table_or_refused(at: int, put: str, gone: int) -> None:
    """A slip of the pen ends in a table or in a sentence, never in anything else."""
    found = None
    with contextlib.suppress(ConfigError):
        found = read_table((TABLE[:at] + put + TABLE[at + gone :]).encode("utf-8", "surrogatepass"))
    assert found is None or found.workloads


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path: Path) -> None:
    """A configuration has several."""
    path = tmp_path / "workloads.yaml"
    path.write_text(changed("tier: small", "tier: tiny"))
    with pytest.raises(ConfigError, match=r"workloads\.yaml: line 27, column 5: "):
        load_table(path)


def test_a_file_that_is_missing_is_named_with_the_next_step(tmp_path: Path) -> None:
    """People are told what to do."""
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file.*Next: touchstone router init"):
        load_table(tmp_path / "none.yaml")


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        st.text(
            st.characters(min_codepoint=32, max_codepoint=0x2000, exclude_categories=["C", "Z"]),
            min_size=1,
            max_size=64,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_table_to_begin_with_is_read_as_it_was_meant(models: dict[str, str]) -> None:
    """Whatever the models are called: quotes, colons, numbers and words that YAML takes for others."""
    table = read_table(write_table(models, MODEL_CLAIMS).encode())
    assert {name: workload.model for name, workload in table.workloads.items()} == models
    assert {workload.model_claims for workload in table.workloads.values()} == {
        ("file-system", "executables")
    }


def test_a_table_to_begin_with_asks_for_the_claims_that_are_named() -> None:
    """A GGUF walked by file can be routed where the workload says so: router init --model-claims."""
    table = read_table(write_table({"chat": "org/m"}, ["file-system"]).encode())
    assert table.workloads["chat"].model_claims == ("file-system",)


# From request to workload.

ROUTES = read_table(TABLE.encode())


def route(model: str, named: str | None = None, allowed: tuple[str, ...] = (), table: Table = ROUTES) -> str:
    try:
        return table.route(model, named, allowed).name
    except WorkloadError as error:
        return error.code


@pytest.mark.parametrize("model", ["tiny", "example/Tiny", "example/tiny ", "", "example"])
def test_another_model_finds_no_workload(model: str) -> None:
    """Not by the workload's name either, nor by one that is nearly right."""
    assert route(model) == "model_not_found"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, "tiny"),
        ("tiny", "tiny"),
        ("chat", "model_not_found"),
        ("Tiny", "model_not_found"),
        ("", "model_not_found"),
    ],
)
def test_a_name_has_to_be_that_of_a_workload_for_the_model(named: str | None, expected: str) -> None:
    """One for another model is not taken in its place."""
    assert route("example/tiny", named) == expected


@pytest.mark.parametrize(("named", "expected"), [(None, "chat"), ("batch", "batch"), ("chat", "chat")])
def test_of_several_the_one_that_is_named_is_taken_or_the_default(named: str | None, expected: str) -> None:
    """By what the request says, and by the table where it says nothing."""
    assert route("example/large", named) == expected


def test_several_without_a_default_are_ambiguous() -> None:
    """Which of them is meant is not guessed, and the answer names them."""
    table = read_table(changed("    default: true\n", "").encode())
    with pytest.raises(WorkloadError, match="name one: batch, chat") as raised:
        table.route("example/large")
    assert raised.value.code == "ambiguous"


ALLOWED = [
    (("batch",), None, "batch"),
    (("chat", "batch"), None, "chat"),
    (("tiny",), None, "model_not_found"),
    (("tiny",), "chat", "model_not_found"),
    (("batch",), "chat", "model_not_found"),
    (("batch", "chat"), "batch", "batch"),
]


@pytest.mark.parametrize(("allowed", "named", "expected"), ALLOWED)
def test_a_key_reaches_the_workloads_that_it_may_use(allowed, named, expected) -> None:
    """A default that it may not use is not its default, and what it may not use it does not see."""
    assert route("example/large", named, allowed) == expected


def test_a_key_may_not_use_the_only_workload_for_a_model_unless_it_may() -> None:
    """That there is no choice opens nothing."""
    assert route("example/tiny", None, ("chat",)) == "model_not_found"


def test_the_models_are_those_that_there_is_a_workload_for() -> None:
    """Each once, in order."""
    assert ROUTES.models == ("example/large", "example/tiny")


# The configuration beside the table.


def config(**changes: Any) -> RouterConfig:
    return msgspec.convert({"verifier": {"url": "https://v.test"}, **changes}, RouterConfig)


def test_the_table_is_beside_the_configuration() -> None:
    """By its usual name, where none is given."""
    assert config().workloads == "workloads.yaml"


@pytest.mark.parametrize("workloads", [{}, {"a": {"model": "m"}}, "", 7])
def test_workloads_do_not_stand_in_the_configuration(workloads: Any) -> None:
    """There is one place for them."""
    with pytest.raises(msgspec.ValidationError):
        config(workloads=workloads)


@pytest.mark.parametrize(
    "url",
    ["ftp://v.test", "https://v.test/", "https://u@v.test", "https://v.test?x", "v.test", "https://v\n"],
)
def test_a_verifier_is_a_base_url(url: str) -> None:
    """It is also the issuer, compared byte by byte, so it has one form."""
    with pytest.raises(msgspec.ValidationError):
        config(verifier={"url": url})


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, "ab" * 32 + "\n", "secret"])
def test_a_key_digest_is_a_sha256(digest: str) -> None:
    """A key in the clear in its place is an error, not a key that never matches."""
    with pytest.raises(msgspec.ValidationError):
        config(keys=[{"name": "a", "sha256": digest}])


def test_a_key_with_a_digest_is_read() -> None:
    """So that the refusals above are of what is wrong in them."""
    assert config(keys=[{"name": "a", "sha256": "ab" * 32}]).keys == (ApiKey("a", "ab" * 32),)
