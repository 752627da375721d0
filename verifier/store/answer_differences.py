"""
Answers that differ from the minted ones, side by side, for the reviewers who decide what follows.

Nobody else may read them: they show what is asked, and an operator could learn from it how checks look.  What was asked is
asked never again.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from verifier.answers.checks import Given, Minted
from verifier.answers.judged import Judged
from verifier.store.database import Row, Tx

MAX_KEPT: Final = 32
"""Of so many differences of a node and model, the newest, the sides are kept."""
_MAX_SIDE: Final = 4000
"""Characters of an answer."""
_MAX_ASKED: Final = 4000


async def keep(tx: Tx, judged: Judged, engine: str, code: str, detail: str, now_ms: int) -> None:
    """Keep the two sides of a check that differs, and no more than `MAX_KEPT` of its node and model."""
    await tx.execute(
        "INSERT INTO answer_differences (check_id, node_id, model, at_ms, reporter, reference, engine, code, sides)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (check_id) DO NOTHING",
        judged.check,
        judged.node.id,
        judged.model,
        now_ms,
        judged.reporter,
        judged.reference,
        engine,
        code,
        _storable(_sides(judged, detail)),
    )
    oldest = await tx.one(
        "SELECT at_ms FROM answer_differences WHERE node_id = ? AND model = ?"
        " ORDER BY at_ms DESC LIMIT 1 OFFSET ?",
        judged.node.id,
        judged.model,
        MAX_KEPT,
    )
    if oldest is not None:
        await tx.execute(
            "DELETE FROM answer_differences WHERE node_id = ? AND model = ? AND at_ms <= ?",
            judged.node.id,
            judged.model,
            oldest["at_ms"],
        )


def _sides(judged: Judged, detail: str) -> dict[str, Any]:
    verdict = judged.verdict
    return {
        "asked": msgspec.json.encode(judged.minted.body).decode("utf-8", "replace")[:_MAX_ASKED],
        "expected": _side(judged.minted),
        "found": _side(judged.given),
        "position": verdict.at,
        "margin": verdict.margin,
        "distance": verdict.distance,
        "matched": verdict.matched,
        "detail": detail,
        "minted_with": f"{judged.minted.engine.name}@{judged.minted.engine.version} {judged.minted.engine.dtype}",
    }


def _side(answer: Minted | Given) -> dict[str, Any]:
    vectors = None if answer.vectors is None else f"{len(answer.vectors)} vectors"
    return {
        "text": vectors if answer.text is None else answer.text[:_MAX_SIDE],
        "calls": [f"{call.name}({call.arguments[:500]})" for call in answer.calls[:8]],
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
    }


def _storable(sides: dict[str, Any]) -> str:
    """JSON without NUL, which PostgreSQL cannot store; JSON writes it as an escape, which its text type takes."""
    return msgspec.json.encode(sides).decode()


async def of_node(tx: Tx, node_id: str, model: str | None = None) -> list[dict[str, Any]]:
    """Give the differences of a node, the newest first."""
    only, values = ("", ()) if model is None else (" AND model = ?", (model,))
    rows = await tx.all(
        f"SELECT * FROM answer_differences WHERE node_id = ?{only} ORDER BY at_ms DESC, check_id LIMIT 200",
        node_id,
        *values,
    )
    return [{**row, "sides": msgspec.json.decode(row["sides"])} for row in rows]


async def reporters(tx: Tx, node_id: str, model: str, since_ms: int) -> list[str]:
    """Give the routers whose checks have differed since *since_ms*, in the order of their names."""
    rows: list[Row] = await tx.all(
        "SELECT DISTINCT reporter FROM answer_differences WHERE node_id = ? AND model = ? AND at_ms >= ?"
        " AND code NOT IN ('answers.prompt.differs', 'answers.speed.impossible') ORDER BY reporter",
        node_id,
        model,
        since_ms,
    )
    return [row["reporter"] for row in rows]
