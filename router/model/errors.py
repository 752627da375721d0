"""
Errors of the router.

    RouterError
    ├── WorkloadError    a request maps to no workload, or to several
    ├── PoolEmptyError   no node may do this work; carries the decision that says why
    ├── AttemptError     one attempt at one node failed; carries the outcome
    ├── ReplayError      a recorded decision does not come out again
    └── HoldError        a step that cannot be taken about an incident of the router's own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.choose.decision import Decision
    from router.model.outcomes import Outcome


class RouterError(Exception):
    """Never raised itself."""


class WorkloadError(RouterError):
    """A request maps to no workload; the code is as OpenAI's clients know it."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class PoolEmptyError(RouterError):
    """No node may do this work: an answer, never a reason to relax."""

    def __init__(self, decision: Decision) -> None:
        super().__init__("no node may do this work")
        self.decision = decision


class AttemptError(RouterError):
    """One attempt at one node failed."""

    def __init__(self, outcome: Outcome, message: str, *, doubtful: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.doubtful = doubtful
        """Whether it may be the request's doing."""


class ReplayError(RouterError):
    """A recorded decision does not come out again, or is no decision."""


class HoldError(RouterError):
    """A step that cannot be taken about an incident of the router's own."""
