"""
Errors of the client.

    ClientError
    ├── TrustError         a trust file that is missing, malformed, or about another router
    ├── UnreachableError   the router does not answer, or not as it should
    ├── RefusedError       the router refuses the request; that it does so was verified
    └── UnverifiedError    an answer that must not be used: the step that failed, and why
        └── UncosignedError  ... because too few witnesses have signed; some may still do so
"""

from __future__ import annotations

from enum import StrEnum

from router.model.errors import RouterError


class Step(StrEnum):
    """What is checked of an answer, in this order."""

    RECEIPT = "receipt"
    """The router has signed a receipt, and it is the one that the answer names."""
    REQUEST = "request"
    """It is about the request as it was sent."""
    RESPONSE = "response"
    """It is about the answer as it came, to its last byte."""
    CHAIN = "chain"
    """It continues the receipts of the same key."""
    RESULT = "result"
    """The verifier has signed the result that the receipt names."""
    MODEL = "model"
    """The result affirms what is required of the node and of the model."""
    AGE = "age"
    """Result and walk are young enough."""
    CONTINUED = "continued"
    """If several nodes have given parts of the answer, the client takes that."""
    REQUIREMENTS = "requirements"
    """The node meets what the request itself requires."""
    CHOICE = "choice"
    """The seed of the decision comes from the caller's nonce and from what the router had committed to before."""
    FRONT = "front"
    """What the node's own front has signed agrees."""
    BATCH = "batch"
    """The receipt is in a batch that the router has signed."""
    LOG = "log"
    """The batch is in the log, and the witnesses that are asked for have signed it."""


class ClientError(RouterError):
    """Never raised itself."""


class TrustError(ClientError):
    """A trust file cannot be used."""


class UnreachableError(ClientError):
    """The router does not answer, or not as a router does."""


class RefusedError(ClientError):
    """
    The router refuses the request, or could not have it done.  That it says so was verified.

    Args:
        status: Of HTTP.
        code: The code of OpenAI's error form, if there is one.
    """

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class UnverifiedError(ClientError):
    """An answer must not be used.  `step` is the check that failed."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(f"{step}: {message}")
        self.step = step
        self.reason = message


class UncosignedError(UnverifiedError):
    """The log has signed, and too few witnesses have.  Moments after an entry that is usual."""
