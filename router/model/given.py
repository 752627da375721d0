"""
What a node has answered to a check, in the form in which the verifier judges it (`verifier.answers.checks.Given`).  Pure.

It takes the bytes that the node sent: a whole answer, or the events of a stream.  What it cannot read it leaves out, and
what is too long it cuts: the verifier judges what is there.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from router.model import dialects
from router.model.answers import DONE
from router.model.usage import Usage
from verifier.answers.checks import (
    MAX_DIMENSIONS,
    MAX_GIVEN,
    MAX_TEXT,
    MAX_TOKENS,
    MAX_VECTORS,
    Call,
    Given,
    Token,
    encode,
)

_MAX_PIECE: Final = 512
_MAX_TOP: Final = 20
_MAX_CALLS: Final = 128
_MAX_NAME: Final = 128
_MAX_COUNT: Final = 1 << 31
_MAX_SECONDS: Final = 1e6
_MAX_LOGPROB: Final = 1e6


class Timing(Struct, frozen=True):
    """How an answer came."""

    outcome: str
    seconds: float
    first_token_s: float | None = None
    claimed: Usage | None = None
    streamed: bool = False


def of_whole(body: bytes, timing: Timing) -> Given:
    """What a whole answer gives; without texts and vectors if there are none."""
    document = dialects.decode(body)
    if not isinstance(document, dict):
        return _given(timing, {})
    if isinstance(document.get("data"), list):
        return _given(timing, {"vectors": _vectors(document["data"])})
    return _given(timing, _text_of([document]))


def of_events(events: Iterable[bytes], timing: Timing) -> Given:
    """What the data of a stream's events give together."""
    documents = [dialects.decode(event) for event in events if event != DONE]
    return _given(timing, _text_of([each for each in documents if isinstance(each, dict)]))


def _given(timing: Timing, found: Mapping[str, Any]) -> Given:
    claimed = timing.claimed
    given = Given(
        outcome=timing.outcome[:_MAX_NAME],
        prompt_tokens=None if claimed is None else min(claimed.prompt, _MAX_COUNT),
        completion_tokens=None if claimed is None else min(claimed.completion, _MAX_COUNT),
        seconds=_seconds(timing.seconds),
        first_token_s=None if timing.first_token_s is None else _seconds(timing.first_token_s),
        streamed=timing.streamed,
        **found,
    )
    if len(encode(given)) <= MAX_GIVEN:
        return given
    return structs.replace(given, tokens=None, calls=(), vectors=None)


def _seconds(seconds: float) -> float:
    return min(max(seconds, 0.0), _MAX_SECONDS)


def _text_of(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Text, calls, tokens and the reason to finish of the first choice, of a whole answer or of its chunks."""
    texts: list[str] = []
    tokens: list[Token] = []
    calls: dict[int, list[str]] = {}
    reason: str | None = None
    has_choice = False
    for document in documents:
        for choice in _first_choices(document):
            has_choice = True
            said = choice.get("message") or choice.get("delta")
            said = said if isinstance(said, dict) else {}
            text = choice.get("text") if isinstance(choice.get("text"), str) else said.get("content")
            if isinstance(text, str):
                texts.append(text)
            _add_calls(calls, said.get("tool_calls"))
            tokens += _tokens_of(choice.get("logprobs"))
            ended = choice.get("finish_reason")
            reason = ended if isinstance(ended, str) and dialects.is_end(ended) else reason
    if not has_choice:
        return {}
    return {
        "text": "".join(texts)[:MAX_TEXT],
        "finish_reason": None if reason is None else reason[:_MAX_NAME],
        "calls": tuple(
            Call(name=name[:_MAX_NAME], arguments=arguments[:MAX_TEXT])
            for _, (name, arguments) in sorted(calls.items())
        ),
        "tokens": tuple(tokens[:MAX_TOKENS]) or None,
    }


def _first_choices(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = document.get("choices")
    found = choices if isinstance(choices, list) else []
    return [each for each in found if isinstance(each, dict) and each.get("index", 0) == 0]


def _add_calls(calls: dict[int, list[str]], given: Any) -> None:
    for place, call in enumerate(given if isinstance(given, list) else []):
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            continue
        index = call.get("index")
        at = index if type(index) is int else place
        if at not in calls and len(calls) >= _MAX_CALLS:
            continue
        name, arguments = call["function"].get("name"), call["function"].get("arguments")
        found = calls.setdefault(at, ["", ""])
        found[0] = found[0] or (name if isinstance(name, str) else "")
        found[1] += arguments if isinstance(arguments, str) else ""


def _tokens_of(logprobs: Any) -> list[Token]:
    """The positions in either form: a list of positions, or lists of tokens and of their alternatives."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [
            _token(each.get("token"), _pairs(each.get("top_logprobs")))
            for each in content
            if isinstance(each, dict)
        ]
    texts, tops = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not isinstance(texts, list) or not isinstance(tops, list):
        return []
    return [
        _token(text, list(top.items()) if isinstance(top, dict) else [])
        for text, top in zip(texts, tops, strict=False)
    ]


def _pairs(top: Any) -> list[tuple[Any, Any]]:
    found = top if isinstance(top, list) else []
    return [(each.get("token"), each.get("logprob")) for each in found if isinstance(each, dict)]


def _token(text: Any, top: Sequence[tuple[Any, Any]]) -> Token:
    known = [
        (token[:_MAX_PIECE], max(float(logprob), -_MAX_LOGPROB))
        for token, logprob in top
        if isinstance(token, str)
        and type(logprob) in (int, float)
        and not math.isnan(logprob)
        and logprob <= _MAX_LOGPROB
    ]
    known = sorted(known, key=lambda pair: -pair[1])[:_MAX_TOP]
    margin = known[0][1] - known[1][1] if len(known) > 1 else 0.0
    return Token(
        text=text[:_MAX_PIECE] if isinstance(text, str) else "",
        margin=min(margin, _MAX_LOGPROB),
        top=tuple(known),
    )


def _vectors(data: Sequence[Any]) -> tuple[bytes, ...] | None:
    """The vectors as float32, little-endian, in the order of their inputs; `None` if one cannot be read."""
    places = {each.get("index", place): each for place, each in enumerate(data) if isinstance(each, dict)}
    if len(places) != len(data) or not 1 <= len(data) <= MAX_VECTORS or set(places) != set(range(len(data))):
        return None
    found = [_vector(places[place].get("embedding")) for place in range(len(data))]
    vectors = [vector for vector in found if vector is not None]
    return tuple(vectors) if len(vectors) == len(found) else None


def _vector(given: Any) -> bytes | None:
    if isinstance(given, str):
        try:
            packed = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError):
            return None
        if len(packed) % 4:
            return None
        numbers: Sequence[Any] = struct.unpack(f"<{len(packed) // 4}f", packed)
    else:
        numbers = given if isinstance(given, list) else []
        if not all(type(number) in (int, float) for number in numbers):
            return None
    if not 1 <= len(numbers) <= MAX_DIMENSIONS:
        return None
    try:
        vector = struct.pack(f"<{len(numbers)}f", *numbers)
    except (OverflowError, struct.error):
        return None
    return vector if all(map(math.isfinite, struct.unpack(f"<{len(numbers)}f", vector))) else None
