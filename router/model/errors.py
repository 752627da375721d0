"""
Errors of the router.

    RouterError
    ├── WorkloadError     a request maps to no workload, or to several
    ├── AttemptError      one attempt at one node failed; carries the outcome
    ├── ReplayError       a recorded decision does not come out again
    ├── HoldError         a step that cannot be taken about an incident of the router's own
    ├── KeyStepError      an API key cannot be made or revoked
    ├── IdempotencyError  a request with an Idempotency-Key is refused (`router.gateway.idempotency`)
    └── LimitError        an API key is over one of its limits (`router.gateway.keys`)
"""

from __future__ import annotations

from router.model.outcomes import Outcome


class RouterError(Exception):
    """Never raised itself."""


class WorkloadError(RouterError):
    """A request maps to no workload; the code is one that OpenAI's clients know."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class AttemptError(RouterError):
    """One attempt at one node failed.  Raised while a node is asked or its answer read, and caught by the exchange."""

    def __init__(self, outcome: Outcome, message: str, *, is_doubtful: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.is_doubtful = is_doubtful
        """Whether the request itself may be the cause."""


class ReplayError(RouterError):
    """A recorded decision does not come out again, or is not a decision."""


class HoldError(RouterError):
    """A step that cannot be taken about an incident of the router's own."""


class KeyStepError(RouterError):
    """An API key cannot be made or revoked."""
