"""What the database holds of a node: for its appraisal, against it when its result is inserted, and for its next session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from verifier.appraisal import NodeSnapshot
from verifier.results import NodeRecord
from verifier.schemes.context import Node, WalkRecord
from verifier.store import nodes, walks
from verifier.store.database import Row, Tx
from verifier.store.incident_facts import HOLDING_SQL
from verifier.store.sequence import ABOVE_SQL, next_sequence, number_above

HISTORY_LENGTH: Final = 16
"""Walks of each kind that an appraisal looks at."""

_HELD_START: Final = (
    "SELECT n.operator, n.models, n.enrolled_ms, n.state, n.hardware_class, k.key,"
    " (SELECT e.node_id FROM endpoints e WHERE e.pin = ?) AS owner,"
    " (SELECT CASE count(*) WHEN 1 THEN max(e.pin) END FROM endpoints e WHERE e.node_id = n.id) AS pin,"
    " (SELECT count(*) FROM devices d WHERE d.node_id = n.id) AS devices,"
    f" (SELECT i.id FROM incidents i WHERE i.node_id = n.id AND i.state IN ({HOLDING_SQL})"
    f"  ORDER BY i.opened_ms LIMIT 1) AS held_by, {ABOVE_SQL}"
)
_HELD_END: Final = " FROM nodes n JOIN node_keys k ON k.node_id = n.id AND k.current = 1 WHERE n.id = ?"


@lru_cache(maxsize=64)
def _held_sql(models: int) -> str:
    """A node as it is now, who holds a TLS key, what holds the node, and the newest walks of so many models."""
    newest = "".join(f", ({walks.NEWEST_SQL}) AS newest_{number}" for number in range(models))
    return f"{_HELD_START}{newest}{_HELD_END}"


class StaleError(Exception):
    """What an appraisal rests on has changed since.  The evidence must be appraised again."""


class HeldNow(Struct, frozen=True, kw_only=True):
    """What the database holds of a node at the moment that its result is inserted."""

    snapshot: NodeSnapshot
    sequence: int
    """The number of its next result (`verifier.store.sequence`)."""
    pin: str | None = None
    """The pin that it serves with, if it holds exactly one."""
    devices: int = 0
    """How many devices it holds."""


class SeenNode(Struct, frozen=True):
    """
    What was read of a node for an appraisal.

    The transaction of the result gives `StaleError` if it does not hold any more, whoever has changed it.
    """

    node: Node
    walks: Mapping[str, tuple[WalkRecord, ...]]
    """By model, as `verifier.store.walks.history` gives them."""
    newest: Mapping[str, int]
    """By model, the number of its newest walk."""
    is_remembered: bool = False
    """Whether an earlier appraisal has read it."""

    def after(self, kept: Mapping[str, tuple[int, WalkRecord]]) -> SeenNode:
        """What is to be seen of the node after some more walks were kept, each with its number."""
        added = {
            model: walks.extend(self.walks[model], record, HISTORY_LENGTH)
            for model, (_, record) in kept.items()
            if model in self.walks
        }
        newest = {model: kept[model][0] for model in added}
        return replace(
            self, walks={**self.walks, **added}, newest={**self.newest, **newest}, is_remembered=True
        )


async def see(tx: Tx, node: Node, models: Iterable[str], seen: SeenNode | None = None) -> SeenNode:
    """
    Read the walks of a node for some models.

    Args:
        seen: What was read of the node before.
    """
    seen = seen or SeenNode(node, {}, {})
    for model in models:
        if model not in seen.walks:
            found, newest = await walks.history_and_newest(tx, node.id, model, HISTORY_LENGTH)
            seen = replace(seen, walks={**seen.walks, model: found}, newest={**seen.newest, model: newest})
    return seen


async def held_now(
    tx: Tx, node: Node, pin: str | None, devices: Sequence[str], seen: SeenNode | None = None
) -> HeldNow:
    """
    Give what the database holds of a node and against it now, which may differ from when its appraisal began.

    Args:
        seen: What the appraisal rests on.

    Raises:
        StaleError: That does not hold any more.
    """
    newest = {} if seen is None else seen.newest
    models = chain.from_iterable(map(walks.newest_of, newest))
    row = await tx.one(_held_sql(len(newest)), pin or "", *models, node.id)
    if seen is not None:
        _check(seen, row)
    if row is None:
        return HeldNow(snapshot=NodeSnapshot(retired=True), sequence=await next_sequence(tx, node.id))
    snapshot = NodeSnapshot(
        quarantined_by=row["held_by"],
        endpoint_taken=row["owner"] not in (None, node.id),
        devices_taken=await _devices_of_others(tx, devices, node.id),
        retired=row["state"] == "retired" or nodes.read_key(row["key"]) != node.key,
        node=NodeRecord(row["operator"], row["enrolled_ms"] // 1000, row["state"], row["hardware_class"]),
    )
    return HeldNow(snapshot=snapshot, sequence=number_above(row), pin=row["pin"], devices=row["devices"])


async def check(tx: Tx, node: Node) -> None:
    """Check that a node is as it was when it was seen.  Raises `StaleError`."""
    if await nodes.by_id(tx, node.id) != node:
        raise StaleError


def _check(seen: SeenNode, row: Row | None) -> None:
    node = seen.node
    # What a change within this appraisal means for its result, the snapshot says.
    if seen.is_remembered and (
        row is None
        or row["state"] != node.state
        or row["operator"] != node.operator
        or row["hardware_class"] != node.hardware_class
        or row["enrolled_ms"] != node.enrolled_ms
        or nodes.read_key(row["key"]) != node.key
        or msgspec.json.decode(row["models"], type=tuple[str, ...]) != node.models
    ):
        raise StaleError
    if row is not None and any(
        row[f"newest_{number}"] != newest for number, newest in enumerate(seen.newest.values())
    ):
        raise StaleError


async def _devices_of_others(tx: Tx, devices: Sequence[str], node_id: str) -> frozenset[str]:
    """Give those of *devices* that another live node declared first."""
    found = set()
    for device in devices:
        row = await tx.one("SELECT node_id FROM devices WHERE device = ?", device)
        if row is not None and row["node_id"] != node_id:
            found.add(device)
    return frozenset(found)
