"""Leases: what only one process may do at a time, and who does it until when."""

from __future__ import annotations

from typing import Final

from verifier.store.database import Row, Tx

_LONGEST_MS: Final = 60_000
"""No lease is as long."""
_OUTAGE: Final = "outage"
"""Nobody holds this one: it says until when a replica could not use the database."""


async def take(tx: Tx, name: str, holder: str, now_ms: int, until_ms: int) -> bool:
    """
    Take or renew a lease.

    Args:
        now_ms: By the clock that all processes share (`Database.ahead_ms`), as is *until_ms*.

    Returns:
        Whether *holder* has it now; another may hold it.
    """
    changed = await tx.execute(
        "INSERT INTO leases (name, holder, until_ms) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, until_ms = excluded.until_ms"
        " WHERE leases.holder = excluded.holder OR leases.until_ms <= ?",
        name,
        holder,
        until_ms,
        now_ms,
    )
    return changed > 0


async def drop_early(tx: Tx, now_ms: int) -> None:
    """Drop every lease that was taken by a clock that has been set back since."""
    await tx.execute("DELETE FROM leases WHERE until_ms > ?", now_ms + _LONGEST_MS)


async def note_outage(tx: Tx, until_ms: int) -> None:
    """Note that a replica could not use the database until *until_ms*."""
    await tx.execute(
        "INSERT INTO leases (name, holder, until_ms) VALUES (?, '', ?) ON CONFLICT (name) DO UPDATE"
        " SET until_ms = excluded.until_ms WHERE leases.until_ms < excluded.until_ms",
        _OUTAGE,
        until_ms,
    )


async def last_outage_ms(tx: Tx) -> int:
    """Give the last moment at which a replica could not use the database; 0 if there was none."""
    row = await tx.one("SELECT until_ms FROM leases WHERE name = ?", _OUTAGE)
    return 0 if row is None else int(row["until_ms"])


async def held(tx: Tx, now_ms: int) -> list[Row]:
    """Give every lease that somebody holds now."""
    return await tx.all(
        "SELECT name, holder, until_ms FROM leases WHERE until_ms > ? AND name <> ? ORDER BY name",
        now_ms,
        _OUTAGE,
    )


async def give_back(tx: Tx, holder: str) -> None:
    """Give back every lease of a holder, so that another need not wait for its end."""
    await tx.execute("DELETE FROM leases WHERE holder = ?", holder)
