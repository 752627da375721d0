"""
Recordings: evidence as received, with all that its appraisal looked at.

An appraisal is pure, so its arguments are enough to repeat it: under the policy of then,
claim for claim, or under another one to see what would change.  Reference values and
policies are kept under their digests and never change, so a recording names them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from attester.evidence import MEDIA_TYPE
from verifier import appraisal, results
from verifier.appraisal import CheckedEvidence, Held, PolicyOutcome, Terms
from verifier.errors import RecordingError
from verifier.results import AttestationResult
from verifier.schemes.base import (
    Blocks,
    CheckedSubmod,
    Context,
    ModelReference,
    Node,
    Session,
    Source,
    Thresholds,
    WalkRecord,
)

_MAX_RECORD: Final = 64 << 20


class ReferenceName(Struct, frozen=True):
    """A reference value as the context had it: its digest, and what was known of its origin."""

    digest: str
    source: Source
    signer: str | None = None
    not_before: int | None = None
    not_after: int | None = None

    @classmethod
    def of(cls, reference: ModelReference) -> ReferenceName:
        """The name of a reference value."""
        return cls(
            reference.digest, reference.source, reference.signer, reference.not_before, reference.not_after
        )


class VerifierInputNames(Struct, frozen=True):
    """What of ours an appraisal rests on: it stands for as long as these do."""

    policy: str
    """Digest of the bundle."""
    references: dict[str, ReferenceName]
    superseded: dict[str, tuple[ReferenceName, ...]]
    blocks: Blocks


class Record(Struct, frozen=True):
    """An appraisal's context, findings and terms."""

    build: str
    """Of the verifier: another may find other things true."""
    basis: VerifierInputNames
    policy_id: str
    now_ms: int
    audience: str
    skew_s: int
    session: Session
    node: Node
    history: dict[str, tuple[WalkRecord, ...]]
    checked: dict[str, CheckedSubmod]
    held: Held
    terms: Terms
    jti: str

    def context(
        self,
        references: Mapping[str, ModelReference],
        superseded: Mapping[str, tuple[ModelReference, ...]],
        thresholds: Thresholds,
        blocks: Blocks,
    ) -> Context:
        """The context of then, over what is given of ours."""
        return Context(
            now_ms=self.now_ms,
            audience=self.audience,
            skew_s=self.skew_s,
            session=self.session,
            node=self.node,
            references=references,
            history=self.history,
            thresholds=thresholds,
            superseded=superseded,
            blocks=blocks,
        )


class SubmodSummary(Struct, frozen=True):
    """Of one submodule, what a policy can change, and what it came to."""

    may_affirm: dict[str, int]
    blocked: dict[str, str]
    found: tuple[str, ...]
    """Codes of what the scheme found."""
    vector: dict[str, int]
    reasons: tuple[str, ...]
    """Codes of all reasons."""


class AppraisalSummary(Struct, frozen=True):
    """The little of a recording that a trial needs where the same things are true."""

    build: str
    policy: str
    references: dict[str, ReferenceName]
    held: Held
    submods: dict[str, SubmodSummary]


@dataclass(frozen=True)
class RecordingHead:
    """What a trial reads of a recording first, and mostly at all."""

    appraisal_id: str
    node_id: str
    at_ms: int
    input: bytes
    """The policy's input of then."""
    gist: AppraisalSummary


@dataclass(frozen=True)
class Recording:
    """The whole of a recording."""

    evidence: bytes
    input: bytes
    record: Record


def record_of(
    context: Context,
    basis: VerifierInputNames,
    policy_id: str,
    checked: CheckedEvidence,
    held: Held,
    terms: Terms,
    jti: str,
) -> Record:
    """The record of an appraisal."""
    return Record(
        build=results.BUILD,
        basis=basis,
        policy_id=policy_id,
        now_ms=context.now_ms,
        audience=context.audience,
        skew_s=context.skew_s,
        session=context.session,
        node=context.node,
        history={model: records for model, records in context.history.items() if records},
        checked=dict(checked.submods),
        held=held,
        terms=terms,
        jti=jti,
    )


def summary_of(record: Record, result: AttestationResult) -> AppraisalSummary:
    """The gist of a record and the result that it came to."""
    submods = {}
    for name, checked in record.checked.items():
        found = result.submods[name]
        submods[name] = SubmodSummary(
            may_affirm=dict(checked.may_affirm),
            blocked=dict(checked.blocked),
            found=tuple(finding.code for finding in checked.findings),
            vector=found.ear_trustworthiness_vector,
            reasons=tuple(reason.code for reason in found.ear_verifier_claims.reasons),
        )
    return AppraisalSummary(record.build, record.basis.policy, record.basis.references, record.held, submods)


def pack(record: Record) -> bytes:
    """A record's bytes: JSON, compressed."""
    return zlib.compress(msgspec.json.encode(record), 1)


_DECODER: Final = msgspec.json.Decoder(Record)
_GIST: Final = msgspec.json.Decoder(AppraisalSummary)


def read_summary(text: str) -> AppraisalSummary:
    """Read a gist.  Raises `RecordingError`."""
    try:
        return _GIST.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise RecordingError(f"a recording cannot be read: {str(error)[:200]}") from None


def unpack(data: bytes) -> Record:
    """
    Read a record.

    Raises:
        RecordingError: it is not one of this version's.
    """
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(data, _MAX_RECORD)
        if reader.unconsumed_tail or not reader.eof:
            raise RecordingError("a recording is larger than any we write, or cut short")
        return _DECODER.decode(text)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise RecordingError(f"a recording cannot be read: {str(error)[:200]}") from None


def examine(recording: Recording, context: Context) -> CheckedEvidence:
    """
    What is true of recorded evidence in *context*, which may be another than then.

    It was authenticated when it came (steps 0 to 6), and what was refused is not recorded.
    """
    return appraisal.examine(appraisal.read(MEDIA_TYPE, recording.evidence), context)


def conclude(
    record: Record, checked: CheckedEvidence, outcome: PolicyOutcome, context: Context, policy_id: str
) -> AttestationResult:
    """The result that the recorded evidence comes to, with the id and times of then."""
    return appraisal.conclude(
        checked, outcome, context, record.held, record.terms, jti=record.jti, policy_id=policy_id
    )
