"""Accepts the connections of a service: at every address of its host, and a few at a time."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from attester.errors import ConfigError

_BACKLOG: Final = 1024
_AT_ONCE: Final = 16
"""Connections that are accepted before other work has its turn: what they have sent is read before they may be cut."""
_PAUSE_S: Final = 0.1
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """
    Accepts connections, from `start` to `close`.

    Args:
        take: Gets each connection, and the address of its other end.
        make_room: Closes something, if the process may open no more files; returns whether it did.
    """

    def __init__(
        self, take: Callable[[socket.socket, str], None], make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self._take = take
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    @property
    def port(self) -> int:
        """The port, which the system has chosen if 0 was asked for."""
        return int(self._sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """
        Begin to accept; an empty *host* means every address.

        Raises:
            ConfigError: it cannot listen there.
        """
        try:
            found = await self._loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, address in dict.fromkeys(found):
                self._listen(family, address)
        except OSError as error:
            self.close()
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None

    def close(self) -> None:
        """Accept no more."""
        for accepting in self._sockets:
            self._loop.remove_reader(accepting)
            accepting.close()
        self._sockets.clear()

    def _listen(self, family: int, address: tuple[object, ...]) -> None:
        accepting = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(accepting)
        accepting.setblocking(False)
        accepting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            accepting.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        accepting.bind(address)
        accepting.listen(_BACKLOG)
        self._loop.add_reader(accepting, self._accept, accepting)

    def _accept(self, accepting: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, peer = accepting.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _FULL and not self._make_room():
                    # Look again when something may have ended.
                    self._loop.remove_reader(accepting)
                    self._loop.call_later(_PAUSE_S, self._go_on, accepting)
                return
            self._take(client, str(peer[0]))

    def _go_on(self, accepting: socket.socket) -> None:
        if accepting in self._sockets:
            self._loop.add_reader(accepting, self._accept, accepting)
