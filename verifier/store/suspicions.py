"""
What follows from verdicts on answers: a suspicion, for which routers prefer other nodes; and an incident, which quarantines.

A suspicion is not an incident.  It is at the policy's boundary (`AnswerBoundaries.suspicion_per_million`), lowers the node's
lane, and is seen by routers and reviewers, not by operators.  At the higher boundary of the policy, or by a person, it becomes
an incident `answer-mismatch`.  What one router's word may cause is bounded as for its reports (docs/adr/0033), and what all
nodes with one revision and engine fail at holds nobody (docs/adr/0014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.answers import sequence, tables
from verifier.answers.judge import PROMPT, prompt_differs
from verifier.answers.judged import Judged
from verifier.answers.speed import PERSISTENT, SPEED, too_fast
from verifier.errors import RequestError
from verifier.incident_transitions import VERIFIER, Open
from verifier.incidents import (
    ANSWER_MISMATCH,
    BLAST_OPERATORS,
    REFERENCE_SUSPECT,
    Disposition,
    Draft,
    Severity,
    State,
    Tally,
    decide_disposition,
)
from verifier.schemes.context import AnswerBoundaries
from verifier.schemes.findings import Finding
from verifier.store import (
    answer_differences,
    answer_drift,
    answer_scores,
    drifting,
    incident_facts,
    incident_transitions,
    incidents,
    peer_scores,
    reviews,
    served_engine,
)
from verifier.store.answer_scores import Counted, Score, Served
from verifier.store.database import Row, Tx
from verifier.store.suspicion_levels import set_level
from verifier.triage import Fault

_MAX_REPORTERS: Final = 3
_BOUNDARIES: Final = AnswerBoundaries()
_DETAIL: Final = "answers differ from those of the published weights, beyond what the policy allows"
"""An operator reads it: it says nothing of what was asked, nor how often."""


@dataclass(frozen=True)
class _Boundaries:
    """The policy's boundaries as scores."""

    suspicion: float
    incident: float | None

    @property
    def highest(self) -> float:
        """No score is higher, so that answers that agree bring it down within bounded time."""
        return self.suspicion if self.incident is None else max(self.suspicion, self.incident)


def _scores(policy: AnswerBoundaries) -> _Boundaries:
    wanted = policy.incident_per_million
    suspicion = sequence.boundary(policy.suspicion_per_million)
    return _Boundaries(suspicion, None if wanted is None else max(suspicion, sequence.boundary(wanted)))


async def take_verdict(
    tx: Tx,
    judged: Judged,
    now_ms: int,
    boundaries: AnswerBoundaries = _BOUNDARIES,
    fastest: float | None = None,
) -> None:
    """
    Take a verdict into the scores of its node and operator, with what follows.

    Args:
        boundaries: Of the policy that judges the node.
        fastest: The most tokens a second that its device can give (`verifier.answers.speed`).
    """
    verdict = judged.verdict
    prompt = prompt_differs(judged.minted, judged.given)
    if verdict.kind == "unusable" and prompt is None:
        return
    engine = "@".join(await served_engine.engine_of(tx, judged.result))
    node = judged.node
    served = Served(
        node_id=node.id, operator=node.operator, model=judged.model, reference=judged.reference, engine=engine
    )
    table = tables.table_for(judged.minted.engine, judged.given.family)
    limits = _scores(boundaries)
    # A prompt rendered otherwise, and engines that nobody has measured, are for a person.
    may_quarantine = prompt is None and tables.is_measured(judged.minted, table)
    counted = Counted(
        kind=verdict.kind,
        rates=tables.rates_for(judged.minted, judged.given, table),
        highest=limits.highest if may_quarantine else limits.suspicion,
        prompt_differs=prompt is not None,
        is_too_fast=(speed := too_fast(judged.minted, judged.given, verdict, fastest)) is not None,
    )
    if verdict.kind == "differs":
        # What it leads to depends on the answers of other nodes.
        await tx.alone()
    code = PROMPT if prompt is not None else verdict.code or ("" if speed is None else SPEED)
    if code:
        await answer_differences.keep(
            tx, judged, engine, code, prompt or verdict.detail or speed or "", now_ms
        )
    await drifting.take(tx, judged, served, table, now_ms)
    score = await answer_scores.count(tx, served, counted, now_ms)
    await _pool(tx, served, counted, limits, now_ms)
    if verdict.kind == "differs" and score.after >= limits.suspicion:
        await _suspect(tx, judged, served, score, limits, now_ms)
    elif score.after <= 0 < score.before:
        await set_level(tx, node.id, judged.model, "none", "its answers agree", VERIFIER, now_ms)


async def _pool(tx: Tx, served: Served, counted: Counted, limits: _Boundaries, now_ms: int) -> None:
    """The nodes of an operator together: no lane follows, a person looks."""
    score = await answer_scores.count_pooled(tx, served, counted)
    is_above = score.after >= limits.suspicion
    if is_above or score.after <= 0 < score.before:
        await tx.execute(
            "UPDATE operator_scores SET suspected_ms = CASE WHEN ? = 0 THEN NULL ELSE coalesce(suspected_ms, ?) END"
            " WHERE operator = ? AND model = ?",
            int(is_above),
            now_ms,
            served.operator,
            served.model,
        )


async def _suspect(
    tx: Tx, judged: Judged, served: Served, score: Score, limits: _Boundaries, now_ms: int
) -> None:
    """The score is at the boundary: of this node alone, or of everybody with its revision and engine."""
    code = judged.verdict.code
    cause = drifting.cause_of(code, served.reference, served.engine)
    known = await incident_facts.read_cause(tx, cause, now_ms)
    if known.review is not None or await drifting.is_suspect(tx, served):
        return
    peers = await answer_scores.peers(tx, served, limits.suspicion)
    passing = set(peers.passing)
    if served.engine == f"{judged.minted.engine.family}@{judged.minted.engine.version}".lower():
        # The verifier's own engine, of the same version, has shown that it can be passed.
        passing.add("")
    tally = Tally(peers.failing, frozenset(passing), peers.first_ms)
    disposition = decide_disposition(tally, served.operator, now_ms)
    many = len(peers.failing | {served.operator}) >= BLAST_OPERATORS
    if disposition is Disposition.REFERENCE_SUSPECT and many:
        await _doubt_reference(tx, served, Finding(code, _doubt(peers.failing)), cause, now_ms)
        return
    await set_level(tx, served.node_id, served.model, "suspected", code, VERIFIER, now_ms)
    if (
        disposition is Disposition.QUARANTINE
        and limits.incident is not None
        and score.after >= limits.incident
    ):
        await _report(tx, served, code, now_ms)


def _doubt(operators: frozenset[str]) -> str:
    return f"answers of nodes of {len(operators)} operators with one engine and revision differ"


async def _doubt_reference(tx: Tx, served: Served, finding: Finding, cause: str, now_ms: int) -> None:
    """Nobody is held or goes to a lower lane for it: a person looks at what was minted."""
    review = Draft(REFERENCE_SUSPECT, Severity.SERIOUS, finding, cause)
    await incident_transitions.apply(tx, [Open(review, State.OPEN)], now_ms)
    nodes = await answer_drift.nodes_of(tx, served.model, served.reference, served.engine)
    await drifting.shield(tx, served.model, nodes, now_ms)


async def _report(tx: Tx, served: Served, code: str, now_ms: int) -> None:
    """Each router whose checks have differed has reported it: by itself, the word of one is doubted as its reports are."""
    row = await tx.one(
        "SELECT min(rose_ms) AS since FROM answer_scores WHERE node_id = ? AND model = ?",
        served.node_id,
        served.model,
    )
    since_ms = now_ms if row is None or row["since"] is None else int(row["since"])
    names = await answer_differences.reporters(tx, served.node_id, served.model, since_ms)
    draft = Draft(ANSWER_MISMATCH, Severity.SERIOUS, Finding(code, f"{served.model}: {_DETAIL}"), None)
    node = await incident_facts.read_node(tx, served.node_id, now_ms)
    resting = {
        cause for incident in node.incidents if incident.kind == ANSWER_MISMATCH for cause in incident.causes
    }
    for name in names[:_MAX_REPORTERS]:
        if f"{code}@reporter:{name}" not in resting:
            await incidents.take_report(tx, draft, served.node_id, name, now_ms)


async def clear(tx: Tx, node_id: str, model: str, actor: str, reason: str, now_ms: int) -> None:
    """
    Take a person's word that nothing is wrong: the score begins at 0 again.

    Raises:
        RequestError: The reason is blank, or no answer of the node with this model was judged.
    """
    _check_reason(reason)
    await reviews.note_answers(tx, node_id, model, Fault.OURS, now_ms)
    others = [await peer_scores.clear(tx, node_id, model), await answer_drift.reset_node(tx, node_id, model)]
    if not any(others):
        await _check_known(tx, node_id, model)
    await answer_scores.reset(tx, node_id, model)
    await set_level(tx, node_id, model, "none", reason, actor, now_ms)


async def quarantine(tx: Tx, node_id: str, model: str, actor: str, reason: str, now_ms: int) -> str:
    """
    Make an incident of what was found, at a person's word; returns its id.

    Raises:
        RequestError: The reason is blank, or no answer of the node with this model differs, nor have they moved.
    """
    _check_reason(reason)
    await tx.alone()
    row = await tx.one(
        "SELECT code FROM answer_differences WHERE node_id = ? AND model = ? ORDER BY at_ms DESC LIMIT 1",
        node_id,
        model,
    )
    code = None if row is None else row["code"]
    if code is None and await answer_drift.waits(tx, node_id, model):
        code = drifting.NODE
    if code is None:
        raise RequestError(
            f"no answer of {node_id[:40]!r} with {model[:80]!r} differs", code="request.not-found"
        )
    node = await incident_facts.read_node(tx, node_id, now_ms)
    known = next(
        (
            each
            for each in node.incidents
            if each.kind == ANSWER_MISMATCH and (each.is_holding or each.state is State.SUSPECTED)
        ),
        None,
    )
    if known is not None and known.is_holding:
        return known.id
    if known is None:
        draft = Draft(ANSWER_MISMATCH, Severity.SERIOUS, Finding(code, f"{model}: {_DETAIL}"), None)
        opened = Open(draft, State.SUSPECTED, node_id, node.operator)
        (incident_id,) = await incident_transitions.apply(tx, [opened], now_ms)
    else:
        incident_id = known.id
    await reviews.note_answers(tx, node_id, model, Fault.NODE, now_ms)
    await incidents.take_step(tx, incident_id, "quarantine", actor, reason, now_ms, two_person=False)
    await set_level(tx, node_id, model, "suspected", reason, actor, now_ms)
    return incident_id


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise RequestError("this needs a reason")


async def _check_known(tx: Tx, node_id: str, model: str) -> None:
    found = await tx.one(
        "SELECT 1 AS one FROM answer_scores WHERE node_id = ? AND model = ? LIMIT 1", node_id, model
    )
    if found is None:
        raise RequestError(
            f"no answer of {node_id[:40]!r} with {model[:80]!r} was judged", code="request.not-found"
        )


async def page(tx: Tx, after: str, limit: int) -> tuple[list[Row], str | None]:
    """Give the suspected nodes above the id *after*, with their models; and where the next page begins."""
    rows = await tx.all(
        "SELECT node_id, model, level, since_ms FROM suspicions"
        " WHERE level = 'suspected' AND node_id > ? ORDER BY node_id, model LIMIT ?",
        after,
        limit + 1,
    )
    if len(rows) <= limit:
        return rows, None
    # A page ends at a whole node.
    last = rows[limit]["node_id"]
    whole = [row for row in rows if row["node_id"] != last]
    if whole:
        return whole, whole[-1]["node_id"]
    every = await tx.all(
        "SELECT node_id, model, level, since_ms FROM suspicions"
        " WHERE level = 'suspected' AND node_id = ? ORDER BY model",
        last,
    )
    return every, last


async def review(tx: Tx, limit: int = 500) -> list[dict[str, Any]]:
    """
    Give what a person should look at.

    Suspected nodes, those whose prompts are rendered otherwise, those whose answers are too fast again and again, and
    those whose answers have moved (`drift_ms`: since when; `verifier.store.drifting`).
    """
    rows = await tx.all(
        "SELECT s.*, coalesce(u.level, 'none') AS level, u.since_ms, u.why, d.review_ms AS drift_ms"
        " FROM answer_scores s LEFT JOIN suspicions u ON u.node_id = s.node_id AND u.model = s.model"
        " LEFT JOIN node_drift d ON d.node_id = s.node_id AND d.model = s.model AND d.reference = s.reference"
        " AND d.engine = s.engine WHERE u.level = 'suspected' OR s.prompts > 0 OR s.fast >= ?"
        " OR d.review_ms IS NOT NULL ORDER BY s.score DESC, s.node_id LIMIT ?",
        PERSISTENT,
        limit,
    )
    return [dict(row) for row in rows]
