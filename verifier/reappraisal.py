"""
Appraise recorded evidence again, under another policy.

If neither the thresholds nor the reference values have changed since the recording, what is
true of the evidence stays true, and only the policy is evaluated.  Otherwise the evidence is
examined again.  Nodes that are alike give equal inputs, and the policy is evaluated once for
all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from attester import kinds
from verifier import appraisal, recording, results
from verifier.appraisal import CheckedEvidence, NodeSnapshot, PolicyOutcome
from verifier.changes import SubmodVerdict
from verifier.errors import PolicyError
from verifier.policy.bundle import Bundle
from verifier.policy.engine import decode
from verifier.recording import (
    AppraisalSummary,
    Record,
    Recording,
    RecordingHead,
    ReferenceName,
    VerifierInputNames,
)
from verifier.schemes.context import Blocks, Context, ModelReference, Thresholds

_OUTCOME_CACHE_BYTES: Final = 16 << 20
_CACHE_ENTRY_OVERHEAD_BYTES: Final = 200
_MAX_CACHED_OUTCOME_BYTES: Final = 64 * 1024


class Lookup(Protocol):
    """Finds what recordings name."""

    async def bundle(self, digest: str) -> Bundle:
        """A published policy.  Raises `PolicyError`."""
        ...

    async def reference(self, name: ReferenceName) -> ModelReference:
        """A reference value.  Raises `PolicyError`."""
        ...

    async def active(self, model: str) -> ModelReference | None:
        """The reference value that is in force for a model if the policy brings none."""
        ...

    async def recording(self, appraisal_id: str) -> Recording:
        """The whole of a recording.  Raises `StoreError` if it is no longer kept."""
        ...


@dataclass(frozen=True)
class VerifierInputs:
    """What the verifier's side holds evidence against, besides the policy."""

    references: Mapping[str, ModelReference]
    superseded: Mapping[str, tuple[ModelReference, ...]]
    blocks: Blocks
    beside: Mapping[str, tuple[ModelReference, ...]] = field(default_factory=dict)
    """By model that is rolled out, the values that are valid beside the one in force."""

    def basis(self, policy: str) -> VerifierInputNames:
        """The names of these inputs, for an appraisal under the policy with the digest *policy*."""
        return VerifierInputNames(
            policy=policy,
            references={model: ReferenceName.of(r) for model, r in sorted(self.references.items())},
            superseded=_names_of(self.superseded),
            blocks=self.blocks,
            beside=_names_of(self.beside),
        )


def _names_of(references: Mapping[str, tuple[ModelReference, ...]]) -> dict[str, tuple[ReferenceName, ...]]:
    return {model: tuple(map(ReferenceName.of, found)) for model, found in sorted(references.items())}


@dataclass(frozen=True)
class ReappraisedEvidence:
    """Recorded evidence with what is true of it and the outcome of a policy."""

    checked: CheckedEvidence
    outcome: PolicyOutcome
    context: Context

    def verdicts(self, held: NodeSnapshot) -> dict[str, SubmodVerdict]:
        """The verdict on each submodule, if the database holds *held* against the node."""
        return {
            name: _verdict(
                name,
                checked.may_affirm,
                checked.blocked,
                [finding.code for finding in checked.findings],
                self.outcome,
                held,
            )
            for name, checked in self.checked.submods.items()
        }


def _verdict(
    name: str,
    may_affirm: Mapping[str, int],
    blocked: Mapping[str, str],
    found: Sequence[str],
    outcome: PolicyOutcome,
    held: NodeSnapshot,
) -> SubmodVerdict:
    vector, added = appraisal.apply_ceilings(name, may_affirm, blocked, outcome.vectors[name], held)
    codes = [*found, *(finding.code for finding in added)]
    return SubmodVerdict(vector, (*codes, *(code for code in outcome.reasons[name] if code not in codes)))


def recorded_verdicts(head: RecordingHead) -> dict[str, SubmodVerdict]:
    """The verdict on each submodule at the time of the recording."""
    return {
        name: SubmodVerdict(submod.vector, submod.reasons) for name, submod in head.summary.submods.items()
    }


class Reappraiser:
    """
    Appraises recordings under one policy.

    Args:
        bundle: The policy.
        ask: Evaluates the policy: takes its input and returns its outcome, both as JSON.
        lookup: Finds what recordings name.
    """

    def __init__(
        self, bundle: Bundle, ask: Callable[[bytes], Coroutine[Any, Any, bytes]], lookup: Lookup
    ) -> None:
        self.bundle = bundle
        self._bundled_references = bundle.references
        self._lookup = lookup
        self._outcomes = _OutcomeCache(ask)
        self._thresholds: dict[str, Thresholds] = {}
        self.examined = 0
        """How many recordings were examined again, because something that they depend on differs."""
        self.failures = 0
        """How many times the policy failed."""
        self.first_failure: str | None = None
        """Why it failed the first time."""

    async def verdicts(self, page: Sequence[RecordingHead]) -> list[dict[str, SubmodVerdict]]:
        """The verdict on each submodule of each recording, if everything but the policy is as it was."""
        unchanged = [await self._is_unchanged(head.summary) for head in page]
        outcomes = [
            self._outcomes.ask(head.input) if same else None
            for head, same in zip(page, unchanged, strict=True)
        ]
        verdicts = []
        for head, pending in zip(page, outcomes, strict=True):
            summary = head.summary
            if pending is None:
                evidence = await self._reappraise(head.appraisal_id)
                verdicts.append(evidence.verdicts(summary.held))
                continue
            outcome = await self._read(pending, summary.submods)
            verdicts.append(
                {
                    name: _verdict(
                        name, submod.may_affirm, submod.blocked, submod.found, outcome, summary.held
                    )
                    for name, submod in summary.submods.items()
                }
            )
        return verdicts

    async def _reappraise(self, appraisal_id: str) -> ReappraisedEvidence:
        recorded = await self._lookup.recording(appraisal_id)
        return await self.judge(recorded, await self._recorded_inputs(recorded.record))

    async def judge(self, recorded: Recording, inputs: VerifierInputs) -> ReappraisedEvidence:
        """The outcome of *recorded* under the policy with *inputs*; every value is −1 if the policy fails."""
        record = recorded.record
        context = record.context(
            inputs.references, inputs.superseded, self.bundle.thresholds, inputs.blocks, inputs.beside
        )
        same = inputs.basis(record.basis.policy) == record.basis
        if same and await self._has_same_schemes(record.build, record.basis.policy):
            checked, policy_input = CheckedEvidence(record.checked), recorded.input
        else:
            self.examined += 1
            # In a thread, because parsing takes a millisecond or more and others must not wait for it.
            checked = await asyncio.to_thread(recording.examine, recorded, context)
            policy_input = checked.policy_input(context)
        outcome = await self._read(self._outcomes.ask(policy_input), checked.submods)
        return ReappraisedEvidence(checked, outcome, context)

    async def _is_unchanged(self, summary: AppraisalSummary) -> bool:
        """Whether the same things are true as at the time of the recording."""
        for model, name in summary.references.items():
            bundled = self._bundled_references.get(model)
            if bundled is None and name.source == "bundle":
                return False
            if bundled is not None and ReferenceName.of(bundled) != name:
                return False
        brings_another = any(
            kinds.model_submod(model) in summary.submods and model not in summary.references
            for model in self._bundled_references
        )
        return not brings_another and await self._has_same_schemes(summary.build, summary.policy)

    async def _has_same_schemes(self, build: str, policy: str) -> bool:
        """Whether the recorded appraisal used this verifier's code and this policy's thresholds."""
        if policy not in self._thresholds:
            self._thresholds[policy] = (await self._lookup.bundle(policy)).thresholds
        return build == results.BUILD and self._thresholds[policy] == self.bundle.thresholds

    async def _recorded_inputs(self, record: Record) -> VerifierInputs:
        """The inputs at the time of the recording, with the reference values that this policy brings."""
        references = {}
        for name in record.checked:
            model = kinds.model_of(name)
            if model is None:
                continue
            known = record.basis.references.get(model)
            if model in self._bundled_references:
                references[model] = self._bundled_references[model]
            elif known is not None and known.source != "bundle":
                references[model] = await self._lookup.reference(known)
            elif known is not None and (current := await self._lookup.active(model)) is not None:
                references[model] = current
        superseded, beside = [
            {
                model: tuple([await self._lookup.reference(name) for name in names])
                for model, names in named.items()
            }
            for named in (record.basis.superseded, record.basis.beside)
        ]
        # A value that the policy brings is the only one.
        beside = {model: found for model, found in beside.items() if model not in self._bundled_references}
        return VerifierInputs(references, superseded, record.basis.blocks, beside)

    async def _read(self, pending: asyncio.Task[bytes] | bytes, submods: Collection[str]) -> PolicyOutcome:
        try:
            outcome = pending if isinstance(pending, bytes) else await asyncio.shield(pending)
            return appraisal.read_outcome(decode(outcome), submods)
        except PolicyError as error:
            self.failures += 1
            self.first_failure = self.first_failure or str(error)
            return appraisal.malfunction(submods)


class _OutcomeCache:
    """
    Evaluates a policy once for equal inputs.

    Outcomes are kept as JSON by the digest of their input, within a bound on bytes: what nodes
    say can be large, and so can what a policy says of it.
    """

    def __init__(self, ask: Callable[[bytes], Coroutine[Any, Any, bytes]]) -> None:
        self._ask = ask
        self._known: dict[bytes, bytes] = {}
        self._bytes_left = _OUTCOME_CACHE_BYTES
        self._running: dict[bytes, asyncio.Task[bytes]] = {}

    def ask(self, policy_input: bytes) -> asyncio.Task[bytes] | bytes:
        """The outcome if it is known, or the task that evaluates the policy."""
        digest = hashlib.sha256(policy_input).digest()
        outcome = self._known.get(digest) or self._running.get(digest)
        if outcome is None:
            outcome = self._running[digest] = asyncio.create_task(self._evaluate(digest, policy_input))
            # If the caller was cancelled, nobody retrieves the error: this keeps asyncio from logging it.
            outcome.add_done_callback(lambda task: task.cancelled() or task.exception())
        return outcome

    async def _evaluate(self, digest: bytes, policy_input: bytes) -> bytes:
        try:
            outcome = await self._ask(policy_input)
        finally:
            # A failure is not kept: the machine may have caused it, so the next equal input asks again.
            del self._running[digest]
        self._bytes_left -= len(outcome) + _CACHE_ENTRY_OVERHEAD_BYTES
        if self._bytes_left < 0:
            self._known.clear()
            self._bytes_left = _OUTCOME_CACHE_BYTES
        elif len(outcome) <= _MAX_CACHED_OUTCOME_BYTES:
            self._known[digest] = outcome
        return outcome
