"""Which database a URL means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from attester.errors import ConfigError
from verifier.store.database import Database
from verifier.store.sqlite import SqliteDatabase

_POSTGRES = ("postgresql://", "postgres://")


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
    if not url.startswith(_POSTGRES):
        raise ConfigError("store.url must begin with postgresql://, or be left out for a file in the home")
    try:
        from verifier.store.postgres import PostgresDatabase
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise ConfigError(
            "PostgreSQL needs an extra. Install it with: pip install 'touchstone-attestation[postgres]'"
        ) from None
    async with PostgresDatabase(url, schema=schema) as postgres:
        yield postgres
