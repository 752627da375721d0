"""
The router's name, which it has alone: two routers of one name on one store would overwrite each other's rows.

The name is a lease in the store.  A router that was killed leaves its lease behind; its successor takes it over at
once if it sees that the process is gone, and otherwise waits until the lease ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from attester.errors import ConfigError
from router.model.clock import Clock
from router.settlement.reconciling import CRASH_EXCHANGES, Gap
from router.store import settlement
from verifier.errors import StoreError
from verifier.store import leases
from verifier.store.database import Database, Row, Tx

LEASE_S: Final = 15.0
_RENEW_EVERY_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.5
_LEASE: Final = "router "

_log = structlog.get_logger("router")


class Process(Struct, frozen=True, kw_only=True):
    """A process that can be told from every other one."""

    host: str
    machine: str
    """The start of the machine and the name space of its process numbers; empty if they are not known."""
    pid: int
    began: str
    """When the process began, as the kernel counts."""
    token: str
    """Another one for each router of a process."""

    @classmethod
    def own(cls) -> Process:
        """This process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            began=_began(os.getpid()) or "",
            token=secrets.token_hex(8),
        )

    def lives(self) -> bool | None:
        """Whether it lives; `None` if that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        began = _began(self.pid)
        # Numbers are given again.  Who cannot be looked at lives.
        return began is None or began == self.began


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """When a process began; empty if it has ended and waits for its parent, `None` if it cannot be looked at."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]


class NameLease:
    """Keeps a router's name to one process."""

    def __init__(self, db: Database, name: str, clock: Clock) -> None:
        self._db = db
        self._name = name
        self._clock = clock
        self._holder = msgspec.json.encode(Process.own()).decode()
        self._ahead_ms = 0
        self.names: tuple[str, ...] = (name,)
        """The names that are in use, this one among them, as of late."""

    async def take(self) -> None:
        """
        Take the name, or wait for the end of a router that had it.

        Raises:
            ConfigError: Another router has it and lives.
            StoreError: The store cannot be used.
        """
        self._ahead_ms = await self._db.ahead_ms(self._clock.now_ms)
        first: int | None = None
        while (other := await self._db.write(self._try, of=_LEASE + self._name)) is not None:
            process = _read(other["holder"])
            lives = None if process is None else process.lives()
            if lives is False:
                _log.info("the router that had this name is gone", name=self._name)
                await self._db.write(partial(self._end, other), of=_LEASE + self._name)
                continue
            if lives or (first is not None and other["until_ms"] > first):
                where = "" if process is None else f" (process {process.pid} on {process.host})"
                raise ConfigError(
                    f"another router of this store is called {self._name}{where}."
                    " Each needs a name of its own: set name in [service] of router.toml"
                )
            if first is None:
                first = other["until_ms"]
                _log.info(
                    "a router of this name may live elsewhere; waiting", name=self._name, at_most_s=LEASE_S
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _try(self, tx: Tx) -> Row | None:
        """Take the name; gives the lease that another router has on it."""
        now_ms = self._now_ms()
        lease = _LEASE + self._name
        left = await tx.one("SELECT holder, until_ms FROM leases WHERE name = ?", lease)
        if left is not None and left["holder"] != self._holder and left["until_ms"] <= now_ms:
            await self._note_gap(tx, left, now_ms)
        if await leases.take(tx, lease, self._holder, now_ms, now_ms + int(LEASE_S * 1000)):
            return None
        return await tx.one("SELECT holder, until_ms FROM leases WHERE name = ?", lease)

    async def _note_gap(self, tx: Tx, left: Row, now_ms: int) -> None:
        """The router that had the name has not given it back: it was killed, and its last receipts are lost."""
        from_ms = left["until_ms"] - int(LEASE_S * 1000)
        gap = Gap(
            router=self._name, from_ms=min(from_ms, now_ms), to_ms=now_ms, lost=CRASH_EXCHANGES,
            why="the router was killed",
        )  # fmt: skip
        await settlement.add_gap(tx, gap)

    async def _end(self, other: Row, tx: Tx) -> None:
        await self._note_gap(tx, other, self._now_ms())
        await tx.execute(
            "DELETE FROM leases WHERE name = ? AND holder = ?", _LEASE + self._name, other["holder"]
        )

    async def run(self) -> None:
        """Renew it until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                self._ahead_ms = await self._db.ahead_ms(self._clock.now_ms)
                other = await self._db.write(self._try, of=_LEASE + self._name)
                self.names = await self._in_use()
            except StoreError as error:
                _log.error("the router's name could not be renewed", why=str(error)[:300])
                continue
            if other is not None:
                _log.error("another router took this router's name; nothing is written", name=self._name)

    async def _in_use(self) -> tuple[str, ...]:
        async with self._db.read() as tx:
            held = await leases.held(tx, self._now_ms())
        found = (str(row["name"]) for row in held)
        return tuple(name.removeprefix(_LEASE) for name in found if name.startswith(_LEASE))

    async def confirm(self, tx: Tx) -> None:
        """
        Make sure that no other router has taken the name, in the transaction that writes under it.

        Raises:
            StoreError: One has.
        """
        row = await tx.one("SELECT holder FROM leases WHERE name = ?", _LEASE + self._name)
        if row is not None and row["holder"] != self._holder:
            raise StoreError(f"another router is called {self._name} by now")

    async def give_back(self) -> None:
        """Give it back, so that a successor need not wait."""
        try:
            await self._db.write(lambda tx: leases.give_back(tx, self._holder), of=_LEASE + self._name)
        except StoreError as error:
            _log.warning("the router's name could not be given back", why=str(error)[:300])

    def _now_ms(self) -> int:
        return self._clock.now_ms() + self._ahead_ms


def _read(holder: str) -> Process | None:
    try:
        return msgspec.json.decode(holder, type=Process)
    except msgspec.DecodeError:
        return None
