"""Answers kept for clients that try again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway.idempotency import CachedResponse, IdempotencyCache, IdempotencyError
from tests.conftest import FakeClock

ANSWER = CachedResponse(200, "application/json", (("X-Touchstone-Decision", "d"),), b'{"id":1}')
PRINT = b"f" * 32


def replays(clock: FakeClock | None = None, **bounds: Any) -> IdempotencyCache:
    clock = clock or FakeClock()
    return IdempotencyCache(monotonic=lambda: clock.ticks, **bounds)


def answer(size: int) -> CachedResponse:
    return CachedResponse(200, "", (), b"x" * size)


def done(kept: IdempotencyCache, key: str, what: CachedResponse | None = ANSWER) -> None:
    assert kept.begin("o", key, PRINT) is None
    kept.keep("o", key, what)


def refusal(kept: IdempotencyCache, key: str, fingerprint: bytes = PRINT) -> tuple[int, str, int | None]:
    with pytest.raises(IdempotencyError) as caught:
        kept.begin("o", key, fingerprint)
    return caught.value.status, caught.value.code, caught.value.retry_after


def test_the_first_goes_on() -> None:
    """There is nothing to give again."""
    assert replays().begin("o", "k", PRINT) is None


def test_the_answer_is_given_again() -> None:
    """Whole, and as often as it is asked for."""
    kept = replays()
    done(kept, "k")
    assert [kept.begin("o", "k", PRINT) for _ in range(3)] == [ANSWER] * 3


def test_while_one_is_under_way_another_waits() -> None:
    """A conflict, and a time after which to ask again."""
    kept = replays()
    kept.begin("o", "k", PRINT)
    assert refusal(kept, "k") == (409, "idempotency_in_progress", 1)


@pytest.mark.parametrize("finished", [False, True])
def test_a_key_is_not_used_for_another_request(finished: bool) -> None:  # noqa: FBT001
    """Neither while the first is under way nor after it: waiting would not help."""
    kept = replays()
    kept.begin("o", "k", PRINT)
    if finished:
        kept.keep("o", "k", ANSWER)
    assert refusal(kept, "k", b"other") == (422, "idempotency_key_reused", None)


def test_keys_of_other_owners_are_other_keys() -> None:
    """Nobody gets an answer that was another's."""
    kept = replays()
    done(kept, "k")
    assert kept.begin("p", "k", PRINT) is None


def test_owner_and_key_do_not_run_together() -> None:
    """Wherever the one ends and the other begins."""
    kept = replays()
    kept.begin("ab", "c", PRINT)
    assert kept.begin("a", "bc", PRINT) is None


@pytest.mark.parametrize("what", [None, answer(101)])
def test_what_cannot_be_kept_is_not_done_twice(what: CachedResponse | None) -> None:
    """It is said that it was completed."""
    kept = replays(max_answer=100)
    done(kept, "k", what)
    assert refusal(kept, "k") == (409, "idempotency_answer_not_kept", None)


def test_what_all_the_room_is_too_small_for_is_not_kept() -> None:
    """And what is there need not go for it."""
    kept = replays(max_bytes=100, max_answer=1000)
    done(kept, "a", answer(60))
    done(kept, "b", answer(101))
    assert (refusal(kept, "b")[0], kept.begin("o", "a", PRINT)) == (409, answer(60))


def test_the_largest_answer_is_kept() -> None:
    """Its headers count as well."""
    whole = CachedResponse(200, "t" * 10, (("n" * 5, "v" * 5),), b"x" * 80)
    kept = replays(max_answer=100)
    done(kept, "k", whole)
    assert (kept.begin("o", "k", PRINT), kept.size) == (whole, 100)


def test_what_failed_may_be_tried_again() -> None:
    """As if nothing had been, for another request too."""
    kept = replays()
    kept.begin("o", "k", PRINT)
    kept.forget("o", "k")
    assert kept.begin("o", "k", b"other") is None


def test_what_is_completed_is_not_forgotten() -> None:
    """So that a handler may forget at its end, whatever came before."""
    kept = replays()
    done(kept, "k")
    kept.forget("o", "k")
    assert kept.begin("o", "k", PRINT) == ANSWER


def test_what_was_forgotten_is_not_kept() -> None:
    """An abandoned request that ends after all has no place to leave its answer."""
    kept = replays()
    kept.begin("o", "k", PRINT)
    kept.forget("o", "k")
    kept.keep("o", "k", ANSWER)
    assert (kept.begin("o", "k", PRINT), kept.size) == (None, 0)


def test_the_first_answer_stays() -> None:
    """A second one does not replace it."""
    kept = replays()
    done(kept, "k")
    kept.keep("o", "k", answer(5))
    assert (kept.begin("o", "k", PRINT), kept.size) == (ANSWER, ANSWER.size)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("abc", '"abc"'),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", '"8e03978e-40d5-43e8-bc93-6894a57f9324"'),
        ('a"b', r'"a\"b"'),
        (r"a\b", r'"a\\b"'),
        ("a b;c=1", '"a b;c=1"'),
        ("k" * 255, '"' + "k" * 255 + '"'),
        ("\\" * 255, '"' + "\\\\" * 255 + '"'),
    ],
)
def test_a_key_in_quotes_is_the_key_without(one: str, same: str) -> None:
    """By the draft it is a string of RFC 8941; most clients send it bare."""
    kept = replays()
    done(kept, one)
    assert kept.begin("o", same, PRINT) == ANSWER


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        '"',
        '"abc',
        '"abc"d',
        '"abc";a=1',
        '"a", "b"',
        '"a"b"',
        r'"a\b"',
        '"abc\\"',
        "k" * 256,
        '"' + "k" * 256 + '"',
        '"' + "\\\\" * 256 + '"',
        "schlüssel",
        '"schlüssel"',
        "a\tb",
        "a\x00",
        "a\x7f",
        "a\n",
        '"a"\n',
        "\udc80",
    ],
)
def test_a_malformed_key_is_refused(key: str) -> None:
    """Empty, too long, not printable ASCII, or quotes that do not fit."""
    assert refusal(replays(), key) == (400, "idempotency_key_invalid", None)


@pytest.mark.parametrize(("passed", "expected"), [(599.0, ANSWER), (600.0, None)])
def test_answers_expire(passed: float, expected: CachedResponse | None) -> None:
    """Ten minutes after they were completed; then the request is a new one."""
    clock = FakeClock()
    kept = replays(clock)
    kept.begin("o", "k", PRINT)
    clock.forward(300)
    kept.keep("o", "k", ANSWER)
    clock.forward(passed)
    assert kept.begin("o", "k", PRINT) == expected


def test_asking_again_does_not_prolong() -> None:
    """The time is from completion."""
    clock = FakeClock()
    kept = replays(clock)
    done(kept, "k")
    clock.forward(599)
    kept.begin("o", "k", PRINT)
    clock.forward(1)
    assert kept.begin("o", "k", PRINT) is None


def test_what_is_under_way_does_not_expire() -> None:
    """However long it takes."""
    clock = FakeClock()
    kept = replays(clock)
    kept.begin("o", "k", PRINT)
    clock.forward(1e6)
    assert refusal(kept, "k")[0] == 409


def test_what_expired_frees_its_memory() -> None:
    """Without being asked for again, some with each request."""
    clock = FakeClock()
    kept = replays(clock)
    for i in range(100):
        done(kept, f"k{i}")
    clock.forward(600)
    for i in range(5):
        kept.begin("o", f"new{i}", PRINT)
    assert (len(kept), kept.size) == (5, 0)


def test_an_expired_answer_is_not_given_while_others_wait_to_be_freed() -> None:
    """The one that is asked for is looked at itself."""
    clock = FakeClock()
    kept = replays(clock)
    for i in range(100):
        done(kept, f"k{i}")
    clock.forward(600)
    assert kept.begin("o", "k99", PRINT) is None


def test_the_least_recently_asked_for_goes_first() -> None:
    """Where there are too many."""
    kept = replays(max_entries=3)
    for key in "abc":
        done(kept, key)
    kept.begin("o", "a", PRINT)
    done(kept, "d")
    assert ([kept.begin("o", key, PRINT) for key in "acd"], len(kept)) == ([ANSWER] * 3, 3)


def test_the_least_recently_asked_for_makes_room_for_bytes() -> None:
    """As many as are needed."""
    kept = replays(max_bytes=100)
    for key in "abc":
        done(kept, key, answer(30))
    done(kept, "d", answer(50))
    assert (len(kept), kept.size, kept.begin("o", "c", PRINT)) == (2, 80, answer(30))


def test_what_is_under_way_is_not_evicted() -> None:
    """The finished make room for it."""
    kept = replays(max_entries=2)
    kept.begin("o", "running", PRINT)
    for key in "abc":
        done(kept, key)
    assert refusal(kept, "running")[0] == 409


def test_where_all_are_under_way_the_next_is_refused() -> None:
    """For a moment; and it leaves no trace."""
    kept = replays(max_entries=2)
    kept.begin("o", "a", PRINT)
    kept.begin("o", "b", PRINT)
    first = refusal(kept, "c")
    kept.forget("o", "a")
    assert (first, kept.begin("o", "c", PRINT)) == ((503, "idempotency_full", 1), None)


def test_where_all_are_under_way_they_still_end() -> None:
    """And a known key is answered."""
    kept = replays(max_entries=1)
    done(kept, "a")
    assert kept.begin("o", "a", PRINT) == ANSWER


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "keep", "keep", "forget", "pass"]),
        st.sampled_from(["o", "p"]),
        st.sampled_from(["a", '"a"', "b", "c", "d", "e", "", '"']),
        st.integers(0, 60),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS)
def test_bounds_hold_and_nothing_is_done_twice_at_once(steps: list[tuple[str, str, str, int]]) -> None:
    """By any sequence of calls."""
    clock = FakeClock()
    kept = replays(clock, ttl_s=50, max_entries=4, max_bytes=100, max_answer=40)
    running: set[tuple[str, str]] = set()
    statuses: set[int] = set()
    for step, owner, key, size in steps:
        entry = (owner, key.strip('"'))
        try:
            if step == "begin" and kept.begin(owner, key, PRINT) is None:
                assert entry not in running
                running.add(entry)
            elif step == "keep":
                kept.keep(owner, key, answer(size))
                running.discard(entry)
            elif step == "forget":
                kept.forget(owner, key)
                running.discard(entry)
            elif step == "pass":
                clock.forward(size)
        except IdempotencyError as error:
            statuses.add(error.status)
        assert len(running) <= len(kept) <= 4
        assert 0 <= kept.size <= 100
    assert statuses <= {400, 409, 503}


def test_a_flood_forgets_its_own() -> None:
    """By number: however many keys one caller uses, another's answer is given again."""
    cache = IdempotencyCache(monotonic=lambda: 0.0, max_entries=10)
    for n in range(3):
        cache.begin("ada", f"a{n}", FINGERPRINT)
        cache.keep("ada", f"a{n}", answer_of(10))
    for n in range(100):
        cache.begin("flood", f"f{n}", FINGERPRINT)
        cache.keep("flood", f"f{n}", answer_of(10))
    assert all(cache.begin("ada", f"a{n}", FINGERPRINT) == answer_of(10) for n in range(3))


def test_large_answers_forget_their_own() -> None:
    """By bytes, likewise."""
    cache = IdempotencyCache(monotonic=lambda: 0.0, max_bytes=10_000)
    for n in range(3):
        cache.begin("ada", f"a{n}", FINGERPRINT)
        cache.keep("ada", f"a{n}", answer_of(1000))
    for n in range(20):
        cache.begin("flood", f"f{n}", FINGERPRINT)
        cache.keep("flood", f"f{n}", answer_of(2500))
    assert all(cache.begin("ada", f"a{n}", FINGERPRINT) == answer_of(1000) for n in range(3))
    assert cache.begin("flood", "f19", FINGERPRINT) == answer_of(2500)
    assert cache.size <= 10_000


FINGERPRINT = b"\0" * 32


def answer_of(size: int) -> CachedResponse:
    return CachedResponse(200, "", (), b"x" * size)
