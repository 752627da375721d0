"""
What every scheme gives back: findings, and what is true of one submodule.

A scheme is pure.  It says what is true; the policy says what that means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Struct

from verifier.schemes.context import WalkRecord
from verifier.schemes.facts import Facts

DECLARED: Final = "declared"
CHALLENGED: Final = "challenged"


@dataclass(frozen=True)
class Finding:
    """Something the operator must know: a code of `verifier.reasons`, and the particulars."""

    code: str
    detail: str
    expected: str | None = None
    actual: str | None = None
    cause: str | None = None
    """What the verifier compared with: ``reference:DIGEST``, or ``batch:NUMBER`` of challenges."""

    def __post_init__(self) -> None:
        """Bound what people see: a node must not make its own result too large to read."""
        for name in ("detail", "expected", "actual"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, to_printable(text))


def to_printable(text: str, limit: int = 300) -> str:
    """*text* as people may see it: printable, and at most *limit* characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


class CheckedSubmod(Struct, frozen=True):
    """What is true of one submodule.  Recordings store it: no field may be renamed."""

    facts: Facts
    """For the policy; the same for nodes that are alike."""
    findings: tuple[Finding, ...] = ()
    may_affirm: Mapping[str, int] = {}
    """The claims that this evidence can raise to affirming, each with the best value it can have."""
    assurance: str = DECLARED
    bound: str = "true"
    measured: Mapping[str, int | str] = {}
    attester_claims: Mapping[str, Any] = {}
    walk: WalkRecord | None = None
    """The store keeps it for later appraisals."""
    devices: tuple[str, ...] = ()
    """Devices that the node declares as its own."""
    passed: tuple[str, ...] = ()
    """
    Causes that this evidence speaks against, each as ``CODE@CAUSE``.

    If other nodes fail for such a cause, the reference value or the batch is not at fault.
    """
    reference: str | None = None
    """Digest of the reference value that it was compared with."""
    prompting: Mapping[str, str] = {}
    """Where the chat template and the sampling defaults come from (`verifier.schemes.prompting`)."""
    blocked: Mapping[str, str] = {}
    """By claim, what of it is blocked: the claim is contraindicated, whatever the policy says."""


def plain(value: Struct) -> dict[str, Any]:
    """A claim as JSON-compatible values."""
    built: dict[str, Any] = msgspec.to_builtins(value)
    return built
