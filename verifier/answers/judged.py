"""A check of an answer with its verdict: what decides whether a node is suspected.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.answers.checks import Given, Minted, Verdict
from verifier.schemes.context import Node


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One check, asked by one router of one node, and judged."""

    check: str
    """Its id."""
    node: Node
    model: str
    reporter: str
    """The name of the router whose word the given answer is."""
    result: str
    """The `jti` of the result by which the router chose the node."""
    reference: str
    """The digest of the reference value for which the answer was minted."""
    asked_ms: int
    """When the router got the check, milliseconds since 1970."""
    minted: Minted
    given: Given
    verdict: Verdict
