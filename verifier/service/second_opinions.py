"""
A second opinion on a share of what is judged: another engine is asked the same, and differences are kept.

It has no effect on any result: it is asked afterwards, with what the policy was given, one input at a
time, and rests nine times as long as each answer took.  What differs is kept with its input, and
people look at it (`touchstone policy opinions`).
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import Counter

from verifier.errors import NoOutcomeError, PolicyError, StoreError
from verifier.policy import opinions
from verifier.policy.bundle import Bundle
from verifier.policy.opinions import Disagreement
from verifier.policy.remembered import Key, key_of
from verifier.policy.second_engines import SecondEngine, open_engine
from verifier.service import access
from verifier.service.access import Route
from verifier.service.http import json_response
from verifier.service.state import Service, service_of
from verifier.store import second_opinions as stored

_MAX_WAITING: Final = 100
_MAX_REMEMBERED: Final = 10_000
"""Nodes that are alike give equal inputs, and each is asked about once."""
_REST: Final = 9
"""It rests so many times as long as an answer took: a tenth of a processor at most."""
_RETRY_S: Final = 600.0
"""An engine that cannot be used is not tried again sooner."""

_log = structlog.get_logger("verifier")
_asked = Counter(
    "touchstone_second_opinions_total",
    "Evaluations that a second engine was asked about: agreed, differed, unanswered or skipped.",
    ["opinion"],
)


class SecondOpinions:
    """Asks the second engine about what was judged."""

    def __init__(self, service: Service, draw: Callable[[], float] = random.random) -> None:
        self._service = service
        self._settings = service.config.second_opinion
        self._draw = draw
        self._waiting: asyncio.Queue[tuple[Bundle, bytes, Any]] = asyncio.Queue(_MAX_WAITING)
        self._known: OrderedDict[Key, None] = OrderedDict()
        self._skipped = 0
        self._engine: tuple[str, SecondEngine] | None = None
        self._opened = AsyncExitStack()

    def offer(self, bundle: Bundle, policy_input: bytes, outcome: Any) -> None:
        """
        Take a share of what was judged.

        Args:
            outcome: The policy's outcome, decoded, or the `PolicyError` with which it failed.
        """
        if not self._settings.engine or self._draw() >= self._settings.share:
            return
        key = key_of(bundle.digest, policy_input)
        if key in self._known:
            return
        try:
            self._waiting.put_nowait((bundle, policy_input, outcome))
        except asyncio.QueueFull:
            self._skipped += 1
            _asked.labels("skipped").inc()
            return
        self._known[key] = None
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                took_s = await self.ask_next()
                await asyncio.sleep(took_s)
        finally:
            await self._close()

    async def ask_next(self) -> float:
        """Ask about the next input.  Returns for how many seconds to rest."""
        bundle, policy_input, outcome = await self._waiting.get()
        started = self._service.clock.monotonic()
        try:
            engine = await self._engine_for(bundle)
        except PolicyError as error:
            _log.error("the second engine cannot be used", engine=self._settings.engine, error=str(error))
            await self._note(bundle, "unanswered", None)
            return _RETRY_S
        here = outcome if isinstance(outcome, PolicyError) else msgspec.json.encode(outcome)
        try:
            found = await opinions.judge(engine, policy_input, here)
        except NoOutcomeError as error:
            _log.warning("the second engine gave no answer", policy=bundle.id, error=str(error))
            await self._note(bundle, "unanswered", None)
        else:
            if found is not None:
                _log.warning("the second engine differs", policy=bundle.id, engine=self._settings.engine)
            await self._note(bundle, "agreed" if found is None else "differed", found)
        return (self._service.clock.monotonic() - started) * _REST

    async def _note(self, bundle: Bundle, opinion: str, found: Disagreement | None) -> None:
        _asked.labels(opinion).inc()
        skipped, self._skipped = self._skipped, 0
        now_ms = self._service.now_ms()
        count = stored.Count(
            engine=self._settings.engine,
            policy=bundle.digest,
            asked=int(opinion != "unanswered"),
            unanswered=int(opinion == "unanswered"),
            skipped=skipped,
        )
        try:
            await self._service.db.write(
                lambda tx: stored.count(tx, count, found, now_ms), of=f"second opinion {bundle.digest}"
            )
        except StoreError as error:
            _log.warning("a second opinion is not kept", policy=bundle.id, error=str(error))

    async def _engine_for(self, bundle: Bundle) -> SecondEngine:
        if self._engine is None or self._engine[0] != bundle.digest:
            await self._close()
            opa = Path(self._settings.opa) if self._settings.opa else None
            opened = await self._opened.enter_async_context(open_engine(self._settings.engine, bundle, opa))
            self._engine = (bundle.digest, opened)
        return self._engine[1]

    async def _close(self) -> None:
        self._engine = None
        await self._opened.aclose()
        self._opened = AsyncExitStack()


SECOND_OPINIONS: web.AppKey[SecondOpinions] = web.AppKey("second_opinions", SecondOpinions)


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.get(
            "/api/v1/policies/opinions",
            show,
            access.POLICY_WORK,
            "Show where a second engine judged otherwise.",
        )
    ]


async def show(request: web.Request) -> web.Response:
    """What a second engine was asked, and the inputs that it judged otherwise."""
    async with service_of(request).db.read() as tx:
        return json_response({"opinions": await stored.report(tx)})
