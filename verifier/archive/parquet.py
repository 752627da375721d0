"""Parquet files of rows, by pyarrow, which is an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from attester.errors import ConfigError
from attester.version import install_hint
from verifier.archive.rows import TABLES, Row, Table
from verifier.errors import AuditError

_NAME: Final = b"touchstone.table"
_ROW_GROUP: Final = 10_000


def check_installed() -> None:
    """Raises `ConfigError`: pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"an archive needs pyarrow, which is not installed: {install_hint('archive')}")


def write(path: Path, table: Table, rows: Sequence[Row]) -> None:
    """
    Write rows into a new file, compressed by zstd.

    Raises:
        AuditError: it cannot be written, or a value does not fit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(table)
    columns = {name: [row[name] for row in rows] for name in table.columns}
    try:
        made = pa.Table.from_pydict(columns, schema=schema)
        with open(path, "wb") as file:
            pq.write_table(made, file, compression="zstd", row_group_size=_ROW_GROUP)
    except (pa.ArrowException, OSError, OverflowError, TypeError) as error:
        raise AuditError(f"{path} cannot be written: {error}") from None


def read(path: Path) -> tuple[Table, list[dict[str, Any]]]:
    """
    Read a file, whose digest the caller has verified.

    Raises:
        AuditError: it is not a file of an archive.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:
            found = pq.read_table(file)
        name = (found.schema.metadata or {}).get(_NAME, b"").decode("ascii", "replace")
        table = TABLES.get(name)
        if table is None or not found.schema.equals(_schema(table)):
            raise AuditError(f"{path} has other columns than a file of an archive")
        return table, found.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise AuditError(f"{path} cannot be read: {error}") from None


def _schema(table: Table) -> Any:
    import pyarrow as pa

    types = {"integer": pa.int64(), "text": pa.string(), "bytes": pa.binary()}
    fields = [pa.field(name, types[kind]) for name, kind in table.columns.items()]
    return pa.schema(fields, metadata={_NAME: table.name.encode()})
