"""What tests of the life cycle share: policies made, published and moved; a router's feed on the real socket."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from fixtures.credentials import bearer
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL
from fixtures.transactions import transaction
from router.choose.decision import decide
from router.config import VerifierSection
from router.model.clock import Clock
from router.model.workload import Table, Workload
from router.state.feed import Feed
from router.state.fleet import Fleet
from verifier.policy import bundle as bundles
from verifier.policy.archive import write_archive
from verifier.policy.bundle import Bundle
from verifier.roles import Role
from verifier.store import policies
from verifier.store.policies import ChangeAuthor

WHO = ChangeAuthor("kim", "because")
WORKLOAD = Workload(MODEL, name="tiny")


def changed(base: Bundle, name: str, *, versions: list[str] | None = None, **files: str) -> Bundle:
    """A policy like *base*: other approved versions, or other files."""
    content: dict[str, bytes] = dict(base.files)
    manifest = json.loads(content["bundle.json"])
    content["bundle.json"] = json.dumps({**manifest, "name": name, "version": "1"}).encode()
    if versions is not None:
        data = json.loads(content["data.json"])
        data["approved_engines"] = {ENGINE: {"versions": versions, "weak": []}}
        content["data.json"] = json.dumps(data).encode()
    for file, text in files.items():
        content[file.replace("__", "/").replace("_DOT_", ".").replace("_rego", ".rego")] = text.encode()
    return bundles.of_files(content)


def replaced(base: Bundle, name: str, source: str) -> Bundle:
    """A policy with *source* instead of all rules and tests of *base*."""
    data = {
        file: content for file, content in changed(base, name).files.items() if not file.endswith(".rego")
    }
    return bundles.of_files({**data, f"{name}.rego": source.encode()})


async def strict(verifier: Any) -> Bundle:
    """A policy that approves another version of the engine than nodes run."""
    return changed(await verifier.policy(), "strict", versions=[f"{ENGINE_VERSION}.1"])


def archive(verifier: Any, bundle: Bundle) -> bytes:
    """As an author sends it."""
    return write_archive(bundle, bundles.sign(bundle, verifier.home.author_key()))


async def post(verifier: Any, path: str, body: Any, *, token: str | None = None) -> tuple[int, Any]:
    """An administrator's request, if no other token is given; status and JSON."""
    headers = {} if token is None else bearer(token)
    data = body if isinstance(body, bytes) else json.dumps(body)
    async with verifier.http.post(verifier.url + path, data=data, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def publish(verifier: Any, bundle: Bundle) -> str:
    """Publish over the API; the policy's digest."""
    status, body = await post(
        verifier, "/api/v1/policies?actor=kim&reason=because", archive(verifier, bundle)
    )
    assert status in (200, 201), body
    return bundle.digest


async def step(verifier: Any, action: str, bundle: Bundle, **more: Any) -> Any:
    """A step of the rollout over the API."""
    body = {"actor": "kim", "reason": "because", **more}
    status, answer = await post(verifier, f"/api/v1/policies/{bundle.digest}/{action}", body)
    assert status == 200, answer
    return answer


async def age_recordings(verifier: Any) -> None:
    """As if they were from before results said whose node it is."""
    async with transaction(verifier.service.db) as tx:
        for row in await tx.all("SELECT appraisal_id, record, gist FROM recordings"):
            record, gist = json.loads(zlib.decompress(row["record"])), json.loads(row["gist"])
            del record["node"]["enrolled_ms"], record["held"]["node"], gist["held"]["node"]
            await tx.execute(
                "UPDATE recordings SET record = ?, gist = ? WHERE appraisal_id = ?",
                zlib.compress(json.dumps(record).encode()),
                json.dumps(gist),
                row["appraisal_id"],
            )


async def smuggle(verifier: Any, bundle: Bundle) -> None:
    """Make a policy active past lint and tests."""
    async with transaction(verifier.service.db) as tx:
        await policies.publish(tx, bundle, b"{}", "nobody", WHO, verifier.clock.ms)
        await policies.move(tx, "promote", bundle.digest, WHO, verifier.clock.ms)


@dataclass(frozen=True)
class Now:
    """A decision, without chance."""

    may: set[str]
    closed: dict[str, int]


@asynccontextmanager
async def router(verifier: Any) -> AsyncIterator[Callable[[], Now]]:
    """A router's feed that follows the verifier; gives who may do the work now."""
    clock = Clock(lambda: verifier.clock.ms, time.monotonic)
    key = await verifier.key("router-1", Role.ROUTER)
    async with aiohttp.ClientSession(headers=key) as http:
        fleet = Fleet(Table([WORKLOAD]), clock)
        feed = Feed(http, VerifierSection(verifier.url), clock, fleet)
        task = asyncio.create_task(feed.run())
        try:
            await within(5, lambda: fleet.silent_s < 1)
            yield lambda: _now(fleet)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


TICK_S = 0.005


async def within(seconds: float, holds: Callable[[], object]) -> float:
    """
    Wait until it holds; how long that took, at most *seconds*.

    They are counted in steps of this process's own: a busy machine makes them longer, as it does with what is waited for.
    """
    for steps in range(int(seconds / TICK_S) + 1):
        if holds():
            return steps * TICK_S
        await asyncio.sleep(TICK_S)
    raise AssertionError("it does not come to hold")


@asynccontextmanager
async def stepping() -> AsyncIterator[Callable[[], float]]:
    """Gives how long this has gone on, counted as `within` does."""
    steps = 0

    async def step() -> None:
        nonlocal steps
        while True:
            await asyncio.sleep(TICK_S)
            steps += 1

    task = asyncio.create_task(step())
    try:
        yield lambda: steps * TICK_S
    finally:
        task.cancel()


def _now(fleet: Fleet) -> Now:
    decision = decide(fleet.view_for(WORKLOAD), WORKLOAD, 1)
    may = {node for node in fleet.nodes() if fleet.verdict(node, WORKLOAD) is None}
    assert {ranked.node for ranked in decision.ranked} <= may
    return Now(may, decision.closed)


def chosen(now: Now) -> set[str]:
    """Who may do the work."""
    return now.may
