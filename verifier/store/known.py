"""What a database has committed of late and need not be asked for again (`Tx.once`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

Key: TypeAlias = tuple[str, tuple[Any, ...]]
"""A statement and its parameters."""

_KEPT: Final = 10_000


class Known:
    """The newest statements that were committed by `Tx.once`."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def add(self, keys: Sequence[Key]) -> None:
        """Add statements whose transaction was committed."""
        for key in keys:
            self._keys[key] = None
        while len(self._keys) > _KEPT:
            self._keys.popitem(last=False)
