"""
Whose each reason code is: what may be held against a node, and what may not.

A finding makes an incident only if it is the node's (`verifier.incidents.drafts`).  What the verifier, the
security team or the caller has to mend is never an incident of a node (docs/blame.md, docs/adr/0030).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Whose(StrEnum):
    """Who has to mend it."""

    NODE = "node"
    """The node, its engine or its operator."""
    CALLER = "caller"
    """Whoever sent the request that is refused."""
    SECURITY = "security team"
    """Who writes policies and publishes reference values."""
    VERIFIER = "verifier"
    """The verifier itself: its pool, its database, its configuration."""


WHOSE: Final[Mapping[str, Whose]] = {
    "capabilities.class.unknown": Whose.SECURITY,
    "weights.reference": Whose.SECURITY,
    "weights.reference.superseded": Whose.NODE,
    "weights.read.unasked": Whose.CALLER,
    "weights.walk.untimed": Whose.VERIFIER,
    "answers.check": Whose.CALLER,
    "answers.drift": Whose.VERIFIER,
    "answers.drift.node": Whose.NODE,
    "answers.node": Whose.CALLER,
    "answers.result": Whose.CALLER,
    "challenges": Whose.VERIFIER,
    "policy": Whose.SECURITY,
    "result": Whose.VERIFIER,
    "log": Whose.VERIFIER,
    "receipts": Whose.CALLER,
    "request": Whose.CALLER,
    "request.issuer-unavailable": Whose.VERIFIER,
    "receipt": Whose.CALLER,
    "settlement": Whose.CALLER,
    "key": Whose.CALLER,
    "session": Whose.CALLER,
    "token": Whose.CALLER,
    "node": Whose.CALLER,
    "registration": Whose.CALLER,
    "registration.full": Whose.VERIFIER,
    "change": Whose.CALLER,
    "incident": Whose.CALLER,
    "reference": Whose.SECURITY,
    "rollout": Whose.SECURITY,
    "revision": Whose.CALLER,
    "service": Whose.VERIFIER,
    "store": Whose.VERIFIER,
    "config": Whose.VERIFIER,
    "verifier": Whose.VERIFIER,
}
"""
By code, or by the beginning of codes: the longest that fits counts.  Everything else is the node's, so
that a new kind of evidence needs no row.
"""


def whose(code: str) -> Whose:
    """Give whose a reason code is."""
    parts = code.split(".")
    for length in range(len(parts), 0, -1):
        found = WHOSE.get(".".join(parts[:length]))
        if found is not None:
            return found
    return Whose.NODE
