"""
Answers of nodes in the form of OpenAI's API, read strictly and only as far as the router must understand them.

Whole answers and the events of a stream are decoded into the few fields that say what was
delivered, and whether that is all.  The node's own bytes go on to the client.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.usage import Usage

DONE: Final = b"[DONE]"
"""The data of the last event of a stream of chunks."""
_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Function(Struct, frozen=True, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, frozen=True, gc=False):
    function: _Function | None = None


class _Message(Struct, frozen=True, gc=False):
    """A message, or what a chunk adds to it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """vLLM's older name for it; some versions send both."""
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    """The older form of a tool call."""

    @property
    def text(self) -> str:
        """All text that the model generated, whatever it is for."""
        reasoning = self.reasoning or self.reasoning_content
        if not (reasoning or self.refusal or self.tool_calls or self.function_call):
            return self.content or ""
        parts = [reasoning or "", self.content or "", self.refusal or ""]
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


class _Choice(Struct, frozen=True, gc=False, kw_only=True):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def generated(self) -> str:
        """The text that the model generated in this choice."""
        if self.text:
            return self.text
        message = self.message if self.delta is None else self.delta
        return "" if message is None else message.text


class Chunk(Struct, frozen=True, gc=False):
    """One event of a stream of chat or text completions."""

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


_chunk: Final = msgspec.json.Decoder(Chunk)
_completion: Final = msgspec.json.Decoder(_Completion)
_embeddings: Final = msgspec.json.Decoder(_Embeddings)
_object: Final = msgspec.json.Decoder(dict[str, Any])


class AnswerFormatError(ValueError):
    """A body with status 200 is not an answer of the operation."""


class Content(Struct, frozen=True, gc=False):
    """What a whole answer holds."""

    text: str = ""
    """The text that the model generated."""
    claimed: Usage | None = None
    """The usage that the node claims."""
    is_empty: bool = False


class Answer(Struct, frozen=True, gc=False, kw_only=True):
    """A node's whole answer, judged."""

    status: int
    body: bytes
    """What the client gets of it."""
    outcome: Outcome
    detail: str
    content: Content = Content()


def read_completion(body: bytes, *, is_chat: bool) -> Content:
    """
    Read the body of a chat completion or a text completion.

    Raises:
        AnswerFormatError: it is not one, or a choice lacks its text or its end.
    """
    try:
        completion = _completion.decode(body)
        # Clients must be able to read also what the router does not look at.
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None
    for choice in completion.choices:
        text = choice.message if is_chat else choice.text
        if text is None or choice.finish_reason is None:
            raise AnswerFormatError("a choice lacks its text or its end")
    text = "".join([choice.generated for choice in completion.choices])
    return Content(text, _claimed(completion.usage), is_empty=not text)


def read_embeddings(body: bytes) -> Content:
    """Read the body of an answer with embeddings.  Raises `AnswerFormatError`."""
    try:
        if not body.isascii():
            body.decode()
        found = _embeddings.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None
    return Content(claimed=_claimed(found.usage))


class StreamPart(Struct, frozen=True, gc=False):
    """What one event of a stream says."""

    text: str
    """The text that it adds to the answer."""
    forward: bytes | None
    """The event's data as it goes on to the client; `None` if the client gets nothing of it."""
    claimed: Usage | None


class StreamReader(Protocol):
    """Reads the events of one stream in order, in the form of one operation."""

    @property
    def is_finished(self) -> bool:
        """Whether every part of the answer has come to its end."""

    @property
    def is_done(self) -> bool:
        """Whether the last event of the protocol has come."""

    @property
    def ended(self) -> int:
        """How many answers have come to their end."""

    def read(self, data: bytes) -> StreamPart:
        """
        Read the data of the next event.

        Raises:
            AttemptError: the event shows that the attempt failed.
        """


_NOTHING: Final = StreamPart("", None, None)


class ChunkReader:
    """A `StreamReader` of chat and text completions: chunks with choices, then ``[DONE]``."""

    __slots__ = ("_ended", "_open", "is_done")

    def __init__(self) -> None:
        self._open: set[int] = set()
        """Choices, by their index."""
        self._ended: set[int] = set()
        self.is_done = False

    @property
    def is_finished(self) -> bool:
        """See `StreamReader`."""
        return bool(self._ended) and not self._open

    @property
    def ended(self) -> int:
        """See `StreamReader`."""
        return len(self._ended)

    def read(self, data: bytes) -> StreamPart:
        """See `StreamReader`."""
        if data == DONE:
            if not self.is_finished:
                raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")
            self.is_done = True
            return _NOTHING
        chunk = read_chunk(data)
        if chunk is None:
            raise AttemptError(Outcome.CORRUPTED, "an event is not part of an answer")
        if chunk.error is not None:
            raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error")
        text, choices = "", chunk.choices
        for choice in choices:
            text = text + choice.generated if text else choice.generated
            if choice.finish_reason is not None:
                self._ended.add(choice.index)
                self._open.discard(choice.index)
            elif choice.index not in self._ended:
                self._open.add(choice.index)
        # The router itself tells the client the usage, at the end.
        if chunk.usage is None:
            return StreamPart(text, data, None)
        forward = None
        if chunk.choices:
            forward = without_usage(data)
            if forward is None:
                raise AttemptError(Outcome.CORRUPTED, "an event is not part of an answer")
        return StreamPart(text, forward, chunk.usage.usage)


def read_chunk(data: bytes) -> Chunk | None:
    """The chunk that an event holds; `None` if it holds none."""
    try:
        if not data.isascii():
            # Clients decode all of it, also what the router does not read.
            data.decode()
        return _chunk.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def without_usage(data: bytes) -> bytes | None:
    """An event of a stream without the usage that the node claims; `None` if it cannot be read whole."""
    try:
        document: dict[str, Any] = msgspec.json.decode(data)
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


def is_json_object(body: bytes) -> bool:
    """Whether *body* is one JSON object."""
    try:
        _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _claimed(usage: _Usage | None) -> Usage | None:
    return None if usage is None else usage.usage
