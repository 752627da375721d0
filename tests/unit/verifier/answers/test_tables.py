"""The tables follow from what was measured, and what was not measured is treated as such."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from bench.answer_rates import clopper_pearson
from bench.answers import simulate
from fixtures.judged import engine, given, minted, token
from verifier.answers import tables

RATES = json.loads((Path(__file__).parents[4] / "fixtures" / "answer_rates.json").read_text())
DTYPES = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "smollm2": "bfloat16",
}


def table_of(pair: dict[str, Any]) -> tables.Table:
    reference = pair["reference"]
    used = engine(reference["engine"], dtype=DTYPES[reference["file"]])
    return tables.table_for(used, pair["node"]["engine"])


GREEDY = [pair for pair in RATES["pairs"] if pair["node"]["temperature"] == 0]
MEASURED = [pair for pair in GREEDY if table_of(pair).measured]


def test_honest_rates_are_not_below_what_was_measured() -> None:
    """The upper limits (95 %) of all honest answers of a row together."""
    pooled: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for pair in MEASURED:
        if pair["honest"]:
            table = table_of(pair)
            seen = pair[f"delta {table.delta}"]["differs"]
            pooled[table.delta, table.text.honest][0] += seen["hits"]
            pooled[table.delta, table.text.honest][1] += seen["of"]
    assert pooled
    for (_, honest), (hits, of) in pooled.items():
        assert clopper_pearson(hits, of)[1] <= honest


@pytest.mark.parametrize("pair", MEASURED, ids=lambda pair: f"{pair['run']} by {pair['mintings'][0]}")
def test_limits_are_between_honest_and_cheating(pair: dict[str, Any]) -> None:
    """No honest answer is beyond δ or the limit of distributions; of 4-bit weights and another model, all are."""
    table = table_of(pair)
    limit = table.distribution_limit
    assert limit is not None
    if pair["honest"]:
        assert pair[f"delta {table.delta}"]["differs"]["hits"] == 0
        assert pair["least delta"] <= table.delta
        assert pair["distance"]["largest"] <= limit
    elif pair["node"]["file"] in ("q4_0", "pruned"):
        assert pair[f"delta {table.delta}"]["differs"]["rate"] >= table.text.cheating
        assert pair["distance"]["least"] > limit


def test_drawn_answers_of_honest_nodes_part() -> None:
    """So their texts are not compared."""
    warm = [pair for pair in RATES["pairs"] if pair["node"]["temperature"] > 0 and pair["honest"]]
    assert warm
    for pair in warm:
        assert pair["parted"]["rate"] > 0.5
        assert table_of(pair).drawn is None


@pytest.mark.parametrize(("ours", "theirs"), [("other", "other"), ("llama.cpp", ""), ("llama.cpp", "other")])
def test_what_was_not_measured_is_wide_and_says_so(ours: str, theirs: str) -> None:
    """Also if the node's engine is not known."""
    table = tables.table_for(engine(ours), theirs)
    assert not table.measured
    assert table.drawn is None
    assert table.delta >= max(
        tables.table_for(engine(a), b).delta for a in ("llama.cpp", "vllm") for b in ("llama.cpp", "vllm")
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch.bfloat16", "bfloat16"), ("BF16", "bfloat16"), ("F32", "float32"), ("half", "float16"), ("Q8_0", "int8"),
     ("Q4_K_M", "int4"), ("awq", "int4"), ("auto", None), ("", None)],
)  # fmt: skip
def test_names_of_precisions(name: str, precision: str | None) -> None:
    """As engines write them."""
    assert tables.precision_of(name) == precision


def test_each_kind_of_check_has_its_rates() -> None:
    """Embeddings, texts with and without probabilities, drawn ones."""
    table = tables.table_for(engine(), "llama.cpp")
    text, scored = given("x"), given("x", tokens=(token("x"),))
    assert tables.rates_for(minted(text=None, tokens=None), text, table) == table.vectors
    assert tables.rates_for(minted(), text, table) == table.text
    assert tables.rates_for(minted(), scored, table) == table.scored
    assert tables.rates_for(minted(seeded=True), text, table) is None
    assert tables.rates_for(minted(seeded=True), scored, table) == table.scored


def test_embeddings_are_measured_in_whatever_engine() -> None:
    """The bands are of precisions."""
    table = tables.table_for(engine("other", dtype="float32"), "other")
    assert tables.is_measured(minted(text=None, tokens=None), table)
    assert not tables.is_measured(minted(), table)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("llama.cpp", "llama.cpp"), ("vllm", "vllm"), ("llama.cpp", "vllm")]
)
def test_no_honest_node_is_accused_in_a_million_simulated_checks(ours: str, theirs: str) -> None:
    """2,000 nodes, 500 checks each, at the highest rate that the table allows for; and a cheat would be found."""
    table = tables.table_for(engine(ours), theirs)
    assert table.measured
    for rates in (table.text, table.scored, table.vectors):
        assert rates is not None
        assert simulate(rates, rates.honest) == 0
        assert simulate(rates, 0.5, nodes=100) == 100


def test_intervals_of_clopper_and_pearson() -> None:
    """By their closed forms, and by a table (3 of 10)."""
    assert clopper_pearson(0, 100) == pytest.approx((0.0, 1 - 0.025**0.01))
    assert clopper_pearson(100, 100) == pytest.approx((0.025**0.01, 1.0))
    assert clopper_pearson(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)
