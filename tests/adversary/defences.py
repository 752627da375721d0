"""An attack with its defence taken away: the very test of it must fail, and by the attack's success."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest

Row = tuple[int, Any, Callable[[pytest.MonkeyPatch], None], tuple[Any, ...]]
"""The attack's number, its test, what takes the defence away, and what the test is given."""


def names(rows: Sequence[Row]) -> list[str]:
    return [f"{number}-{defenceless.__name__}-{n}" for n, (number, _, defenceless, _) in enumerate(rows)]


async def succeeds_without(row: Row, fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    number, attack, defenceless, given = row
    defenceless(monkeypatch)
    sockets = [fleet] if "fleet" in inspect.signature(attack).parameters else []
    with pytest.raises(AssertionError, match=f"attack {number} succeeds"):
        await attack(*sockets, *given)
