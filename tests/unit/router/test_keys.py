"""API keys: who is let in, how much at a time, and how much a day."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import ApiKey
from router.gateway.keys import ANONYMOUS, Keyring, LimitError
from tests.conftest import FakeClock
from verifier.roles import Role

DAY_S = 86_400
TODAY = 20_000
NOON = FakeClock(ms=(TODAY * DAY_S + DAY_S // 2) * 1000)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def key(name: str = "k", **limits: Any) -> ApiKey:
    return msgspec.convert({"name": name, "sha256": digest(f"secret-{name}"), **limits}, ApiKey)


def noon() -> FakeClock:
    return FakeClock(NOON.ms, NOON.ticks)


def ring(*keys: ApiKey, clock: FakeClock | None = None, is_open: bool = False) -> Keyring:
    clock = clock or noon()
    return Keyring(keys, is_open=is_open, wall_ms=lambda: clock.ms, monotonic=lambda: clock.ticks)


def refusal(keys: Keyring, of: ApiKey) -> LimitError:
    with pytest.raises(LimitError) as caught:
        keys.enter(of)
    return caught.value


def admitted(keys: Keyring, of: ApiKey, times: int) -> int:
    """How many of so many requests are admitted, each over at once."""
    count = 0
    for _ in range(times):
        try:
            keys.enter(of)
        except LimitError:
            continue
        keys.leave(of, 0)
        count += 1
    return count


def test_a_key_is_found_by_what_its_holder_sends() -> None:
    """Only the digest of it is configured."""
    assert ring(key("a"), key("b")).find("Bearer secret-b") == key("b")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "secret-k",
        "Basic secret-k",
        "Bearer secret-k ",
        " Bearer secret-k",
        "Bearer Secret-k",
        f"Bearer {digest('secret-k')}",
        "Bearer \udc80\udcff",
        "Bearer \ud800",
    ],
)
def test_anything_else_finds_nothing(header: str | None) -> None:
    """Another scheme, another spelling, the digest itself, or bytes that are no text."""
    assert ring(key()).find(header) is None


def test_the_empty_key_is_nobodys() -> None:
    """Not even where somebody configured its digest."""
    assert ring(ApiKey(name="k", sha256=digest(""))).find("Bearer ") is None


def test_a_long_header_is_not_hashed() -> None:
    """Nobody makes the router work by what it would not accept."""
    secret = "x" * 512
    assert ring(ApiKey(name="k", sha256=digest(secret))).find(f"Bearer {secret}") is None


def test_a_key_of_other_bytes_is_found() -> None:
    """As the server decodes headers: what was sent is what is hashed."""
    sent = b"k\xfc\xff"
    entry = ApiKey(name="k", sha256=hashlib.sha256(sent).hexdigest())
    assert ring(entry).find(f"Bearer {sent.decode(errors='surrogateescape')}") == entry


@pytest.mark.parametrize("header", [None, "Bearer whatever", "x" * 10_000])
def test_at_an_open_gateway_anyone_may(header: str | None) -> None:
    """Whatever they send: OpenAI's clients always send some key."""
    assert ring(key(), is_open=True).find(header) is ANONYMOUS


@pytest.mark.parametrize("header", [None, "Bearer whatever"])
def test_a_gateway_without_keys_is_not_open(header: str | None) -> None:
    """It must be asked for."""
    assert ring().find(header) is None


def test_a_key_is_a_key_at_an_open_gateway_too() -> None:
    """Who has one is not anonymous: limits and reviews are for its name."""
    assert ring(key(), is_open=True).find("Bearer secret-k") == key()


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR", "Bearer  "])
def test_the_scheme_is_written_in_any_case(scheme: str) -> None:
    """RFC 9110 §11.1; and more than one space may follow."""
    assert ring(key()).find(f"{scheme} secret-k") == key()


def test_a_stored_key_comes_and_goes() -> None:
    """While the router runs; what it has under way is counted to the end."""
    keys, new = ring(key("a")), key("b", concurrency=1)
    keys.set_stored([new], ())
    assert keys.find("Bearer secret-b") == new
    keys.enter(new)
    keys.set_stored([], [new.sha256])
    assert keys.find("Bearer secret-b") is None
    keys.leave(new, 5)
    assert (keys.find("Bearer secret-a"), keys.used(new)) == (key("a"), (0, 5))


def test_a_configured_key_that_is_revoked_opens_nothing() -> None:
    """The store has the last word, also at an open gateway, where its holder is anonymous."""
    keys = ring(key("a"))
    keys.set_stored([], [key("a").sha256])
    assert (keys.find("Bearer secret-a"), len(keys)) == (None, 0)


def test_a_stored_key_does_not_take_a_configured_ones_name() -> None:
    """A name is one credential."""
    keys = ring(key("a"))
    keys.set_stored([ApiKey(name="a", sha256=digest("other"), roles=(Role.ADMINISTRATOR,))], ())
    assert (keys.find("Bearer other"), keys.find("Bearer secret-a")) == (None, key("a"))


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ({}, ("relying-party",)),
        ({"role": "client"}, ("relying-party",)),
        ({"role": "reviewer"}, ("relying-party", "reviewer")),
        ({"roles": ["auditor", "reviewer"]}, ("auditor", "reviewer")),
    ],
)
def test_a_key_has_roles(given: dict[str, Any], roles: tuple[str, ...]) -> None:
    """Work if none is named; and a configuration of an earlier version reads as it did."""
    assert key(**given).roles == roles


@pytest.mark.parametrize(
    "given",
    [
        {"role": "client", "roles": ["auditor"]},
        {"role": "auditor"},
        {"roles": ["node"]},
        {"roles": ["policy-author"]},
        {"roles": ["root"]},
        {"roles": ["operator"]},
        {"roles": ["operator"], "operator": ""},
    ],
)
def test_roles_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    """Both spellings at once, a role of the verifier's, none at all, or the operator of nobody's nodes."""
    with pytest.raises(msgspec.ValidationError):
        key(**given)


def test_the_anonymous_have_no_limits() -> None:
    """There is nobody to count."""
    assert admitted(ring(), ANONYMOUS, 100) == 100


@pytest.mark.parametrize(
    "entries",
    [
        [key("a"), ApiKey(name="a", sha256="0" * 64)],
        [key("a"), ApiKey(name="b", sha256=digest("secret-a"))],
    ],
)
def test_two_entries_of_one_name_or_one_key_are_refused(entries: list[ApiKey]) -> None:
    """It would not be known whose work it is."""
    with pytest.raises(ValueError, match="two"):
        ring(*entries)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "n" * 65},
        {"name": "a\n"},
        {"sha256": "AB" * 32},
        {"sha256": "ab" * 31},
        {"role": "admin"},
        {"concurrency": -1},
        {"tokens_per_day": 1.5},
        {"token_per_day": 1},
    ],
)
def test_an_entry_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """A misspelt limit is no limit, so it is an error."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "k", "sha256": "0" * 64, **wrong}, ApiKey)


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 1), (6, 1), (60, 10), (600, 100)])
def test_requests_come_in_bursts_of_a_sixth(per_minute: int, burst: int) -> None:
    """Of a minute's worth, and one at least."""
    limited = key(requests_per_minute=per_minute)
    assert admitted(ring(limited), limited, 200) == burst


def test_requests_are_admitted_at_their_rate() -> None:
    """In an hour, sixty minutes' worth and one burst."""
    clock, limited = noon(), key(requests_per_minute=30)
    keys, count = ring(limited, clock=clock), 0
    for _ in range(3600):
        count += admitted(keys, limited, 2)
        clock.forward(1)
    assert count in (1800 + 4, 1800 + 5)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 6000])
def test_who_waits_as_told_is_admitted(per_minute: int) -> None:
    """`retry_after` is enough."""
    clock, limited = noon(), key(requests_per_minute=per_minute)
    keys = ring(limited, clock=clock)
    admitted(keys, limited, 2000)
    clock.forward(refusal(keys, limited).retry_after)
    assert admitted(keys, limited, 1) == 1


def test_too_many_requests_say_so() -> None:
    """With a code that OpenAI's clients know, and a time."""
    limited = key(requests_per_minute=6)
    keys = ring(limited)
    keys.enter(limited)
    error = refusal(keys, limited)
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", 11)


def test_keys_do_not_share_their_limits() -> None:
    """What one has used, another has not."""
    one, other = key("a", requests_per_minute=1), key("b", requests_per_minute=1)
    keys = ring(one, other)
    keys.enter(one)
    assert admitted(keys, other, 1) == 1


def test_as_many_at_a_time_as_there_are_places() -> None:
    """The next one waits."""
    limited = key(concurrency=2)
    keys = ring(limited)
    keys.enter(limited)
    keys.enter(limited)
    error = refusal(keys, limited)
    assert (error.code, error.retry_after) == ("concurrency", 1)


def test_whoever_leaves_frees_a_place() -> None:
    """Whether it succeeded or not."""
    limited = key(concurrency=1)
    assert admitted(ring(limited), limited, 5) == 5


def test_leaving_twice_makes_no_room() -> None:
    """There are never less than none under way."""
    limited = key(concurrency=1)
    keys = ring(limited)
    keys.leave(limited, 0)
    keys.leave(limited, 0)
    keys.enter(limited)
    assert refusal(keys, limited).code == "concurrency"


def test_a_refused_request_takes_nothing() -> None:
    """Refused for want of a place, it keeps its share of the minute."""
    limited = key(requests_per_minute=12, concurrency=1)
    keys = ring(limited)
    keys.enter(limited)
    for _ in range(10):
        refusal(keys, limited)
    keys.leave(limited, 0)
    keys.enter(limited)


def test_a_request_refused_by_its_rate_takes_no_place() -> None:
    """The other way round."""
    clock, limited = noon(), key(requests_per_minute=6, concurrency=1)
    keys = ring(limited, clock=clock)
    admitted(keys, limited, 10)
    clock.forward(60)
    assert admitted(keys, limited, 1) == 1


def test_the_tokens_of_a_minute_go_into_debt() -> None:
    """The answer was larger than what was left, and the next one waits until that is made up for."""
    clock, limited = noon(), key(tokens_per_minute=60)
    keys = ring(limited, clock=clock)
    keys.enter(limited)
    keys.leave(limited, 100)
    error = refusal(keys, limited)
    clock.forward(89)
    still = refusal(keys, limited).code
    clock.forward(2)
    keys.enter(limited)
    assert (error.code, error.retry_after, still) == ("rate_limit_exceeded", 91, "rate_limit_exceeded")


def test_no_tokens_left_is_too_few() -> None:
    """What a burst has, used to the last."""
    limited = key(tokens_per_minute=60)
    keys = ring(limited)
    keys.leave(limited, 10)
    assert refusal(keys, limited).retry_after == 1


def test_a_long_answer_earns_nothing_while_the_bucket_is_full() -> None:
    """What overflowed in the meantime does not pay for it."""
    clock, limited = noon(), key(tokens_per_minute=60)
    keys = ring(limited, clock=clock)
    keys.enter(limited)
    clock.forward(600)
    keys.leave(limited, 100)
    assert refusal(keys, limited).retry_after == 91


def test_failed_work_costs_no_tokens() -> None:
    """Nor does a count that cannot be."""
    limited = key(tokens_per_minute=1, tokens_per_day=1)
    keys = ring(limited)
    keys.leave(limited, 0)
    keys.leave(limited, -50)
    keys.enter(limited)
    assert keys.spent() == {}


def test_a_budget_ends() -> None:
    """Until midnight, UTC, and a second."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.leave(limited, 99)
    keys.enter(limited)
    keys.leave(limited, 1)
    error = refusal(keys, limited)
    assert (error.code, error.retry_after) == ("budget_exhausted", DAY_S // 2 + 1)


def test_a_new_day_is_a_new_budget() -> None:
    """The next one, and the one after that."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    for _ in range(3):
        keys.enter(limited)
        keys.leave(limited, 500)
        clock.forward(refusal(keys, limited).retry_after)
    assert keys.spent() == {"k": (TODAY + 2, 500)}


def test_a_key_that_rested_for_days_has_todays_budget() -> None:
    """The day it is counted for is the day it is."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    keys.leave(limited, 100)
    clock.forward(9 * DAY_S)
    keys.enter(limited)
    keys.leave(limited, 7)
    assert keys.spent() == {"k": (TODAY + 9, 7)}


@pytest.mark.parametrize("back_s", [DAY_S // 2, DAY_S, 20_000 * DAY_S, 90_000 * DAY_S])
def test_a_clock_that_goes_back_gives_no_new_budget(back_s: int) -> None:
    """Not to before midnight, not to 1970, and not to before that."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    keys.leave(limited, 100)
    clock.ms -= back_s * 1000
    error = refusal(keys, limited)
    assert (error.code, 1 <= error.retry_after <= DAY_S) == ("budget_exhausted", True)


def test_a_clock_that_swings_around_midnight_gives_one_new_budget() -> None:
    """However often."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    spent = 0
    for ahead in (0, 1, 0, 1, 0, 1):
        clock.ms = NOON.ms + ahead * DAY_S * 1000
        if admitted(keys, limited, 1):
            keys.leave(limited, 100)
            spent += 100
    assert spent == 200


def test_a_clock_that_jumped_ahead_is_not_waited_for_for_years() -> None:
    """It cost a budget, and two days later all is as it was."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    clock.ms += 3650 * DAY_S * 1000
    keys.leave(limited, 100)
    clock.ms = NOON.ms
    refusal(keys, limited)
    clock.forward(2 * DAY_S)
    keys.enter(limited)


def test_a_clock_far_ahead_gives_few_budgets() -> None:
    """One at once, and two a day, as long as it is wrong."""
    clock, limited = noon(), key(tokens_per_day=1)
    keys = ring(limited, clock=clock)
    clock.ms += 3650 * DAY_S * 1000
    budgets = 0
    for _ in range(48):
        if admitted(keys, limited, 1):
            keys.leave(limited, 1)
            budgets += 1
        clock.forward(3600)
    assert budgets == 4


def test_budgets_survive_a_restart() -> None:
    """What was spent is spent."""
    limited = key(tokens_per_day=100)
    before, after = ring(limited), ring(limited)
    before.leave(limited, 100)
    after.restore(before.spent())
    assert refusal(after, limited).code == "budget_exhausted"


def test_yesterdays_spending_is_not_restored() -> None:
    """A restart overnight costs nobody a day."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.restore({"k": (TODAY - 1, 100)})
    keys.enter(limited)


def test_a_clock_set_back_over_a_restart_gives_no_new_budget() -> None:
    """What was spent tomorrow is spent."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.restore({"k": (TODAY + 1, 100)})
    assert refusal(keys, limited).code == "budget_exhausted"


def test_what_a_wrong_clock_wrote_passes() -> None:
    """By the day after tomorrow."""
    clock, limited = noon(), key(tokens_per_day=100)
    keys = ring(limited, clock=clock)
    keys.restore({"k": (10 * TODAY, 100)})
    refusal(keys, limited)
    clock.forward(2 * DAY_S)
    keys.enter(limited)


def test_what_was_stored_of_keys_that_are_gone_is_ignored() -> None:
    """As is a number that cannot be."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.restore({"gone": (TODAY, 5), "k": (TODAY, -5)})
    keys.set_spent_by_others({"gone": (TODAY, 5), "k": (TODAY, -5)})
    assert keys.spent() == {}


def test_routers_share_a_budget() -> None:
    """What the others spent counts, and is not told as one's own."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.leave(limited, 60)
    keys.set_spent_by_others({"k": (TODAY, 40)})
    assert (refusal(keys, limited).code, keys.spent()) == ("budget_exhausted", {"k": (TODAY, 60)})


def test_what_others_spent_is_said_anew_each_time() -> None:
    """Set, not added; and nothing, where they say nothing more."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.set_spent_by_others({"k": (TODAY, 60)})
    keys.set_spent_by_others({"k": (TODAY, 60)})
    keys.enter(limited)
    keys.set_spent_by_others({"k": (TODAY, 100)})
    refusal(keys, limited)
    keys.set_spent_by_others({})
    keys.enter(limited)


@pytest.mark.parametrize(("day", "counts"), [(-1, False), (0, True), (1, True), (2, False), (3650, False)])
def test_others_count_for_their_day(day: int, counts: bool) -> None:  # noqa: FBT001
    """Yesterday's do not; those of one past midnight do; those of a wrong clock do not for ever."""
    limited = key(tokens_per_day=100)
    keys = ring(limited)
    keys.set_spent_by_others({"k": (TODAY + day, 100)})
    assert admitted(keys, limited, 1) == (not counts)


def test_a_budget_is_whole_tokens() -> None:
    """Large numbers lose none."""
    limited = key(tokens_per_day=10**12)
    keys = ring(limited)
    keys.leave(limited, 10**12 - 1)
    keys.enter(limited)
    keys.leave(limited, 1)
    assert refusal(keys, limited).code == "budget_exhausted"


STEPS = st.lists(
    st.one_of(
        st.just("enter"),
        st.integers(-5, 300).map(lambda tokens: ("leave", tokens)),
        st.tuples(st.just("wall"), st.integers(-3 * DAY_S, 3 * DAY_S)),
        st.tuples(st.just("pass"), st.floats(0, DAY_S / 4)),
        st.tuples(st.just("others"), st.integers(-1, 200)),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS)
def test_a_budget_is_exceeded_by_no_more_than_what_was_under_way(steps: list[Any]) -> None:
    """By any sequence of requests and any wall clock; and clocks give no more than two budgets a day."""
    clock, limited = noon(), key(tokens_per_day=200, concurrency=3)
    keys, running, days, waits = ring(limited, clock=clock), 0, set(), [1]
    for step in steps:
        if step == "enter":
            try:
                keys.enter(limited)
                running += 1
            except LimitError as error:
                waits.append(error.retry_after)
        elif step[0] == "leave" and running:
            keys.leave(limited, step[1])
            running -= 1
        elif step[0] == "wall":
            clock.ms += step[1] * 1000
        elif step[0] == "pass":
            clock.forward(step[1])
        elif step[0] == "others":
            keys.set_spent_by_others({"k": (TODAY, step[1])})
        assert 0 <= running <= 3
        for day, tokens in keys.spent().values():
            days.add(day)
            assert 0 < tokens < 200 + 3 * 300
    assert len(days) <= 2 + (clock.ticks - NOON.ticks) / (DAY_S / 2)
    assert 1 <= min(waits) <= max(waits) <= DAY_S


def guest(name: str, **limits: Any) -> ApiKey:
    return ApiKey(name=f"https://issuer.test#{name}", sha256="", **limits)


def test_who_comes_with_a_token_has_limits() -> None:
    """The same ones each time they come."""
    keys = ring(key())
    keys.enter(keys.welcome(guest("kim", concurrency=1)))
    assert refusal(keys, keys.welcome(guest("kim", concurrency=1))).code == "concurrency"
    keys.enter(keys.welcome(guest("sam", concurrency=1)))


def test_of_too_many_guests_the_idle_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never one whose request is under way."""
    monkeypatch.setattr("router.gateway.keys._MAX_GUESTS", 2)
    keys, busy = ring(key()), guest("busy", tokens_per_day=5)
    keys.enter(keys.welcome(busy))
    for n in range(10):
        keys.welcome(guest(f"n{n}"))
    keys.leave(busy, 3)
    assert (keys.used(busy), len(keys.keys())) == ((0, 3), 3)


def test_what_a_guest_spent_survives_a_restart() -> None:
    """Although its name is known only when it comes again."""
    keys, kim = ring(key()), guest("kim", tokens_per_day=100)
    keys.restore({kim.name: (TODAY, 100), "gone": (TODAY - 1, 5)})
    keys.welcome(kim)
    assert refusal(keys, kim).code == "budget_exhausted"
    assert keys.spent() == {kim.name: (TODAY, 100)}


def test_lines_of_batches_leave_half_of_the_requests_to_others() -> None:
    """Of what the key may send at once, which is a sixth of a minute's."""
    of = key(requests_per_minute=120)
    keys = ring(of)
    for _ in range(11):
        keys.enter(of, spares=True)
    with pytest.raises(LimitError) as caught:
        keys.enter(of, spares=True)
    assert caught.value.code == "rate_limit_exceeded"
    assert admitted(keys, of, 20) == 9


@pytest.mark.parametrize(("concurrency", "lines"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_lines_of_batches_leave_half_of_the_places_to_others(concurrency: int, lines: int) -> None:
    of = key(concurrency=concurrency)
    keys = ring(of)
    for _ in range(lines):
        keys.enter(of, spares=True)
    with pytest.raises(LimitError):
        keys.enter(of, spares=True)
    for _ in range(concurrency - lines):
        keys.enter(of)
    assert refusal(keys, of).code == "concurrency"


def test_what_lines_have_used_counts_before_it_is_charged() -> None:
    """And once, when the store has it; not at all if another router has done the line."""
    of = key(tokens_per_day=100)
    keys = ring(of)
    keys.begin_charge(of, 70)
    keys.begin_charge(of, 40)
    assert (keys.used(of)[1], refusal(keys, of).code) == (110, "budget_exhausted")
    keys.end_charge(of, TODAY, 70, is_charged=True)
    keys.end_charge(of, TODAY, 40, is_charged=False)
    assert keys.used(of)[1] == 70
    keys.enter(of)
    keys.set_spent_by_others({of.name: (TODAY, 70)})
    assert keys.used(of)[1] == 70
    assert keys.spent() == {}


def test_what_lines_have_used_counts_against_the_tokens_of_a_minute() -> None:
    of = key(tokens_per_minute=600)
    keys = ring(of)
    keys.begin_charge(of, 150)
    assert refusal(keys, of).code == "rate_limit_exceeded"
