"""
Holds an answer that a node gave against the minted one.  Pure.

What a user gets is the text, so the text is compared, up to its first difference.  If the true weights could have gone
either way there, nothing follows (`censored`); else the answer differs.  What else the node says of its answer, its
tokens and their probabilities, is believed only where it agrees with the text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from verifier.answers.checks import Given, Minted, Token, Verdict, floats
from verifier.answers.tables import Table, precision_at

TEXT: Final = "answers.text.differs"
VECTOR: Final = "answers.vector.differs"
DISTRIBUTION: Final = "answers.distribution.differs"
PROMPT: Final = "answers.prompt.differs"

_COMPLETED: Final = "completed"
LEAST_POSITIONS: Final = 4
"""
Over fewer positions a mean distance of distributions says nothing.

Of single positions the largest honest distance was 0.0072 in llama.cpp and 0.14 between it and vLLM; of four, 0.0041 and 0.014.
"""
_SHOWN: Final = 40


def judge(minted: Minted, given: Given, table: Table) -> Verdict:
    """
    Give the verdict on an answer.

    It is `unusable` if the node gave no whole answer, which is for the router's own statistics, or if the table knows
    no engine like the node's.

    Raises:
        RequestError: A vector has numbers that are not finite.
    """
    if given.outcome != _COMPLETED:
        return Verdict(kind="unusable", detail=f"the exchange was {given.outcome}")
    if minted.text is None:
        return _judge_vectors(minted, given, table)
    if given.text is None:
        return _unusable("there is no text")
    if minted.seeded and table.drawn is None:
        return _judge_draw(minted, given, table)
    found = _judge_text(minted, given, table)
    if found.kind in ("agrees", "censored"):
        return _judge_distribution(minted, given, table, found)
    return found


def _judge_draw(minted: Minted, given: Given, table: Table) -> Verdict:
    """The same seed gives other tokens: only the probabilities can be compared, up to where the texts part."""
    if not minted.tokens or not given.tokens or table.distribution_limit is None:
        return _unusable("another text may be drawn, and there are no probabilities")
    if _starts(given.tokens, given.text or "") is None:
        return _unusable("the probabilities are not those of the text")
    found = mean_distance(minted.tokens, given.tokens, None)
    if found is None:
        return Verdict(kind="censored", detail="the texts part too early")
    return _within(found, table.distribution_limit, Verdict(kind="agrees", matched=found[1]))


def prompt_differs(minted: Minted, given: Given) -> str | None:
    """
    Say how the prompt of a node was rendered otherwise, or `None`.

    A stale chat template or another tokeniser is an honest mistake: it is for a review, never for an incident.  What a
    node claims it has counted is believed only against itself.
    """
    if given.outcome != _COMPLETED or given.prompt_tokens is None or minted.prompt_tokens == 0:
        return None
    if given.prompt_tokens == minted.prompt_tokens:
        return None
    return f"the prompt has {given.prompt_tokens} tokens, and {minted.prompt_tokens} by the reference"


def _unusable(why: str) -> Verdict:
    return Verdict(kind="unusable", detail=why)


# Texts.


def _judge_text(minted: Minted, given: Given, table: Table) -> Verdict:
    expected, found = minted.text or "", given.text or ""
    at = _common(expected, found)
    if at == len(expected) == len(found):
        return _judge_end(minted, given, table)
    if minted.tokens is None or minted.seeded:
        return _judge_stable(minted, at, expected, found)
    starts = _starts(minted.tokens, expected)
    if starts is None:
        return _judge_stable(minted, at, expected, found)
    return _judge_tokens(minted, minted.tokens, starts, at, found, table)


def _judge_tokens(
    minted: Minted, tokens: Sequence[Token], starts: Sequence[int], at: int, found: str, table: Table
) -> Verdict:
    """The verdict on a difference at character *at*, by the margins of the tokens up to it."""
    shown = sum(start < starts[-1] for start in starts[:-1])
    place = next((i for i in range(shown) if starts[i + 1] > at), shown)
    for position in range(min(place + 1, len(tokens))):
        if _may_part(tokens[position], found[starts[position] :], table.delta):
            return _verdict_at(
                "censored", position, tokens, starts, found, "the true weights are undecided here"
            )
    if place == len(tokens):
        return _judge_late(minted, tokens, starts, found)
    if minted.stable <= place:
        return _verdict_at("censored", place, tokens, starts, found, "mintings part here or before")
    return _verdict_at("differs", place, tokens, starts, found, "")


def _may_part(token: Token, rest: str, delta: float) -> bool:
    """
    Whether the true weights could have chosen, here, another token that begins *rest*, the given text from here on.

    Text hides where tokens part: `th` and `e` read like `the`.  So every position up to the difference is asked.
    """
    if len(token.top) < 2 or not _is_whole(token):
        return True
    if token.margin > delta:
        return False
    best = token.top[0][1]
    near = [text for text, logprob in token.top if best - logprob <= delta]
    if token.text in near:
        # Once: another token may have the same text.
        near.remove(token.text)
    # A special token, such as the end, has no text or one that is not shown: then the given text ends here.
    fits = any(rest.startswith(text) or (not rest and _is_special(text)) for text in near)
    unseen = all(best - logprob <= delta for _, logprob in token.top)
    return fits or unseen or _cut(rest, near)


def _is_whole(token: Token) -> bool:
    """
    Whether the margin is that of the whole token, and of the first choice.

    llama.cpp joins tokens that split a character, and gives the choices of the last one alone.
    """
    return token.top[0][0] == token.text


def _cut(rest: str, near: Sequence[str]) -> bool:
    """Whether the given text ends, or breaks a character, within one of these tokens."""
    return any(text.startswith(rest) for text in near if rest) or any("\ufffd" in text for text in near)


def _is_special(text: str) -> bool:
    return not text or (text.startswith("<") and text.endswith(">"))


def _judge_late(minted: Minted, tokens: Sequence[Token], starts: Sequence[int], found: str) -> Verdict:
    """The given text goes on where the minted one has ended."""
    place = len(tokens)
    if minted.finish_reason == "stop" and not minted.whole:
        return _verdict_at("censored", place, tokens, starts, found, "the margin of the end is not known")
    return _verdict_at("differs", place, tokens, starts, found, "the answer goes on after its end")


def _judge_stable(minted: Minted, at: int, expected: str, found: str) -> Verdict:
    """Without margins: what every minting gave is what the true weights give."""
    matched, stable = at, minted.stable
    if minted.tokens is not None:
        starts = _starts(minted.tokens, expected)
        stable = minted.stable if starts is None else starts[min(minted.stable, len(minted.tokens))]
        matched = at if starts is None else sum(start <= at for start in starts[1:])
    is_late = at == len(expected)
    if at < stable or (is_late and minted.whole):
        detail = _difference(expected, found, at)
        return Verdict(kind="differs", at=matched, matched=matched, code=TEXT, detail=detail)
    return Verdict(kind="censored", at=matched, matched=matched, detail="mintings part here too")


def _judge_end(minted: Minted, given: Given, table: Table) -> Verdict:
    """The texts are equal.  Calls of tools are no text, and neither is why the answer ended."""
    count = len(minted.tokens) if minted.tokens is not None else len(minted.text or "")
    ours, theirs = _calls(minted), _calls(given)
    detail = ""
    if ours != theirs:
        names = ", ".join(name for name, _ in theirs) or "no tool"
        detail = f"it calls {names}, not as minted"
    elif _ended_otherwise(minted, given) and table.same_family:
        # Another family may count the last token otherwise.
        detail = f"it ends by {given.finish_reason}, not by {minted.finish_reason}"
    if not detail:
        return Verdict(kind="agrees", matched=count)
    if not minted.whole:
        return Verdict(kind="censored", at=count, matched=count, detail=detail[:2000])
    return Verdict(kind="differs", at=count, matched=count, code=TEXT, detail=detail[:2000])


def _calls(answer: Minted | Given) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.calls]


def _ended_otherwise(minted: Minted, given: Given) -> bool:
    reasons = (minted.finish_reason, given.finish_reason)
    return reasons in (("stop", "length"), ("length", "stop"))


def _verdict_at(
    kind: str, place: int, tokens: Sequence[Token], starts: Sequence[int], found: str, why: str
) -> Verdict:
    margin = tokens[place].margin if place < len(tokens) else None
    expected = "".join(token.text for token in tokens)
    detail = f"{_difference(expected, found, starts[place])}{': ' if why else ''}{why}"
    if kind == "differs":
        return Verdict(kind="differs", at=place, margin=margin, matched=place, code=TEXT, detail=detail)
    return Verdict(kind="censored", at=place, margin=margin, matched=place, detail=detail)


def _difference(expected: str, found: str, at: int) -> str:
    def shown(text: str) -> str:
        part = text[at : at + _SHOWN]
        return repr(part) if part else "the end"

    return f"{shown(found)} instead of {shown(expected)}"


def _common(left: str, right: str) -> int:
    """How many characters two texts have in common from their beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _starts(tokens: Sequence[Token], text: str) -> list[int] | None:
    """
    Give the character at which each token begins, and where the last one ends; `None` if they are not the text's.

    Tokens that are no text, such as the end of a turn, come last and have no length.
    """
    shown = list(tokens)
    while shown and _is_special(shown[-1].text) and not text.endswith(shown[-1].text):
        shown.pop()
    if "".join(token.text for token in shown) != text:
        return None
    starts = list(itertools.accumulate((len(token.text) for token in shown), initial=0))
    return starts + [starts[-1]] * (len(tokens) - len(shown))


# Distributions.


def _judge_distribution(minted: Minted, given: Given, table: Table, text: Verdict) -> Verdict:
    """
    Compare the distributions over the positions before the texts part.

    They are the node's own word.  So they can only speak against it.

    Args:
        text: What the texts say; it stands, with the distance, if the distributions say nothing against the node.
    """
    if table.distribution_limit is None or not minted.tokens or not given.tokens:
        return text
    found = mean_distance(minted.tokens, given.tokens, text.matched)
    return text if found is None else _within(found, table.distribution_limit, text)


def _within(found: tuple[float, int], limit: float, text: Verdict) -> Verdict:
    """The verdict of the texts with a mean distance over so many positions, unless that is above the limit."""
    mean, positions = found
    if mean <= limit:
        return msgspec.structs.replace(text, distance=mean)
    detail = f"the distance of the distributions is {mean:.4f} over {positions} positions"
    return Verdict(kind="differs", at=0, distance=mean, matched=positions, code=DISTRIBUTION, detail=detail)


def mean_distance(
    ours: Sequence[Token], theirs: Sequence[Token], matched: int | None
) -> tuple[float, int] | None:
    """
    Give the mean distance of the distributions, and over how many positions; `None` if these are too few.

    It goes as far as the tokens are the same, and *matched* positions at most, and one more: what came before is the same.
    """
    found = []
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if matched is not None and index > matched:
            break
        distance = distribution_distance(mine, other)
        if distance is not None:
            found.append(distance)
        if mine.text != other.text:
            break
    if len(found) < LEAST_POSITIONS:
        return None
    return math.fsum(found) / len(found), len(found)


def distribution_distance(ours: Token, theirs: Token) -> float | None:
    """
    Gonka's distance of two lists of log-probabilities: the mean of ``|a − b| / (|a| + |b|) / 2`` over ours.

    What is not in their list has at most the least of it.
    """
    if not ours.top or not theirs.top or "\ufffd" in ours.top[0][0]:
        return None
    known = dict(theirs.top)
    least = min(known.values())
    total = 0.0
    for text, a in ours.top:
        b = known.get(text, min(least, a))
        size = abs(a) + abs(b)
        total += abs(a - b) / size / 2 if size else 0.0
    return total / len(ours.top)


# Vectors.


def _judge_vectors(minted: Minted, given: Given, table: Table) -> Verdict:
    if given.vectors is None or minted.vectors is None:
        return _unusable("there are no vectors")
    limit = table.vector_limit
    if limit is None:
        return _unusable(f"nothing is known of vectors in {minted.engine.dtype}")
    if len(given.vectors) != len(minted.vectors):
        detail = f"there are {len(given.vectors)} vectors for {len(minted.vectors)} inputs"
        return Verdict(kind="differs", at=0, matched=0, code=VECTOR, detail=detail)
    worst, at = 0.0, 0
    for index, (ours, theirs) in enumerate(zip(minted.vectors, given.vectors, strict=True)):
        distance = relative_l2(floats(ours), floats(theirs))
        if distance > worst:
            worst, at = distance, index
    if worst <= limit:
        return Verdict(kind="agrees", distance=worst, matched=len(minted.vectors))
    detail = f"the relative L2 distance is {worst:.2g}, above {limit:.2g}: {precision_at(worst)}"
    finite = min(worst, 1e9)
    return Verdict(kind="differs", at=at, distance=finite, matched=at, code=VECTOR, detail=detail)


def relative_l2(expected: Sequence[float], found: Sequence[float]) -> float:
    """``‖found − expected‖ / ‖expected‖``; infinite if the lengths differ."""
    if len(expected) != len(found):
        return math.inf
    size = math.sqrt(math.fsum(a * a for a in expected))
    off = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(expected, found, strict=True)))
    return off / size if size else (math.inf if off else 0.0)
