"""
What every scheme is given: the submodules of one token, and the context of the appraisal.

These types hold values only.  Recordings store most of them as JSON under the names of their
fields, so no field may be renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from attester.cose import PublicKey
from attester.errors import ClaimError
from attester.kinds import Submod
from attester.weights.roles import roles_of


class Channel(StrEnum):
    """How a session came about.  The values are stored: they never change."""

    OPEN = "open"
    """Anybody opened it: it has a nonce and no challenges."""
    ANNOUNCED = "announced"
    """A node opened it and proved its key: the node knows beforehand that it will be challenged."""
    CALLED = "call"
    """The verifier called the node at a secret moment."""
    BACKGROUND = "caller"
    """A background check: the caller chose the nonce, and the caller alone gets the result."""


Source = Literal["measured", "oms", "corim", "yaml", "bundle"]
"""Where a reference value comes from."""


class IssuedRead(Struct, frozen=True, kw_only=True):
    """A `read` challenge, with what the verifier knows of its answer."""

    seed: str
    windows: int
    commitment: bytes
    batch: int
    reference: str | None = None
    """Digest of the reference value that the challenge was made from: the answer says nothing of another."""
    gates: bytes | None = None
    """The commitment to the answer over the files alone that change the model's answers; `None` in old pools.
    `commitment` is over all of its files: attesters that are not told which files are read, read all."""


class IssuedWalk(Struct, frozen=True, kw_only=True):
    """A `walk` challenge, with the commitments of the rows that are checked."""

    seed: str
    rows: int
    passes: int
    commitments: dict[int, bytes]
    batch: int
    wide: bool = False
    """It has so many rows that arithmetic bounds its time: one GPU cannot answer two at once in time."""
    reference: str | None = None
    """Digest of the reference value that the challenge was made from."""


class IssuedChallenges(Struct, frozen=True):
    """What a session asked about one model."""

    read: IssuedRead | None = None
    walk: IssuedWalk | None = None
    exhausted: tuple[str, ...] = ()
    """Kinds of challenge that were due while the pool had none of them."""
    reference: str | None = None
    """Digest of the reference value that was asked for; `None` if earlier versions opened the session."""


class Answers(Struct, frozen=True, forbid_unknown_fields=True):
    """The answers to a call for one model.  The node sends them alone, before the evidence."""

    read: str | None = None
    walk: tuple[str, ...] | None = None


_Positive = Annotated[int, Meta(ge=1)]


class HardwareClass(Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the policy's hardware table: what one device of the class can do at most."""

    bandwidth: _Positive
    """Of the device's memory, bytes per second."""
    host_link: _Positive | None
    """
    Bytes per second from the host's memory to the device.

    `None` if the host's memory is as near as the device's own: time shows nothing of where weights are.
    """
    allowance_ms: _Positive
    """What every answer may take in addition, for the network, the launch and a busy device."""
    memory_bytes: _Positive | None = None
    int8_ops: _Positive | None = None
    """Dense int8 operations per second."""
    bf16_flops: _Positive | None = None
    source: str = ""
    """Where the numbers come from."""


class AnswerBoundaries(Struct, frozen=True, forbid_unknown_fields=True):
    """When answers that differ from minted ones have consequences, by false alarms (`verifier.answers.sequence`)."""

    suspicion_per_million: Annotated[float, Meta(gt=0, le=10_000)] = 1.0
    """Of a million checks of true weights, at most so many make a suspicion: routers prefer other nodes."""
    incident_per_million: Annotated[float, Meta(gt=0, le=10_000)] | None = 0.01
    """At most so many make an incident that quarantines; `None`: only a person makes one."""
    active_bytes: dict[str, _Positive] = {}
    """By model, the bytes of weights that one token reads (``touchstone reference active``)."""
    accepted_tokens: Annotated[float, Meta(ge=1, le=64)] = 4.0
    """How many tokens a step of speculative decoding gives, at most: an engine with a better draft needs more."""


class Thresholds(Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of a policy bundle that schemes need (`policies/*/data.json`)."""

    walk_max_age_s: int
    missed_limit: int
    """So many calls missed in a row contraindicate a node."""
    classes: dict[str, HardwareClass]
    manifest_max_age_s: _Positive = 7 * 86_400
    """The greatest age of digests from a node's cache."""
    shared_permille: _Positive = 1300
    """
    The greatest time of simultaneous answers, in thousandths of the time of answers alone.

    If it is exceeded, one device serves several nodes.
    """
    contradicted_permille: _Positive = 100
    """The least speed of the best of several walks, in thousandths of the class's."""
    excess_permille: _Positive = 1150
    """The greatest speed, in thousandths of the class's: more is not in its data sheet."""
    answered_permille: _Positive = 950
    """
    The least share of calls with a walk that a node answers over about a day, in thousandths.

    It counts from five missed calls on.
    """
    boast_permille: _Positive = 10_000
    """The greatest declared rate, in thousandths of the verified one."""
    answers: AnswerBoundaries = AnswerBoundaries()
    """Of the sequential test of answers."""


class WalkRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an earlier session showed about one model."""

    channel: str
    """A `Channel`, as stored."""
    verdict: Literal["right", "wrong", "missed"]
    at_ms: int
    source: str = "file"
    lateness: int | None = None
    """Time taken in thousandths of the deadline; `None` if it was not timed or no deadline could be set."""
    passes: int = 0
    reference: str = ""
    """Digest of the reference value that was walked.  The record says nothing of another value."""
    rows: int = 0
    wide: bool = False
    together: bool = False
    """Whether other nodes of its operator were called at the same moment."""
    ms: int | None = None
    """Time taken by the verifier's clock, milliseconds; `None` if several models were asked at once."""
    right_weight: int = 0
    """Of the calls until now with a right walk: 1,000 for each, half as much for every 12 hours of its age."""
    unanswered_weight: int = 0
    """The same of the calls that were missed.  Of several in a row, only the first counts."""


class Excuse(Struct, frozen=True, kw_only=True):
    """What counts on for a node and model while the pool has no challenges: that is the verifier's fault."""

    grace_s: int
    """For how long a right answer to a call counts on."""
    read_ms: int | None = None
    """When the newest read that was asked in a call was answered, if rightly; `None` otherwise."""
    blamed_ms: int = 0
    """When last a challenge was held against the node; 0 if none ever was."""

    def keeps(self, at_ms: int | None, now_ms: int) -> bool:
        """Whether what was shown at a moment counts on."""
        return at_ms is not None and at_ms > self.blamed_ms and now_ms - at_ms <= self.grace_s * 1000


@dataclass(frozen=True)
class ReferenceFile:
    """A file of the reference: its size if that is known, and its digests by algorithm."""

    size: int | None
    digests: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """The reference value of one model."""

    digest: str
    files: Mapping[str, ReferenceFile]
    tensor_bytes: int
    information_bytes: int = 0
    """The information in the tensors, at most their bytes.  Rates are computed from it."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of weights by their type; empty if only a signature names the files."""
    source: Source = "measured"
    signer: str | None = None
    not_before: int | None = None
    """Seconds since 1970; `None` if its validity has no beginning."""
    not_after: int | None = None
    """Seconds since 1970; `None` if its validity has no end."""
    as_loaded: bool = False
    """Whether walks go over what an engine has loaded as it is, instead of the published tensors."""
    walked: frozenset[str] = frozenset()
    """The files that hold the tensors."""
    ignore: tuple[str, ...] = ()
    """Names and patterns of files in a folder that are not the model's (`attester.weights.patterns`)."""

    @cached_property
    def gates(self) -> frozenset[str]:
        """The files that change the model's answers: those of the table, and those whose tensors are walked."""
        return roles_of(frozenset(self.files)).gates | (self.walked & self.files.keys())

    def is_valid(self, now: int) -> bool:
        """Whether *now*, seconds since 1970, is within its validity."""
        has_begun = self.not_before is None or self.not_before <= now
        return has_begun and (self.not_after is None or now <= self.not_after)


class Session(Struct, frozen=True, kw_only=True):
    """The session that evidence answers."""

    id: str
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    asked: Mapping[str, IssuedChallenges]
    """By model, the challenges that were issued."""
    answers: Mapping[str, Answers] | None = None
    """By model, what the node answered to a call, before it sent evidence."""
    answer_ms: int | None = None
    """By the verifier's clock, from the question to the last byte of the answers."""
    read_ms: int | None = 0
    """
    The same of the read, if the node was told of the walk after it.

    `answer_ms` is then of the walk alone.  Both together must be in time: a node must not load its weights
    between the call and its answer to the read.
    """
    together: int = 0
    """How many nodes of the operator were called at the same moment; 0 if this one alone was."""


class Node(Struct, frozen=True, kw_only=True):
    """An enrolled node."""

    id: str
    ueid: bytes
    key: PublicKey
    operator: str
    models: tuple[str, ...]
    hardware_class: str
    """As the verifier's operator enrolled it: a node does not choose its own deadlines."""
    state: Literal["active", "probation", "retired"]
    """Quarantine is an open incident, not a state."""
    enrolled_ms: int = 0
    """0 in recordings made before it was stored.  A result never takes it from a recording."""


@dataclass(frozen=True)
class Blocks:
    """What is blocked in an emergency, whatever the policy says."""

    digests: frozenset[str] = frozenset()
    """SHA-256 or BLAKE3 of a file, or the digest of a reference value; hex."""
    engines: frozenset[str] = frozenset()
    """``ENGINE@VERSION``, a pattern or a range (`verifier.schemes.blocking`)."""
    devices: frozenset[str] = frozenset()
    """UUIDs, or patterns of them."""


class Context(Struct, frozen=True, kw_only=True):
    """Everything an appraisal may look at besides the evidence."""

    now_ms: int
    audience: str
    skew_s: int
    session: Session
    node: Node
    references: Mapping[str, ModelReference]
    history: Mapping[str, tuple[WalkRecord, ...]]
    """By model, oldest first: the newest calls, and the newest of the other walks."""
    thresholds: Thresholds
    beside: Mapping[str, tuple[ModelReference, ...]] = {}
    """By model that is rolled out, the values that are valid beside the one in force."""
    superseded: Mapping[str, tuple[ModelReference, ...]] = {}
    """By model, the values that another has replaced and whose grace period has not ended."""
    blocks: Blocks = msgspec.field(default_factory=Blocks)
    excuses: Mapping[str, Excuse] = {}
    """
    By model, for those of which the pool had no challenge for this session.

    For a value that is not in force it is under the digest of the value.
    """
    tells_walk: bool = True
    """Whether results say when the last walk was that was right: see `verifier.recording.Record`."""
    tells_prompting: bool = True
    """Whether results say where chat template and sampling defaults come from; as above."""
    tells_engine: bool = True
    """Whether results name the engine and its version; as above."""

    def valid(self, model: str) -> tuple[ModelReference, ...]:
        """The values of a model that are valid now; the one in force first."""
        found = (self.references.get(model), *self.beside.get(model, ()))
        return tuple(each for each in found if each is not None and each.is_valid(self.now_ms // 1000))

    def known(self, model: str) -> tuple[ModelReference, ...]:
        """The values of a model that evidence is compared with: those that are valid, and those in their grace."""
        return (*self.valid(model), *self.superseded.get(model, ()))

    def excuse_for(self, model: str, reference: ModelReference | None) -> Excuse | None:
        """What counts on for a model and the value that its evidence is judged on."""
        in_force = self.references.get(model)
        if reference is None or in_force is None or reference.digest == in_force.digest:
            return self.excuses.get(model)
        return self.excuses.get(reference.digest)


@dataclass(frozen=True)
class Submods:
    """The submodules of one token: each is either read, or has the error that reading it gave."""

    read: Mapping[str, Submod]
    errors: Mapping[str, ClaimError]

    def claim(self, submod: str, name: str) -> Any:
        """A claim's value; `None` if it is absent."""
        return self.read.get(submod, {}).get(name)
