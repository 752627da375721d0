"""Rows of an archive: their tables, and the hashes by which a file of them is proven.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import msgspec

from verifier.log import tree

Value: TypeAlias = "int | str | bytes | None"
Row: TypeAlias = Mapping[str, Value]
Kind: TypeAlias = Literal["integer", "text", "bytes"]

_encoder: Final = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True)
class Table:
    """A table that is archived."""

    name: str
    key: str
    """The column by which a row is found."""
    at: str
    """The column with its time, in milliseconds since 1970."""
    columns: Mapping[str, Kind]


RESULTS: Final = Table(
    "results",
    "id",
    "issued_ms",
    {
        "seq": "integer",
        "id": "text",
        "session_id": "text",
        "node_id": "text",
        "issued_ms": "integer",
        "expires_ms": "integer",
        "status": "text",
        "token": "text",
        "claims": "text",
        "public": "integer",
        "revoked_ms": "integer",
        "origin": "text",
        "basis": "text",
        "generation": "integer",
        "sequence": "integer",
    },
)
"""Results of the verifier: its table `appraisals`."""
DECISIONS: Final = Table(
    "decisions",
    "id",
    "at_ms",
    {"id": "text", "at_ms": "integer", "router": "text", "caller": "text", "record": "bytes"},
)
"""Records of a router's decisions."""
RECEIPTS: Final = Table(
    "receipts",
    "id",
    "at_ms",
    {
        "id": "text",
        "at_ms": "integer",
        "kid": "text",
        "caller": "text",
        "batch": "integer",
        "place": "integer",
        "payload": "bytes",
        "signature": "bytes",
    },
)
"""Receipts of a router."""
TABLES: Final[Mapping[str, Table]] = {table.name: table for table in (RESULTS, DECISIONS, RECEIPTS)}


def leaf_of(table: Table, row: Row) -> bytes:
    """
    The bytes of a row as a leaf: JSON with sorted members, without those that are null, and bytes in base64.

    Anybody can make them again from what a tool reads in the file.
    """
    return _encoder.encode({name: row[name] for name in table.columns if row[name] is not None})


def root_of(table: Table, rows: Iterable[Row]) -> bytes:
    """The root of the tree over rows in their order (RFC 9162)."""
    return tree.root_of(tree.leaf_hash(leaf_of(table, row)) for row in rows)
