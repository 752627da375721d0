"""
Errors of the verifier.

    VerifierError
    ├── EvidenceError        evidence refused before or while its signature was checked, or stale
    ├── RequestError         a request that is malformed, unauthorised, too often, or too late
    ├── ResultError          an attestation result that a relying party must not accept
    ├── PolicyError          a policy that failed: it did not answer, or not as it must
    │   └── BundleError      a policy bundle that is refused: file, place and sentence
    ├── ReferenceValueError  a reference value or a pool of challenges that cannot be used
    ├── PlainYAMLError       a file is not of the small part of YAML that is read: line, column and sentence
    └── StoreError           the database refused or cannot be used
        └── RecordingError   a recording cannot be read: written by another version, or damaged

`service/problem.py` is the only place that knows what HTTP status each of them becomes.
"""

from __future__ import annotations


class VerifierError(Exception):
    """Never raised itself.  `code` is a row of `verifier.reasons`."""

    code = "verifier.internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class EvidenceError(VerifierError):
    """
    Evidence is refused at a numbered step of the appraisal.

    Up to step 4 it names no node: only what a key has signed may be held against it.
    """

    def __init__(self, step: int, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.step = step


class RequestError(VerifierError):
    """A request cannot be served; its code says why."""

    code = "request.malformed"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class ResultError(VerifierError):
    """An attestation result is malformed, expired, of another profile, or signed by nobody we trust."""

    code = "result.unacceptable"


class PolicyError(VerifierError):
    """A policy did not give an outcome: it failed, looped, crashed, or gave nonsense."""

    code = "policy.failed"


class BundleError(PolicyError):
    """A policy bundle is refused before it can judge anything: each message names file and place."""

    code = "policy.unusable"


class ReferenceValueError(VerifierError):
    """A reference value or a pool of challenges cannot be used as asked."""

    code = "reference.unusable"


class PlainYAMLError(VerifierError):
    """A file that a person wrote is not of the part of YAML that is read, or not of its form: each message has the place."""

    code = "request.malformed"


class StoreError(VerifierError):
    """The database cannot be used, or refused what would break a promise."""

    code = "store.refused"


class RecordingError(StoreError):
    """A recording that this version cannot read, however often it tries."""
