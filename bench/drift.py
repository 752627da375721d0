"""
How often answers as usual are taken for a shift, and after how many checks a shift is found.

    python -m bench.drift [--checks 20000000]

Rates are those of real engines (fixtures/answer_rates.json).  Honest nodes are simulated at the rate that is usual, which
is the worst that the bound allows.  Of distances the recordings have the least, the median and the largest: the share near
the limit is taken at the end of its interval that makes a shift harder to find.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verifier.answers import drift
from verifier.answers.checks import EngineUsed
from verifier.answers.tables import Table, table_for

_RATES: Final = Path(__file__).parents[1] / "fixtures" / "answer_rates.json"
_PRECISION: Final = {"bf16": "bfloat16", "smollm2": "bfloat16"}
_MOST: Final = 5000
_RUNS: Final = 400
_PER_NODE: Final = 1000
Scores = npt.NDArray[np.float64]


def _table(pair: dict[str, Any], node: str) -> Table:
    file = pair["reference"]["file"]
    name = pair["reference"]["engine"]
    engine = EngineUsed(name=name, version="", dtype=_PRECISION.get(file, file), family=name)
    return table_for(engine, node)


def near(distance: dict[str, float], limit: float) -> float:
    """The share of distances near the limit, at least."""
    cut = drift.NEAR * limit
    for name, share in (("least", 1.0), ("median", 0.5), ("p99", 0.01)):
        if distance[name] > cut:
            return share
    return 0.0


def _step(scores: Scores, rate: float, usual: float, rng: np.random.Generator) -> Scores:
    down, up = drift.steps(usual)
    return np.clip(scores + np.where(rng.random(scores.shape) < rate, up, down), 0.0, drift.HIGHEST)


def honest_nodes(usual: float, checks: int, rng: np.random.Generator) -> int:
    """How often a node at the usual rate is taken for one that has moved, in so many checks."""
    scores, alarms = np.zeros(checks // _PER_NODE), 0
    for _ in range(_PER_NODE):
        scores = _step(scores, usual, usual, rng)
        found = scores >= drift.NODE_LIMIT
        alarms += int(found.sum())
        scores[found] = 0.0
    return alarms


def honest_versions(
    usual: float, operators: int, limit: float, checks: int, rng: np.random.Generator
) -> float:
    """The share of moments at which most operators, all at the usual rate, are at *limit* or above."""
    versions = max(checks // _PER_NODE // operators, 1)
    scores, above, least = np.zeros((versions, operators)), 0, drift.most_of(operators)
    for number in range(_PER_NODE):
        scores = _step(scores, usual, usual, rng)
        if number >= _PER_NODE // 4:
            above += int(((scores >= limit).sum(axis=1) >= least).sum())
    return above / (versions * (_PER_NODE - _PER_NODE // 4))


def until_found(
    rates: drift.Usual, usual: drift.Usual, operators: int, rng: np.random.Generator
) -> list[int]:
    """
    After how many checks of each operator a shift is found, in many runs.

    Args:
        operators: That shift together; 1: a node alone, by its own boundary.
    """
    limit = drift.NODE_LIMIT if operators == 1 else drift.version_limit(operators) or math.inf
    least = 1 if operators == 1 else drift.most_of(operators)
    parts, far = np.zeros((_RUNS, operators)), np.zeros((_RUNS, operators))
    found = np.full(_RUNS, _MOST)
    for check in range(1, _MOST + 1):
        parts = _step(parts, rates.parts, usual.parts, rng)
        far = _step(far, rates.far, usual.far, rng)
        has = np.maximum((parts >= limit).sum(axis=1), (far >= limit).sum(axis=1)) >= least
        found = np.where(has & (found == _MOST), check, found)
        if (found < _MOST).all():
            break
    return sorted(int(each) for each in found)


def _said(found: list[int]) -> str:
    median, high = found[len(found) // 2], found[int(len(found) * 0.9)]
    return "not found" if median >= _MOST else f"{median} ({high if high < _MOST else f'over {_MOST}'})"


def _row(*cells: object) -> None:
    sys.stdout.write("| " + " | ".join(str(cell) for cell in cells) + " |\n")


def _false_alarms(checks: int, rng: np.random.Generator) -> None:
    _row("who", "usual rate", "checks", "false alarms in a million: at most", "simulated")
    _row(*["---"] * 5)
    for usual in (0.1, 0.29, 0.57):
        alarms = honest_nodes(usual, checks, rng)
        most = f"{math.exp(-drift.NODE_LIMIT) * 1e6:.2f}"
        _row("a node", usual, f"{checks:,}", most, f"{alarms / checks * 1e6:.2f}")
    for operators in (3, 5, 10):
        limit = drift.version_limit(operators) or math.inf
        share = honest_versions(0.29, operators, limit, checks, rng)
        most = f"{drift.tail(operators, math.exp(-limit)) * 1e6:.2g}"
        _row(f"a version of {operators} operators", 0.29, f"{checks:,}", most, f"{share * 1e6:.2g}")
    for operators in (3, 5, 10):
        share = honest_versions(0.29, operators, 1.5, checks // 4, rng)
        most = f"{drift.tail(operators, math.exp(-1.5)) * 1e6:,.0f}"
        _row(
            f"the same at a boundary of 1.5, {operators}",
            0.29,
            f"{checks // 4:,}",
            most,
            f"{share * 1e6:,.0f}",
        )


def _shifts(rng: np.random.Generator) -> None:
    pairs = json.loads(_RATES.read_text())["pairs"]
    sys.stdout.write("\n")
    _row(
        "what is served",
        "checks use",
        "parts",
        "near the limit",
        "a node alone",
        "3 operators",
        "10 operators",
    )
    _row(*["---"] * 7)
    for pair in pairs:
        if pair["reference"]["temperature"] or pair["reference"].get("cached"):
            continue
        # As the table of the same engine has it: what moves is the node.
        reference = pair["reference"]["engine"]
        table = _table(pair, reference)
        usual = drift.usual_of(table)
        name = f"{pair['run']} ({reference} {pair['reference']['file']})"
        for uses in ("text", "text and probabilities"):
            far = near(pair["distance"], table.distribution_limit or math.inf) if uses != "text" else 0.0
            rates = drift.Usual(pair["parted"]["rate"], far)
            times = [_said(until_found(rates, usual, count, rng)) for count in (1, 3, 10)]
            _row(name, uses, f"{rates.parts:.2f}", f"{far:.2f}" if uses != "text" else "", *times)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", type=int, default=20_000_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(2026)
    _false_alarms(arguments.checks, rng)
    _shifts(rng)


if __name__ == "__main__":
    main()
