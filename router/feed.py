"""
The feed: live results, revocations and incidents of the verifier, kept as a snapshot.

Every result's signature is checked here.  What the stream says can only take trust away:
a lie on it can exclude a node, and never let one in.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import msgspec
import structlog
from prometheus_client import Counter

from attester.errors import VerifierError
from attester.sse import read_events
from router.config import VerifierSection
from router.snapshot import NodeView, Snapshot
from router.standing import Standing
from verifier import results
from verifier.errors import ResultError
from verifier.incidents import HOLDING
from verifier.results import VerifyingKey

_MAX_PAGE: Final = 256 << 20
_MAX_EVENT: Final = 1 << 20
_MAX_NODES: Final = 1_000_000
_SILENCE_S: Final = 10.0
_LEEWAY_S: Final = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0

_log = structlog.get_logger("router")
_refused = Counter("touchstone_router_results_refused_total", "Results that were not accepted.")


@dataclass(frozen=True)
class Clock:
    """The router's clocks."""

    wall_ms: Callable[[], int]
    monotonic: Callable[[], float]


class FeedError(Exception):
    """The verifier's answer cannot be used."""


class Feed:
    """Follows one verifier."""

    def __init__(self, http: aiohttp.ClientSession, config: VerifierSection, clock: Clock) -> None:
        self._http = http
        self._config = config
        self._clock = clock
        self._keys: Mapping[str, VerifyingKey] = {}
        self._nodes: dict[str, NodeView] = {}
        self._version = 0
        self._heard: float | None = None
        self._seq = 0

    def snapshot(self, standings: Mapping[tuple[str, str], Standing]) -> Snapshot:
        """What is known now."""
        now = self._clock.monotonic()
        silent = float("inf") if self._heard is None else now - self._heard
        return Snapshot(
            version=self._version,
            now_ms=self._clock.wall_ms(),
            monotonic=now,
            nodes=self._nodes,
            standings=standings,
            feed_silent_s=silent,
        )

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Follow until cancelled; come back after a growing, jittered wait."""
        wait_s = _FIRST_WAIT_S
        fresh = False
        while True:
            try:
                if not fresh:
                    await self.load()
                    fresh = True
                fresh = await self._follow()
                wait_s = _FIRST_WAIT_S
            except (aiohttp.ClientError, TimeoutError, FeedError, VerifierError, ResultError) as error:
                _log.warning("the verifier's feed broke", why=f"{type(error).__name__}: {error}")
            await sleep(random.uniform(0, wait_s))
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def load(self) -> None:
        """Take a whole snapshot: keys, live results, open incidents."""
        self._keys = self._trusted(results.read_jwks(await self._get("/.well-known/jwks.json")))
        nodes: dict[str, NodeView] = {}
        seq: int | None = None
        async for page in self._pages("/api/v1/results", "results"):
            # Events from the first page on are followed: none falls between the pages.
            seq = int(page["seq"]) if seq is None else seq
            for entry in page["results"]:
                self._accept(nodes, str(entry["node"]), str(entry["token"]))
        async for page in self._pages("/api/v1/incidents?open=1", "incidents"):
            for entry in page["incidents"]:
                if entry["node"] is not None and entry["state"] in HOLDING:
                    _hold(nodes, str(entry["node"]), str(entry["id"]))
        self._seq = seq or 0
        self._put(nodes)
        self._heard = self._clock.monotonic()
        _log.info("snapshot taken", nodes=len(nodes), seq=self._seq)

    async def _follow(self) -> bool:
        """Follow events; returns whether they can be resumed where they ended."""
        url = f"{self._config.url}/api/v1/events?after={self._seq}"
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=_SILENCE_S)
        async with self._http.get(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise FeedError(f"{response.status} for the events")
            async for event in read_events(response.content, max_size=_MAX_EVENT):
                self._heard = self._clock.monotonic()
                if event.kind == "reset":
                    return False
                if event.kind != "heartbeat":
                    try:
                        self.apply(event.kind, msgspec.json.decode(event.data, type=dict[str, Any]))
                    except (msgspec.DecodeError, KeyError, TypeError) as error:
                        raise FeedError(f"an event that cannot be read: {type(error).__name__}") from None
                if event.id is not None and event.id.isascii() and event.id.isdigit():
                    self._seq = int(event.id)
        return True

    def apply(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take in one event."""
        nodes = dict(self._nodes) if kind in ("result", "revocation", "incident", "node") else {}
        match kind:
            case "result":
                self._accept(nodes, str(data["node"]), str(data["token"]))
            case "revocation":
                node = nodes.get(str(data["node"]))
                if node is not None:
                    nodes[node.node] = replace(node, revoked=True)
            case "incident" if data["node"] is not None:
                if data["state"] in HOLDING:
                    _hold(nodes, str(data["node"]), str(data["incident"]))
                else:
                    _let_go(nodes, str(data["node"]), str(data["incident"]))
            case "node" if data["state"] == "retired":
                name = str(data["node"])
                nodes[name] = replace(nodes.get(name, NodeView(name)), retired=True)
            case _:
                return
        self._put(nodes)

    def _accept(self, nodes: dict[str, NodeView], name: str, token: str) -> None:
        try:
            result = results.decode_jwt(
                token,
                self._keys,
                issuer=self._config.url,
                now=self._clock.wall_ms() // 1000,
                leeway=_LEEWAY_S,
            )
        except ResultError as error:
            _refused.inc()
            _log.warning("a result was refused", node=name[:64], why=str(error))
            return
        known = nodes.get(name, NodeView(name))
        if known.result is not None and known.result.ueid != result.ueid:
            _refused.inc()
            _log.warning("a result was refused", node=name[:64], why="its ueid is another node's")
            return
        if len(nodes) < _MAX_NODES:
            nodes[name] = replace(known, result=result, revoked=False)

    def _put(self, nodes: dict[str, NodeView]) -> None:
        self._nodes = nodes
        self._version += 1

    def _trusted(self, keys: Mapping[str, VerifyingKey]) -> Mapping[str, VerifyingKey]:
        if not self._config.kids:
            return keys
        trusted = {kid: key for kid, key in keys.items() if kid in self._config.kids}
        if not trusted:
            raise FeedError("none of the keys that are to be trusted is in the verifier's JWKS")
        return trusted

    async def _pages(self, path: str, name: str) -> Any:
        after = ""
        while True:
            joint = "&" if "?" in path else "?"
            data = await self._get(f"{path}{joint}limit=500&after={after}")
            try:
                page = msgspec.json.decode(data, type=dict[str, Any])
                following = page["next"]
                if not isinstance(page[name], list):
                    raise FeedError(f"{path} does not list {name}")
            except (msgspec.DecodeError, KeyError) as error:
                raise FeedError(f"{path} cannot be read: {type(error).__name__}") from None
            yield page
            if following is None:
                return
            after = str(following)

    async def _get(self, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=30, connect=5)
        async with self._http.get(
            self._config.url + path, timeout=timeout, allow_redirects=False
        ) as response:
            if response.status != 200:
                raise FeedError(f"{response.status} for {path}")
            parts, size = [], 0
            async for part in response.content.iter_any():
                size += len(part)
                if size > _MAX_PAGE:
                    raise FeedError(f"{path} is larger than {_MAX_PAGE} bytes")
                parts.append(part)
            return b"".join(parts)


def _hold(nodes: dict[str, NodeView], name: str, incident: str) -> None:
    node = nodes.get(name, NodeView(name))
    nodes[name] = replace(node, incidents=node.incidents | {incident})


def _let_go(nodes: dict[str, NodeView], name: str, incident: str) -> None:
    node = nodes.get(name)
    if node is not None:
        nodes[name] = replace(node, incidents=node.incidents - {incident})
