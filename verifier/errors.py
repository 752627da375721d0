"""
Errors of the verifier.

    VerifierError
    ├── EvidenceError        evidence is refused at a step of the appraisal
    ├── RequestError         a request is malformed, unauthorised, too frequent, or too late
    ├── ResultError          a relying party must not accept an attestation result
    ├── PolicyError          a policy failed: it gave no outcome, or a malformed one
    │   └── BundleError      a policy bundle is refused: the message has file, place and sentence
    ├── ReferenceValueError  a reference value or a pool of challenges cannot be used
    ├── CanonicalError       a value has no canonical form, or bytes are not in it
    ├── PlainYAMLError       a file is not in the small part of YAML that is read: line, column and sentence
    ├── LogError             something of a transparency log must not be accepted
    │   ├── LogFormatError     a note, checkpoint, tile, bundle, proof or policy is malformed
    │   ├── LogSignatureError  no trusted key has signed it, or the signature of one does not verify
    │   ├── LogProofError      the hashes do not lead to the root: another entry, another tree, another history
    │   ├── LogUnreadableError a log could not be read, which says nothing about what it holds
    │   ├── LogQuorumError     too few of the witnesses that a policy names have cosigned a checkpoint
    │   └── LogDivergedError   what is stored of our own log is not what we signed: it was edited, cut or forked
    ├── AuditError           an export for auditors, or an archive, is not what it says
    └── StoreError           the database refused a change, or cannot be used (`verifier.store.database`)
        └── RecordingError   a recording is damaged, or another version wrote it

`service/problem.py` is the only place that knows what HTTP status each of them becomes.
"""

from __future__ import annotations


class VerifierError(Exception):
    """The base of all of them; it is never raised itself.  `code` is a row of `verifier.reasons`."""

    code = "verifier.internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class EvidenceError(VerifierError):
    """
    Evidence is refused at a numbered step of the appraisal.

    Up to step 4 it is held against no node: only what a key has signed may be held against its node.
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
    """An attestation result is malformed, expired, of another profile, or not signed by a trusted key."""

    code = "result.unacceptable"


class PolicyError(VerifierError):
    """A policy gave no outcome, because it failed, looped or crashed; or it gave a malformed one."""

    code = "policy.failed"


class NoOutcomeError(PolicyError):
    """A worker that was kept from computing gave no outcome in time, or a worker ended: ask again."""


class BundleError(PolicyError):
    """A policy bundle is refused before it can judge anything.  Each message names file and place."""

    code = "policy.unusable"


class ReferenceValueError(VerifierError):
    """A reference value or a pool of challenges cannot be used as asked."""

    code = "reference.unusable"


class CanonicalError(VerifierError):
    """A value has no canonical form, or bytes are not in it (`verifier.canonical`)."""

    code = "request.malformed"


class PlainYAMLError(VerifierError):
    """A file written by hand is not in the part of YAML that is read, or not of its form.  Each message has the place."""

    code = "request.malformed"


class LogError(VerifierError):
    """Something of a transparency log must not be accepted.  The leaves say why."""

    code = "log.unacceptable"


class LogFormatError(LogError):
    """A note, a checkpoint, a tile, a bundle of entries, a proof or a policy is malformed."""


class LogSignatureError(LogError):
    """No trusted key has signed it, or the signature of one does not verify."""


class LogProofError(LogError):
    """The hashes do not lead to the root: it is another entry, another tree or another history."""


class LogQuorumError(LogError):
    """Too few of the witnesses that a policy names have cosigned a checkpoint."""


class LogDivergedError(LogError):
    """
    What is stored of our own log is not what we signed: the database was edited, cut, forked or restored.

    `places` are the first place that differs, as far as it is known, and the one after the last.
    """

    def __init__(self, places: tuple[int, int], message: str) -> None:
        first, end = places
        where = f"place {first}" if end - first == 1 else f"places {first} to {end - 1}"
        super().__init__(f"{where}: {message}")
        self.places = places


class LogUnreadableError(LogError):
    """A log could not be read.  That says nothing about what it holds."""

    code = "log.unreadable"


class AuditError(VerifierError):
    """An export for auditors, or an archive of old rows, is not what it says, or cannot be made."""

    code = "log.unacceptable"


class StoreError(VerifierError):
    """The database cannot be used, or it refused a change that would break one of its constraints."""

    code = "store.refused"


class RecordingError(StoreError):
    """This version cannot read a recording; trying again does not help."""
