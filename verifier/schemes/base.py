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
from attester.evidence import File, Submod

DECLARED: Final = "declared"
CHALLENGED: Final = "challenged"

Channel = Literal["open", "announced", "call", "caller"]
"""
How a session came about.  `open`: a stranger's, a nonce and no challenges.  `announced`:
the node asked.  `call`: the verifier called at a secret moment.  `caller`: a background
check with a nonce of the caller's own.
"""


class ReadAsked(Struct, frozen=True):
    """A `read` challenge with what the verifier knows of its answer."""

    seed: str
    windows: int
    commitment: bytes
    batch: int


class WalkAsked(Struct, frozen=True):
    """A `walk` challenge with the commitments of the rows that are checked."""

    seed: str
    rows: int
    passes: int
    commitments: dict[int, bytes]
    batch: int


class Asked(Struct, frozen=True):
    """What a session asked about one model."""

    read: ReadAsked | None = None
    walk: WalkAsked | None = None
    exhausted: tuple[str, ...] = ()
    """Kinds that should have been asked, and the pool was empty."""


class Answers(Struct, frozen=True, forbid_unknown_fields=True):
    """The answers to a call for one model: they travel alone, ahead of the evidence."""

    read: str | None = None
    walk: tuple[str, ...] | None = None


_Positive = Annotated[int, Meta(ge=1)]


class HardwareClass(Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the policy's hardware table; bandwidths in bytes per second."""

    bandwidth: _Positive
    host_link: _Positive | None
    """`None` where host memory is as near as the device's (CPUs): timing says nothing there."""
    allowance_ms: _Positive


class Thresholds(Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of a policy bundle that schemes need (`policies/*/data.json`)."""

    walk_max_age_s: int
    missed_limit: int
    classes: dict[str, HardwareClass]


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


@dataclass(frozen=True)
class ModelReference:
    """The reference value of one model."""

    digest: str
    files: Mapping[str, File]
    tensor_bytes: int


@dataclass(frozen=True)
class Session:
    """The session that evidence answers."""

    id: str
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    asked: Mapping[str, Asked]
    answers: Mapping[str, Answers] | None = None
    """What the node answered to a call, before it sent evidence."""
    answer_ms: int | None = None
    """Verifier's clock: from the call pushed to the last byte of the answers."""


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
    state: str
    """active, probation, or retired.  Quarantine is an open incident, not a state."""


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
class Checked:
    """What is true of one submodule."""

    facts: Mapping[str, Any]
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
    passed: tuple[str, ...] = ()
    """Causes that this evidence speaks for: others may fail at them, the reference stands."""


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
