"""Standings as mergeable aggregates: a row for each node, tier and router."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from router.model.statistics import StatisticsAggregate
from router.store.batches import in_batches
from verifier.store.database import Tx

_KEEP_MS: Final = 60 * 86400 * 1000
"""After two months a standing has faded away."""
_PAGE: Final = 5000
_MAX_REVISION: Final = 1 << 62
"""No router counts as high as this.  A row with a higher revision is damaged, and is not read."""


class Row(Struct, frozen=True):
    """An aggregate, and the node, tier and router that it is about."""

    node: str
    tier: str
    router: str
    aggregate: StatisticsAggregate


async def save(
    tx: Tx, router: str, aggregates: Iterable[tuple[str, str, StatisticsAggregate]], now_ms: int
) -> int:
    """Write what *router* measured, by node and tier; returns the revision under which other routers find it."""
    last = await tx.one(
        "SELECT coalesce(max(revision), 0) AS revision FROM standings WHERE revision < ?", _MAX_REVISION
    )
    assert last is not None
    revision = int(last["revision"]) + 1
    rows = [
        (node, tier, router, msgspec.msgpack.encode(aggregate), now_ms, revision)
        for node, tier, aggregate in aggregates
    ]
    for marks, values in in_batches(rows):
        await tx.execute(
            f"INSERT INTO standings (node, tier, router, account, at_ms, revision) VALUES {marks}"
            " ON CONFLICT (node, tier, router) DO UPDATE SET account = excluded.account,"
            " at_ms = excluded.at_ms, revision = excluded.revision",
            *values,
        )
    return revision


async def since(tx: Tx, revision: int) -> tuple[list[Row], int]:
    """The aggregates written after *revision*, at most a page, and the revision that they reach to."""
    rows = await tx.all(
        "SELECT node, tier, router, account, revision FROM standings WHERE revision > ?"
        " AND revision < ? ORDER BY revision, node, tier, router LIMIT ?",
        revision,
        _MAX_REVISION,
        _PAGE,
    )
    if len(rows) == _PAGE and rows[0]["revision"] != rows[-1]["revision"]:
        # The last revision may be incomplete: it begins the next page.
        rows = [row for row in rows if row["revision"] != rows[-1]["revision"]]
    elif len(rows) == _PAGE:
        rows = await tx.all(
            "SELECT node, tier, router, account, revision FROM standings WHERE revision = ?",
            rows[0]["revision"],
        )
    found = []
    for row in rows:
        try:
            aggregate = msgspec.msgpack.decode(row["account"], type=StatisticsAggregate)
        except (msgspec.DecodeError, UnicodeError):
            continue
        # Another router wrote it, perhaps of another version: impossible numbers are passed over.
        if aggregate.is_sound():
            found.append(Row(row["node"], row["tier"], row["router"], aggregate))
    return found, rows[-1]["revision"] if rows else revision


async def forget(tx: Tx, now_ms: int) -> None:
    """Drop the aggregates that have faded away."""
    await tx.execute("DELETE FROM standings WHERE at_ms < ?", now_ms - _KEEP_MS)


async def save_budgets(tx: Tx, router: str, spent: Mapping[str, tuple[int, int]]) -> None:
    """Write what *router* spent of each key's budget: day and tokens, by name of the key."""
    for name, (day, tokens) in spent.items():
        await tx.execute(
            "INSERT INTO budgets (router, name, day, tokens) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (router, name) DO UPDATE SET day = excluded.day, tokens = excluded.tokens",
            router, name, day, tokens,
        )  # fmt: skip


async def budgets(tx: Tx) -> dict[str, dict[str, tuple[int, int]]]:
    """What each router spent, by router and name of the key."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in await tx.all("SELECT router, name, day, tokens FROM budgets"):
        found.setdefault(row["router"], {})[row["name"]] = (row["day"], row["tokens"])
    return found
