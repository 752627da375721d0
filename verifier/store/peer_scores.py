"""
Scores that nodes gave to answers of other operators' nodes, as routers report them (`verifier.answers.peering`).

Each counts for both nodes, in two roles, and nothing but a review follows: nobody goes to a lower lane, and no incident
is made, for either of the two may be the one.  A reviewer sees which of them stands against many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.answers import peering, sequence, tables
from verifier.answers.peering import PeerReport
from verifier.errors import RequestError
from verifier.store.database import Tx
from verifier.store.early import CLOCKS_MS

ANSWERED: Final = "answered"
SCORED: Final = "scored"
_HOUR_MS: Final = 3600 * 1000
_SHOWN: Final = 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one router may report within an hour."""

    per_hour: int
    """Scores of all nodes."""
    per_node_hour: int
    """Scores of one node's answers, and scores by one node."""


@dataclass(frozen=True)
class _Counted:
    """A score, as it is counted for either node."""

    model: str
    is_above: bool
    step: float
    """Of the sequential test, nat."""
    boundary: float


async def reported_before(tx: Tx, report_id: str, router: str, given: bytes) -> bool:
    """
    Whether the same was reported before.

    Args:
        given: SHA-256 of what was sent.

    Raises:
        RequestError: Something else was reported by this id.
    """
    row = await tx.one("SELECT router, given FROM peer_reports WHERE id = ?", report_id)
    if row is None:
        return False
    if row["router"] != router or bytes(row["given"]) != given:
        raise RequestError("the score was reported with other bytes", code="answers.check.reused")
    return True


async def check_room(tx: Tx, report: PeerReport, router: str, limits: Limits, now_ms: int) -> None:
    """Raise `RequestError` if the router has reported what it may within an hour."""
    # What is from further ahead is from before the clock was set back.
    since, until = now_ms - _HOUR_MS, now_ms + CLOCKS_MS
    counted = "SELECT count(*) AS n, min(at_ms) AS oldest FROM peer_reports WHERE"
    within = "router = ? AND at_ms > ? AND at_ms <= ?"
    for row, most in (
        (await tx.one(f"{counted} {within}", router, since, until), limits.per_hour),
        (
            await tx.one(f"{counted} node_id = ? AND {within}", report.node, router, since, until),
            limits.per_node_hour,
        ),
        (
            await tx.one(f"{counted} by_id = ? AND {within}", report.by, router, since, until),
            limits.per_node_hour,
        ),
    ):
        assert row is not None
        if row["n"] >= most:
            raise RequestError(
                f"a router may report {most} such scores an hour",
                code="challenges.quota",
                retry_after=(row["oldest"] + _HOUR_MS - now_ms) // 1000 + 1,
            )


async def take(
    tx: Tx, report: PeerReport, router: str, given: bytes, boundary: float, limit: float, now_ms: int
) -> list[str]:
    """
    Keep a score, and count it for both nodes.

    Args:
        boundary: The score of the sequential test at which a review opens.
        limit: The mean gap above which a score speaks against one of the two.

    Returns:
        The nodes whose review has opened by it.
    """
    is_above = peering.is_above(report, limit)
    await tx.execute(
        "INSERT INTO peer_reports (id, router, node_id, by_id, model, at_ms, given, is_above, tokens, mean_nll,"
        " mean_gap, largest_gap, disagreements) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        report.id, router, report.node, report.by, report.model, now_ms, given, int(is_above), report.tokens,
        report.mean_nll, report.mean_gap, report.largest_gap, report.disagreements,
    )  # fmt: skip
    steps = sequence.increments(tables.PEER_RATES)
    counted = _Counted(report.model, is_above, steps.differs if is_above else steps.agrees, boundary)
    opened = []
    for node, role in sorted(((report.node, ANSWERED), (report.by, SCORED))):
        if await _count(tx, node, role, counted, now_ms):
            opened.append(node)
    return opened


async def _count(tx: Tx, node: str, role: str, counted: _Counted, now_ms: int) -> bool:
    """Count a score for one node; returns whether its review opens.  Only a person closes it."""
    row = await tx.one(
        "SELECT score, review_ms FROM peer_scores WHERE node_id = ? AND model = ? AND role = ?",
        node,
        counted.model,
        role,
    )
    before, review_ms = (0.0, None) if row is None else (float(row["score"]), row["review_ms"])
    # A policy may have changed: what agrees never raises a score, and what differs never lowers it.
    after = sequence.advance(before, counted.step, max(before, counted.boundary))
    opens = review_ms is None and after >= counted.boundary
    await tx.execute(
        "INSERT INTO peer_scores (node_id, model, role, score, agrees, differs, first_ms, last_ms, review_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node_id, model, role) DO UPDATE SET"
        " score = excluded.score, agrees = peer_scores.agrees + excluded.agrees,"
        " differs = peer_scores.differs + excluded.differs, last_ms = excluded.last_ms,"
        " review_ms = excluded.review_ms",
        node, counted.model, role, after, int(not counted.is_above), int(counted.is_above), now_ms, now_ms,
        now_ms if opens else review_ms,
    )  # fmt: skip
    return opens


async def reviews(tx: Tx, limit: int = 500) -> list[dict[str, Any]]:
    """Give the nodes, with their roles, that a person should look at; the longest waiting first."""
    rows = await tx.all(
        "SELECT * FROM peer_scores WHERE review_ms IS NOT NULL ORDER BY review_ms, node_id, model, role LIMIT ?",
        limit,
    )
    return [_shown(dict(row)) for row in rows]


async def of_node(tx: Tx, node_id: str) -> dict[str, Any]:
    """Give what was counted for a node, and the newest scores of its answers and by it, in numbers."""
    counted = await tx.all("SELECT * FROM peer_scores WHERE node_id = ? ORDER BY model, role", node_id)
    columns = "id, router, node_id, by_id, model, at_ms, is_above, tokens, mean_nll, mean_gap, largest_gap, disagreements"
    found = {
        role: await tx.all(
            f"SELECT {columns} FROM peer_reports WHERE {column} = ? ORDER BY at_ms DESC, id LIMIT ?",
            node_id,
            _SHOWN,
        )
        for role, column in ((ANSWERED, "node_id"), (SCORED, "by_id"))
    }
    return {
        "scores": [_shown(dict(row)) for row in counted],
        **{role: [_report(dict(row)) for row in rows] for role, rows in found.items()},
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    found = {"node": row.pop("node_id"), **row}
    return {**found, "score": round(row["score"], 3)}


def _report(row: dict[str, Any]) -> dict[str, Any]:
    return {"node": row.pop("node_id"), "by": row.pop("by_id"), **row, "is_above": bool(row["is_above"])}


async def clear(tx: Tx, node_id: str, model: str) -> bool:
    """Close the review of a node: its scores begin at 0 again.  Returns whether there is anything of it."""
    changed = await tx.execute(
        "UPDATE peer_scores SET score = 0, review_ms = NULL WHERE node_id = ? AND model = ?", node_id, model
    )
    return changed > 0


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest reports that came before *before_ms*; what was counted stays."""
    rows = await tx.all(
        "SELECT id FROM peer_reports WHERE at_ms < ? ORDER BY at_ms LIMIT ?", before_ms, limit
    )
    for row in rows:
        await tx.execute("DELETE FROM peer_reports WHERE id = ?", row["id"])
    return len(rows)
