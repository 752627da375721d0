"""
The tables of an export: what its entries say, for people and for spreadsheets.  Pure.

They follow from the entries and the results alone, so whoever checks an export makes them again and compares.
"""

from __future__ import annotations

import csv
import io
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import msgspec

from verifier.errors import AuditError

Row: TypeAlias = dict[str, str]
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""With one of these a spreadsheet takes a cell for a formula."""
_LAST_MS: Final = 253402300799_999
"""Of the year 9999, the last that `datetime` has."""


class Entry(msgspec.Struct, frozen=True):
    """An entry of the log, decoded."""

    log: int
    place: int
    members: dict[str, Any]

    def text(self, name: str) -> str:
        """A member as text; empty if there is none."""
        return _text(self.members.get(name))

    @property
    def kind(self) -> str:
        """The kind of entry."""
        return self.text("kind")

    @property
    def has_token(self) -> bool:
        """Whether it is of a result that others may see.  That of a background check is its caller's alone."""
        return self.kind == "result" and "node" in self.members

    @property
    def at_ms(self) -> int:
        """When it was written, in milliseconds since 1970."""
        at = self.members.get("at")
        return at if isinstance(at, int) and not isinstance(at, bool) else 0


def decode_entry(log: int, place: int, data: bytes) -> Entry:
    """Read an entry.  Raises `AuditError`."""
    try:
        members = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise AuditError(f"log {log}, entry {place}: it is not a JSON object")
    return Entry(log, place, members)


def time_of(at_ms: int) -> str:
    """A moment in milliseconds since 1970, in UTC (RFC 3339)."""
    moment = datetime.fromtimestamp(max(0, min(at_ms, _LAST_MS)) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def tables(entries: Iterable[Entry], results: Mapping[str, str]) -> dict[str, bytes]:
    """
    Make all tables.

    Args:
        entries: Those of the time that the export is about, in their order.
        results: Tokens of results by their ids.

    Returns:
        CSV files by name.
    """
    found = list(entries)
    revoked = _revocations(found)
    made = {
        "attested.csv": [_attested(each, results, revoked) for each in found if each.kind == "result"],
        "changes.csv": [_change(each) for each in found if each.kind in _CHANGES],
        "incidents.csv": [_incident(each) for each in found if each.kind == "incident"],
        "releases.csv": [_release(each) for each in found if each.kind == "release"],
        "receipts.csv": [_receipts(each) for each in found if each.kind == "receipts"],
    }
    return {name: to_csv(_COLUMNS[name], rows) for name, rows in made.items()}


_PLACE: Final = ("log", "place", "at")
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "attested.csv": (
        *_PLACE, "node", "operator", "result", "status", "policies", "references", "expires", "revoked", "why",
    ),
    "changes.csv": (*_PLACE, "kind", "change", "subject", "actor", "details"),
    "incidents.csv": (*_PLACE, "incident", "node", "operator", "kind", "severity", "state", "code", "actor", "change"),
    "releases.csv": (*_PLACE, "incident", "node", "actor", "change", "reason"),
    "receipts.csv": (*_PLACE, "router", "kid", "number", "size", "root", "from", "to"),
}  # fmt: skip
_CHANGES: Final[Mapping[str, str]] = {
    "policy": "digest",
    "reference": "digest",
    "block": "id",
    "key": "kid",
    "node": "node",
    "router": "spki_sha256",
    "router-key": "kid",
    "database": "subject",
    "log": "origin",
    "archive": "digest",
}
"""By kind of entry that is a change, the member that says of what."""


def _row(entry: Entry, **cells: str) -> Row:
    return {"log": str(entry.log), "place": str(entry.place), "at": time_of(entry.at_ms), **cells}


def _revocations(entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for entry in entries:
        ids = entry.members.get("ids")
        if entry.kind == "revocation" and isinstance(ids, list):
            for each in ids:
                found.setdefault(_text(each), (time_of(entry.at_ms), entry.text("why")))
    return found


def _attested(entry: Entry, results: Mapping[str, str], revoked: Mapping[str, tuple[str, str]]) -> Row:
    result = entry.text("id")
    expires = entry.members.get("expires")
    ended, why = revoked.get(result, ("", ""))
    return _row(
        entry,
        node=entry.text("node"),
        operator=operator_of(results[result]) if result in results else "",
        result=result,
        status=entry.text("status"),
        policies=entry.text("policies"),
        references=entry.text("references") or entry.text("references_sha256"),
        expires=time_of(expires) if isinstance(expires, int) else "",
        revoked=ended,
        why=why,
    )


def _change(entry: Entry) -> Row:
    subject = _CHANGES[entry.kind]
    shown = {"kind", "v", "at", "change", "actor", subject}
    details = {name: value for name, value in sorted(entry.members.items()) if name not in shown}
    return _row(
        entry,
        kind=entry.kind,
        change=entry.text("change"),
        subject=entry.text(subject),
        actor=entry.text("actor"),
        details=" ".join(f"{name}={_text(value)}" for name, value in details.items()),
    )


def _incident(entry: Entry) -> Row:
    named = ("node", "operator", "severity", "state", "code", "actor", "change")
    cells = {name: entry.text(name) for name in named}
    return _row(entry, incident=entry.text("id"), kind=entry.text("incident"), **cells)


def _release(entry: Entry) -> Row:
    cells = {name: entry.text(name) for name in ("node", "actor", "reason")}
    return _row(entry, incident=entry.text("id"), change=entry.text("change") or "released", **cells)


def _receipts(entry: Entry) -> Row:
    times = {name: entry.members.get(name) for name in ("from", "to")}
    cells = {name: entry.text(name) for name in ("router", "kid", "number", "size", "root")}
    return _row(
        entry, **cells, **{name: time_of(at) if isinstance(at, int) else "" for name, at in times.items()}
    )


def operator_of(token: str) -> str:
    """Whose node a result is about, as its verifier says in it; empty if it does not say so."""
    try:
        payload = token.split(".")[1]
        claims = msgspec.json.decode(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return _text(claims["submods"]["platform"]["ear_verifier_claims"]["node"]["operator"])
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return ""


def to_csv(columns: Sequence[str], rows: Iterable[Row]) -> bytes:
    """A table as CSV (RFC 4180) in UTF-8.  No cell is a formula to a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue().encode()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


_as_text: Final[Mapping[type, Callable[[Any], str]]] = {
    str: str,
    bool: lambda value: "true" if value else "false",
    int: str,
    list: lambda value: " ".join(_text(each) for each in value),
    dict: lambda value: " ".join(f"{name}={_text(each)}" for name, each in sorted(value.items())),
}


def _text(value: object) -> str:
    made = _as_text.get(type(value))
    text = "" if made is None else made(value)
    # A lone surrogate would be no UTF-8.
    return text.encode("utf-8", "replace").decode()
