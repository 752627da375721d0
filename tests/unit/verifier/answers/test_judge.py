"""An answer held against the minted one: what differs, what says nothing, and what must never accuse true weights."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from msgspec.structs import replace

from fixtures import judged as checks
from fixtures.judged import given, minted, token
from verifier.answers import tables
from verifier.answers.checks import Call, Given, Minted, Token, Verdict
from verifier.answers.judge import judge, prompt_differs, relative_l2

RIGHT = "".join(checks.WORDS)


def verdict(ours: Minted, theirs: Given) -> Verdict:
    return judge(ours, theirs, tables.table_for(ours.engine, theirs.family))


def spread(words: dict[str, float], *, first: str) -> Token:
    """A position where the engine chose *first*, with the log-probabilities of all choices."""
    top = sorted(words.items(), key=lambda each: -each[1])
    return Token(text=first, margin=top[0][1] - top[1][1], top=tuple(top))


# Texts.


def test_the_same_text_agrees() -> None:
    """To the end."""
    found = verdict(minted(), given(RIGHT))
    assert (found.kind, found.matched) == ("agrees", len(checks.WORDS))


def test_a_difference_with_a_margin_differs() -> None:
    """The position, its margin and how much agreed before it."""
    found = verdict(minted(), given("The sea is calm and green."))
    assert (found.kind, found.at, found.margin, found.matched) == ("differs", 5, 3.0, 5)
    assert found.code == "answers.text.differs"
    assert "' green.'" in found.detail
    assert "' blue.'" in found.detail


def undecided(at: int, other: str) -> Minted:
    words = list(checks.WORDS)
    tokens = [token(word) for word in words]
    tokens[at] = spread({words[at]: -0.70, other: -0.75, " quite": -3.0}, first=words[at])
    return minted(tokens=tuple(tokens))


def test_a_difference_without_a_margin_is_censored() -> None:
    """True weights may go either way there; nothing beyond it counts."""
    found = verdict(undecided(5, " green"), given("The sea is calm and green and full of monsters"))
    assert (found.kind, found.at) == ("censored", 5)


def test_what_is_not_near_differs_also_where_the_margin_is_small() -> None:
    """Two words are near; a third one is not."""
    found = verdict(undecided(5, " green"), given("The sea is calm and red."))
    assert (found.kind, found.at) == ("differs", 5)


def test_a_difference_before_a_small_margin_differs() -> None:
    """The first difference decides."""
    assert verdict(undecided(5, " green"), given("The sea was calm and green.")).kind == "differs"


def test_a_token_that_begins_like_another_hides_where_texts_part() -> None:
    """`the` against `there`: the text first differs in the next token, whose margin is no measure."""
    tokens = (token("Over"), spread({" the": -0.7, " there": -0.72}, first=" the"), token(" hill", 9.0))
    ours = minted(text="Over the hill", tokens=tokens, stable=3)
    found = verdict(ours, given("Over there is a hill"))
    assert (found.kind, found.at) == ("censored", 1)


def test_another_split_of_the_same_text_hides_where_texts_part() -> None:
    """`un` and `do` read like `undo`: what follows may be of another path."""
    tokens = (token("I"), spread({" undo": -0.7, " un": -0.71}, first=" undo"), token(" it", 9.0))
    ours = minted(text="I undo it", tokens=tokens, stable=3)
    assert verdict(ours, given("I undone it")).kind == "censored"


def test_a_list_of_choices_that_is_near_to_its_end_hides_others() -> None:
    """If all that are listed are near, one that is not listed may be."""
    tokens = [token(word) for word in checks.WORDS]
    tokens[5] = spread({" blue": -1.00, " grey": -1.05, " wide": -1.1}, first=" blue")
    assert verdict(minted(tokens=tuple(tokens)), given("The sea is calm and red.")).kind == "censored"


def test_an_answer_that_ends_early_differs() -> None:
    """The true weights go on, by a margin."""
    found = verdict(minted(), given("The sea is calm"))
    assert (found.kind, found.at) == ("differs", 4)
    assert "the end" in found.detail


def test_an_answer_may_end_early_where_the_end_is_near() -> None:
    """A token of the end is the second choice."""
    found = verdict(undecided(4, "<|im_end|>"), given("The sea is calm"))
    assert (found.kind, found.at) == ("censored", 4)


def test_an_empty_answer_differs() -> None:
    """A node that says nothing at all."""
    assert verdict(minted(), given("")).kind == "differs"


def test_an_answer_that_goes_on_after_its_end_differs() -> None:
    """Advertisements, for example; all mintings have ended there."""
    found = verdict(minted(), given(RIGHT + " Buy now!"))
    assert (found.kind, found.at) == ("differs", len(checks.WORDS))


def test_an_end_at_which_mintings_part_is_censored() -> None:
    """Its margin is not known."""
    assert verdict(minted(whole=False), given(RIGHT + " Yes.")).kind == "censored"


def test_more_than_the_limit_differs() -> None:
    """The minted answer was cut at `max_tokens`; nobody may give more."""
    ours = minted(finish_reason="length", whole=False)
    assert verdict(ours, given(RIGHT + " and more")).kind == "differs"


def test_what_mintings_part_at_is_censored() -> None:
    """Whatever the margin is."""
    assert verdict(minted(stable=4, whole=False), given("The sea is calm and green.")).kind == "censored"


def test_another_reason_to_end_differs() -> None:
    """With the same text, by the same engine, where all mintings agree."""
    found = verdict(minted(), given(RIGHT, finish_reason="length"))
    assert (found.kind, "length" in found.detail) == ("differs", True)


def test_another_engine_may_count_the_end_otherwise() -> None:
    """No verdict on the reason to end."""
    assert verdict(minted(), given(RIGHT, finish_reason="length", family="vllm")).kind == "agrees"


def call(name: str = "weather", arguments: str = '{"city":"Paris"}') -> Call:
    return Call(name=name, arguments=arguments)


@pytest.mark.parametrize(
    "calls", [(), (call("time"),), (call(arguments='{"city":"Rome"}'),), (call(), call())]
)
def test_other_calls_differ(calls: tuple[Call, ...]) -> None:
    """None, of another tool, with other arguments, or one more."""
    ours = minted(("",), calls=(call(),), text="", tokens=None)
    assert verdict(ours, given("", calls=(call(),))).kind == "agrees"
    assert verdict(ours, given("", calls=calls)).kind == "differs"
    assert verdict(replace(ours, whole=False), given("", calls=calls)).kind == "censored"


def test_tokens_that_are_not_the_text_s_are_not_used() -> None:
    """Bytes of a character that an engine splits: what all mintings gave counts."""
    tokens = (token("caf"), token("\ufffd"), token("\ufffd"), token(" noir"))
    ours = minted(text="café noir", tokens=tokens, stable=4)
    assert verdict(ours, given("cat")).kind == "differs"
    assert verdict(ours, given("café au lait")).kind == "censored"


def test_a_token_of_the_end_is_no_text() -> None:
    """Some engines list it."""
    tokens = (*(token(word) for word in checks.WORDS), token("<|im_end|>", 5.0))
    ours = minted(tokens=tokens, stable=len(tokens))
    assert verdict(ours, given(RIGHT)).kind == "agrees"
    assert verdict(ours, given("The sea is calm and green.")).at == 5
    late = verdict(ours, given(RIGHT + " More."))
    assert (late.kind, late.margin) == ("differs", 5.0)
    near = (*tokens[:-1], spread({"<|im_end|>": -0.7, " More": -0.8, " x": -9.0}, first="<|im_end|>"))
    assert verdict(replace(ours, tokens=near), given(RIGHT + " More.")).kind == "censored"


def test_exchanges_that_failed_are_unusable() -> None:
    """The router has booked them."""
    for outcome in ("crashed", "stalled", "refused"):
        assert verdict(minted(), given("", outcome=outcome)).kind == "unusable"


def test_without_margins_what_every_minting_gave_counts() -> None:
    """An engine without log-probabilities."""
    ours = minted(tokens=None, stable=12)
    assert verdict(ours, given("The boat is calm and blue.")).kind == "differs"
    assert verdict(ours, given("The sea is calm and green.")).kind == "censored"
    assert verdict(ours, given(RIGHT)).kind == "agrees"


# Drawn answers.

SAME_DRAWS = tables.table_for(checks.engine(), "llama.cpp")._replace(drawn=tables.Rates(0.1, 0.9))


def test_drawn_answers_are_judged_by_what_every_minting_gave() -> None:
    """Where an engine draws the same at any load.  A margin says nothing of a draw."""
    ours = minted(seeded=True, stable=3)
    assert judge(ours, given("The boat is calm"), SAME_DRAWS).kind == "differs"
    assert judge(ours, given("The sea is wild"), SAME_DRAWS).kind == "censored"


@pytest.mark.parametrize("family", ["llama.cpp", "vllm", ""])
def test_draws_are_not_compared_where_load_or_engine_changes_them(family: str) -> None:
    """Recorded from llama.cpp: beside other requests 191 of 240 drawn answers of the same weights part."""
    ours = minted(seeded=True, whole=True)
    assert verdict(ours, given("Something else", family=family)).kind == "unusable"


def test_the_probabilities_of_drawn_answers_are_compared() -> None:
    """Up to where the texts part."""
    near, far = scored(0.001), scored(0.05)
    for (ours, theirs), expected in ((near, "agrees"), (far, "differs")):
        drawn = replace(ours, seeded=True)
        assert verdict(drawn, theirs).kind == expected
    few = given(" other", tokens=(token(" other"),))
    assert verdict(replace(near[0], seeded=True), few).kind == "censored"


def test_probabilities_of_another_text_are_not_believed() -> None:
    """They are the node's word; its text is what users get."""
    ours, theirs = scored(0.0)
    found = verdict(replace(ours, seeded=True), replace(theirs, text="something else"))
    assert found.kind == "unusable"


# Distributions.

POSITIONS = 10


def scored(shift: float, *, texts: str = "") -> tuple[Minted, Given]:
    words = tuple(f" w{number}" for number in range(POSITIONS))

    def tokens(by: float) -> tuple[Token, ...]:
        return tuple(spread({word: -0.2 - by, " x": -2.0 + by, " y": -3.0}, first=word) for word in words)

    text = "".join(words)
    return (
        minted(words, tokens=tokens(0.0), stable=POSITIONS),
        given(texts or text, tokens=tokens(shift)),
    )


def test_near_distributions_agree() -> None:
    """Numerics move them a little."""
    assert verdict(*scored(0.001)).kind == "agrees"


def test_far_distributions_differ() -> None:
    """Although every word is right: other weights, of which this text is the likeliest too."""
    found = verdict(*scored(0.05))
    assert (found.kind, found.code, found.matched) == ("differs", "answers.distribution.differs", POSITIONS)


def test_true_distributions_excuse_no_text() -> None:
    """A prefill attack: cheap text, with the numbers of the true weights."""
    ours, theirs = scored(0.0)
    found = verdict(ours, replace(theirs, text=" w0 w1 nonsense"))
    assert (found.kind, found.code) == ("differs", "answers.text.differs")


def test_few_positions_say_nothing_of_distributions() -> None:
    """A mean over a handful is no mean."""
    ours, theirs = scored(0.05)
    few = replace(theirs, tokens=theirs.tokens[:3] if theirs.tokens else None)
    assert verdict(ours, few).kind == "agrees"


def test_what_a_shorter_list_lacks_is_not_counted_as_impossible() -> None:
    """An engine that lists fewer choices."""
    ours, theirs = scored(0.0)
    assert theirs.tokens is not None
    shorter = tuple(replace(each, top=each.top[:2]) for each in theirs.tokens)
    found = verdict(ours, replace(theirs, tokens=shorter))
    assert found.distance is None or found.distance < 0.1


# Prompts.


def test_a_prompt_of_another_length_is_told() -> None:
    """A stale template, or another tokeniser."""
    assert prompt_differs(minted(), given(RIGHT)) is None
    assert prompt_differs(minted(), given(RIGHT, prompt_tokens=None)) is None
    assert "19" in str(prompt_differs(minted(), given(RIGHT, prompt_tokens=19)))


# Vectors.


def embedded(distance: float, dtype: str, **changed: Any) -> Verdict:
    ours = minted(
        operation="embeddings", text=None, tokens=None, vectors=checks.vectors(),
        engine=checks.engine(dtype=dtype),
    )  # fmt: skip
    return verdict(ours, given(None, **{"vectors": checks.vectors(distance), **changed}))


BANDS = list(tables.VECTOR_BANDS.items())


@pytest.mark.parametrize(
    ("dtype", "served"), list(itertools.product(tables.VECTOR_LIMITS, tables.VECTOR_BANDS))
)
def test_a_precision_below_the_reference_s_differs_and_its_own_agrees(dtype: str, served: str) -> None:
    """At both ends of the measured band of what is served."""
    order = list(tables.VECTOR_BANDS)
    expected = "differs" if order.index(served) > order.index(dtype) else "agrees"
    low, high = tables.VECTOR_BANDS[served]
    for distance in (max(low, 1e-9), high):
        found = embedded(distance, dtype)
        assert found.kind == expected
    if expected == "differs":
        assert served in found.detail


def test_bands_do_not_touch() -> None:
    """Each limit is between its band and the next."""
    for (precision, (_, high)), (_, (low, _)) in itertools.pairwise(BANDS):
        assert high < tables.VECTOR_LIMITS[precision] < low


def test_another_number_of_vectors_differs() -> None:
    """Or another length of one."""
    assert embedded(0.0, "float32", vectors=()).kind == "differs"
    assert embedded(0.0, "float32", vectors=(np.zeros(8, "<f4").tobytes(),)).kind == "differs"


def test_vectors_of_an_unknown_precision_are_unusable() -> None:
    """Nothing is known of it."""
    assert embedded(0.5, "fp3").kind == "unusable"


def test_relative_l2() -> None:
    """By hand."""
    assert relative_l2((3.0, 4.0), (3.0, 4.5)) == pytest.approx(0.1)
    assert relative_l2((0.0,), (0.0,)) == 0.0
    assert relative_l2((0.0,), (1.0,)) == float("inf")


# Whatever comes.

pieces = st.sampled_from(["a", "b", " a", "ab", " the", "re", "\ufffd", "", "<|end|>", "é", "\n"])
margins = st.floats(0, 4)


@st.composite
def answers(draw: Any) -> Minted:
    words = draw(st.lists(st.tuples(pieces, margins, pieces), max_size=8))
    tokens = tuple(
        Token(text=word, margin=margin, top=((word, -0.1), (other, -0.1 - margin)))
        for word, margin, other in words
    )
    text = draw(st.one_of(st.just("".join(each.text for each in tokens)), st.text("ab é", max_size=8)))
    whole = draw(st.booleans())
    return minted(
        text=text, tokens=tokens if draw(st.booleans()) else None, whole=whole,
        stable=len(tokens) if whole else draw(st.integers(0, 8)),
        finish_reason=draw(st.sampled_from(["stop", "length", None])), seeded=draw(st.booleans()),
    )  # fmt: skip


@drawn(answers(), st.text("ab é<|>\ufffd\n", max_size=12))
def test_every_answer_has_a_verdict(ours: Minted, text: str) -> None:
    """And a position within it."""
    found = verdict(ours, given(text))
    assert (found.code != "") == (found.kind == "differs")
    assert found.at is None or found.at <= max(len(ours.tokens or ()), len(ours.text or ""))


@drawn(answers())
def test_the_minted_answer_itself_never_differs(ours: Minted) -> None:
    """Whatever its tokens are."""
    found = verdict(ours, given(ours.text, finish_reason=ours.finish_reason))
    assert found.kind == ("unusable" if ours.seeded else "agrees")


@st.composite
def walks(draw: Any) -> tuple[Minted, str]:
    """A minted answer, and one that true weights may give: it leaves the path where the second choice is near."""
    words = draw(st.lists(st.tuples(pieces, margins, pieces), min_size=1, max_size=8))
    tokens = tuple(
        Token(text=word, margin=margin, top=((word, -0.1), (other, -0.1 - margin), ("zz", -30.0)))
        for word, margin, other in words
    )
    text = "".join(each.text for each in tokens)
    near = [index for index, each in enumerate(tokens) if each.margin <= 0.2]
    found = text
    if near:
        at = draw(st.sampled_from(near))
        found = (
            "".join(each.text for each in tokens[:at])
            + tokens[at].top[1][0]
            + draw(st.text("ab ", max_size=5))
        )
    return minted(text=text, tokens=tokens, stable=len(tokens)), found


@drawn(walks())
def test_an_answer_that_leaves_the_path_where_it_may_never_differs(pair: tuple[Minted, str]) -> None:
    """However the texts look afterwards, and wherever they first differ."""
    ours, text = pair
    assert verdict(ours, given(text)).kind != "differs"


def test_a_token_that_splits_a_character_has_no_margin() -> None:
    """
    Recorded from llama.cpp: it joins the tokens of `ê`, and gives the choices of the last one alone.

    The margin, 0.8, is that of the second byte; the engine was undecided at the first one.
    """
    split = Token(text=" ê", margin=0.82, top=(("\ufffd", -0.753309), ("\ufffd", -1.568993)))
    ours = minted(text="L'alphabet ê", tokens=(token("L'alphabet"), split), stable=2)
    assert verdict(ours, given("L'alphabet - Ils")).kind == "censored"
