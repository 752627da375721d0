"""
`touchstone attester run`: one agent at a time for a home, until a signal.

SIGTERM and SIGINT end it.  On SIGHUP everything is read anew: the configuration, the enrolment, the
keys.  If something of it cannot be used, the agent goes on as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import structlog

from attester import usage_counts
from attester.agent import Agent
from attester.authorities import open_session
from attester.claim_keeper import ClaimKeeper
from attester.client import VerifierClient
from attester.collector import Collector
from attester.config import AttesterConfig, Home
from attester.engines import open_engine
from attester.errors import AttesterError
from attester.front.keeper import RouterKeeper
from attester.front.outside import ExposureClaim, Outside
from attester.live_keys import LiveKeys
from attester.places import Places
from attester.weights.cache import DigestCache

_log = structlog.get_logger("attester")


@contextlib.asynccontextmanager
async def opened(
    home: Home, config: AttesterConfig
) -> AsyncIterator[tuple[VerifierClient, Collector, LiveKeys]]:
    """What talks to the verifier, what collects evidence, and the keys."""
    keys = LiveKeys(home)
    async with (
        open_session(home.authorities(config)) as http,
        aiohttp.ClientSession(trust_env=False, headers=_credential(home, config)) as to_engine,
    ):
        client = VerifierClient(http, config.verifier.url, keys.node)
        places = Places(config.folders)
        engine = open_engine(config, to_engine, home, places)
        cache = DigestCache(home.path / "digests.db")
        claim = ExposureClaim(Outside(home, config), client, lambda: keys.tls, time.monotonic)
        collector = Collector(
            config, engine, keys.tls, keys.node.public.kid, cache=cache, benchmarks=home.benchmarks,
            exposure=claim.collect, places=places,
        )  # fmt: skip
        try:
            yield client, collector, keys
        finally:
            collector.stop()
            cache.close()


def _credential(home: Home, config: AttesterConfig) -> dict[str, str]:
    """The engine's own key, for requests that bring no other."""
    key = home.engine_key(config)
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@contextlib.asynccontextmanager
async def agent_of(home: Home) -> AsyncIterator[Agent]:
    """An agent by what the home has now.  Raises `AttesterError`."""
    config, enrolment = home.config(), home.enrolment()
    async with opened(home, config) as (client, collector, keys):
        holding = collector.watch(enrolment.node, client, before=home.revisions(), save=home.save_revisions)
        yield Agent(client, collector, keys.node, enrolment, keys=keys, holding=holding)


@contextlib.asynccontextmanager
async def _kept_routers(home: Home, client: VerifierClient) -> AsyncIterator[None]:
    """While the context lasts, the home has the verifier's list of routers."""
    keeper = RouterKeeper(client, home, home.config().front.routers_max_age_s)
    task = asyncio.create_task(keeper.run(), name="routers")
    try:
        yield
    finally:
        await _end(task)


@contextlib.asynccontextmanager
async def _kept_claims(home: Home) -> AsyncIterator[None]:
    """While the context lasts, what the front has counted is claimed once its day is over."""
    keeper = ClaimKeeper(home.path / usage_counts.FOLDER, home.enrolment().node, home.node_key)
    task = asyncio.create_task(keeper.run(), name="claims")
    try:
        yield
    finally:
        await _end(task)


class Runner:
    """Runs the agent of a home, and puts another one in its place on SIGHUP."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._hangup = asyncio.Event()

    async def run(self) -> None:
        """
        Attest until SIGTERM or SIGINT.

        Raises:
            AttesterError: the home cannot be used, or another attester uses it.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        # What is wrong with the home is told before who uses it.
        self._home.config()
        with self._home.hold(), contextlib.suppress(asyncio.CancelledError):
            life = await _Life.begin(self._home)
            try:
                while True:
                    await life.last_until(self._hangup)
                    self._hangup.clear()
                    life = await self._renew(life)
            finally:
                await life.end()

    async def _renew(self, life: _Life) -> _Life:
        try:
            following = await _Life.begin(self._home)
        except AttesterError as error:
            _log.error("nothing is read anew; the attester goes on as before", why=str(error))
            return life
        # A round that has begun comes to its end.
        async with life.agent.between_rounds():
            await life.end()
        _log.info("the home was read anew: configuration, enrolment and keys")
        return following


class _Life:
    """One agent, and the task in which it runs."""

    def __init__(self, agent: Agent, task: asyncio.Task[None]) -> None:
        self.agent = agent
        self._task = task

    @classmethod
    async def begin(cls, home: Home) -> _Life:
        """Open an agent, make it ready for calls, and let it run.  Raises `AttesterError`."""
        opened_agent: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_live(home, opened_agent), name="agent")
        try:
            both: set[asyncio.Future[Any]] = {opened_agent, task}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if not opened_agent.done():
            task.result()
        return cls(opened_agent.result(), task)

    async def last_until(self, event: asyncio.Event) -> None:
        """Return when *event* is set.  Raises what ended the agent."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._task.done():
            self._task.result()

    async def end(self) -> None:
        """End the agent."""
        await _end(self._task)


async def _live(home: Home, opened_agent: asyncio.Future[Agent]) -> None:
    try:
        async with agent_of(home) as agent, _kept_routers(home, agent.client), _kept_claims(home):
            await agent.prepare()
            opened_agent.set_result(agent)
            await agent.serve()
    except AttesterError as error:
        if opened_agent.done():
            raise
        opened_agent.set_exception(error)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
