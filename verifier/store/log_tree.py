"""
The logs of a database: which there are, their leaves, their tiles and their checkpoints.

One log is written, the newest.  Those before it ended with a restore or with their key, and stay readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from verifier.errors import LogDivergedError, StoreError
from verifier.log.tiles import HEIGHT, WIDTH, Tile, TiledNodes, tiles_for
from verifier.log.tree import HASH_SIZE, Node, Nodes
from verifier.store import log as entries
from verifier.store.database import Row, Tx

KEPT_MS: Final = 60_000
"""Checkpoints are kept for so long, and the newest for ever."""
_PREFERRED_MS: Final = 30_000
"""For a proof, a checkpoint with more cosignatures is preferred to one that is so much newer at most."""
_WAITS_MS: Final = 5_000
"""For so long a checkpoint waits for its witnesses before it is published without some of them."""
_PER_INSERT: Final = 64


@dataclass(frozen=True)
class Log:
    """A log."""

    number: int
    origin: str
    vkey: str
    is_ended: bool = False
    """Whether nothing more is signed on it."""

    @property
    def prefix(self) -> str:
        """The path under which it is served.  Each log has its own: tiles are cached for ever."""
        return prefix_of(self.number)


def prefix_of(number: int) -> str:
    """The path under which a log is served."""
    return "/log" if number == 1 else f"/log/{number}"


@dataclass(frozen=True)
class Stored:
    """A checkpoint of a log, as it is stored."""

    size: int
    root: bytes
    at_ms: int
    note: str
    cosignatures: str
    witnesses: int

    @property
    def text(self) -> str:
        """The note with all its signatures."""
        return self.note + self.cosignatures


async def every(tx: Tx) -> list[Log]:
    """Give all logs, the one that is written last."""
    return [
        _log(row) for row in await tx.all("SELECT number, origin, vkey, ended_ms FROM logs ORDER BY number")
    ]


async def newest(tx: Tx) -> Log | None:
    """Give the log that is written; `None` before the first."""
    row = await tx.one("SELECT number, origin, vkey, ended_ms FROM logs ORDER BY number DESC LIMIT 1")
    return None if row is None else _log(row)


async def by_number(tx: Tx, number: int) -> Log | None:
    """Give a log."""
    row = await tx.one("SELECT number, origin, vkey, ended_ms FROM logs WHERE number = ?", number)
    return None if row is None else _log(row)


def _log(row: Row) -> Log:
    return Log(row["number"], row["origin"], row["vkey"], row["ended_ms"] is not None)


async def begin(tx: Tx, log: Log, now_ms: int, said: Mapping[str, entries.Value]) -> None:
    """
    Begin a log: from now on it is written, and no other.

    Args:
        said: What its first entry says besides its origin and its key.
    """
    await end_all(tx, now_ms)
    await tx.execute(
        "INSERT INTO logs (number, origin, vkey, begun_ms) VALUES (?, ?, ?, ?)",
        log.number,
        log.origin,
        log.vkey,
        now_ms,
    )
    begun = {"change": "begun", "origin": log.origin, "vkey": log.vkey}
    await entries.append(tx, now_ms, "log", {**said, **begun})


async def end_all(tx: Tx, now_ms: int) -> int:
    """End the logs: nothing more is signed on them.  Gives how many there were."""
    return await tx.execute("UPDATE logs SET ended_ms = ? WHERE ended_ms IS NULL", now_ms)


# Checkpoints.


async def head(tx: Tx, log: int) -> Stored | None:
    """Give the newest checkpoint; `None` if the log has none."""
    row = await tx.one("SELECT * FROM log_checkpoints WHERE log = ? ORDER BY size DESC LIMIT 1", log)
    return None if row is None else _stored(row)


async def at_size(tx: Tx, log: int, size: int) -> Stored | None:
    """Give the checkpoint of a size, if it is still kept."""
    row = await tx.one("SELECT * FROM log_checkpoints WHERE log = ? AND size = ?", log, size)
    return None if row is None else _stored(row)


async def best(tx: Tx, log: int, beyond: int = -1) -> Stored | None:
    """
    Give the checkpoint to prove by: of the last half minute the one with most cosignatures, and of those the newest.

    Args:
        beyond: A place that it must cover.
    """
    last = await head(tx, log)
    if last is None or last.size <= beyond:
        return None
    row = await tx.one(
        "SELECT * FROM log_checkpoints WHERE log = ? AND size > ? AND at_ms >= ?"
        " ORDER BY witnesses DESC, size DESC LIMIT 1",
        log,
        beyond,
        last.at_ms - _PREFERRED_MS,
    )
    return last if row is None else _stored(row)


async def shown(tx: Tx, log: int, witnesses: int, now_ms: int) -> Stored | None:
    """
    Give the checkpoint to publish: the largest that all witnesses have cosigned, or that has waited for them.

    What may be published once may be published from then on, so that what is published never shrinks:
    who follows a log takes a smaller tree for one that was cut short.

    Args:
        witnesses: How many are asked.
        now_ms: Milliseconds since 1970.
    """
    row = await tx.one(
        "SELECT * FROM log_checkpoints WHERE log = ? AND (witnesses >= ? OR at_ms <= ?) ORDER BY size DESC LIMIT 1",
        log,
        witnesses,
        now_ms - _WAITS_MS,
    )
    return None if row is None else _stored(row)


def _stored(row: Row) -> Stored:
    return Stored(
        size=row["size"],
        root=bytes(row["root"]),
        at_ms=row["at_ms"],
        note=row["note"],
        cosignatures=row["cosignatures"],
        witnesses=row["witnesses"],
    )


async def add_checkpoint(tx: Tx, log: int, size: int, root: bytes, note: str, now_ms: int) -> None:
    """Store a checkpoint that the log has signed, and forget those from long before it."""
    await tx.execute(
        "INSERT INTO log_checkpoints (log, size, root, at_ms, note, cosignatures, witnesses)"
        " VALUES (?, ?, ?, ?, ?, '', 0)",
        log,
        size,
        root,
        now_ms,
        note,
    )
    await tx.execute(
        "DELETE FROM log_checkpoints WHERE log = ? AND size < ? AND at_ms < ?", log, size, now_ms - KEPT_MS
    )


async def cosign(tx: Tx, log: int, size: int, root: bytes, lines: Sequence[str]) -> None:
    """Add the lines of witnesses to a checkpoint, if it is still kept; *lines* are all that it has from now on."""
    await tx.execute(
        "UPDATE log_checkpoints SET cosignatures = ?, witnesses = ? WHERE log = ? AND size = ? AND root = ?",
        "".join(f"{line}\n" for line in lines),
        len(lines),
        log,
        size,
        root,
    )


# Leaves.


async def leaves(tx: Tx, log: int, start: int, end: int) -> list[bytes]:
    """
    Give the entries from *start* to the one before *end*.

    Raises:
        LogDivergedError: One of them is missing.
    """
    rows = await tx.all(
        "SELECT place, entry FROM log_entries WHERE log = ? AND place >= ? AND place < ? ORDER BY place",
        log,
        start,
        end,
    )
    for place, row in zip(range(start, end), rows, strict=False):
        if row["place"] != place:
            raise LogDivergedError((place, place + 1), "the entry is missing")
    if len(rows) < end - start:
        raise LogDivergedError((start + len(rows), end), "the entries are missing")
    return [bytes(row["entry"]) for row in rows]


async def count_leaves(tx: Tx, log: int) -> int:
    """Give the place after the last entry."""
    row = await tx.one("SELECT place FROM log_entries WHERE log = ? ORDER BY place DESC LIMIT 1", log)
    return 0 if row is None else int(row["place"]) + 1


@dataclass(frozen=True)
class Placed:
    """An entry in its place."""

    log: int
    place: int
    entry: bytes


async def find(tx: Tx, kind: str, subject: str) -> Placed | None:
    """Give the newest entry about something; `None` if none has a place."""
    row = await tx.one(
        "SELECT log, place, entry FROM log_entries WHERE kind = ? AND subject = ?"
        " ORDER BY log DESC, place DESC LIMIT 1",
        kind,
        subject,
    )
    return None if row is None else Placed(row["log"], row["place"], bytes(row["entry"]))


async def at(tx: Tx, log: int, place: int) -> Placed | None:
    """Give the entry at a place."""
    row = await tx.one("SELECT entry FROM log_entries WHERE log = ? AND place = ?", log, place)
    return None if row is None else Placed(log, place, bytes(row["entry"]))


async def insert(tx: Tx, log: int, first: int, rows: Sequence[Row]) -> None:
    """Give entries that were taken their places, from *first* on."""
    for start in range(0, len(rows), _PER_INSERT):
        some = rows[start : start + _PER_INSERT]
        values = [
            value
            for place, row in enumerate(some, first + start)
            for value in (log, place, row["kind"], row["subject"], row["entry"])
        ]
        marks = ", ".join(["(?, ?, ?, ?, ?)"] * len(some))
        await tx.execute(
            f"INSERT INTO log_entries (log, place, kind, subject, entry) VALUES {marks}", *values
        )


# Tiles.


async def read_tile(tx: Tx, log: int, tile: Tile) -> bytes:
    """
    Give the hashes of a tile, or of the part of it that *tile* is.

    Raises:
        LogDivergedError: It is missing, or has fewer.
    """
    row = await tx.one(
        "SELECT hashes FROM log_tiles WHERE log = ? AND level = ? AND number = ?",
        log,
        tile.level,
        tile.index,
    )
    found = b"" if row is None else bytes(row["hashes"])
    if len(found) < tile.width * HASH_SIZE:
        leaves_each = 1 << (HEIGHT * tile.level)
        raise LogDivergedError(
            (tile.start, tile.start + tile.width * leaves_each), f"{tile.path} is missing, or cut short"
        )
    return found[: tile.width * HASH_SIZE]


async def read_nodes(tx: Tx, log: int, size: int, nodes: Iterable[Node]) -> Nodes:
    """
    Read what is asked for of the tree of the first *size* leaves.

    Raises:
        LogDivergedError: A tile is missing, or cut short.
    """
    found = {tile: await read_tile(tx, log, tile) for tile in sorted(tiles_for(nodes, size))}
    return TiledNodes(size, found.__getitem__)


async def write_nodes(tx: Tx, log: int, size: int, made: Sequence[tuple[Node, bytes]]) -> None:
    """
    Write nodes into their tiles.

    Args:
        size: The leaves that the tree had before.
        made: The nodes that were added, each level from left to right.
    """
    tiles: dict[tuple[int, int], bytearray] = {}
    for (level, index), value in made:
        if level % HEIGHT:
            continue
        place = (level // HEIGHT, index // WIDTH)
        if place not in tiles:
            had = (size >> level) - place[1] * WIDTH
            tiles[place] = bytearray(await read_tile(tx, log, Tile(*place, had))) if had > 0 else bytearray()
        if len(tiles[place]) != index % WIDTH * HASH_SIZE:
            raise StoreError(f"the tile {place} of the log has another width than the tree")
        tiles[place] += value
    for (level, number), hashes in tiles.items():
        await tx.execute(
            "INSERT INTO log_tiles (log, level, number, hashes) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (log, level, number) DO UPDATE SET hashes = excluded.hashes",
            log,
            level,
            number,
            bytes(hashes),
        )
