"""
The gRPC service: ``envoy.service.ext_proc.v3.ExternalProcessor`` and gRPC's health service, on a socket of its own.

It runs inside the router, because what it tells goes by the router's live fleet.  The package ``grpc`` is imported
when this module is, which only a router with ``[ext_proc]`` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio
from prometheus_client import Counter, Gauge

from attester.errors import ConfigError
from router.choose.gates import FEED_SILENT_S
from router.ext_proc_config import ExtProcSection
from router.gateway.handler import Gateway
from router.service.ext_proc import api
from router.service.ext_proc.offers import Offers
from router.service.ext_proc.picked import PICKED, STAGE
from router.service.ext_proc.places import Lookup, Places
from router.service.ext_proc.stream import Stream, StreamError
from router.service.state import State
from verifier.service.tls import ServerTLS

_HEAD_ROOM: Final = 256 << 10
"""Bytes of a message beside the body."""
_MAX_METADATA: Final = 16 << 10
_STOP_S: Final = 5.0
_STREAMS_PER_CONNECTION: Final = 1000
_READY: Final = frozenset({"", "readiness", api.SERVICE})
_ALIVE: Final = "liveness"

_log = structlog.get_logger("router")
_streams = Counter(
    "touchstone_router_ext_proc_streams_total", "How requests of other gateways ended.", ["end"]
)
_open = Gauge("touchstone_router_ext_proc_open_streams", "Requests of other gateways that are under way.")


class _GrpcWire:
    """A stream of grpc's."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        """See `Wire`."""
        data = await self._context.read()
        return None if data is aio.EOF else data

    async def write(self, message: bytes) -> None:
        """See `Wire`."""
        await self._context.write(message)


class _Service:
    """The methods."""

    def __init__(self, offers: Offers, state: State, config: ExtProcSection) -> None:
        self._offers = offers
        self._state = state
        self._config = config
        self._running: dict[Stream, None] = {}
        """In the order in which they came."""
        self._is_stopping = False

    def stop(self) -> None:
        """Take no more requests, and let those go that are decided."""
        self._is_stopping = True
        for stream in self._running:
            stream.let_go()

    async def process(self, _: Any, context: Any) -> None:
        """One request."""
        if self._is_stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the router is stopping")
        self._make_room()
        if len(self._running) >= self._config.max_streams:
            _streams.labels("too_many").inc()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests at a time")
        stage = dict(context.invocation_metadata() or ()).get(STAGE)
        stream = Stream(
            _GrpcWire(context),
            self._offers,
            self._config,
            rest_s=self._state.config.gateway.longest_s,
            checks_picked=stage == PICKED,
        )
        end = "broken_off"
        self._running[stream] = None
        _open.set(len(self._running))
        try:
            await stream.run()
            end = stream.end
        except StreamError as error:
            end = error.why.name.lower()
            _log.warning("a stream of ext_proc is refused", why=str(error), peer=context.peer())
            await context.abort(grpc.StatusCode[error.why.value], str(error))
        except Exception:  # noqa: BLE001
            # The outermost of a request: by an error, Envoy refuses it.
            end = "failed"
            _log.exception("a request of another gateway failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the router failed")
        finally:
            self._running.pop(stream, None)
            _open.set(len(self._running))
            _streams.labels(end).inc()

    def _make_room(self) -> None:
        """Before streams are refused for their number, let the oldest go that only waits for its answer to begin."""
        if len(self._running) * 10 >= self._config.max_streams * 9:
            oldest = next((stream for stream in self._running if stream.is_decided), None)
            if oldest is not None:
                del self._running[oldest]
                oldest.let_go()

    async def check(self, data: bytes, context: Any) -> bytes:
        """Whether the service serves: not while nothing was heard from the verifier."""
        try:
            service = api.HealthCheckRequest.FromString(data).service
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is no HealthCheckRequest")
        if service == _ALIVE:
            status = api.SERVING
        elif service in _READY:
            is_ready = self._state.fleet.silent_s <= FEED_SILENT_S and not self._is_stopping
            status = api.SERVING if is_ready else api.NOT_SERVING
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        answer: bytes = api.HealthCheckResponse(status=status).SerializeToString()
        return answer

    def handlers(self) -> tuple[Any, ...]:
        """The table of methods.  Messages are read by us, so that a bad one gets a sentence."""
        return (
            grpc.method_handlers_generic_handler(
                api.SERVICE, {api.METHOD: grpc.stream_stream_rpc_method_handler(self.process)}
            ),
            grpc.method_handlers_generic_handler(
                api.HEALTH_SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(self.check)}
            ),
        )


@asynccontextmanager
async def serving(
    state: State, gateway: Gateway, config: ExtProcSection, look_up: Lookup
) -> AsyncIterator[None]:
    """
    Serve until the block ends; then requests that are not decided yet have five seconds.

    Raises:
        ConfigError: it cannot listen, or a TLS file cannot be used.
    """
    places = Places(look_up, state.clock, allow_private=state.config.gateway.allow_private)
    service = _Service(Offers(state, gateway, config, places), state, config)
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_body + _HEAD_ROOM),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _MAX_METADATA),
            ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
            ("grpc.so_reuseport", 0),
        ],
        # Those above `max_streams` are told why; further ones are not even begun.
        maximum_concurrent_rpcs=2 * config.max_streams,
    )
    server.add_generic_rpc_handlers(service.handlers())
    _listen(server, config, state.folder)
    await server.start()
    _log.info("serving ext_proc", listen=config.listen, tls=config.tls_key is not None)
    try:
        yield
    finally:
        service.stop()
        await server.stop(_STOP_S)
        places.close()


def _listen(server: Any, config: ExtProcSection, folder: Path) -> None:
    try:
        files = config.files(folder)
        if files is None:
            port = server.add_insecure_port(config.listen)
        else:
            port = server.add_secure_port(config.listen, _credentials(_Files(files)))
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"ext_proc cannot listen on {config.listen}: is it taken?")


def _credentials(files: _Files) -> Any:
    """TLS for those with a certificate of the configured authorities; its files are read again when they change."""
    return grpc.dynamic_ssl_server_credentials(
        files.read(), files.changed, require_client_authentication=True
    )


class _Files:
    """The TLS files: certificate, key, authorities."""

    def __init__(self, paths: tuple[Path, Path, Path]) -> None:
        self._paths = paths
        self._seen: tuple[bytes, ...] = ()

    def read(self) -> Any:
        """
        What is in them.

        Raises:
            ConfigError: one cannot be read, or TLS cannot use them.
        """
        ServerTLS(*self._paths)
        try:
            certificate, key, authorities = self._seen = tuple(path.read_bytes() for path in self._paths)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def changed(self) -> Any:
        """The same if they have changed, for the next connection; `None`: what was read stays in force."""
        with contextlib.suppress(OSError, ConfigError):
            if tuple(path.read_bytes() for path in self._paths) != self._seen:
                return self.read()
        return None
