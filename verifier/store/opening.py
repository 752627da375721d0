"""Which database a URL means."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attester.errors import ConfigError
from verifier.store.database import Database
from verifier.store.sqlite import SqliteDatabase
from verifier.store.whole import Use, Whole
from verifier.store.whole_sqlite import open_sqlite

_POSTGRES = ("postgresql://", "postgres://")


def is_postgres(url: str) -> bool:
    """Whether a URL names a PostgreSQL database."""
    return url.startswith(_POSTGRES)


def _check_postgres(url: str) -> None:
    if not is_postgres(url):
        raise ConfigError("store.url must begin with postgresql://, or be left out for a file in the home")
    if importlib.util.find_spec("asyncpg") is None:
        raise ConfigError(
            "PostgreSQL needs an extra. Install it with: pip install 'touchstone-attestation[postgres]'"
        )


@asynccontextmanager
async def open_database(url: str, file: Path, *, schema: str = "verifier.store") -> AsyncIterator[Database]:
    """
    Open the database at *url*, or *file* if the URL is empty.

    Raises:
        ConfigError: The URL is of another kind, or the library for PostgreSQL is missing.
        StoreError: The database cannot be used.
    """
    if not url:
        async with SqliteDatabase(file, schema=schema) as sqlite:
            yield sqlite
        return
    _check_postgres(url)
    from verifier.store.postgres import PostgresDatabase

    async with PostgresDatabase(url, schema=schema) as postgres:
        yield postgres


@asynccontextmanager
async def open_whole(
    url: str, file: Path, use: Use, *, schema: str = "verifier.store"
) -> AsyncIterator[Whole]:
    """
    Open the database at *url*, or *file* if the URL is empty, in one transaction on all of it.

    Raises:
        ConfigError: The URL is of another kind, or the library for PostgreSQL is missing.
        StoreError: There is no such database, or it cannot be used.
    """
    if not url:
        async with open_sqlite(file, use) as sqlite:
            yield sqlite
        return
    _check_postgres(url)
    from verifier.store.whole_postgres import open_postgres

    async with open_postgres(url, schema, use) as postgres:
        yield postgres
