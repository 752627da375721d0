"""
Real answers that another operator's node scores: which may be, what it is asked, and what its scores say.  Pure.

The other node reads prompt and answer at once, and gives the log-probability of each token (vLLM's ``prompt_logprobs``).
At temperature 0 each token of an answer is the first choice of the weights that gave it.  By how much it is not the
first choice of the other node's is the statistic (Token-DiFR at T = 0, arXiv 2511.20621).

    scorable        the answer's text, if it may be scored
    scored_request  what the other node is asked
    read_scores     what its answer says
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from router.model import dialects

MAX_BYTES: Final = 32 << 10
"""Of a request with its answer: each token of it costs the other node as much as a word of a prompt."""
_CHAT: Final = "chat.completions"
OPERATIONS: Final = (_CHAT, "completions")
"""By the verifier's names."""
_NEUTRAL: Final = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "seed", "logprobs",
        "top_logprobs", "max_tokens", "max_completion_tokens", "user", "metadata", "safety_identifier",
        "service_tier", "prompt_cache_key", "store",
    }
)  # fmt: skip
"""Members that change nothing of which token is the first choice, at temperature 0."""
_NEUTRAL_AT: Final[Mapping[str, float]] = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""Members that change nothing if they have this value."""
_ROLES: Final = ("system", "user", "assistant")
_ENDS: Final = ("stop", "length")
_LEAST: Final = 1e6
"""No log-probability is below the negative of it: the verifier takes no such number."""


class Score(Struct, frozen=True):
    """What another node says of the tokens of an answer."""

    tokens: int
    mean_nll: float
    """The mean cross-entropy, nat a token."""
    mean_gap: float
    """The mean of how far a token is behind the first choice, nat."""
    largest_gap: float
    disagreements: int
    """Positions at which the token is not the first choice."""


class UnableError(ValueError):
    """The answer has no log-probabilities of the prompt: its engine does not give them."""


def may_be_scored(document: Mapping[str, Any], operation: str) -> bool:
    """
    Whether the answer to a request may be scored.

    Args:
        document: The request, as nodes get it.
        operation: As the verifier calls it.
    """
    temperature = document.get("temperature")
    if operation not in OPERATIONS or type(temperature) not in (int, float) or temperature != 0:
        return False
    for name, value in document.items():
        if value is None or name in _NEUTRAL:
            continue
        if name not in _NEUTRAL_AT or type(value) not in (int, float) or value != _NEUTRAL_AT[name]:
            return False
    if operation != _CHAT:
        prompt = document.get("prompt")
        return isinstance(prompt, str) and prompt != ""
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(_is_plain(each) for each in messages):
        return False
    # After the assistant's own words engines go on in different ways.
    return bool(messages) and messages[-1]["role"] == "user"


def _is_plain(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
    )


def text_of(documents: Sequence[Any], operation: str) -> str | None:
    """
    The text of a whole answer, or of the events of a stream.

    Returns:
        `None` if it has none, has no end, or has anything beside text: calls of tools, or thoughts.
    """
    texts: list[str] = []
    end: Any = None
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("choices"), list):
            return None
        for choice in document["choices"]:
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                return None
            text = _said(choice) if operation == _CHAT else choice.get("text")
            if not isinstance(text, str):
                return None
            texts.append(text)
            end = choice.get("finish_reason") or end
    text = "".join(texts)
    return text if text and end in _ENDS else None


def _said(choice: Mapping[str, Any]) -> str | None:
    said = choice.get("message") or choice.get("delta") or {}
    if not isinstance(said, dict) or any(
        value for name, value in said.items() if name not in ("role", "content")
    ):
        return None
    content = said.get("content")
    return "" if content is None else content if isinstance(content, str) else None


def scored_request(document: Mapping[str, Any], operation: str, text: str, salt: str) -> dict[str, Any]:
    """
    What a node is asked that is to score an answer.

    Args:
        document: The request that was answered.
        operation: As the verifier calls it.
        text: The answer.
        salt: Drawn anew: with the prefix cache vLLM's scores depend on what was asked before (vllm#42019).
    """
    found: dict[str, Any] = {
        "model": document["model"], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1, "cache_salt": salt,
    }  # fmt: skip
    if operation != _CHAT:
        return {**found, "prompt": document["prompt"] + text}
    messages = [*document["messages"], {"role": "assistant", "content": text}]
    return {**found, "messages": messages, "add_generation_prompt": False, "continue_final_message": True}


def read_scores(body: bytes, text: str) -> Score | None:
    """
    Read the scores of an answer.

    The tokens of the answer are the last ones of the prompt: as many as make up its text, from the end.

    Args:
        body: What the other node answered.
        text: The answer that it scored.

    Returns:
        `None` if the tokens are not exactly the text, or are not in the form that vLLM gives them.

    Raises:
        UnableError: there are no log-probabilities of the prompt.
    """
    found: list[tuple[float, float]] = []
    left = text
    positions = _positions(dialects.decode(body))
    while left:
        position = _read_position(positions[-1 - len(found)]) if len(found) < len(positions) else None
        if position is None or not left.endswith(position[0]):
            return None
        # The first bytes of a character have no text; the last ones have it all.
        piece, logprob, best = position
        left = left[: len(left) - len(piece)]
        found.append((logprob, best - logprob))
    gaps = [gap for _, gap in found]
    if not found:
        return None
    return Score(
        tokens=len(found),
        mean_nll=-math.fsum(logprob for logprob, _ in found) / len(found),
        mean_gap=math.fsum(gaps) / len(found),
        largest_gap=max(gaps),
        disagreements=sum(gap > 0 for gap in gaps),
    )


def _positions(document: Any) -> list[Any]:
    """By position of the prompt; raises `UnableError`.  They are beside the choices of a chat, and in that of a text."""
    choices = document.get("choices") if isinstance(document, dict) else None
    places = [document, *choices[:1]] if isinstance(choices, list) else []
    for place in places:
        found = place.get("prompt_logprobs") if isinstance(place, dict) else None
        if isinstance(found, list) and any(found):
            return found
    raise UnableError


def _read_position(position: Any) -> tuple[str, float, float] | None:
    """
    A position's token with its log-probability, and that of the first choice.

    There is one entry if they are the same.  Of two, one has the rank 1; a token that is as likely has 2.
    """
    if not isinstance(position, dict) or not 1 <= len(position) <= 2:
        return None
    entries = [_read_entry(each) for each in position.values()]
    known = sorted((each for each in entries if each is not None), key=lambda each: each[2])
    if len(known) != len(position) or known[0][2] != 1 or (len(known) > 1 and known[1][2] <= 1):
        return None
    first, own = known[0], known[-1]
    if own[1] > first[1]:
        return None
    return own[0], own[1], first[1]


def _read_entry(entry: Any) -> tuple[str, float, int] | None:
    if not isinstance(entry, dict):
        return None
    piece, logprob, rank = entry.get("decoded_token"), entry.get("logprob"), entry.get("rank")
    if not isinstance(piece, str) or not isinstance(logprob, int | float) or type(rank) is not int:
        return None
    is_one = not isinstance(logprob, bool) and -_LEAST <= logprob <= 0
    return (piece, float(logprob), rank) if is_one else None
