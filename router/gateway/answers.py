"""
What nodes answer, read strictly and only as far as the router must understand it.

Whole answers and the events of a stream are decoded into the few fields that say what was
delivered and whether that is all; what goes on to the client is the node's own bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from router.model.outcomes import Outcome, of_status
from router.model.usage import Usage

_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Function(Struct, frozen=True, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, frozen=True, gc=False):
    function: _Function | None = None


class _Said(Struct, frozen=True, gc=False):
    """A message, or what a chunk adds to it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """vLLM's older name for it; both were sent for a while."""
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    """The older form of a tool's call."""

    @property
    def text(self) -> str:
        """All that a model made of it."""
        thought = self.reasoning or self.reasoning_content
        if not (thought or self.refusal or self.tool_calls or self.function_call):
            return self.content or ""
        parts = [thought or "", self.content or "", self.refusal or ""]
        for function in (*(call.function for call in self.tool_calls or ()), self.function_call):
            if function is not None:
                parts += [function.name or "", function.arguments or ""]
        return "".join(parts)


class _Usage(Struct, frozen=True, gc=False):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


class _Choice(Struct, frozen=True, gc=False):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        """What the model said in it."""
        if self.text:
            return self.text
        said = self.message if self.delta is None else self.delta
        return "" if said is None else said.text


class Chunk(Struct, frozen=True, gc=False):
    """One event of a stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Completion(Struct, frozen=True, gc=False):
    choices: Annotated[list[_Choice], Meta(min_length=1)]
    usage: _Usage | None = None


class _Embedding(Struct, frozen=True, gc=False):
    embedding: Annotated[list[float], Meta(min_length=1)] | Annotated[str, Meta(min_length=1)]


class _Embeddings(Struct, frozen=True, gc=False):
    data: Annotated[list[_Embedding], Meta(min_length=1)]
    usage: _Usage | None = None


@dataclass(frozen=True)
class Answer:
    """A node's whole answer, judged."""

    status: int
    body: bytes
    outcome: Outcome
    detail: str
    text: str = ""
    """What the model made of it."""
    claimed: Usage | None = None
    """What the node says that it used."""


_chunk: Final = msgspec.json.Decoder(Chunk)
_completion: Final = msgspec.json.Decoder(_Completion)
_embeddings: Final = msgspec.json.Decoder(_Embeddings)

_REFUSED: Final = msgspec.json.encode(
    {
        "error": {
            "message": "the node refused the request",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
)


def read_chunk(data: bytes) -> Chunk | None:
    """An event's JSON; `None` where it is no such thing."""
    try:
        if not data.isascii():
            # Also where nothing is read of it: clients read all of it.
            data.decode()
        return _chunk.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def judge(path: str, status: int, body: bytes) -> Answer:
    """
    The outcome of a whole answer, and what the client gets of it.

    A 200 must hold what the operation is for.  A refusal is the client's, however the node
    words it: a client must not be able to have nodes ejected for how they say no.
    """
    outcome = of_status(status)
    detail = f"status {status}"
    if outcome is Outcome.REFUSED:
        return Answer(status, body if _is_object(body) else _REFUSED, outcome, detail)
    if outcome is not Outcome.COMPLETED:
        return Answer(status, b"", outcome, detail)
    try:
        if path.endswith("/embeddings"):
            if not body.isascii():
                body.decode()
            found = _embeddings.decode(body)
            return Answer(status, body, outcome, detail, "", _claimed(found.usage))
        completion = _completion.decode(body)
        # Also what is not looked at must be what clients can read.
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer(status, b"", Outcome.CORRUPTED, "status 200 with a body that is no such answer")
    chat = path.endswith("/chat/completions")
    for choice in completion.choices:
        if (choice.message is None if chat else choice.text is None) or choice.finish_reason is None:
            return Answer(status, b"", Outcome.CORRUPTED, "a choice without its text, or without its end")
    text = "".join([choice.said for choice in completion.choices])
    if not text:
        outcome, detail = Outcome.EMPTY, "a whole answer with nothing in it"
    return Answer(status, body, outcome, detail, text, _claimed(completion.usage))


def without_usage(payload: bytes) -> bytes | None:
    """An event of a stream without what the node says that it used; `None` where it cannot be read whole."""
    try:
        document: dict[str, Any] = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return None
    del document["usage"]
    return msgspec.json.encode(document)


def with_usage(body: bytes, counted: Usage) -> bytes:
    """An answer with the usage that the router counted."""
    document: dict[str, Any] = msgspec.json.decode(body)
    usage = document.get("usage")
    document["usage"] = {**(usage if isinstance(usage, dict) else {}), **counted.to_wire()}
    return msgspec.json.encode(document)


def _claimed(usage: _Usage | None) -> Usage | None:
    return None if usage is None else usage.usage


def _is_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
