"""
The lines of a job: a JSONL file of requests, read strictly, and the lines of its results.  Pure.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …}}

A file is split by line feeds alone, as its bytes come.  A line that is too long is refused before it is there.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from router.model.errors import JobLineError

MAX_CUSTOM_ID: Final = 512
"""Characters."""
RANGE_LINES: Final = 64
RANGE_BYTES: Final = 1 << 20
"""A range ends once it has so many lines, or so many bytes."""
_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r"
_SHOWN: Final = 40
_MEMBERS: Final = ("custom_id", "method", "url", "body")
_NOT_SHOWN: Final = re.compile(r"[^\x20-\x7e]")


class Line(NamedTuple):
    """A line of a file."""

    number: int
    """From 1."""
    start: int
    """Its place in the file, in bytes."""
    data: bytes
    """Without its line feed."""


class LineSplitter:
    """
    Splits a file into lines as its bytes come.

    Args:
        max_line: How many bytes a line may have.
        max_lines: How many lines the file may have, blank ones at its end included.
        number: Of the first line.
        start: Its place in the file.
    """

    def __init__(self, max_line: int, max_lines: int, *, number: int = 1, start: int = 0) -> None:
        self._max_line = max_line
        self._last = max_lines + number - 1
        self._number = number
        self._start = start
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Line]:
        """
        Give the lines that *data* ends.

        Raises:
            JobLineError: a line is too long, or there are too many.
        """
        *whole, rest = data.split(b"\n")
        found = []
        for part in whole:
            self._add(part)
            found.append(self._take())
            self._start += 1
        self._add(rest)
        return found

    def end(self) -> list[Line]:
        """Give the last line, if no line feed ends it."""
        return [self._take()] if self._rest else []

    def _add(self, data: bytes) -> None:
        if len(self._rest) + len(data) > self._max_line:
            raise JobLineError(
                "line_too_long", f"the line has more than {self._max_line} bytes", line=self._number
            )
        if data and self._number > self._last:
            raise JobLineError(
                "too_many_lines", f"the file has more than {self._last} lines", line=self._number
            )
        self._rest += data

    def _take(self) -> Line:
        if self._number > self._last:
            raise JobLineError(
                "too_many_lines", f"the file has more than {self._last} lines", line=self._number
            )
        line = Line(self._number, self._start, bytes(self._rest))
        self._number += 1
        self._start += len(self._rest)
        self._rest.clear()
        return line


def is_blank(data: bytes) -> bool:
    """Whether a line has nothing in it."""
    return not data.strip(_BLANK)


class LineRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A line, read."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw
    """As it stands in the line."""


_decoder: Final = msgspec.json.Decoder(LineRequest)
_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_line(line: Line, endpoint: str) -> LineRequest:
    """
    Read a line.

    Args:
        line: The line.
        endpoint: The job's, to which each of its requests goes.

    Raises:
        JobLineError: it does not have the form.
    """
    data = line.data
    if line.number == 1 and data.startswith(_BOM):
        raise _invalid(line, "the file begins with a byte order mark: save it as UTF-8 without one")
    if is_blank(data):
        raise _invalid(line, "the line is blank")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _invalid(line, f"byte {error.start + 1} of the line is not UTF-8") from None
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _malformed(line, error) from None
    return _checked(line, found, endpoint)


def _malformed(line: Line, error: Exception) -> JobLineError:
    """What is wrong with a line that cannot be read: its JSON, or its members."""
    try:
        members = _objects.decode(line.data)
    except (msgspec.DecodeError, RecursionError):
        return _invalid(line, f"the line is no JSON object: {_shown(str(error), 200)}")
    for name in _MEMBERS:
        if name not in members:
            return JobLineError(
                "missing_required_parameter", f"{name} is missing", line=line.number, param=name
            )
    for name in members:
        if name not in _MEMBERS:
            what = f"{_shown(name)!r} is not a member of a line: it has {', '.join(_MEMBERS)}"
            return JobLineError("unknown_parameter", what, line=line.number)
    return _invalid(line, _shown(str(error), 200))


def _checked(line: Line, found: LineRequest, endpoint: str) -> LineRequest:
    number = line.number
    if not 1 <= len(found.custom_id) <= MAX_CUSTOM_ID or not found.custom_id.isprintable():
        what = f"custom_id must have 1 to {MAX_CUSTOM_ID} characters that can be printed"
        raise JobLineError("invalid_custom_id", what, line=number, param="custom_id")
    if found.method != "POST":
        raise JobLineError("invalid_method", "method must be POST", line=number, param="method")
    if found.url != endpoint:
        what = f"url is {_shown(found.url)!r}, and the endpoint of the batch is {endpoint}"
        raise JobLineError("invalid_url", what, line=number, param="url")
    if not bytes(found.body).startswith(b"{"):
        raise JobLineError("invalid_body", "body must be an object", line=number, param="body")
    return found


def _invalid(line: Line, message: str) -> JobLineError:
    return JobLineError("invalid_json_line", message, line=line.number)


def _shown(text: str, most: int = _SHOWN) -> str:
    return _NOT_SHOWN.sub("?", text[:most])


class Range(NamedTuple):
    """Some lines that follow each other."""

    number: int
    first_line: int
    lines: int
    start: int
    size: int
    """Bytes, the line feeds between its lines included."""


class RangeMaker:
    """Puts the lines of a file together to ranges."""

    def __init__(self) -> None:
        self._found: list[Range] = []
        self._first: Line | None = None
        self._lines = 0
        self._end = 0

    def add(self, line: Line) -> None:
        """Add the next line."""
        end = line.start + len(line.data)
        if self._first is not None and (self._lines >= RANGE_LINES or end - self._first.start > RANGE_BYTES):
            self._close()
        self._first = self._first or line
        self._lines += 1
        self._end = end

    def _close(self) -> None:
        first = self._first
        if first is not None:
            size = self._end - first.start
            self._found.append(Range(len(self._found), first.number, self._lines, first.start, size))
        self._first, self._lines = None, 0

    def end(self) -> list[Range]:
        """Give all of them."""
        self._close()
        return self._found


# Lines of results.

_SEPARATORS: Final = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""What some programs take for the end of a line; in JSON it stands in strings alone."""


def in_one_line(body: bytes) -> bytes:
    """
    A JSON text without line feeds and what else may be taken for one.

    Line feeds stand between its values, where a space means the same; the others stand in strings, and are escaped.
    """
    body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    if not body.isascii():
        for separator, escaped in _SEPARATORS:
            body = body.replace(separator, escaped)
        body = body.decode(errors="replace").encode()
    return body


def result_line(result_id: str, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """A line of an output or error file: an answer, with *body* as `in_one_line` gives it."""
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    return _line(result_id, custom_id, response, None)


def unasked_line(result_id: str, custom_id: str, code: str, message: str) -> bytes:
    """A line of an error file: nothing was asked of anybody."""
    return _line(result_id, custom_id, None, {"code": code, "message": message})


def _line(result_id: str, custom_id: str, response: Any, error: Any) -> bytes:
    document = {"id": result_id, "custom_id": custom_id, "response": response, "error": error}
    data = msgspec.json.encode(document)
    return in_one_line(data) + b"\n"
