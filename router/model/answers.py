"""
Answers of nodes in the form of OpenAI's API, read strictly and only as far as the router must understand them.

Whole answers and the events of a stream are decoded into the few fields that say what was
delivered, and whether that is all.  The node's own bytes go on to the client.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from router.model import dialects
from router.model.continuing import Delivered
from router.model.dialects import ENDS, Choice, Chunk, TokenCounts, counts_of, read_chunk
from router.model.errors import AttemptError
from router.model.gathered import Gathered
from router.model.outcomes import Outcome
from router.model.usage import Usage
from router.model.wishes import Kept, Wishes

__all__ = [
    "DONE",
    "Answer",
    "AnswerFormatError",
    "Chunk",
    "ChunkReader",
    "Content",
    "StreamPart",
    "StreamReader",
    "is_json_object",
    "read_chunk",
    "read_completion",
    "read_embeddings",
    "usage_in",
    "with_usage",
    "without_usage",
]

DONE: Final = b"[DONE]"
"""The data of the last event of a stream of chunks."""


class _Embedding(Struct, frozen=True, gc=False):
    embedding: Annotated[list[float], Meta(min_length=1)] | Annotated[str, Meta(min_length=1)]


class _Embeddings(Struct, frozen=True, gc=False):
    data: Annotated[list[_Embedding], Meta(min_length=1)]
    usage: Any = None


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
    is_usage_odd: bool = False
    """Whether it tells a usage that lacks a count which clients read."""
    is_usage_fraction: bool = False
    """Whether it tells the counts in a form that not all clients read."""
    is_empty: bool = False


class Answer(Struct, frozen=True, gc=False, kw_only=True):
    """A node's whole answer, judged."""

    status: int
    body: bytes
    """What the client gets of it."""
    outcome: Outcome
    detail: str
    content: Content = Content()
    kept: Kept | None = None
    """How it keeps to what the request asks of its form; `None` if there is nothing to say of that."""


def read_completion(body: bytes, *, is_chat: bool) -> Content:
    """
    Read the body of a chat completion or a text completion.

    Raises:
        AnswerFormatError: it is not one, or a choice lacks its text or its end.
    """
    completion = dialects.read_completion(body)
    if completion is None:
        raise AnswerFormatError("status 200 with a body that is not such an answer")
    if completion.error:
        raise AnswerFormatError("status 200 with an error")
    for choice in completion.choices:
        text = choice.message if is_chat else choice.text
        if text is None or (choice.finish_reason not in ENDS and not choice.has_ended):
            raise AnswerFormatError("a choice lacks its text or its end")
        if choice.finish_reason not in ENDS and choice.is_broken:
            raise AnswerFormatError("status 200 with a text that ended with an error")
    text = "".join([choice.generated for choice in completion.choices])
    return _content(completion.usage, text, is_empty=not text)


def read_embeddings(body: bytes) -> Content:
    """Read the body of an answer with embeddings.  Raises `AnswerFormatError`."""
    try:
        if not body.isascii():
            body.decode()
        found = _embeddings.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnswerFormatError("status 200 with a body that is not such an answer") from None
    counts = counts_of(found.usage)
    if counts is not None and counts.prompt_tokens is not None and counts.completion_tokens is None:
        # Nothing is generated, and most engines do not say so.
        counts = TokenCounts(counts.prompt_tokens, 0, counts.is_fraction)
    return _content(counts)


class StreamPart(Struct, frozen=True, gc=False):
    """What one event of a stream says."""

    text: str
    """The text that it adds to the answer."""
    forward: bytes | None
    """The event's data as it goes on to the client; `None` if the client gets nothing of it."""
    claimed: Usage | None
    usage: bytes | None = None
    """The event's data, if a usage is in it."""


class StreamReader(Protocol):
    """Reads the events of one stream in order, in the form of one operation."""

    @property
    def is_finished(self) -> bool:
        """Whether every part of the answer has come to its end."""

    @property
    def is_done(self) -> bool:
        """Whether the last event of the protocol has come."""

    def read(self, data: bytes) -> StreamPart:
        """
        Read the data of the next event.

        Raises:
            AttemptError: the event shows that the attempt failed.
        """


_NOTHING: Final = StreamPart("", None, None)
_ERROR: Final = b"error"
_EMPTY_EVENTS: Final = frozenset({b"", b"null"})
"""Some engines keep a connection open with them."""


class ChunkReader:
    """
    A `StreamReader` of chat and text completions: chunks with choices, then ``[DONE]``.

    A stream is whole if each choice that was asked for came to its end.  An engine that gives reasons to
    end in the middle of a text says nothing by them: then the protocol's last event must come too.
    """

    __slots__ = ("_ended", "_expected", "_has_false_ends", "_open", "delivered", "gathered", "is_done")

    def __init__(self) -> None:
        self._open: set[int] = set()
        """Choices, by their index."""
        self._ended: set[int] = set()
        self._has_false_ends = False
        self._expected = 1
        self.gathered: Gathered | None = None
        """The choices, if they are to be looked at."""
        self.delivered: Delivered | None = None
        """The text, if another node may have to go on from it."""
        self.is_done = False

    def watch(self, wishes: Wishes) -> None:
        """Expect what a request asks for, and keep what must be looked at at the end."""
        self._expected = wishes.choices
        self.gathered = None if wishes.is_plain else Gathered()

    @property
    def ended(self) -> int:
        """How many choices have come to their end."""
        return len(self._ended)

    @property
    def is_finished(self) -> bool:
        """See `StreamReader`."""
        if self._open or not self._ended:
            return False
        return self.is_done or (len(self._ended) >= self._expected and not self._has_false_ends)

    def read(self, data: bytes) -> StreamPart:
        """See `StreamReader`."""
        if data == DONE:
            return self._end()
        chunk = read_chunk(data)
        if chunk is None:
            return self._read_other(data)
        text, choices = "", chunk.choices
        for choice in choices:
            generated = choice.generated
            text = text + generated if text else generated
            if choice.finish_reason and choice.has_ended:
                self._end_choice(choice, has_text=bool(generated))
            elif choice.index not in self._ended:
                self._open.add(choice.index)
            elif generated:
                # Its end was none.
                self._has_false_ends = True
                self._ended.discard(choice.index)
                self._open.add(choice.index)
        if chunk.error or (not choices and _ERROR in data and _is_error(data)):
            raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error", is_doubtful=True)
        if self.gathered is not None:
            self.gathered.add(choices)
        if self.delivered is not None:
            self.delivered.add(data, choices)
        # The router itself tells the client the usage, at the end.
        if chunk.usage is None:
            return StreamPart(text, data, None)
        forward = without_usage(data) if choices else None
        return StreamPart(text, forward, chunk.usage.usage, usage=data)

    def _end(self) -> StreamPart:
        if self._open or not self._ended:
            raise AttemptError(
                Outcome.TRUNCATED, "the stream ended without an end to its text", is_doubtful=True
            )
        self.is_done = True
        return _NOTHING

    def _end_choice(self, choice: Choice, *, has_text: bool) -> None:
        if choice.is_broken:
            raise AttemptError(Outcome.CRASHED, "the node ended a text with an error", is_doubtful=True)
        self._has_false_ends |= has_text and choice.index in self._ended
        self._ended.add(choice.index)
        self._open.discard(choice.index)

    def _read_other(self, data: bytes) -> StreamPart:
        """Read an event that is no chunk: it may hold nothing, be the last one in another spelling, or tell an error."""
        words = data.strip()
        if words in _EMPTY_EVENTS:
            return _NOTHING
        if words.strip(b'"').upper() == DONE:
            return self._end()
        if _is_error(data):
            raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error", is_doubtful=True)
        raise AttemptError(Outcome.CORRUPTED, "an event is not part of an answer", is_doubtful=True)


def _is_error(data: bytes) -> bool:
    # All forms have the word, and a megabyte of events without text must not be decoded twice.
    return _ERROR in data and dialects.is_error(dialects.decode(data))


def without_usage(data: bytes) -> bytes:
    """An event of a stream, which is a JSON object, without the usage that the node claims."""
    document: dict[str, Any] = dialects.decode(data)
    document.pop("usage", None)
    return dialects.encode(document)


def usage_in(data: bytes | None) -> dict[str, Any]:
    """The usage that an answer or an event tells, with its details; empty if it tells none."""
    document = None if data is None else dialects.decode(data)
    usage = document.get("usage") if isinstance(document, dict) else None
    return usage if isinstance(usage, dict) else {}


def with_usage(body: bytes, counted: Usage) -> bytes:
    """An answer with the usage that the router counted, and what else the node says of it."""
    document: dict[str, Any] = dialects.decode(body)
    usage = document.get("usage")
    document["usage"] = {**(usage if isinstance(usage, dict) else {}), **counted.to_wire()}
    return dialects.encode(document)


def is_json_object(body: bytes) -> bool:
    """Whether *body* is one JSON object."""
    try:
        _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _content(counts: TokenCounts | None, text: str = "", *, is_empty: bool = False) -> Content:
    if counts is None:
        return Content(text, is_empty=is_empty)
    return Content(
        text,
        counts.usage,
        is_usage_odd=not counts.is_whole,
        is_usage_fraction=counts.is_fraction,
        is_empty=is_empty,
    )
