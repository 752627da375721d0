"""
Server-sent events of nodes, cut out of the bytes that arrive (WHATWG HTML §9.2).

Only whole events go on to a client.  So a node that dies in the middle of an event leaves no
half of it before the router's own events.  An event's name and data count; its id and retry
time do not, because they would tell the client how to come back to the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

MAX_EVENT: Final = 1 << 20
"""Bytes of one event."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: a sign of life for clients, and for what lies between."""
_MAX_NAME: Final = 128
_HEAD: Final = len(b"data: ")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""A stream may begin with it."""


class EventError(Exception):
    """An event is larger than it may be."""


class ServerEvent(Struct, frozen=True, gc=False):
    """A whole event."""

    name: bytes
    """Empty for an event without a name."""
    data: bytes


class EventParser:
    """Takes bytes as they arrive, and gives the events that are whole."""

    __slots__ = ("_rest", "blocks")

    def __init__(self) -> None:
        self._rest = b""
        self.blocks = 0
        """How many events and comments were whole until now: each is a sign of life."""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """
        Yield the events that *data* completes.  An event without data is passed over.

        Raises:
            EventError: the event that is not complete yet is too large already.
        """
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # The last byte may be half of a line's end.
            tail = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        *blocks, rest = data.split(b"\n\n")
        self.blocks += len(blocks)
        has_lines = data.count(b"\n") > 2 * len(blocks) + rest.count(b"\n")
        for block in blocks:
            if block.startswith(b"data: ") and len(block) > _HEAD and not (has_lines and b"\n" in block):
                yield ServerEvent(b"", block[_HEAD:])
            elif (found := _parse(block)) is not None:
                yield found
        self._rest = rest
        if len(self._rest) > MAX_EVENT:
            raise EventError(f"an event of more than {MAX_EVENT} bytes")


def _parse(block: bytes) -> ServerEvent | None:
    """
    An event, the lines of its data joined; `None` if it has no data, or no more than empty lines of it.

    Some builds of llama.cpp tell an error in a field of that name, which the standard does not know.
    """
    lines, name = [], b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field.removeprefix(_BYTE_ORDER_MARK):
            case b"data":
                lines.append(value)
            case b"event":
                name = value
            case b"error":
                name = b"error"
                lines.append(value)
    if not any(lines):
        return None
    is_plain = len(name) <= _MAX_NAME and name.isascii() and name.decode("ascii").isprintable()
    return ServerEvent(name if is_plain else b"", b"\n".join(lines))


def encode_event(data: bytes, name: bytes = b"") -> bytes:
    """An event with this data, which is JSON: a line's end within it is only space between its parts."""
    if b"\n" in data:
        data = data.replace(b"\n", b" ")
    if name:
        return b"event: " + name + b"\ndata: " + data + b"\n\n"
    return b"data: " + data + b"\n\n"
