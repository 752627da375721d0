"""
What the router itself holds nodes for, and what it wants people to look at.

It acts at once, on what it has metered itself; writes it down; and tells the verifier, as often
as it takes.  Only a person ends a hold: here, or at the verifier, whose word comes by the feed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Final, Protocol

import aiohttp
import msgspec
import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter

from attester.bounded import read_all
from router.config import ReviewSection, VerifierSection
from router.model.clock import Clock
from router.model.errors import HoldError
from router.model.usage import UsageMismatch
from router.state.fleet import Fleet
from router.store import holds
from router.store.holds import Hold
from verifier.errors import StoreError
from verifier.incidents import HOLDING, State
from verifier.store.database import Database, Row

SETTLEMENT: Final = "settlement-mismatch"
OUR_COUNT: Final = "token-count-suspect"
BELOW_ENERGY: Final = "price-below-energy"
_RETRY_S: Final = 5.0
_MAX_ANSWER: Final = 64 << 10

_log = structlog.get_logger("router")
_opened = Counter("touchstone_router_holds_total", "What the router held nodes for.", ["kind"])


class _Told(Struct, frozen=True):
    id: Annotated[str, Meta(min_length=1, max_length=128)]
    state: str


class IncidentReporter(Protocol):
    """Tells the verifier of a hold; gives its incident's id and state."""

    async def __call__(self, hold: Hold) -> tuple[str, str]:
        """Raises `HoldError` where the verifier does not take it, for now."""


class Holds:
    """Holds of this router, in the store that it shares with others."""

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        clock: Clock,
        config: ReviewSection,
        tell: IncidentReporter | None = None,
        new_id: Callable[[], str] = lambda: f"r-{secrets.token_hex(8)}",
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._tell = tell
        self._new_id = new_id
        self._known: dict[str, Hold] = {}
        self._moves = 0
        """How often this router has begun or ended a hold."""
        self._writing: set[asyncio.Task[None]] = set()
        self._cheap: set[str] = set()
        """Nodes whose price was brought to people's notice."""

    async def sync(self) -> None:
        """Bring the fleet up to what is written: of this router before, and of the others."""
        before = -1
        while before != self._moves:
            # What moved while the store was read may not be in what was read.
            before = self._moves
            async with self._db.read() as tx:
                found = {hold.id: hold for hold in await holds.open_ones(tx)}
        for hold in found.values():
            if hold.id not in self._known and hold.holding and hold.node is not None:
                self._fleet.hold(hold.node, hold.id)
        for hold in list(self._known.values()):
            if hold.id not in found and hold.node is not None:
                self._fleet.let_go(hold.node, hold.id)
                if hold.holding:
                    self._fleet.released(hold.node)
        self._known = found

    def on_mismatch(self, node: str, operator: str, mismatch: UsageMismatch) -> None:
        """A large settlement mismatch: a gate, unless our own count is what is wrong."""
        evidence = {
            "answers": mismatch.answers,
            "claimed_tokens": mismatch.claimed,
            "allowed_tokens": mismatch.allowed,
            "of": mismatch.what,
        }
        detail = (
            f"claimed {mismatch.claimed} tokens of {mismatch.what} over {mismatch.answers} answers,"
            f" and {mismatch.allowed} were allowed for"
        )
        if mismatch.ours:
            self._start(None, "", OUR_COUNT, detail, {**evidence, "node": node}, holding=False)
        else:
            self._start(node, operator, SETTLEMENT, detail, evidence, holding=True)

    def on_cheap(self, node: str, operator: str) -> None:
        """A price below what the energy alone costs asks for an audit; the node goes on meanwhile."""
        if node not in self._cheap:
            self._cheap.add(node)
            detail = "its price is below the energy floor of the tier: what does it run on?"
            self._start(node, operator, BELOW_ENERGY, detail, {}, holding=False)

    def _start(
        self,
        node: str | None,
        operator: str,
        kind: str,
        detail: str,
        evidence: dict[str, Any],
        *,
        holding: bool,
    ) -> None:
        now_ms = self._clock.now_ms()
        hold = Hold(
            self._new_id(),
            node,
            operator,
            kind,
            f"router.{kind}",
            detail,
            evidence,
            holding,
            now_ms,
            now_ms + self._config.target_hours * 3_600_000,
        )
        if holding and node is not None:
            # At once: what is already decided for it is turned away at its attempt.
            self._fleet.hold(node, hold.id)
        _opened.labels(kind).inc()
        _log.warning("held" if holding else "to be reviewed", node=node, kind=kind, detail=detail)
        task = asyncio.create_task(self._write(hold), name="a hold")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, hold: Hold) -> None:
        while True:
            try:
                async with self._db.write() as tx:
                    added = await holds.add(tx, hold)
                break
            except StoreError as error:
                _log.error("a hold could not be written, and is tried again", why=str(error)[:300])
                await asyncio.sleep(1)
        self._moves += 1
        if added:
            self._known[hold.id] = hold
            return
        await self.sync()
        if hold.node is not None:
            # There is one already, which holds it.
            self._fleet.let_go(hold.node, hold.id)

    async def run(self) -> None:
        """Tell the verifier what it does not know yet, and hear what other routers hold, until cancelled."""
        while True:
            try:
                await self.sync()
                await self.tell()
            except StoreError as error:
                _log.error("holds could not be read", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the holds: without it nothing would be told or heard any more.
                _log.exception("the holds failed")
            await asyncio.sleep(_RETRY_S)

    async def tell(self) -> None:
        """Tell the verifier of every hold that it has not been told of."""
        for hold in list(self._known.values()):
            if self._tell is None or hold.incident is not None or not hold.holding:
                continue
            try:
                incident, state = await self._tell(hold)
            except HoldError as error:
                _log.warning("the verifier could not be told", hold=hold.id, why=str(error)[:300])
                continue
            async with self._db.write() as tx:
                await holds.told(tx, hold.id, incident)
                if state not in HOLDING:
                    detail = f"the verifier's incident is {state[:40]}, and holds nobody; this router does"
                    await holds.add_step(tx, hold.id, "told", "router", detail, self._clock.now_ms())
            if hold.id in self._known:
                self._known[hold.id] = msgspec.structs.replace(hold, incident=incident)

    def decided(self, incident: str, state: str) -> None:
        """The verifier says what became of an incident; of one that we told it of, too."""
        if state not in (State.RELEASED, State.RETIRED, State.FOLDED):
            return
        for hold in list(self._known.values()):
            if hold.incident == incident:
                task = asyncio.create_task(
                    self._end(hold, "verifier", f"incident {incident} is {state}"), name="a hold's end"
                )
                self._writing.add(task)
                task.add_done_callback(self._writing.discard)

    def awaited(self) -> frozenset[str]:
        """The verifier's incidents whose end would end a hold."""
        return frozenset(hold.incident for hold in self._known.values() if hold.incident is not None)

    async def open_ones(self) -> list[Hold]:
        """What nobody has decided yet."""
        async with self._db.read() as tx:
            return await holds.open_ones(tx)

    async def show(self, hold_id: str) -> tuple[Hold, list[Row]]:
        """
        One hold, and what people did about it.

        Raises:
            HoldError: there is none.
        """
        async with self._db.read() as tx:
            return await holds.get(tx, hold_id), await holds.steps(tx, hold_id)

    async def release(self, hold_id: str, actor: str, reason: str) -> bool:
        """
        A person lets a node go, to probation.

        Returns:
            Whether that is done; not, where a second person has to say so too.

        Raises:
            HoldError: no such hold, or it is decided; or no reason.
        """
        if not reason.strip():
            raise HoldError("a release needs a reason")
        now_ms = self._clock.now_ms()
        async with self._db.write() as tx:
            hold = await holds.get(tx, hold_id)
            if hold.state != "open":
                raise HoldError(f"it is {hold.state} already")
            if self._config.two_person:
                proposed = [s for s in await holds.steps(tx, hold_id) if s["step"] == "propose-release"]
                others = {step["actor"] for step in proposed} - {actor}
                if not others:
                    await holds.add_step(tx, hold_id, "propose-release", actor, reason, now_ms)
                    return False
            await holds.add_step(tx, hold_id, "release", actor, reason, now_ms)
            await holds.release(tx, hold_id)
        self._let_go(hold)
        return True

    async def _end(self, hold: Hold, actor: str, reason: str) -> None:
        try:
            async with self._db.write() as tx:
                await holds.add_step(tx, hold.id, "release", actor, reason, self._clock.now_ms())
                await holds.release(tx, hold.id)
        except StoreError as error:
            # It stays held; the next whole snapshot of the verifier's brings it up again.
            _log.error("a hold's end could not be written", hold=hold.id, why=str(error)[:300])
            return
        self._let_go(hold)

    def _let_go(self, hold: Hold) -> None:
        self._moves += 1
        self._known.pop(hold.id, None)
        if hold.node is not None:
            self._fleet.let_go(hold.node, hold.id)
            if hold.holding:
                self._fleet.released(hold.node)

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=5)


class VerifierIncidentReporter:
    """Tells by the verifier's API."""

    def __init__(self, http: aiohttp.ClientSession, config: VerifierSection, token: str) -> None:
        self._http = http
        self._url = f"{config.url}/api/v1/incidents"
        self._token = token

    async def __call__(self, hold: Hold) -> tuple[str, str]:
        """As `IncidentReporter`."""
        body = {
            "node": hold.node,
            "kind": hold.kind,
            "detail": hold.detail,
            "evidence": hold.evidence,
            "report": hold.id,
        }
        try:
            async with self._http.post(
                self._url,
                data=msgspec.json.encode(body),
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=10, connect=5),
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
                if response.status != 201 or data is None:
                    raise HoldError(f"it answers {response.status}")
                told = msgspec.json.decode(data, type=_Told)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeError) as error:
            raise HoldError(type(error).__name__) from None
        return told.id, told.state
