"""An engine update whose answers move as those of real engines were recorded: docs/drift.md shows what people see of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fixtures import judged as checks
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.test_drift import SUSPECT, fleet, view, waiting
from tests.integration.test_suspicions import MINTED, RIGHT, kinds, suspected
from verifier.answers.checks import Verdict
from verifier.store import nodes, suspicions


async def test_an_engine_update_as_it_was_recorded(verifier) -> None:
    """
    Nodes of llama.cpp, and a version of it that computes as vLLM does: the rates are those of the real engines.

    The first version is as usual, and nobody is held for the second.
    """
    found = await fleet(verifier, 4)
    rng = random.Random(66)
    await bring_recorded(verifier, found, "bf16-4", 40, rng)
    assert (await kinds(verifier), await waiting(verifier)) == ([], [])
    for node, _ in found:
        node.engine_version = "2.0.0"
    found = [(node, (await verifier.attest(node))["jti"]) for node, _ in found]
    await bring_recorded(verifier, found, "vllm-bf16", 80, rng)
    assert (await kinds(verifier), await waiting(verifier), await suspected(verifier)) == (SUSPECT, [], [])
    first, second = (await view(verifier))["models"][0]["versions"]
    assert (first["suspect"], second["suspect"] is None) == (None, False)


async def bring_recorded(
    verifier: Any, found: list[tuple[SimulatedNode, str]], run: str, times: int, rng: random.Random
) -> None:
    """So many checks of each node, with the verdicts of a recorded pair of engines, as often as they were."""
    pairs = json.loads((Path(__file__).parents[2] / "fixtures" / "answer_rates.json").read_text())["pairs"]
    pair = next(p for p in pairs if p["run"] == run and p["reference"]["engine"] == "llama.cpp")
    counts = pair["delta 0.25"]
    weights = {kind: counts[kind] for kind in ("agrees", "censored")} | {"differs": counts["differs"]["hits"]}
    for node, result in found:
        verifier.clock.forward(60)
        async with transaction(verifier.service.db) as tx:
            stored = await nodes.by_id(tx, node.id)
            assert stored is not None
            for _ in range(times):
                (kind,) = rng.choices(list(weights), list(weights.values()))
                verdict = Verdict(kind=kind, code="answers.text.differs" if kind == "differs" else "")
                judged = checks.judged(stored, MODEL, MINTED, RIGHT, result=result, verdict=verdict)
                await suspicions.take_verdict(tx, judged, verifier.clock.ms)
