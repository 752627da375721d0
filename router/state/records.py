"""Records of decisions: the newest in memory, all of them on their way to the store."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from router.choose.decision import Decision, explain_closed
from router.choose.gates import GateVerdict

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

    def to_json(self) -> bytes:
        """As it is written down: one object, the decision's members among its own."""
        head = {"id": self.id, "caller": self.caller, "attempts": self.attempts, **self.decision.derived()}
        return msgspec.json.encode(head)[:-1] + b"," + msgspec.json.encode(self.decision)[1:]

    def to_wire(self, excluded: Mapping[str, GateVerdict] | None = None) -> dict[str, Any]:
        """As JSON-compatible data; the excluded are only counted, where they are not given."""
        wire = shown(self.to_json())
        return wire if excluded is None else with_excluded(wire, excluded)


def shown(record: bytes) -> dict[str, Any]:
    """A record as JSON-compatible data."""
    return msgspec.json.decode(record, type=dict[str, Any])


def with_excluded(wire: dict[str, Any], excluded: Mapping[str, GateVerdict]) -> dict[str, Any]:
    """A record with who was excluded, but for those that were ranked for want of anyone else."""
    ranked = {entry["node"] for entry in wire["ranked"]}
    return {**wire, "excluded": explain_closed({n: v for n, v in excluded.items() if n not in ranked})}


class Records:
    """
    The newest are at hand, those that have ended as bytes.

    Ten thousand small objects would be looked at by the collector of garbage again and again.
    """

    def __init__(self, *, writes: bool, lost: Callable[[], None] = lambda: None) -> None:
        self._newest: OrderedDict[str, Record | bytes] = OrderedDict()
        self._writes = writes
        self._waiting: list[tuple[str, int, bytes]] = []
        self._lost = lost

    def add(self, record: Record) -> None:
        """A decision was made."""
        self._newest[record.id] = record
        if len(self._newest) > _KEPT:
            self._newest.popitem(last=False)

    def ended(self, record: Record) -> None:
        """All that became of it is known: it can be written down."""
        data = record.to_json()
        if record.id in self._newest:
            self._newest[record.id] = data
        if not self._writes:
            return
        if len(self._waiting) >= _WAITING:
            self._lost()
            return
        self._waiting.append((record.id, record.decision.at_ms, data))

    def get(self, record_id: str) -> bytes | None:
        """One of the newest, as JSON."""
        found = self._newest.get(record_id)
        return found.to_json() if isinstance(found, Record) else found

    def newest(self) -> list[dict[str, Any]]:
        """All that are at hand, the oldest first."""
        return [shown(found) for found in map(self.get, list(self._newest)) if found is not None]

    def take(self) -> list[tuple[str, int, bytes]]:
        """Those that are to be written down: id, time and JSON."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put_back(self, records: list[tuple[str, int, bytes]]) -> None:
        """They could not be written."""
        waiting = records + self._waiting
        for _ in waiting[_WAITING:]:
            self._lost()
        self._waiting = waiting[:_WAITING]
