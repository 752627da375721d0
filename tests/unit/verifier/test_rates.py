"""A hardware class against what walks verified: too slow for it, too fast for it, and where nothing is said."""

from __future__ import annotations

from typing import Any

import pytest

from attester.cose import PrivateKey
from verifier.schemes.context import (
    Context,
    HardwareClass,
    ModelReference,
    Node,
    Session,
    Thresholds,
    WalkRecord,
)
from verifier.schemes.rates import MIN_BYTES, check_class, verified_bytes_per_second

MODEL = "m"
DIGEST = "in force"
NOW_MS = 1_795_000_000_000
GPU = HardwareClass(
    bandwidth=1_000_000_000_000,
    host_link=50_000_000_000,
    allowance_ms=500,
    memory_bytes=100_000_000_000,
    int8_ops=2_000_000_000_000_000,
    bf16_flops=1_000_000_000_000_000,
)
CPU = HardwareClass(bandwidth=1_000_000_000, host_link=None, allowance_ms=10_000)
_KEY = PrivateKey.generate().public


def reference(tensor_bytes: int, information_bytes: int | None = None) -> ModelReference:
    """A reference value of weights of so many bytes."""
    information = tensor_bytes if information_bytes is None else information_bytes
    return ModelReference(digest=DIGEST, files={}, tensor_bytes=tensor_bytes, information_bytes=information)


def walk(ms: int | None, **changes: Any) -> WalkRecord:
    """A right answer by the engine to a call, a minute ago, that took *ms*."""
    fields: dict[str, Any] = {
        "channel": "call",
        "verdict": "right",
        "at_ms": NOW_MS - 60_000,
        "source": "engine",
        "lateness": 100,
        "passes": 1,
        "reference": DIGEST,
        "rows": 32,
        "ms": ms,
    }
    return WalkRecord(**{**fields, **changes})


def context(
    *history: WalkRecord, weights: ModelReference | None = None, hardware: str = "gpu", **thresholds: Any
) -> Context:
    """A node of a class with that history, in a session that asks nothing."""
    return Context(
        now_ms=NOW_MS,
        audience="v",
        skew_s=30,
        session=Session(
            id="s",
            channel="announced",
            nonce=bytes(32),
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + 120_000,
            asked={},
        ),
        node=Node(
            id="n",
            ueid=bytes(17),
            key=_KEY,
            operator="acme",
            models=(MODEL,),
            hardware_class=hardware,
            state="active",
        ),
        references={} if weights is None else {MODEL: weights},
        history={MODEL: history},
        thresholds=Thresholds(3600, 3, {"gpu": GPU, "cpu": CPU}, **thresholds),
    )


WEIGHTS = 100_000_000_000
"""A tenth of a second at the class's bandwidth."""
LIMIT_MS = 500 + 10 * 100
"""The allowance, and ten times the time that the class needs."""


def code(found: Context) -> str | None:
    finding = check_class(found)
    return None if finding is None else finding.code


def slow(count: int = 5, ms: int = LIMIT_MS + 1, **changes: Any) -> Context:
    return context(*[walk(ms, **changes)] * count, weights=reference(WEIGHTS))


def test_five_walks_that_are_all_far_too_slow_contradict_the_class() -> None:
    """It is said how many, how slow, and of which class."""
    finding = check_class(slow())
    assert finding is not None
    assert finding.code == "capabilities.class.contradicted"
    assert finding.detail == "each of 5 walks had less than 10 % of the speed of gpu"


def test_four_are_too_few() -> None:
    """A busy hour is no proof."""
    assert code(slow(4)) is None
    assert code(slow(5)) == "capabilities.class.contradicted"


def test_at_the_limit_nothing_is_said() -> None:
    """To the millisecond."""
    assert code(slow(ms=LIMIT_MS)) is None
    assert code(slow(ms=LIMIT_MS + 1)) == "capabilities.class.contradicted"


def test_one_walk_in_time_speaks_for_the_class() -> None:
    """No device is ever faster than it is."""
    late = [walk(60_000)] * 9
    assert code(context(*late, walk(LIMIT_MS), weights=reference(WEIGHTS))) is None
    assert code(context(walk(LIMIT_MS), *late, weights=reference(WEIGHTS))) is None


def test_passes_take_their_time() -> None:
    """Three passes may take three times as long."""
    assert code(slow(ms=500 + 3 * 1000, passes=3)) is None
    assert code(slow(ms=500 + 3 * 1000 + 1, passes=3)) == "capabilities.class.contradicted"


def test_the_share_is_the_policys() -> None:
    """Half of the class, where the policy says so."""
    history = [walk(701)] * 5
    assert code(context(*history, weights=reference(WEIGHTS))) is None
    found = context(*history, weights=reference(WEIGHTS), contradicted_permille=500)
    finding = check_class(found)
    assert finding is not None
    assert finding.detail == "each of 5 walks had less than 50 % of the speed of gpu"
    assert code(context(*[walk(700)] * 5, weights=reference(WEIGHTS), contradicted_permille=500)) is None


UNCOUNTED = {
    "announced": {"channel": "announced"},
    "of another reference": {"reference": "superseded"},
    "wrong": {"verdict": "wrong"},
    "missed": {"verdict": "missed"},
    "from files": {"source": "file"},
    "wide": {"wide": True},
    "of several models at once": {"ms": None},
}


@pytest.mark.parametrize("changes", UNCOUNTED.values(), ids=UNCOUNTED)
def test_what_does_not_count_neither_slows_nor_hastens(changes: dict[str, Any]) -> None:
    """Four that count and any number that do not are four; nor is any of them a proof of speed."""
    uncounted = {"ms": 60_000, **changes}
    others = [walk(**uncounted)] * 20
    assert code(context(*others, *[walk(60_000)] * 4, weights=reference(WEIGHTS))) is None
    quick = [walk(**{"ms": 1, **changes})] * 20
    found = context(*quick, *[walk(60_000)] * 5, weights=reference(WEIGHTS))
    assert code(found) == "capabilities.class.contradicted"
    assert verified_bytes_per_second(context(*quick, weights=reference(WEIGHTS))) is None


def test_without_a_reference_nothing_is_known() -> None:
    """Nobody knows how much was walked."""
    assert code(context(*[walk(60_000)] * 9)) is None
    assert verified_bytes_per_second(context(walk(1))) is None


def test_an_unknown_class_is_not_doubted() -> None:
    """That it is unknown is said elsewhere."""
    assert code(context(*[walk(60_000)] * 9, weights=reference(WEIGHTS), hardware="abacus")) is None


def test_the_cpu_class_can_be_contradicted_too() -> None:
    """Its bandwidth is a floor."""
    small = reference(1_000_000)
    limit = CPU.allowance_ms + 10
    assert code(context(*[walk(limit)] * 5, weights=small, hardware="cpu")) is None
    found = context(*[walk(limit + 1)] * 5, weights=small, hardware="cpu")
    assert code(found) == "capabilities.class.contradicted"


def fast(information: int, ms: int = 1000, **changes: Any) -> Context:
    hardware = changes.pop("hardware", "gpu")
    passes = changes.pop("passes", 1)
    weights = reference(max(information, WEIGHTS), information)
    twice = [walk(ms, passes=passes)] * 2
    return context(*twice, weights=weights, hardware=hardware, **changes)


def test_more_than_the_data_sheet_exceeds_the_class() -> None:
    """At 115 % it may be the data sheet's rounding; beyond that it is another device."""
    most = GPU.bandwidth * 1150 // 1000
    assert code(fast(most)) is None
    finding = check_class(fast(most + 1))
    assert finding is not None
    assert finding.code == "capabilities.class.exceeded"
    assert finding.detail == f"a walk had {most + 1} bytes/s; gpu has {GPU.bandwidth}"


def test_two_impossible_walks_are_enough() -> None:
    """The second fastest counts: one time may be wrong; and passes are counted."""
    weights = reference(WEIGHTS)
    ordinary = [walk(100)] * 7
    assert code(context(*ordinary, weights=weights)) is None
    assert code(context(walk(86), *ordinary, weights=weights)) is None
    assert code(context(*[walk(86)] * 2, *ordinary, weights=weights)) == "capabilities.class.exceeded"
    assert code(context(*[walk(87, passes=1)] * 2, *ordinary, weights=weights)) is None
    twice = [walk(173, passes=2)] * 2
    assert code(context(*twice, *ordinary, weights=weights)) == "capabilities.class.exceeded"


def test_the_excess_is_the_policys() -> None:
    """Twice the class, where the policy says so."""
    assert code(fast(2 * GPU.bandwidth, excess_permille=2000)) is None
    assert code(fast(2 * GPU.bandwidth + 1, excess_permille=2000)) == "capabilities.class.exceeded"


def test_weights_that_compress_are_counted_by_what_they_hold() -> None:
    """Ten times the bytes of the class in a second, and only half of the class in information."""
    weights = reference(10 * GPU.bandwidth, GPU.bandwidth // 2)
    assert code(context(*[walk(1000)] * 2, weights=weights)) is None
    assert verified_bytes_per_second(context(*[walk(1000)] * 2, weights=weights)) == GPU.bandwidth // 2


def test_a_class_whose_memory_is_as_near_as_the_hosts_has_no_ceiling() -> None:
    """The table's bandwidth is then a floor set by hand."""
    assert code(fast(1000 * CPU.bandwidth, hardware="cpu")) is None


def test_small_models_verify_no_rate() -> None:
    """They fit a cache, and the network takes longer than they do."""
    small = reference(MIN_BYTES - 1)
    assert verified_bytes_per_second(context(*[walk(1)] * 2, weights=small)) is None
    assert code(context(*[walk(1)] * 2, weights=small)) is None
    large = reference(MIN_BYTES)
    assert verified_bytes_per_second(context(*[walk(1)] * 2, weights=large)) == MIN_BYTES * 1000
    assert verified_bytes_per_second(context(walk(1), weights=large)) is None
    large_enough = context(*[walk(1, passes=2)] * 2, weights=large)
    assert code(large_enough) == "capabilities.class.exceeded"


def test_a_small_model_contradicts_a_class_by_the_allowance_alone() -> None:
    """Ten times nothing is nothing: the network is what the allowance is for."""
    small = reference(1000)
    assert code(context(*[walk(500)] * 5, weights=small)) is None
    assert code(context(*[walk(501)] * 5, weights=small)) == "capabilities.class.contradicted"
