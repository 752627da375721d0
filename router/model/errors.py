"""
Errors of the router.

    RouterError
    ├── WorkloadError     a request maps to no workload, or to several
    ├── RequestFormError  a request asks for what no operation of this router does
    ├── RequirementsError what a caller requires is malformed, or cannot be met beside what the workload requires
    ├── ChoiceError       a caller's nonce cannot be used for the choice of a node
    ├── AttemptError      one attempt at one node failed; carries the outcome
    ├── ReplayError       a recorded decision does not come out again
    ├── HoldError         a step that cannot be taken about an incident of the router's own
    ├── KeyStepError      an API key cannot be made or revoked
    ├── ReceiptError      a receipt is refused, or a salt for one is
    ├── IdempotencyError  a request with an Idempotency-Key is refused (`router.gateway.idempotency`)
    └── LimitError        an API key is over one of its limits (`router.gateway.keys`)
"""

from __future__ import annotations

from router.model.outcomes import Failure, Outcome


class RouterError(Exception):
    """Never raised itself."""


class WorkloadError(RouterError):
    """A request maps to no workload; the code is one that OpenAI's clients know."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class RequestFormError(RouterError):
    """A request asks for what no operation of this router does; the code is for programs."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class RequirementsError(RouterError):
    """
    What a caller requires is malformed, or contradicts the workload or itself; the code is for programs.

    Args:
        member: The member of ``provider.touchstone`` that is wrong; empty: all of it.
        message: What is wrong with it.
    """

    def __init__(self, member: str, message: str, *, code: str = "requirements.malformed") -> None:
        self.member = f"provider.touchstone.{member}" if member else "provider.touchstone"
        super().__init__(f"{self.member}: {message}")
        self.code = code


class ChoiceError(RouterError):
    """A caller's nonce cannot be used for the choice of a node; the code is for programs."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class AttemptError(RouterError):
    """One attempt at one node failed.  Raised while a node is asked or its answer read, and caught by the exchange."""

    def __init__(self, outcome: Outcome, message: str, *, is_doubtful: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.failure: Failure | None = None
        self.is_doubtful = is_doubtful
        """Whether it may not be the node's doing: then it counts once another node completes the same request."""

    @classmethod
    def by(cls, failure: Failure, *, is_doubtful: bool = False) -> AttemptError:
        """The error of an attempt that ended by *failure*."""
        error = cls(failure.outcome, f"{failure}: {failure.sentence}", is_doubtful=is_doubtful)
        error.failure = failure
        return error


class ReplayError(RouterError):
    """A recorded decision does not come out again, or is not a decision."""


class ChangeError(RouterError):
    """A step of a change of the table of workloads that cannot be taken: the message says why."""


class UnknownChangeError(ChangeError):
    """There is no such change."""


class HoldError(RouterError):
    """A step that cannot be taken about an incident of the router's own."""


class KeyStepError(RouterError):
    """An API key cannot be made or revoked."""


class ReceiptError(RouterError):
    """A receipt is refused, or a salt for one is: the message says what is wrong."""


class SettlementError(RouterError):
    """A period, a claim, a statement or a dispute is refused; *code* is for programs."""

    def __init__(self, message: str, *, code: str = "settlement.malformed") -> None:
        super().__init__(message)
        self.code = code


class JobLineError(RouterError):
    """
    A line of a file of requests is refused, or the file as a whole.

    Args:
        code: For programs.
        message: For people.
        line: From 1; `None`: it is not about one line.
        param: The member that is wrong.
    """

    def __init__(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.code = code
        self.line = line
        self.param = param


class LostLeaseError(RouterError):
    """Another router does this work now, or nobody has to do it any more."""
