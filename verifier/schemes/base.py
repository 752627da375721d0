"""
What every scheme is given and gives back: the context of an appraisal, findings, facts.

A scheme is pure.  It says what is true of one submodule; the policy says what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attester.cose import PublicKey
from attester.errors import ClaimError
from attester.evidence import Submod
from verifier.schemes.facts import Facts

DECLARED: Final = "declared"
CHALLENGED: Final = "challenged"

Channel = Literal["open", "announced", "call", "caller"]
"""
How a session came about.  `open`: a stranger's, a nonce and no challenges.  `announced`:
the node asked.  `call`: the verifier called at a secret moment.  `caller`: a background
check with a nonce of the caller's own.
"""


Source = Literal["measured", "oms", "corim", "yaml", "bundle"]
"""Where a reference value is from."""


class IssuedRead(Struct, frozen=True):
    """A `read` challenge with what the verifier knows of its answer."""

    seed: str
    windows: int
    commitment: bytes
    batch: int
    reference: str | None = None
    """The reference value that it is of: it says nothing of another."""


class IssuedWalk(Struct, frozen=True):
    """A `walk` challenge with the commitments of the rows that are checked."""

    seed: str
    rows: int
    passes: int
    commitments: dict[int, bytes]
    batch: int
    wide: bool = False
    """Of so many rows that arithmetic bounds it: one GPU cannot answer two at once in time."""
    reference: str | None = None
    """The reference value that it is of."""


class IssuedChallenges(Struct, frozen=True):
    """What a session asked about one model."""

    read: IssuedRead | None = None
    walk: IssuedWalk | None = None
    exhausted: tuple[str, ...] = ()
    """Kinds that should have been asked, and the pool was empty."""


class Answers(Struct, frozen=True, forbid_unknown_fields=True):
    """The answers to a call for one model: they travel alone, ahead of the evidence."""

    read: str | None = None
    walk: tuple[str, ...] | None = None


_Positive = Annotated[int, Meta(ge=1)]


class HardwareClass(Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the policy's hardware table: what one device of the class can do at most."""

    bandwidth: _Positive
    """Of the device's memory, bytes per second."""
    host_link: _Positive | None
    """Bytes per second from the host; `None` where its memory is as near: timing says nothing there."""
    allowance_ms: _Positive
    """What every answer may take on top: network, launch, a busy device."""
    memory_bytes: _Positive | None = None
    int8_ops: _Positive | None = None
    """Dense int8 operations per second."""
    bf16_flops: _Positive | None = None
    source: str = ""
    """Where the numbers are from."""


class Thresholds(Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of a policy bundle that schemes need (`policies/*/data.json`)."""

    walk_max_age_s: int
    missed_limit: int
    classes: dict[str, HardwareClass]
    manifest_max_age_s: _Positive = 7 * 86_400
    """Digests from a node's cache may be so old."""
    shared_permille: _Positive = 1300
    """Answers to simultaneous calls so many thousandths as slow as alone: one device behind several nodes."""
    contradicted_permille: _Positive = 100
    """Even the best of several walks at less than so many thousandths of the class."""
    excess_permille: _Positive = 1150
    """More than so many thousandths of the class is more than its data sheet allows."""
    boast_permille: _Positive = 10_000
    """A declared rate so many thousandths of the verified one is a finding."""


class WalkRecord(Struct, frozen=True):
    """What an earlier session showed about one model."""

    channel: str
    verdict: Literal["right", "wrong", "missed"]
    at_ms: int
    source: str = "file"
    lateness: int | None = None
    """Time taken in thousandths of the deadline, where a clock ran and a deadline could be set."""
    passes: int = 0
    reference: str = ""
    """Digest of the reference value that was walked: what was shown of another is void."""
    rows: int = 0
    wide: bool = False
    together: bool = False
    """Called at the same moment as other nodes of its operator."""
    ms: int | None = None
    """Time taken by the verifier's clock, milliseconds; `None` where several models were asked at once."""


@dataclass(frozen=True)
class ReferenceFile:
    """A file of the reference: its size where that is known, and its digests by algorithm."""

    size: int | None
    digests: Mapping[str, bytes]


@dataclass(frozen=True)
class ModelReference:
    """The reference value of one model."""

    digest: str
    files: Mapping[str, ReferenceFile]
    tensor_bytes: int
    information_bytes: int = 0
    """What the tensors hold, never more than their bytes: rates are counted in it."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of weights by their type; empty where only a signature names the files."""
    source: Source = "measured"
    signer: str | None = None
    not_before: int | None = None
    """Seconds since 1970; `None` where its validity has no such end."""
    not_after: int | None = None

    def is_valid(self, now: int) -> bool:
        """Whether *now*, seconds since 1970, is within its validity."""
        begun = self.not_before is None or self.not_before <= now
        return begun and (self.not_after is None or now <= self.not_after)


@dataclass(frozen=True)
class Session:
    """The session that evidence answers."""

    id: str
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    asked: Mapping[str, IssuedChallenges]
    answers: Mapping[str, Answers] | None = None
    """What the node answered to a call, before it sent evidence."""
    answer_ms: int | None = None
    """Verifier's clock: from the call pushed to the last byte of the answers."""
    together: int = 0
    """How many nodes of the operator were called at the same moment, where more than one."""


@dataclass(frozen=True)
class Node:
    """An enrolled node."""

    id: str
    ueid: bytes
    key: PublicKey
    operator: str
    models: tuple[str, ...]
    hardware_class: str
    """By the word of the verifier's operator: the node does not choose its own deadlines."""
    state: Literal["active", "probation", "retired"]
    """Quarantine is an open incident, not a state."""
    enrolled_ms: int = 0
    """0 in recordings from before it was kept; what a result says of it never comes from a recording."""


@dataclass(frozen=True)
class Blocks:
    """What is blocked in an emergency, whatever the policy says."""

    digests: frozenset[str] = frozenset()
    """SHA-256 or BLAKE3 of a file, or the digest of a reference value; hex."""
    engines: frozenset[str] = frozenset()
    """``ENGINE@VERSION``."""
    devices: frozenset[str] = frozenset()
    """As the driver names them (UUID)."""


@dataclass(frozen=True)
class Context:
    """Everything an appraisal may look at besides the evidence."""

    now_ms: int
    audience: str
    skew_s: int
    session: Session
    node: Node
    references: Mapping[str, ModelReference]
    history: Mapping[str, tuple[WalkRecord, ...]]
    """Per model, oldest first: the newest calls, and the newest of the others."""
    thresholds: Thresholds
    superseded: Mapping[str, tuple[ModelReference, ...]] = field(default_factory=dict)
    """Per model, values that another has replaced and whose grace period is not over."""
    blocks: Blocks = field(default_factory=Blocks)


@dataclass(frozen=True)
class Finding:
    """Something the operator must know: a code of `verifier.reasons`, and the particulars."""

    code: str
    detail: str
    expected: str | None = None
    actual: str | None = None
    cause: str | None = None
    """What of ours it rests on: the reference or the batch of challenges."""

    def __post_init__(self) -> None:
        """Bound what is shown: a node must not make its own result too large to read."""
        for name in ("detail", "expected", "actual"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, shown(text))


def shown(text: str, limit: int = 300) -> str:
    """*text* as people may see it: printable, and of bounded length."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


@dataclass(frozen=True)
class CheckedSubmod:
    """What is true of one submodule."""

    facts: Facts
    """For the policy; the same for nodes that are alike."""
    findings: tuple[Finding, ...] = ()
    may_affirm: Mapping[str, int] = field(default_factory=dict)
    """The claims this evidence can carry to affirming, and the value it then has."""
    assurance: str = DECLARED
    bound: str = "true"
    measured: Mapping[str, int | str] = field(default_factory=dict)
    attester_claims: Mapping[str, Any] = field(default_factory=dict)
    walk: WalkRecord | None = None
    """To be kept for later appraisals."""
    devices: tuple[str, ...] = ()
    """Devices that the node declares for its own."""
    passed: tuple[str, ...] = ()
    """Causes that this evidence speaks for: others may fail at them, the reference stands."""
    reference: str | None = None
    """Digest of the reference value that it was held against."""
    blocked: Mapping[str, str] = field(default_factory=dict)
    """By claim, what of it is blocked: contraindicated whatever the policy says."""


@dataclass(frozen=True)
class Submods:
    """The submodules of one token, each read or with the error that reading it gave."""

    read: Mapping[str, Submod]
    errors: Mapping[str, ClaimError]

    def claim(self, submod: str, name: str) -> Any:
        """A claim's value, `None` where it is absent."""
        return self.read.get(submod, {}).get(name)


def plain(value: Struct) -> dict[str, Any]:
    """A claim as JSON-compatible values."""
    built: dict[str, Any] = msgspec.to_builtins(value)
    return built
