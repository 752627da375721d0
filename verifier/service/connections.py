"""
Who may have how many connections.

A connection is a *stranger's* until a request on it was authenticated.  Strangers can have only a part of all
connections, and only some from one address.  If a new one comes and its place is taken, it gets that of the
stranger's connection that has waited longest without a request in progress, or that is oldest, if each has one:
so half-open connections keep nobody out.  Those who are *known* are cut for no stranger.

The connections of a trusted proxy carry everybody's requests.  They are neither, and only the number of all
connections limits them.

No socket and no clock: the order of what happens is all that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

PROXY: Final = "proxy"
STRANGER: Final = "stranger"
KNOWN: Final = "known"
_FLOOR: Final = 8
"""Who has most gives way while strangers have less than this part of what they may have."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """How many there may be."""

    total: int
    strangers: int
    per_address: int


class Connection:
    """
    One connection, from the moment that it was accepted.

    Args:
        address: What it is counted under.
        is_proxy: Whether the peer is a trusted proxy.
        abort: Ends it at once.
    """

    __slots__ = ("abort", "address", "identity", "is_busy", "kind")

    def __init__(self, address: str, abort: Callable[[], object], *, is_proxy: bool = False) -> None:
        self.address = address
        self.abort = abort
        self.kind = PROXY if is_proxy else STRANGER
        self.identity: str | None = None
        self.is_busy = False
        """Whether a request is in progress."""


_Set = dict[Connection, None]
"""A set in the order of insertion."""


class Connections:
    """
    All connections of a process.

    Args:
        limits: How many there may be.
        note: Is told why a connection was refused or cut.
    """

    def __init__(self, limits: ConnectionLimits, note: Callable[[str], None]) -> None:
        self.limits = limits
        self._note = note
        self._all: _Set = {}
        self._waiting: _Set = {}
        """Strangers' without a request in progress, by the time since then."""
        self._busy: _Set = {}
        self._by_address: dict[str, _Set] = {}
        self._by_identity: dict[str, _Set] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def strangers(self) -> int:
        """How many are strangers'."""
        return len(self._waiting) + len(self._busy)

    def limit(self, total: int) -> None:
        """Have at most *total* connections, and strangers at most half of them."""
        strangers = min(self.limits.strangers, total // 2)
        self.limits = replace(self.limits, total=total, strangers=strangers)

    def admit(self, connection: Connection) -> bool:
        """Take in a new connection, for which another may be cut; if there is no room, say so."""
        if connection.kind == STRANGER:
            mates = self._by_address.get(connection.address, {})
            if len(mates) >= self.limits.per_address:
                self._cut(next((each for each in mates if not each.is_busy), next(iter(mates))), "address")
            if self.strangers >= self.limits.strangers:
                self._cut(self._oldest_stranger(), "strangers")
        if len(self._all) >= self.limits.total and not self.shed("connections"):
            self._note("connections")
            return False
        self._all[connection] = None
        if connection.kind == STRANGER:
            self._waiting[connection] = None
            self._by_address.setdefault(connection.address, {})[connection] = None
        return True

    def shed(self, reason: str) -> bool:
        """
        Cut a connection to make room, if there is one that may be cut.

        It is a stranger's.  But if strangers have almost none, it is one of whoever has most, and has more than they:
        all who are known were strangers first, and must be able to come.
        """
        victim = self._oldest_stranger()
        floor = max(self.limits.strangers // _FLOOR, 1)
        if self.strangers < floor and self._by_identity:
            most = max(self._by_identity.values(), key=len)
            if len(most) > floor:
                victim = next((each for each in most if not each.is_busy), next(iter(most)))
        self._cut(victim, reason)
        return victim is not None

    def begin(self, connection: Connection) -> None:
        """A request on it is in progress."""
        connection.is_busy = True
        if connection in self._waiting:
            del self._waiting[connection]
            self._busy[connection] = None

    def end(self, connection: Connection) -> None:
        """No more."""
        connection.is_busy = False
        if connection in self._busy:
            del self._busy[connection]
            self._waiting[connection] = None

    def identify(self, connection: Connection, identity: str) -> None:
        """A request on it was authenticated: from now on it is *identity*'s.  A proxy's connection stays the proxy's."""
        if connection.kind == PROXY or connection.identity == identity or connection not in self._all:
            return
        self._leave(connection)
        connection.kind, connection.identity = KNOWN, identity
        self._by_identity.setdefault(identity, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """It has ended.  May be said again."""
        if connection in self._all:
            del self._all[connection]
            self._leave(connection)

    def _oldest_stranger(self) -> Connection | None:
        return next(iter(self._waiting or self._busy), None)

    def _cut(self, connection: Connection | None, reason: str) -> None:
        if connection is not None:
            self.remove(connection)
            self._note(reason)
            connection.abort()

    def _leave(self, connection: Connection) -> None:
        """Take it out of the sets that it is in, except that of all."""
        if connection.kind == STRANGER:
            self._waiting.pop(connection, None)
            self._busy.pop(connection, None)
            _drop(self._by_address, connection.address, connection)
        elif connection.identity is not None:
            _drop(self._by_identity, connection.identity, connection)


def _drop(sets: dict[str, _Set], key: str, connection: Connection) -> None:
    mates = sets.get(key)
    if mates is not None:
        mates.pop(connection, None)
        if not mates:
            del sets[key]
