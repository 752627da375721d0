"""
``/v1/messages`` of Anthropic's API, as vLLM and llama.cpp serve it: whole answers, and the events of a stream.

An answer is a list of blocks: text, thinking, calls of tools, and others that the router need not understand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from router.model.answers import DONE, AnswerFormatError, Content, StreamPart
from router.model.claims import dicts, read_event, read_object, rewrite_usage, text, usage_of
from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.tokens import prompt_text as messages_text
from router.model.usage import Usage

_CACHED: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Tokens of the prompt that ``input_tokens`` does not count."""
_INPUT: Final = ("input_tokens", *_CACHED)
_TEXT_DELTAS: Final[Mapping[str, str]] = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}
"""By the type of a delta, its member that is text of the model's."""


def prompt_text(document: Mapping[str, Any]) -> str:
    """The system prompt and the messages, with calls of tools and their results, one line each."""
    system = document.get("system")
    parts = [text(system), *(text(part.get("text")) for part in dicts(system)), messages_text(document)]
    for message in dicts(document.get("messages")):
        for block in dicts(message.get("content")):
            if block.get("type") == "tool_use":
                parts.append(_json(block.get("input")))
            elif block.get("type") == "tool_result":
                result = block.get("content")
                parts += [text(result), *(text(part.get("text")) for part in dicts(result))]
    return "\n".join(part for part in parts if part)


def read_message(body: bytes) -> Content:
    """
    Read the body of a message.

    Raises:
        AnswerFormatError: it is not one, or it lacks its end.
    """
    document = read_object(body)
    content = document.get("content")
    if not isinstance(content, list) or len(dicts(content)) != len(content):
        raise AnswerFormatError("status 200 with a body that is not such an answer")
    if not text(document.get("stop_reason")):
        raise AnswerFormatError("a message lacks its end")
    found = "".join([part for block in content for part in _texts(block)])
    # A block of a kind that the router does not know is something too.
    is_empty = not found and all(block.get("type") in ("text", "thinking") for block in content)
    return Content(found, _claimed(document.get("usage")), is_empty=is_empty)


def _texts(block: Mapping[str, Any]) -> Iterator[str]:
    match block.get("type"):
        case "text":
            yield text(block.get("text"))
        case "thinking":
            yield text(block.get("thinking"))
        case "tool_use":
            yield text(block.get("name"))
            yield _json(block.get("input"))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode() if value else ""


def _claimed(usage: Any) -> Usage | None:
    return usage_of(usage, _INPUT, "output_tokens")


def with_usage(body: bytes, counted: Usage) -> bytes:
    """A message with the usage that the router counted.  What was cached stays a part of the prompt."""
    usage = read_object(body).get("usage")
    cached = usage_of(usage, (*_CACHED, "input_tokens"), "output_tokens")
    of_input = usage_of(usage, ("input_tokens",), "output_tokens")
    details = 0 if cached is None or of_input is None else cached.prompt - of_input.prompt
    counts = {"input_tokens": max(counted.prompt - details, 0), "output_tokens": counted.completion}
    return rewrite_usage(body, counts)


class MessageReader:
    """A `StreamReader` of messages: the message's start, its blocks, its end."""

    __slots__ = ("_has_end", "_open", "_usage", "is_done")

    def __init__(self) -> None:
        self._open: set[int] = set()
        """Blocks, by their index."""
        self._has_end = False
        self._usage: dict[str, Any] = {}
        self.is_done = False

    @property
    def is_finished(self) -> bool:
        """See `StreamReader`."""
        return self._has_end and not self._open

    def read(self, data: bytes) -> StreamPart:
        """See `StreamReader`."""
        if data == DONE:
            raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")
        kind, event = read_event(data)
        match kind:
            case "content_block_start":
                self._open.add(_index(event))
                # The arguments of a call come in deltas, and here an empty object stands for them.
                calls = [
                    block for block in dicts([event.get("content_block")]) if block.get("type") == "tool_use"
                ]
                return StreamPart("".join(text(block.get("name")) for block in calls), data, None)
            case "content_block_delta":
                delta = event.get("delta")
                if not isinstance(delta, dict):
                    raise AttemptError(Outcome.CORRUPTED, "an event is not part of an answer")
                member = _TEXT_DELTAS.get(text(delta.get("type")))
                return StreamPart("" if member is None else text(delta.get(member)), data, None)
            case "content_block_stop":
                self._open.discard(_index(event))
            case "message_start":
                message = event.get("message")
                self._take_usage(message)
            case "message_delta":
                delta = event.get("delta")
                self._has_end |= isinstance(delta, dict) and bool(text(delta.get("stop_reason")))
                self._take_usage(event)
                return StreamPart("", data, _claimed(self._usage))
            case "message_stop":
                if not self.is_finished:
                    raise AttemptError(Outcome.TRUNCATED, "the stream ended without an end to its text")
                self.is_done = True
        return StreamPart("", data, None)

    def _take_usage(self, holder: Any) -> None:
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            self._usage |= {name: usage[name] for name in (*_INPUT, "output_tokens") if name in usage}


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if type(index) is int else 0
