"""Many rows in one statement: a statement costs more than its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

_ROWS: Final = 100


def in_batches(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, list[Any]]]:
    """For each hundred rows, the question marks and the values of an INSERT."""
    for start in range(0, len(rows), _ROWS):
        batch = rows[start : start + _ROWS]
        marks = f"({', '.join('?' * len(batch[0]))})"
        yield ", ".join([marks] * len(batch)), [value for row in batch for value in row]
