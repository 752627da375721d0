"""A change as one router tries it: the candidate, and all that was seen of it here and at other routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.choose.decision import Decision
from router.choose.difference import SAME, Difference
from router.model.change import Arm, Stage, is_shared, unit_of
from router.model.comparison import Comparison, Observation, find_worse
from router.model.table import read_table
from router.model.tokens import Tokeniser
from router.model.workload import Table, Workload
from router.store.changes import Change

MAX_EXAMPLES: Final = 24
_MOST_KINDS: Final = 2000
_EXAMPLE_EVERY_S: Final = 30.0
_REFUSED: Final = frozenset({"refused", "unknown", "error"})
"""Differences by which a request would have been refused."""


class Example(Struct, frozen=True, kw_only=True):
    """A request on which the two tables differed: two records of decisions, which can be made again."""

    workload: str
    kind: str
    code: str
    record: str
    """The id of the decision that counted."""
    active: dict[str, Any]
    candidate: dict[str, Any] | None
    """`None`: the candidate could not decide."""


class Sight(Struct):
    """What one router has seen of a change."""

    decided: int = 0
    """Requests on which both tables decided."""
    skipped: int = 0
    """Requests that were left out, because there were more than the candidate may see in a second."""
    differences: dict[str, dict[str, dict[str, int]]] = {}
    """By workload, kind and code."""
    kinds: int = 0
    """How many workloads, kinds and codes there are."""
    examples: list[Example] = []
    shadow: Comparison = msgspec.field(default_factory=Comparison)
    """Of decisions alone, whatever the stage."""
    shared: Comparison = msgspec.field(default_factory=Comparison)
    """Of requests since the candidate has a share."""


@dataclass(kw_only=True)
class Trial:
    """A live change at this router."""

    change: Change
    table: Table
    tokenisers: Mapping[str, Tokeniser]
    monotonic: Callable[[], float]
    sight: Sight = field(default_factory=Sight)
    others: dict[str, Sight] = field(default_factory=dict)
    """What other routers have seen, by their names."""
    is_ended: bool = False
    """Whether this router goes on without it, whatever the store says."""
    has_erred: bool = False
    """Whether an error of the candidate was told."""
    is_changed: bool = False
    """Whether something was seen that is not written yet."""
    _examples_at: dict[tuple[str, str, str], float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        change: Change,
        tokenisers: Callable[[Table], Mapping[str, Tokeniser]],
        monotonic: Callable[[], float],
    ) -> Trial:
        """
        Begin a trial.

        Raises:
            ConfigError: the candidate is no table, or names a tokeniser that cannot be read here.
        """
        table = read_table(change.document)
        return cls(change=change, table=table, tokenisers=tokenisers(table), monotonic=monotonic)

    def counted_by(self) -> dict[str, tuple[Workload, Tokeniser | None]]:
        """The candidate's workloads, each with what counts its tokens."""
        return {name: (each, self.tokenisers.get(name)) for name, each in self.table.workloads.items()}

    @property
    def has_share(self) -> bool:
        """Whether the candidate decides about a part of the traffic."""
        return self.change.stage is Stage.SHARE and self.change.share > 0 and not self.is_ended

    def takes(self, caller: str, document: Mapping[str, Any]) -> bool:
        """Whether a request is in the candidate's share."""
        if not self.has_share:
            return False
        unit = unit_of(self.change.settings.by, caller, document)
        return is_shared(self.change.secret, unit, self.change.share)

    def note_difference(
        self,
        workload: str,
        found: Difference,
        record: str,
        active: Decision,
        candidate: Decision | None,
        costs: tuple[int, int] | None,
    ) -> None:
        """Count what the two tables decided about one request; *costs*: by the candidate and by the one in force."""
        sight, self.is_changed = self.sight, True
        sight.decided += 1
        kinds = sight.differences.setdefault(workload, {})
        codes = kinds.setdefault(found.kind, {})
        if found.code in codes or sight.kinds < _MOST_KINDS:
            sight.kinds += found.code not in codes
            codes[found.code] = codes.get(found.code, 0) + 1
        seen = Observation(
            arm=Arm.CANDIDATE,
            stratum=workload,
            failed=found.kind in _REFUSED,
            refused=found.kind in _REFUSED,
            cost=0 if costs is None else costs[0],
            other_cost=None if costs is None else costs[1],
        )
        sight.shadow.add(seen, self.change.settings.bounds, 0.0)
        if found.kind != SAME:
            self._keep_example(workload, found, record, active, candidate)

    def _keep_example(
        self, workload: str, found: Difference, record: str, active: Decision, candidate: Decision | None
    ) -> None:
        """Keep the newest of each kind; to write one down takes time, so that it is done once in a while."""
        name, now = (workload, found.kind, found.code), self.monotonic()
        at = self._examples_at.get(name)
        if at is not None and now - at < _EXAMPLE_EVERY_S:
            return
        self._examples_at[name] = now
        example = Example(
            workload=workload,
            kind=found.kind,
            code=found.code,
            record=record,
            active=active.to_wire(),
            candidate=None if candidate is None else candidate.to_wire(),
        )
        kept = [e for e in self.sight.examples if (e.workload, e.kind, e.code) != name]
        self.sight.examples = [*kept[-(MAX_EXAMPLES - 1) :], example]

    def observe(self, seen: Observation) -> str | None:
        """Take in what became of a request; returns the test that stops the change, if one does."""
        change, self.is_changed = self.change, True
        settings = change.settings
        wanted = settings.revision_from if seen.arm is Arm.ACTIVE else settings.revision_to
        is_compared = not settings.model or not seen.revision or seen.revision == wanted
        shared = self.sight.shared
        shared.add(seen, settings.bounds, change.share / 100, is_compared=is_compared)
        if not self.has_share or not (seen.arm is Arm.CANDIDATE or seen.failed or seen.retried):
            return None
        return find_worse(self.comparisons(), settings.bounds)

    def comparisons(self) -> list[Comparison]:
        """What each router has seen of requests."""
        return [self.sight.shared, *(other.shared for other in self.others.values())]

    def shadows(self) -> list[Comparison]:
        """What each router has seen of decisions."""
        return [self.sight.shadow, *(other.shadow for other in self.others.values())]

    def restart(self) -> None:
        """Forget what the arms did; the times of the table in force stay known."""
        strata = self.sight.shared.strata
        for stratum in strata.values():
            stratum.split = type(stratum.split)()
        self.sight.shared = Comparison(strata=strata)
        self.is_changed = True
