"""
Recordings: evidence as received, with everything that its appraisal looked at.

An appraisal is pure, so its arguments are enough to repeat it: under the policy of that time, claim
for claim, or under another policy to see what would change.  Reference values and policies are
stored under their digests and never change, so a recording only names them.

`Record` and `AppraisalSummary` are stored as JSON under the names of their fields, and so is every
type in them: no field may be renamed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from verifier import appraisal, opening, results
from verifier.appraisal import CheckedEvidence, NodeSnapshot, PolicyOutcome, ResultSettings
from verifier.errors import RecordingError
from verifier.results import AttestationResult
from verifier.schemes.context import (
    Blocks,
    Context,
    Excuse,
    ModelReference,
    Node,
    Session,
    Source,
    Thresholds,
    WalkRecord,
)
from verifier.schemes.findings import CheckedSubmod
from verifier.schemes.registry import read_facts

_MAX_RECORD_BYTES: Final = 64 << 20
_WINDOW_BITS: Final = 13
_TABLES_LEVEL: Final = 6


class ReferenceName(Struct, frozen=True, kw_only=True):
    """A reference value in the context of an appraisal: its digest, and what was known of its origin."""

    digest: str
    source: Source
    signer: str | None = None
    not_before: int | None = None
    not_after: int | None = None

    @classmethod
    def of(cls, reference: ModelReference) -> ReferenceName:
        """The name of a reference value."""
        return cls(
            digest=reference.digest,
            source=reference.source,
            signer=reference.signer,
            not_before=reference.not_before,
            not_after=reference.not_after,
        )


class VerifierInputNames(Struct, frozen=True):
    """The names of what the verifier brought to an appraisal.  While they stay the same, so does the result."""

    policy: str
    """The digest of the bundle."""
    references: dict[str, ReferenceName]
    superseded: dict[str, tuple[ReferenceName, ...]]
    blocks: Blocks
    beside: dict[str, tuple[ReferenceName, ...]] = {}
    """By model that was rolled out, the values that were valid beside the one in force."""


class Record(Struct, frozen=True, kw_only=True):
    """An appraisal's context, findings and settings."""

    build: str
    """Of the verifier: another build may come to other findings."""
    basis: VerifierInputNames
    policy_id: str
    now_ms: int
    audience: str
    skew_s: int
    session: Session
    node: Node
    history: dict[str, tuple[WalkRecord, ...]]
    excuses: dict[str, Excuse] = {}
    checked: dict[str, CheckedSubmod]
    held: NodeSnapshot
    terms: ResultSettings
    jti: str
    sequence: int | None = None
    """The number that ordered the result; earlier versions had none."""
    tells_walk: bool = False
    """Whether the result says when the last walk was that was right; of earlier versions none did."""
    tells_prompting: bool = False
    """Whether it says where chat template and sampling defaults come from; of earlier versions none did."""
    tells_engine: bool = False
    """Whether it names the engine and its version; of earlier versions none did."""

    def context(
        self,
        references: Mapping[str, ModelReference],
        superseded: Mapping[str, tuple[ModelReference, ...]],
        thresholds: Thresholds,
        blocks: Blocks,
        beside: Mapping[str, tuple[ModelReference, ...]] | None = None,
    ) -> Context:
        """The context of that time, with these inputs of the verifier."""
        return Context(
            now_ms=self.now_ms,
            audience=self.audience,
            skew_s=self.skew_s,
            session=self.session,
            node=self.node,
            references=references,
            history=self.history,
            thresholds=thresholds,
            beside=beside or {},
            superseded=superseded,
            blocks=blocks,
            excuses=self.excuses,
            tells_walk=self.tells_walk,
            tells_prompting=self.tells_prompting,
            tells_engine=self.tells_engine,
        )


class SubmodSummary(Struct, frozen=True, kw_only=True):
    """What a policy can change about one submodule, and what it came to."""

    may_affirm: dict[str, int]
    blocked: dict[str, str]
    found: tuple[str, ...]
    """The codes of the scheme's findings."""
    vector: dict[str, int]
    reasons: tuple[str, ...]
    """The codes of all reasons."""


class AppraisalSummary(Struct, frozen=True, kw_only=True):
    """The small part of a recording that is enough for a trial, if the facts are the same as when it was recorded."""

    build: str
    policy: str
    references: dict[str, ReferenceName]
    held: NodeSnapshot
    submods: dict[str, SubmodSummary]


@dataclass(frozen=True)
class RecordingHead:
    """What a trial reads of a recording first.  Mostly it needs nothing more."""

    appraisal_id: str
    node_id: str
    at_ms: int
    input: bytes
    """The policy's input of that time."""
    summary: AppraisalSummary


@dataclass(frozen=True)
class Recording:
    """The whole of a recording."""

    evidence: bytes
    input: bytes
    record: Record


def record_of(
    context: Context,
    names: VerifierInputNames,
    policy_id: str,
    checked: CheckedEvidence,
    snapshot: NodeSnapshot,
    settings: ResultSettings,
    jti: str,
    sequence: int | None = None,
) -> Record:
    """The record of an appraisal."""
    return Record(
        build=results.BUILD,
        basis=names,
        policy_id=policy_id,
        now_ms=context.now_ms,
        audience=context.audience,
        skew_s=context.skew_s,
        session=context.session,
        node=context.node,
        history={model: records for model, records in context.history.items() if records},
        excuses=dict(context.excuses),
        checked=dict(checked.submods),
        held=snapshot,
        terms=settings,
        jti=jti,
        sequence=sequence,
        tells_walk=context.tells_walk,
        tells_prompting=context.tells_prompting,
        tells_engine=context.tells_engine,
    )


def summary_of(record: Record, result: AttestationResult) -> AppraisalSummary:
    """The summary of a record and the result that it came to."""
    submods = {}
    for name, checked in record.checked.items():
        appraised = result.submods[name]
        submods[name] = SubmodSummary(
            may_affirm=dict(checked.may_affirm),
            blocked=dict(checked.blocked),
            found=tuple(finding.code for finding in checked.findings),
            vector=appraised.ear_trustworthiness_vector,
            reasons=tuple(reason.code for reason in appraised.ear_verifier_claims.reasons),
        )
    return AppraisalSummary(
        build=record.build,
        policy=record.basis.policy,
        references=record.basis.references,
        held=record.held,
        submods=submods,
    )


def pack(record: Record) -> bytes:
    """A record as bytes: compressed JSON."""
    # With zlib's usual window and tables, most of the time would go into clearing 270 kB for a record of 5 kB.
    packer = zlib.compressobj(1, wbits=_WINDOW_BITS, memLevel=_TABLES_LEVEL)
    return packer.compress(msgspec.json.encode(record)) + packer.flush()


_DECODER: Final = msgspec.json.Decoder(Record, dec_hook=read_facts)
_SUMMARY_DECODER: Final = msgspec.json.Decoder(AppraisalSummary)


def read_summary(text: str) -> AppraisalSummary:
    """Read a summary.  Raises `RecordingError`."""
    try:
        return _SUMMARY_DECODER.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise RecordingError(f"a recording cannot be read: {str(error)[:200]}") from None


def unpack(data: bytes) -> Record:
    """
    Read a record.

    Raises:
        RecordingError: it is damaged, or another version wrote it in another form.
    """
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(data, _MAX_RECORD_BYTES)
        if reader.unconsumed_tail or not reader.eof:
            raise RecordingError(f"a recording is cut short, or has more than {_MAX_RECORD_BYTES} bytes")
        return _DECODER.decode(text)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise RecordingError(f"a recording cannot be read: {str(error)[:200]}") from None


def examine(recording: Recording, context: Context) -> CheckedEvidence:
    """
    What is true of recorded evidence in *context*, which may differ from that of the recording.

    The evidence was authenticated when it came (steps 0 to 6): refused evidence is not recorded.
    """
    return appraisal.examine(opening.reopen(recording.evidence), context)


def conclude(
    record: Record, checked: CheckedEvidence, outcome: PolicyOutcome, context: Context, policy_id: str
) -> AttestationResult:
    """The result of the recorded evidence, with the id, the number and the times of the recording."""
    return appraisal.conclude(
        checked, outcome, context, record.held, record.terms,
        jti=record.jti, policy_id=policy_id, sequence=record.sequence,
    )  # fmt: skip
