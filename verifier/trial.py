"""
Re-appraise recorded evidence under another policy: what would change, for whom, and why.

Nothing follows from it: no result, no incident, no walk is kept.  Where neither the
thresholds nor the reference values differ from those of then, what is true stays true,
and only the policy is asked; otherwise the evidence is examined again.  Nodes that are
alike give equal inputs, and a policy is asked once for each.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from attester import kinds
from verifier import appraisal, recording, results, trust
from verifier.appraisal import CheckedEvidence, NodeSnapshot, PolicyOutcome
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
from verifier.trust import Tier

MAX_FAILURES: Final = 100
"""A policy that fails so often would fail for all the rest, a second each."""
_REMEMBERED_BYTES: Final = 16 << 20
_ENTRY_BYTES: Final = 200
_LARGE: Final = 64 * 1024
_ORDER: Final = (Tier.CONTRAINDICATED, Tier.WARNING, Tier.NONE, Tier.AFFIRMING)


class SubmodVerdict(Struct, frozen=True):
    """What a submodule comes to: its trust vector, and the codes of its reasons in order."""

    vector: dict[str, int]
    reasons: tuple[str, ...]

    @property
    def tier(self) -> Tier:
        """The status that the vector allows."""
        return trust.worst(self.vector)


class Change(Struct, frozen=True):
    """A submodule that comes to something else; `None` where it has no verdict."""

    submod: str
    before: SubmodVerdict | None
    after: SubmodVerdict | None

    @property
    def direction(self) -> str:
        """``better``, ``worse``, or ``other`` where the status stays."""
        places = [0 if v is None else _ORDER.index(v.tier) for v in (self.before, self.after)]
        return "other" if places[0] == places[1] else "better" if places[0] < places[1] else "worse"


class Lookup(Protocol):
    """Where a replay finds what a recording names."""

    async def bundle(self, digest: str) -> Bundle:
        """A published policy.  Raises `PolicyError`."""
        ...

    async def reference(self, name: ReferenceName) -> ModelReference:
        """A reference value.  Raises `PolicyError`."""
        ...

    async def active(self, model: str) -> ModelReference | None:
        """The reference value in force for a model that no policy brings."""
        ...

    async def recording(self, appraisal_id: str) -> Recording:
        """The whole of a recording.  Raises `StoreError` where it is no longer kept."""
        ...


@dataclass(frozen=True)
class VerifierInputs:
    """What of ours recorded evidence is held against, besides the policy."""

    references: Mapping[str, ModelReference]
    superseded: Mapping[str, tuple[ModelReference, ...]]
    blocks: Blocks

    def basis(self, policy: str) -> VerifierInputNames:
        """As an appraisal under *policy* would rest on it."""
        return VerifierInputNames(
            policy=policy,
            references={model: ReferenceName.of(r) for model, r in sorted(self.references.items())},
            superseded={
                model: tuple(ReferenceName.of(r) for r in earlier)
                for model, earlier in sorted(self.superseded.items())
            },
            blocks=self.blocks,
        )


@dataclass(frozen=True)
class ReappraisedEvidence:
    """What recorded evidence comes to."""

    checked: CheckedEvidence
    outcome: PolicyOutcome
    context: Context

    def verdicts(self, held: NodeSnapshot) -> dict[str, SubmodVerdict]:
        """By submodule, with what is held against the node."""
        return {
            name: _verdict(
                name, c.may_affirm, c.blocked, [finding.code for finding in c.findings], self.outcome, held
            )
            for name, c in self.checked.submods.items()
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


def before(taken: RecordingHead) -> dict[str, SubmodVerdict]:
    """What a recording came to."""
    return {
        name: SubmodVerdict(submod.vector, submod.reasons) for name, submod in taken.summary.submods.items()
    }


class Reappraiser:
    """
    Judges recordings under one policy.

    Args:
        bundle: The policy.
        ask: Its engine: an outcome for an input, both as JSON.
        lookup: Where to find what recordings name.
    """

    def __init__(
        self, bundle: Bundle, ask: Callable[[bytes], Coroutine[Any, Any, bytes]], lookup: Lookup
    ) -> None:
        self.bundle = bundle
        self._own = bundle.references
        self._ask_engine = ask
        self._lookup = lookup
        self._thresholds: dict[str, Thresholds] = {}
        self._known: dict[bytes, bytes] = {}
        """Outcomes as JSON, by the input's digest: what nodes say can be large, and so can policies' answers."""
        self._room = _REMEMBERED_BYTES
        self._asked: dict[bytes, asyncio.Task[bytes]] = {}
        self.examined = 0
        """How many were examined again, because what is true depends on what differs."""
        self.failures = 0

    async def verdicts(self, page: Sequence[RecordingHead]) -> list[dict[str, SubmodVerdict]]:
        """What each submodule of each recording comes to, all else as it was then."""
        as_then = [await self._is_as_then(taken.summary) for taken in page]
        outcomes = [
            self._ask(taken.input) if same else None for taken, same in zip(page, as_then, strict=True)
        ]
        found = []
        for taken, outcome in zip(page, outcomes, strict=True):
            gist = taken.summary
            if outcome is None:
                judged = await self._again(taken.appraisal_id)
                found.append(judged.verdicts(gist.held))
                continue
            given = await self._outcome(outcome, gist.submods)
            found.append(
                {
                    name: _verdict(name, s.may_affirm, s.blocked, s.found, given, gist.held)
                    for name, s in gist.submods.items()
                }
            )
        return found

    async def _again(self, appraisal_id: str) -> ReappraisedEvidence:
        taken = await self._lookup.recording(appraisal_id)
        return await self.judge(taken, await self._given_then(taken.record))

    async def judge(self, taken: Recording, given: VerifierInputs) -> ReappraisedEvidence:
        """What recorded evidence comes to under the policy; −1 where the policy fails."""
        record = taken.record
        context = record.context(given.references, given.superseded, self.bundle.thresholds, given.blocks)
        same = given.basis(record.basis.policy) == record.basis
        if same and await self._same_schemes(record.build, record.basis.policy):
            checked, question = CheckedEvidence(record.checked), taken.input
        else:
            self.examined += 1
            # A millisecond or more of parsing: others must not wait for it.
            checked = await asyncio.to_thread(recording.examine, taken, context)
            question = checked.policy_input(context)
        outcome = await self._outcome(self._ask(question), checked.submods)
        return ReappraisedEvidence(checked, outcome, context)

    async def _is_as_then(self, gist: AppraisalSummary) -> bool:
        """Whether the same things are true as when it was recorded, all else as it was then."""
        for model, name in gist.references.items():
            own = self._own.get(model)
            if (name.source == "bundle") if own is None else (ReferenceName.of(own) != name):
                return False
        brought = any(
            kinds.model_submod(model) in gist.submods and model not in gist.references for model in self._own
        )
        return not brought and await self._same_schemes(gist.build, gist.policy)

    async def _same_schemes(self, build: str, policy: str) -> bool:
        """Whether evidence is examined as it was: by the same code, with the same thresholds."""
        if policy not in self._thresholds:
            self._thresholds[policy] = (await self._lookup.bundle(policy)).thresholds
        return build == results.BUILD and self._thresholds[policy] == self.bundle.thresholds

    async def _given_then(self, record: Record) -> VerifierInputs:
        """As it was then, but for the reference values that a policy brings: of then, or this one."""
        references = {}
        for name in record.checked:
            model = kinds.model_of(name)
            if model is None:
                continue
            known = record.basis.references.get(model)
            if model in self._own:
                references[model] = self._own[model]
            elif known is not None and known.source != "bundle":
                references[model] = await self._lookup.reference(known)
            elif known is not None and (current := await self._lookup.active(model)) is not None:
                references[model] = current
        superseded = {
            model: tuple([await self._lookup.reference(name) for name in names])
            for model, names in record.basis.superseded.items()
        }
        return VerifierInputs(references, superseded, record.basis.blocks)

    def _ask(self, question: bytes) -> asyncio.Task[bytes] | bytes:
        """Ask the policy, unless it was asked the same before."""
        digest = hashlib.sha256(question).digest()
        known = self._known.get(digest) or self._asked.get(digest)
        if known is None:
            known = self._asked[digest] = asyncio.create_task(self._remember(digest, question))
            # Whoever asked may have gone: then nobody misses the error.
            known.add_done_callback(lambda task: task.cancelled() or task.exception())
        return known

    async def _remember(self, digest: bytes, question: bytes) -> bytes:
        try:
            answer = await self._ask_engine(question)
        finally:
            # A failure may have been the machine's fault: the next like it asks again.
            del self._asked[digest]
        self._room -= len(answer) + _ENTRY_BYTES
        if self._room < 0:
            self._known.clear()
            self._room = _REMEMBERED_BYTES
        elif len(answer) <= _LARGE:
            self._known[digest] = answer
        return answer

    async def _outcome(self, asked: asyncio.Task[bytes] | bytes, submods: Collection[str]) -> PolicyOutcome:
        try:
            answer = asked if isinstance(asked, bytes) else await asyncio.shield(asked)
            return appraisal.read_outcome(decode(answer), submods)
        except PolicyError:
            self.failures += 1
            return appraisal.malfunction(submods)


class _Reason(Struct, frozen=True):
    code: str


class _VerifierClaims(Struct, frozen=True):
    reasons: tuple[_Reason, ...] = ()


class _Appraisal(Struct, frozen=True):
    ear_trustworthiness_vector: dict[str, int]
    ear_verifier_claims: _VerifierClaims


class _Claims(Struct, frozen=True):
    submods: dict[str, _Appraisal]


_CLAIMS: Final = msgspec.json.Decoder(_Claims)


def verdicts_of(claims: str) -> dict[str, SubmodVerdict]:
    """The verdicts of a result, from its claims as JSON."""
    return {
        name: SubmodVerdict(
            found.ear_trustworthiness_vector, tuple(r.code for r in found.ear_verifier_claims.reasons)
        )
        for name, found in _CLAIMS.decode(claims).submods.items()
    }


def compare(before: Mapping[str, SubmodVerdict], after: Mapping[str, SubmodVerdict]) -> list[Change]:
    """The submodules whose verdict differs, by name; the order of reasons does not matter."""
    changes = []
    for name in sorted(before.keys() | after.keys()):
        was, becomes = before.get(name), after.get(name)
        if was is not None and becomes is not None:
            same = was.vector == becomes.vector and sorted(set(was.reasons)) == sorted(set(becomes.reasons))
            if same:
                continue
        changes.append(Change(name, was, becomes))
    return changes


@dataclass
class ChangeCount:
    """One change of one node: how often, and when last (milliseconds)."""

    node: str
    change: Change
    count: int = 0
    last_ms: int = 0


@dataclass
class TrialReport:
    """What a trial found."""

    policy: str
    appraisals: int = 0
    unchanged: int = 0
    examined: int = 0
    failures: int = 0
    gave_up: bool = False
    """The policy failed so often that the rest was not tried."""
    nodes: set[str] = field(default_factory=set)
    changes: dict[bytes, ChangeCount] = field(default_factory=dict)

    def count(self, taken: RecordingHead, changes: Sequence[Change]) -> None:
        """Take in one appraisal."""
        self.appraisals += 1
        self.unchanged += not changes
        self.nodes.add(taken.node_id)
        for change in changes:
            key = taken.node_id.encode() + b" " + msgspec.json.encode(change, order="deterministic")
            counted = self.changes.setdefault(key, ChangeCount(taken.node_id, change))
            counted.count += 1
            counted.last_ms = max(counted.last_ms, taken.at_ms)

    def in_order(self) -> list[ChangeCount]:
        """The changes by node, submodule and time."""
        return sorted(self.changes.values(), key=lambda c: (c.node, c.change.submod, c.last_ms))

    def to_wire(self) -> dict[str, Any]:
        """As JSON has it."""
        directions = [c.change.direction for c in self.changes.values()]
        return {
            "policy": self.policy,
            "appraisals": self.appraisals,
            "unchanged": self.unchanged,
            "nodes": len(self.nodes),
            "nodes_changed": len({c.node for c in self.changes.values()}),
            "better": directions.count("better"),
            "worse": directions.count("worse"),
            "other": directions.count("other"),
            "examined": self.examined,
            "failures": self.failures,
            "gave_up": self.gave_up,
            "changes": [
                {
                    "node": c.node,
                    "submod": c.change.submod,
                    "direction": c.change.direction,
                    "from": msgspec.to_builtins(c.change.before),
                    "to": msgspec.to_builtins(c.change.after),
                    "count": c.count,
                    "last": c.last_ms // 1000,
                }
                for c in self.in_order()
            ],
        }


async def run(
    pages: AsyncIterator[list[RecordingHead]],
    replay: Reappraiser,
    policy_id: str,
    progress: Callable[[int], None] | None = None,
) -> TrialReport:
    """
    Try a policy on recordings.

    Args:
        pages: As `verifier.store.recordings.pages` gives them.
        replay: Under the policy.
        policy_id: As results name it.
        progress: Called with how many were tried.
    """
    report = TrialReport(policy_id)
    async for page in pages:
        for taken, after in zip(page, await replay.verdicts(page), strict=True):
            report.count(taken, compare(before(taken), after))
        report.examined, report.failures = replay.examined, replay.failures
        if progress is not None:
            progress(len(page))
        if replay.failures >= MAX_FAILURES:
            report.gave_up = True
            break
    return report
