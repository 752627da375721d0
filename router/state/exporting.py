"""
A statement in a folder, with every receipt behind it and the batches that they are in: written, and verified offline.

    statement.jws  .json  .csv  .html     the statement, as it is signed and as people read it
    receipts.jsonl                        a line for each receipt: its payload, and its place in a batch
    batches.jsonl                         a line for each batch: as it is signed, with the hashes of its leaves
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from attester.errors import ConfigError
from router.model.errors import ReceiptError, SettlementError
from router.settlement import exchanges, statements
from router.settlement.exchanges import Exchange
from router.settlement.periods import read_period
from router.settlement.statements import MAX_STATEMENT, Statement
from router.state.settling import Settler
from router.store import settlement as store
from router.store.receipts import find_batch
from router.store.settlement import StoredStatement
from verifier.errors import RequestError
from verifier.log import tree
from verifier.router_receipts import ReceiptKey, read_batch
from verifier.store.database import Database

_FORMS: Final = {
    "jws": "statement.jws",
    "json": "statement.json",
    "csv": "statement.csv",
    "html": "statement.html",
}
_RECEIPTS: Final = "receipts.jsonl"
_BATCHES: Final = "batches.jsonl"
_PAGE: Final = 1000
_MAX_LINE: Final = 64 << 20
T = TypeVar("T")


class _Receipt(Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    line: int
    kid: str
    batch: Annotated[int, Meta(ge=0)]
    place: Annotated[int, Meta(ge=0)]
    payload: str


class _Batch(Struct, frozen=True, forbid_unknown_fields=True):
    kid: str
    number: int
    batch: str
    """As it is signed."""
    leaves: str
    """The hashes of its leaves, hex, one after the other."""
    entry: str | None
    """The id of its entry in the verifier's log."""


@dataclass(frozen=True)
class Checked:
    """What was verified."""

    name: str
    statement: Statement
    receipts: int
    batched: int
    """Receipts that are in batches that are there."""
    batches: int
    logged: int
    """Batches of which the store has the entry in the log."""


async def write(
    db: Database, settler: Settler, found: StoredStatement, out: Path, in_form: Callable[[str], str]
) -> int:
    """
    Write a statement into a new folder.

    Args:
        in_form: Gives it in a form.

    Returns:
        How many receipts were written.

    Raises:
        ConfigError: the folder is there, or cannot be written.
        SettlementError: a receipt is kept no longer.
    """
    lines = await _lines_of(db, found.id)
    receipts, batches = await _collect(db, settler, found, lines)
    try:
        await asyncio.to_thread(_write_all, out, in_form, receipts, batches)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    if len(receipts) != len(lines):
        raise SettlementError(f"{len(lines) - len(receipts)} of its {len(lines)} receipts are kept no longer")
    return len(receipts)


async def _lines_of(db: Database, statement_id: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    after = "", 0
    while True:
        async with db.scan() as tx:
            rows = await store.receipts_behind(tx, statement_id, after, _PAGE)
        for row in rows:
            lines.setdefault(row.id, row.line)
        if len(rows) < _PAGE:
            return lines
        after = rows[-1].id, rows[-1].line


async def _collect(
    db: Database, settler: Settler, found: StoredStatement, lines: Mapping[str, int]
) -> tuple[list[bytes], list[bytes]]:
    receipts, numbers, batches = [], dict[tuple[str, int], None](), []
    async for row in settler.receipts(read_period(found.period)):
        if row.id in lines:
            payload = row.payload.decode("ascii")
            one = _Receipt(
                id=row.id, line=lines[row.id], kid=row.kid, batch=row.batch, place=row.place, payload=payload
            )
            receipts.append(msgspec.json.encode(one) + b"\n")
            numbers[row.kid, row.batch] = None
    for kid, number in numbers:
        async with db.read() as tx:
            batch = await find_batch(tx, kid, number)
        if batch is not None:
            one_batch = _Batch(
                kid=kid,
                number=number,
                batch=batch.batch.decode(),
                leaves=batch.leaves.hex(),
                entry=batch.entry,
            )
            batches.append(msgspec.json.encode(one_batch) + b"\n")
    return receipts, batches


def _write_all(
    out: Path, in_form: Callable[[str], str], receipts: Sequence[bytes], batches: Sequence[bytes]
) -> None:
    out.mkdir(parents=True)
    for form, name in _FORMS.items():
        (out / name).write_text(in_form(form), encoding="utf-8", newline="")
    (out / _RECEIPTS).write_bytes(b"".join(receipts))
    (out / _BATCHES).write_bytes(b"".join(batches))


def verify(folder: Path, keys: Mapping[str, ReceiptKey]) -> Checked:
    """
    Verify an exported statement: its signature, every number from its receipts, and the receipts in their batches.

    Args:
        keys: The router's receipt keys, by kid.

    Raises:
        ConfigError: a file cannot be read.
        SettlementError: something is wrong; the message says what.
    """
    token = _read(folder / _FORMS["jws"], MAX_STATEMENT * 2).decode("ascii", "replace").strip()
    data, statement = statements.open_signed(token, keys)
    batches = {(each.kid, each.number): each for each in _lines(folder / _BATCHES, _Batch)}
    for each in batches.values():
        _check_batch(each, keys)
    count = {"receipts": 0, "batched": 0}

    def read() -> Iterator[Exchange]:
        for row in _lines(folder / _RECEIPTS, _Receipt):
            payload = row.payload.encode()
            try:
                found = exchanges.read(payload)
            except ReceiptError as error:
                raise SettlementError(f"receipt {row.id[:40]!r}: {error}") from None
            if not found or found[0].id != row.id:
                raise SettlementError(f"receipt {row.id[:40]!r} is another one, or of no node")
            count["receipts"] += 1
            batch = batches.get((row.kid, row.batch))
            if batch is not None:
                _check_place(row, batch, found[0].leaf)
                count["batched"] += 1
            yield from found

    statements.check(statement, read())
    logged = sum(each.entry is not None for each in batches.values())
    return Checked(
        name=statements.digest(data), statement=statement, receipts=count["receipts"],
        batched=count["batched"], batches=len(batches), logged=logged,
    )  # fmt: skip


def _check_batch(found: _Batch, keys: Mapping[str, ReceiptKey]) -> None:
    where = f"batch {found.number} of {found.kid[:64]!r}"
    try:
        batch = read_batch(found.batch.encode())
        leaves = bytes.fromhex(found.leaves)
    except (RequestError, ValueError) as error:
        raise SettlementError(f"{where} cannot be read: {error}") from None
    key = keys.get(batch.kid)
    try:
        if key is None:
            raise SettlementError(f"{where} is by none of the given keys")
        batch.check(key)
    except RequestError as error:
        raise SettlementError(f"{where}: {error}") from None
    hashes = [leaves[at : at + tree.HASH_SIZE] for at in range(0, len(leaves), tree.HASH_SIZE)]
    if (batch.kid, batch.number, batch.size) != (found.kid, found.number, len(hashes)):
        raise SettlementError(f"{where} is another one")
    if tree.root_of(hashes).hex() != batch.root:
        raise SettlementError(f"{where} has other leaves than its root")


def _check_place(row: _Receipt, batch: _Batch, leaf: bytes) -> None:
    at = row.place * tree.HASH_SIZE * 2
    if batch.leaves[at : at + tree.HASH_SIZE * 2] != leaf.hex():
        raise SettlementError(f"receipt {row.id} is not at its place in batch {batch.number}: it was altered")


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeError) as error:
                    raise SettlementError(f"{path.name}, line {number}, cannot be read: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
