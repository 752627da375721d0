"""
How many checks it takes until a node is caught that serves other weights, and whether honest nodes are left alone.

    python -m bench.answers [FOLDER]

FOLDER has the answers of real engines (`bench.answer_recordings`); without one, some are recorded first.
The rates of each node are measured on every other prompt; what is computed of them is then held against the verdicts on
the rest, by the same test as the verifier's.
A node that cheats on a part of its answers gives, prompt by prompt, the answer of one engine or of the other.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.answer_rates import PAIRS, Pair, clopper_pearson
from bench.answer_recordings import RUNS, record
from fixtures import answer_files
from verifier.answers import judge as judging
from verifier.answers import sequence, tables
from verifier.answers.checks import EngineUsed, Given, Minted, Verdict
from verifier.answers.tables import Rates

BOUNDARY: Final = sequence.boundary(1.0)
"""One false alarm in a million checks: the default for a suspicion."""
SHARE: Final = 0.02
"""Of a node's requests that are checks: what requests are computed with."""
ORDERS: Final = 200
"""Orders in which the checks of the second half are asked."""
MOST: Final = 10_000
_RECORDED: Final = ("bf16", "bf16-4", "q4_0-4", "q8_0-4", "pruned-4")
"""What is recorded if nothing is at hand: a quarter of an hour on two cores."""
_PROMPTS: Final = 240
BY: Final = {False: "text", True: "text and probabilities"}
DTYPES: Final = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "smollm2": "bfloat16",
}


class Checked(NamedTuple):
    """The verdicts on a node's answers, in the order of the prompts, and the rates by which they count."""

    verdicts: list[Verdict]
    rates: Rates | None


def check(pair: Pair, folder: Path, *, with_tokens: bool) -> Checked:
    """Judge all answers of a pair's node as the verifier does."""
    mint, node = RUNS[pair.mintings[0]], RUNS[pair.node]
    engine = EngineUsed(name=mint.engine, version="", dtype=DTYPES[mint.file], family=mint.engine)
    table = tables.table_for(engine, node.engine)
    runs = [answer_files.read(folder / f"{name}.jsonl") for name in (*pair.mintings, pair.node)]
    verdicts, rates = [], None
    for answers in zip(*runs, strict=False):
        ours: Minted = answer_files.to_minted(answers[:-1], engine)
        theirs: Given = answer_files.to_given(answers[-1], node.engine, with_tokens=with_tokens)
        verdicts.append(judging.judge(ours, theirs, table))
        rates = tables.rates_for(ours, theirs, table)
    return Checked(verdicts, rates)


class Power(NamedTuple):
    """What follows from measured rates: checks until caught, with what the confidence interval makes of them."""

    median: int | None
    """At the measured rate."""
    soon: int | None
    """The median at the upper limit of the rate."""
    late: int | None
    """The median at the lower limit of the rate."""
    p90: int | None


def compute(rates: Rates, honest: Sequence[Verdict], cheat: Sequence[Verdict], share: float) -> Power:
    """The power against a node that cheats on *share* of its answers, by verdicts on each kind of answer."""
    differs = [sum(v.kind == "differs" for v in each) for each in (honest, cheat)]
    counted = [sum(v.kind in ("agrees", "differs") for v in each) for each in (honest, cheat)]
    # How often an answer of the cheat says anything is measured too.
    rates_of = clopper_pearson(differs[1], counted[1])
    says_of = clopper_pearson(counted[1], len(cheat))
    cases = (
        (differs[1] / counted[1], counted[1] / len(cheat)),
        (rates_of[1], says_of[1]),
        (rates_of[0], says_of[0]),
    )
    medians = []
    for rate, said in cases:
        # Of all checks: the shares that differ and that say nothing.
        says = (1 - share) * counted[0] / len(honest), share * said
        differing = (says[0] * differs[0] / max(counted[0], 1) + says[1] * rate) / sum(says)
        found = sequence.detection(rates, BOUNDARY, differing, MOST, silent=1 - sum(says))
        medians.append((sequence.quantile(found, 0.5), sequence.quantile(found, 0.9)))
    return Power(medians[0][0], medians[1][0], medians[2][0], medians[0][1])


def observe(
    rates: Rates,
    honest: Sequence[Verdict],
    cheat: Sequence[Verdict],
    share: float,
    random: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Ask the checks in many orders, again from the beginning if they do not suffice; how many it took each time."""
    steps = sequence.increments(rates)
    value = {"agrees": steps.agrees, "differs": steps.differs, "censored": 0.0, "unusable": 0.0}
    prompts = min(len(honest), len(cheat))
    moves = np.array([[value[v.kind] for v in each[:prompts]] for each in (honest, cheat)])
    taken = np.full(ORDERS, float(MOST))
    for order in range(ORDERS):
        score = 0.0
        for number in range(MOST):
            prompt = random.integers(moves.shape[1])
            score = max(score + moves[int(random.random() < share), prompt], 0.0)
            if score >= BOUNDARY:
                taken[order] = number + 1
                break
    return taken


def cheats(folder: Path) -> None:
    """The table of those who cheat."""
    random = np.random.default_rng(16)
    print("| node serves | checks use | share | differ of the checked | computed: median (interval), 9 of 10 |"
          " measured: median (9 of 10) | agree | requests at 2 % |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for pair in PAIRS:
        true = next((p for p in PAIRS if p.honest and _is_alike(p, pair) and _there(p, folder)), None)
        if pair.honest or true is None or not _there(pair, folder):
            continue
        for with_tokens in (False, True):
            honest, cheat = (check(each, folder, with_tokens=with_tokens) for each in (true, pair))
            if cheat.rates is None:
                continue
            for share in (1.0, 0.1):
                _row(pair, honest, cheat, share, BY[with_tokens], random)


def _is_alike(one: Pair, other: Pair) -> bool:
    """Whether the same reference is held against nodes with the same engine."""
    return one.mintings == other.mintings and RUNS[one.node].engine == RUNS[other.node].engine


def _row(
    pair: Pair, honest: Checked, cheat: Checked, share: float, by: str, random: np.random.Generator
) -> None:
    assert cheat.rates is not None
    measured = [each.verdicts[::2] for each in (honest, cheat)]
    asked = [each.verdicts[1::2] for each in (honest, cheat)]
    power = compute(cheat.rates, measured[0], measured[1], share)
    taken = observe(cheat.rates, asked[0], asked[1], share, random)
    median, most = (float(np.quantile(taken, q)) for q in (0.5, 0.9))
    differs = sum(v.kind == "differs" for v in measured[1])
    counted = sum(v.kind in ("agrees", "differs") for v in measured[1])
    # The second half is a sample too: its own interval must touch that of the first.
    other = compute(cheat.rates, asked[0], asked[1], share)
    agree = _touch((power.soon, power.late), (other.soon, other.late)) and _within(median, other)
    print(
        f"| {pair.node} (true: {pair.mintings[0]}) | {by} | {share:.0%} |"
        f" {differs}/{counted} | {_number(power.median)} ({_number(power.soon)} to {_number(power.late)}),"
        f" {_number(power.p90)} | {_number(median)} ({_number(most)}) | {'yes' if agree else 'NO'} |"
        f" {_number(median) if median >= MOST else f'{median / SHARE:,.0f}'} |",
        flush=True,
    )


def _within(median: float, power: Power) -> bool:
    """Whether what was measured is what the same rates make one expect, but for chance in the orders."""
    return power.median is None or abs(median - power.median) <= max(0.15 * power.median, 2)


def _touch(one: tuple[int | None, int | None], other: tuple[int | None, int | None]) -> bool:
    low = [each[0] or MOST for each in (one, other)]
    high = [each[1] or MOST for each in (one, other)]
    return max(low) <= min(high)


def _number(value: float | None) -> str:
    return f"over {MOST:,}" if value is None or value >= MOST else f"{value:,.0f}"


def _there(pair: Pair, folder: Path) -> bool:
    return all((folder / f"{name}.jsonl").exists() for name in (*pair.mintings, pair.node))


def honest(folder: Path) -> None:
    """Every real check of an honest node, and a million simulated ones at the measured rates."""
    pools: dict[Rates, list[Verdict]] = {}
    accused = checks = 0
    for pair in PAIRS:
        if not pair.honest or not _there(pair, folder):
            continue
        for with_tokens in (False, True):
            verdicts, rates = check(pair, folder, with_tokens=with_tokens)
            if rates is None:
                continue
            pools.setdefault(rates, []).extend(verdicts)
            scores = _scores(verdicts, rates)
            checks += len(verdicts)
            accused += max(scores) >= BOUNDARY
            differs = sum(v.kind == "differs" for v in verdicts)
            print(f"honest: {pair.node} by {pair.mintings[0]}: {differs} of {len(verdicts)} differ,"
                  f" highest score {max(scores):.1f} of {BOUNDARY:.1f}")  # fmt: skip
    print(f"honest nodes accused in {checks} real checks: {accused}")
    for rates, verdicts in pools.items():
        differs = sum(v.kind == "differs" for v in verdicts)
        counted = sum(v.kind in ("agrees", "differs") for v in verdicts)
        upper = clopper_pearson(differs, counted)[1]
        for name, rate in (("measured", differs / counted), ("upper limit", upper), ("table", rates.honest)):
            exact = 1e6 / abs(sequence.checks_to_alarm(rates, BOUNDARY, max(rate, 1e-4)))
            print(f"simulated, 10^6 checks at the {name} rate {rate:.5f} (table {rates.honest}):"
                  f" {simulate(rates, rate)} accused; exact bound {exact:.3f} in a million")  # fmt: skip


def _scores(verdicts: Sequence[Verdict], rates: Rates) -> list[float]:
    steps = sequence.increments(rates)
    score, found = 0.0, [0.0]
    for verdict in verdicts:
        if verdict.kind in ("agrees", "differs"):
            score = max(score + (steps.differs if verdict.kind == "differs" else steps.agrees), 0.0)
        found.append(score)
    return found


def simulate(rates: Rates, rate: float, nodes: int = 2000, checks: int = 500) -> int:
    """How many of *nodes* honest nodes are accused within *checks* checks each."""
    random = np.random.default_rng(16)
    steps = sequence.increments(rates)
    scores = np.zeros(nodes)
    accused = np.zeros(nodes, bool)
    for _ in range(checks):
        moves = np.where(random.random(nodes) < rate, steps.differs, steps.agrees)
        scores = np.maximum(scores + moves, 0.0)
        accused |= scores >= BOUNDARY
    return int(accused.sum())


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="touchstone-answers-") as made:
        folder = Path(made) if given is None else given
        if given is None:
            for name in _RECORDED:
                record(folder, name, _PROMPTS)
        cheats(folder)
        print()
        honest(folder)


if __name__ == "__main__":
    main()
