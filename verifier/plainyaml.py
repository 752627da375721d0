"""
A small part of YAML, for files that people write.

One text in YAML can mean several things, and readers of YAML disagree.  This reader accepts
only the part on which all of them agree.  It refuses everything else with its line and
column: tags, anchors, aliases, merge keys, directives, several documents, keys that are not
text or come twice, floats, timestamps, and words and numbers that some readers take for
something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

import yaml  # type: ignore[import-untyped]  # it has no types; only `_events` uses it

from verifier.errors import PlainYAMLError

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,15})\.[0-9]{0,15}[1-9]")
"""The floats that YAML 1.1, YAML 1.2 and JSON read alike, and that are written as they are read."""
_ZEROS: Final = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]*0")
_AMBIGUOUS: Final = (
    (re.compile(r"yes|no|on|off|y|n", re.IGNORECASE), "some readers take it for a truth value. Quote it"),
    (re.compile(r"true|false", re.IGNORECASE), "write true or false in lower case, or quote it"),
    (re.compile(r"|~|null", re.IGNORECASE), 'there is no value. Write null, or "" for an empty text'),
    (re.compile(r"<<"), "this is a merge key. Write the entries out, or quote it"),
    (re.compile(r"="), "some readers take it for a default value. Quote it"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt\s].*)?", re.DOTALL), "some readers take it for a timestamp. Quote it"),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[bB][01_]+|[-+]?0o[0-7_]+|[-+]?[0-9][0-9_]*"),
     "readers disagree about this number. Write it in decimal without leading zeros, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "some readers take it for a number to base 60. Quote it"),
    (re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE),
     "floats are not allowed. Quote it if it is text"),
)  # fmt: skip
"""Plain scalars on which YAML 1.1, YAML 1.2 and JSON disagree; the first pattern that matches counts."""
_SEPARATORS: Final = re.compile("[\x85\u2028\u2029]")
"""They end a line in YAML 1.1 and are ordinary characters in YAML 1.2."""

Path: TypeAlias = tuple[str | int, ...]
"""The way to a value in the document: keys of maps and numbers of items."""
Place: TypeAlias = tuple[int, int]
"""Line and column, from 0."""


@dataclass(frozen=True)
class Parsed:
    """A document that was read: its value, and the place of each value in it."""

    value: Any
    """Maps with keys of text, lists, text, integers of 64 bits, booleans, None; floats if they were asked for."""
    places: Mapping[Path, Place]
    """For an entry of a map, the place of its key."""

    def error(self, path: Path, what: str) -> PlainYAMLError:
        """An error about the value at *path*, with its place."""
        shown = ".".join(str(part)[:80] for part in path)
        return _at(self.places[path], f"{shown}: {what}" if shown else what)


@dataclass(frozen=True)
class _Event:
    """An event of the library's parser."""

    kind: str
    """For example Scalar or MappingStart."""
    place: Place
    value: str = ""
    plain: bool = False
    """Whether the scalar has no quotes."""
    marked: str = ""
    """What it has besides its value: a tag, an anchor, an alias or a directive."""


def _at(place: Place, what: str) -> PlainYAMLError:
    return PlainYAMLError(f"line {place[0] + 1}, column {place[1] + 1}: {what}")


def _refuse(place: Place, what: str) -> NoReturn:
    raise _at(place, what)


def _place_of(text: str, position: int) -> Place:
    return text.count("\n", 0, position), position - (text.rfind("\n", 0, position) + 1)


def _events(text: str) -> Iterator[_Event]:
    """The events of the library's parser, with its errors as `PlainYAMLError`."""
    # Always the parser in Python, so that the refusals are the same on every machine.
    last = (0, 0)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            last = (event.start_mark.line, event.start_mark.column)
            marked = ""
            if getattr(event, "tag", None) is not None:
                marked = "a tag"
            elif getattr(event, "anchor", None) is not None:
                marked = "an anchor or an alias"
            elif getattr(event, "version", None) or getattr(event, "tags", None):
                marked = "a directive"
            yield _Event(
                kind=type(event).__name__.removesuffix("Event"),
                place=last,
                value=getattr(event, "value", ""),
                plain=getattr(event, "style", "-") is None,
                marked=marked,
            )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(
            (mark.line, mark.column) if mark else last, f"this is not YAML: {error.problem or error.context}"
        )
    except yaml.reader.ReaderError as error:
        _refuse(_place_of(text, error.position), "YAML does not allow this character")
    except (ValueError, OverflowError):
        # Escapes and versions of absurd size, for which the library has no check.
        _refuse(last, "this is not YAML: a number near here is far too large")


@dataclass
class _Builder:
    """Builds values with their places from events."""

    max_depth: int
    max_values: int
    decimals: bool = False
    places: dict[Path, Place] = field(default_factory=dict)
    count: int = 0

    def value(self, event: _Event, events: Iterator[_Event], path: Path) -> Any:
        """The value that begins with *event*."""
        self.places.setdefault(path, event.place)
        self.count += 1
        if self.count > self.max_values:
            _refuse(event.place, f"the file has more than {self.max_values} values")
        if event.marked:
            _refuse(event.place, f"{event.marked} is not allowed")
        if event.kind == "Scalar":
            return _scalar(event, decimals=self.decimals)
        if len(path) >= self.max_depth:
            _refuse(event.place, f"maps and lists are nested deeper than {self.max_depth}")
        if event.kind == "SequenceStart":
            items: list[Any] = []
            while (each := next(events)).kind != "SequenceEnd":
                items.append(self.value(each, events, (*path, len(items))))
            return items
        entries: dict[str, Any] = {}
        while (each := next(events)).kind != "MappingEnd":
            key = _key(each)
            if key in entries:
                _refuse(each.place, f"the key {key[:80]!r} comes twice")
            self.places[(*path, key)] = each.place
            entries[key] = self.value(next(events), events, (*path, key))
        return entries


def _key(event: _Event) -> str:
    if event.marked:
        _refuse(event.place, f"{event.marked} is not allowed")
    if event.kind != "Scalar":
        _refuse(event.place, "a key must be text")
    key = _scalar(event)
    if not isinstance(key, str):
        _refuse(event.place, "a key must be text. Quote it")
    return key


def _scalar(event: _Event, *, decimals: bool = False) -> str | int | float | bool | None:
    text = event.value
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(event.place, "the text is not Unicode")
    if not event.plain:
        return text
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    if _INTEGER.fullmatch(text) and text != "-0":
        # The length is compared first, because converting many digits takes long.
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
            _refuse(event.place, "the integer has more than 64 bits. Quote it if it is text")
        return int(text)
    if decimals and _DECIMAL.fullmatch(text):
        return float(text)
    if decimals and _ZEROS.fullmatch(text):
        _refuse(
            event.place, f"{text[:40]!r}: as a number it loses its last zeros. Quote it if it is a version"
        )
    for pattern, what in _AMBIGUOUS:
        if pattern.fullmatch(text):
            _refuse(event.place, f"{text[:40]!r}: {what}" if text else what)
    return text


def parse_yaml(
    data: bytes, *, max_size: int, max_depth: int = 8, max_values: int = 20_000, decimals: bool = False
) -> Parsed:
    """
    Read one document of the part of YAML that is described above.

    Args:
        data: UTF-8.
        max_size: In bytes.
        max_depth: The depth of nested maps and lists.
        max_values: The number of values in the document, without keys.
        decimals: Whether numbers such as 0.5 are read.  Those with an exponent, and others on which readers
            disagree, are refused all the same.

    Raises:
        PlainYAMLError: the document is refused; the message names line and column.
    """
    if len(data) > max_size:
        raise PlainYAMLError(f"the file has {len(data)} bytes, and at most {max_size} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        valid = data[: error.start].decode()
        _refuse(_place_of(valid, len(valid)), "the byte is not UTF-8")
    if found := _SEPARATORS.search(text):
        _refuse(_place_of(text, found.start()), "only some readers take this separator for the end of a line")
    events = _events(text)
    builder = _Builder(max_depth, max_values, decimals)
    value: Any = None
    documents = 0
    for event in events:
        if event.kind == "DocumentStart":
            documents += 1
            if documents > 1:
                _refuse(event.place, "a second document is not allowed")
            if event.marked:
                _refuse(event.place, f"{event.marked} before the document is not allowed")
            value = builder.value(next(events), events, ())
    if not documents:
        _refuse((0, 0), "the file is empty")
    return Parsed(value, builder.places)
