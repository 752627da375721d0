"""Emergency blocks: what is blocked, by whom and why, and which nodes a block hits."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from verifier.errors import RequestError
from verifier.schemes import blocking
from verifier.schemes.context import Blocks
from verifier.store import policies
from verifier.store.database import Database, Row, Tx
from verifier.store.policies import ChangeAuthor
from verifier.trust import Tier

_PAGE: Final = 256
_NAMED_ENGINES: Final = 5

_EVERY: Final = (
    "SELECT b.id, b.kind, b.value, b.added_ms, b.lifted_ms, c.actor, c.reason, l.actor AS lifted_by,"
    " l.reason AS lifted_reason FROM blocks b"
    " LEFT JOIN changes c ON c.subject = b.id AND c.action = 'block'"
    " LEFT JOIN changes l ON l.subject = b.id AND l.action = 'unblock'"
)
_NEWEST: Final = (
    "SELECT n.id, a.status, a.claims, a.expires_ms, a.revoked_ms, r.input, r.evidence FROM nodes n"
    " JOIN appraisals a ON a.seq ="
    " (SELECT max(b.seq) FROM appraisals b WHERE b.node_id = n.id AND b.public = 1)"
    " LEFT JOIN recordings r ON r.appraisal_id = a.origin"
    " WHERE n.id > ? AND n.state != 'retired' ORDER BY n.id LIMIT ?"
)
"""The newest public result of each node that is not retired, with what its evidence said."""


@dataclass
class Hits:
    """The nodes that a block hits, by what their newest evidence says."""

    live: int = 0
    """How many of them have a live result: one that routers may go by."""
    affirming: int = 0
    """How many of these results are affirming: 0 as soon as the block has taken effect."""
    idle: int = 0
    """How many of them have no live result now."""

    @property
    def nodes(self) -> int:
        """How many nodes."""
        return self.live + self.idle


@dataclass
class Fleet:
    """What a look at the newest result of every node has found."""

    hits: dict[tuple[str, str], Hits]
    """By kind and value of each block that was asked about."""
    engines: Counter[str] = field(default_factory=Counter)
    """How many nodes run each ``ENGINE@VERSION``."""

    def hint(self, kind: str) -> str:
        """What else could have been meant, as a sentence that begins with a space; empty if nothing is known."""
        if kind != "engine-version" or not self.engines:
            return ""
        most = [f"{name} ({count})" for name, count in self.engines.most_common(_NAMED_ENGINES)]
        more = ", …" if len(self.engines) > _NAMED_ENGINES else ""
        return f" The fleet runs {', '.join(most)}{more}."


class _Runtime(msgspec.Struct, frozen=True):
    engine: str
    version: str


class _Facts(msgspec.Struct, frozen=True):
    runtime: _Runtime | None = None


class _Input(msgspec.Struct, frozen=True):
    checked: dict[str, _Facts]


class _Inventory(msgspec.Struct, frozen=True):
    uuid: str


class _AttesterClaims(msgspec.Struct, frozen=True):
    inventory: _Inventory | None = None


class _Reason(msgspec.Struct, frozen=True):
    code: str
    detail: str


class _VerifierClaims(msgspec.Struct, frozen=True):
    reference: str | None = None
    reasons: tuple[_Reason, ...] = ()

    def names(self, digest: str) -> bool:
        """Whether the files were those of a reference value: the one in force, or one that it has replaced."""
        return self.reference == digest or any(
            reason.code == "weights.reference.superseded" and digest in reason.detail
            for reason in self.reasons
        )


class _Appraised(msgspec.Struct, frozen=True):
    ear_attester_claims: _AttesterClaims = _AttesterClaims()
    ear_verifier_claims: _VerifierClaims = _VerifierClaims()


class _Claims(msgspec.Struct, frozen=True):
    submods: dict[str, _Appraised]


@dataclass(frozen=True)
class _Shown:
    """What a node has shown of all that can be blocked."""

    engine: tuple[str, str] | None
    devices: frozenset[str]
    verdicts: tuple[_VerifierClaims, ...]
    evidence: bytes

    def falls_under(self, kind: str, value: str) -> bool:
        match kind:
            case "engine-version":
                return self.engine is not None and blocking.matches_engine(value, *self.engine)
            case "device":
                return any(blocking.find_device((value,), uuid) is not None for uuid in self.devices)
            case _:
                # A manifest has digests as bytes, and nothing else in evidence can have these 32 by chance.
                return (
                    any(each.names(value) for each in self.verdicts) or bytes.fromhex(value) in self.evidence
                )


async def in_force(tx: Tx) -> Blocks:
    """Give what is blocked now."""
    found: dict[str, set[str]] = {kind: set() for kind in blocking.KINDS}
    for row in await tx.all("SELECT kind, value FROM blocks WHERE lifted_ms IS NULL"):
        found[row["kind"]].add(row["value"])
    return Blocks(*(frozenset(found[kind]) for kind in blocking.KINDS))


async def live(tx: Tx) -> list[Row]:
    """Give the blocks in force, with who made them and why."""
    return await tx.all(f"{_EVERY} WHERE b.lifted_ms IS NULL ORDER BY b.id")


async def every(tx: Tx) -> list[Row]:
    """Give all blocks, those that were lifted too, with who made and lifted them and why."""
    return await tx.all(f"{_EVERY} ORDER BY b.id")


async def block(tx: Tx, kind: str, value: str, author: ChangeAuthor, now_ms: int) -> str:
    """
    Block what `verifier.schemes.blocking` says.

    Returns:
        The id of the block; the old one if the same thing is blocked already.

    Raises:
        RequestError: The value does not have the form of its kind.
    """
    value = blocking.normalise(kind, value)
    known = await find(tx, kind, value)
    if known is not None:
        return known
    block_id = f"{now_ms:012x}{secrets.token_hex(4)}"
    await tx.execute(
        "INSERT INTO blocks (id, kind, value, added_ms) VALUES (?, ?, ?, ?)", block_id, kind, value, now_ms
    )
    await policies.note(tx, "block", block_id, author, now_ms, {"kind": kind, "value": value}, decides=True)
    return block_id


async def find(tx: Tx, kind: str, value: str) -> str | None:
    """
    Give the id of the block in force of this kind and value.

    A block that an older version stored has capital letters as they were typed: it is found all the same.
    """
    rows = await tx.all("SELECT id, value FROM blocks WHERE kind = ? AND lifted_ms IS NULL", kind)
    form = blocking.normalise(kind, value)
    return next((str(row["id"]) for row in rows if str(row["value"]).casefold() == form), None)


async def lift(tx: Tx, block_id: str, author: ChangeAuthor, now_ms: int) -> None:
    """
    Lift a block.

    Raises:
        RequestError: There is no such block, or it is lifted already.
    """
    row = await tx.one(
        "UPDATE blocks SET lifted_ms = ? WHERE id = ? AND lifted_ms IS NULL RETURNING kind, value",
        now_ms,
        block_id,
    )
    if row is None:
        raise RequestError(
            f"there is no block {block_id[:40]!r} that can be lifted", code="request.not-found"
        )
    await policies.note(tx, "unblock", block_id, author, now_ms, dict(row), decides=True)


def check_hits(kind: str, value: str, fleet: Fleet) -> None:
    """
    Check that a block hits a node.

    Raises:
        RequestError: It hits none: the value may be misspelt.
    """
    if not fleet.hits[kind, value].nodes:
        raise RequestError(
            f"no node has shown what {kind} {value!r} would block, so nothing was blocked.{fleet.hint(kind)}"
            " To block it all the same, say so (--anyway, or anyway: true)",
            code="policy.block.misses",
        )


async def look(db: Database, blocks: Sequence[tuple[str, str]], now_ms: int) -> Fleet:
    """
    Look which nodes blocks hit: each node's newest result is read once, in pages, beside other work.

    Args:
        blocks: Kind and value, in the stored form.
    """
    fleet = Fleet({each: Hits() for each in blocks})
    after = ""
    while True:
        async with db.scan() as tx:
            rows = await tx.all(_NEWEST, after, _PAGE)
        for row in rows:
            _count(fleet, row, now_ms)
        if len(rows) < _PAGE:
            return fleet
        after = rows[-1]["id"]


def _count(fleet: Fleet, row: Row, now_ms: int) -> None:
    claims = msgspec.json.decode(row["claims"], type=_Claims)
    shown = _shown_by(row, claims.submods)
    if shown.engine is not None:
        fleet.engines["@".join(shown.engine)] += 1
    is_live = row["revoked_ms"] is None and row["expires_ms"] > now_ms
    for (kind, value), hits in fleet.hits.items():
        if not shown.falls_under(kind, value):
            continue
        if is_live:
            hits.live += 1
            hits.affirming += row["status"] == Tier.AFFIRMING
        else:
            hits.idle += 1


def _shown_by(row: Row, submods: Mapping[str, _Appraised]) -> _Shown:
    inventories = [each.ear_attester_claims.inventory for each in submods.values()]
    return _Shown(
        engine=engine_of(row["input"]) if row["input"] else None,
        devices=frozenset(each.uuid for each in inventories if each is not None),
        verdicts=tuple(each.ear_verifier_claims for each in submods.values()),
        evidence=b"" if row["evidence"] is None else bytes(row["evidence"]),
    )


def engine_of(policy_input: bytes | str) -> tuple[str, str] | None:
    """Give the engine and its version that a policy's input names; `None` if it names none."""
    facts = msgspec.json.decode(policy_input, type=_Input).checked.values()
    runtime = next((each.runtime for each in facts if each.runtime is not None), None)
    return None if runtime is None else (runtime.engine, runtime.version)


def to_wire(row: Row, hits: Hits) -> dict[str, Any]:
    """A block as JSON, with the nodes that it hits now."""
    return {
        **{name: row[name] for name in ("id", "kind", "value", "actor", "reason")},
        "since": row["added_ms"] // 1000,
        "lifted": None if row["lifted_ms"] is None else row["lifted_ms"] // 1000,
        "lifted_by": row["lifted_by"],
        "lifted_reason": row["lifted_reason"],
        "hits": hits_to_wire(hits),
    }


def hits_to_wire(hits: Hits) -> dict[str, int]:
    """The nodes that a block hits, as JSON."""
    return {"nodes": hits.nodes, "live_results": hits.live, "affirming": hits.affirming}
