"""`touchstone verifier status`: what the verifier does now, how long its challenges last, and what its clock says."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import msgspec
from msgspec import Struct

from attester.authorities import client_context, why_unreached
from verifier.challenges.stock import read_demand, read_levels
from verifier.commands.common import (
    errors,
    home_option,
    json_option,
    now_ms,
    table,
    wide_classes,
    with_database,
)
from verifier.config import Home, VerifierConfig
from verifier.schemes.findings import to_printable
from verifier.service.home_folder import lines_of, look
from verifier.service.inputs import InputLoader
from verifier.store import incidents, leases, log, log_tree, nodes, policies, references
from verifier.store.database import Database, Tx

_TIMEOUT_S: Final = 3.0
_MAX_BYTES: Final = 1 << 16


class _Discovery(Struct, frozen=True, rename={"state": "service-state"}):
    """The part of the discovery document that is shown."""

    state: str
    version: str
    time: int


@click.command()
@home_option
@json_option
@errors
def status(home: Path, as_json: bool) -> None:
    """Show whether the verifier serves, for how long its challenges last, its nodes, its replicas and its clock."""
    config = Home(home).config()

    async def work(db: Database) -> dict[str, Any]:
        ahead_ms = await db.ahead_ms(now_ms)
        async with db.read() as tx:
            return await _read(tx, home, config, now_ms() + ahead_ms) | {"database_ahead_s": ahead_ms / 1000}

    found = with_database(home, work)
    service = asyncio.run(_ask(config.service.url, _trust(config, home)))
    clock = {"database_ahead_s": found.pop("database_ahead_s"), "service_ahead_s": service.pop("ahead_s")}
    document = {
        "service": {"url": config.service.url, **service},
        **found,
        "clock": clock,
        "anchors": _anchors(Home(home)),
    }
    if as_json:
        click.echo(msgspec.json.encode(document).decode())
    else:
        _show(document)


def _anchors(home: Home) -> dict[str, Any]:
    """How many trust anchors of reference values there are, and which files cannot be used, and why."""
    files = home.anchor_files()
    unusable = [{"file": str(file.path), "why": why} for file in files for why in file.refused]
    return {"trusted": sum(len(file.anchors) for file in files), "unusable": unusable}


async def _read(tx: Tx, home: Path, config: VerifierConfig, at_ms: int) -> dict[str, Any]:
    classes = await wide_classes(tx, home / config.policy.folder)
    demand = await read_demand(tx, config.calls, config.answers, classes, at_ms)
    levels = await read_levels(tx, await _in_force(tx), demand)
    pools = [
        {
            "model": level.model,
            "kind": level.kind,
            "free": level.free,
            "in_force": level.in_force,
            "hours": None if math.isinf(level.hours) else round(level.hours, 2),
        }
        for level in levels
    ]
    replicas = [
        {"name": row["name"], "holder": row["holder"], "left_s": round((row["until_ms"] - at_ms) / 1000, 1)}
        for row in await leases.held(tx, at_ms)
    ]
    folder = await look(tx, home, home / config.policy.folder)
    return {
        "pools": pools,
        "nodes": await _count_nodes(tx, at_ms),
        "leases": replicas,
        "policy": await _policy(tx) | {"folder": folder.to_wire()},
        "log": await _log(tx),
    }


async def _log(tx: Tx) -> dict[str, Any] | None:
    """The log that is written: how many entries have their places, and how many wait."""
    current = await log_tree.newest(tx)
    if current is None:
        return None
    head = await log_tree.head(tx, current.number)
    return {
        "origin": current.origin,
        "size": 0 if head is None else head.size,
        "witnesses": 0 if head is None else head.witnesses,
        "waiting": await log.count_waiting(tx),
        "ended": current.is_ended,
    }


async def _policy(tx: Tx) -> dict[str, Any]:
    """The policies that judge nodes, by their ids."""
    rollout = await policies.rollout(tx)
    if rollout is None:
        return {"active": None, "canary": None}
    ids = {row["digest"]: row["id"] for row in await policies.every(tx)}
    return {"active": ids[rollout.active], "canary": ids.get(rollout.canary)}


async def _in_force(tx: Tx) -> Mapping[str, str]:
    """By model, the digest of the value in force; the policy may bring it."""
    if await policies.rollout(tx) is not None:
        return await InputLoader().load_digests_in_force(tx)
    return {row["model"]: row["digest"] for row in await references.every(tx) if row["state"] == "active"}


async def _count_nodes(tx: Tx, at_ms: int) -> dict[str, int]:
    counts: Counter[str] = Counter(total=0, live=0, quarantined=0)
    for node in await nodes.live(tx):
        counts["total"] += 1
        counts["live"] += node.expires_ms > at_ms
        counts["quarantined"] += await incidents.holding(tx, node.id) is not None
    return dict(counts)


def _trust(config: VerifierConfig, home: Path) -> ssl.SSLContext:
    """TLS that believes the system's authorities, and the verifier's own certificate."""
    context = client_context(None)
    if config.service.speaks_tls:
        certificate, _, _ = config.service.files(home)
        # If it cannot be read, the service says so when it starts.
        with contextlib.suppress(OSError):
            context.load_verify_locations(certificate)
    return context


async def _ask(url: str, context: ssl.SSLContext) -> dict[str, Any]:
    """Ask the running service whether it serves, and for its time."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(f"{url}/.well-known/veraison/verification", ssl=context) as answer,
        ):
            found = msgspec.json.decode(await answer.content.read(_MAX_BYTES), type=_Discovery)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        return {"state": "NOT-REACHED", "why": why_unreached(error), "ahead_s": None}
    return {"state": found.state, "version": found.version, "ahead_s": found.time - now_ms() // 1000}


def _show(document: Mapping[str, Any]) -> None:
    service, counts, clock = document["service"], document["nodes"], document["clock"]
    click.echo(
        f"service   {service['state']} at {service['url']}"
        + (f": {service['why']}" if "why" in service else "")
    )
    click.echo(
        f"nodes     {counts['total']} enrolled, {counts['live']} with a live result, {counts['quarantined']} in quarantine"
    )
    policy = document["policy"]
    click.echo(f"policy    {policy['active'] or 'none yet'}")
    if policy["canary"] is not None:
        click.echo(f"canary    {policy['canary']}")
    for line in lines_of(policy["folder"]):
        click.echo(f"          {to_printable(line, 2000)}")
    if (kept := document["log"]) is not None:
        click.echo(
            f"log       {kept['origin']}, {kept['size']} entries, {kept['waiting']} wait for their places"
            + (", ENDED: touchstone log begin" if kept["ended"] else "")
        )
    for lease in document["leases"]:
        click.echo(f"lease     {lease['name']} held by {lease['holder']} for {lease['left_s']} s more")
    ahead = clock["service_ahead_s"]
    click.echo(
        f"clock     database {clock['database_ahead_s']:+.1f} s"
        + ("" if ahead is None else f", service {ahead:+d} s")
        + " against this machine"
    )
    for anchor in document["anchors"]["unusable"]:
        click.echo(f"anchor    NOT trusted: {anchor['file']}: {anchor['why']}")
    rows = [
        (p["model"], p["kind"], p["free"], p["in_force"], "–" if p["hours"] is None else f"{p['hours']:.1f}")
        for p in document["pools"]
    ]
    table("challenges", ("model", "kind", "free", "in force", "hours left"), rows)
