"""
What a node showed before the pool was empty, and what was held against it since.

This is read only for sessions that wanted a challenge which the pool did not have.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from attester.kinds import model_submod
from verifier.reasons import MALFORMED, MODEL_INTEGRITY, UNANSWERED
from verifier.schemes.context import Excuse
from verifier.store.database import Tx

_MAX_SESSION_MS: Final = 86_400_000
"""A session was issued at most so long before its evidence was appraised."""


class _Facts(Struct, frozen=True):
    """The part of a policy's input that says what the read came to."""

    checked: dict[str, dict[str, Any]]


async def read_excuse(
    tx: Tx, node_id: str, model: str, reference: str, *, now_ms: int, grace_s: int
) -> Excuse:
    """
    Read what counts on for a node and model.

    Args:
        reference: The digest of the value in force: answers for another value show nothing of it.
    """
    blamed = await tx.one(
        "SELECT coalesce(max(last_ms), 0) AS at_ms FROM incidents WHERE node_id = ? AND kind IN (?, ?, ?)",
        node_id,
        MODEL_INTEGRITY,
        MALFORMED,
        UNANSWERED,
    )
    assert blamed is not None
    # The newest call that asked a read: whatever it came to counts, and nothing before it.
    asked = await tx.one(
        "SELECT r.at_ms, r.input FROM sessions s LEFT JOIN recordings r ON r.appraisal_id = s.appraisal_id"
        " WHERE s.node_id = ? AND s.channel = 'call' AND s.issued_ms > ? AND EXISTS (SELECT 1 FROM pool p"
        "  JOIN batches b ON b.id = p.batch WHERE p.session_id = s.id AND p.kind = 'read' AND p.model = ?"
        "  AND b.reference = ?) ORDER BY s.issued_ms DESC LIMIT 1",
        node_id,
        now_ms - grace_s * 1000 - _MAX_SESSION_MS,
        model,
        reference,
    )
    read_ms = None
    if asked is not None and asked["input"] is not None and _was_right(asked["input"], model):
        read_ms = asked["at_ms"]
    return Excuse(grace_s=grace_s, read_ms=read_ms, blamed_ms=blamed["at_ms"])


def _was_right(policy_input: str | bytes, model: str) -> bool:
    try:
        facts = msgspec.json.decode(policy_input, type=_Facts)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Recordings of the first versions have no input.
        return False
    return facts.checked.get(model_submod(model), {}).get("read") == "right"
