"""
How often answers of true weights differ, and those of others: what `verifier.answers.tables` rests on.

    python -m bench.answer_rates FOLDER [--out fixtures/answer_rates.json]

FOLDER has the recordings of `bench.answer_recordings`.  For each pair of a reference and a node, and for each δ, it counts
the verdicts of `verifier.answers.judge`, and gives each share with its Clopper-Pearson interval (95 %).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.answer_recordings import RUNS
from fixtures import answer_files
from verifier.answers import judge as judging
from verifier.answers.checks import EngineUsed, Verdict
from verifier.answers.tables import Rates, Table

DELTAS: Final = (0.06, 0.125, 0.25, 0.5)
"""In nat."""
_NOTHING: Final = Rates(0.5, 0.5)


class Pair(NamedTuple):
    """Mintings of a reference, the first one judged by, and the node that answers: names of `RUNS`."""

    mintings: tuple[str, ...]
    node: str
    honest: bool


PAIRS: Final = (
    *(Pair(("bf16",), f"bf16-{how}", True) for how in ("4", "8", "cached")),
    *(Pair(("bf16",), f"{file}-4", True) for file in ("f16", "f32")),
    *(Pair(("bf16",), f"{file}-4", False) for file in ("q8_0", "q4_0", "published", "noise", "pruned")),
    Pair(("q8_0",), "q8_0-4", True),
    *(Pair(("q8_0",), f"{file}-4", False) for file in ("q4_0", "published", "pruned")),
    Pair(("q4_0",), "q4_0-4", True),
    Pair(("q4_0",), "pruned-4", False),
    Pair(("bf16-warm",), "bf16-warm-4", True),
    Pair(("bf16-warm",), "bf16-warm-8", True),
    *(Pair(("bf16-warm",), f"{file}-warm-4", False) for file in ("q8_0", "q4_0", "pruned")),
    *(Pair(("bf16",), f"vllm-bf16{how}", True) for how in ("", "-4")),
    Pair(("vllm-bf16",), "vllm-bf16-4", True),
    *(Pair(("vllm-bf16",), f"{file}-4", file in ("bf16", "f32")) for file in ("bf16", "f32", "q8_0", "q4_0")),
    Pair(("vllm-warm",), "vllm-warm-4", True),
)
"""What is compared.  A node in f16 or f32 has the same weights in another arithmetic: it is honest."""


def clopper_pearson(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give the exact interval of a rate of which *hits* were seen *of* times (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _cdf(hits - 1, of, p), tail)
    high = 1.0 if hits == of else 1 - _solve(lambda p: _cdf(hits, of, 1 - p), tail)
    return low, high


def _solve(rising: Any, target: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


def _cdf(hits: int, of: int, rate: float) -> float:
    """The probability of at most *hits*."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return 1.0 if hits >= of else 0.0
    terms = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        + k * math.log(rate) + (of - k) * math.log1p(-rate)
        for k in range(hits + 1)
    )  # fmt: skip
    return min(math.fsum(map(math.exp, terms)), 1.0)


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with its interval, as JSON."""
    low, high = clopper_pearson(hits, of) if of else (0.0, 1.0)
    return {"hits": hits, "of": of, "rate": round(hits / of, 5) if of else None,
            "low": round(low, 5), "high": round(high, 5)}  # fmt: skip


def judge_all(pair: Pair, folder: Path, delta: float, limit: float | None) -> list[Verdict]:
    """The verdicts on all answers of the pair's node."""
    table = Table(
        delta=delta, same_family=True, text=_NOTHING, drawn=_NOTHING, scored=_NOTHING,
        distribution_limit=limit, vector_limit=None, vectors=_NOTHING, measured=True, parted=1.0,
    )  # fmt: skip
    runs = [answer_files.read(folder / f"{name}.jsonl") for name in (*pair.mintings, pair.node)]
    engine = EngineUsed(name=RUNS[pair.mintings[0]].engine, version="", dtype="", family="")
    return [
        judging.judge(
            answer_files.to_minted(answers[:-1], engine),
            answer_files.to_given(answers[-1], "", with_tokens=limit is not None),
            table,
        )
        for answers in zip(*runs, strict=False)
    ]


def count(pair: Pair, folder: Path, limit: float) -> dict[str, Any]:
    """The counts of one pair."""
    found: dict[str, Any] = {
        "reference": RUNS[pair.mintings[0]]._asdict(),
        "mintings": list(pair.mintings),
        "node": RUNS[pair.node]._asdict(),
        "run": pair.node,
        "honest": pair.honest,
    }
    seeded = RUNS[pair.node].temperature > 0
    for delta in DELTAS[-1:] if seeded else DELTAS:
        verdicts = judge_all(pair, folder, delta, None)
        kinds = Counter(verdict.kind for verdict in verdicts)
        found["by stable" if seeded else f"delta {delta}"] = {
            "agrees": kinds["agrees"], "censored": kinds["censored"],
            "differs": share(kinds["differs"], kinds["differs"] + kinds["agrees"]),
        }  # fmt: skip
        # Below every margin: where an answer parts at all.
        parted = [v for v in verdicts if v.kind != "agrees"]
        found["parted"] = share(len(parted), len(verdicts))
    if not seeded:
        found["least delta"] = _least_delta(pair, folder)
    distances = _distances(pair, folder)
    found["distance"] = {
        name: round(distances[min(int(len(distances) * at), len(distances) - 1)], 5)
        for name, at in (("least", 0.0), ("median", 0.5), ("p99", 0.99), ("largest", 1.0))
    }
    found["distance above limit"] = share(sum(d > limit for d in distances), len(distances))
    return found


def _least_delta(pair: Pair, folder: Path) -> float | None:
    """The least δ, in steps of 0.02 nat, at which no answer differs; `None` above 1."""
    for step in range(1, 51):
        delta = step / 50
        if not any(v.kind == "differs" for v in judge_all(pair, folder, delta, None)):
            return delta
    return None


def _distances(pair: Pair, folder: Path) -> list[float]:
    """The mean distance of the distributions of each answer, the least first."""
    runs = [answer_files.read(folder / f"{name}.jsonl") for name in (pair.mintings[0], pair.node)]
    means = [
        judging.mean_distance(answer_files.tokens_of(one), answer_files.tokens_of(other), None)
        for one, other in zip(*runs, strict=False)
    ]
    return sorted(mean[0] for mean in means if mean is not None)


def main() -> None:
    """Count, print, and write the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=0.008, help="the greatest distance of distributions")
    args = parser.parse_args()
    rows = []
    for pair in PAIRS:
        if all((args.folder / f"{name}.jsonl").exists() for name in (*pair.mintings, pair.node)):
            rows.append(count(pair, args.folder, args.limit))
            print(_line(rows[-1]), flush=True)
    if args.out:
        measured = {"model": "SmolLM2-135M-Instruct", "distance limit": args.limit, "pairs": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(measured, indent=1) + "\n")


def _line(row: dict[str, Any]) -> str:
    by = {name: value["differs"] for name, value in row.items() if name.startswith(("delta", "by"))}
    shares = "  ".join(
        f"{name.removeprefix('delta ')}: {each['hits']}/{each['of']}" for name, each in by.items()
    )
    spread = row["distance"]
    return (
        f"{row['mintings'][0]:10} {row['run']:14} {'honest' if row['honest'] else 'cheats':6} "
        f"parted {row['parted']['hits']}/{row['parted']['of']}  {shares}  least δ {row.get('least delta')}  "
        f"distance {spread['median']} ({spread['least']}…{spread['largest']})"
    )


if __name__ == "__main__":
    main()
