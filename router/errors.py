"""
Errors of the router.

    RouterError
    ├── WorkloadError    a request that maps to no workload, or a workload that cannot be used
    ├── PoolEmptyError   no node may do this work; carries the decision that says why
    └── AttemptError     one attempt at one node failed; carries the outcome
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.decision import Decision
    from router.outcomes import Outcome


class RouterError(Exception):
    """Never raised itself."""


class WorkloadError(RouterError):
    """A request maps to no workload, or a workload cannot be used."""


class PoolEmptyError(RouterError):
    """No node may do this work: an answer, never a reason to relax."""

    def __init__(self, decision: Decision) -> None:
        super().__init__("no node may do this work")
        self.decision = decision


class AttemptError(RouterError):
    """One attempt at one node failed."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
