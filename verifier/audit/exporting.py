"""
Make an export: read a verifier's database, and write a folder.

Of each log that was written in the time, all entries of it are there, and some before and after it, so that whoever
checks the export sees that none is missing.  The folder has its name only when it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attester.settings import new_folder
from verifier.archive import parquet
from verifier.archive.rows import RESULTS
from verifier.audit.index import File, Index, LogPart, sign_index
from verifier.audit.tables import Entry, decode_entry, tables
from verifier.errors import AuditError
from verifier.log.ranges import nodes_beside
from verifier.store import log_tree
from verifier.store.database import Tx
from verifier.store.log_tree import Log, Stored

MARGIN_MS: Final = 600_000
"""Entries of so much earlier and later are in an export too: they are in the order of their commits, not of their times."""
_PER_READ: Final = 256
_IDS: Final = 200

README: Final = """\
What a verifier decided in some time, with proofs from its log.

  index              what this export is, and the digest of each file; signed by the log's key
  log-N.checkpoint   the signed size and root of log N, with the signatures of witnesses
  log-N.range        hashes beside the entries: with them the entries give the root
  log-N.jsonl        the entries, one a line, as they are in the log
  results.jsonl      the attestation results, one a line; the log has the digest of each
  attested.csv       who was attested, when, by which policy, and what ended it
  changes.csv        what was changed, and by whom
  incidents.csv      what was held against whom
  releases.csv       who released, and why
  receipts.csv       what routers committed to

Verify all of it, without a network:

  touchstone audit verify FOLDER --key KEY

KEY is the public key of the log.  Get it from elsewhere than from here.
"""


@dataclass(frozen=True)
class Exported:
    """What an export has."""

    index: Index
    counts: dict[str, int]
    """Rows by table."""


@dataclass(frozen=True)
class _Part:
    """The part of one log."""

    log: Log
    checkpoint: Stored
    first: int
    entries: list[bytes]
    beside: list[tuple[int, int, bytes]]

    @property
    def last(self) -> int:
        return self.first + len(self.entries)

    def to_wire(self) -> LogPart:
        """What the index says of it."""
        return LogPart(
            number=self.log.number,
            vkey=self.log.vkey,
            size=self.checkpoint.size,
            first=self.first,
            last=self.last,
        )


async def export(
    tx: Tx,
    key: Ed25519PrivateKey,
    folder: Path,
    *,
    from_ms: int,
    to_ms: int,
    now_ms: int,
    archive: Path | None = None,
) -> Exported:
    """
    Write an export.

    Args:
        key: Of the log.
        folder: Is made, and must not be there.
        from_ms: The first moment, in milliseconds since 1970.
        to_ms: The moment after the last one.
        now_ms: Is written into the index.
        archive: The folder of archived results, if there is one; the log says whether they are the right ones.

    Raises:
        AuditError: there is no log yet, or the time is none.
        ConfigError: the folder is there, or cannot be written.
        LogDivergedError: the database is not what the log has signed.
    """
    if not 0 <= from_ms < to_ms:
        raise AuditError("--from must be before --to")
    parts = await _parts(tx, from_ms, to_ms)
    if not parts:
        raise AuditError("this verifier has no log of that time")
    entries = [each for part in parts for each in _decoded(part) if from_ms <= each.at_ms < to_ms]
    results, missing = await _results(tx, entries, archive)
    files = {"readme.txt": README.encode()}
    for part in parts:
        files |= _files_of(part)
    files["results.jsonl"] = b"".join(
        msgspec.json.encode({"id": id_, "token": token}, order="sorted") + b"\n"
        for id_, token in results.items()
    )
    made = tables(entries, results)
    files |= made
    index = Index(
        made_ms=now_ms,
        from_ms=from_ms,
        to_ms=to_ms,
        logs=tuple(part.to_wire() for part in parts),
        without_token=missing,
        files=tuple(File.of(name, data) for name, data in sorted(files.items())),
    )
    files["index"] = sign_index(index, parts[-1].log.origin, key)
    with new_folder(folder) as place:
        for name, data in files.items():
            (place / name).write_bytes(data)
    return Exported(index, {name: data.count(b"\r\n") - 1 for name, data in made.items()})


async def _parts(tx: Tx, from_ms: int, to_ms: int) -> list[_Part]:
    found = []
    for log in await log_tree.every(tx):
        checkpoint = await log_tree.best(tx, log.number)
        if checkpoint is None or checkpoint.size == 0:
            continue
        first = await _place_at(tx, log, checkpoint.size, from_ms - MARGIN_MS)
        last = await _place_at(tx, log, checkpoint.size, to_ms + MARGIN_MS)
        # One more on each side, if there is one: it shows where the time begins and ends.
        first, last = max(first - 1, 0), min(last + 1, checkpoint.size)
        entries: list[bytes] = []
        for start in range(first, last, _PER_READ):
            entries += await log_tree.leaves(tx, log.number, start, min(start + _PER_READ, last))
        wanted = nodes_beside(first, last, checkpoint.size)
        nodes = await log_tree.read_nodes(tx, log.number, checkpoint.size, wanted)
        beside = [(level, index, nodes(level, index)) for level, index in wanted]
        found.append(_Part(log=log, checkpoint=checkpoint, first=first, entries=entries, beside=beside))
    return found


async def _place_at(tx: Tx, log: Log, size: int, at_ms: int) -> int:
    """The first place whose entry is of this time or later, by halving: times rise, but for some seconds."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        (data,) = await log_tree.leaves(tx, log.number, middle, middle + 1)
        if decode_entry(log.number, middle, data).at_ms < at_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _decoded(part: _Part) -> list[Entry]:
    return [decode_entry(part.log.number, place, data) for place, data in enumerate(part.entries, part.first)]


def _files_of(part: _Part) -> dict[str, bytes]:
    name = f"log-{part.log.number}"
    lines = b"".join(
        b'{"entry":%b,"place":%d}\n' % (data, place) for place, data in enumerate(part.entries, part.first)
    )
    beside = [[level, index, value.hex()] for level, index, value in part.beside]
    return {
        f"{name}.checkpoint": part.checkpoint.text.encode(),
        f"{name}.range": msgspec.json.encode({"beside": beside, "first": part.first}, order="sorted") + b"\n",
        f"{name}.jsonl": lines,
    }


async def _results(tx: Tx, entries: Sequence[Entry], archive: Path | None) -> tuple[dict[str, str], int]:
    """The tokens of the results of *entries* by id, and how many are not there any more."""
    wanted = [entry.text("id") for entry in entries if entry.has_token]
    found: dict[str, str] = {}
    for start in range(0, len(wanted), _IDS):
        ids = wanted[start : start + _IDS]
        marks = ", ".join("?" * len(ids))
        rows = await tx.all(f"SELECT id, token FROM appraisals WHERE id IN ({marks})", *ids)
        found |= {row["id"]: row["token"] for row in rows}
    old = {each for each in wanted if each not in found}
    if old and archive is not None:
        found |= parquet.find(archive, RESULTS, "token", old)
    ordered = {each: found[each] for each in wanted if each in found}
    return ordered, len(set(wanted)) - len(ordered)
