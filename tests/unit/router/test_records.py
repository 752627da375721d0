"""Records of decisions: who makes many loses its own, in memory, on the way to the store, and in it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.choose.decision import decide
from router.model.clock import Clock
from router.model.shares import Shares
from router.model.workload import Table
from router.state.fleet import Fleet
from router.state.records import FinishedRecord, Record, Records
from router.store.forgetting import fair_share
from tests.unit.router.support import NOW, TICKS, WORKLOAD

CALLERS = st.sampled_from("abcde")


DECISION = decide(
    Fleet(Table([WORKLOAD]), Clock(lambda: NOW * 1000, lambda: TICKS)).view_for(WORKLOAD), WORKLOAD, 0
)


def record(caller: str) -> Record:
    return Record(DECISION, caller)


def test_a_flood_evicts_its_own() -> None:
    """However long it lasts, who had few still has them."""
    records = Records(writes=False, in_memory=10)
    few = [record("ada") for _ in range(4)]
    for each in few:
        records.add(each)
    for _ in range(100):
        records.add(record("flood"))
    assert all(records.get(each.id) is not None for each in few)
    assert len(records.newest()) == 10


def test_one_caller_alone_has_all_the_room() -> None:
    """Nothing is kept free for callers that do not come."""
    records = Records(writes=False, in_memory=10)
    many = [record("ada") for _ in range(15)]
    for each in many:
        records.add(each)
    assert [records.get(each.id) is not None for each in many] == [False] * 5 + [True] * 10


def test_a_newcomer_gets_room_from_who_has_most() -> None:
    """A flood that was there first keeps nobody out."""
    records = Records(writes=False, in_memory=10)
    for _ in range(10):
        records.add(record("flood"))
    mine = [record("ada") for _ in range(5)]
    for each in mine:
        records.add(each)
    assert all(records.get(each.id) is not None for each in mine)


@given(st.lists(CALLERS, max_size=60))
def test_who_has_a_fair_share_or_less_loses_none(order: list[str]) -> None:
    """By any order of callers."""
    records, limit = Records(writes=False, in_memory=10), 10
    made: dict[str, list[Record]] = {}
    for caller in order:
        made.setdefault(caller, []).append(record(caller))
        records.add(made[caller][-1])
        kept = {who: sum(records.get(each.id) is not None for each in those) for who, those in made.items()}
        assert sum(kept.values()) == min(limit, sum(map(len, made.values())))
        for who, those in made.items():
            assert kept[who] >= min(len(those), limit // len(made))


def test_a_flood_loses_its_own_on_the_way_to_the_store() -> None:
    """If the store is slow, what others did is written all the same."""
    lost: list[None] = []
    records = Records(writes=True, lost=lambda: lost.append(None), max_unwritten=10)
    for n in range(4):
        records.requeue([FinishedRecord(f"a{n}", 1, "ada", b"")])
    records.requeue([FinishedRecord(f"f{n}", 1, "flood", b"") for n in range(100)])
    written = records.drain()
    assert Counter(each.caller for each in written) == {"ada": 4, "flood": 6}
    assert len(lost) == 94
    assert records.drain() == []


def test_each_callers_records_are_written_in_turn() -> None:
    """The first that are written are not all of one caller."""
    records = Records(writes=True)
    records.requeue([FinishedRecord(f"f{n}", 1, "flood", b"") for n in range(50)])
    records.requeue([FinishedRecord("a", 1, "ada", b"")])
    assert "a" in [each.id for each in records.drain()[:2]]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_a_fair_share_fills_the_room_and_no_more(counts: list[int], keep: int) -> None:
    """Who has fewer loses none; of the others nobody keeps more than another."""
    share = fair_share(counts, keep)
    kept = sum(min(count, share) for count in counts)
    assert kept <= max(keep, 0)
    assert kept == sum(counts) or kept + len(counts) > keep


@given(st.lists(st.tuples(CALLERS, st.booleans()), max_size=80))
def test_who_has_most_is_known_after_any_steps(steps: list[tuple[str, bool]]) -> None:
    """By the plainest way to count."""
    shares, plain = Shares(), Counter[str]()
    for owner, more in steps:
        if more:
            shares.add(owner)
            plain[owner] += 1
        elif plain[owner]:
            shares.remove(owner)
            plain[owner] -= 1
        assert {each: shares[each] for each in "abcde"} == {each: plain[each] for each in "abcde"}
        if any(plain.values()):
            assert plain[shares.largest()] == max(plain.values())
