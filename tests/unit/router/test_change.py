"""A change of the table of workloads: who is in the share, what differs, and which table is in force."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choose.decision import Decision, decide, replay
from router.choose.difference import KINDS, find_difference
from router.model.change import Settings, Stage, is_shared, unit_of
from router.model.table import read_table
from router.model.workload import Price, Table, Workload
from router.state.changes import resolve
from router.state.fleet import Fleet
from router.store.changes import Change
from tests.unit.router.support import MODEL, Given, view


@given(
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=1, max_size=40),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_who_is_in_a_share_stays_in_it_while_it_grows(
    secret: bytes, unit: bytes, one: int, other: int
) -> None:
    small, large = sorted((one, other))
    assert is_shared(secret, unit, large) or not is_shared(secret, unit, small)
    assert not is_shared(secret, unit, 0)
    assert is_shared(secret, unit, 100)


def test_a_share_is_as_large_as_it_says() -> None:
    many = sum(is_shared(b"secret", str(number).encode(), 20) for number in range(5000))
    assert 900 < many < 1100


def test_who_does_not_know_the_secret_cannot_tell() -> None:
    units = [str(number).encode() for number in range(200)]
    one, other = ([is_shared(secret, unit, 50) for unit in units] for secret in (b"one", b"other"))
    assert 70 < sum(a == b for a, b in zip(one, other, strict=True)) < 130


def chat(*said: str, **given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": each} for each in said], **given}


def test_a_conversation_stays_where_it_began() -> None:
    begun = unit_of("conversation", "ada", chat("hello"))
    assert unit_of("conversation", "ada", chat("hello", "and then?", temperature=1)) == begun
    assert unit_of("conversation", "ada", chat("another")) != begun
    assert unit_of("conversation", "bob", chat("hello")) != begun


def test_a_long_beginning_is_read_to_a_bound() -> None:
    long = "x" * (64 << 10)
    assert unit_of("conversation", "ada", chat(long + "a")) == unit_of(
        "conversation", "ada", chat(long + "b")
    )
    deep: Any = "end"
    for _ in range(10_000):
        deep = [deep]
    assert unit_of("conversation", "ada", {"messages": [{"role": "user", "content": deep}]})


@pytest.mark.parametrize("name", ["prompt", "input", "query"])
def test_whatever_it_begins_with(name: str) -> None:
    one, other = (unit_of("conversation", "ada", {name: text}) for text in ("one", "other"))
    assert one != other


def test_by_key_nothing_of_the_request_counts() -> None:
    assert unit_of("key", "ada", chat("hello", user="x")) == unit_of("key", "ada", chat("bye", user="y"))
    assert unit_of("key", "ada", {}) != unit_of("key", "bob", {})


def test_by_user_the_caller_counts_as_well() -> None:
    assert unit_of("user", "ada", chat("a", user="x")) == unit_of("user", "ada", chat("b", user="x"))
    assert unit_of("user", "ada", chat("a", user="x")) != unit_of("user", "bob", chat("a", user="x"))
    assert unit_of("user", "ada", chat("a", user=7)) == unit_of("user", "ada", chat("a"))


_VALUES = (
    st.none()
    | st.integers()
    | st.text(max_size=4)
    | st.lists(st.integers() | st.text(max_size=4), max_size=2)
)
_MESSAGES = st.lists(
    st.none() | st.dictionaries(st.sampled_from(["role", "content"]), _VALUES, max_size=2), max_size=2
)


@given(
    st.dictionaries(st.sampled_from(["messages", "input", "prompt", "user"]), _VALUES | _MESSAGES, max_size=2)
)
def test_any_document_has_a_unit(document: dict[str, Any]) -> None:
    for by in ("key", "user", "conversation"):
        assert len(unit_of(by, "ada", document)) == 32  # type: ignore[arg-type]


def change(number: int, base: str, digest: str, stage: Stage = Stage.PROMOTED) -> Change:
    return Change(
        id=f"c-{number}", number=number, stage=stage, share=0, base=base, digest=digest,
        document=b"", settings=Settings(), secret=b"",
    )  # fmt: skip


def in_force(file: str, *promoted: Change) -> str:
    found = resolve(Table([], digest=file), promoted)
    return file if found is None else found.digest


def test_promotions_stand_on_one_another() -> None:
    first, second = change(1, "a", "b"), change(2, "b", "c")
    assert in_force("a", first, second) == "c"
    assert in_force("a", first) == "b"
    assert in_force("b", first, second) == "c"
    # A file that was written since stands for itself.
    assert in_force("x", first, second) == "x"
    assert in_force("a", change(1, "a", "b"), change(2, "b", "a")) == "a"
    # What stood on one that was taken back is in force no more.
    assert in_force("a", second) == "a"


def test_the_digest_is_of_what_a_table_says() -> None:
    plain = read_table(b"tiers: {t: {max_age_s: 300}}\nworkloads: {w: {model: m, tier: t}}\n")
    noted = read_table(b"# why\nworkloads:\n  w: {tier: t, model: m}\ntiers:\n  t:\n    max_age_s: 300\n")
    other = read_table(b"tiers: {t: {max_age_s: 301}}\nworkloads: {w: {model: m, tier: t}}\n")
    assert plain.digest == noted.digest != other.digest


ACTIVE = Workload(MODEL, name="tiny", tier="t", prices={"*": Price(1, 1)})


async def two(candidate: Workload, *nodes: Any) -> tuple[Fleet, Table]:
    """A fleet, and a table that decides beside its own."""
    fleet = Given({each.node: each for each in nodes}).fleet(ACTIVE)
    table = Table([candidate], digest="candidate")
    await fleet.use_candidate(table)
    return fleet, table


async def differ(candidate: Workload, *nodes: Any, seed: int = 1) -> tuple[str, str]:
    fleet, table = await two(candidate, *nodes)
    made = [
        decide(fleet.view_for(each), each, seed)
        for each in (fleet.table.workloads["tiny"], table.workloads["tiny"])
    ]
    assert [each.arm for each in made] == ["active", "candidate"]
    for each in made:
        again = Decision.from_wire(msgspec.json.decode(msgspec.json.encode(each.to_wire())))
        assert replay(again) == each
    found = find_difference(*made, lambda node, decision: fleet.verdict(node, decision.workload))
    assert found.kind in KINDS
    return found.kind, found.code


def other(**given: Any) -> Workload:
    return msgspec.structs.replace(ACTIVE, **given)


async def test_kinds_of_differences() -> None:
    east = view("east", capabilities={"region": "east"})
    west = view("west", capabilities={"region": "west"})
    assert await differ(other(), east) == ("same", "")
    assert await differ(other(prices={"*": Price(2, 1)}), east) == ("price", "dearer")
    assert await differ(other(prices={"*": Price(1, 0)}), east) == ("price", "cheaper")
    assert await differ(other(regions=("north",)), east) == ("refused", "capability.region")
    assert await differ(other(regions=("west",)), east, west, seed=seed_for("east")) == (
        "closed",
        "capability.region",
    )
    assert await differ(other(tier="u"), east) == ("same", "")
    assert await differ(other()) == ("same", "")


def seed_for(chosen: str) -> int:
    fleet = Given({name: view(name, capabilities={"region": name}) for name in ("east", "west")}).fleet(
        ACTIVE
    )
    workload = fleet.table.workloads["tiny"]
    return next(
        seed
        for seed in range(99)
        if (found := decide(fleet.view_for(workload), workload, seed).chosen) and found.node == chosen
    )


async def test_what_the_table_in_force_shuts_out_and_the_candidate_lets_in() -> None:
    node = view("east", capabilities={"region": "east"})
    fleet = Given({"east": node}).fleet(other(regions=("west",)))
    table = Table([other()])
    await fleet.use_candidate(table)
    made = [
        decide(fleet.view_for(each), each, 1)
        for each in (fleet.table.workloads["tiny"], table.workloads["tiny"])
    ]
    found = find_difference(*made, lambda node, decision: fleet.verdict(node, decision.workload))
    assert (found.kind, found.code) == ("served", "capability.region")


async def test_nodes_that_come_later_are_placed_by_both() -> None:
    fleet, table = await two(other(regions=("west",)))
    fleet.put_node(view("east", capabilities={"region": "east"}))
    fleet.put_node(view("west", capabilities={"region": "west"}))
    active, candidate = fleet.table.workloads["tiny"], table.workloads["tiny"]
    assert fleet.lane("east", active) is not None
    assert fleet.lane("east", candidate) is None
    assert fleet.lane("west", candidate) is not None


async def test_promoted_its_places_stay_and_dropped_they_go() -> None:
    fleet, table = await two(other(regions=("west",)), view("east", capabilities={"region": "east"}))
    fleet.start_work("east", fleet.table.workloads["tiny"])
    fleet.promote_candidate()
    assert fleet.table is table
    assert fleet.view_for(table.workloads["tiny"]).closed == {"capability.region": 1}
    assert fleet.view_for(table.workloads["tiny"]).arm == ""
    await fleet.use_candidate(Table([other()]))
    fleet.drop_candidate()
    assert fleet.candidate is None
    assert fleet.candidate_nodes() == {}


async def test_requests_in_flight_count_for_an_operators_share_in_both() -> None:
    node = view("east", operator="ops")
    fleet = Given({"east": node}).fleet(ACTIVE)
    active = fleet.table.workloads["tiny"]
    for _ in range(12):
        fleet.start_work("east", active)
    candidate = other(max_operator_share=50)
    await fleet.use_candidate(Table([candidate]))
    pool = fleet.view_for(candidate).pool
    assert pool.has_full_share("ops")
