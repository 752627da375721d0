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
"""After two months nothing of a standing is left."""
_PAGE: Final = 5000
_BEYOND: Final = 1 << 62
"""No revision comes so far; what stands there was written by nobody of ours."""


class Row(Struct, frozen=True):
    """An account, and whose."""

    node: str
    tier: str
    router: str
    account: StatisticsAggregate


async def save(
    tx: Tx, router: str, accounts: Iterable[tuple[str, str, StatisticsAggregate]], now_ms: int
) -> int:
    """Write what *router* has seen, by node and tier; returns the revision under which others find it."""
    last = await tx.one(
        "SELECT coalesce(max(revision), 0) AS revision FROM standings WHERE revision < ?", _BEYOND
    )
    assert last is not None
    revision = int(last["revision"]) + 1
    rows = [
        (node, tier, router, msgspec.msgpack.encode(account), now_ms, revision)
        for node, tier, account in accounts
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
    """The accounts written after *revision*, at most a page, and the revision they reach to."""
    rows = await tx.all(
        "SELECT node, tier, router, account, revision FROM standings WHERE revision > ?"
        " AND revision < ? ORDER BY revision, node, tier, router LIMIT ?",
        revision,
        _BEYOND,
        _PAGE,
    )
    if len(rows) == _PAGE and rows[0]["revision"] != rows[-1]["revision"]:
        # The last revision may not be whole: it begins the next page.
        rows = [row for row in rows if row["revision"] != rows[-1]["revision"]]
    elif len(rows) == _PAGE:
        rows = await tx.all(
            "SELECT node, tier, router, account, revision FROM standings WHERE revision = ?",
            rows[0]["revision"],
        )
    found = []
    for row in rows:
        try:
            account = msgspec.msgpack.decode(row["account"], type=StatisticsAggregate)
        except (msgspec.DecodeError, UnicodeError):
            continue
        # Another router wrote it, perhaps of another version: what cannot be is as if it were not there.
        if account.is_sound():
            found.append(Row(row["node"], row["tier"], row["router"], account))
    return found, rows[-1]["revision"] if rows else revision


async def forget(tx: Tx, now_ms: int) -> None:
    """Drop the accounts of which nothing is left."""
    await tx.execute("DELETE FROM standings WHERE at_ms < ?", now_ms - _KEEP_MS)


async def save_budgets(tx: Tx, router: str, spent: Mapping[str, tuple[int, int]]) -> None:
    """Write what *router* has spent of each key's budget: day and tokens, by name."""
    for name, (day, tokens) in spent.items():
        await tx.execute(
            "INSERT INTO budgets (router, name, day, tokens) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (router, name) DO UPDATE SET day = excluded.day, tokens = excluded.tokens",
            router, name, day, tokens,
        )  # fmt: skip


async def budgets(tx: Tx) -> dict[str, dict[str, tuple[int, int]]]:
    """What each router has spent, by router and name."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in await tx.all("SELECT router, name, day, tokens FROM budgets"):
        found.setdefault(row["router"], {})[row["name"]] = (row["day"], row["tokens"])
    return found
