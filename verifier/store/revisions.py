"""
Which revision of a model each node has, where more than one is valid.

A node says it, or its evidence shows it; whichever is newer counts.  It decides nothing but which challenges the
node gets: what the node is worth, its answers show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from attester.kinds import model_submod
from verifier.errors import RequestError
from verifier.store import events, revocations, sessions
from verifier.store.database import Row, Tx
from verifier.trust import Tier, tier_of

_HOUR_MS: Final = 3600 * 1000
_PAGE: Final = 500
_MAX_CHANGES: Final = 12
"""How often within an hour a node is called soon because it has another revision: each call costs challenges."""


class _Compared(Struct, frozen=True):
    reference: str | None = None


class _Claims(Struct, frozen=True):
    """The part of a submodule's appraisal that says what it was compared with."""

    compared: _Compared | None = msgspec.field(default=None, name="ear_verifier_claims")
    vector: dict[str, int] = msgspec.field(default_factory=dict, name="ear_trustworthiness_vector")

    @property
    def reference(self) -> str | None:
        """The digest of the reference value."""
        return None if self.compared is None else self.compared.reference

    @property
    def shown(self) -> str | None:
        """The same, if the files are those of the value."""
        value = self.vector.get("file-system")
        is_shown = value is not None and tier_of(value) in (Tier.AFFIRMING, Tier.WARNING)
        return self.reference if is_shown else None


class _Result(Struct, frozen=True):
    submods: dict[str, _Claims]


_RESULT: Final = msgspec.json.Decoder(_Result)
_NEWEST: Final = (
    "SELECT a.claims, coalesce(s.issued_ms, a.issued_ms) AS asked_ms FROM appraisals a"
    " LEFT JOIN sessions s ON s.id = a.session_id WHERE a.node_id = ? AND a.public = 1 ORDER BY a.seq DESC LIMIT 1"
)
"""The newest result of a node, and when its session was issued."""


@dataclass(frozen=True)
class ShownRevision:
    """The revision of a model whose files evidence lists."""

    digest: str
    asked: str | None
    """The revision that the session's challenges were for, if it had any."""


def compared_with(claims: str) -> dict[str, str]:
    """Give the digest of the reference value that a result names, by submodule."""
    found = {name: each.reference for name, each in _RESULT.decode(claims).submods.items()}
    return {name: reference for name, reference in found.items() if reference is not None}


async def of_node(tx: Tx, node_id: str, models: Collection[str]) -> dict[str, str]:
    """
    Give the digest of the revision that a node has, by model.

    It is what it has said, or what its newest result shows, whichever is newer; a model without either is left out.
    """
    rows = {
        row["model"]: row
        for row in await tx.all("SELECT model, digest, at_ms FROM node_revisions WHERE node_id = ?", node_id)
    }
    newest = await tx.one(_NEWEST, node_id)
    submods = {} if newest is None else _RESULT.decode(newest["claims"]).submods
    found = {}
    for model in models:
        row, submod = rows.get(model), submods.get(model_submod(model))
        shown = None if submod is None else submod.shown
        # What was said counts until evidence of a later session shows another one.
        if row is not None and (shown is None or newest is None or row["at_ms"] > newest["asked_ms"]):
            shown = row["digest"]
        if shown is not None:
            found[model] = str(shown)
    return found


async def say(tx: Tx, node_id: str, said: Mapping[str, str], now_ms: int) -> None:
    """
    Take in which revisions a node says it has.  The same again changes nothing.

    If it says another one than before, its results for that one are revoked, and it is called soon.

    Args:
        said: The digest by model.

    Raises:
        RequestError: It has said too many others within the hour.
    """
    before = await of_node(tx, node_id, said)
    newest = await tx.one(_NEWEST, node_id)
    compared = {} if newest is None else compared_with(newest["claims"])
    for model, digest in said.items():
        has_changed = before.get(model, digest) != digest
        count = await _count(tx, node_id, model, now_ms) if has_changed else None
        if count is not None and count.changes > _MAX_CHANGES:
            raise RequestError(
                f"the node has said another revision of {model} {_MAX_CHANGES} times within an hour",
                code="request.too-often",
                retry_after=(count.since_ms + _HOUR_MS - now_ms) // 1000 + 1,
            )
        await _keep(tx, node_id, model, digest, now_ms, said=True, count=count)
        if has_changed:
            await _announce(tx, node_id, model, digest, now_ms)
    await sessions.end_for_others(tx, node_id, said, now_ms)
    if any(compared.get(model_submod(model), digest) != digest for model, digest in said.items()):
        # No router may send work for a revision that is being replaced.
        await revocations.revoke_results(tx, node_id, now_ms, "another-revision")


async def take_shown(
    tx: Tx, node_id: str, shown: Mapping[str, ShownRevision], issued_ms: int, now_ms: int
) -> bool:
    """
    Take in which revisions the evidence of a node shows.

    If its challenges were for another one, the node is called soon with challenges for this one.

    Args:
        issued_ms: When the session of the evidence was issued.

    Returns:
        Whether the node has said, since the session was issued, that it has another revision by now.
    """
    is_replaced = False
    rows = await tx.all("SELECT * FROM node_revisions WHERE node_id = ?", node_id)
    known: dict[str, Row] = {row["model"]: row for row in rows}
    for model, revision in shown.items():
        row = known.get(model)
        if row is not None and row["digest"] == revision.digest:
            continue
        if row is not None and row["at_ms"] > issued_ms:
            is_replaced = True
            continue
        has_changed = revision.asked not in (None, revision.digest)
        count = await _count(tx, node_id, model, now_ms) if has_changed else None
        await _keep(tx, node_id, model, revision.digest, issued_ms, said=False, count=count)
        if count is not None and count.changes <= _MAX_CHANGES:
            await _announce(tx, node_id, model, revision.digest, now_ms)
    return is_replaced


@dataclass(frozen=True)
class _Count:
    since_ms: int
    changes: int


async def _count(tx: Tx, node_id: str, model: str, now_ms: int) -> _Count:
    """How many changes there are within the hour, with one of now."""
    row = await tx.one(
        "SELECT since_ms, changes FROM node_revisions WHERE node_id = ? AND model = ?", node_id, model
    )
    # What is from ahead of now is from before the clock was set back.
    if row is None or not now_ms - _HOUR_MS < row["since_ms"] <= now_ms:
        return _Count(now_ms, 1)
    return _Count(row["since_ms"], row["changes"] + 1)


async def _keep(
    tx: Tx, node_id: str, model: str, digest: str, at_ms: int, *, said: bool, count: _Count | None
) -> None:
    since_ms, changes = (0, 0) if count is None else (count.since_ms, count.changes)
    counted = "" if count is None else ", since_ms = excluded.since_ms, changes = excluded.changes"
    await tx.execute(
        "INSERT INTO node_revisions (node_id, model, digest, at_ms, said, since_ms, changes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node_id, model) DO UPDATE SET"
        f" digest = excluded.digest, at_ms = excluded.at_ms, said = excluded.said{counted}",
        node_id,
        model,
        digest,
        at_ms,
        int(said),
        since_ms,
        changes,
    )


async def _announce(tx: Tx, node_id: str, model: str, digest: str, now_ms: int) -> None:
    """Tell the replica that calls nodes."""
    await events.append(tx, now_ms, events.MOVED, {"node": node_id, "model": model, "digest": digest})


@dataclass(frozen=True, kw_only=True)
class FleetNode:
    """Where a node is in a roll-out of a model."""

    id: str
    has_result: bool
    """Whether it ever had a result that says something of the model."""
    attested: str | None
    """The revision that its newest result was compared with; `None` if its files are not those of it."""
    said: str | None
    """The revision that it has said since; `None` if it has said none."""
    held: str | None
    """The revision that it has, as far as is known."""


_FLEET: Final = (
    "SELECT n.id, n.models, a.claims, coalesce(s.issued_ms, a.issued_ms) AS asked_ms, r.digest, r.said, r.at_ms"
    " FROM nodes n LEFT JOIN appraisals a"
    " ON a.seq = (SELECT max(b.seq) FROM appraisals b WHERE b.node_id = n.id AND b.public = 1)"
    " LEFT JOIN sessions s ON s.id = a.session_id"
    " LEFT JOIN node_revisions r ON r.node_id = n.id AND r.model = ?"
    " WHERE n.state <> 'retired' AND n.id > ? ORDER BY n.id LIMIT ?"
)


async def fleet(tx: Tx, model: str) -> list[FleetNode]:
    """Give every node that is enrolled with a model and not retired."""
    found: list[FleetNode] = []
    after = ""
    while rows := await tx.all(_FLEET, model, after, _PAGE):
        after = rows[-1]["id"]
        found += (
            _fleet_node(row, model)
            for row in rows
            if model in msgspec.json.decode(row["models"], type=tuple[str, ...])
        )
    return found


def _fleet_node(row: Row, model: str) -> FleetNode:
    submods = {} if row["claims"] is None else _RESULT.decode(row["claims"]).submods
    submod = submods.get(model_submod(model))
    attested = None if submod is None else submod.shown
    is_newer = row["digest"] is not None and (row["asked_ms"] is None or row["at_ms"] > row["asked_ms"])
    return FleetNode(
        id=row["id"],
        has_result=submod is not None and submod.reference is not None,
        attested=attested,
        said=row["digest"] if is_newer and row["said"] else None,
        held=row["digest"] if is_newer or attested is None else attested,
    )
