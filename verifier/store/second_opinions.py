"""What a second engine said about live evaluations: counts, and the inputs that it judged otherwise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from verifier.policy.opinions import Disagreement
from verifier.store.database import Tx

_MAX_DIFFERENCES: Final = 100
"""Inputs kept for one policy and engine.  Further ones are counted alone."""
_MAX_BYTES: Final = 64 * 1024
"""A larger input is counted and not kept."""


@dataclass(frozen=True)
class Count:
    """What to add for one policy and engine."""

    engine: str
    policy: str
    asked: int
    unanswered: int
    skipped: int


async def count(tx: Tx, added: Count, found: Disagreement | None, now_ms: int) -> None:
    """Count an opinion, and keep the input if it was judged otherwise."""
    await tx.execute(
        "INSERT INTO second_opinions (engine, policy, asked, differing, unanswered, skipped)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (engine, policy) DO UPDATE SET"
        " asked = second_opinions.asked + excluded.asked,"
        " differing = second_opinions.differing + excluded.differing,"
        " unanswered = second_opinions.unanswered + excluded.unanswered,"
        " skipped = second_opinions.skipped + excluded.skipped",
        added.engine,
        added.policy,
        added.asked,
        int(found is not None),
        added.unanswered,
        added.skipped,
    )
    if found is None or len(found.policy_input) > _MAX_BYTES:
        return
    row = await tx.one(
        "SELECT count(*) AS n FROM second_opinion_differences WHERE engine = ? AND policy = ?",
        added.engine,
        added.policy,
    )
    if row is not None and row["n"] >= _MAX_DIFFERENCES:
        return
    await tx.execute(
        "INSERT INTO second_opinion_differences (engine, policy, digest, input, here, there, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (engine, policy, digest) DO NOTHING",
        added.engine,
        added.policy,
        hashlib.sha256(found.policy_input.encode()).hexdigest(),
        found.policy_input,
        _storable(found.here),
        _storable(found.there),
        now_ms,
    )


def _storable(text: str) -> str:
    """*text* in bounded length, without NUL, which PostgreSQL cannot store."""
    return text[:_MAX_BYTES].replace("\x00", "\N{REPLACEMENT CHARACTER}")


async def report(tx: Tx) -> list[dict[str, Any]]:
    """What was counted, by engine and policy, each with the inputs that differ."""
    counts = await tx.all(
        "SELECT s.engine, s.policy, p.id, s.asked, s.differing, s.unanswered, s.skipped"
        " FROM second_opinions s JOIN policies p ON p.digest = s.policy ORDER BY s.engine, s.policy"
    )
    return [
        {
            "engine": row["engine"],
            "policy": row["id"],
            **{name: row[name] for name in ("asked", "differing", "unanswered", "skipped")},
            "differences": [
                {
                    "input": found["input"],
                    "here": found["here"],
                    "there": found["there"],
                    "at": found["at_ms"] // 1000,
                }
                for found in await tx.all(
                    "SELECT input, here, there, at_ms FROM second_opinion_differences"
                    " WHERE engine = ? AND policy = ? ORDER BY at_ms, digest",
                    row["engine"],
                    row["policy"],
                )
            ],
        }
        for row in counts
    ]
