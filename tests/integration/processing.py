"""Asks a router as Envoy's filter does: over gRPC, one stream for a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio

from fixtures.fleet import free_port
from router.service.ext_proc import api
from router.service.ext_proc.head import PICKED_NAMESPACE, SCORES_KEY, SUBSET_KEY, SUBSET_NAMESPACE
from tests.integration.gateway import CHAT, CHATS, Fleet

ANYONE = {"open": True}


class Told:
    """What the router says in one message."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.step = answer.WhichOneof("response")
        self.status: int = answer.immediate_response.status.code
        """Of the answer that the client gets at once; 0: there is none."""

    @property
    def error(self) -> Any:
        return json.loads(self.answer.immediate_response.body)["error"]

    @property
    def _mutation(self) -> Any:
        if self.status:
            return self.answer.immediate_response.headers
        return getattr(self.answer, self.step).response.header_mutation

    @property
    def added(self) -> dict[str, str]:
        return {o.header.key: o.header.raw_value.decode() for o in self._mutation.set_headers}

    @property
    def removed(self) -> list[str]:
        return list(self._mutation.remove_headers)

    def _metadata(self, namespace: str, key: str) -> Any:
        told = self.answer.dynamic_metadata.fields
        return told[namespace].struct_value.fields[key] if namespace in told else None

    @property
    def subset(self) -> list[str]:
        value = self._metadata(SUBSET_NAMESPACE, SUBSET_KEY)
        return [] if value is None else [each.string_value for each in value.list_value.values]

    @property
    def scores(self) -> dict[str, float]:
        value = self._metadata(PICKED_NAMESPACE, SCORES_KEY)
        return {} if value is None else {k: v.number_value for k, v in value.struct_value.fields.items()}


class Call:
    """One stream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, message: Any) -> Told:
        """Send a message, and wait for what is said to it."""
        await self.write(message)
        return await self.read()

    async def write(self, message: Any) -> None:
        await self.call.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def read(self) -> Told:
        data = await self.call.read()
        if data is aio.EOF:
            raise EOFError(await self.end())
        return Told(api.ProcessingResponse.FromString(data))

    async def end(self) -> grpc.StatusCode:
        """How it ended."""
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.done_writing()
            await self.call.read()
        code: grpc.StatusCode = await self.call.code()
        return code


class Filter:
    """A channel to a router."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._process = channel.stream_stream(f"/{api.SERVICE}/{api.METHOD}")

    def call(self, **metadata: str) -> Call:
        named = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return Call(self._process(metadata=named or None))

    async def ask(self, body: Any = CHAT, path: str = CHATS, **headers: str) -> Told:
        """What the router says of a request at last."""
        call = self.call()
        told = await call.send(head(path, **headers))
        if not told.status:
            told = await call.send(whole(body))
        assert await call.end() is grpc.StatusCode.OK
        return told

    async def health(self, service: str = "") -> int:
        check = self._channel.unary_unary(f"/{api.HEALTH_SERVICE}/Check")
        data = await check(api.HealthCheckRequest(service=service).SerializeToString())
        status: int = api.HealthCheckResponse.FromString(data).status
        return status


def head(path: str = CHATS, *, ends: bool = False, mode: int = 2, **headers: str) -> Any:
    """The head of a POST; underscores of names are hyphens."""
    message = api.ProcessingRequest()
    message.protocol_config.request_body_mode = mode
    part = message.request_headers
    part.end_of_stream = ends
    given = {":method": "POST", ":path": path}
    given |= {name.lower().replace("_", "-"): value for name, value in headers.items()}
    for name, value in given.items():
        part.headers.headers.add(key=name, raw_value=value.encode())
    return message


def whole(body: Any = CHAT) -> Any:
    """A body."""
    message = api.ProcessingRequest()
    message.request_body.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    message.request_body.end_of_stream = True
    return message


@asynccontextmanager
async def filtering(
    fleet: Fleet, section: Mapping[str, Any] = ANYONE, **started: Any
) -> AsyncIterator[Filter]:
    """Start a fleet's router with ``[ext_proc]``, and a channel to it."""
    listen = f"127.0.0.1:{free_port()}"
    sections = {**started.pop("sections", {}), "ext_proc": {"listen": listen, **section}}
    await fleet.start(sections=sections, **started)
    async with aio.insecure_channel(listen) as channel:
        yield Filter(channel)


def place(node: Any) -> str:
    """Where a node is, as pickers name it."""
    return str(node.url).removeprefix("https://")
