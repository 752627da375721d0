"""What is logged of a result: digests, and what it rests on."""

from __future__ import annotations

import hashlib

from attester.kinds import model_of
from verifier.results import AttestationResult
from verifier.store import log
from verifier.store.database import Tx


async def write(tx: Tx, now_ms: int, result: AttestationResult, token: str, node_id: str | None) -> None:
    """
    Log a result.

    Args:
        token: As it was signed.
        node_id: `None` for one of a background check: it is its caller's alone, and names no node here.
    """
    submods = result.submods
    entry: dict[str, log.Value] = {
        "id": result.jti,
        "status": str(result.ear_status),
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "expires": result.exp * 1000,
        "policies": sorted({name for each in submods.values() for name in each.ear_appraisal_policy_ids}),
    }
    if node_id is not None:
        compared = {
            model: digest
            for name, each in submods.items()
            if (digest := each.ear_verifier_claims.reference) is not None
            and (model := model_of(name)) is not None
        }
        entry |= {"node": node_id} | log.bounded("references", compared)
    await log.append(tx, now_ms, "result", entry)
