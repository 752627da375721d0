"""
A trial: which verdicts a policy would change on recorded evidence, for which nodes, and why.

Nothing follows from a trial: it stores no result, no incident and no walk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from verifier.changes import Change, compare
from verifier.policy.questions import Answers
from verifier.reappraisal import Reappraiser, recorded_verdicts
from verifier.recording import RecordingHead

MAX_FAILURES: Final = 100
"""A trial stops after so many failures: a policy that always fails may take a second for each recording."""


@dataclass
class ChangeCount:
    """One change of one node: how often it was seen, and when last (milliseconds since 1970)."""

    node: str
    change: Change
    count: int = 0
    last_ms: int = 0


@dataclass
class TrialReport:
    """What a trial found."""

    policy: str
    appraisals: int = 0
    unchanged: int = 0
    examined: int = 0
    failures: int = 0
    first_failure: str | None = None
    """Why the policy failed on a recording for the first time."""
    gave_up: bool = False
    """The policy failed so often that the remaining recordings were not tried."""
    samples: Answers = field(default_factory=Answers)
    """What came of asking the policy about what the contract allows."""
    nodes: set[str] = field(default_factory=set)
    changes: dict[bytes, ChangeCount] = field(default_factory=dict)

    def count(self, head: RecordingHead, changes: Sequence[Change]) -> None:
        """Add one appraisal and its changes."""
        self.appraisals += 1
        self.unchanged += not changes
        self.nodes.add(head.node_id)
        for change in changes:
            key = head.node_id.encode() + b" " + msgspec.json.encode(change, order="deterministic")
            counted = self.changes.setdefault(key, ChangeCount(head.node_id, change))
            counted.count += 1
            counted.last_ms = max(counted.last_ms, head.at_ms)

    @property
    def has_failed(self) -> bool:
        """Whether the policy failed on a recording, or on a sample."""
        return self.failures > 0 or self.samples.failure is not None

    def in_order(self) -> list[ChangeCount]:
        """The changes by node, submodule and time."""
        return sorted(self.changes.values(), key=lambda c: (c.node, c.change.submod, c.last_ms))

    def to_wire(self) -> dict[str, Any]:
        """The report as JSON-compatible values."""
        directions = [c.change.direction for c in self.changes.values()]
        return {
            "policy": self.policy,
            "appraisals": self.appraisals,
            "unchanged": self.unchanged,
            "nodes": len(self.nodes),
            "nodes_changed": len({c.node for c in self.changes.values()}),
            "better": directions.count("better"),
            "worse": directions.count("worse"),
            "other": directions.count("other"),
            "examined": self.examined,
            "failures": self.failures,
            "first_failure": self.first_failure,
            "gave_up": self.gave_up,
            "samples": self.samples.asked,
            "failed_sample": None if (failure := self.samples.failure) is None else failure.to_wire(),
            "changes": [
                {
                    "node": c.node,
                    "submod": c.change.submod,
                    "direction": c.change.direction,
                    "from": msgspec.to_builtins(c.change.before),
                    "to": msgspec.to_builtins(c.change.after),
                    "count": c.count,
                    "last": c.last_ms // 1000,
                }
                for c in self.in_order()
            ],
        }


async def run(
    pages: AsyncIterator[list[RecordingHead]],
    reappraiser: Reappraiser,
    policy_id: str,
    progress: Callable[[int], None] | None = None,
    *,
    samples: Answers | None = None,
) -> TrialReport:
    """
    Try a policy on recordings.

    Args:
        pages: Recordings, as `verifier.store.recordings.pages` gives them.
        reappraiser: Appraises recordings under the policy.
        policy_id: The policy's id, as results name it.
        progress: Called with the number of recordings that were tried since the last call.
        samples: What came of asking the policy about samples (`verifier.policy.questions`).
    """
    report = TrialReport(policy_id, samples=samples or Answers())
    async for page in pages:
        for head, after in zip(page, await reappraiser.verdicts(page), strict=True):
            report.count(head, compare(recorded_verdicts(head), after))
        report.examined, report.failures = reappraiser.examined, reappraiser.failures
        report.first_failure = reappraiser.first_failure
        if progress is not None:
            progress(len(page))
        if reappraiser.failures >= MAX_FAILURES:
            report.gave_up = True
            break
    return report
