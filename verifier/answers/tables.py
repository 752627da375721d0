"""
What is known of how answers of true weights differ, and of false ones: tolerances and rates, each measured.  Pure.

`bench.answer_recordings` asks real engines and `bench.answer_rates` counts; fixtures/answer_rates.json has the counts with
their confidence intervals, and docs/answers.md says how to measure another model or engine.  A row is as good as what it was
measured on: one small model, on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from verifier.answers.checks import EngineUsed, Given, Minted


class Rates(NamedTuple):
    """Shares of the answers with a verdict (it agrees or differs) that differ."""

    honest: float
    """At most this share of the answers of true weights: an upper confidence limit, rounded up."""
    cheating: float
    """About this share of the answers of a node that serves the next lower precision, or another model."""


class Table(NamedTuple):
    """Tolerances and rates for answers minted with one engine and given by one of a family."""

    delta: float
    """In nat.  At a position whose margin is not above it, true weights may go either way."""
    same_family: bool
    """Whether the reference's engine and the node's are of one family."""
    text: Rates
    """Of greedy answers, by their text."""
    drawn: Rates | None
    """
    Of answers drawn with a seed, by their text.

    `None`: the same seed gives other tokens in another engine, or beside other requests; only probabilities are compared.
    """
    scored: Rates | None
    """Of answers with log-probabilities, by both."""
    distribution_limit: float | None
    """The greatest mean distance of the distributions (`verifier.answers.judge`); `None`: it is not known."""
    vector_limit: float | None
    """The greatest relative L2 distance of an embedding; `None`: it is not known."""
    vectors: Rates
    measured: bool
    """Whether it was measured for these engines.  If not, a person decides about everything that follows."""
    parted: float
    """At most this share of greedy answers of true weights leaves the minted text somewhere, beside other requests."""


PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "float32": ("float32", "float", "f32", "fp32"),
    "float16": ("float16", "half", "f16", "fp16"),
    "bfloat16": ("bfloat16", "bf16"),
    "int8": ("int8", "q8_0", "w8a8", "w8a16", "gptq-int8"),
    "int4": ("int4", "q4_0", "q4_1", "q4_k", "q4_k_m", "q4_k_s", "w4a16", "gptq", "awq"),
}
"""Precisions of weights, with the names that engines have for them."""
_FLOATS: Final = ("float32", "float16", "bfloat16")

VECTOR_BANDS: Final[Mapping[str, tuple[float, float]]] = {
    "float32": (0.0, 9e-7),
    "float16": (3.4e-4, 1.3e-3),
    "bfloat16": (2.7e-3, 1.05e-2),
    "int8": (2.3e-2, 5.8e-2),
    "int4": (0.24, 0.47),
}
"""
Relative L2 distances of embeddings of rounded weights to those of float32.

Measured on all-MiniLM-L6-v2: 350 sentences with everything rounded, and 480 with the matrices rounded
(`bench.vector_rates`).  A band has both, and the bands do not touch.
"""
VECTOR_LIMITS: Final[Mapping[str, float]] = {
    "float32": 1.7e-5,
    "float16": 1.9e-3,
    "bfloat16": 1.55e-2,
    "int8": 0.118,
}
"""
By the precision of the reference, the greatest distance: the geometric mean of where its band ends and the next begins.

So half-precision arithmetic on true weights passes where the reference is in half precision, and not where it is in
float32.  Below 4 bits there is no next band.
"""
_VECTORS: Final = Rates(0.005, 0.95)
"""0 of 830 embeddings in another batch were above the limit of float32, and all of rounded weights were."""


class _Row(NamedTuple):
    """A measured pair of engines."""

    delta: float
    text: Rates
    drawn: Rates | None
    scored: Rates
    distribution_limit: float
    parted: float


_LLAMA: Final = _Row(
    delta=0.25, text=Rates(0.004, 0.9), drawn=None, scored=Rates(0.004, 0.95), distribution_limit=0.005,
    parted=0.29,
)  # fmt: skip
_VLLM: Final = _Row(
    delta=0.25, text=Rates(0.045, 0.9), drawn=None, scored=Rates(0.045, 0.95), distribution_limit=0.01,
    parted=0.57,
)  # fmt: skip
_ACROSS: Final = _Row(
    delta=0.5, text=Rates(0.02, 0.9), drawn=None, scored=Rates(0.02, 0.95), distribution_limit=0.02,
    parted=0.66,
)  # fmt: skip
_MEASURED: Final[Mapping[tuple[str, str, str], _Row]] = {
    ("llama.cpp", "float", "llama.cpp"): _LLAMA,
    ("llama.cpp", "int8", "llama.cpp"): _LLAMA,
    ("vllm", "float", "vllm"): _VLLM,
    ("llama.cpp", "float", "vllm"): _ACROSS,
    ("vllm", "float", "llama.cpp"): _ACROSS,
}
"""
By the reference's engine, the kind of its precision, and the node's engine: fixtures/answer_rates.json.

llama.cpp computes weights in bfloat16 with activations in float32; requests at a time move its logits by less than 0.12.
Files in 8 bits it computes in integers, and requests at a time change nothing.
vLLM rounds activations to bfloat16, whose steps are 0.125 at the size of usual logits: two steps, and four between the two.
Drawn answers of llama.cpp say nothing: it walks its candidates in their order, in which near ones change places.
No answer of true weights differed; the rates are the upper limits for as many as were asked.
"""
_UNMEASURED: Final = _Row(
    delta=1.0, text=Rates(0.02, 0.6), drawn=None, scored=Rates(0.02, 0.6), distribution_limit=0.05,
    parted=0.8,
)  # fmt: skip
"""For engines that nobody has measured: four times the largest margin at which a measured one has parted."""


PEER_LIMIT: Final = 0.05
"""Of scores of peers (`verifier.answers.peering`): the greatest mean gap that counts as agreeing, nat a token."""
PEER_UNMEASURED: Final = 0.2
"""The same for engines that nobody has measured: four times as much."""
PEER_RATES: Final = Rates(0.09, 0.95)
"""The share of scores above the limit: of true weights at most, and of 4 bits or another model."""
_PEERS_MEASURED: Final = frozenset({("vllm", "vllm"), ("llama.cpp", "vllm")})
"""The engines of the node that answered, and of the one that scored."""


def peer_limit(family: str, by_family: str) -> float:
    """Give the limit for an answer of one engine family, scored by another; an empty one is not known."""
    return PEER_LIMIT if (family.lower(), by_family.lower()) in _PEERS_MEASURED else PEER_UNMEASURED


def table_for(engine: EngineUsed, family: str) -> Table:
    """
    Give the table for answers minted with *engine* and given by an engine of *family*.

    An empty family is one that is not known.
    """
    precision = precision_of(engine.dtype)
    ours, theirs = engine.family.lower(), family.lower()
    kind = "float" if precision in _FLOATS else precision or ""
    row = _MEASURED.get((ours, kind, theirs))
    used = row or _UNMEASURED
    return Table(
        delta=used.delta,
        same_family=ours == theirs,
        text=used.text,
        drawn=used.drawn,
        scored=used.scored,
        distribution_limit=used.distribution_limit,
        vector_limit=None if precision is None else VECTOR_LIMITS.get(precision),
        vectors=_VECTORS,
        measured=row is not None,
        parted=used.parted,
    )


def rates_for(minted: Minted, given: Given, table: Table) -> Rates | None:
    """Give the rates of the kind of check that this was; `None` if its verdict says nothing that can be counted."""
    if minted.text is None:
        return table.vectors
    if minted.tokens and given.tokens:
        return table.scored
    return table.drawn if minted.seeded else table.text


def is_measured(minted: Minted, table: Table) -> bool:
    """Whether the rates of this kind of check were measured: embeddings in whatever engine, texts in each by itself."""
    return minted.text is None or table.measured


def precision_of(dtype: str) -> str | None:
    """Give the precision that an engine's name for it means; `None` if it is not known."""
    name = dtype.strip().lower().removeprefix("torch.")
    return next((precision for precision, names in PRECISIONS.items() if name in names), None)


def precision_at(distance: float) -> str:
    """Say of which precision a distance of embeddings is."""
    for precision, (low, high) in VECTOR_BANDS.items():
        if low / 1.1 <= distance <= high * 1.1:
            return f"as weights in {precision} are from float32"
    return "of no precision that is known"
