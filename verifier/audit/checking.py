"""Verify an export without a network: signature, digests, the logs' proofs, results, and the tables made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from verifier.audit.index import Index, LogPart, open_index
from verifier.audit.tables import Entry, decode_entry, tables
from verifier.errors import AuditError, LogError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, SignedCheckpoint
from verifier.log.notes import MAX_NOTE, Note, VerifierKey
from verifier.log.proofs import LogProof
from verifier.log.ranges import RangeNodes, nodes_beside
from verifier.log.tree import HASH_SIZE, Node

_MAX_FILES: Final = 1000
_MAX_FILE: Final = 8 << 30

Accept = Callable[[Note], SignedCheckpoint]
"""Verifies the checkpoint of a log."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    place: int


class _Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    beside: list[tuple[int, int, str]]
    first: int


class _Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    token: str


@dataclass
class Checked:
    """What was found of an export."""

    index: Index
    findings: list[str] = field(default_factory=list)
    entries: int = 0
    results: int = 0
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def note(self, place: str, sentence: str) -> None:
        """Add a finding."""
        self.findings.append(f"{place}: {sentence}")


def check(folder: Path, keys: list[VerifierKey], accept: Accept) -> Checked:
    """
    Verify an export.

    Args:
        keys: The public keys of the logs that are trusted.
        accept: Verifies a checkpoint, by them and perhaps by witnesses.

    Raises:
        AuditError: the index cannot be trusted: nothing else was looked at.
    """
    index = open_index(_read(folder / "index", MAX_NOTE), keys)
    found = Checked(index)
    files = _check_files(found, folder)
    entries: list[Entry] = []
    for part in index.logs:
        try:
            entries += _check_log(found, part, files, accept)
        except (AuditError, LogError, msgspec.DecodeError, UnicodeError) as error:
            found.note(f"log {part.number}", str(error))
    _check_tables(found, files, entries)
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise AuditError(f"{path.name} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise AuditError(f"{path.name} has more than {limit} bytes")
    return data


def _check_files(found: Checked, folder: Path) -> dict[str, bytes]:
    """The files of the index whose bytes are the right ones."""
    named = {each.name: each for each in found.index.files[:_MAX_FILES]}
    files = {}
    for name, each in named.items():
        if "/" in name or each.size > _MAX_FILE:
            found.note(name, "it is not a file of an export")
            continue
        try:
            data = _read(folder / name, each.size)
        except AuditError as error:
            found.note(name, str(error))
            continue
        if len(data) != each.size or hashlib.sha256(data).hexdigest() != each.sha256:
            found.note(name, "it is not the file that the index names: it was changed")
            continue
        files[name] = data
    for path in sorted(folder.iterdir()):
        if path.name not in named and path.name != "index":
            found.note(path.name, "the index does not name it: nothing shows where it is from")
    return files


def _check_log(found: Checked, part: LogPart, files: dict[str, bytes], accept: Accept) -> list[Entry]:
    """The entries of a log, which are those that its checkpoint signs."""
    held = read_part(part, files)
    signed = accept(held.note)
    if (signed.checkpoint.size, str(signed.key)) != (part.size, part.vkey):
        raise AuditError("the checkpoint is not the one that the index names")
    if tree.root_from_nodes(part.size, held.nodes) != signed.checkpoint.root:
        raise AuditError("the entries are not those that the checkpoint signs")
    entries = [decode_entry(part.number, place, data) for place, data in enumerate(held.entries, part.first)]
    index = found.index
    if part.first > 0 and entries[0].at_ms >= index.from_ms:
        found.note(f"log {part.number}", "entries from the beginning of the time may be missing")
    if part.last < part.size and entries[-1].at_ms < index.to_ms:
        found.note(f"log {part.number}", "entries from the end of the time may be missing")
    found.entries += len(entries)
    found.checkpoints.append(signed.checkpoint)
    return [each for each in entries if index.from_ms <= each.at_ms < index.to_ms]


@dataclass(frozen=True)
class HeldPart:
    """The part of a log that an export has, not verified."""

    part: LogPart
    note: Note
    entries: list[bytes]
    nodes: RangeNodes

    def prove(self, place: int) -> LogProof:
        """
        Make the proof of one entry, to be given to somebody else.

        Raises:
            AuditError: it is not in the export.
        """
        if not self.part.first <= place < self.part.last:
            raise AuditError(f"log {self.part.number}: the export has no entry {place}")
        path = tree.inclusion_proof(place, self.part.size, self.nodes)
        return LogProof(place, tuple(path), self.note, self.entries[place - self.part.first])


def read_part(part: LogPart, files: dict[str, bytes]) -> HeldPart:
    """
    Read the part of a log.

    Raises:
        AuditError: a file is missing or malformed.
        LogError: the checkpoint is malformed, or the range is none.
    """
    name = f"log-{part.number}"
    missing = [each for each in (".checkpoint", ".range", ".jsonl") if name + each not in files]
    if missing:
        raise AuditError(f"{name}{missing[0]} is missing or was changed")
    given = msgspec.json.decode(files[f"{name}.range"], type=_Range)
    beside: dict[Node, bytes] = {}
    for level, index, value in given.beside:
        try:
            beside[level, index] = bytes.fromhex(value)
        except ValueError:
            raise AuditError("a hash of the range is none") from None
    wanted = nodes_beside(part.first, part.last, part.size)
    if (
        given.first != part.first
        or list(beside) != wanted
        or any(len(v) != HASH_SIZE for v in beside.values())
    ):
        raise AuditError("the hashes beside the entries are not those that are needed")
    entries = []
    for place, line in enumerate(files[f"{name}.jsonl"].split(b"\n")[:-1], part.first):
        decoded = msgspec.json.decode(line, type=_Line)
        if decoded.place != place:
            raise AuditError(f"entry {place} is missing or out of order")
        entries.append(bytes(decoded.entry))
    if len(entries) != part.last - part.first or not entries:
        raise AuditError(f"there are {len(entries)} entries, not {part.last - part.first}")
    note = Note.parse(files[f"{name}.checkpoint"])
    return HeldPart(part, note, entries, RangeNodes(part.first, entries, beside))


def open_part(folder: Path, keys: list[VerifierKey], number: int) -> HeldPart:
    """
    The part of a log in an export whose files are those of its signed index.

    Raises:
        AuditError: there is none, or a file was changed.
    """
    found = Checked(open_index(_read(folder / "index", MAX_NOTE), keys))
    files = _check_files(found, folder)
    for part in found.index.logs:
        if part.number == number:
            return read_part(part, files)
    raise AuditError(f"the export has no log {number}")


def _check_tables(found: Checked, files: dict[str, bytes], entries: list[Entry]) -> None:
    """Compare results with their entries, and the tables with those that follow from both."""
    logged: dict[str, Any] = {e.text("id"): e.members.get("sha256") for e in entries if e.has_token}
    results: dict[str, str] = {}
    try:
        for line in files.get("results.jsonl", b"").split(b"\n")[:-1]:
            each = msgspec.json.decode(line, type=_Token)
            if hashlib.sha256(each.token.encode()).hexdigest() != logged.get(each.id):
                found.note("results.jsonl", f"the log does not have the result {each.id!r} with this token")
            results[each.id] = each.token
    except (msgspec.DecodeError, UnicodeError) as error:
        found.note("results.jsonl", f"a line cannot be read: {error}")
    if len(logged) - len(results) != found.index.without_token:
        found.note(
            "results.jsonl", f"{len(logged) - len(results)} results have no token, and the index says another"
        )
    found.results = len(results)
    for name, data in tables(entries, results).items():
        if name in files and files[name] != data:
            found.note(name, "it does not follow from the entries and the results")
        elif name not in {each.name for each in found.index.files}:
            found.note(name, "it is missing")
