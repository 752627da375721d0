"""
A fleet over simulated weeks: who gets the work, who is found out, and whom it harms that should not be.

    python -m bench.fleet [--quick] [--nodes 10000] [--days 21] [--requests 1000000] [--seed 1]
                          [--routers 5] [--json FILE] [--svg docs/fleet.svg] [--session 4]
                          [--rule 1] [--flood NODES OPERATORS] [--before FILE --compared docs]

Nodes of 23 kinds (`bench.fleet_world.population.KINDS`: shares and behaviour) are driven through
the router's real core: `Fleet` by events, `decide`, `started` and `ended`, standings, breaker, φ,
settlement and operator holds, on a simulated clock.  It exits with 1 where work was sent to a node after the router
had been told that it was caught: that is a claim about correctness, not a measurement.

**The verifier** is modelled by its contract.  A called walk goes through every byte of what is
loaded, so it finds a node that has other weights loaded a share *c* of the time with
probability *c*: calls come at 45 to 180 s, a quarter carry a walk (its defaults).  Reads, and what a
node signs itself, find nobody here.  Who holds both weights and walks through the right ones is
"two-faced": nothing finds it (docs/limitations.md), nor do known prompts, which are not built yet.
The router hears within a second; a person decides within a day: cheats are retired, honest nodes,
held for faults of their own (2 in 10,000 a day), are let go to probation.  Results live
a day here and are renewed before, to save time; a machine that is away drops out after 300 s as it would.

**Time is stretched, not the counts.**  A fleet of ten thousand serves thousands of requests a
second; here it is a million in three weeks, seen by one router of five that are alike: what the
others see is drawn from the same truth, and merged as it is in truth.  So a node does
some 24 requests a day.  What goes by requests (evidence, breakers) is as it would be; what goes by
the hour (the half-life of an hour, latency objectives, a mismatch of 20 answers within an hour)
hardly judges.  ``--nodes 300 --days 3 --routers 1`` is a busy fleet, in which it does.  A few requests
are under way at a time: nothing queues.

**Baselines** send the same requests to the same machines in the same run: uniformly at random, and in
turn with a cooldown of 5 s after a failure, both with as many attempts as ours.  They know neither verdicts nor standings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import machine, row
from bench.fleet_world.report import Report, compare_newcomers, compare_operators
from bench.fleet_world.traffic import Traffic
from bench.fleet_world.world import Settings, World


def _both(spread: Sequence[float | None], unit: str) -> str:
    """Median and p90 in words."""
    return " / ".join("never" if v is None else f"{v:,.1f}" for v in spread) + f" {unit}"


def show(found: dict[str, Any]) -> None:
    """Print a report."""
    write = sys.stdout.write
    write(
        f"\n  {'kind':<22}{'nodes':>7}{'of nodes':>10}{'of work':>10}{'x honest':>10}{'caught':>8}"
        f"  {'after h, p50 / p90':<20}{'work before':>13}  {'behind after h':<20}\n"
    )
    for name, kind in found["kinds"].items():
        plain = name.startswith("honest")
        caught = _both(kind["hours_to_caught"], "") if kind["caught"] and not plain else "-"
        before = _both(kind["work_before_caught"], "") if kind["caught"] and not plain else "-"
        behind = _both(kind["hours_to_noticed"], "") if kind["noticed"] else "-"
        write(
            f"  {name:<22}{kind['nodes']:>7,}{kind['share_of_nodes']:>10.2%}{kind['share_of_work']:>10.2%}"
            f"{kind['relative_work']:>10.2f}{kind['caught']:>8,}  {caught:<20}{before:>13}  {behind:<20}\n"
        )
    write("\n")
    for name, seen in found["clients"].items():
        note = f"wrong {seen['wrong']:.4%}, {seen['seconds']:.2f} s"
        if ratio := seen.get("ratio"):
            note += f"; to ours: lost x{ratio['lost']:.1f}, wrong x{ratio['wrong']:.1f}, time x{ratio['seconds']:.2f}"
        row(f"{name}: completed", f"{seen['completion']:.3%}", note)
    for name, new in found["newcomers"].items():
        row(f"{name}: established", f"{new['established']} of {new['nodes']}", _both(new["days"], "days"))
    for name, what in (("honest, held", "quarantined_honest"), ("honest, after a bad day", "bad_days")):
        some = found[what]
        note = f"held {_both(some['held_hours'], 'h')}; back after {_both(some['days_to_back'], 'days')}"
        row(f"{name}: back", f"{some['back']} of {some['nodes']}", note)
    for name, (count, hours) in found["waited_for_operator"].items():
        row(f"{name}: waited for a review", f"{count}", f"{hours:.1f} h each")
    settlement = found["settlement"]
    row(
        "settlement: held", f"{settlement['held']}", f"{settlement['taken_for_ours']} taken for our own fault"
    )
    _show_gains(found["gains"])
    for lane, of in found["by_lane"].items():
        first = ", ".join(f"{kind} {share:.0%}" for kind, share in list(of.items())[1:6])
        row(f"lane {lane}: share of all work", f"{of['of all']:.2%}", first)
    row("lanes at the end", "", json.dumps(found["census"]))
    honest = {k: v["lanes"] for k, v in found["kinds"].items() if k.startswith("honest")}
    for name, lanes in honest.items():
        row(f"  {name}", "", json.dumps(lanes))


def _show_gains(gains: dict[str, Any]) -> None:
    for name in ("whitewash_same_name", "whitewash_new_name", "flaky", "flaky_renamed", "copies_per_device"):
        note = "an operator with one node is 1" if "copies" in name else ""
        row(f"{name.replace('_', ' ')}, x honest", f"{gains[name]:.2f}", note)
    paid = gains["wash_paid"] / max(gains["wash_to_own"], 1)
    row("wash trade: paid for each request to itself", f"{paid:,.0f}", f"{gains['wash_to_own']:,} to itself")
    for name, rate in gains["bad_hours"].items():
        row(f"{name}: work in bad hours, x honest", f"{rate:.2f}")
    for name, rate in gains["to_silent_per_hour_away"].items():
        row(f"{name}: requests per hour away", f"{rate:.3f}")
    row("ten nodes under ten names, x under one", f"{gains['split']:.3f}", "established")
    row("  newcomers likewise", f"{gains['split_newcomers']:.3f}")
    row("cheaters' share of all work", f"{gains['cheaters_share']:.3%}")
    sizes = ", ".join(f"{name}: {rate:.2f}" for name, rate in gains["by_operator"].items())
    row("honest, usual, x honest by size of operator", "", sizes)


def main() -> None:
    """Run, print, and say by the exit status whether work ever went where trust had gone."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=defaults.nodes)
    parser.add_argument("--days", type=float, default=defaults.days)
    parser.add_argument("--requests", type=int, default=defaults.requests)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--routers", type=int, default=defaults.routers)
    parser.add_argument("--rule", type=int, default=defaults.rule, help="By which rule the router decides.")
    parser.add_argument(
        "--flood",
        type=int,
        nargs=2,
        default=(0, 0),
        metavar=("NODES", "OPERATORS"),
        help="False names besides.",
    )
    parser.add_argument("--session", type=int, default=defaults.session, help="Requests by one decision.")
    parser.add_argument("--quick", action="store_true", help="A few seconds: 500 nodes, 5 days.")
    parser.add_argument("--json", type=Path, help="Where to write all numbers.")
    parser.add_argument("--before", type=Path, help="All numbers of another run, to be compared in charts.")
    parser.add_argument("--compared", type=Path, help="The folder where to write those charts.")
    parser.add_argument("--svg", type=Path, help="Where to write the chart.")
    args = parser.parse_args()
    settings = Settings(
        args.nodes,
        args.days,
        args.requests,
        args.seed,
        args.routers,
        rule=args.rule,
        session=args.session,
        flood=tuple(args.flood),
    )
    if args.quick:
        settings = replace(settings, nodes=500, days=5.0, requests=25_000)
    start = time.perf_counter()
    world = World(settings, partial(Traffic, seed=settings.seed))
    world.run()
    report = Report(world)
    found = report.to_json()
    sys.stdout.write(
        f"fleet: {settings.nodes:,} nodes, {settings.days:g} days, {world.tally.ours.requests:,} requests, "
        f"seed {settings.seed}; {time.perf_counter() - start:.0f} s; {machine()}\n"
    )
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.svg:
        args.svg.write_text(report.chart().svg(), encoding="utf-8")
    if args.before and args.compared:
        before = json.loads(args.before.read_text(encoding="utf-8"))
        for name, compare in (("newcomers", compare_newcomers), ("operators", compare_operators)):
            chart = compare(before, found)
            (args.compared / f"{name}.svg").write_text(chart.svg(), encoding="utf-8")
    row("requests to a node after it was caught", f"{found['after_told']}", "must be none")
    if found["after_told"]:
        sys.stdout.write("work was sent where trust had gone\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
