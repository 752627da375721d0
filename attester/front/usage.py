"""
Finds the usage that an engine tells in an answer, while it passes by.

The engine's text is JSON, so inside a text the name has its quotes escaped: what is found bare is a member.  Names are
those of OpenAI's and of Anthropic's APIs.  The last value of each counts: streams tell it more than once.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

_NAME: Final = b'"usage"'
_MAX_OBJECT: Final = 4096
"""Bytes of a usage; what is longer is none."""
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]


class _Usage(Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None


_decode: Final = msgspec.json.Decoder(_Usage).decode


class UsageFinder:
    """What one answer tells."""

    __slots__ = ("_rest", "completion", "prompt")

    def __init__(self) -> None:
        self.prompt = self.completion = 0
        self._rest = b""
        """What may be the begin of a usage."""

    def feed(self, part: bytes) -> None:
        """Look at the next part of the answer."""
        if not self._rest and _NAME not in part:
            self._rest = _tail(part)
            return
        data = self._rest + part
        place = data.find(_NAME)
        while place >= 0:
            end = _end_of(data, place + len(_NAME))
            if end is None:
                # Its end has not come.
                self._rest = data[place:] if len(data) - place <= _MAX_OBJECT else b""
                return
            self._take(data[place + len(_NAME) : end])
            place = data.find(_NAME, place + len(_NAME))
        self._rest = _tail(data)

    def _take(self, member: bytes) -> None:
        try:
            found = _decode(member.lstrip().removeprefix(b":"))
        except (msgspec.DecodeError, UnicodeError):
            return
        prompt = found.input_tokens if found.prompt_tokens is None else found.prompt_tokens
        completion = found.output_tokens if found.completion_tokens is None else found.completion_tokens
        self.prompt = self.prompt if prompt is None else prompt
        self.completion = self.completion if completion is None else completion


def _tail(data: bytes) -> bytes:
    """The end of *data* that may be the begin of the name."""
    if b'"' not in data[1 - len(_NAME) :]:
        return b""
    for size in range(min(len(_NAME) - 1, len(data)), 0, -1):
        if _NAME.startswith(data[-size:]):
            return data[-size:]
    return b""


def _end_of(data: bytes, begin: int) -> int | None:
    """Where the object that follows the name ends; *begin* if none follows, and `None` if it has not all come."""
    depth, is_text, place = 0, False, begin
    limit = min(len(data), begin + _MAX_OBJECT)
    while place < limit:
        byte = data[place]
        if is_text:
            if byte == 0x5C:
                place += 1
            elif byte == 0x22:
                is_text = False
        elif byte == 0x22 and depth:
            is_text = True
        elif byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if not depth:
                return place + 1
        elif not depth and byte not in b" \t\r\n:":
            return begin
        place += 1
    return None if limit == len(data) and len(data) - begin < _MAX_OBJECT else begin
