"""
Reference values by hand, in a small part of YAML.

    model: publisher/name
    files:
      model.safetensors:
        sha256: 9f86d081…          # at least one of sha256 and blake3
        blake3: af1349b9…
        size: 1234                 # bytes; may be left out
    ignore: [notes.txt]            # may be left out

YAML lets one text mean several things, and its readers disagree.  So only what all of them
agree on is read, and each other thing is refused with its line and column: tags, anchors,
aliases, merge keys, directives, several documents, keys that are not text or stand twice,
floats, timestamps, and words and numbers that some readers take for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml  # type: ignore[import-untyped]  # it comes without types; only `_events` touches it

from attester.evidence import MAX_FILES
from attester.weights.folder import IGNORED_AT_TOP
from verifier.errors import ReferenceValueError
from verifier.references.measured import Document, DocumentFile

MAX_YAML: Final = 4 << 20
"""Bytes."""
MAX_DEPTH: Final = 8
"""Maps and lists inside each other."""
MAX_VALUES: Final = 20_000
"""Values in a document, keys not counted: 4,096 files with both digests and a size have 16,384."""

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
     "a float, which no reference value has: quote it if it is text"),
)  # fmt: skip
"""Plain scalars on which YAML 1.1, YAML 1.2 and JSON do not agree, in the order they are asked."""
_SEPARATORS: Final = re.compile("[\x85\u2028\u2029]")
"""Ends of lines in YAML 1.1, and characters like any other in YAML 1.2."""
_HEX32: Final = re.compile(r"[0-9a-f]{64}")

Path = tuple[str | int, ...]
_Place = tuple[int, int]


@dataclass(frozen=True)
class _Event:
    """What the library's parser met."""

    kind: str
    """E.g. Scalar, MappingStart."""
    place: _Place
    """Line and column, from 0."""
    value: str = ""
    plain: bool = False
    """Whether the scalar stands without quotes."""
    marked: str = ""
    """What makes it more than its text: a tag or an anchor."""


def _refuse(place: _Place, what: str) -> NoReturn:
    raise ReferenceValueError(f"line {place[0] + 1}, column {place[1] + 1}: {what}")


def _place_of(text: str, position: int) -> _Place:
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

    places: dict[Path, _Place] = field(default_factory=dict)
    """Where each value stands; of an entry of a map, where its key does."""
    _left: int = MAX_VALUES

    def value(self, event: _Event, events: Iterator[_Event], path: Path) -> Any:
        """The value that begins with *event*."""
        self.places.setdefault(path, event.place)
        self._left -= 1
        if self._left < 0:
            _refuse(event.place, f"more than {MAX_VALUES} values")
        if event.marked:
            _refuse(event.place, f"{event.marked}, which is not read here")
        if event.kind == "Scalar":
            return _scalar(event)
        if len(path) >= MAX_DEPTH:
            _refuse(event.place, f"nested deeper than {MAX_DEPTH}")
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


def parse_yaml(data: bytes, *, max_size: int) -> Any:
    """
    Read one document of the part of YAML that is described above.

    Args:
        data: UTF-8.
        max_size: Bytes.

    Returns:
        Maps by text, lists, text, integers of 64 bits, booleans, None.

    Raises:
        ReferenceValueError: anything else, with its line and column.
    """
    return _parse(data, max_size)[0]


def _parse(data: bytes, max_size: int) -> tuple[Any, dict[Path, _Place]]:
    if len(data) > max_size:
        raise ReferenceValueError(f"the file has {len(data)} bytes, and at most {max_size} are read")
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
    builder = _Builder()
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
    return value, builder.places


@dataclass(frozen=True)
class _Reader:
    """Turns what was parsed into a document; refusals have a place and a path."""

    places: dict[Path, _Place]

    def refuse(self, path: Path, what: str) -> NoReturn:
        shown = ".".join(str(part)[:80] for part in path)
        _refuse(self.places[path], f"{shown}: {what}" if shown else what)

    def map(self, value: Any, path: Path, known: frozenset[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            self.refuse(path, "not a map with something in it")
        for key in value:
            if known is not None and key not in known:
                self.refuse((*path, key), f"not known; there are {', '.join(sorted(known))}")
        return value

    def document(self, value: Any) -> Document:
        raw = self.map(value, (), frozenset({"model", "files", "ignore"}))
        for key in ("model", "files"):
            if key not in raw:
                self.refuse((), f"it has no {key}")
        if not isinstance(raw["model"], str):
            self.refuse(("model",), "not text")
        files = self.map(raw["files"], ("files",))
        if len(files) > MAX_FILES:
            self.refuse(("files",), f"{len(files)} files, and a manifest has at most {MAX_FILES}")
        read = [self.file(name, each) for name, each in files.items()]
        ignored = raw.get("ignore", [])
        if not isinstance(ignored, list):
            self.refuse(("ignore",), "not a list of names")
        for number, name in enumerate(ignored):
            if not isinstance(name, str) or not _is_path(name):
                self.refuse(("ignore", number), "not a path within the model")
            if name in files:
                self.refuse(("ignore", number), f"{name[:80]!r} is a file of the model")
        try:
            # In the order of manifests: how the file was written makes no other reference value.
            return Document(
                model=raw["model"],
                files=tuple(sorted(read, key=lambda file: file.name.encode())),
                ignore=tuple(sorted(set(ignored))),
            )
        except ValueError as error:
            self.refuse(("model",), str(error))

    def file(self, name: str, value: Any) -> DocumentFile:
        path: Path = ("files", name)
        if not _is_path(name):
            self.refuse(path, "not a path within the model")
        if name.partition("/")[0] in IGNORED_AT_TOP:
            self.refuse(path, "manifests leave such files out, so it would fit no node")
        raw = self.map(value, path, frozenset({"sha256", "blake3", "size"}))
        digests = {key: each for key, each in raw.items() if key != "size"}
        if not digests:
            self.refuse(path, "neither sha256 nor blake3")
        for key, digest in digests.items():
            if not isinstance(digest, str) or not _HEX32.fullmatch(digest):
                self.refuse((*path, key), "not 64 digits of lower-case hex; quote them if all are decimal")
        size = raw.get("size")
        if "size" in raw and (type(size) is not int or size < 0):
            self.refuse((*path, "size"), "not a number of bytes")
        return DocumentFile(name, size, **digests)


def _is_path(name: str) -> bool:
    parts = name.split("/")
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(parts) and len(name) <= 1024


def read_yaml(data: bytes) -> Document:
    """
    Read a reference value that was written by hand.

    Raises:
        ReferenceValueError: naming line and column.
    """
    value, places = _parse(data, MAX_YAML)
    return _Reader(places).document(value)
