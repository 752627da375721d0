"""
Records of decisions: the newest in memory, all of them on their way to the store.

Where there is no more room, the caller that has most loses its oldest: who makes many records loses its own,
and never those of a caller that has fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct, structs

from router.choose.decision import Decision, explain_closed
from router.choose.gates import GateVerdict
from router.model.outcomes import Blame
from router.state.newest import Newest, Waiting
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
    revision: str = ""
    """The digest of the model's reference value, by the node's result when the attempt began."""
    ms: int | None = None
    tokens: int | None = None
    """The router's own count."""
    unclean: bool = False
    claimed: int | None = None
    first_ms: int | None = None
    continues: str = ""
    """The node whose text it was to go on from; empty if it had the request from its beginning."""


class Record:
    """A decision, and what became of it."""

    __slots__ = ("attempts", "caller", "decision", "id", "offered")

    def __init__(self, decision: Decision, caller: str = "") -> None:
        self.id = random_bytes(16).hex()
        self.decision = decision
        self.caller = caller
        self.attempts: list[AttemptRecord] = []
        self.offered: tuple[str, ...] = ()
        """The nodes of which somebody else chooses: a picker behind another gateway.  Otherwise it is empty."""

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
        if self.offered:
            head["offered"] = self.offered
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


class FinishedRecord(NamedTuple):
    """A record as it is stored."""

    id: str
    at_ms: int
    caller: str
    data: bytes


class Records:
    """
    Keeps the newest records at hand; those that are finished, as bytes.

    The garbage collector would look at ten thousand small objects again and again.

    Args:
        writes: Whether records are to be written.
        lost: Called for each record that should have been written, and was not.
        in_memory: How many are kept at hand.
        max_unwritten: How many may wait to be written.
    """

    def __init__(
        self,
        *,
        writes: bool,
        lost: Callable[[], None] = lambda: None,
        in_memory: int = _IN_MEMORY,
        max_unwritten: int = _MAX_UNWRITTEN,
    ) -> None:
        self._newest: Newest[Record | bytes] = Newest(in_memory)
        self._writes = writes
        self._unwritten: Waiting[FinishedRecord] = Waiting(max_unwritten, lost)

    def add(self, record: Record) -> None:
        """Add the record of a new decision."""
        self._newest.add(record.id, record.caller, record)

    def finish(self, record: Record) -> None:
        """Note that nothing more will be added to a record: it can be written."""
        data = record.to_json()
        self._newest.replace(record.id, data)
        if self._writes:
            self._put(FinishedRecord(record.id, record.decision.at_ms, record.caller, data))

    def _put(self, record: FinishedRecord) -> None:
        self._unwritten.add(record.id, record.caller, record)

    def get(self, record_id: str) -> bytes | None:
        """One of the newest, as JSON."""
        found = self._newest.get(record_id)
        return found.to_json() if isinstance(found, Record) else found

    def newest(self) -> list[dict[str, Any]]:
        """All that are at hand, the oldest first."""
        return [decode_record(found) for found in map(self.get, self._newest.ids()) if found is not None]

    def drain(self) -> list[FinishedRecord]:
        """Take the records that are to be written."""
        return self._unwritten.drain()

    def requeue(self, records: list[FinishedRecord]) -> None:
        """Give back records that could not be written."""
        since = self.drain()
        for record in (*records, *since):
            self._put(record)
