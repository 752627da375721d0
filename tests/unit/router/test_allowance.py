"""How long a node may take: by the size of the request, and by how fast the node was seen to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.config import GatewaySection
from router.model.allowance import ASSUMED_TOKENS, LEAST_PACE, SLACK, Allowance, Limits, Seen, Size, allow
from router.model.outcomes import Execution, Outcome
from router.model.quantiles import enough_for
from router.model.statistics import NodeStatistics

GIVEN = GatewaySection()
LIMITS = Limits(
    first_s=GIVEN.attempt_timeout_s,
    stall_s=GIVEN.stall_s,
    quiet_s=GIVEN.quiet_s,
    token_s=1 / GIVEN.unseen_tokens_per_second,
    prompt_token_s=1 / GIVEN.unseen_prompt_tokens_per_second,
)
"""As the defaults of the configuration have them."""
SHORT = 10
UNSEEN = Seen()
TIMES = st.floats(1e-5, 1e3)
TOKENS = st.integers(0, 1 << 20)


def whole(answer: int | None, seen: Seen = UNSEEN, prompt: int = SHORT, answers: int = 1) -> Allowance:
    size = Size(prompt=prompt, answer=answer, answers=answers)
    return allow(LIMITS, seen, size, is_streamed=False)


def streamed(prompt: int = SHORT, seen: Seen = UNSEEN) -> Allowance:
    return allow(LIMITS, seen, Size(prompt=prompt, answer=900), is_streamed=True)


def test_a_whole_answer_of_900_tokens_has_time_at_a_slow_node() -> None:
    """900 tokens not streamed were stalled at 20 s: a node of three tokens a second has them ready in 300 s."""
    assert whole(900).first_s > 300


def test_a_short_answer_is_not_waited_for_so_long() -> None:
    """A dead node is found sooner if little was asked of it."""
    assert whole(16).first_s < 30


def test_what_generates_nothing_has_the_time_of_any_request() -> None:
    """Embeddings and scores have no tokens of an answer."""
    assert whole(0).first_s < 21


def test_a_node_that_was_seen_to_be_fast_has_less_time() -> None:
    """A dead node must be found fast: at 100 tokens a second 900 of them take nine, and have four times that."""
    assert whole(900, Seen(token_s=0.01)).first_s == 20 + 0.1 + 900 * max(SLACK * 0.01, 0.05)


def test_a_node_that_was_seen_to_be_slow_has_more_time() -> None:
    """What is usual for a node does not make it look dead."""
    assert whole(900, Seen(token_s=0.5)).first_s == 20 + 0.1 + 900 * SLACK * 0.5


def test_a_request_without_a_limit_is_taken_for_a_long_one() -> None:
    """Nobody knows how long its answer will be."""
    assert whole(None).first_s == 20 + 0.1 + ASSUMED_TOKENS / 2


def test_a_good_pace_takes_nothing_from_a_request_without_a_limit() -> None:
    """A fast node may have much more to say than is assumed."""
    assert whole(None, Seen(token_s=0.001)) == whole(None)


def test_several_answers_have_time_for_each() -> None:
    """An engine with one slot makes them one after the other."""
    assert whole(None, answers=3).extra_s > 2.9 * whole(None).extra_s - 1


def test_a_long_prompt_has_time_for_its_first_text() -> None:
    """Prompt length counts towards the time allowed for the first token."""
    assert streamed(prompt=32_000).first_s == 20 + 320


def test_a_node_that_reads_fast_has_less_time_for_a_long_prompt() -> None:
    """By what was seen of it."""
    assert streamed(prompt=32_000, seen=Seen(prompt_token_s=0.0005)).first_s == 20 + 32_000 * 0.002


def test_a_stream_at_a_token_a_second_is_never_behind() -> None:
    """A stream must not be cut at 60 s while it progresses."""
    assert all(streamed().until_behind_s(tokens) > tokens / LEAST_PACE for tokens in range(0, 100_000, 100))


def test_a_stream_that_drips_is_behind_in_the_end() -> None:
    """A token each nineteen seconds is a sign of life, and no answer."""
    assert streamed().until_behind_s(20) < 19 * 20


def test_a_node_that_was_seen_to_be_slow_may_stream_slowly() -> None:
    """Its own pace is no fault."""
    assert streamed(seen=Seen(token_s=3.0)).until_behind_s(1000) > 1000 * 3


@given(seen=st.builds(Seen, st.none() | TIMES, st.none() | TIMES), prompt=TOKENS, answer=st.none() | TOKENS)
def test_what_was_seen_moves_the_default_tenfold_at_most(seen: Seen, prompt: int, answer: int | None) -> None:
    """Neither an hour's good pace nor an hour's bad one can take a node's time away, or give it all."""
    size = Size(prompt=prompt, answer=answer)
    for is_streamed in (False, True):
        found = allow(LIMITS, seen, size, is_streamed=is_streamed)
        default = allow(LIMITS, Seen(), size, is_streamed=is_streamed)
        assert default.extra_s / 10.001 <= found.extra_s <= default.extra_s * 10.001
        assert found.first_s == LIMITS.first_s + found.extra_s
        assert found.quiet_s >= found.first_s


@given(slow=TIMES, fast=TIMES, tokens=TOKENS)
def test_more_work_and_slower_nodes_never_have_less_time(slow: float, fast: float, tokens: int) -> None:
    """The allowance is monotonous."""
    fast, slow = sorted((slow, fast))
    assert whole(tokens, Seen(token_s=fast)).first_s <= whole(tokens, Seen(token_s=slow)).first_s
    assert whole(tokens, Seen(token_s=slow)).first_s <= whole(tokens + 1, Seen(token_s=slow)).first_s


# What is seen.


def measured(count: int, **execution: float) -> NodeStatistics:
    statistics = NodeStatistics()
    for _ in range(count):
        statistics.add(Execution(Outcome.COMPLETED, 1.0, **execution), 1000.0)
    statistics.check_objectives(None, 1000.0)
    return statistics


def test_the_pace_of_streams_is_seen() -> None:
    """Per node and tier."""
    seen = measured(enough_for(0.9), first_token_s=0.1, token_s=0.2).seen
    assert seen.token_s is not None
    assert abs(seen.token_s - 0.2) < 0.01


def test_the_pace_of_whole_answers_is_seen() -> None:
    """A node whose clients never stream has one too."""
    assert measured(enough_for(0.9), whole_token_s=0.2).seen.token_s is not None


def test_the_pace_of_reading_prompts_is_seen() -> None:
    """From the first text after long prompts."""
    assert measured(enough_for(0.9), first_token_s=1.0, prompt_token_s=0.002).seen.prompt_token_s is not None


def test_a_few_answers_show_no_pace() -> None:
    """The default goes on until there is enough."""
    assert measured(enough_for(0.9) - 1, first_token_s=0.1, token_s=0.2).seen == Seen()


def test_it_is_nearly_the_slowest_that_counts() -> None:
    """One client with a short way through the engine does not take others' time away."""
    statistics = measured(90, first_token_s=0.1, token_s=0.01)
    for _ in range(10):
        statistics.add(Execution(Outcome.COMPLETED, 1.0, first_token_s=0.1, token_s=0.5), 1000.0)
    statistics.check_objectives(None, 1000.0)
    assert statistics.seen.token_s is not None
    assert statistics.seen.token_s > 0.4
