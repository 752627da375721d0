"""
The service's socket: accepts connections, makes room for them, and speaks TLS if it has a certificate.

A connection is counted from the moment that it is accepted: a client that begins no TLS handshake holds a place of a
stranger, and gives it up to the next one.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Final

import structlog

from attester.accepting import Acceptor
from verifier.service import addresses
from verifier.service.connections import Connection
from verifier.service.front import Front
from verifier.service.protocol import FrontServer
from verifier.service.tls import ServerTLS

_OTHER_FILES: Final = 256
"""Open files that are no connections of clients: the database, workers, connections of our own."""
_SHUTDOWN_S: Final = 3.0

_log = structlog.get_logger("service")


class Listener:
    """
    Listens on ``HOST:PORT``.

    Args:
        server: Makes the protocols of connections.
        front: The limits of the process.
        tls: What it speaks TLS with, if it does.
    """

    def __init__(self, server: FrontServer, front: Front, tls: ServerTLS | None) -> None:
        self._server = server
        self._front = front
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._take, lambda: front.connections.shed("files"))
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port, which the system has chosen if 0 was asked for."""
        return self._acceptor.port

    async def start(self, listen: str) -> None:
        """
        Begin to accept.

        Raises:
            ConfigError: it cannot listen there.
        """
        host, _, port = listen.rpartition(":")
        await self._acceptor.start(host.strip("[]"), int(port))

    def close(self) -> None:
        """Accept no more, and end the connections that are not open yet."""
        self._acceptor.close()
        for task in self._opening:
            task.cancel()

    def _take(self, client: socket.socket, peer: str) -> None:
        front = self._front
        address = addresses.read_address(peer)
        is_proxy = addresses.is_in(address, front.proxies)
        connection = Connection(addresses.key_of(address), client.close, is_proxy=is_proxy)
        if not front.connections.admit(connection):
            client.close()
            return
        client.setblocking(False)
        task = self._loop.create_task(self._open(client, connection))
        # Until the protocol has the connection, it ends with this task.
        connection.abort = task.cancel
        self._opening.add(task)
        task.add_done_callback(lambda task: self._opened(task, client, connection))

    def _opened(self, task: asyncio.Task[None], client: socket.socket, connection: Connection) -> None:
        self._opening.discard(task)
        if task.cancelled():
            # Perhaps before its first step.
            self._front.connections.remove(connection)
            client.close()

    async def _open(self, client: socket.socket, connection: Connection) -> None:
        tls = None if self._tls is None else self._tls.context
        head_s = self._front.config.head_s
        try:
            if tls is None:
                await self._loop.connect_accepted_socket(lambda: self._server.make(connection), client)
            else:
                await self._loop.connect_accepted_socket(
                    lambda: self._server.make(connection),
                    client,
                    ssl=tls,
                    ssl_handshake_timeout=head_s,
                    ssl_shutdown_timeout=_SHUTDOWN_S,
                )
        except OSError:
            # Among them: no handshake in time, another version, no certificate of ours.
            self._front.connections.remove(connection)
            if tls is not None:
                self._front.refusals.note("tls")
            client.close()


def fit_open_files(front: Front) -> None:
    """Let the process open as many files as it may, and if that is fewer than the connections, have fewer of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = front.config.connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        total = max(soft - _OTHER_FILES, 16)
        front.connections.limit(total)
        _log.warning("fewer connections: the limit of open files is low", connections=total, files=soft)
