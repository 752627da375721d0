"""Records of decisions: the newest in memory, all of them on their way to the store."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from router.decision import Decision, explain_closed
from router.gates import Verdict

_KEPT: Final = 10_000
_WAITING: Final = 20_000
"""Records that were not written yet; more are counted, and lost."""


class Record:
    """A decision and what became of it."""

    __slots__ = ("attempts", "caller", "decision", "id")

    def __init__(self, decision: Decision, caller: str = "") -> None:
        self.id = secrets.token_hex(16)
        self.decision = decision
        self.caller = caller
        self.attempts: list[dict[str, Any]] = []

    def to_wire(self, excluded: Mapping[str, Verdict] | None = None) -> dict[str, Any]:
        """As JSON-compatible data; the excluded are only counted, where they are not given."""
        wire = {"id": self.id, "caller": self.caller, **self.decision.to_wire(), "attempts": self.attempts}
        if excluded is not None:
            ranked = {entry.node for entry in self.decision.ranked}
            wire["excluded"] = explain_closed({n: v for n, v in excluded.items() if n not in ranked})
        return wire

    def to_json(self) -> bytes:
        """As it is written down."""
        return msgspec.json.encode(self.to_wire())


class Records:
    """The newest are at hand."""

    def __init__(self, *, writes: bool, lost: Callable[[], None] = lambda: None) -> None:
        self._newest: OrderedDict[str, Record] = OrderedDict()
        self._writes = writes
        self._waiting: list[Record] = []
        self._lost = lost

    def add(self, record: Record) -> None:
        """A decision was made."""
        self._newest[record.id] = record
        if len(self._newest) > _KEPT:
            self._newest.popitem(last=False)

    def ended(self, record: Record) -> None:
        """All that became of it is known: it can be written down."""
        if not self._writes:
            return
        if len(self._waiting) >= _WAITING:
            self._lost()
            return
        self._waiting.append(record)

    def get(self, record_id: str) -> Record | None:
        """One of the newest."""
        return self._newest.get(record_id)

    def take(self) -> list[Record]:
        """Those that are to be written down."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put_back(self, records: list[Record]) -> None:
        """They could not be written."""
        self._waiting = (records + self._waiting)[:_WAITING]
