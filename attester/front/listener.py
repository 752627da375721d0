"""
The socket of the front: accepts connections, lets in whoever is on the list, and cuts who no longer is.

A client that is not let in costs a handshake at most: those in progress are few, and the oldest gives way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from attester.accepting import Acceptor

_HANDSHAKES: Final = 256
"""Handshakes in progress."""
_SHUTDOWN_S: Final = 3.0

_log = structlog.get_logger("front")


class Served(Protocol):
    """What the listener needs to know of a connection's protocol."""

    name: str
    certificate: bytes

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        ...

    def abort(self) -> None:
        """End the connection at once."""
        ...

    def close(self) -> None:
        """End the connection when no request is in progress on it."""
        ...


class Registry:
    """
    The connections of those who were let in.

    Args:
        total: How many there may be.
        who: Whose a certificate is; `None` if it is nobody's of the list.
        unknown: Is told that somebody came who is not on the list.
    """

    def __init__(self, total: int, who: Callable[[bytes], str | None], unknown: Callable[[], None]) -> None:
        self._total = total
        self._who = who
        self.unknown = unknown
        self.refused: Counter[str] = Counter()
        """How many were not let in or were cut, by the reason."""
        self._open: dict[Served, None] = {}
        self._has_ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, certificate: bytes | None) -> str | None:
        """Whose a new connection is; `None` if it must not be served."""
        name = None if certificate is None else self._who(certificate)
        if name is None:
            # The handshake accepts by signatures, and this by the certificate itself.
            self.refuse("unknown", is_unknown=True)
            return None
        if len(self._open) >= self._total and not self._make_room():
            self.refuse("full")
            return None
        return name

    def add(self, served: Served) -> None:
        """A connection was admitted."""
        self._open[served] = None

    def remove(self, served: Served) -> None:
        """It has ended.  May be said again."""
        self._open.pop(served, None)
        if not self._open:
            self._has_ended.set()

    def refuse(self, reason: str, *, is_unknown: bool = False) -> None:
        """Count somebody who was not let in."""
        self.refused[reason] += 1
        if is_unknown:
            self.unknown()

    def drop_unlisted(self) -> None:
        """End the connections of everybody who is not on the list any more."""
        for served in [each for each in self._open if self._who(each.certificate) is None]:
            _log.info("a router is not on the list any more; its connection ends", router=served.name)
            served.abort()

    async def end_all(self, wait_s: float) -> None:
        """End every connection: those without a request now, and the others after their answer, or after so long."""
        self._has_ended.clear()
        for served in list(self._open):
            served.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._open:
                    await self._has_ended.wait()
                    self._has_ended.clear()
        for served in list(self._open):
            served.abort()

    def _make_room(self) -> bool:
        """Cut the connection of whoever has most that has waited longest for a request, if there is one."""
        counts = Counter(each.name for each in self._open)
        for name, _ in counts.most_common():
            idle = next((each for each in self._open if each.name == name and each.is_idle), None)
            if idle is not None:
                self.refuse("room")
                self.remove(idle)
                idle.abort()
                return True
        return False


class Listener:
    """
    Listens on ``HOST:PORT``.

    Args:
        context: The TLS context for the next connection.
        make: Makes the protocol of a connection.
        registry: Who is let in.
        handshake_s: Seconds for a handshake.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        make: Callable[[], asyncio.Protocol],
        registry: Registry,
        *,
        handshake_s: float,
    ) -> None:
        self._context = context
        self._make = make
        self._registry = registry
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._take)
        self._opening: dict[asyncio.Task[None], socket.socket] = {}

    @property
    def port(self) -> int:
        """The port, which the system has chosen if 0 was asked for."""
        return self._acceptor.port

    async def start(self, host: str, port: int) -> None:
        """
        Begin to accept; an empty *host* means every address.

        Raises:
            ConfigError: it cannot listen there.
        """
        await self._acceptor.start(host, port)

    def close(self) -> None:
        """Accept no more, and end the handshakes in progress."""
        self._acceptor.close()
        for task in self._opening:
            task.cancel()

    def _take(self, client: socket.socket, _: str) -> None:
        client.setblocking(False)
        if len(self._opening) >= _HANDSHAKES:
            oldest = next(iter(self._opening))
            self._opening.pop(oldest)
            oldest.cancel()
            self._registry.refuse("handshakes")
        task = self._loop.create_task(self._open(client))
        self._opening[task] = client
        task.add_done_callback(lambda task: self._opened(task, client))

    def _opened(self, task: asyncio.Task[None], client: socket.socket) -> None:
        self._opening.pop(task, None)
        if task.cancelled():
            # Perhaps before its first step.
            client.close()

    async def _open(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                client,
                ssl=self._context(),
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except OSError:
            # Why was told already, if TLS itself failed; otherwise the client went away, or was too slow.
            client.close()
