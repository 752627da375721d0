"""Devices as nodes declare them: held against the class and against walks, and never affirming."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from attester.errors import ClaimError
from attester.evidence import Benchmark, Inventory, Measure
from attester.kinds import read_submod, write_submod
from tests.unit.verifier.test_rates import GPU, context, reference, walk
from verifier.config import default_policy
from verifier.policy import bundle
from verifier.policy.engine import Limits, opened
from verifier.schemes import gpu
from verifier.schemes.context import Context, Submods
from verifier.schemes.findings import DECLARED, CheckedSubmod
from verifier.schemes.rates import MIN_BYTES
from verifier.trust import Tier, tier_of

NAME = "gpu/0"


def inventory(memory: int = 99_000_000_000, **changes: Any) -> Inventory:
    return Inventory(**{"model": "X1", "uuid": "GPU-1", "memory_bytes": memory, **changes})


def benchmark(**medians: int) -> Benchmark:
    measures = tuple(
        Measure(name=name.replace("_", "-"), unit="u/s", median=median, spread=0, repeats=20, warm_up=3)
        for name, median in (medians or {"memory_copy": 900_000_000_000}).items()
    )
    return Benchmark(device="cuda:0: X1", at=1, code="1", versions={}, measures=measures)


def check(claims: dict[str, Any], found: Context | None = None) -> CheckedSubmod:
    return gpu.check(NAME, Submods({NAME: claims}, {}), found or context())


def codes(checked: CheckedSubmod) -> list[str]:
    return [finding.code for finding in checked.findings]


GOOD = {"inventory": inventory(), "benchmark": benchmark()}


def test_a_plausible_device() -> None:
    """Nothing is found, everything is shown, and it stays the node's word."""
    checked = check(GOOD)
    assert codes(checked) == []
    assert msgspec.to_builtins(checked.facts) == {
        "kind": "gpu",
        "malformed": False,
        "named": True,
        "benchmark": "plausible",
        "memory_fits": True,
    }
    assert checked.assurance == DECLARED
    assert checked.attester_claims["inventory"]["uuid"] == "GPU-1"
    assert checked.attester_claims["benchmark"].keys() == {"at", "code"}
    assert checked.devices == ("GPU-1",)


def test_nothing_said_of_a_device() -> None:
    """Both are missing, and nobody is blamed."""
    checked = check({})
    assert codes(checked) == ["gpu.inventory.missing", "gpu.benchmark.missing"]
    assert (checked.facts.named, checked.facts.benchmark) == (False, "missing")
    assert checked.facts.memory_fits is True
    assert checked.devices == ()
    assert checked.attester_claims == {}


def test_one_of_the_two_is_missing() -> None:
    """Each has its own code."""
    assert codes(check({"inventory": inventory()})) == ["gpu.benchmark.missing"]
    assert codes(check({"benchmark": benchmark()})) == ["gpu.inventory.missing"]


@pytest.mark.parametrize(
    ("memory", "fits"),
    [
        (GPU.memory_bytes * 800 // 1000, True),
        (GPU.memory_bytes * 800 // 1000 - 1, False),
        (GPU.memory_bytes * 1050 // 1000, True),
        (GPU.memory_bytes * 1050 // 1000 + 1, False),
        (0, False),
    ],
)
def test_memory_is_that_of_the_class(memory: int, *, fits: bool) -> None:
    """Less what the driver keeps; a byte beyond either bound is another card."""
    checked = check({"inventory": inventory(memory), "benchmark": benchmark()})
    assert checked.facts.memory_fits is fits
    assert codes(checked) == ([] if fits else ["gpu.inventory.memory"])
    if not fits:
        (finding,) = checked.findings
        assert (finding.expected, finding.actual) == ("80000000000 to 105000000000", str(memory))


@pytest.mark.parametrize(
    ("measure", "ceiling"),
    [
        ("memory_copy", GPU.bandwidth),
        ("matmul_int8", GPU.int8_ops),
        ("matmul_bf16", GPU.bf16_flops),
        ("host_to_device", GPU.host_link),
    ],
)
def test_a_rate_beyond_the_class_is_implausible(measure: str, ceiling: int) -> None:
    """Up to 115 % is the data sheet's rounding."""
    most = ceiling * 1150 // 1000
    assert codes(check({**GOOD, "benchmark": benchmark(**{measure: most})})) == []
    checked = check({**GOOD, "benchmark": benchmark(**{measure: most + 1})})
    assert codes(checked) == ["gpu.benchmark.implausible"]
    assert checked.facts.benchmark == "implausible"
    assert (
        checked.findings[0].detail
        == f"{measure.replace('_', '-')} is {most + 1} u/s; the class has {ceiling}"
    )


def test_each_implausible_measure_is_said() -> None:
    """And one plausible one does not redeem the others."""
    run = benchmark(memory_copy=1 << 60, matmul_int8=1, matmul_bf16=1 << 60, matmul_fp32=1 << 60)
    assert codes(check({**GOOD, "benchmark": run})) == ["gpu.benchmark.implausible"] * 2


def test_the_excess_is_the_policys() -> None:
    """Twice the class, where the policy says so."""
    run = benchmark(memory_copy=2 * GPU.bandwidth)
    assert codes(check({**GOOD, "benchmark": run}, context(excess_permille=2000))) == []


def test_measures_that_the_table_does_not_bound_are_not_judged() -> None:
    """Nobody knows what a step of decoding may reach."""
    run = benchmark(decode_1=1 << 60, device_to_host=1 << 60, matmul_fp32=1 << 60)
    assert codes(check({**GOOD, "benchmark": run})) == []


def test_the_cpu_class_has_no_ceilings() -> None:
    """Its numbers are floors, and any memory will do."""
    run = benchmark(memory_copy=1 << 60, matmul_int8=1 << 60, matmul_bf16=1 << 60, host_to_device=1 << 60)
    checked = check({"inventory": inventory(1), "benchmark": run}, context(hardware="cpu"))
    assert codes(checked) == []
    assert checked.facts.benchmark == "plausible"


def test_an_unknown_class_bounds_nothing() -> None:
    """That it is unknown is said of the platform."""
    run = benchmark(memory_copy=1 << 60)
    checked = check({"inventory": inventory(1), "benchmark": run}, context(hardware="abacus"))
    assert codes(checked) == []


def verified(rate: int) -> Context:
    """A node whose walks have verified so many bytes a second."""
    return context(*[walk(1000)] * 2, weights=reference(rate), hardware="cpu")


def test_a_rate_far_above_what_walks_verified_is_a_boast() -> None:
    """Ten times is the bound; a byte more is said."""
    rate = 2 * MIN_BYTES
    assert codes(check({**GOOD, "benchmark": benchmark(memory_copy=10 * rate)}, verified(rate))) == []
    checked = check({**GOOD, "benchmark": benchmark(memory_copy=10 * rate + 1)}, verified(rate))
    assert codes(checked) == ["gpu.benchmark.boast"]
    assert checked.facts.benchmark == "boast"
    assert checked.findings[0].detail == f"memory-copy is {10 * rate + 1} u/s; walks verified {rate}"


def test_a_boast_needs_something_verified() -> None:
    """Small models verify nothing, nor do no walks at all."""
    run = {**GOOD, "benchmark": benchmark(memory_copy=1 << 60)}
    assert codes(check(run, verified(MIN_BYTES - 1))) == []
    assert codes(check(run, context(hardware="cpu"))) == []


def test_only_memory_is_held_against_walks() -> None:
    """A walk of few rows says nothing of arithmetic."""
    run = benchmark(matmul_int8=1 << 60, matmul_bf16=1 << 60, memory_copy=1)
    assert codes(check({**GOOD, "benchmark": run}, verified(MIN_BYTES))) == []


def test_implausible_outweighs_a_boast() -> None:
    """Both are found; the fact is the worse one."""
    found = context(*[walk(1000)] * 2, weights=reference(MIN_BYTES))
    checked = check({**GOOD, "benchmark": benchmark(memory_copy=1 << 60)}, found)
    assert codes(checked) == ["gpu.benchmark.implausible", "gpu.benchmark.boast"]
    assert checked.facts.benchmark == "implausible"


BROKEN: dict[str, Any] = {
    "no uuid": {-80006: {"model": "X1", "memory_bytes": 1}},
    "negative memory": {-80006: {"model": "X1", "uuid": "GPU-1", "memory_bytes": -1}},
    "another language": {-80006: {"model": "Ж", "uuid": "GPU-1", "memory_bytes": 1}},
    "an unknown field": {-80006: {"model": "X1", "uuid": "GPU-1", "memory_bytes": 1, "x": 1}},
    "no measures": {-80007: {"device": "", "at": 1, "code": "1", "versions": {}, "measures": []}},
    "a claim of another submodule": {-80004: {"answer": bytes(32), "micros": 1}},
    "no map": [],
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_malformed_device(raw: Any) -> None:
    """Said once, without a second finding that something is missing."""
    with pytest.raises(ClaimError) as refused:
        read_submod(NAME, raw)
    checked = gpu.check(NAME, Submods({}, {NAME: refused.value}), context())
    assert codes(checked) == ["evidence.claims.malformed"]
    assert checked.facts.malformed is True
    assert checked.devices == ()


def test_what_is_shown_is_what_was_signed() -> None:
    """Through evidence and back."""
    again = read_submod(NAME, write_submod(GOOD))
    assert check(dict(again)) == check(GOOD)


@pytest.fixture
async def engine():
    async with opened(bundle.load(default_policy()), Limits(1, 10)) as pool:
        yield pool


async def test_it_is_never_affirming(engine) -> None:
    """Whatever the node says, the best that it comes to is a warning; the evidence carries no more."""
    found = {
        "good": check(GOOD),
        "silent": check({}),
        "unmeasured": check({"inventory": inventory()}),
        "unnamed": check({"benchmark": benchmark()}),
        "another card": check({**GOOD, "inventory": inventory(1)}),
        "implausible": check({**GOOD, "benchmark": benchmark(memory_copy=1 << 60)}),
        "boast": check({**GOOD, "benchmark": benchmark(memory_copy=1 << 60)}, verified(MIN_BYTES)),
        "malformed": gpu.check(NAME, Submods({}, {NAME: ClaimError("inventory", "x")}), context()),
    }
    values = {}
    for what, checked in found.items():
        assert checked.may_affirm == {}
        facts = msgspec.to_builtins(checked.facts)
        given = {"checked": {NAME: facts}, "node": {"operator": "a", "state": "active"}}
        outcome = await engine.evaluate(msgspec.json.encode(given))
        values[what] = outcome[NAME]["trust_vector"]["hardware"]
    assert values == {
        "good": -33,
        "silent": 0,
        "unmeasured": 0,
        "unnamed": 0,
        "another card": 96,
        "implausible": 96,
        "boast": -34,
        "malformed": 96,
    }
    assert Tier.AFFIRMING not in {tier_of(value) for value in values.values()}
