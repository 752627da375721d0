"""
A small part of YAML, for files that people write.

YAML lets one text mean several things, and its readers disagree.  So only what all of them
agree on is read, and each other thing is refused with its line and column: tags, anchors,
aliases, merge keys, directives, several documents, keys that are not text or stand twice,
floats, timestamps, and words and numbers that some readers take for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

import yaml  # type: ignore[import-untyped]  # it comes without types; only `_events` touches it

from verifier.errors import PlainYAMLError

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_AMBIGUOUS: Final = (
    (re.compile(r"yes|no|on|off|y|n", re.IGNORECASE), "text or a truth value, by the reader: quote it"),
    (re.compile(r"true|false", re.IGNORECASE), "write true or false, or quote it"),
    (re.compile(r"|~|null", re.IGNORECASE), 'nothing stands here: write null, or "" for an empty text'),
    (re.compile(r"<<"), "a merge key: write out what is meant, or quote it"),
    (re.compile(r"="), "text or a default value, by the reader: quote it"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt\s].*)?", re.DOTALL), "a timestamp: quote it"),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[bB][01_]+|[-+]?0o[0-7_]+|[-+]?[0-9][0-9_]*"),
     "a number that readers read differently: write it in decimal without zeros before it, or quote it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "a number to base 60 or text: quote it"),
    (re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE),
     "a float, which is not read here: quote it if it is text"),
)  # fmt: skip
"""Plain scalars on which YAML 1.1, YAML 1.2 and JSON do not agree, in the order they are asked."""
_SEPARATORS: Final = re.compile("[\x85\u2028\u2029]")
"""Ends of lines in YAML 1.1, and characters like any other in YAML 1.2."""

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in the document: keys of maps, numbers of items."""
Place: TypeAlias = tuple[int, int]
"""Line and column, from 0."""


@dataclass(frozen=True)
class Parsed:
    """A document that was read: what it says, and where each value stands."""

    value: Any
    """Maps by text, lists, text, integers of 64 bits, booleans, None."""
    places: Mapping[Path, Place]
    """Of an entry of a map, where its key stands."""

    def error(self, path: Path, what: str) -> PlainYAMLError:
        """What is wrong with the value at *path*, for a person who has the file open."""
        shown = ".".join(str(part)[:80] for part in path)
        return _at(self.places[path], f"{shown}: {what}" if shown else what)


@dataclass(frozen=True)
class _Event:
    """What the library's parser met."""

    kind: str
    """E.g. Scalar, MappingStart."""
    place: Place
    value: str = ""
    plain: bool = False
    """Whether the scalar stands without quotes."""
    marked: str = ""
    """What makes it more than its text: a tag or an anchor."""


def _at(place: Place, what: str) -> PlainYAMLError:
    return PlainYAMLError(f"line {place[0] + 1}, column {place[1] + 1}: {what}")


def _refuse(place: Place, what: str) -> NoReturn:
    raise _at(place, what)


def _place_of(text: str, position: int) -> Place:
    return text.count("\n", 0, position), position - (text.rfind("\n", 0, position) + 1)


def _events(text: str) -> Iterator[_Event]:
    """The library's events, and its errors as ours."""
    # Its parser in Python, whatever else is installed: one reader with the same refusals everywhere.
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
        _refuse((mark.line, mark.column) if mark else last, f"not YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        _refuse(_place_of(text, error.position), "a character that YAML does not have")
    except (ValueError, OverflowError):
        # Escapes and versions of absurd size, which the library does not look after.
        _refuse(last, "not YAML: a number beyond all bounds near here")


@dataclass
class _Builder:
    """Values from events, with their places."""

    max_depth: int
    max_values: int
    places: dict[Path, Place] = field(default_factory=dict)
    count: int = 0

    def value(self, event: _Event, events: Iterator[_Event], path: Path) -> Any:
        """The value that begins with *event*."""
        self.places.setdefault(path, event.place)
        self.count += 1
        if self.count > self.max_values:
            _refuse(event.place, f"more than {self.max_values} values")
        if event.marked:
            _refuse(event.place, f"{event.marked}, which is not read here")
        if event.kind == "Scalar":
            return _scalar(event)
        if len(path) >= self.max_depth:
            _refuse(event.place, f"nested deeper than {self.max_depth}")
        if event.kind == "SequenceStart":
            items: list[Any] = []
            while (each := next(events)).kind != "SequenceEnd":
                items.append(self.value(each, events, (*path, len(items))))
            return items
        entries: dict[str, Any] = {}
        while (each := next(events)).kind != "MappingEnd":
            key = _key(each)
            if key in entries:
                _refuse(each.place, f"the key {key[:80]!r} twice")
            self.places[(*path, key)] = each.place
            entries[key] = self.value(next(events), events, (*path, key))
        return entries


def _key(event: _Event) -> str:
    if event.marked:
        _refuse(event.place, f"{event.marked}, which is not read here")
    if event.kind != "Scalar":
        _refuse(event.place, "a key that is not text")
    key = _scalar(event)
    if not isinstance(key, str):
        _refuse(event.place, "a key that is not text: quote it")
    return key


def _scalar(event: _Event) -> str | int | bool | None:
    text = event.value
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(event.place, "text that is not Unicode")
    if not event.plain:
        return text
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    if _INTEGER.fullmatch(text) and text != "-0":
        # Compared by length first: turning many digits into a number takes long.
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
            _refuse(event.place, "an integer beyond 64 bits: quote it if it is text")
        return int(text)
    for pattern, what in _AMBIGUOUS:
        if pattern.fullmatch(text):
            _refuse(event.place, f"{text[:40]!r}: {what}" if text else what)
    return text


def parse_yaml(data: bytes, *, max_size: int, max_depth: int = 8, max_values: int = 20_000) -> Parsed:
    """
    Read one document of the part of YAML that is described above.

    Args:
        data: UTF-8.
        max_size: Bytes.
        max_depth: Maps and lists inside each other.
        max_values: Values in the document, keys not counted.

    Raises:
        PlainYAMLError: anything else, with its line and column.
    """
    if len(data) > max_size:
        raise PlainYAMLError(f"the file has {len(data)} bytes, and at most {max_size} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        right = data[: error.start].decode()
        _refuse(_place_of(right, len(right)), "a byte that is not UTF-8")
    if found := _SEPARATORS.search(text):
        _refuse(
            _place_of(text, found.start()), "a separator that only some readers take for the end of a line"
        )
    events = _events(text)
    builder = _Builder(max_depth, max_values)
    value: Any = None
    documents = 0
    for event in events:
        if event.kind == "DocumentStart":
            documents += 1
            if documents > 1:
                _refuse(event.place, "a second document, and one is read")
            if event.marked:
                _refuse(event.place, f"{event.marked} before it, which is not read here")
            value = builder.value(next(events), events, ())
    if not documents:
        _refuse((0, 0), "the file is empty")
    return Parsed(value, builder.places)
