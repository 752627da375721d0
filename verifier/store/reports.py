"""What routers report: each under its id once, into the incident that it makes or counts into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.errors import RequestError
from verifier.incidents import REPORTABLE, SEVERITY, Draft
from verifier.schemes.context import Node
from verifier.schemes.findings import Finding
from verifier.store import incidents
from verifier.store.database import Row, Tx

_EVIDENCE_KEPT: Final = 32
"""Reports of one incident whose evidence is kept, the newest: a router may go on reporting for days."""


@dataclass(frozen=True)
class Report:
    """What a router has seen and metered itself."""

    node: Node
    kind: str
    detail: str
    id: str | None = None
    """The router's name for it: sent again, it counts nothing."""
    evidence: str | None = None
    """JSON."""


async def take(tx: Tx, report: Report, now_ms: int) -> Row:
    """
    Take a report into the incident that it makes or counts into; returns that.

    Raises:
        RequestError: not a kind that a router may report, or an id that another report has.
    """
    if report.kind not in REPORTABLE:
        raise RequestError(f"a router reports {', '.join(sorted(REPORTABLE))}, not {report.kind[:60]!r}")
    kept = await tx.one(
        "INSERT INTO incident_reports (report, at_ms, evidence) VALUES (?, ?, ?)"
        " ON CONFLICT (report) DO NOTHING RETURNING seq",
        report.id,
        now_ms,
        report.evidence,
    )
    if kept is None:
        return await _taken_before(tx, report)
    finding = Finding(f"router.{report.kind}", report.detail)
    draft = Draft(report.kind, SEVERITY[report.kind], finding, None)
    incident_id = await incidents.take_in(tx, draft, report.node, None, now_ms)
    await tx.execute("UPDATE incident_reports SET incident_id = ? WHERE seq = ?", incident_id, kept["seq"])
    await _trim(tx, incident_id)
    return await incidents.get(tx, incident_id)


async def _taken_before(tx: Tx, report: Report) -> Row:
    """The incident that it went into when it first came."""
    first = await tx.one("SELECT incident_id FROM incident_reports WHERE report = ?", report.id)
    assert first is not None
    incident = await incidents.get(tx, first["incident_id"])
    if (incident["node_id"], incident["kind"]) != (report.node.id, report.kind):
        raise RequestError(
            "an earlier report about another node or kind has this id", code="incident.report-reused"
        )
    return incident


async def _trim(tx: Tx, incident_id: str) -> None:
    await tx.execute(
        "UPDATE incident_reports SET evidence = NULL WHERE incident_id = ? AND seq <= ("
        "  SELECT seq FROM incident_reports WHERE incident_id = ? AND evidence IS NOT NULL"
        "  ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        incident_id,
        incident_id,
        _EVIDENCE_KEPT,
    )
    # What has neither an id nor evidence says nothing that the count does not.
    await tx.execute(
        "DELETE FROM incident_reports WHERE incident_id = ? AND report IS NULL AND evidence IS NULL",
        incident_id,
    )


async def of_incident(tx: Tx, incident_id: str) -> list[dict[str, Any]]:
    """What routers gave with their reports of an incident, oldest first."""
    rows = await tx.all(
        "SELECT report, at_ms, evidence FROM incident_reports"
        " WHERE incident_id = ? AND evidence IS NOT NULL ORDER BY seq",
        incident_id,
    )
    return [{**row, "evidence": msgspec.json.decode(row["evidence"])} for row in rows]
