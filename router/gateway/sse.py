"""
Server-sent events of nodes, cut out of what arrives (WHATWG HTML §9.2).

Only whole events go on to a client, so that a node that dies in the middle of one leaves no
half of it before the router's own word.  Of an event only its data counts: names, ids and
retry times are a node's way to speak to somebody else's client.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_EVENT: Final = 1 << 20
"""Bytes of one event."""
DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
"""A stream may begin with it."""


class EventError(Exception):
    """An event larger than may be."""


class Events:
    """Takes bytes as they arrive, gives the data of each event that is whole."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        The events that *data* completes.

        Raises:
            EventError: what is not complete yet is too large already.
        """
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # The last may be half of a line's end.
            tail = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        start = 0
        while (end := data.find(b"\n\n", start)) >= 0:
            block = data[start:end]
            start = end + 2
            if block.startswith(b"data: ") and b"\n" not in block:
                yield block[6:]
            elif (found := _data_of(block)) is not None:
                yield found
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT:
            raise EventError(f"an event of more than {MAX_EVENT} bytes")


def _data_of(block: bytes) -> bytes | None:
    """The data of an event, its lines joined; `None` where it has none, as a comment."""
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name.removeprefix(_BOM) == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def event(data: bytes) -> bytes:
    """An event of this data.  A line's end within JSON is only space between its parts."""
    if b"\n" in data:
        data = data.replace(b"\n", b" ")
    return b"data: " + data + b"\n\n"
