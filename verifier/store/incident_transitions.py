"""Applies the transitions that the rules of incidents give: rows, the history, and the events that routers follow."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from verifier.incident_transitions import (
    VERIFIER,
    AddToTallies,
    Count,
    Move,
    Open,
    Propose,
    PutOnProbation,
    RemoveCause,
    RestOn,
    RetireNode,
    RevokeResults,
    Transition,
    VoidProposals,
)
from verifier.incidents import REVIEW_TARGET_MS, State
from verifier.store import events, incident_facts, log, nodes, revocations, suspicion_levels
from verifier.store.database import Row, Tx


async def apply(tx: Tx, transitions: Iterable[Transition], now_ms: int) -> list[str]:
    """
    Apply *transitions* in their order.

    Returns:
        The ids of the incidents that were opened or counted into.
    """
    touched: list[str] = []
    for transition in transitions:
        match transition:
            case Open():
                touched.append(await _open(tx, transition, now_ms))
            case Count(incident_id):
                touched.append(incident_id)
                await _count(tx, incident_id, now_ms)
            case RestOn(incident_id, cause):
                await _rest_on(tx, incident_id, cause)
            case RemoveCause(incident_id, cause):
                await _void_cause(tx, incident_id, cause, now_ms)
            case Move():
                await _move(tx, transition, now_ms)
            case Propose():
                await _propose(tx, transition, now_ms)
            case VoidProposals():
                await _void_proposals(tx, transition, now_ms)
            case AddToTallies():
                await _add_to_tallies(tx, transition)
            case RevokeResults(node_id):
                await revocations.revoke_results(tx, node_id, now_ms, "incident")
            case PutOnProbation(node_id):
                await nodes.put_on_probation(tx, node_id, now_ms)
            case RetireNode(node_id):
                await nodes.retire_if_live(tx, node_id, now_ms)
    return touched


async def _open(tx: Tx, opened: Open, now_ms: int) -> str:
    draft = opened.draft
    # The time comes first, so that ids sort by it.
    incident_id = f"{now_ms:012x}{secrets.token_hex(4)}"
    await tx.execute(
        "INSERT INTO incidents (id, kind, severity, state, node_id, operator, code, detail, cause,"
        " session_id, opened_ms, last_ms, due_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        incident_id,
        draft.kind,
        draft.severity,
        opened.state,
        opened.node_id,
        opened.operator,
        draft.finding.code,
        draft.finding.detail,
        draft.cause,
        opened.session_id,
        now_ms,
        now_ms,
        now_ms + REVIEW_TARGET_MS,
    )
    if draft.cause is not None:
        await _rest_on(tx, incident_id, draft.cause)
    await _add_history(tx, incident_id, opened.state, VERIFIER, draft.finding.detail, now_ms)
    await _announce(tx, incident_id, VERIFIER, now_ms)
    return incident_id


async def _count(tx: Tx, incident_id: str, now_ms: int) -> None:
    await tx.execute("UPDATE incidents SET count = count + 1, last_ms = ? WHERE id = ?", now_ms, incident_id)


async def _rest_on(tx: Tx, incident_id: str, cause: str) -> None:
    await tx.execute(
        "INSERT INTO incident_causes (incident_id, cause) VALUES (?, ?) ON CONFLICT DO NOTHING",
        incident_id,
        cause,
    )


async def _void_cause(tx: Tx, incident_id: str, cause: str, now_ms: int) -> None:
    await tx.execute(
        "UPDATE incident_causes SET void = 1 WHERE incident_id = ? AND cause = ?", incident_id, cause
    )
    await tx.execute("DELETE FROM proposals WHERE incident_id = ? AND cause = ?", incident_id, cause)
    # If it rests on nothing else, its release follows, with who and why.
    await log.append(
        tx, now_ms, "incident", {"id": incident_id, "change": "cause-removed", "cause": log.clip(cause)}
    )


async def _move(tx: Tx, move: Move, now_ms: int) -> None:
    await tx.execute(
        "UPDATE incidents SET state = ?, last_ms = ? WHERE id = ?", move.state, now_ms, move.incident_id
    )
    if move.ends_proposals:
        await tx.execute("DELETE FROM proposals WHERE incident_id = ?", move.incident_id)
    await _add_history(tx, move.incident_id, move.state, move.actor, move.reason, now_ms, move.step)
    row = await _announce(tx, move.incident_id, move.actor, now_ms)
    if move.state is State.RELEASED:
        await _log_release(tx, row["node_id"], move.incident_id, move.actor, move.reason, now_ms)
        released = await incident_facts.read_row(tx, move.incident_id)
        await suspicion_levels.forget_released(tx, released, move.actor, now_ms)


async def _propose(tx: Tx, proposed: Propose, now_ms: int) -> None:
    await tx.execute(
        "INSERT INTO proposals (incident_id, cause, actor, at_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        proposed.incident_id,
        proposed.cause,
        proposed.actor,
        now_ms,
    )
    await _add_history(
        tx, proposed.incident_id, proposed.state, proposed.actor, proposed.reason, now_ms, "propose-release"
    )
    row = await incident_facts.read_row(tx, proposed.incident_id)
    await _log_release(
        tx, row["node_id"], proposed.incident_id, proposed.actor, proposed.reason, now_ms, is_proposal=True
    )


async def _void_proposals(tx: Tx, void: VoidProposals, now_ms: int) -> None:
    await tx.execute("DELETE FROM proposals WHERE incident_id = ?", void.incident_id)
    await _add_history(tx, void.incident_id, void.state, VERIFIER, void.reason, now_ms, "void-proposal")
    await log.append(tx, now_ms, "incident", {"id": void.incident_id, "change": "proposals-void"})


async def _log_release(
    tx: Tx,
    node_id: str | None,
    incident_id: str,
    actor: str,
    reason: str,
    now_ms: int,
    *,
    is_proposal: bool = False,
) -> None:
    """Log who released an incident and why, or proposed it and waits for a second person."""
    entry: dict[str, log.Value] = {"id": incident_id, "actor": log.clip(actor), "reason": log.clip(reason)}
    if node_id is not None:
        entry["node"] = node_id
    if is_proposal:
        entry["change"] = "proposed"
    await log.append(tx, now_ms, "release", entry)


async def _add_to_tallies(tx: Tx, added: AddToTallies) -> None:
    marks = ", ".join("(?, ?, ?)" for _ in added.causes)
    await tx.once(
        f"INSERT INTO tallies (cause, operator, passed) VALUES {marks} ON CONFLICT DO NOTHING",
        *(value for cause in added.causes for value in (cause, added.operator, int(added.passed))),
    )


async def _add_history(
    tx: Tx, incident_id: str, state: State, actor: str, reason: str, now_ms: int, step: str | None = None
) -> None:
    await tx.execute(
        "INSERT INTO incident_steps (incident_id, at_ms, actor, state, reason, step) VALUES (?, ?, ?, ?, ?, ?)",
        incident_id,
        now_ms,
        actor,
        state,
        reason,
        step,
    )


async def _announce(tx: Tx, incident_id: str, actor: str, now_ms: int) -> Row:
    """Tell routers where an incident stands, and log it; gives its row."""
    found = await incident_facts.read_row(tx, incident_id)
    data = {
        "incident": incident_id,
        "node": found["node_id"],
        "operator": found["operator"],
        "kind": found["kind"],
        "severity": found["severity"],
        "state": found["state"],
        "code": found["code"],
        "opened": found["opened_ms"] // 1000,
    }
    named = ("node", "operator", "kind", "severity", "state", "code")
    entry = {name: str(data[name]) for name in named if data[name] is not None}
    # Each entry has a kind of its own.
    entry["incident"] = entry.pop("kind")
    await log.append(tx, now_ms, "incident", {**entry, "id": incident_id, "actor": log.clip(actor)})
    await events.append(tx, now_ms, "incident", data)
    return found
