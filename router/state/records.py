"""Records of decisions: the newest in memory, all of them on their way to the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from router.choose.decision import Decision, explain_closed
from router.choose.gates import GateVerdict
from router.model.outcomes import Blame
from router.state.random_bytes import random_bytes

_IN_MEMORY: Final = 10_000
"""Records that can be looked up without the store."""
_MAX_UNWRITTEN: Final = 20_000
"""Records that wait to be written; further ones are counted, and lost."""


class AttemptRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt, as the record of its decision has it."""

    node: str
    outcome: str
    """An `Outcome`, or ``skipped`` if a gate closed between the decision and the attempt."""
    blame: Blame | None = None
    detail: str
    ms: int | None = None
    tokens: int | None = None
    """The router's own count."""
    unclean: bool = False
    claimed: int | None = None
    first_ms: int | None = None


class Record:
    """A decision, and what became of it."""

    __slots__ = ("attempts", "caller", "decision", "id")

    def __init__(self, decision: Decision, caller: str = "") -> None:
        self.id = random_bytes(16).hex()
        self.decision = decision
        self.caller = caller
        self.attempts: list[AttemptRecord] = []

    def complete_last(self, *, tokens: int, unclean: bool, claimed: int | None, first_ms: int | None) -> None:
        """Add to the last attempt what was counted of it."""
        self.attempts[-1] = structs.replace(
            self.attempts[-1], tokens=tokens, unclean=unclean, claimed=claimed, first_ms=first_ms
        )

    def blame(self, node: str) -> None:
        """Note that the failure of an attempt turned out to be the node's fault."""
        self.attempts = [
            structs.replace(each, blame=Blame.NODE) if each.node == node else each for each in self.attempts
        ]

    def to_json(self) -> bytes:
        """The stored form: one object that has the decision's members among its own."""
        head = {"id": self.id, "caller": self.caller, "attempts": self.attempts, **self.decision.derived()}
        return msgspec.json.encode(head)[:-1] + b"," + msgspec.json.encode(self.decision)[1:]

    def to_wire(self, excluded: Mapping[str, GateVerdict] | None = None) -> dict[str, Any]:
        """As JSON-compatible data.  If the excluded nodes are not given, they are only counted."""
        wire = decode_record(self.to_json())
        return wire if excluded is None else with_excluded(wire, excluded)


def decode_record(record: bytes) -> dict[str, Any]:
    """A record as JSON-compatible data."""
    return msgspec.json.decode(record, type=dict[str, Any])


def with_excluded(wire: dict[str, Any], excluded: Mapping[str, GateVerdict]) -> dict[str, Any]:
    """A record with the excluded nodes, but for those that were ranked because no other node was left."""
    ranked = {entry["node"] for entry in wire["ranked"]}
    return {**wire, "excluded": explain_closed({n: v for n, v in excluded.items() if n not in ranked})}


class Records:
    """
    Keeps the newest records at hand; those that are finished, as bytes.

    The garbage collector would look at ten thousand small objects again and again.
    """

    def __init__(self, *, writes: bool, lost: Callable[[], None] = lambda: None) -> None:
        self._newest: OrderedDict[str, Record | bytes] = OrderedDict()
        self._writes = writes
        self._unwritten: list[tuple[str, int, bytes]] = []
        self._lost = lost

    def add(self, record: Record) -> None:
        """Add the record of a new decision."""
        self._newest[record.id] = record
        if len(self._newest) > _IN_MEMORY:
            self._newest.popitem(last=False)

    def finish(self, record: Record) -> None:
        """Note that nothing more will be added to a record: it can be written."""
        data = record.to_json()
        if record.id in self._newest:
            self._newest[record.id] = data
        if not self._writes:
            return
        if len(self._unwritten) >= _MAX_UNWRITTEN:
            self._lost()
            return
        self._unwritten.append((record.id, record.decision.at_ms, data))

    def get(self, record_id: str) -> bytes | None:
        """One of the newest, as JSON."""
        found = self._newest.get(record_id)
        return found.to_json() if isinstance(found, Record) else found

    def newest(self) -> list[dict[str, Any]]:
        """All that are at hand, the oldest first."""
        return [decode_record(found) for found in map(self.get, list(self._newest)) if found is not None]

    def drain(self) -> list[tuple[str, int, bytes]]:
        """Take the records that are to be written: id, time and JSON."""
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    def requeue(self, records: list[tuple[str, int, bytes]]) -> None:
        """Give back records that could not be written."""
        unwritten = records + self._unwritten
        for _ in unwritten[_MAX_UNWRITTEN:]:
            self._lost()
        self._unwritten = unwritten[:_MAX_UNWRITTEN]
