"""What came of a run, as data and as a chart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from bench.fleet_world.population import DAY, KINDS, WORKLOAD, Kind, Seat
from bench.fleet_world.tally import BIN_S, Clients
from bench.fleet_world.world import BAD_S, GOOD_S, World
from bench.plot import Chart, Line
from router.choose.candidates import Lane

_PLOTTED = (
    "honest",
    "wrong weights, 2 %",
    "claims all x3",
    "on-off, crashing",
    "on-off, slow",
    "whitewash, same name",
    "whitewash, new name",
    "two-faced, 2 %",
)
_HOURS = (-24.0, 96.0, 12.0)
_SIZES = ((1, "1"), (2, "2"), (5, "3-5"), (10, "6-10"))
_LARGE = "11 and more"


class Report:
    """What came of a run, as data."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seats = {kind.name: [s for s in world.seats if s.kind is kind] for kind in world.kinds}
        self._sizes = Counter(seat.operator for seat in world.seats)
        usual = self._seats["honest, usual"]
        self._usual = _rate(usual, world.end)
        by_size: dict[str, list[Seat]] = {}
        for seat in usual:
            by_size.setdefault(self._size(seat), []).append(seat)
        self._rates = {size: _rate(seats, world.end) for size, seats in by_size.items()}
        """Requests that reach an honest node of usual speed in a second, by the size of its operator."""

    def _size(self, seat: Seat) -> str:
        size = self._sizes[seat.operator]
        return next((name for most, name in _SIZES if size <= most), _LARGE)

    def expected(self, seat: Seat) -> float:
        """What an honest node of an operator of that size gets, per second."""
        return self._rates.get(self._size(seat), self._usual)

    def relative(self, seats: Sequence[Seat]) -> float:
        """Work since they turned, as a multiple of what honest ones of usual speed and like operators get."""
        end = self._world.end
        expected = sum(self.expected(s) * (end - max(s.turn, s.born)) for s in seats)
        return sum(s.work for s in seats) / max(expected, 1e-9)

    def kind(self, kind: Kind) -> dict[str, Any]:
        """One kind of nodes."""
        world, seats = self._world, self._seats[kind.name]
        caught = [s.caught - s.turn for s in seats if s.caught is not None and s.caught >= s.turn]
        noticed = [s.noticed - s.turn for s in seats if s.noticed is not None]
        before = sorted(s.work_before for s in seats if s.caught is not None and s.caught >= s.turn)
        held = sum(world.end - s.born for s in seats)
        return {
            "nodes": len(seats),
            "share_of_nodes": held / sum(world.end - s.born for s in world.seats),
            "share_of_work": world.tally.sent[kind.name] / max(sum(world.tally.sent.values()), 1),
            "relative_work": self.relative(seats),
            "caught": len(caught),
            "hours_to_caught": _spread(caught, len(caught), 3600),
            "work_before_caught": [_quantile(before, 0.5), _quantile(before, 0.9)],
            "share_of_work_before_caught": sum(before) / max(sum(world.tally.sent.values()), 1),
            "noticed": len(noticed),
            "hours_to_noticed": _spread(noticed, len(seats), 3600),
            "lanes": self._lanes(seats),
        }

    def _lanes(self, seats: Sequence[Seat]) -> dict[str, int]:
        found: dict[str, int] = {}
        for seat in seats:
            assert seat.identity is not None
            lane = self._world.fleet.lane(seat.identity.name, WORKLOAD)
            where = "out" if lane is None else str(lane)
            found[where] = found.get(where, 0) + 1
        return found

    def newcomers(self, name: str) -> dict[str, Any]:
        """How long until they are established; those that are not yet count as never."""
        found = [s.identity for s in self._seats[name] if s.identity is not None]
        times = [i.proven - i.enrolled for i in found if i.proven is not None]
        return {
            "nodes": len(found),
            "established": len(times),
            "days": _spread(times, len(found), DAY),
            "by_half_day": [sum(t <= k * DAY / 2 for t in times) / max(len(found), 1) for k in range(21)],
        }

    def recoveries(self, why: str) -> dict[str, Any]:
        """Honest nodes that lost their standing."""
        found = [r for r in self._world.tally.recoveries if r.why == why]
        back = [r.back - r.since for r in found if r.back is not None]
        return {
            "nodes": len(found),
            "held_hours": _spread([r.held_s for r in found], len(found), 3600),
            "back": len(back),
            "days_to_back": _spread(back, len(found), DAY),
        }

    def by_operator(self) -> dict[str, float]:
        """Work per node of honest nodes of usual speed, by how many nodes their operator has."""
        names = [name for _, name in _SIZES] + [_LARGE]
        return {name: self._rates[name] / self._usual for name in names if name in self._rates}

    def by_lane(self) -> dict[str, dict[str, float]]:
        """How the work of the lesser lanes is shared by kinds."""
        sent = self._world.tally.by_lane
        total = sum(sent.values())
        found = {}
        for lane in (Lane.PROBATION, Lane.DEGRADED):
            of_lane = {kind: count for (kind, where), count in sent.items() if where is lane}
            whole = sum(of_lane.values())
            found[str(lane)] = {"of all": whole / max(total, 1)} | {
                kind: count / whole for kind, count in sorted(of_lane.items(), key=lambda x: -x[1])
            }
        return found

    def gains(self) -> dict[str, Any]:
        """What tricks bring, as multiples."""
        world, tally = self._world, self._world.tally
        names = {k: _mean(s.names for s in self._seats[k]) for k in self._seats}
        copies = next(k for k in KINDS if k.batch == 10)
        bad = {
            k.name: sum(self.expected(s) * _bad_seconds(world.end - s.turn) for s in self._seats[k.name])
            for k in KINDS
            if k.has_phases
        }
        silent = {
            k: tally.to_silent[k] / max(tally.away_s[k] / 3600, 1e-9)
            for k in ("honest, usual", "heartbeat stretcher")
        }
        return {
            "whitewash_same_name": self.relative(self._seats["whitewash, same name"]),
            "whitewash_new_name": self.relative(self._seats["whitewash, new name"]),
            "names_used": [names["whitewash, same name"], names["whitewash, new name"]],
            "flaky": self.relative(self._seats["flaky, 5-20 %"]),
            "flaky_renamed": self.relative(self._seats["flaky, renames itself"]),
            "copies_per_device": _rate(self._seats[copies.name], world.end)
            * 10
            / self._rates.get("1", self._usual),
            "split": self._split("ten under one name", "ten under ten names"),
            "split_newcomers": self._split("new, ten under one name", "new, ten under ten names"),
            "cheaters_share": self.cheaters_share(),
            "colluding_per_node": self.relative(self._seats["colluding, 1 operator"]),
            "wash_paid": sum(tally.wash.values()),
            "wash_to_own": tally.wash["own"],
            "bad_hours": {k: tally.in_bad_hours[k] / max(s, 1e-9) for k, s in bad.items()},
            "to_silent_per_hour_away": silent,
            "by_operator": self.by_operator(),
        }

    def _split(self, one: str, ten: str) -> float:
        """Work per node under names of their own, as a multiple of that of like nodes under one name."""
        end = self._world.end
        return _rate(self._seats[ten], end) / max(_rate(self._seats[one], end), 1e-9)

    def cheaters_share(self) -> float:
        """Share of all work that went to nodes that serve other weights, after they had turned."""
        work = sum(s.work for seats in self._seats.values() for s in seats if s.kind.wrong)
        return work / max(sum(self._world.tally.sent.values()), 1)

    def clients(self) -> dict[str, Any]:
        """What those who ask see, and what the baselines' see."""
        tally = self._world.tally
        named = {"touchstone": tally.ours, "uniform": tally.uniform, "round_robin": tally.robin}
        found: dict[str, Any] = {name: _clients(clients) for name, clients in named.items()}
        for name in ("uniform", "round_robin"):
            other = named[name]
            found[name]["ratio"] = {
                "lost": other.failing / max(tally.ours.failing, 1e-9),
                "wrong": other.wrong_share / max(tally.ours.wrong_share, 1e-9),
                "seconds": other.mean_s / max(tally.ours.mean_s, 1e-9),
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        tally = self._world.tally
        settings = self._world.settings
        return {
            "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
            "after_told": tally.after_told,
            "after_caught_within_a_second": tally.after_caught,
            "kinds": {kind.name: self.kind(kind) for kind in self._world.kinds},
            "clients": self.clients(),
            "newcomers": {k.name: self.newcomers(k.name) for k in self._world.kinds if k.arrives},
            "quarantined_honest": self.recoveries("quarantine"),
            "bad_days": self.recoveries("bad day"),
            "waited_for_operator": {k: [n, tally.waited_s[k] / n / 3600] for k, n in tally.waited.items()},
            "settlement": {"held": tally.holds, "taken_for_ours": tally.holds_ours},
            "gains": self.gains(),
            "by_lane": self.by_lane(),
            "census": self._world.fleet.census()[WORKLOAD.name],
            "empty_decisions": tally.empty,
        }

    def chart(self) -> Chart:
        """Work per node from the moment it turns."""
        settings = self._world.settings
        lines = []
        for name in _PLOTTED:
            if name == "honest":
                lines.append(Line("honest, usual speed", [(_HOURS[0], 1.0), (_HOURS[1], 1.0)]))
                continue
            points = self._since_turn(name)
            kind = next(k for k in KINDS if k.name == name)
            found = self.kind(kind)
            hours, what = found["hours_to_caught"], "caught"
            if not found["caught"]:
                hours, what = found["hours_to_noticed"], "put behind others"
            marks = [
                (h, _between(points, h), f"{share} {what} within {h:.1f} h")
                for share, h in zip(("half", "nine in ten"), hours, strict=True)
                # Where one that nothing can find stands behind others, that is chance.
                if h is not None and h <= _HOURS[1] and kind.shown
            ]
            lines.append(Line(name, points, marks, dashed=not kind.shown))
        return Chart(
            "What a node gets from the moment it turns bad",
            f"{settings.nodes:,} nodes, {settings.days:g} days, simulated; dots: half, and nine in ten, "
            "caught or put behind others",
            "hours since it turned",
            "work, as a multiple of an honest node's",
            _HOURS,
            (0.0, 1.5, 0.25),
            lines,
            upright=0.0,
        )

    def _since_turn(self, name: str) -> list[tuple[float, float]]:
        end, points = self._world.end, []
        for number in range(int(_HOURS[0] * 3600 // BIN_S), int(_HOURS[1] * 3600 // BIN_S)):
            start = number * BIN_S
            there = sum(
                self.expected(s) * max(0.0, min(end, s.turn + start + BIN_S) - max(s.born, s.turn + start))
                for s in self._seats[name]
            )
            if there:
                rate = self._world.tally.bins[name, number] / there
                points.append(((start + BIN_S / 2) / 3600, rate))
        return points


_MIDDLES = {"1": 1.0, "2": 2.0, "3-5": 4.0, "6-10": 8.0, _LARGE: 25.0}
"""Operators' sizes as they stand in a chart."""


def compare_newcomers(before: dict[str, Any], after: dict[str, Any]) -> Chart:
    """How many newcomers are established, by the days since they came, in two runs."""
    lines = []
    for when, found in (("before", before), ("after", after)):
        for kind in ("honest newcomer", "honest batch of 50"):
            curve = found["newcomers"][kind]["by_half_day"]
            points = [(k / 2, share) for k, share in enumerate(curve)]
            lines.append(Line(f"{kind}, {when}", points, dashed=when == "before"))
    return Chart(
        "Newcomers that are established",
        _subtitle(after),
        "days since they came",
        "share of them",
        (0.0, 10.0, 1.0),
        (0.0, 1.0, 0.2),
        lines,
    )


def compare_operators(before: dict[str, Any], after: dict[str, Any]) -> Chart:
    """Work per node by the size of its operator, in two runs."""
    lines = [
        Line(
            when,
            [(_MIDDLES[size], rate) for size, rate in found["gains"]["by_operator"].items()],
            dashed=when == "before",
        )
        for when, found in (("before", before), ("after", after))
    ]
    return Chart(
        "Work per node, by how many nodes its operator has",
        _subtitle(after),
        "nodes of the operator",
        "multiple of the average",
        (0.0, 25.0, 5.0),
        (0.0, 5.0, 1.0),
        lines,
    )


def _subtitle(found: dict[str, Any]) -> str:
    settings = found["settings"]
    return f"{settings['nodes']:,} nodes, {settings['days']:g} days, {settings['requests']:,} requests, simulated"


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The height of a line of points at x."""
    for (left, low), (right, high) in pairwise(points):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1] if points else 0.0


def _rate(seats: Sequence[Seat], end: float) -> float:
    there = sum(end - max(s.turn, s.born) for s in seats)
    return sum(s.work for s in seats) / max(there, 1e-9)


def _bad_seconds(seconds: float) -> float:
    cycles, rest = divmod(max(seconds, 0.0), BAD_S + GOOD_S)
    return cycles * BAD_S + min(rest, BAD_S)


def _quantile(found: Sequence[float], share: float) -> float | None:
    return found[min(int(share * len(found)), len(found) - 1)] if found else None


def _spread(found: Iterable[float], count: int, unit: float) -> list[float | None]:
    """Median and 90th percentile among *count*, of which those not found count as never (`None`)."""
    ordered = [*sorted(found), *[math.inf] * count][:count]
    spread = [_quantile(ordered, share) for share in (0.5, 0.9)]
    return [None if v is None or math.isinf(v) else v / unit for v in spread]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(len(found), 1)


def _clients(clients: Clients) -> dict[str, Any]:
    return {
        "requests": clients.requests,
        "completion": clients.completion,
        "lost": clients.failing,
        "wrong": clients.wrong_share,
        "seconds": clients.mean_s,
    }
