"""What live evidence would have come to under a shadow policy: counts and differences, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from verifier.changes import Change
from verifier.recording import RecordingHead
from verifier.store.database import Tx

_MAX_DIFFERENCES = 100_000
"""The most rows stored for one policy.  Further differences are counted in the total alone."""


async def count(
    tx: Tx, policy: str, head: RecordingHead, changes: Sequence[Change], *, failed: bool, skipped: int
) -> None:
    """Count one appraisal, with the *changes* that the shadow policy would have made to its result."""
    row = await tx.one(
        "UPDATE shadow_counts SET appraised = appraised + 1, differing = differing + ?, failed = failed + ?,"
        " skipped = skipped + ? WHERE policy = ? RETURNING differing",
        int(bool(changes)),
        int(failed),
        skipped,
        policy,
    )
    room = row is None or row["differing"] <= _MAX_DIFFERENCES
    for change in changes:
        text = msgspec.json.encode(change, order="deterministic").decode()
        changed = await tx.execute(
            "UPDATE shadow_differences SET count = count + 1, last_ms = ?"
            " WHERE policy = ? AND node_id = ? AND submod = ? AND change = ?",
            head.at_ms,
            policy,
            head.node_id,
            change.submod,
            text,
        )
        if not changed and room:
            await tx.execute(
                "INSERT INTO shadow_differences (policy, node_id, submod, change, count, first_ms, last_ms)"
                " VALUES (?, ?, ?, ?, 1, ?, ?)",
                policy,
                head.node_id,
                change.submod,
                text,
                head.at_ms,
                head.at_ms,
            )


async def report(tx: Tx, policy: str) -> dict[str, Any] | None:
    """Give what was counted for a policy; `None` if it was never a shadow."""
    row = await tx.one("SELECT * FROM shadow_counts WHERE policy = ?", policy)
    if row is None:
        return None
    differences = await tx.all(
        "SELECT node_id, submod, change, count, first_ms, last_ms FROM shadow_differences WHERE policy = ?"
        " ORDER BY node_id, submod, last_ms",
        policy,
    )
    changes = []
    for found in differences:
        change = msgspec.json.decode(found["change"], type=Change)
        changes.append(
            {
                "node": found["node_id"],
                "submod": found["submod"],
                "direction": change.direction,
                "from": msgspec.to_builtins(change.before),
                "to": msgspec.to_builtins(change.after),
                "count": found["count"],
                "first": found["first_ms"] // 1000,
                "last": found["last_ms"] // 1000,
            }
        )
    counts = {name: row[name] for name in ("policy", "appraised", "differing", "failed", "skipped")}
    return {**counts, "changes": changes}
