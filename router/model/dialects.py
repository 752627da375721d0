"""
The forms in which engines word the answers of OpenAI's API, read into the few fields that the router uses.

A form that OpenAI itself would send is decoded at once.  Any other goes through `chunk_of` and
`completion_of`, which take what engines are known to send instead (docs/dialects.md).  They are
lenient about what the router does not use, and strict about what it does: the text, and its end.

    text      a string, or a list of parts with text; anything else is no answer
    end       words that say why a choice ended; an empty value is no end
    index     a number; otherwise the place in the list of choices
    usage     counts that can be counts; others claim nothing
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from router.model.usage import Usage

MAX_TOKENS: Final = 1 << 40
"""Of one answer: a greater number is no count."""
_Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_MAX_PARTS_DEPTH: Final = 4
"""How deep parts of a content may hold parts: thoughts do."""
ENDS: Final = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})
"""OpenAI's own reasons to end, which need no second look."""
_NO_ENDS: Final = frozenset({"null", "none", "nil", "undefined"})
"""What engines write for "not yet" as text."""
_BROKEN_ENDS: Final = frozenset({"error", "abort", "aborted"})
"""Reasons that say that the engine gave up."""
_ERROR_MARKS: Final = ("errors", "error_type", "error_message", "error_code")


class Function(Struct, frozen=True, gc=False):
    """What a call calls."""

    name: str | None = None
    arguments: str | None = None
    """JSON as text.  Of an engine that gives an object instead, the text of that object."""


class ToolCall(Struct, frozen=True, gc=False):
    """A call of a tool, or what a chunk adds to it."""

    index: int | None = None
    function: Function | None = None


class Message(Struct, frozen=True, gc=False):
    """A message, or what a chunk adds to it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """vLLM's older name for it; some versions send both."""
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
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


class TokenCounts(Struct, frozen=True, gc=False):
    """The usage that a node claims.  `None` where it gives no count that could be one."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None

    @property
    def usage(self) -> Usage | None:
        """The claim, by which the node is judged: a count that it leaves out claims nothing."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0)

    @property
    def is_whole(self) -> bool:
        """Whether both counts are there."""
        return self.prompt_tokens is not None and self.completion_tokens is not None


class Choice(Struct, frozen=True, gc=False, kw_only=True):
    """One of the answers, or what a chunk adds to it."""

    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> Message | None:
        """The message, whole or in part."""
        return self.message if self.delta is None else self.delta

    @property
    def generated(self) -> str:
        """The text that the model generated in this choice."""
        if self.text:
            return self.text
        message = self.message if self.delta is None else self.delta
        return "" if message is None else message.text

    @property
    def has_ended(self) -> bool:
        """Whether the engine says why it ended."""
        return is_end(self.finish_reason)

    @property
    def is_broken(self) -> bool:
        """Whether the engine says that it gave up."""
        return _words(self.finish_reason) in _BROKEN_ENDS


class Chunk(Struct, frozen=True, gc=False):
    """One event of a stream of chat or text completions."""

    choices: list[Choice] = []
    usage: TokenCounts | None = None
    error: Any = None


class Completion(Struct, frozen=True, gc=False):
    """A whole chat or text completion."""

    choices: Annotated[list[Choice], Meta(min_length=1)]
    usage: TokenCounts | None = None
    error: Any = None


_chunk: Final = msgspec.json.Decoder(Chunk)
_completion: Final = msgspec.json.Decoder(Completion)
_NOT_SO: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ESCAPE: Final = b"\\u"


def read_chunk(data: bytes) -> Chunk | None:
    """The chunk that an event holds; `None` if it holds none."""
    try:
        if not data.isascii():
            # Clients decode all of it, also what the router does not read.
            data.decode()
        return _chunk.decode(data)
    except _NOT_SO:
        return chunk_of(decode(data))


def read_completion(body: bytes) -> Completion | None:
    """The whole completion that a body holds; `None` if it holds none."""
    try:
        completion = _completion.decode(body)
        # Clients must be able to read also what the router does not look at.
        msgspec.json.decode(body)
    except _NOT_SO:
        return completion_of(decode(body))
    return completion


def decode(data: bytes) -> Any:
    """
    JSON of any kind; `None` if it is none.

    Half of a surrogate pair is JSON too: some engines cut a text into chunks between the halves.
    """
    try:
        return msgspec.json.decode(data)
    except _NOT_SO:
        pass
    if _ESCAPE not in data:
        return None
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that no client can hold")
    return number


def encode(document: Any) -> bytes:
    """The JSON of what `decode` gave."""
    try:
        return msgspec.json.encode(document)
    except UnicodeError:
        return json.dumps(document, separators=(",", ":")).encode()


def chunk_of(document: Any) -> Chunk | None:
    """The chunk in any JSON; `None` if what the router must understand of it cannot be understood."""
    if not isinstance(document, dict):
        return None
    choices = _choices_of(document.get("choices"))
    if choices is None:
        return None
    return Chunk(choices, counts_of(document.get("usage")), document.get("error"))


def completion_of(document: Any) -> Completion | None:
    """The whole completion in any JSON; `None` if what the router must understand of it cannot be understood."""
    chunk = chunk_of(document)
    return (
        Completion(chunk.choices, chunk.usage, chunk.error) if chunk is not None and chunk.choices else None
    )


def _choices_of(value: Any) -> list[Choice] | None:
    if value is None:
        return []
    if not isinstance(value, list):
        return None
    found = [_choice_of(place, each) for place, each in enumerate(value)]
    choices = [choice for choice in found if choice is not None]
    return choices if len(choices) == len(found) else None


def _choice_of(place: int, value: Any) -> Choice | None:
    if not isinstance(value, dict):
        return None
    delta, message, text = value.get("delta"), value.get("message"), value.get("text")
    said, told = _message_of(delta), _message_of(message)
    is_odd = (said is None and not _is_nothing(delta)) or (told is None and not _is_nothing(message))
    if is_odd or not (text is None or isinstance(text, str)):
        return None
    reason = value.get("finish_reason")
    return Choice(
        index=_index_of(value.get("index"), place),
        delta=said,
        message=told,
        text=text,
        # Only words say why a text has ended: of anything else nobody knows whether it does.
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _index_of(value: Any, otherwise: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else otherwise


def _message_of(value: Any) -> Message | None:
    if not isinstance(value, dict):
        return None
    content = value.get("content")
    if isinstance(content, list):
        content = _text_of_parts(content)
    elif _is_nothing(content):
        content = None
    calls = _calls_of(value.get("tool_calls"))
    if calls is None or not (content is None or isinstance(content, str)):
        return None
    return Message(
        content=content,
        reasoning=_text_of_parts(value.get("reasoning")),
        reasoning_content=_text_of_parts(value.get("reasoning_content")),
        refusal=_text_of_parts(value.get("refusal")),
        tool_calls=calls or None,
        function_call=_function_of(value.get("function_call")),
    )


def _is_nothing(value: Any) -> bool:
    """Whether engines mean nothing by a value.  Zero may be a text."""
    return value is None or value is False or value in ("", [], {})


def _text_of_parts(value: Any, depth: int = 0) -> str | None:
    """The text of a string, or of parts with text; `None` of anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        inner = value.get("text")
        value = value.get("thinking") if inner is None else inner
        return _text_of_parts(value, depth + 1) if depth < _MAX_PARTS_DEPTH else None
    if isinstance(value, list) and depth < _MAX_PARTS_DEPTH:
        return "".join([_text_of_parts(part, depth + 1) or "" for part in value])
    return None


def _calls_of(value: Any) -> list[ToolCall] | None:
    if _is_nothing(value):
        return []
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not all(call is None or isinstance(call, dict) for call in calls):
        return None
    return [
        ToolCall(index=_index_of(call.get("index"), place), function=_function_of(call.get("function")))
        for place, call in enumerate(calls)
        if call is not None
    ]


def _function_of(value: Any) -> Function | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = encode(arguments).decode()
    return Function(name if isinstance(name, str) else None, arguments)


def counts_of(value: Any) -> TokenCounts | None:
    """The counts in a usage of any form; `None` if there is no usage."""
    if value is None:
        return None
    if not isinstance(value, dict):
        return TokenCounts()
    return TokenCounts(count_of(value.get("prompt_tokens")), count_of(value.get("completion_tokens")))


def count_of(value: Any) -> int | None:
    """A number of tokens; `None` if it cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def is_end(reason: str | None) -> bool:
    """Whether a ``finish_reason`` says that a text has ended."""
    words = _words(reason)
    return bool(words) and words not in _NO_ENDS


def _words(reason: str | None) -> str:
    return reason.strip().lower() if reason else ""


def is_error(document: Any) -> bool:
    """Whether an event without choices is an error, in a form in which some engine words it."""
    if not isinstance(document, dict):
        return False
    return (
        bool(document.get("error"))
        or "error" in (document.get("object"), document.get("type"))
        or any(document.get(mark) for mark in _ERROR_MARKS)
    )
