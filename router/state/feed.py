"""
The feed: the verifier's live results, revocations and incidents, for the fleet.

It takes a whole snapshot once, and then follows events.  If the stream breaks, it goes on with the
event after the last one that was taken in.  Another snapshot is taken only if that cannot be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from itertools import chain
from typing import Final, TypeAlias

import aiohttp
import structlog

from attester.authorities import distrust, why_unreached
from router.choose.gates import FEED_SILENT_S
from router.config import VerifierSection
from router.model.clock import Clock
from router.state.feed_source import (
    Event,
    FeedError,
    FeedSource,
    Heard,
    Incident,
    ListedResult,
    LostPlaceError,
    ResultsPage,
    one_ahead,
)
from router.state.fleet import Fleet
from router.state.known_nodes import KnownNodes, ReadResult
from router.state.result_reader import ResultReader, UnknownSignerError
from router.state.snapshot import Snapshot
from router.state.unread import UnreadResults
from verifier import jws
from verifier.errors import ResultError
from verifier.results import AttestationResult

_RESUMED_WITHIN_S: Final = 600.0
"""After a longer silence the events since then tell of each node several times, and a snapshot once."""
_KEYS_EVERY_S: Final = 60.0
"""So often the keys are looked at while events are followed."""
_NEW_KEY_EVERY_S, _SAME_KEY_EVERY_S = 3.0, 30.0
"""For a result by an unknown key they are fetched at most so often; later ones if they were fetched for this key before."""
_MAX_ASKED: Final = 64
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0
_PLACED_AT_ONCE: Final = 50
"""Nodes that are placed before other work has its turn."""
_READ_AT_ONCE: Final = 500
"""Tokens of a page that are read together."""
_READERS: Final = 2
"""Threads that read them.  Verifying a signature is half of it, and lets the other thread and the loop go on."""

_ReadEntry: TypeAlias = tuple[ListedResult, ReadResult, bytes]
"""What a page lists, the result, and the digest of its token."""

_log = structlog.get_logger("router")


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
        on_incident_lost: Called with one of them that the verifier does not know any more: its database was
            restored, and nobody has decided.
        token: Gives the key by which the verifier knows this router.
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
        token: Callable[[], str | None] = lambda: None,
        on_incident_lost: Callable[[str], None] = lambda _incident: None,
    ) -> None:
        self._source = FeedSource(http, config, token)
        self._clock = clock
        self.fleet = fleet
        self._reader = ResultReader(config.url, clock, config.skew_s)
        self._known = KnownNodes(fleet, self._reader, on_incident_state)
        self._unread = UnreadResults()
        self._asked_keys: set[str | None] = set()
        """The kids for which the keys were fetched, and that were not among them."""
        self._reported_incidents = reported_incidents
        self._on_incident_lost = on_incident_lost
        self.on_page: Callable[[], object] = lambda: None
        """Called after each page of a snapshot."""
        self._keys_at = 0.0
        self._place: int | None = None
        """The number of the last event that was taken in; `None` if only a snapshot can say what is true."""
        self._closed_until = 0
        """Until the event with this number is taken in, nothing that is heard opens the gate."""
        self._begun: Snapshot | None = None
        """A snapshot that is not complete.  While there is one, there is no place."""
        self._taken: Snapshot | None = None
        """The last complete snapshot, until all events are taken in that its pages were read after."""
        self._snapshot_keys: AbstractSet[str] = frozenset()
        """The kids that were trusted when the last snapshot began."""

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Follow until cancelled.  After an error, wait for a growing, jittered time."""
        wait_s = _FIRST_WAIT_S
        while True:
            start = self._clock.monotonic()
            try:
                await self._catch_up()
                await self._follow()
            except LostPlaceError as error:
                self._place = None
                _log.warning("the verifier's events cannot be followed from here", why=str(error)[:300])
            except (aiohttp.ClientError, TimeoutError, FeedError, ResultError) as error:
                _log.warning("the verifier's feed broke", why=_why(error))
            except Exception:  # noqa: BLE001
                # The outermost loop: if it ended, the router would hear nothing any more, unnoticed.
                # Nor must it fail again and again at the same event.
                self._place = self._begun = None
                _log.exception("the verifier's feed failed")
            if self._clock.monotonic() - start > _LONGEST_WAIT_S:
                wait_s = _FIRST_WAIT_S
            await sleep(random.uniform(0, wait_s))
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def _catch_up(self) -> None:
        """Renew the keys; then find the place from which to follow events: the known one, or by a snapshot."""
        await self._fetch_keys()
        kids = frozenset(self._reader.keys)
        # What a key that has left has signed is void, and a new key may have signed what could not be read.
        goes_on = kids == self._snapshot_keys and self.fleet.silent_s <= _RESUMED_WITHIN_S
        if goes_on and self._place is not None:
            await self._prepare_resumption()
            return
        if not goes_on:
            self._begun = None
        self._place, self._snapshot_keys = None, kids
        await self._take_snapshot()

    async def _fetch_keys(self) -> None:
        """Renew the keys, and read what waits for one."""
        self._keys_at = self._clock.monotonic()
        keys = await self._source.keys()
        before = self._reader.keys.keys()
        if keys.keys() == before:
            return
        if before:
            _log.info("the verifier's keys have changed", keys=sorted(keys))
        self._reader.use_keys(keys)
        if before - keys.keys():
            await self._known.void_untrusted()
        self._asked_keys -= keys.keys()
        for node, waiting in self._unread.take_all().items():
            self._take_result(node, waiting.token, waiting.sequence)

    async def _prepare_resumption(self) -> None:
        if self.fleet.silent_s > FEED_SILENT_S:
            # The gate has closed because revocations may have been missed.  Their events come now, and it stays
            # closed until they are taken in: a heartbeat before them shows only that the verifier is back.
            self._closed_until = await self._source.newest_event()
        reported = self._reported_incidents()
        if reported:
            # The stream tells of their end only once, and a hold's end can fail to be written.
            self._known.note_ended(await self._ended_among(reported, await self._source.open_incidents()))

    async def _ended_among(self, reported: AbstractSet[str], listed: Sequence[Incident]) -> AbstractSet[str]:
        """The incidents that are over: no longer listed as open, but known."""
        ended = set()
        for incident in reported - {each.id for each in listed}:
            if await self._source.knows_incident(incident):
                ended.add(incident)
            else:
                self._on_incident_lost(incident)
        return ended

    async def _take_snapshot(self) -> None:
        """
        Take a whole snapshot, page by page, or go on with one that a broken connection interrupted.

        What is known of a node stays as it is until its page has come, so work goes on meanwhile.
        """
        after = "" if self._begun is None else self._begun.after
        knows_nothing = not len(self._known)
        async with aclosing(one_ahead(self._read_pages(after))) as pages:
            async for page, entries in pages:
                if self._begun is None:
                    # Events are followed from the first page on, so that none is lost between the pages.
                    # Incidents are read after it and count before it: nobody is let in who is held.
                    reported = self._reported_incidents()
                    incidents = await self._source.open_incidents()
                    self.fleet.use_suspicions(await self._source.suspicions())
                    ended = await self._ended_among(reported, incidents)
                    self._begun = Snapshot(page.seq, incidents, ended)
                    self._known.begin(self._begun)
                await self._take_page(self._begun, page, entries)
                self._note_time(page.time_ms)
                # A page is the verifier's word of now, as good as a heartbeat, and each counts once: a snapshot
                # that breaks goes on after it.  So one that cannot be completed closes the gate as silence does.
                # A gate that silence has closed stays closed until all that may have been missed is known.
                if knows_nothing or self.fleet.silent_s <= FEED_SILENT_S:
                    self.fleet.note_verifier_contact()
        if self._begun is not None:
            await self._end_snapshot(self._begun)

    async def _end_snapshot(self, snapshot: Snapshot) -> None:
        await self._known.end(snapshot)
        self._begun, self._taken = None, snapshot
        self._place, self._closed_until = snapshot.number, 0
        self.fleet.note_verifier_contact()
        _log.info("snapshot taken", nodes=len(snapshot.accepted), seq=snapshot.number)
        # Only what it covers is asked from now on.
        snapshot.accepted.clear()

    async def _take_page(self, snapshot: Snapshot, page: ResultsPage, entries: Sequence[_ReadEntry]) -> None:
        for number, (entry, result, digest) in enumerate(entries):
            if number % _PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(result, UnknownSignerError):
                self._unread.keep(entry.node, entry.token, entry.sequence)
            self._known.take_listed(snapshot, entry.node, result, digest, entry.void)
        snapshot.end_page(page.seq, page.next)
        self.on_page()

    async def _read_pages(self, after: str) -> AsyncGenerator[tuple[ResultsPage, list[_ReadEntry]], None]:
        """Whole pages with their results: an error must not leave a part of a page taken in."""
        async with aclosing(self._source.results(after)) as pages:
            async for page in pages:
                found: list[_ReadEntry] = []
                for at in range(0, len(page.results), _READ_AT_ONCE):
                    found += await self._read_listed(page.results[at : at + _READ_AT_ONCE])
                yield page, found

    async def _read_listed(self, entries: Sequence[ListedResult]) -> list[_ReadEntry]:
        """Each entry's result.  What was verified before, byte by byte the same, is not verified again."""
        digests = [self._reader.digest(entry.token) for entry in entries]
        known = [self._known_result(each.node, digest) for each, digest in zip(entries, digests, strict=True)]
        tokens = [entry.token for entry, result in zip(entries, known, strict=True) if result is None]
        # In threads, so that the loop can place nodes meanwhile.
        share = -(-len(tokens) // _READERS)
        parts = (tokens[at : at + share] for at in range(0, len(tokens), share or 1))
        read = await asyncio.gather(*(asyncio.to_thread(self._reader.read_all, part) for part in parts))
        verified = chain.from_iterable(read)
        return [
            (entry, result or await self._retried(entry.token, next(verified)), digest)
            for entry, result, digest in zip(entries, known, digests, strict=True)
        ]

    def _known_result(self, node: str, digest: bytes) -> AttestationResult | None:
        known = self._known.get(node)
        if known is None or known.result is None or known.token_digest != digest:
            return None
        return known.result if self._reader.is_trusted(digest) else None

    async def _retried(self, token: str, result: ReadResult) -> ReadResult:
        """The result, read again with new keys if its key is not known."""
        if isinstance(result, UnknownSignerError):
            kid = jws.kid_of(token)
            every_s = _SAME_KEY_EVERY_S if kid in self._asked_keys else _NEW_KEY_EVERY_S
            if self._clock.monotonic() - self._keys_at > every_s:
                if len(self._asked_keys) < _MAX_ASKED:
                    self._asked_keys.add(kid)
                await self._renew_keys()
                (result,) = self._reader.read_all([token])
        return result

    async def _renew_keys(self) -> None:
        """Renew the keys while events are followed.  If that fails, those that are known stay, and it is tried again."""
        try:
            await self._fetch_keys()
        except (aiohttp.ClientError, TimeoutError, FeedError, ResultError) as error:
            _log.warning("the verifier's keys cannot be read", why=_why(error))
        else:
            # What a snapshot would be taken for is done.
            self._snapshot_keys = frozenset(self._reader.keys)

    def _take_result(self, node: str, token: str, sequence: int | None) -> None:
        """Take in a result, or keep it until its key is known."""
        (result,) = self._reader.read_all([token])
        self._take_read(node, token, sequence, result)

    def _take_read(self, node: str, token: str, sequence: int | None, result: ReadResult) -> None:
        if isinstance(result, UnknownSignerError):
            self._unread.keep(node, token, sequence)
        self._known.take_result(node, result, self._reader.digest(token))

    def _note_time(self, time_ms: int | None) -> None:
        """Take in what the verifier's clock says, and what its time has come for."""
        if time_ms is not None:
            self._clock.note_verifier(time_ms)
        self._known.promote()

    async def _beat(self, time_ms: int | None) -> None:
        """Do at each heartbeat what time alone asks for."""
        self._note_time(time_ms)
        every_s = _SAME_KEY_EVERY_S if self._unread else _KEYS_EVERY_S
        if self._clock.monotonic() - self._keys_at > every_s:
            await self._renew_keys()

    async def _follow(self) -> None:
        """Follow events until the stream ends."""
        assert self._place is not None, "a snapshot has said where"
        async with aclosing(self._source.events(self._place)) as events:
            async for heard in events:
                if heard.event is None:
                    await self._beat(heard.time_ms)
                else:
                    await self._take_event(heard, heard.event)
                if heard.number is not None:
                    self._place = heard.number
                # Only what was understood counts as contact: noise must not keep the gate open.
                if self._place >= self._closed_until:
                    self.fleet.note_verifier_contact()

    async def _take_event(self, heard: Heard, event: Event) -> None:
        if heard.kind == "key":
            await self._renew_keys()
        if event.node is None:
            return
        match heard.kind:
            case "result" | "revocation" if self._is_covered(event.node, heard.number):
                return
            case "result" if event.token is not None:
                (result,) = self._reader.read_all([event.token])
                result = await self._retried(event.token, result)
                self._take_read(event.node, event.token, event.sequence, result)
            case "revocation":
                self._known.revoke(event.node, event.sequence)
            case "incident" if event.incident is not None:
                self._known.take_incident(event.node, event.incident, event)
            case "suspicion" if event.model is not None:
                self.fleet.set_suspected(event.node, event.model, is_suspected=event.is_suspicion)
            case "node" if event.state == "retired":
                self._known.retire(event.node)
            case _:
                return

    def _is_covered(self, node: str, number: int | None) -> bool:
        """
        Whether the snapshot's page that told of a node was read after this event.

        Then the event's result has been replaced, and its revocation is of a replaced result.
        """
        if self._taken is None or number is None:
            return False
        if number > self._taken.newest:
            self._taken = None
            return False
        return self._taken.covers(node, number)


def _why(error: Exception) -> str:
    why = why_unreached(error)
    return (
        why
        if distrust(error) is None
        else f"{why}; name an authority of your own as ca_file under [verifier]"
    )
