"""
Checks of answers that routers took: each is of one router, one node and one minted answer, and is answered once.

What the router says of the node's answer is the router's word.  So what one router can say is bounded: it takes only so
many checks within an hour, of all nodes and of one (ADR 0056), and what follows from its word names it (ADR 0033).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from verifier.answers import tables
from verifier.errors import RequestError
from verifier.store import answer_pool
from verifier.store.answer_pool import Kept
from verifier.store.database import Row, Tx
from verifier.store.early import CLOCKS_MS

HOUR_MS: Final = 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one router may take."""

    per_hour: int
    """Checks of all nodes."""
    per_node_hour: int
    """Checks of one node."""
    lifetime_ms: int
    """How long a check may be answered."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a router asks for."""

    router: str
    node_id: str
    model: str
    reference: str
    """The digest of the reference value of the revision that the node has."""
    family: str
    """The engine family that the node's newest result declares; empty if that is not known."""
    precision: str | None
    """The precision that it declares (`verifier.answers.tables.PRECISIONS`); `None` if that is not known."""
    count: int
    operation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A check that was taken, with the answer that belongs to it, still sealed."""

    id: str
    kept: Kept


async def take(
    tx: Tx, wanted: Wanted, limits: Limits, now_ms: int, cover: Callable[[Sequence[Kept]], None]
) -> list[Taken]:
    """
    Take checks for a router and a node.

    Args:
        cover: Raises the high-water marks above what is taken.

    Raises:
        RequestError: There are none, or the router has had what it may have within an hour.
    """
    room = await _room(tx, wanted, limits, now_ms)
    taken: list[Taken] = []
    for _ in range(min(wanted.count, room)):
        check_id = secrets.token_hex(16)
        kept = await _take_one(tx, wanted, check_id)
        if kept is None:
            break
        await tx.execute(
            "INSERT INTO answer_checks (id, model, idx, node_id, router, reference, taken_ms, expires_ms, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'open')",
            check_id,
            kept.model,
            kept.index,
            wanted.node_id,
            wanted.router,
            wanted.reference,
            now_ms,
            now_ms + limits.lifetime_ms,
        )
        taken.append(Taken(id=check_id, kept=kept))
    if not taken:
        raise RequestError(
            f"there are no minted answers left for {wanted.model} as the node serves it",
            code="challenges.exhausted",
        )
    cover([each.kept for each in taken])
    return taken


async def _room(tx: Tx, wanted: Wanted, limits: Limits, now_ms: int) -> int:
    """How many the router may take now.  Raises `RequestError` if none."""
    # What is from further ahead is from before the clock was set back.
    since, until = now_ms - HOUR_MS, now_ms + CLOCKS_MS
    of_all = await tx.one(
        "SELECT count(*) AS n, min(taken_ms) AS oldest FROM answer_checks"
        " WHERE router = ? AND taken_ms > ? AND taken_ms <= ?",
        wanted.router,
        since,
        until,
    )
    of_node = await tx.one(
        "SELECT count(*) AS n, min(taken_ms) AS oldest FROM answer_checks"
        " WHERE node_id = ? AND router = ? AND taken_ms > ? AND taken_ms <= ?",
        wanted.node_id,
        wanted.router,
        since,
        until,
    )
    assert of_all is not None
    assert of_node is not None
    for used, limit, whose in (
        (of_all, limits.per_hour, "of all nodes"),
        (of_node, limits.per_node_hour, "of one node"),
    ):
        if used["n"] >= limit:
            raise RequestError(
                f"a router may take {limit} checks of answers an hour {whose}",
                code="challenges.quota",
                retry_after=(used["oldest"] + HOUR_MS - now_ms) // 1000 + 1,
            )
    return min(limits.per_hour - int(of_all["n"]), limits.per_node_hour - int(of_node["n"]))


async def _take_one(tx: Tx, wanted: Wanted, check_id: str) -> Kept | None:
    """
    Take an answer of the node's own engine family, or one that any family gives: one that was not drawn.

    If answers were ever minted in the precision that the node's engine declares, it is asked no others: vectors and
    probabilities of another precision are not its own.
    """
    places = await answer_pool.free_places(tx, wanted.model, wanted.reference)
    own_precision = [row for row in places if tables.precision_of(row["dtype"]) == wanted.precision]
    if wanted.precision is not None and own_precision:
        places = own_precision
    places = [row for row in places if row["free"] > 0 and wanted.operation in (None, row["operation"])]
    own = [row for row in places if row["family"] == wanted.family]
    others = [row for row in places if row["family"] != wanted.family]
    for row in (*_shuffled(own), *_shuffled(others)):
        kept = await answer_pool.take(
            tx, wanted.model, wanted.reference, row, check_id, drawn_too=row["family"] == wanted.family
        )
        if kept is not None:
            return kept
    return None


def _shuffled(rows: Sequence[Row]) -> list[Row]:
    """In a random order, in which places with more answers tend to come first."""
    left, found = list(rows), []
    while left:
        number = secrets.randbelow(sum(row["free"] for row in left))
        place = 0
        while number >= left[place]["free"]:
            number -= left[place]["free"]
            place += 1
        found.append(left.pop(place))
    return found


async def find(tx: Tx, check_id: str, router: str) -> Row:
    """
    Give a check of a router.

    Raises:
        RequestError: There is none: another router's is as if it did not exist.
    """
    row = await tx.one("SELECT * FROM answer_checks WHERE id = ?", check_id)
    if row is None or row["router"] != router:
        raise RequestError("there is no such check of an answer", code="request.not-found")
    return row


def answered_before(row: Row, given: bytes, now_ms: int) -> bool:
    """
    Whether the same was sent before.

    Raises:
        RequestError: Something else was sent before, or the check has expired.
    """
    if row["state"] != "open":
        if bytes(row["given"]) != given:
            raise RequestError("the check has been answered with other bytes", code="answers.check.reused")
        return True
    if now_ms > row["expires_ms"]:
        raise RequestError("the check has expired", code="answers.check.expired")
    return False


async def end(
    tx: Tx,
    row: Row,
    state: str,
    given: bytes,
    now_ms: int,
    *,
    result: str | None = None,
    verdict: str | None = None,
) -> None:
    """End a check, and delete its minted answer: it has no use any more."""
    await tx.execute(
        "UPDATE answer_checks SET state = ?, ended_ms = ?, given = ?, result = ?, verdict = ? WHERE id = ?",
        state,
        now_ms,
        given,
        result,
        verdict,
        row["id"],
    )
    await tx.execute("DELETE FROM minted_answers WHERE model = ? AND idx = ?", row["model"], row["idx"])


async def end_open(tx: Tx, now_ms: int) -> int:
    """End all that are open, without a verdict; gives how many there were."""
    await tx.execute(
        "DELETE FROM minted_answers WHERE check_id IN (SELECT id FROM answer_checks WHERE state = 'open')"
    )
    return await tx.execute(
        "UPDATE answer_checks SET state = 'failed', ended_ms = ?, given = ? WHERE state = 'open'", now_ms, b""
    )


async def per_hour(tx: Tx, now_ms: int, hours: int = 24) -> dict[str, float]:
    """Give how many checks were taken an hour, on average over some hours, by model."""
    rows = await tx.all(
        "SELECT model, count(*) AS n FROM answer_checks WHERE taken_ms > ? GROUP BY model",
        now_ms - hours * HOUR_MS,
    )
    return {row["model"]: row["n"] / hours for row in rows}


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest checks that were taken before *before_ms*, with answers nobody gave."""
    rows = await tx.all(
        "SELECT id, model, idx FROM answer_checks WHERE taken_ms < ? ORDER BY taken_ms LIMIT ?",
        before_ms,
        limit,
    )
    for row in rows:
        await tx.execute("DELETE FROM minted_answers WHERE model = ? AND idx = ?", row["model"], row["idx"])
        await tx.execute("DELETE FROM answer_checks WHERE id = ?", row["id"])
    return len(rows)
