"""Checks of a whole database: its form, its references, its counters; each service adds its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from verifier.store.database import SQL
from verifier.store.whole import Table, Whole

MAX_SHOWN: Final = 20
"""So many faults of each check are shown."""


@dataclass(frozen=True)
class Fault:
    """A row that breaks an invariant, or a damage."""

    check: str
    where: str


@dataclass(frozen=True)
class Check:
    """An invariant: a query for the rows that break it."""

    name: str
    """What must hold, as a sentence without its full stop."""
    sql: SQL
    """Gives the rows that break it.  Their values are shown."""
    parameters: tuple[Any, ...] = ()


Progress: TypeAlias = Callable[[str], None]


async def find_faults(
    whole: Whole, schema: Mapping[str, Table], checks: Sequence[Check], progress: Progress
) -> list[Fault]:
    """
    Check a database, and give what is wrong with it.

    Args:
        schema: The tables that it should have.
        checks: The invariants of the service.
        progress: Called with the name of each check, before it is made.
    """
    faults: list[Fault] = []
    steps: list[tuple[str, Callable[[], Awaitable[list[str]]]]] = [
        ("the database is whole", whole.integrity),
        ("the tables have their columns, keys and references", lambda: _other_form(whole, schema)),
        ("every reference leads to a row", lambda: _dangling(whole, schema)),
        ("every counter is above the numbers of its table", lambda: _low_counters(whole)),
    ]
    for name, find in steps:
        progress(name)
        faults += [Fault(name, where) for where in await find()]
    if whole.tables.keys() != schema.keys():
        # The other checks ask tables that are not there.
        return faults
    for check in checks:
        progress(check.name)
        faults += [Fault(check.name, where) for where in await _rows(whole, check)]
    return faults


async def _rows(whole: Whole, check: Check) -> list[str]:
    found = await whole.tx.all(check.sql, *check.parameters)
    shown = [", ".join(f"{name} {_short(value)}" for name, value in row.items()) for row in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        shown.append("and more")
    return shown


def _short(value: Any) -> str:
    return value.hex()[:32] if isinstance(value, bytes) else str(value)[:64]


async def _other_form(whole: Whole, schema: Mapping[str, Table]) -> list[str]:
    found = []
    for name in sorted(whole.tables.keys() | schema.keys()):
        here, expected = whole.tables.get(name), schema.get(name)
        if here is None or expected is None:
            found.append(f"table {name} is {'missing' if here is None else 'unknown'}")
        elif not here.is_like(expected):
            found.append(f"{name} has other columns, or another primary key")
        elif set(here.links) != set(expected.links):
            found.append(f"{name} has other references")
    return found


async def _dangling(whole: Whole, schema: Mapping[str, Table]) -> list[str]:
    found = []
    for name, table in schema.items():
        for link in table.links:
            joined = " AND ".join(
                f'p."{to}" = c."{column}"'
                for column, to in zip(link.columns, link.parent_columns, strict=True)
            )
            filled = " AND ".join(f'c."{column}" IS NOT NULL' for column in link.columns)
            if not whole.tables.keys() >= {name, link.parent}:
                continue
            key = whole.tables[name].key
            columns = ", ".join(f'c."{column}"' for column in dict.fromkeys((*key, *link.columns)))
            rows = await whole.tx.all(
                f'SELECT {columns} FROM "{name}" c WHERE {filled}'
                f' AND NOT EXISTS (SELECT 1 FROM "{link.parent}" p WHERE {joined}) LIMIT {MAX_SHOWN}'
            )
            found += [
                f"{name}: {', '.join(f'{key} {_short(value)}' for key, value in row.items())}"
                f" is not in {link.parent}"
                for row in rows
            ]
    return found


async def _low_counters(whole: Whole) -> list[str]:
    drawn = await whole.counters()
    return [
        f"{name}: the next number is at most {drawn.get(name, 0) + 1}, and {highest} is used"
        for name, table in whole.tables.items()
        if table.counter is not None and (highest := await _highest(whole, table)) > drawn.get(name, 0)
    ]


async def _highest(whole: Whole, table: Table) -> int:
    row = await whole.tx.one(f'SELECT coalesce(max("{table.counter}"), 0) AS n FROM "{table.name}"')
    assert row is not None
    return int(row["n"])
