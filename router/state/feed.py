"""
The feed: the verifier's live results, revocations and incidents, for the fleet.

Every result's signature is checked here, and an older result never replaces a newer one.  The
stream's word is enough for an incident and for its release.  But work goes to a node only by
a signed, live, affirming result.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter

from attester.bounded import read_all
from attester.errors import VerifierError
from attester.sse import read_events
from router.config import VerifierSection
from router.model.clock import Clock
from router.model.node import NodeView
from router.state.fleet import Fleet
from verifier import result_keys, results
from verifier.errors import ResultError
from verifier.incidents import HOLDING, State
from verifier.result_keys import VerifyingKey

_MAX_PAGE: Final = 256 << 20
_MAX_EVENT: Final = 1 << 20
_MAX_NODES: Final = 1_000_000
_PLACED_AT_ONCE: Final = 200
"""Nodes that are placed before other work has its turn."""
_SILENCE_S: Final = 10.0
_KEYS_EVERY_S: Final = 30.0
_LEEWAY_S: Final = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0

_log = structlog.get_logger("router")
_refused = Counter("touchstone_router_results_refused_total", "Results that were not accepted.")


class FeedError(Exception):
    """The verifier's answer cannot be used."""


class _Result(Struct, frozen=True):
    node: str
    token: str


class _Incident(Struct, frozen=True):
    id: str
    state: str
    node: str | None = None
    operator: str | None = None
    opened: float | None = None


class _Page(Struct, frozen=True):
    next: str | None


class _ResultsPage(_Page, frozen=True):
    results: list[_Result]
    seq: Annotated[int, Meta(ge=0)]


class _IncidentsPage(_Page, frozen=True):
    incidents: list[_Incident]


class _Event(Struct, frozen=True):
    node: str | None = None
    token: str | None = None
    incident: str | None = None
    state: str | None = None
    operator: str | None = None
    opened: float | None = None


P = TypeVar("P", _ResultsPage, _IncidentsPage)


class Feed:
    """
    Follows one verifier.

    Args:
        http: For the verifier's API.
        config: Where the verifier is, and which keys to trust.
        clock: For the validity of results.
        fleet: Takes in what the verifier says.
        on_incident_state: Called with an incident and its state, if the verifier decides about it.
        reported_incidents: The incidents whose end this router waits for; one may have ended while
            the feed was broken.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        config: VerifierSection,
        clock: Clock,
        fleet: Fleet,
        *,
        on_incident_state: Callable[[str, str], None] = lambda _incident, _state: None,
        reported_incidents: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        self._http = http
        self._config = config
        self._clock = clock
        self.fleet = fleet
        self._keys: Mapping[str, VerifyingKey] = {}
        self._nodes: dict[str, NodeView] = {}
        self._keys_at = 0.0
        self._seq = 0
        self._owners: dict[str, str] = {}
        """By ueid, the node that it belongs to."""
        self._operators: dict[str, str] = {}
        """By open incident, the operator of its node."""
        self._on_incident_state = on_incident_state
        self._reported_incidents = reported_incidents

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Follow until cancelled.  After an error, wait for a growing, jittered time."""
        wait_s = _FIRST_WAIT_S
        while True:
            start = self._clock.monotonic()
            try:
                # A whole snapshot each time: keys may have changed, and the feed must not stop again and
                # again at an event that it cannot read.
                await self.load()
                await self._follow()
            except (aiohttp.ClientError, TimeoutError, FeedError, VerifierError, ResultError) as error:
                _log.warning("the verifier's feed broke", why=f"{type(error).__name__}: {error}"[:300])
            except Exception:  # noqa: BLE001
                # The outermost loop: if it ended, the router would hear nothing any more, unnoticed.
                _log.exception("the verifier's feed failed")
            if self._clock.monotonic() - start > _LONGEST_WAIT_S:
                wait_s = _FIRST_WAIT_S
            await sleep(random.uniform(0, wait_s))
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def load(self) -> None:
        """
        Take a whole snapshot: keys, live results, open incidents.

        Raises:
            FeedError, ResultError, aiohttp.ClientError: it cannot be fetched or read.
        """
        reported = self._reported_incidents()
        still_open: set[str] = set()
        self._keys = self._trusted(result_keys.read_jwks(await self._get("/.well-known/jwks.json")))
        self._keys_at = self._clock.monotonic()
        nodes: dict[str, NodeView] = {}
        seq: int | None = None
        operators: dict[str, str] = {}
        opened: dict[str, float] = {}
        async for page in self._pages("/api/v1/results", _ResultsPage):
            # Events are followed from the first page on, so that none is lost between the pages.
            seq = page.seq if seq is None else seq
            for entry in page.results:
                self._accept(nodes, entry.node, entry.token)
        async for incidents in self._pages("/api/v1/incidents?open=1", _IncidentsPage):
            for held in incidents.incidents:
                still_open.add(held.id)
                if held.node is not None and held.state in HOLDING:
                    _hold(nodes, held.node, held.id)
                    if held.operator is not None and held.opened is not None:
                        operators[held.id], opened[held.id] = held.operator, held.opened
        self._seq = seq or 0
        await self._replace({name: self._not_older(view) for name, view in nodes.items()})
        for incident, operator in self._operators.items() - operators.items():
            self.fleet.set_operator_incident(operator, incident, None)
        for incident, operator in operators.items():
            self.fleet.set_operator_incident(operator, incident, opened[incident])
        self._operators = operators
        for incident in reported - still_open:
            self._on_incident_state(incident, State.RELEASED)
        self.fleet.note_verifier_contact()
        _log.info("snapshot taken", nodes=len(nodes), seq=self._seq)

    async def _renew_keys(self) -> None:
        """Fetch the keys again, at most every 30 s: an unknown key may be a new one of the verifier's."""
        now = self._clock.monotonic()
        if now - self._keys_at > _KEYS_EVERY_S:
            self._keys_at = now
            self._keys = self._trusted(result_keys.read_jwks(await self._get("/.well-known/jwks.json")))

    def _not_older(self, view: NodeView) -> NodeView:
        """A view from a page, unless the known result is newer, or is the same and revoked."""
        known = self._nodes.get(view.node)
        if known is None or known.result is None or view.result is None:
            return view
        same = known.result.jti == view.result.jti
        if known.result.iat > view.result.iat or (same and known.revoked):
            return replace(view, result=known.result, revoked=known.revoked)
        return view

    async def _follow(self) -> None:
        """Follow events until the stream ends, or one comes that cannot be read."""
        url = f"{self._config.url}/api/v1/events?after={self._seq}"
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=_SILENCE_S)
        async with self._http.get(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise FeedError(f"{response.status} for the events")
            async for event in read_events(response.content, max_size=_MAX_EVENT):
                if event.kind == "reset":
                    return
                if event.kind != "heartbeat":
                    try:
                        decoded = msgspec.json.decode(event.data, type=_Event)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise FeedError(f"an event cannot be read: {error}") from None
                    if decoded.token is not None and not results.is_signed_by(decoded.token, self._keys):
                        await self._renew_keys()
                    self.apply(event.kind, decoded)
                # Only what was understood counts as contact: noise must not keep the gate open.
                self.fleet.note_verifier_contact()
                if event.id is not None and event.id.isascii() and event.id.isdigit():
                    self._seq = int(event.id[:18])

    def apply(self, kind: str, event: _Event) -> None:
        """Take in one event."""
        if event.node is None or kind not in ("result", "revocation", "incident", "node"):
            return
        nodes = self._nodes
        match kind:
            case "result" if event.token is not None:
                self._accept(nodes, event.node, event.token)
            case "revocation" if event.node in nodes:
                nodes[event.node] = replace(nodes[event.node], revoked=True)
            case "incident" if event.incident is not None:
                self._incident(nodes, event.node, event)
            case "node" if event.state == "retired" and len(nodes) < _MAX_NODES:
                nodes[event.node] = replace(nodes.get(event.node, NodeView(event.node)), retired=True)
            case _:
                return
        if event.node in nodes:
            self.fleet.put_node(nodes[event.node])

    def _incident(self, nodes: dict[str, NodeView], name: str, event: _Event) -> None:
        assert event.incident is not None
        before = nodes.get(name, NodeView(name))
        if event.state in HOLDING:
            if name in nodes or len(nodes) < _MAX_NODES:
                _hold(nodes, name, event.incident)
            if event.operator is not None and event.opened is not None:
                self._operators[event.incident] = event.operator
                self.fleet.set_operator_incident(event.operator, event.incident, event.opened)
            return
        if name in nodes:
            nodes[name] = replace(before, incidents=before.incidents - {event.incident})
        operator = self._operators.pop(event.incident, None)
        if operator is not None:
            self.fleet.set_operator_incident(operator, event.incident, None)
        if event.incident in before.incidents and event.state == State.RELEASED:
            self.fleet.release_node(name)
        if event.state is not None:
            self._on_incident_state(event.incident, event.state)

    def _accept(self, nodes: dict[str, NodeView], name: str, token: str) -> None:
        try:
            result = results.decode_jwt(
                token,
                self._keys,
                issuer=self._config.url,
                now=self._clock.now_ms() // 1000,
                leeway=_LEEWAY_S,
            )
        except ResultError as error:
            self._refuse(nodes, name, str(error))
            return
        known = nodes.get(name)
        owner = self._owners.setdefault(result.ueid, name)
        if owner != name or (
            known is not None and known.result is not None and known.result.ueid != result.ueid
        ):
            self._refuse(nodes, name, "its ueid belongs to another node")
            return
        if known is not None and known.result is not None:
            if result.iat < known.result.iat:
                self._refuse(nodes, name, "it is older than the known one", keep=True)
                return
            if result.jti == known.result.jti:
                # The same result again.  If it is revoked, it stays revoked.
                return
        if known is not None or len(nodes) < _MAX_NODES:
            nodes[name] = replace(known or NodeView(name), result=result, revoked=False)

    def _refuse(self, nodes: dict[str, NodeView], name: str, why: str, *, keep: bool = False) -> None:
        """Refuse a result.  The previous result is void too, because the verifier has replaced it."""
        _refused.inc()
        _log.warning("a result was refused", node=name[:64], why=why[:300])
        if not keep and name in nodes:
            nodes[name] = replace(nodes[name], revoked=True)

    async def _replace(self, nodes: dict[str, NodeView]) -> None:
        """Replace what was known by a whole snapshot, and let other work go on meanwhile."""
        before, self._nodes = self._nodes, nodes
        for name in before.keys() - nodes.keys():
            self.fleet.drop_node(name)
        # Held nodes come first.
        for number, view in enumerate(sorted(nodes.values(), key=lambda view: not view.incidents)):
            if number % _PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
            known = before.get(view.node)
            if known is not view:
                self.fleet.put_node(view)
            if known is not None and known.incidents - view.incidents:
                # The verifier decided while the feed was broken.
                self.fleet.release_node(view.node)

    def _trusted(self, keys: Mapping[str, VerifyingKey]) -> Mapping[str, VerifyingKey]:
        if not self._config.kids:
            return keys
        trusted = {kid: key for kid, key in keys.items() if kid in self._config.kids}
        if not trusted:
            raise FeedError("none of the trusted keys is in the verifier's JWKS")
        return trusted

    async def _pages(self, path: str, kind: type[P]) -> AsyncIterator[P]:
        after = ""
        while True:
            joint = "&" if "?" in path else "?"
            data = await self._get(f"{path}{joint}limit=500&after={quote(after)}")
            try:
                page = msgspec.json.decode(data, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise FeedError(f"{path} cannot be read: {error}") from None
            yield page
            if page.next is None or page.next <= after:
                return
            after = page.next

    async def _get(self, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=30, connect=5)
        async with self._http.get(
            self._config.url + path, timeout=timeout, allow_redirects=False
        ) as response:
            if response.status != 200:
                raise FeedError(f"{response.status} for {path}")
            data = await read_all(response.content, _MAX_PAGE)
        if data is None:
            raise FeedError(f"{path} is larger than {_MAX_PAGE} bytes")
        return data


def _hold(nodes: dict[str, NodeView], name: str, incident: str) -> None:
    node = nodes.get(name, NodeView(name))
    nodes[name] = replace(node, incidents=node.incidents | {incident})
