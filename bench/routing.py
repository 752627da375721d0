"""
One decision: ours against `litellm.Router` (simple shuffle), by how many nodes there are.

LiteLLM is measured up to 10,000: it takes 12 to 16 s to build there and 60 ms for a choice,
and at 100,000 it would be minutes of the same.

    python -m bench.routing [--decisions 20000] [--without-litellm]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import Final

from bench.common import machine, row
from bench.gateway_peers import peer
from fixtures import simulator
from router.choose.decision import decide
from router.model.clock import Clock
from router.model.node import NodeView
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from verifier.results import Appraisal, AttestationResult, NodeRecord, VerifierClaims, VerifierId
from verifier.trust import Tier, worst

SIZES: Final = (10, 1_000, 10_000, 100_000)
_LITELLM_MOST: Final = 10_000
_LITELLM_S: Final = 3.0


def ours(nodes: int) -> Callable[[int], object]:
    """What decides with a seed, over so many nodes."""
    fleet, workload = make_fleet(nodes)
    return lambda seed: decide(fleet.view_for(workload), workload, seed)


def make_fleet(nodes: int) -> tuple[Fleet, Workload]:
    """So many nodes of fifty operators, all established, and the workload that they may do."""
    workload = Workload(simulator.MODEL, name="bench")
    began = time.time_ns() // 1_000_000
    # The wall clock stands still: building the larger fleets takes longer than a silence may.
    fleet = Fleet(Table([workload]), Clock(lambda: began, lambda: 0.0))
    fleet.note_verifier_contact()
    chance = random.Random(1)
    now = began // 1000
    for number in range(nodes):
        view = NodeView(f"n-{number * 7919 % nodes:06}", result=_result(f"o-{number % 50:02}", now))
        fleet.put_node(view)
        seen = Standing((100.0, 100.0), exchanges=100.0, at=now, latency_s=0.1 + chance.random())
        fleet.restore_statistics(view.node, workload.standing_key, StatisticsAggregate(seen))
    # As the service does once it has begun.
    gc.collect()
    gc.freeze()
    return fleet, workload


def _result(operator: str, now: int) -> AttestationResult:
    """A result that affirms all that is required."""
    passed = {"platform": {"instance-identity": 2, "configuration": 2}}
    passed[f"model/{simulator.MODEL}"] = {"file-system": 2, "executables": -2}
    record = NodeRecord(operator, now - 86400, "active", "cpu")
    endpoint = {"endpoint": {"url": "https://192.0.2.1", "spki_sha256": "ab" * 32}}
    submods = {
        name: Appraisal(
            ear_status=worst(vector),
            ear_trustworthiness_vector=vector,
            ear_appraisal_policy_ids=("bench",),
            ear_verifier_claims=VerifierClaims(
                assurance="challenged", bound="true", node=record if name == "platform" else None
            ),
            ear_attester_claims=endpoint if name == "platform" else {},
        )
        for name, vector in passed.items()
    }
    return AttestationResult(
        iss="https://verifier.test",
        iat=now,
        exp=now + 86400,
        jti="00" * 16,
        ueid="bench",
        cnf={},
        ear_verifier_id=VerifierId("bench", "bench"),
        ear_status=Tier.AFFIRMING,
        submods=submods,
        status={},
    )


def times(decide: Callable[[int], object], count: int) -> list[float]:
    """Seconds of each decision; the collector of garbage runs as in production."""
    for seed in range(count // 20):
        decide(seed)
    found = []
    for seed in range(count):
        start = perf_counter()
        decide(seed)
        found.append(perf_counter() - start)
    return found


def show(name: str, found: Sequence[float], note: str = "") -> None:
    """Median and 99th percentile of seconds, in microseconds."""
    p99 = quantiles(found, n=100)[98] * 1e6
    row(name, f"{median(found) * 1e6:,.1f} us", f"p99 {p99:,.1f} us, {len(found)} decisions{note}")


def litellm(nodes: int) -> dict[str, list[float]] | None:
    """LiteLLM's seconds, sync and async; `None` where it is not there or too slow."""
    python = peer.peer_python()
    if python is None:
        return None
    found = subprocess.run(
        [str(python), "-m", "bench.gateway_peers.litellm_router", str(nodes), str(_LITELLM_S)],
        cwd=peer.ROOT,
        env=peer.environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    given = json.loads(found.stdout.strip().splitlines()[-1])
    return {"sync": given["sync"], "async": given["async"], "build": [given["build_s"]]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--without-litellm", action="store_true")
    args = parser.parse_args()
    sys.stdout.write(f"routing, one decision; {machine()}\n")
    for nodes in SIZES:
        found = times(ours(nodes), args.decisions)
        show(f"{nodes:,} nodes: touchstone", found)
        theirs = None if args.without_litellm or nodes > _LITELLM_MOST else litellm(nodes)
        if theirs is not None:
            show(f"{nodes:,} nodes: litellm, sync", theirs["sync"], f", built in {theirs['build'][0]:.1f} s")
            show(f"{nodes:,} nodes: litellm, async", theirs["async"])
            ratio = min(median(theirs["sync"]), median(theirs["async"])) / median(found)
            row(f"{nodes:,} nodes: litellm's faster to touchstone", f"{ratio:,.0f}")


if __name__ == "__main__":
    main()
