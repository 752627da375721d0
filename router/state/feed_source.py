"""
The verifier's API as the feed reads it: keys, pages of results and incidents, and events.

Everything is bounded and strictly decoded here.  Whether it is true is judged elsewhere:
signatures by `router.state.result_reader`, what replaces what by `router.state.known_nodes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester import sse
from attester.bounded import read_all
from attester.errors import ConfigError, VerifierError
from router.config import VerifierSection
from verifier import result_keys
from verifier.result_keys import VerifyingKey

_MAX_PAGE: Final = 256 << 20
_MAX_EVENT: Final = 1 << 20
_SILENCE_S: Final = 10.0
_ON_A_PAGE: Final = 500
_NO_SUSPICION: Final = "none"
"""The level that ends a suspicion."""
_DIGITS: Final = 18
"""Digits of an event's number that are read."""


class FeedError(Exception):
    """The verifier's answer cannot be used."""


class LostPlaceError(FeedError):
    """The events cannot be followed from where the feed is: only a whole snapshot helps."""


_Sequence = Annotated[int, Meta(ge=1, lt=1 << 53)]
_Void = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Time = Annotated[int, Meta(ge=0, lt=1 << 53)]


class ListedResult(Struct, frozen=True):
    """A live result as a page lists it."""

    node: str
    token: str
    sequence: _Sequence | None = None
    """Its number, by the page's word."""
    void: _Void | None = None
    """Up to which number the node's results are revoked; `None` if the verifier does not say."""


class Incident(Struct, frozen=True):
    """An incident as a page lists it."""

    id: str
    state: str
    node: str | None = None
    operator: str | None = None
    opened: float | None = None


class _Page(Struct, frozen=True):
    next: str | None


class ResultsPage(_Page, frozen=True):
    """Live results by node id; *seq* is the number of the newest event when they were read."""

    results: list[ListedResult]
    seq: Annotated[int, Meta(ge=0)]
    time_ms: _Time | None = None
    """The verifier's time."""


class _IncidentsPage(_Page, frozen=True):
    incidents: list[Incident]


class Suspicion(Struct, frozen=True):
    """A node whose answers for a model the verifier suspects, as a page lists it."""

    node: str
    model: str
    level: str


class _SuspicionsPage(_Page, frozen=True):
    suspicions: list[Suspicion]


class Event(Struct, frozen=True):
    """What an event says."""

    node: str | None = None
    token: str | None = None
    sequence: _Sequence | None = None
    """The number of the result; of a revocation, up to which number results are void."""
    incident: str | None = None
    state: str | None = None
    operator: str | None = None
    opened: float | None = None
    model: str | None = None
    level: str | None = None

    @property
    def is_suspicion(self) -> bool:
        """Whether a suspicion begins or goes on.  A level that this router does not know is suspicion too."""
        return self.level != _NO_SUSPICION


class Heard(Struct, frozen=True):
    """An event, or a heartbeat, that was understood."""

    kind: str
    event: Event | None
    """`None` for a heartbeat."""
    number: int | None
    """Of the newest event so far; `None` if the stream named none yet."""
    time_ms: int | None = None
    """The verifier's time, which its heartbeats tell."""


class _Heartbeat(Struct, frozen=True):
    time_ms: _Time | None = None


P = TypeVar("P", ResultsPage, _IncidentsPage, _SuspicionsPage)
T = TypeVar("T")


class FeedSource:
    """
    Reads one verifier.

    What all of its methods raise: `FeedError` and `ResultError` if an answer cannot be used, and
    `aiohttp.ClientError` and `TimeoutError` if there is none.
    """

    def __init__(
        self, http: aiohttp.ClientSession, config: VerifierSection, token: Callable[[], str | None]
    ) -> None:
        self._http = http
        self._config = config
        self._token = token

    def _headers(self) -> dict[str, str]:
        """The router's credential, read anew: it may have been replaced."""
        try:
            token = self._token()
        except ConfigError as error:
            raise FeedError(str(error)) from None
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    async def keys(self) -> Mapping[str, VerifyingKey]:
        """The keys that results may be signed with, by kid: the verifier's, as far as the configuration trusts them."""
        data = await self._get("/.well-known/jwks.json", most=result_keys.MAX_JWKS)
        assert data is not None
        keys = result_keys.read_jwks(data)
        if not self._config.kids:
            return keys
        trusted = {kid: key for kid, key in keys.items() if kid in self._config.kids}
        if not trusted:
            raise FeedError("none of the trusted keys is in the verifier's JWKS")
        return trusted

    async def results(self, after: str) -> AsyncGenerator[ResultsPage, None]:
        """The pages of live results of the nodes whose ids come after *after*."""
        async with aclosing(one_ahead(self._pages("/api/v1/results?", ResultsPage, after))) as pages:
            async for page in pages:
                yield page

    async def newest_event(self) -> int:
        """The number of the newest event."""
        return (await self._page("/api/v1/results?", ResultsPage, "", limit=1)).seq

    async def open_incidents(self) -> list[Incident]:
        """The incidents that hold or may yet hold a node."""
        found: list[Incident] = []
        async with aclosing(self._pages("/api/v1/incidents?open=1&", _IncidentsPage, "")) as pages:
            async for page in pages:
                found += page.incidents
        return found

    async def suspicions(self) -> dict[str, frozenset[str]]:
        """By node, the models for which its answers are suspected; none of a verifier that knows of no such thing."""
        path, after, found = "/api/v1/suspicions?", "", dict[str, frozenset[str]]()
        while True:
            data = await self._get(f"{path}limit={_ON_A_PAGE}&after={quote(after)}", or_missing=True)
            if data is None:
                return {}
            page = _read_page(path, data, _SuspicionsPage)
            for each in page.suspicions:
                if each.level != _NO_SUSPICION:
                    found[each.node] = found.get(each.node, frozenset()) | {each.model}
            if page.next is None or page.next <= after:
                return found
            after = page.next

    async def knows_incident(self, incident: str) -> bool:
        """Whether the verifier has an incident, whatever its state is."""
        return await self._get(f"/api/v1/incidents/{quote(incident, safe='')}", or_missing=True) is not None

    async def events(self, after: int) -> AsyncGenerator[Heard, None]:
        """
        The events after number *after*, as they come, until the stream ends.

        Raises:
            LostPlaceError: the verifier cannot go on from there, or an event cannot be read.
        """
        url = f"{self._config.url}/api/v1/events?after={after}"
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=_SILENCE_S)
        async with self._http.get(
            url, headers=self._headers(), timeout=timeout, allow_redirects=False
        ) as response:
            if response.status == 400:
                raise LostPlaceError(f"400 for the events after {after}")
            if response.status != 200:
                raise _refusal(response.status, "the events")
            try:
                async for event in sse.read_events(response.content, max_size=_MAX_EVENT):
                    if event.kind == "reset":
                        raise LostPlaceError(f"the verifier cannot go on after event {after}")
                    yield _read_event(event)
            except VerifierError as error:
                raise LostPlaceError(str(error)) from None

    async def _pages(self, path: str, kind: type[P], after: str) -> AsyncGenerator[P, None]:
        while True:
            page = await self._page(path, kind, after)
            yield page
            if page.next is None or page.next <= after:
                return
            after = page.next

    async def _page(self, path: str, kind: type[P], after: str, *, limit: int = _ON_A_PAGE) -> P:
        data = await self._get(f"{path}limit={limit}&after={quote(after)}")
        assert data is not None
        return _read_page(path, data, kind)

    async def _get(self, path: str, *, or_missing: bool = False, most: int = _MAX_PAGE) -> bytes | None:
        """An answer; `None` if the verifier says that there is none and *or_missing* allows it."""
        timeout = aiohttp.ClientTimeout(total=30, connect=5)
        async with self._http.get(
            self._config.url + path, headers=self._headers(), timeout=timeout, allow_redirects=False
        ) as response:
            if response.status == 404 and or_missing:
                return None
            if response.status != 200:
                raise _refusal(response.status, path)
            data = await read_all(response.content, most)
        if data is None:
            raise FeedError(f"{path} is larger than {most} bytes")
        return data


def _read_page(path: str, data: bytes, kind: type[P]) -> P:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FeedError(f"{path} cannot be read: {error}") from None


def _refusal(status: int, what: str) -> FeedError:
    hint = ": the verifier does not take the router's key" if status in (401, 403) else ""
    return FeedError(f"{status} for {what}{hint}")


async def one_ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items, each made while the one before it is used."""
    async with aclosing(items):
        coming = asyncio.ensure_future(anext(items, None))
        try:
            while (item := await coming) is not None:
                coming = asyncio.ensure_future(anext(items, None))
                yield item
        finally:
            coming.cancel()
            # Nobody else asks how the item that is not needed any more would have been.
            await asyncio.gather(coming, return_exceptions=True)


def _read_event(event: sse.Event) -> Heard:
    number = None
    if event.id is not None and event.id.isascii() and event.id.isdigit():
        number = int(event.id[:_DIGITS])
    try:
        if event.kind == "heartbeat":
            time_ms = msgspec.json.decode(event.data, type=_Heartbeat).time_ms
            return Heard(event.kind, None, number, time_ms)
        return Heard(event.kind, msgspec.json.decode(event.data, type=Event), number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LostPlaceError(f"an event cannot be read: {error}") from None
