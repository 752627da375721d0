"""Reports of routers: each is taken once, into the incident that it makes or counts into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.errors import RequestError
from verifier.incidents import report_draft
from verifier.schemes.context import Node
from verifier.store import incidents
from verifier.store.database import Row, Tx

_MAX_WITH_EVIDENCE: Final = 32
"""Of so many reports of one incident, the newest, the evidence is stored: a router may report for days."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report of what a router itself has seen or metered."""

    node: Node
    kind: str
    detail: str
    reporter: str
    """The name of the router that reports."""
    id: str | None = None
    """The router's id for it.  A report with an id that was taken already counts nothing."""
    evidence: str | None = None
    """JSON."""


async def take_report(tx: Tx, report: Report, now_ms: int) -> Row:
    """
    Take a report into the incident that it makes or counts into.

    Returns:
        That incident.

    Raises:
        RequestError: A router may not report this kind, or another report has the same id.
    """
    draft = report_draft(report.kind, report.detail)
    stored = await tx.one(
        "INSERT INTO incident_reports (report, at_ms, evidence) VALUES (?, ?, ?)"
        " ON CONFLICT (report) DO NOTHING RETURNING seq",
        report.id,
        now_ms,
        report.evidence,
    )
    if stored is None:
        return await _incident_of_first(tx, report)
    incident_id = await incidents.take_report(tx, draft, report.node.id, report.reporter, now_ms)
    await tx.execute("UPDATE incident_reports SET incident_id = ? WHERE seq = ?", incident_id, stored["seq"])
    await _delete_old_evidence(tx, incident_id)
    return await incidents.get(tx, incident_id)


async def _incident_of_first(tx: Tx, report: Report) -> Row:
    """Give the incident that a report went into when it first came."""
    first = await tx.one("SELECT incident_id FROM incident_reports WHERE report = ?", report.id)
    assert first is not None
    incident = await incidents.get(tx, first["incident_id"])
    if (incident["node_id"], incident["kind"]) != (report.node.id, report.kind):
        raise RequestError(
            "an earlier report about another node or kind has this id", code="incident.report-reused"
        )
    return incident


async def _delete_old_evidence(tx: Tx, incident_id: str) -> None:
    await tx.execute(
        "UPDATE incident_reports SET evidence = NULL WHERE incident_id = ? AND seq <= ("
        "  SELECT seq FROM incident_reports WHERE incident_id = ? AND evidence IS NOT NULL"
        "  ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        incident_id,
        incident_id,
        _MAX_WITH_EVIDENCE,
    )
    # A report without an id and without evidence says no more than the count.
    await tx.execute(
        "DELETE FROM incident_reports WHERE incident_id = ? AND report IS NULL AND evidence IS NULL",
        incident_id,
    )


async def of_incident(tx: Tx, incident_id: str) -> list[dict[str, Any]]:
    """Give the reports of an incident that have evidence, the oldest first."""
    rows = await tx.all(
        "SELECT report, at_ms, evidence FROM incident_reports"
        " WHERE incident_id = ? AND evidence IS NOT NULL ORDER BY seq",
        incident_id,
    )
    return [{**row, "evidence": msgspec.json.decode(row["evidence"])} for row in rows]
