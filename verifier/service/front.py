"""
What one caller may cost, before and after it is known who calls: one `Front` for each process.

Whoever has proven an identity (`note_identity`) spends what is that identity's: its rate, its bytes, its
connections.  Everybody else is a *stranger*, and spends what is its address's and what all strangers have together
(`spend_stranger`, `note_failure`).  So a flood by strangers never takes from somebody who is known, even if both
come through one proxy that says nothing of addresses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from aiohttp import web

from verifier.errors import RequestError
from verifier.front_config import FrontConfig
from verifier.service import addresses
from verifier.service.budget import RETRY_AFTER_S, ByteBudget, Places
from verifier.service.connections import Connection, ConnectionLimits, Connections
from verifier.service.rates import Rates
from verifier.service.refusals import Refusals

_ALL: Final = "all"


class Front:
    """
    The limits of a process, and what is used of them.

    Args:
        config: The settings of the socket.
        per_address_per_minute: Requests of strangers from one address.
        strangers_per_minute: Requests of all strangers.
        monotonic: A monotonic clock in seconds.
    """

    def __init__(
        self,
        config: FrontConfig,
        *,
        per_address_per_minute: int,
        strangers_per_minute: int,
        monotonic: Callable[[], float],
    ) -> None:
        self.config = config
        self.proxies = addresses.read_networks(config.trusted_proxies)
        self.refusals = Refusals()
        limits = ConnectionLimits(
            total=config.connections,
            strangers=config.stranger_connections,
            per_address=config.connections_per_address,
        )
        self.connections = Connections(limits, self.refusals.note)
        total = config.body_budget_mib << 20
        self.bytes = ByteBudget(total, total * config.body_reserved_percent // 100)
        self.places = Places(config.stranger_requests)
        self._awaited: Counter[str] = Counter()
        """Bodies of strangers, by address."""
        self._by_address = Rates(per_address_per_minute, monotonic)
        self._together = Rates(strangers_per_minute, monotonic)

    def address_of(self, request: web.BaseRequest) -> str:
        """What the caller of a request is counted under, if it is a stranger."""
        peer = None if request.remote is None else addresses.read_address(request.remote)
        if not self.proxies:
            return addresses.key_of(peer)
        forwarded, for_whom = (_joined(request, name) for name in ("Forwarded", "X-Forwarded-For"))
        return addresses.key_of(addresses.client_of(peer, forwarded, for_whom, self.proxies))

    @contextmanager
    def reading(self, address: str) -> Iterator[None]:
        """
        While a stranger's body is awaited, it counts like a stranger's connection.

        Behind a proxy that passes bodies on as they come, nothing else would limit how many wait.

        Raises:
            RequestError: too many do.
        """
        config = self.config
        if (
            self._awaited[address] >= config.connections_per_address
            or self._awaited.total() >= config.stranger_connections
        ):
            self.refusals.note("busy")
            raise RequestError("too many bodies are awaited", code="service.busy", retry_after=RETRY_AFTER_S)
        self._awaited[address] += 1
        try:
            yield
        finally:
            self._awaited[address] -= 1
            if not self._awaited[address]:
                del self._awaited[address]

    def spend(self, address: str) -> None:
        """Count a request of a stranger.  Raises `RequestError` if there were too many."""
        self._by_address.spend(address)
        self._together.spend(_ALL)

    def fail(self, address: str) -> None:
        """Count a failure to prove an identity.  Raises `RequestError` if there were too many."""
        self._by_address.spend(address)


def _joined(request: web.BaseRequest, name: str) -> str | None:
    return ",".join(request.headers.getall(name)) if name in request.headers else None


FRONT: web.AppKey[Front] = web.AppKey("front", Front)


class Visit:
    """What one request holds until its answer is written: bytes of bodies, and a stranger's place."""

    __slots__ = ("_held", "_holder", "_leave", "front", "identity")

    def __init__(self, front: Front) -> None:
        self.front = front
        self.identity: str | None = None
        self._held = 0
        self._holder = ""
        self._leave: Callable[[], None] | None = None

    def take(self, request: web.BaseRequest, size: int) -> None:
        """Hold so many more bytes.  Raises `RequestError` if there is no room for them."""
        if not self._holder:
            self._holder = self.identity or self.front.address_of(request)
        known = self.identity is not None
        try:
            self.front.bytes.take(self._holder, size, known=known, so_far=self._held)
        except RequestError:
            self.front.refusals.note("bytes")
            raise
        self._held += size

    def reading(self, request: web.BaseRequest) -> AbstractContextManager[None]:
        """While its body is awaited.  Raises `RequestError` if too many are."""
        if self.identity is not None:
            return nullcontext()
        return self.front.reading(self.front.address_of(request))

    def identify(self, identity: str) -> None:
        """It is known whose request it is."""
        if self.identity is not None:
            return
        if self._held:
            self.front.bytes.move(self._holder, self._held, to=identity)
        self.identity = self._holder = identity
        self.leave_place()

    async def take_place(self) -> None:
        """Wait for a place, if it is a stranger's and has none.  Raises `RequestError` if none is free in time."""
        if self.identity is None and self._leave is None:
            try:
                self._leave = await self.front.places.take()
            except RequestError:
                self.front.refusals.note("busy")
                raise

    def leave_place(self) -> None:
        """Give the place back, if it has one."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def end(self, _: object = None) -> None:
        """Give everything back."""
        self.leave_place()
        if self._held:
            self.front.bytes.give_back(self._holder, self._held, known=self.identity is not None)
            self._held = 0


_VISIT: web.RequestKey[Visit] = web.RequestKey("visit", Visit)


class FrontedProtocol(web.RequestHandler):
    """A connection of the service's own socket, which knows what it is counted as."""

    __slots__ = ("connection",)
    connection: Connection


def front_of(request: web.Request) -> Front:
    """The limits that a request is under."""
    return request.app[FRONT]


def visit_of(request: web.Request) -> Visit:
    """What a request holds.  Everything is given back when the request's task ends: its answer is written then."""
    if _VISIT in request:
        return request[_VISIT]
    visit = request[_VISIT] = Visit(front_of(request))
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(visit.end)
    return visit


def note_identity(request: web.Request, identity: str) -> None:
    """
    The caller of *request* has proven who it is: from now on it spends what is its own.

    Args:
        identity: The same for all requests of the same caller, such as ``node:ID`` or ``key:NAME``.
    """
    visit_of(request).identify(identity)
    protocol = request.protocol
    if isinstance(protocol, FrontedProtocol):
        front_of(request).connections.identify(protocol.connection, identity)


def note_failure(request: web.Request) -> None:
    """
    The caller of *request* has not proven who it says it is.

    Raises:
        RequestError: it, or others at its address, have failed too often.
    """
    front = front_of(request)
    front.fail(front.address_of(request))


def spend_stranger(request: web.Request) -> None:
    """
    Count a request of somebody who has proven nothing.

    Raises:
        RequestError: there were too many, from its address or from all strangers together.
    """
    front = front_of(request)
    front.spend(front.address_of(request))


async def take_place(request: web.Request) -> None:
    """
    Wait for one of the places that strangers' requests have.

    Raises:
        RequestError: none is free in time.
    """
    await visit_of(request).take_place()


def leave_place(request: web.Request) -> None:
    """A stream begins: from now on it is its connection that counts."""
    if _VISIT in request:
        request[_VISIT].leave_place()
