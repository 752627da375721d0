"""
What follows from answers that move over time: a review of a node, or of the reference.

If all nodes of an engine version shift together, the reference is the likely cause: the minting engine, its version, the
tolerances, or a template.  That is ours, so it holds nobody, and while a person looks at it no node of the version is
suspected, nor goes an incident of answers on to a quarantine.  If one node shifts, a person looks at the node, and nothing
else follows: what differs beyond the tolerance has its own consequences (`verifier.store.suspicions`).
"""

from __future__ import annotations

from typing import Final

from verifier.answers import days, drift, tables
from verifier.answers.drift import CHANNELS, Shift
from verifier.answers.judge import prompt_differs
from verifier.answers.judged import Judged
from verifier.answers.tables import Table
from verifier.incident_transitions import VERIFIER, Move, Open
from verifier.incidents import ANSWER_MISMATCH, REFERENCE_SUSPECT, Draft, Severity, State
from verifier.schemes.findings import Finding
from verifier.store import answer_days, answer_drift, incident_facts, incident_transitions
from verifier.store.answer_drift import Looked
from verifier.store.answer_scores import Served
from verifier.store.database import Tx
from verifier.store.incident_facts import HOLDING_SQL
from verifier.store.suspicion_levels import set_level

NODE: Final = "answers.drift.node"
VERSION: Final = "answers.drift.version"
_SUSPECT: Final = "the reference is suspect"
_SAID: Final = {
    "differs": "answers differ from the minted ones",
    "parts": "answers leave the minted text more often than is usual",
    "far": "distances to the minted answers are near the limit more often than is usual",
}


def cause_of(code: str, reference: str, engine: str) -> str:
    """The cause of a review of a reference value with one engine version: it shields nobody who runs another."""
    version = f"@{engine}" if answer_drift.is_known(engine) else ""
    return f"{code}@reference:{reference}{version}"


async def is_suspect(tx: Tx, served: Served) -> bool:
    """Whether a person looks at the reference of the node's engine version: then no node of it is suspected."""
    if not answer_drift.is_known(served.engine):
        return False
    cause = cause_of(VERSION, served.reference, served.engine)
    found = await tx.one(
        f"SELECT 1 AS one FROM incidents WHERE cause = ? AND state IN ({HOLDING_SQL}) LIMIT 1", cause
    )
    return found is not None


async def take(tx: Tx, judged: Judged, served: Served, table: Table, now_ms: int) -> None:
    """Take a verdict into the counts of its day and into the scores, with what follows."""
    verdict = judged.verdict
    seen = drift.look(judged.minted, judged.given, verdict, table)
    counts = days.Counts(
        agrees=int(verdict.kind == "agrees"),
        differs=int(verdict.kind == "differs"),
        censored=int(verdict.kind == "censored"),
        prompts=int(prompt_differs(judged.minted, judged.given) is not None),
        parts=int(bool(seen.parts)),
        parts_of=int(seen.parts is not None),
        far=int(bool(seen.far)),
        far_of=int(seen.far is not None),
        distances={} if verdict.distance is None else {days.bucket(verdict.distance): 1},
    )
    await answer_days.count(tx, served, counts, now_ms)
    looked = Looked(
        seen=seen,
        usual=drift.usual_of(table, await answer_drift.accepted(tx, served)),
        differing=tables.rates_for(judged.minted, judged.given, table),
    )
    node = await answer_drift.count_node(tx, served, looked, now_ms)
    if answer_drift.is_known(served.engine):
        scores = await answer_drift.count_version(tx, served, looked, now_ms)
        if any(seen.of(name) and scores.of(name) >= drift.LEAST_LIMIT for name in CHANNELS):
            await _look_at_version(tx, served, now_ms)
    if drift.shifted_channels(node) and not await is_suspect(tx, served):
        await answer_drift.set_review(tx, served.node_id, served.model, now_ms)


async def _look_at_version(tx: Tx, served: Served, now_ms: int) -> None:
    if await is_suspect(tx, served):
        return
    # What follows depends on the answers of other nodes.
    await tx.alone()
    found = await answer_drift.of_version(tx, served.model, served.reference, served.engine, now_ms)
    shift = drift.find_shift(found)
    if shift is None:
        return
    cause = cause_of(VERSION, served.reference, served.engine)
    draft = Draft(REFERENCE_SUSPECT, Severity.SERIOUS, Finding(VERSION, _detail(served, shift)), cause)
    await incident_transitions.apply(tx, [Open(draft, State.OPEN)], now_ms)
    nodes = await answer_drift.nodes_of(tx, served.model, served.reference, served.engine)
    await shield(tx, served.model, nodes, now_ms)


def _detail(served: Served, shift: Shift) -> str:
    return (
        f"{served.model} by {served.engine}: {_SAID[shift.channel]}, at {shift.nodes} of {shift.all_nodes} nodes,"
        f" of {shift.shifted} of {shift.operators} operators. Mint answers with this engine version"
    )


async def shield(tx: Tx, model: str, nodes: list[str], now_ms: int) -> None:
    """
    Suspect none of these nodes any more, as the reference is suspect.

    What a person or another router has confirmed already stays with the person who looks at it.
    """
    for node_id in nodes:
        await set_level(tx, node_id, model, "none", _SUSPECT, VERIFIER, now_ms)
        await tx.execute(
            "UPDATE node_drift SET review_ms = NULL WHERE node_id = ? AND model = ?", node_id, model
        )
        node = await incident_facts.read_node(tx, node_id, now_ms)
        folded = [
            Move(incident_id=each.id, state=State.FOLDED, actor=VERIFIER, reason=_SUSPECT)
            for each in node.incidents
            if each.kind == ANSWER_MISMATCH
            and each.state is State.SUSPECTED
            and _is_about(each.detail, model)
        ]
        await incident_transitions.apply(tx, folded, now_ms)


def _is_about(detail: str, model: str) -> bool:
    return detail.startswith(f"{model}: ")
