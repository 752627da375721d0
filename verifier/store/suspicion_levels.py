"""Whether a node is suspected for its answers: who is told of it, and what a person's word ends."""

from __future__ import annotations

from typing import Final

from verifier.incidents import ANSWER_MISMATCH, REFERENCE_SUSPECT
from verifier.store import answer_drift, answer_scores, events
from verifier.store.database import Row, Tx

_OF_ANSWERS: Final = "answers."
_REFERENCE: Final = "reference:"


async def set_level(tx: Tx, node_id: str, model: str, level: str, why: str, actor: str, now_ms: int) -> bool:
    """Put a node into a level of suspicion, and tell routers; whether it changed."""
    row = await tx.one("SELECT level FROM suspicions WHERE node_id = ? AND model = ?", node_id, model)
    if (row is None and level == "none") or (row is not None and row["level"] == level):
        return False
    await tx.execute(
        "INSERT INTO suspicions (node_id, model, level, since_ms, why, actor) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (node_id, model) DO UPDATE SET level = excluded.level, since_ms = excluded.since_ms,"
        " why = excluded.why, actor = excluded.actor",
        node_id,
        model,
        level,
        now_ms,
        why,
        actor,
    )
    data = {"node": node_id, "model": model, "level": level, "since_ms": now_ms}
    await events.append(tx, now_ms, "suspicion", data)
    return True


async def forget_released(tx: Tx, incident: Row, actor: str, now_ms: int) -> None:
    """
    Let scores begin at 0 again, as a person has released the incident that came of them.

    Of a node: those of all its models.  Of a reference value that was suspect: those of all nodes with it.
    """
    about: list[tuple[str, str]] = []
    _, _, thing = (incident["cause"] or "").partition("@")
    if incident["kind"] == ANSWER_MISMATCH and incident["node_id"] is not None:
        rows = await answer_scores.of_node(tx, incident["node_id"])
        about = sorted({(row["node_id"], row["model"]) for row in rows})
        for node_id, model in about:
            await answer_scores.reset(tx, node_id, model)
            await answer_drift.reset_node(tx, node_id, model)
    elif (
        incident["kind"] == REFERENCE_SUSPECT
        and incident["code"].startswith(_OF_ANSWERS)
        and thing.startswith(_REFERENCE)
    ):
        digest, _, engine = thing.removeprefix(_REFERENCE).partition("@")
        about = await answer_scores.reset_reference(tx, digest, engine)
        for model in sorted({model for _, model in about}):
            await answer_drift.reset_version(tx, model, digest, engine)
    for node_id, model in about:
        await set_level(tx, node_id, model, "none", "a person has released it", actor, now_ms)
