"""
Going on with a stream that broke: what another node is asked, and how its chunks are joined to those before.  Pure.

The node that goes on is given the text that came as the beginning of its own: a completion's prompt grows by it, and a
chat's last message is the assistant's, left open.  vLLM 0.32 and llama.cpp go on from there if the text ends where a
token does, and not otherwise (docs/longer-work.md).  So it is done only where all of that is known: one text, nothing
that its beginning would decide anew, and no end that a chat template may change (docs/adr/0068).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from router.model import dialects
from router.model.dialects import Choice
from router.model.uniform import Added

MAX_TEXT: Final = 1 << 20
"""Characters: a longer text is not gone on from."""
CHAT: Final = "chat/completions"
TEXT: Final = "completions"
CHAT_ENGINES: Final = frozenset({"vllm", "llama.cpp"})
"""Engines of which it was seen that they go on with an open message of the assistant's."""
_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
_MARKS: Final = ("<think", "</think", "<|", "[THINK]", "[/THINK]", "<thought", "<reasoning")
"""Chat templates cut thoughts out of what the assistant has said, and such signs may be tokens of another kind."""


def _is_any(_: Any) -> bool:
    return True


def _is_off(value: Any) -> bool:
    return not value


def _is_one(value: Any) -> bool:
    return type(value) is int and value == 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_messages(value: Any) -> bool:
    """Whether they are plain, and it is the assistant's turn."""
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        return False
    return bool(value[-1]["role"] == "user")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= {"role", "content"} and value.get("role") in _ROLES


_COMMON: Final[Mapping[str, Callable[[Any], bool]]] = {
    "model": _is_text,
    "stream": lambda value: value is True,
    "stream_options": lambda value: isinstance(value, dict) and value.keys() <= {"include_usage"},
    "n": _is_one,
    "best_of": _is_one,
    "max_tokens": lambda value: type(value) is int and value > 0,
    "temperature": _is_any,
    "top_p": _is_any,
    "top_k": _is_any,
    "min_p": _is_any,
    "seed": _is_any,
    "user": _is_any,
    "metadata": _is_any,
    "safety_identifier": _is_any,
    "prompt_cache_key": _is_any,
    "service_tier": _is_any,
    "store": _is_any,
    # Engines count these over what they have made themselves, and so from the seam on.
    "frequency_penalty": _is_off,
    "presence_penalty": _is_off,
    "repetition_penalty": lambda value: type(value) in (int, float) and value == 1,
    # vLLM holds back text where a stop may begin, and so cuts tokens in two.
    "stop": _is_off,
    "logprobs": lambda value: value is False,
    "echo": _is_off,
}
_KEEPS: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = {
    CHAT: {
        **_COMMON,
        "messages": _are_messages,
        "max_completion_tokens": _COMMON["max_tokens"],
        "tools": _is_off,
        "top_logprobs": _is_off,
        "response_format": lambda value: value == {"type": "text"},
    },
    TEXT: {**_COMMON, "prompt": _is_text},
}
"""By operation, the members of a request with which its answer can be gone on with.  ``null`` is the default."""


def may_go_on(document: Mapping[str, Any], operation: str, added: Added) -> bool:
    """
    Whether another node could go on with the answer to a request, if its stream breaks.

    Args:
        document: As nodes see it.
        operation: By its name.
        added: What the router has added: log-probabilities that no client sees do not matter.
    """
    keeps = _KEEPS.get(operation)
    if keeps is None or document.get("stream") is not True:
        return False
    are_hidden = added.hides_logprobs and added.shown is None
    return all(
        value is None
        or (are_hidden and name in ("logprobs", "top_logprobs"))
        or ((check := keeps.get(name)) is not None and check(value))
        for name, value in document.items()
    )


class Delivered:
    """The text of a stream, as long as it is one plain text that has not ended."""

    __slots__ = ("_is_plain", "_size", "_text", "head")

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._size = 0
        self._is_plain = True
        self.head: dict[str, Any] | None = None
        """What all chunks of the stream have in common."""

    @property
    def text(self) -> str | None:
        """All of it; `None` if there was something else."""
        return self._text.getvalue() if self._is_plain and self._size <= MAX_TEXT else None

    def add(self, data: bytes, choices: Sequence[Choice]) -> None:
        """Add an event and its choices."""
        if self.head is None:
            document = dialects.decode(data)
            found = document if isinstance(document, dict) else {}
            self.head = {name: found[name] for name in ("id", "created") if name in found}
        for choice in choices:
            said = choice.said
            content = choice.text or (said.content if said is not None else None) or ""
            self._is_plain &= choice.index == 0 and not choice.has_ended and choice.generated == content
            self._size += len(content)
            if self._size <= MAX_TEXT:
                self._text.write(content)


def may_be_seam(text: str, operation: str) -> bool:
    """Whether a text that came ends where another node can go on: at a whole character, and at nothing of a template's."""
    if not text or text.endswith("\ufffd") or any(mark in text for mark in _MARKS):
        return False
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            # Half of a pair of surrogates.
            return False
    # Templates strip what the assistant has said, and the white space would come twice.
    return operation != CHAT or text == text.strip()


def ask_to_go_on(
    document: Mapping[str, Any], operation: str, text: str, tokens: int, limits: Sequence[str]
) -> dict[str, Any] | None:
    """
    The request that the next node gets.

    Args:
        document: The request as the first node got it.
        operation: By its name.
        text: What has come.
        tokens: How many tokens that is.
        limits: The members that bound the tokens of an answer.

    Returns:
        The request; `None` if no tokens are left to ask for.
    """
    found = dict(document)
    for name in limits:
        if found.get(name) is not None:
            found[name] -= tokens
            if found[name] <= 0:
                return None
    if operation == CHAT:
        found["messages"] = [*found["messages"], {"role": "assistant", "content": text}]
        found["continue_final_message"], found["add_generation_prompt"] = True, False
    else:
        found["prompt"] += text
    return dict(sorted(found.items()))


class PartTold(Struct, frozen=True):
    """What a client is told of a part of its answer that another node began."""

    node: str
    outcome: str
    """How it ended there."""
    tokens: int


def told(parts: Sequence[PartTold]) -> dict[str, Any]:
    """The mark of an answer of several nodes: the parts before the one that is under way, in order."""
    return {"continued": [{"node": p.node, "outcome": p.outcome, "tokens": p.tokens} for p in parts]}


class Splice:
    """
    Joins a node's chunks to those before: they become chunks of the same answer, and the first one bears the mark.

    Args:
        head: What all chunks of the answer have in common.
        parts: The parts before.
    """

    __slots__ = ("_head", "_mark")

    def __init__(self, head: Mapping[str, Any], parts: Sequence[PartTold]) -> None:
        self._head = head
        self._mark: dict[str, Any] | None = told(parts)

    def join(self, data: bytes) -> bytes:
        """A chunk as the client gets it."""
        document = dialects.decode(data)
        if not isinstance(document, dict):
            return data
        document |= self._head
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                # Clients that put deltas together would have it twice.
                delta.pop("role", None)
        # A node writes no mark of ours.
        document.pop("touchstone", None)
        if self._mark is not None:
            document["touchstone"], self._mark = self._mark, None
        return dialects.encode(document)
